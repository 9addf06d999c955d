//! The group as a program.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::bench::program;

#[test]
fn it_says_where_it_is_takes_rules_and_ends_cleanly() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sim-equallogic"))
        .args([
            "--dir",
            &place,
            "--group",
            "eql",
            "--password",
            "topsecret",
            "--pool",
            "default=30000",
            "--pool",
            "fast=15000",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let port = ready["ssh"].as_str().and_then(|text| text.rsplit_once(':')).expect("an address").1.to_string();
    assert!(ready["fingerprint"].as_str().is_some_and(|text| text.starts_with("SHA256:")), "{line}");
    let ask = |command: &str| {
        let known = format!("UserKnownHostsFile={place}/known");
        let options = ["-F", "none", "-o", "StrictHostKeyChecking=accept-new", "-o", &known, "-p", &port];
        let mut all = vec!["-p", "topsecret", "ssh"];
        all.extend(options);
        all.extend(["grpadmin@127.0.0.1", command]);
        program("/usr/bin/sshpass", &all).1
    };
    assert!(ask("show pool").contains("fast"), "two pools");
    std::fs::write(dir.path().join("faults.json"), r#"[{"call":"whoami","action":{"fail_before":"Out of order."}}]"#)
        .expect("rules");
    // tgtd is told by its environment where its socket is.
    let find = format!("grep -lsF {place} /proc/[0-9]*/environ 2>/dev/null");
    let daemon = || program("/bin/sh", &["-c", &find]).1.contains("/environ");
    assert!(daemon());
    let pid = child.id().to_string();
    while !ask("whoami").contains("% Error - Out of order.") {
        assert!(child.try_wait().expect("the program").is_none(), "it ended");
    }
    std::fs::remove_file(dir.path().join("faults.json")).expect("rules");
    while !ask("whoami").contains("grpadmin") {
        assert!(child.try_wait().expect("the program").is_none(), "it ended");
    }
    assert!(program("/bin/kill", &["-USR1", &pid]).0);
    while ask("whoami").contains("grpadmin") {}
    while !ask("whoami").contains("grpadmin") {}
    assert!(program("/bin/kill", &["-TERM", &pid]).0);
    assert!(child.wait().expect("the program").success());
    assert!(!daemon(), "its tgtd lives on");
}

#[test]
fn it_refuses_what_it_does_not_know() {
    let ran = |args: &[&str]| program(env!("CARGO_BIN_EXE_sim-equallogic"), args);
    for (args, words) in [
        (&["--port", "1"][..], "--port is not known"),
        (&["--dir"][..], "--dir needs a value"),
        (&["--dir", "/tmp", "--ssh-port", "x"][..], "--ssh-port x is not understood"),
        (&[][..], "--dir is missing"),
    ] {
        let (ok, said) = ran(args);
        assert!(!ok && said.contains(words), "{said}");
    }
}
