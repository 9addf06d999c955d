//! The command line, by OpenSSH's client.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use sim_equallogic::{Options, start};
use sim_target::faults::{Action, Rule};

use crate::bench::{Bench, program};

#[test]
fn a_script_without_a_terminal_lives_by_echo_and_prompt() {
    let bench = Bench::quiet();
    let mut shell = bench.shell();
    let banner = shell.until("group1> ");
    assert!(banner.contains("Welcome to Group Manager"), "{banner}");
    assert_eq!(shell.ask("stty columns 255"), "stty columns 255\r\ngroup1> ");
    let made = shell.ask("volume create disk7 1G pool default thin-provision");
    let lines: Vec<&str> = made.split("\r\n").collect();
    assert!(lines[1].ends_with("succeeded."), "{made}");
    assert_eq!(lines[2], format!("iSCSI target name is {}.", bench.iqn("disk7")));
    assert_eq!(lines[3], "group1> ");
    let snapshot = shell.ask("volume select disk7 snapshot create-now");
    let name = snapshot.split("\r\n").nth(2).and_then(|line| line.strip_prefix("Snapshot name is ")).expect("a name");
    shell.ask(&format!("volume select disk7 snapshot rename {name} snapshot-1"));
    let clone = shell.ask("volume select disk7 snapshot select snapshot-1 clone disk8");
    assert!(clone.contains(&format!("\r\niSCSI target name is {}.\r\n", bench.iqn("disk8"))), "{clone}");
    assert_eq!(shell.ask("volume select disk7 multihost-access enable").lines().count(), 2);
    let refused = shell.ask("volume delete disk7");
    assert!(refused.contains("\r\n% Error - "), "online volumes are not deleted: {refused}");
    shell.ask("volume select disk7 offline");
    let gone = shell.ask("volume delete disk7");
    assert!(gone.contains("\r\nVolume deletion succeeded.\r\n"), "{gone}");
    assert!(shell.ask("volume select disk7 show").contains("\r\n% Error - Volume disk7 does not exist.\r\n"));
    shell.send("logout\r");
    assert_eq!(shell.rest(), "logout\r\n");
}

#[test]
fn single_commands_and_several_channels_on_one_connection() {
    let bench = Bench::quiet();
    assert_eq!(bench.run("whoami"), "grpadmin\n");
    let socket = bench.path("mux");
    let control = format!("ControlPath={}", socket.display());
    let mut master = bench.ssh(&["-M", "-N", "-o", &control], "grpadmin").spawn().expect("ssh");
    let through = |command: &[&str]| {
        let mut all = vec!["60", "ssh", "-F", "none", "-o", &control, "grpadmin@127.0.0.1"];
        all.extend(command);
        Command::new("/usr/bin/timeout").args(all).stdin(Stdio::null()).output().expect("ssh")
    };
    // The master says by its socket that it is there.
    while !socket.exists() {
        assert!(master.try_wait().expect("the master").is_none(), "the master ended");
        std::thread::yield_now();
    }
    for _ in 0..20 {
        assert_eq!(through(&["whoami"]).stdout, b"grpadmin\r\n");
    }
    let shell = through(&[]);
    assert!(shell.stdout.ends_with(b"group1> "), "{shell:?}");
    master.kill().expect("the master");
    master.wait().expect("the master");
}

#[test]
fn a_wrong_password_is_refused_and_only_eight_characters_count() {
    let bench = Bench::quiet();
    assert!(!bench.ssh(&[], "grpadmiX").arg("whoami").output().expect("ssh").status.success());
    assert!(bench.ssh(&[], "grpadminX").arg("whoami").output().expect("ssh").status.success());
}

#[test]
fn the_eighth_session_gets_a_line_and_no_prompt() {
    let bench = Bench::quiet();
    let mut open: Vec<_> = (0..7).map(|_| bench.shell()).collect();
    for shell in &mut open {
        assert!(shell.until("group1> ").ends_with("group1> "));
    }
    assert_eq!(bench.group.sessions(), 7);
    let eighth = bench.shell().rest();
    assert!(eighth.contains("Maximum number of CLI sessions") && !eighth.contains("group1"), "{eighth}");
    // A place is free again once a session ended.
    let mut one = open.remove(0);
    one.send("logout\r");
    assert_eq!(one.rest(), "logout\r\n");
    while bench.group.sessions() > 6 {
        std::thread::yield_now();
    }
    assert_eq!(bench.run("whoami"), "grpadmin\n");
}

#[test]
fn an_account_that_nobody_prepared_pages_asks_and_reprints() {
    let bench = Bench::noisy(|_| {});
    let mut shell = bench.shell();
    shell.until("group1> ");
    shell.ask("volume create disk7 1G offline");
    assert!(shell.ask("volume select disk7 show").contains("Name: disk7  "), "two columns");
    shell.ask("cli-settings formatoutput off");
    shell.send("volume select disk7 show\r");
    assert!(!shell.until("q: quit)").contains("group1> "));
    shell.send("q");
    shell.until("group1> ");
    shell.send("volume delete disk7\r");
    shell.until("(y/n) [n] ");
    let said = shell.ask("y");
    assert!(said.contains("Volume deletion succeeded."), "{said}");
    shell.send("volume frobnicate\r");
    let bad = shell.until("group1> volume frobnicate");
    assert!(bad.contains("% Error - Bad command") && bad.ends_with("group1> volume frobnicate"), "{bad}");
}

#[test]
fn settings_belong_to_the_account_and_terminals_to_the_session() {
    let bench = Bench::quiet();
    let (mut one, mut two) = (bench.shell(), bench.shell());
    one.until("group1> ");
    two.until("group1> ");
    one.ask("stty columns 255");
    one.ask("cli-settings confirmation on");
    two.ask("volume create a-volume-with-quite-a-long-name 1G offline");
    let iqn = bench.iqn("a-volume-with-quite-a-long-name");
    let show = "volume select a-volume-with-quite-a-long-name show";
    assert!(one.ask(show).contains(&iqn), "255 columns here");
    assert!(!two.ask(show).contains(&iqn), "80 columns there");
    two.send("volume delete a-volume-with-quite-a-long-name\r");
    two.until("(y/n) [n] ");
    assert!(two.ask("n").ends_with("group1> "));
}

#[test]
fn a_terminal_gives_its_size() {
    let bench = Bench::quiet();
    bench.done("volume create a-volume-with-quite-a-long-name 1G");
    let script = "stty cols 200 rows 50; exec sshpass -e ssh -tt -F none -o StrictHostKeyChecking=no -o LogLevel=ERROR \
                  -o UserKnownHostsFile=$KNOWN -p $PORT grpadmin@127.0.0.1";
    let mut inner = Command::new("/usr/bin/timeout");
    inner.args(["60", "script", "-qec", script, "/dev/null"]);
    inner.env("SSHPASS", "grpadmin").env("PORT", bench.group.ssh().port().to_string());
    inner.env("KNOWN", bench.path("known2")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = inner.spawn().expect("script");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"volume select a-volume-with-quite-a-long-name show\rlogout\r").expect("a write");
    let output = child.wait_with_output().expect("script");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&bench.iqn("a-volume-with-quite-a-long-name")), "{text}");
}

#[test]
fn a_group_that_starts_again_is_the_same() {
    let bench = Bench::quiet();
    bench.done("volume create disk7 1G");
    bench.done("chapuser create u password secretsecret");
    let (iqn, fingerprint) = (bench.iqn("disk7"), bench.group.fingerprint().to_string());
    let Bench { group, dir } = bench;
    let port = group.ssh();
    group.stop();
    // A copy that was under way when the group ended.
    let stray = dir.path().join("group/disks/disk99");
    std::fs::write(&stray, "").expect("a file");
    let mut options = Options::new(dir.path().join("group"));
    options.ssh = port;
    let bench = Bench { group: start(options).expect("a group"), dir };
    assert!(!stray.exists());
    assert_eq!(bench.group.fingerprint(), fingerprint);
    assert_eq!(bench.iqn("disk7"), iqn);
    assert!(bench.done("chapuser show").contains("\nu "), "the same host key, the same accounts");
    let key = bench.path("known");
    let (_, told) = program("/usr/bin/ssh-keygen", &["-lf", &key.display().to_string()]);
    assert!(told.contains(&fingerprint), "{told}");
}

#[test]
fn keep_alives_are_answered_while_a_command_takes_long() {
    let bench = Bench::quiet();
    bench.group.faults().add(Rule::once("whoami", Action::DelayMs(3_500)));
    let options = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"];
    let output = bench.ssh(&options, "grpadmin").arg("whoami").output().expect("ssh");
    assert_eq!(output.stdout, b"grpadmin\r\n");
}

#[test]
fn idle_sessions_are_logged_out_unless_the_account_says_no() {
    let bench = Bench::noisy(|options| options.idle = Duration::from_millis(200));
    let said = bench.shell().rest();
    assert!(said.ends_with("group1> \r\nSession logged out: it was idle.\r\n"), "{said}");
    bench.done("cli-settings idlelogout off");
    let mut shell = bench.shell();
    shell.until("group1> ");
    // A command that takes longer than the limit: the prompt comes all the same, and the next command is taken.
    bench.group.faults().add(Rule::once("member show", Action::DelayMs(600)));
    bench.run("member show");
    assert!(shell.ask("whoami").contains("grpadmin"));
}

#[test]
fn an_account_may_be_for_looking_only() {
    let bench = Bench::quiet();
    bench.done("account create looker read-only password looklook");
    let looker = |command: &str| {
        let mut ssh = bench.ssh(&["-l", "looker"], "looklook");
        String::from_utf8_lossy(&ssh.arg(command).output().expect("ssh").stdout).into_owned()
    };
    assert_eq!(looker("whoami"), "looker\r\n");
    assert!(looker("volume create disk7 1G").contains("% Error - Permission denied."));
    assert!(looker("volume show").starts_with("Name "));
}

#[test]
fn old_firmware_speaks_old_algorithms_only() {
    let bench = Bench::noisy(|options| options.legacy_ssh = true);
    assert!(!bench.ssh(&[], "grpadmin").arg("whoami").output().expect("ssh").status.success());
    let old =
        ["-o", "KexAlgorithms=+diffie-hellman-group14-sha1", "-o", "Ciphers=+aes256-cbc", "-o", "MACs=+hmac-sha1"];
    let output = bench.ssh(&old, "grpadmin").arg("whoami").output().expect("ssh");
    assert_eq!(output.stdout, b"grpadmin\r\n", "{}", String::from_utf8_lossy(&output.stderr));
}
