//! libiscsi's tools and QEMU, who know nothing of the router, see what the array shows.

use crate::array::{ALICE, Array, BOB, IQN, run};
use sim_target::router::{Refusal, Route};
use sim_target::{Chap, blocks};

fn qemu_io(image: &str, commands: &[&str]) -> (bool, String) {
    let mut args = vec!["--image-opts".to_string()];
    args.extend(["--object", "secret,id=s,data=a secret word"].map(String::from));
    for command in commands {
        args.extend(["-c".to_string(), (*command).to_string()]);
    }
    args.push(image.to_string());
    run("/usr/bin/qemu-io", args)
}

#[test]
fn every_initiator_sees_its_own_luns_under_one_name() {
    let array = Array::start();
    array.welcome(ALICE, "iqn.inner:1");
    array.welcome(BOB, "iqn.inner:2");
    array.show("iqn.inner:1", 0, &array.disk("a", 64 << 20));
    array.show("iqn.inner:1", 300, &array.disk("b", 32 << 20));
    array.show("iqn.inner:2", 0, &array.disk("c", 16 << 20));
    let url = format!("iscsi://{}", array.portal);
    let (ok, seen) = run("/usr/bin/iscsi-ls", ["-s", "-i", ALICE, &url]);
    assert!(ok, "{seen}");
    let luns: Vec<&str> = seen.lines().filter(|line| line.starts_with("Lun:")).collect();
    assert_eq!(luns.len(), 2, "{seen}");
    assert!(luns[0].starts_with("Lun:0 ") && luns[0].contains("DIRECT_ACCESS (Size:63M)"), "{seen}");
    assert!(seen.contains(&format!("Target:{IQN} Portal:{},1", array.portal)), "{seen}");
    let (_, seen) = run("/usr/bin/iscsi-ls", ["-s", "-i", BOB, &url]);
    assert!(seen.contains("Lun:0 ") && seen.contains("Size:15M") && !seen.contains("Size:63M"), "{seen}");
    let (_, seen) = run("/usr/bin/iscsi-ls", ["-i", "iqn.2026-01.test:mallory", &url]);
    assert!(!seen.contains("Target:"), "a stranger is shown nothing: {seen}");
    let (ok, said) = qemu_io(&array.image("iqn.2026-01.test:mallory", 0, None), &["read 0 512"]);
    assert!(!ok && said.contains("Authorization failure"), "{said}");
}

#[test]
fn a_lun_tells_its_identity() {
    let array = Array::start();
    array.welcome(ALICE, "iqn.inner:1");
    array.show("iqn.inner:1", 0, &array.disk("a", 64 << 20));
    let url = format!("iscsi://{}/{IQN}/0", array.portal);
    let (_, seen) = run("/usr/bin/iscsi-inq", ["-i", ALICE, &url]);
    assert!(seen.contains("Vendor:MAKER") && seen.contains("Product:LUN of tests"), "{seen}");
    let (_, seen) = run("/usr/bin/iscsi-inq", ["-i", ALICE, "-e", "1", "-c", "128", &url]);
    assert!(seen.contains("Unit Serial Number:[80A2zXqLm0k1]"), "{seen}");
    let (_, seen) = run("/usr/bin/iscsi-inq", ["-i", ALICE, "-e", "1", "-c", "131", &url]);
    assert!(seen.contains("(3) NAA") && seen.contains("[`23456789abcdefg]"), "{seen}");
}

#[test]
fn chap_is_asked_for_and_judged() {
    let array = Array::start();
    array.welcome(ALICE, "iqn.inner:1");
    array.show("iqn.inner:1", 0, &array.disk("a", 16 << 20));
    let chap = Chap { user: "alice".into(), secret: "a secret word".into() };
    array.target.set_chap("iqn.inner:1", Some(&chap), None).unwrap();
    *array.book.discovery_chap.lock().unwrap() = Some(chap.clone());
    assert!(!format!("{chap:?}").contains("word"));
    let (ok, said) = qemu_io(&array.image(ALICE, 0, Some("alice")), &["write -P 7 0 64k", "read -P 7 0 64k"]);
    assert!(ok && !said.contains("failed"), "{said}");
    for user in [None, Some("bob"), Some("account1")] {
        let (ok, said) = qemu_io(&array.image(ALICE, 0, user), &["read 0 512"]);
        assert!(!ok, "{user:?} got in: {said}");
    }
    // The discovery session is guarded too.
    let with = format!("iscsi://alice%a secret word@{}", array.portal);
    let (_, seen) = run("/usr/bin/iscsi-ls", ["-i", ALICE, &with]);
    assert!(seen.contains(&format!("Target:{IQN}")), "{seen}");
    let (_, seen) = run("/usr/bin/iscsi-ls", ["-i", ALICE, &format!("iscsi://alice%wrong@{}", array.portal)]);
    assert!(!seen.contains("Target:"), "{seen}");
    array.target.set_chap("iqn.inner:1", None, None).unwrap();
    let (ok, said) = qemu_io(&array.image(ALICE, 0, None), &["read -P 7 0 64k"]);
    assert!(ok && !said.contains("failed"), "{said}");
}

#[test]
fn discards_punch_holes_and_redirects_are_followed() {
    let array = Array::start();
    array.welcome(ALICE, "iqn.inner:1");
    let disk = array.disk("a", 16 << 20);
    array.show("iqn.inner:1", 0, &disk);
    let image = format!("{},discard=unmap", array.image(ALICE, 0, None))
        .replace("driver=iscsi", "driver=raw,file.driver=iscsi");
    let image = image.replace(",transport", ",file.transport").replace(",portal", ",file.portal");
    let image =
        image.replace(",target", ",file.target").replace(",lun", ",file.lun").replace(",initiator", ",file.initiator");
    let (ok, said) = qemu_io(&image, &["write -P 7 0 4M", "flush"]);
    assert!(ok, "{said}");
    assert!(blocks::allocated(&disk).unwrap() >= 4 << 20);
    let (ok, said) = qemu_io(&image, &["discard 0 4M", "read -P 0 0 4M"]);
    assert!(ok && !said.contains("failed"), "{said}");
    assert!(blocks::allocated(&disk).unwrap() < 1 << 20, "{} bytes", blocks::allocated(&disk).unwrap());
    // A group address that only points elsewhere, as EqualLogic's does.
    let other = array.router.open("127.0.0.1:0".parse().unwrap()).unwrap();
    array.route(BOB, Route::Redirect { portal: other.to_string() });
    let (ok, said) = qemu_io(&array.image(BOB, 0, None), &["read 0 512"]);
    assert!(!ok, "the redirection leads back to a redirection, without end: {said}");
    array.route(BOB, Route::Refuse(Refusal::SERVICE_UNAVAILABLE));
    let (ok, _) = qemu_io(&array.image(BOB, 0, None), &["read 0 512"]);
    assert!(!ok);
}
