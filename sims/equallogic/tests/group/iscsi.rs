//! Volumes and snapshots, by QEMU's initiator and libiscsi's tools.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::bench::{ALICE, BOB, Bench, program};

#[test]
fn a_volume_has_whole_pages_and_the_arrays_identity() {
    let bench = Bench::quiet();
    bench.volume("disk7", "1G thin-provision");
    let image = bench.image(&bench.iqn("disk7"), ALICE, None);
    let (ok, info) = program("/usr/bin/qemu-img", &["info", "--output=json", "--image-opts", &image]);
    assert!(ok && info.contains("\"virtual-size\": 1085276160"), "{info}");
    bench.done("volume select disk7 size 2G no-snap");
    let (ok, info) = program("/usr/bin/qemu-img", &["info", "--output=json", "--image-opts", &image]);
    assert!(ok && info.contains(&format!("\"virtual-size\": {}", 137u64 * 15 * 1024 * 1024)), "{info}");
    let portal = format!("iscsi://{}", bench.group.portal());
    let (_, seen) = program("/usr/bin/iscsi-ls", &["-i", ALICE, &portal]);
    assert!(seen.contains(&format!("Target:{}", bench.iqn("disk7"))), "{seen}");
    let (_, seen) = program("/usr/bin/iscsi-ls", &["-i", BOB, &portal]);
    assert!(!seen.contains("Target:"), "{seen}");
    let (_, seen) = program("/usr/bin/iscsi-inq", &["-i", ALICE, &format!("{portal}/{}/0", bench.iqn("disk7"))]);
    assert!(seen.contains("Vendor:EQLOGIC") && seen.contains("Product:100E-00"), "{seen}");
}

#[test]
fn records_chap_and_state_decide_who_gets_in() {
    let bench = Bench::quiet();
    bench.done("volume create disk7 30");
    bench.done("chapuser create alice password secretsecret");
    bench.done("chapuser create eve password anothersecret");
    let iqn = bench.iqn("disk7");
    let gets_in =
        |initiator: &str, user: Option<&str>| bench.qemu_io(&bench.image(&iqn, initiator, user), &["read 0 512"]).0;
    assert!(!gets_in(ALICE, None), "no record");
    bench.done(&format!("volume select disk7 access create initiator {ALICE} authmethod chap username alice"));
    bench.done(&format!("volume select disk7 access create initiator {BOB}"));
    assert!(gets_in(ALICE, Some("alice")));
    assert!(!gets_in(ALICE, None), "without CHAP");
    assert!(!gets_in(ALICE, Some("eve")), "with another's secret");
    assert!(gets_in(BOB, None), "his record asks for none");
    bench.done("volume select disk7 access delete 2");
    assert!(!gets_in(BOB, None));
    bench.done("volume select disk7 access create ipaddress 10.1.2.3");
    assert!(!gets_in(BOB, None), "from another address");
    bench.done("volume select disk7 access create ipaddress 127.0.*.1");
    assert!(gets_in(BOB, None));
    bench.done("volume select disk7 offline");
    assert!(!gets_in(ALICE, Some("alice")));
    bench.done("volume select disk7 online");
    assert!(gets_in(ALICE, Some("alice")));
}

#[test]
fn a_second_host_needs_leave_and_offline_ends_sessions() {
    let bench = Bench::quiet();
    bench.volume("disk7", "30");
    bench.done(&format!("volume select disk7 access create initiator {BOB}"));
    let iqn = bench.iqn("disk7");
    // A process that stays logged in until its input ends.
    let mut alice = Command::new("/usr/bin/timeout")
        .args(["60", "qemu-io", "--image-opts", &bench.image(&iqn, ALICE, None)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("qemu-io");
    while bench.property("volume select disk7 show", "Connections") != "1" {
        assert!(alice.try_wait().expect("qemu-io").is_none(), "she ended");
    }
    let bob = || bench.qemu_io(&bench.image(&iqn, BOB, None), &["read 0 512"]);
    let (ok, said) = bob();
    assert!(!ok, "{said}");
    bench.done("volume select disk7 multihost-access enable");
    assert!(bob().0);
    bench.done("volume select disk7 offline");
    while bench.property("volume select disk7 show", "Connections") != "0" {
        assert!(alice.try_wait().expect("qemu-io").is_none(), "she ended");
    }
    alice.kill().expect("qemu-io");
    alice.wait().expect("qemu-io");
}

#[test]
fn snapshots_clones_and_restores_hold_what_they_should() {
    let bench = Bench::quiet();
    bench.volume("disk7", "60 thin-provision");
    bench.io("disk7", &["write -P 1 0 64k", "write -P 1 20M 64k"]);
    let said = bench.done("volume select disk7 snapshot create-now description first");
    let name = said.lines().find_map(|line| line.strip_prefix("Snapshot name is ")).expect("a name").to_string();
    bench.done(&format!("volume select disk7 snapshot rename {name} s"));
    bench.io("disk7", &["write -P 2 0 64k"]);
    bench.done("volume select disk7 clone copy");
    bench.done("volume select disk7 snapshot select s clone old");
    for volume in ["copy", "old"] {
        bench.done(&format!("volume select {volume} access create initiator {ALICE}"));
    }
    bench.io("copy", &["read -P 2 0 64k", "read -P 1 20M 64k", "write -P 3 0 64k"]);
    bench.io("old", &["read -P 1 0 64k", "read -P 1 20M 64k", "read -P 0 40M 64k"]);
    bench.io("disk7", &["read -P 2 0 64k"]);
    // A snapshot is a target of its own, once it is online.
    let iqn = bench.property("volume select disk7 snapshot select s show", "iSCSI Name");
    let snapshot = |commands: &[&str]| bench.qemu_io(&bench.image(&iqn, ALICE, None), commands);
    assert!(!snapshot(&["read 0 512"]).0, "born offline");
    bench.done("volume select disk7 snapshot select s online");
    let (ok, said) = snapshot(&["read -P 1 0 64k"]);
    assert!(ok && !said.contains("failed"), "{said}");
    bench.done("volume select disk7 snapshot select s offline");
    assert!(bench.run("volume select disk7 snapshot select s restore").contains("must be offline"));
    bench.done("volume select disk7 offline");
    bench.done("volume select disk7 snapshot select s restore");
    bench.done("volume select disk7 online");
    bench.io("disk7", &["read -P 1 0 64k"]);
    assert_eq!(bench.property("volume select disk7 show", "Snapshots"), "2", "what was before is kept");
}

#[test]
fn thin_clones_share_their_templates_pages() {
    let bench = Bench::quiet();
    bench.volume("gold", "300 thin-provision");
    bench.io("gold", &["write -P 7 0 40M"]);
    bench.done("volume select gold offline");
    bench.done("volume select gold read-only");
    bench.done("volume select gold convert-to template");
    bench.done("volume select gold create-thin-clone disk7");
    bench.done(&format!("volume select disk7 access create initiator {ALICE}"));
    bench.io("disk7", &["read -P 7 0 40M", "write -P 8 0 1M", "read -P 7 2M 1M"]);
    bench.group.measure();
    assert_eq!(bench.property("volume select disk7 show", "VolReserveInUse"), "15MB");
    assert_eq!(bench.property("volume select gold show", "VolReserveInUse"), "45MB");
    assert!(bench.run("volume delete gold").contains("% Error"));
}

#[test]
fn a_collection_gives_a_snapshot_of_each_volume() {
    let bench = Bench::quiet();
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        bench.volume(name, "30");
        bench.io(name, &[&format!("write -P {} 0 64k", number + 1)]);
    }
    bench.done("volume collection create all volume a,b,c");
    let said = bench.done("volume collection select all snapcoll create-now description uuid=1");
    let name = said.lines().find_map(|line| line.strip_prefix("Snapshot collection name is ")).expect("a name");
    let members = bench.done(&format!("volume collection select all snapcoll select {name} show"));
    assert_eq!(members.lines().filter(|line| line.starts_with(['a', 'b', 'c'])).count(), 3, "{members}");
    bench.done("volume collection delete all");
    assert_eq!(bench.property("volume select b show", "Snapshots"), "1");
}

#[test]
fn an_initiator_finds_its_way_back_after_a_restart() {
    let bench = Bench::quiet();
    bench.volume("disk7", "30");
    let mut alice = Command::new("/usr/bin/timeout")
        .args(["60", "qemu-io", "--image-opts", &bench.image(&bench.iqn("disk7"), ALICE, None)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("qemu-io");
    let mut input = alice.stdin.take().expect("a pipe");
    let mut output = BufReader::new(alice.stdout.take().expect("a pipe"));
    let mut ask = |command: &str, answer: &str| {
        writeln!(input, "{command}").expect("she listens");
        let mut seen = String::new();
        while !seen.contains(answer) {
            assert!(output.read_line(&mut seen).expect("text") > 0, "she ended: {seen}");
        }
    };
    ask("write -P 1 0 64k", "wrote 65536/65536");
    for _ in 0..2 {
        bench.group.leave();
        bench.group.come_back().expect("it comes back");
        ask("read -P 1 0 64k", "read 65536/65536");
    }
    bench.group.cut_iscsi();
    ask("write -P 2 0 64k", "wrote 65536/65536");
    ask("quit", "");
    drop(input);
    assert!(alice.wait().expect("qemu-io").success());
}
