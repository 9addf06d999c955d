use proptest::prelude::*;

use super::{Screen, Seen, is_event, refusal};

fn screen(text: &str) -> Screen {
    let mut screen = Screen::default();
    assert!(screen.feed(text.as_bytes()));
    screen
}

fn answer(text: &str, command: &str) -> Vec<String> {
    let screen = screen(text);
    assert_eq!(screen.seen("eql> ", command), Seen::Prompt, "{text:?}");
    screen.answer("eql> ", command)
}

#[test]
fn the_prompt_is_learnt_from_the_banner() {
    let banner = "\r\n    Welcome to Group Manager\r\n\r\n    Copyright 2001-2016 Dell Inc.\r\n\r\n\r\n";
    assert_eq!(screen(banner).first_prompt(), None);
    assert_eq!(screen(&format!("{banner}eql-1> ")).first_prompt(), Some(String::from("eql-1> ")));
    assert_eq!(screen(&format!("{banner}eql-1>")).first_prompt(), None);
    assert_eq!(screen("see a -> b> ").first_prompt(), None);
    assert_eq!(
        screen("It appears that the storage array is not configured. Configure now? (y/n) ").first_prompt(),
        None
    );
}

#[test]
fn an_answer_is_what_stands_between_echo_and_prompt() {
    assert_eq!(answer("show pool\r\nName\r\n----\r\ndefault\r\neql> ", "show pool"), ["Name", "----", "default"]);
    assert_eq!(answer("show pool\r\neql> ", "show pool"), [""; 0]);
    assert_eq!(answer("Name\r\neql> ", "show pool"), ["Name"], "without echo");
    let long = "volume create disk7 15MB pool default";
    let wrapped = "volume create disk7 1\r\n5MB pool default\r\ndone\r\neql> ";
    assert_eq!(answer(wrapped, long), ["done"], "an echo that is broken at the width");
}

#[test]
fn what_came_before_the_echo_does_not_count() {
    let text = "late words\r\neql> show pool\r\ndefault\r\neql> ";
    assert_eq!(answer(text, "show pool"), ["default"]);
}

#[test]
fn a_prompt_in_the_middle_is_not_the_end() {
    assert_eq!(screen("x\r\neql> is a prompt\r\n").seen("eql> ", "x"), Seen::Unfinished);
    assert_eq!(screen("x\r\neql> is").seen("eql> ", "x"), Seen::Unfinished);
    assert_eq!(screen("x\r\nName: a eql> ").seen("eql> ", "x"), Seen::Unfinished);
    assert_eq!(screen("").seen("eql> ", "x"), Seen::Unfinished);
}

#[test]
fn bad_input_that_waits_to_be_edited_ends_the_answer() {
    let text = "volume wrong\r\n% Error - Bad command\r\neql> volume wrong";
    assert_eq!(screen(text).seen("eql> ", "volume wrong"), Seen::Reprinted);
    let echo_late = "eql> volume wrong";
    assert_eq!(screen(echo_late).seen("eql> ", "volume wrong"), Seen::Unfinished);
}

#[test]
fn events_pagers_and_questions_are_recognised() {
    let event = "cli:26213:eql:1:3-Oct-2010";
    assert!(!is_event(event));
    assert!(is_event("SP:5.02:cli_show.c:42:AUDIT:22.3.1:CLI: Login to account grpadmin succeeded."));
    assert!(!is_event("iSCSI Name: iqn.2001-05.com.equallogic:0-8a0906-1a2b3c40d-00f0000001c5e9aa-disk7"));
    let text = "show\r\nName: a\r\nMgmtExec:17.3:x.cc:9:INFO:25.2.9:Volume set to offline.\r\nSize: 15MB\r\neql> ";
    assert_eq!(answer(text, "show"), ["Name: a", "Size: 15MB"]);
    assert_eq!(screen("show\r\n--More--").seen("eql> ", "show"), Seen::Pager);
    assert_eq!(screen("show\r\n-- More -- (q to quit)").seen("eql> ", "show"), Seen::Pager);
    let question = "volume delete a\r\nDo you really want to delete the volume? [n] ";
    let Seen::Question(words) = screen(question).seen("eql> ", "volume delete a") else { panic!("a question") };
    assert!(words.contains("delete the volume"));
}

#[test]
fn a_wrapped_event_goes_with_its_second_line() {
    let event = format!("SP:5.02:cli_show.c:42:AUDIT:22.3.1:{}", "x".repeat(220));
    let (first, rest) = event.split_at(255);
    let text = format!("show\r\nName: a\r\n{first}\r\n{rest}\r\nSize: 15MB\r\neql> ");
    assert_eq!(answer(&text, "show"), ["Name: a", "Size: 15MB"]);
}

#[test]
fn refusals_keep_their_words() {
    let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(refusal(&lines("Volume deletion succeeded.")), None);
    assert_eq!(
        refusal(&lines("% Error - The volume\ndisk7 does not exist.")).as_deref(),
        Some("The volume disk7 does not exist.")
    );
    assert_eq!(refusal(&lines("Error: Bad command")).as_deref(), Some("Bad command"));
}

proptest! {
    #[test]
    fn hostile_bytes_neither_panic_nor_hide_the_prompt(bytes in proptest::collection::vec(any::<u8>(), 0..400), command in "[ -~]{0,40}") {
        let mut screen = Screen::default();
        prop_assert!(screen.feed(&bytes));
        let _ = (screen.seen("eql> ", &command), screen.first_prompt(), screen.words());
        let answer = screen.answer("eql> ", &command);
        let _ = refusal(&answer);
        prop_assert!(screen.feed(b"\r\neql> "));
        prop_assert_eq!(screen.seen("eql> ", &command), Seen::Prompt);
    }

    #[test]
    fn an_answer_survives_any_cut_into_packets(cut in 0usize..40, body in "[a-zA-Z:. ]{0,30}") {
        let text = format!("volume show\r\n{body}\r\neql> ");
        let cut = cut.min(text.len());
        let mut screen = Screen::default();
        prop_assert!(screen.feed(&text.as_bytes()[..cut]));
        prop_assert!(screen.feed(&text.as_bytes()[cut..]));
        prop_assert_eq!(screen.answer("eql> ", "volume show"), vec![body.trim_end().to_string()]);
    }
}
