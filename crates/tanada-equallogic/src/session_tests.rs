//! Sessions against a scripted shell.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tanada_driver::Secret;

use super::{Connect, SETTINGS, Sessions, Shell, public};
use crate::error::CliError;

/// What one shell does: its banner, and an answer to each line that it gets. An answer `None` ends the channel.
type Answers = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

struct Scripted {
    out: VecDeque<Option<String>>,
    answers: Answers,
    line: String,
    log: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Shell for Scripted {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        for character in String::from_utf8_lossy(bytes).chars() {
            match character {
                '\r' => {
                    let line = std::mem::take(&mut self.line);
                    self.log.lock().unwrap().push(line.clone());
                    self.out.push_back((self.answers)(&line));
                }
                ' ' if self.line.is_empty() => self.out.push_back((self.answers)(" ")),
                other => self.line.push(other),
            }
        }
        Ok(())
    }

    async fn receive(&mut self) -> Option<Vec<u8>> {
        match self.out.pop_front() {
            Some(Some(text)) => Some(text.into_bytes()),
            Some(None) => None,
            None => std::future::pending().await,
        }
    }

    async fn close(&mut self) {
        self.log.lock().unwrap().push(String::from("<closed>"));
    }
}

struct Script {
    banner: Mutex<VecDeque<Option<String>>>,
    answers: Answers,
    log: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Connect for Script {
    async fn connect(&self) -> Result<Box<dyn Shell>, CliError> {
        let banner =
            self.banner.lock().unwrap().pop_front().unwrap_or(Some(String::from("\r\n   Welcome\r\n\r\neql> ")));
        let mut out = VecDeque::from([banner.clone()]);
        if banner.as_ref().is_some_and(|text| !text.ends_with("> ")) {
            out.push_back(None);
        }
        let line = String::new();
        Ok(Box::new(Scripted { out, answers: self.answers.clone(), line, log: self.log.clone() }))
    }
}

fn sessions(answers: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> (Sessions, Arc<Mutex<Vec<String>>>) {
    with_banners([], answers)
}

fn with_banners<const N: usize>(
    banners: [Option<String>; N],
    answers: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
) -> (Sessions, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let banner = Mutex::new(VecDeque::from(banners));
    let script = Script { banner, answers: Arc::new(answers), log: log.clone() };
    (Sessions::new(script, Secret::default()), log)
}

fn plain(line: &str, body: &str) -> Option<String> {
    Some(format!("{line}\r\n{body}eql> "))
}

#[tokio::test]
async fn settings_come_first_and_a_session_is_used_again() {
    let (sessions, log) = sessions(|line| plain(line, if line == "show pool" { "default\r\n" } else { "" }));
    assert_eq!(sessions.run("show pool").await.unwrap(), ["default"]);
    assert_eq!(sessions.run("show pool").await.unwrap(), ["default"]);
    let log = log.lock().unwrap().clone();
    assert_eq!(log.len(), 1 + SETTINGS.len() + 2, "{log:?}");
    assert_eq!((log[0].as_str(), log[1].as_str()), ("stty columns 255", SETTINGS[0]));
}

#[tokio::test]
async fn the_end_before_the_prompt_is_lost_and_the_next_command_gets_a_new_session() {
    let (sessions, log) = sessions(|line| if line == "volume show" { None } else { plain(line, "") });
    let failure = sessions.run("volume show").await.unwrap_err();
    assert!(matches!(failure, CliError::Lost(_)), "{failure:?}");
    assert!(sessions.run("show pool").await.is_ok());
    let log = log.lock().unwrap().clone();
    assert_eq!(log.iter().filter(|line| *line == "<closed>").count(), 1, "{log:?}");
    assert_eq!(log.iter().filter(|line| *line == SETTINGS[0]).count(), 2, "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_group_with_all_sessions_taken_is_tried_again() {
    let full = || Some(String::from("Maximum number of SSH sessions reached.\r\n"));
    let (sessions, log) = with_banners([full(), full()], |line| plain(line, ""));
    assert!(sessions.run("show pool").await.is_ok());
    assert_eq!(log.lock().unwrap().iter().filter(|line| *line == "<closed>").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_group_that_stays_full_says_so() {
    let banners = [(); 16].map(|()| Some(String::from("Maximum number of SSH sessions reached.\r\n")));
    let (sessions, _) = with_banners(banners, |line| plain(line, ""));
    let failure = sessions.run("show pool").await.unwrap_err();
    assert!(matches!(&failure, CliError::NoSession(words) if words.contains("Maximum number")), "{failure:?}");
}

#[tokio::test]
async fn refused_input_that_is_printed_again_spends_the_session() {
    let (sessions, log) = sessions(|line| match line {
        "volume wrong" => Some(String::from("volume wrong\r\n% Error - Bad command\r\neql> volume wrong")),
        other => plain(other, ""),
    });
    let failure = sessions.run("volume wrong").await.unwrap_err();
    assert!(failure.is_unknown_command(), "{failure:?}");
    assert!(sessions.run("show pool").await.is_ok());
    let log = log.lock().unwrap().clone();
    let after = &log[log.iter().position(|line| line == "volume wrong").unwrap() + 1..];
    assert_eq!(after[0], "<closed>", "nothing may be added to the bad text: {log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_is_not_known_is_left_out_from_then_on() {
    let (sessions, log) = sessions(|line| match line {
        "cli-settings reprintBadInput off" => Some(format!("{line}\r\n% Error - Bad command\r\neql> {line}")),
        other => plain(other, ""),
    });
    assert!(sessions.run("show pool").await.is_ok());
    let log = log.lock().unwrap().clone();
    assert_eq!(log.iter().filter(|line| *line == SETTINGS[0]).count(), 1, "{log:?}");
}

#[tokio::test]
async fn pagers_go_on_and_only_our_own_deletions_are_confirmed() {
    let (sessions, _) = sessions(|line| match line {
        "volume show" => Some(String::from("volume show\r\none\r\n--More--")),
        " " => Some(String::from("\r        \rtwo\r\neql> ")),
        "volume delete a" => Some(String::from("volume delete a\r\nDo you really want to delete the volume? [n] ")),
        "y" => Some(String::from("y\r\nVolume deletion succeeded.\r\neql> ")),
        "show pool" => Some(String::from("show pool\r\nDo you want to set up the group? [n] ")),
        other => plain(other, ""),
    });
    let shown = sessions.run("volume show").await.unwrap();
    assert_eq!(shown.iter().map(|line| line.trim()).collect::<Vec<_>>(), ["one", "two"]);
    assert!(sessions.run("volume delete a").await.unwrap().iter().any(|line| line.contains("succeeded")));
    assert!(matches!(sessions.run("show pool").await, Err(CliError::Unclear(_))));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_a_deadline() {
    let (sessions, _) =
        sessions(|line| Some(if line == "volume show" { line.to_string() } else { format!("{line}\r\neql> ") }));
    assert!(matches!(sessions.run("volume show").await, Err(CliError::Lost(_))));
}

#[tokio::test]
async fn two_commands_in_one_are_refused_and_secrets_stay_out_of_words() {
    let (sessions, _) = sessions(|line| plain(line, ""));
    assert!(sessions.run("volume show\rvolume delete a").await.is_err());
    assert_eq!(public("chapuser create a password hush"), "chapuser create a password ...");
}
