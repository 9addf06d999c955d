//! The line discipline, over bytes.

use crate::array::{Array, Settings, array};
use crate::cli::run;
use crate::cli::session::{Session, Step, View};

const OFF: Settings = Settings {
    paging: false,
    events: false,
    format_output: false,
    confirmation: false,
    reprint_bad_input: false,
    idle_logout: false,
    display_in_mb: false,
};

/// A session and the array behind it.
struct Bench {
    array: Array,
    session: Session,
    closed: bool,
}

impl Bench {
    fn new(settings: Settings) -> Bench {
        let (mut array, _) = array(1 << 20);
        array.group.accounts.get_mut("grpadmin").expect("the account").settings = settings;
        let session = Session::shell(&view(&array));
        let mut bench = Bench { array, session, closed: false };
        assert!(bench.send("").ends_with("\r\ngroup1> "), "banner and prompt");
        bench
    }

    /// All that comes back for some bytes.
    fn send(&mut self, bytes: &str) -> String {
        self.session.input(bytes.as_bytes());
        let mut out = Vec::new();
        loop {
            match self.session.step(&view(&self.array)) {
                Step::Write(bytes) => out.extend(bytes),
                Step::Run(request) => {
                    let result = run(&mut self.array, "grpadmin", &request);
                    self.session.finished(result, &view(&self.array));
                }
                Step::Idle => break,
                Step::Close => {
                    self.closed = true;
                    break;
                }
            }
        }
        String::from_utf8(out).expect("UTF-8")
    }
}

fn view(array: &Array) -> View {
    View { settings: array.group.accounts["grpadmin"].settings, prompt: array.group.name.clone() }
}

#[test]
fn a_command_is_echoed_answered_and_followed_by_one_prompt() {
    let mut bench = Bench::new(OFF);
    let out = bench.send("volume create disk7 1G thin-provision\r");
    let iqn = bench.array.group.volumes["disk7"].iqn.clone();
    let expected = format!(
        "volume create disk7 1G thin-provision\r\nVolume creation succeeded.\r\niSCSI target name is {iqn}.\r\ngroup1> "
    );
    // At 80 columns the name wraps; that is the next test's matter.
    assert_eq!(out.replace("\r\n", ""), expected.replace("\r\n", ""));
    assert_eq!(bench.send("whoami\r"), "whoami\r\ngrpadmin\r\ngroup1> ");
}

#[test]
fn long_lines_wrap_until_told_otherwise() {
    let mut bench = Bench::new(OFF);
    bench.send("volume create disk7-with-a-name 1G\r");
    let iqn = bench.array.group.volumes["disk7-with-a-name"].iqn.clone();
    assert!(!bench.send("volume select disk7-with-a-name show\r").contains(&iqn));
    bench.send("stty columns 255\r");
    let out = bench.send("volume select disk7-with-a-name show\r");
    assert!(out.contains(&format!("\r\niSCSI Name: {iqn}\r\n")), "{out}");
    assert!(out.contains("\r\nSize: 1GB\r\nVolReserve: 1.01GB\r\n") && out.contains("\r\nDescription: \r\n"));
    bench.send("stty columns 80\r");
    bench.send("stty hardwrap off\r");
    assert!(bench.send("volume select disk7-with-a-name show\r").contains(&iqn));
}

#[test]
fn every_line_end_ends_a_line_and_an_empty_one_gives_a_prompt() {
    let mut bench = Bench::new(OFF);
    for end in ["\r", "\n", "\r\n", "\u{1a}"] {
        assert_eq!(bench.send(&format!("whoami{end}")), "whoami\r\ngrpadmin\r\ngroup1> ", "{end:?}");
        assert_eq!(bench.send(end), "\r\ngroup1> ", "{end:?}");
    }
}

#[test]
fn what_is_typed_ahead_is_echoed_when_its_turn_comes() {
    let mut bench = Bench::new(OFF);
    let one = "whoami\r\ngrpadmin\r\ngroup1> ";
    assert_eq!(bench.send("whoami\rwhoami\r"), format!("{one}{one}"));
}

#[test]
fn a_bad_line_comes_back_for_editing() {
    let mut bench = Bench::new(Settings { reprint_bad_input: true, ..OFF });
    let out = bench.send("volume blah\r");
    assert!(out.contains("\r\n% Error - ") && out.ends_with("group1> volume blah"), "{out}");
    assert!(bench.send("whoami\r").contains("% Error - Bad command: blahwhoami"), "appended to the bad text");
    bench.send("\u{15}");
    bench.send("cli-settings reprintBadInput off\r");
    assert!(bench.send("volume blah\r").ends_with("\r\ngroup1> "));
    let missing = bench.send("volume select nothing show\r");
    assert!(missing.contains("\r\n% Error - Volume nothing does not exist.\r\n"), "{missing}");
}

#[test]
fn long_answers_are_paged() {
    let mut bench = Bench::new(Settings { paging: true, ..OFF });
    bench.send("volume create disk7 1G\r");
    let first = bench.send("volume select disk7 show\r");
    assert!(first.ends_with("quit)") && !first.contains("group1> "), "{first}");
    assert!(bench.send(" ").ends_with("\r\ngroup1> "));
    bench.send("volume select disk7 show\r");
    assert!(bench.send("q").ends_with("\rgroup1> "));
}

#[test]
fn deletion_is_confirmed() {
    let mut bench = Bench::new(Settings { confirmation: true, ..OFF });
    bench.send("volume create disk7 1G offline\r");
    assert!(bench.send("volume delete disk7\r").ends_with("(y/n) [n] "));
    assert_eq!(bench.send("\r"), "\r\ngroup1> ");
    assert_eq!(bench.array.group.volumes.len(), 1);
    bench.send("volume delete disk7\r");
    assert_eq!(bench.send("y\r"), "y\r\nVolume deletion succeeded.\r\ngroup1> ");
}

#[test]
fn events_come_in_the_middle_of_an_answer_or_at_an_idle_prompt() {
    let mut bench = Bench::new(Settings { events: true, ..OFF });
    bench.send("who");
    bench.session.notify("1:2:INFO:something".into());
    assert_eq!(bench.send(""), "", "a line is being typed");
    assert_eq!(bench.send("ami\r"), "ami\r\ngrpadmin\r\n1:2:INFO:something\r\ngroup1> ");
    bench.send("chapuser");
    bench.session.notify("1:2:INFO:another".into());
    let said = bench.send(" create u password secretsecret\r");
    assert!(said.contains("succeeded.\r\n1:2:INFO:another\r\nPassword is secretsecret\r\n"), "{said}");
    bench.session.notify("1:3:INFO:more".into());
    assert_eq!(bench.send(""), "\r\n1:3:INFO:more\r\ngroup1> ");
    bench.send("cli-settings events off\r");
    bench.session.notify("1:4:INFO:unseen".into());
    assert_eq!(bench.send(""), "");
}

#[test]
fn a_selected_volume_gives_a_sub_mode() {
    let mut bench = Bench::new(OFF);
    bench.send("volume create disk7 1G\r");
    assert_eq!(bench.send("volume select disk7\r"), "volume select disk7\r\ngroup1(volume_disk7)> ");
    assert_eq!(bench.send("offline\r"), "offline\r\ngroup1(volume_disk7)> ");
    assert!(!bench.array.group.volumes["disk7"].online);
    assert_eq!(bench.send("exit\r"), "exit\r\ngroup1> ");
    assert_eq!(bench.send("volume select disk7 online\r"), "volume select disk7 online\r\ngroup1> ");
    bench.send("logout\r");
    assert!(bench.closed);
}

#[test]
fn editing_keys() {
    let mut bench = Bench::new(OFF);
    assert_eq!(bench.send("whoax\u{7f}mi\r"), "whoax\u{8} \u{8}mi\r\ngrpadmin\r\ngroup1> ");
    assert!(bench.send("nonsense\u{15}whoami\r").ends_with("whoami\r\ngrpadmin\r\ngroup1> "));
}

#[test]
fn records_of_access_lie_where_the_old_driver_looks() {
    let mut bench = Bench::new(OFF);
    bench.send("stty columns 255\r");
    bench.send("volume create disk7 1G\r");
    bench.send("volume select disk7 access create initiator iqn.1993-08.org.debian:01:2227dab76162\r");
    let out = bench.send("volume select disk7 access show\r");
    let lines: Vec<&str> = out.split("\r\n").filter(|line| !line.trim().is_empty()).collect();
    // The echo is line 0; records are looked for in pairs from there.
    assert!(lines[4].starts_with("1   iqn.1993-08.org.debian:01:222 "), "{out}");
    assert_eq!(lines[5].trim(), "7dab76162");
}

#[test]
fn a_single_command_has_no_echo_and_no_prompt() {
    let (mut array, _) = array(1 << 20);
    let mut session = Session::exec("whoami");
    let mut out = Vec::new();
    loop {
        match session.step(&view(&array)) {
            Step::Write(bytes) => out.extend(bytes),
            Step::Run(request) => {
                let result = run(&mut array, "grpadmin", &request);
                session.finished(result, &view(&array));
            }
            Step::Close => break,
            Step::Idle => panic!("nothing to wait for"),
        }
    }
    assert_eq!(out, b"grpadmin\r\n");
}
