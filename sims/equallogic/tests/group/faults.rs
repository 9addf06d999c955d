//! Trouble on request.

use sim_target::faults::{Action, Rule};

use crate::bench::{ALICE, Bench};

#[test]
fn a_connection_ends_before_after_or_in_the_middle() {
    let bench = Bench::quiet();
    let lost = |action: Action| {
        bench.group.faults().add(Rule::once("volume create", action));
        let mut shell = bench.shell();
        shell.until("group1> ");
        shell.send("volume create disk7 1G\r");
        let rest = shell.rest();
        let exists = bench.group.with_array(|array| array.group.volumes.contains_key("disk7"));
        (rest, exists)
    };
    let (said, exists) = lost(Action::DropBefore);
    assert!(!exists && !said.contains("succeeded"), "{said}");
    let (said, exists) = lost(Action::DropAfter);
    assert!(exists && !said.contains("succeeded"), "{said}");
    bench.done("volume select disk7 offline");
    bench.done("volume delete disk7");
    let (said, exists) = lost(Action::Other("cut-midway".into()));
    assert!(exists && !said.ends_with("group1> "), "{said}");
}

#[test]
fn errors_come_before_or_after_the_effect() {
    let bench = Bench::quiet();
    bench.group.faults().add(Rule::once("volume create", Action::FailBefore("Member is busy.".into())));
    assert_eq!(bench.run("volume create disk7 1G"), "% Error - Member is busy.\n");
    bench.group.faults().add(Rule::once("volume create", Action::FailAfter("Operation timed out.".into())));
    assert_eq!(bench.run("volume create disk7 1G"), "% Error - Operation timed out.\n");
    assert!(bench.run("volume create disk7 1G").contains("already exists"));
    bench.group.faults().add(Rule::once("volume create", Action::NoSpace));
    assert!(bench.run("volume create disk8 1G").contains("Not enough free space"));
}

#[test]
fn prompts_may_be_wrong_and_events_many() {
    let bench = Bench::quiet();
    bench.group.faults().add(Rule::once("whoami", Action::Other("wrong-prompt".into())));
    let mut shell = bench.shell();
    shell.until("group1> ");
    shell.send("whoami\r");
    assert_eq!(shell.until("member2> "), "whoami\r\ngrpadmin\r\ngroup1-member2> ");
    bench.done("cli-settings events on");
    bench.group.faults().add(Rule::once("whoami", Action::Other("event-storm".into())));
    let mut shell = bench.shell();
    shell.until("group1> ");
    shell.send("whoami\r");
    let said = shell.until("number 199.\r\n");
    assert!(said.contains("grpadmin\r\n") && said.contains(":WARNING:8.3.7:Fan tray"), "{said}");
}

#[test]
fn sessions_may_be_full_and_logins_refused() {
    let bench = Bench::quiet();
    bench.group.faults().add(Rule::once("session", Action::Other("full".into())));
    assert!(bench.shell().rest().contains("Maximum number of CLI sessions"));
    bench.group.faults().add(Rule::once("login", Action::FailBefore(String::new())));
    assert!(!bench.ssh(&[], "grpadmin").arg("whoami").output().expect("ssh").status.success());
    assert_eq!(bench.run("whoami"), "grpadmin\n");
}

#[test]
fn snapshots_vanish_and_volumes_go_offline_under_a_command() {
    let bench = Bench::quiet();
    bench.volume("disk7", "1G");
    bench.done("volume select disk7 snapshot create-now");
    bench.group.faults().add(Rule::once("disk7 snapshot show", Action::Other("delete-oldest".into())));
    bench.done("volume select disk7 snapshot show");
    assert_eq!(bench.property("volume select disk7 show", "Snapshots"), "0");
    bench.group.faults().add(Rule::once("disk7 show", Action::Other("volume-offline".into())));
    assert_eq!(bench.property("volume select disk7 show", "Status"), "offline (snap reserve met)");
    assert_eq!(bench.property("volume select disk7 show", "DesiredStatus"), "online");
}

#[test]
fn a_restart_breaks_connections_and_keeps_what_was_done() {
    let bench = Bench::quiet();
    bench.volume("disk7", "30");
    bench.io("disk7", &["write -P 5 0 64k", "flush"]);
    let mut other = bench.shell();
    other.until("group1> ");
    bench.group.leave();
    assert_eq!(other.rest(), "", "all sessions end");
    assert!(!bench.ssh(&[], "grpadmin").arg("whoami").output().expect("ssh").status.success());
    let image = bench.image(&bench.iqn("disk7"), ALICE, None);
    assert!(!bench.qemu_io(&image, &["read 0 512"]).0);
    bench.group.come_back().expect("it comes back");
    bench.io("disk7", &["read -P 5 0 64k"]);
    bench.group.faults().add(Rule::once("volume create", Action::Other("restart".into())));
    assert!(!bench.ssh(&[], "grpadmin").arg("volume create disk8 30").output().expect("ssh").status.success());
    while !bench.ssh(&[], "grpadmin").arg("whoami").output().expect("ssh").status.success() {}
    assert_eq!(bench.property("volume select disk8 show", "Size"), "30MB", "it was carried out");
}
