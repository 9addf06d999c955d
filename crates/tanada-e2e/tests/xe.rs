//! The command line against a real daemon.

use tanada_e2e::Scratch;

const VM: &str = "name-label=db1";

/// A store, a VM with two disks, over the local socket.
fn world(scratch: &Scratch) -> (String, String) {
    let location = format!("device-config:location={}", scratch.path("fast.store").display());
    let sr = scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, "physical-size=1GiB"]);
    let vm = scratch.xe_ok(["vm-create", VM]);
    for device in ["0", "1"] {
        let device = format!("device={device}");
        let out = scratch.xe_ok(["vm-disk-add", "vm=db1", "disk-size=16MiB", &device, &format!("sr-uuid={sr}")]);
        assert_eq!(out, "");
    }
    (sr, vm)
}

#[test]
fn a_machine_is_snapshotted_instantiated_reverted_and_removed() {
    let scratch = Scratch::start();
    let (sr, vm) = world(&scratch);
    let by_uuid = |uuid: &str| format!("uuid={uuid}");
    let param = |class: &str, uuid: &str, name: &str| {
        scratch.xe_ok([&format!("{class}-param-get"), &by_uuid(uuid), &format!("param-name={name}")])
    };
    assert_eq!(scratch.xe_ok(["sr-list", "type=tanada", "--minimal"]), sr);
    assert_eq!(param("sr", &sr, "virtual-allocation"), (32 << 20).to_string());
    let record = scratch.xe_ok(["vm-list", VM]);
    let expected = format!("uuid ( RO)           : {vm}\n     name-label ( RW): db1\n    power-state ( RO): halted");
    assert_eq!(record, expected);

    let snapshot = scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=nightly-001"]);
    assert_eq!(scratch.xe_ok(["snapshot-list", "--minimal"]), snapshot);
    assert_eq!(scratch.xe_ok(["template-list", "is-a-snapshot=true", "--minimal"]), snapshot);
    assert!(!scratch.xe_ok(["template-list", "--minimal"]).contains(&snapshot));
    assert!(!scratch.xe_ok(["vm-list", "--minimal"]).contains(&snapshot));
    assert_eq!(param("snapshot", &snapshot, "snapshot-of"), vm);
    let refusal = scratch.xe_fails(["vm-start", &by_uuid(&snapshot)]);
    assert!(refusal.starts_with("Error code: VM_IS_SNAPSHOT\n"), "{refusal}");

    let copy = scratch.xe_ok(["vm-install", "template=nightly-001", "new-name-label=db1-restored"]);
    assert_eq!(param("vm", &copy, "name-description"), "Installed via xe CLI");
    assert_eq!(param("vm", &copy, "is-a-template"), "false");
    assert_eq!(scratch.xe_ok(["vbd-list", &format!("vm-uuid={copy}"), "--minimal"]).split(',').count(), 2);

    scratch.xe_ok(["vm-param-set", &by_uuid(&vm), "name-label=renamed", "other-config:key=value"]);
    assert_eq!(param("vm", &vm, "name-label"), "renamed");
    scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={snapshot}")]);
    assert_eq!(param("vm", &vm, "name-label"), "db1");

    let said = scratch.xe_ok(["vm-uninstall", &by_uuid(&copy), "--force"]);
    assert!(said.contains(&format!("VM : {copy} (db1-restored)")) && said.ends_with("All objects destroyed"), "{said}");
    scratch.xe_ok(["vm-uninstall", "vm=db1", "force=true"]);
    assert_eq!(scratch.xe_ok(["snapshot-list", "--minimal"]), "");
    assert_eq!(scratch.xe_ok(["vdi-list", &format!("sr-uuid={sr}"), "--minimal"]), "");
    let pbd = scratch.xe_ok(["pbd-list", &format!("sr-uuid={sr}"), "--minimal"]);
    scratch.xe_ok(["pbd-unplug", &by_uuid(&pbd)]);
    scratch.xe_ok(["sr-destroy", &by_uuid(&sr)]);
    assert_eq!(scratch.xe_ok(["sr-list", "type=tanada", "--minimal"]), "");
}

#[test]
fn disks_and_machines_go_through_files() {
    let scratch = Scratch::start();
    let (sr, vm) = world(&scratch);
    let vdi = scratch.disk(&vm, 0);
    // Every byte tells its place, except in the second half, which stays empty.
    let mut image: Vec<u8> = (0..8 << 20_u32).map(|n: u32| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    image.resize(16 << 20, 0);
    let (before, after) = (scratch.path("before.raw"), scratch.path("after.raw"));
    std::fs::write(&before, &image).unwrap();
    scratch.xe_ok(["vdi-import", &format!("uuid={vdi}"), &format!("filename={}", before.display()), "format=raw"]);
    scratch.xe_ok(["vdi-export", &format!("uuid={vdi}"), &format!("filename={}", after.display()), "format=raw"]);
    assert!(std::fs::read(&after).unwrap() == image, "the disk reads as it was written");

    let archive = scratch.path("db1.xva");
    let filename = format!("filename={}", archive.display());
    assert_eq!(scratch.xe_ok(["vm-export", "vm=db1", &filename, "compress=zstd"]), "Export succeeded");
    let refusal = scratch.xe_fails(["vm-export", "vm=db1", &filename]);
    assert!(refusal.contains("Cannot create"), "{refusal}");
    let imported = scratch.xe_ok(["vm-import", &filename, &format!("sr-uuid={sr}")]);
    assert_ne!(imported, vm);
    let copy = scratch.disk(&imported, 0);
    let exported = scratch.path("imported.raw");
    scratch.xe_ok(["vdi-export", &format!("uuid={copy}"), &format!("filename={}", exported.display()), "format=raw"]);
    assert!(std::fs::read(&exported).unwrap() == image, "the imported disk holds the same");

    let whole = std::fs::read(&archive).unwrap();
    std::fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
    let count = |list: &str| scratch.xe_ok([list, "--minimal"]).split(',').count();
    let counts = [count("vm-list"), count("vdi-list"), count("vbd-list")];
    let refusal = scratch.xe_fails(["vm-import", &filename, &format!("sr-uuid={sr}")]);
    assert!(!refusal.is_empty());
    assert_eq!([count("vm-list"), count("vdi-list"), count("vbd-list")], counts, "nothing is left behind: {refusal}");
}

#[test]
fn over_tls_a_password_is_needed() {
    let scratch = Scratch::start();
    let ran = scratch.xe_tls(["host-list", "--minimal"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(ran.out.trim_end().len(), 36, "{}", ran.out);
    let port = scratch.https_url().rsplit(':').next().unwrap().to_owned();
    let refused = scratch.xe_fails(["-s", "127.0.0.1", "-p", &port, "-u", "root", "-pw", "wrong", "host-list"]);
    let (unchecked, refused) = refused.split_once('\n').unwrap();
    assert!(unchecked.starts_with("The certificate of 127.0.0.1 is not checked"), "{unchecked}");
    assert_eq!(refused, "Authentication failed\nFor usage run: 'xe help'\n");
    let missing = scratch.xe_fails(["-s", "127.0.0.1", "-p", &port, "host-list"]);
    assert_eq!(missing, "Username/password must be specified\n");
}

#[test]
fn a_killed_daemon_comes_back_with_everything() {
    let mut scratch = Scratch::start();
    let (sr, vm) = world(&scratch);
    let lists = ["sr-list", "vm-list", "vdi-list", "vbd-list", "pbd-list"];
    let look = |scratch: &Scratch| lists.map(|list| scratch.xe_ok([list, "--minimal"]));
    let before = look(&scratch);
    scratch.kill_daemon();
    scratch.start_daemon();
    assert_eq!(look(&scratch), before);
    let attached = scratch.xe_ok(["pbd-list", &format!("sr-uuid={sr}"), "params=currently-attached", "--minimal"]);
    assert_eq!(attached, "true");
    scratch.xe_ok(["vm-snapshot", &format!("uuid={vm}"), "new-name-label=after"]);
}

#[test]
fn a_running_machine_outlives_the_daemon() {
    let mut scratch = Scratch::start();
    let (sr, vm) = world(&scratch);
    let uuid = format!("uuid={vm}");
    let state = |scratch: &Scratch| scratch.xe_ok(["vm-param-get", &uuid, "param-name=power-state"]);
    scratch.xe_ok(["vm-start", "vm=db1"]);
    assert_eq!(state(&scratch), "running");
    let refusal = scratch.xe_fails(["vm-start", "vm=db1"]);
    assert!(refusal.contains("\nexpected: halted\nactual: running\n"), "{refusal}");
    scratch.kill_daemon();
    scratch.start_daemon();
    assert_eq!(state(&scratch), "running");
    let snapshot = scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=live"]);
    let info = ["snapshot-param-get", &format!("uuid={snapshot}"), "param-name=snapshot-info"];
    let at = scratch.xe_ok(info.into_iter().chain(["param-key=power-state-at-snapshot"]));
    assert_eq!(at, "Running");
    assert_eq!(scratch.xe_ok(info.into_iter().chain(["param-key=consistency"])), "crash", "there is no agent to ask");
    let refusal = scratch.xe_fails(["vm-snapshot-with-quiesce", "vm=db1", "new-name-label=quiet"]);
    assert!(refusal.starts_with("The VM does not support a snapshot with quiesce.\nvm: "), "{refusal}");
    scratch.xe_ok(["vm-disk-add", "vm=db1", "disk-size=16MiB", "device=2", &format!("sr-uuid={sr}")]);
    let attached = ["vbd-list", &format!("vm-uuid={vm}"), "params=currently-attached", "--minimal"];
    assert_eq!(scratch.xe_ok(attached), "true,true,true");
    scratch.xe_ok(["vm-pause", "vm=db1"]);
    assert_eq!(state(&scratch), "paused");
    scratch.xe_ok(["vm-unpause", "vm=db1"]);
    scratch.xe_ok(["event-wait", "class=vm", &uuid, "power-state=running"]);
    scratch.xe_ok(["vm-shutdown", "vm=db1", "--force"]);
    assert_eq!(state(&scratch), "halted");
    assert_eq!(scratch.xe_ok(attached), "false,false,false");
}
