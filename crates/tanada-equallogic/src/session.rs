//! Sessions on a group: one conversation at a time each, two at most, given up at the first doubt.
//!
//! A group allows about seven sessions to everybody together, so all SRs on one group share one [`Sessions`]. A session is
//! dropped, with its channel closed, after the end of the channel, a deadline, reprinted input or an unknown question; the
//! next command opens a new one. What a login sets up does not outlive the session on all firmware, and another script
//! with the same account may have changed it: everything is sent again in each session.

use std::collections::BTreeSet;
use std::fmt::{Debug, Formatter};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tanada_driver::Secret;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::error::CliError;
use crate::screen::{COLUMNS, Screen, Seen, is_error, refusal};

/// Of the seven that a group has for all its administrators and programs.
pub const SESSIONS_MAX: usize = 2;
/// `pool show` with 1,024 volumes has been seen to take longer than 30 s.
const COMMAND_DEADLINE: Duration = Duration::from_secs(90);
const PROMPT_DEADLINE: Duration = Duration::from_secs(30);
/// Pauses between attempts to open a session; their sum is what a group with all its sessions taken is waited for.
const PAUSES_MS: [u64; 6] = [100, 300, 1000, 2000, 4000, 8000];

/// A shell on a group, as bytes.
#[async_trait]
pub trait Shell: Send {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), CliError>;
    /// `None` at the end of the channel.
    async fn receive(&mut self) -> Option<Vec<u8>>;
    async fn close(&mut self);
}

/// Opens shells.
#[async_trait]
pub trait Connect: Send + Sync {
    async fn connect(&self) -> Result<Box<dyn Shell>, CliError>;
}

/// Sent in each session before anything else; they are the account's, nothing here changes the group. A firmware that does not know one of them goes without it.
const SETTINGS: [&str; 8] = [
    // First: it keeps a later refusal from leaving the bad text behind the prompt.
    "cli-settings reprintBadInput off",
    "stty hardwrap off",
    "cli-settings events off",
    "cli-settings paging off",
    "cli-settings confirmation off",
    "cli-settings formatoutput off",
    // Whole megabytes: sizes are then exact.
    "cli-settings displayinMB on",
    "cli-settings idlelogout off",
];

/// A session between two commands.
struct Session {
    shell: Box<dyn Shell>,
    prompt: String,
}

/// How a conversation ended that was not lost.
enum Ended {
    AtPrompt(Vec<String>),
    /// The answer is whole, but the session cannot be used again.
    Spent(Vec<String>),
}

/// The sessions of one account on one group.
pub struct Sessions {
    connect: Box<dyn Connect>,
    password: Secret,
    idle: Mutex<Vec<Session>>,
    permits: Semaphore,
    refused_settings: Mutex<BTreeSet<&'static str>>,
}

impl Debug for Sessions {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    pub fn new(connect: impl Connect + 'static, password: Secret) -> Sessions {
        Sessions {
            connect: Box::new(connect),
            password,
            idle: Mutex::default(),
            permits: Semaphore::new(SESSIONS_MAX),
            refused_settings: Mutex::default(),
        }
    }

    /// Whether they were opened with this password.
    pub fn is_for(&self, password: &Secret) -> bool {
        self.password == *password
    }

    /// The lines that answer `command`. Nothing is repeated here once the command was sent.
    pub async fn run(&self, command: &str) -> Result<Vec<String>, CliError> {
        check(command)?;
        let _permit = self.permits.acquire().await.map_err(|_| CliError::NoSession(String::from("closed")))?;
        let idle = self.idle().pop();
        let mut session = match idle {
            Some(session) => session,
            None => self.open().await?,
        };
        let answer = match session.converse(command).await {
            Ok(Ended::AtPrompt(answer)) => {
                self.idle().push(session);
                answer
            }
            Ok(Ended::Spent(answer)) => {
                session.shell.close().await;
                answer
            }
            Err(failure) => {
                session.shell.close().await;
                return Err(failure);
            }
        };
        match refusal(&answer) {
            Some(text) => Err(CliError::Refused { command: public(command), text }),
            None => Ok(answer),
        }
    }

    async fn open(&self) -> Result<Session, CliError> {
        let mut pauses = PAUSES_MS.iter();
        loop {
            let failure = match self.open_once().await {
                Err(failure @ (CliError::NoSession(_) | CliError::Lost(_))) => failure,
                other => return other,
            };
            let Some(pause) = pauses.next() else { return Err(CliError::NoSession(failure.to_string())) };
            tracing::debug!(%failure, "no session on the group yet");
            tokio::time::sleep(Duration::from_millis(*pause)).await;
        }
    }

    async fn open_once(&self) -> Result<Session, CliError> {
        let mut shell = self.connect.connect().await?;
        match self.prepare(shell.as_mut()).await {
            Ok(prompt) => Ok(Session { shell, prompt }),
            Err(failure) => {
                shell.close().await;
                Err(failure)
            }
        }
    }

    /// Banner, prompt, settings.
    async fn prepare(&self, shell: &mut dyn Shell) -> Result<String, CliError> {
        let prompt = first_prompt(shell).await?;
        let columns = format!("stty columns {COLUMNS}");
        converse(shell, &prompt, &columns).await?;
        for setting in SETTINGS {
            if self.refused().contains(setting) {
                continue;
            }
            let (answer, spent) = match converse(shell, &prompt, setting).await? {
                Ended::AtPrompt(answer) => (answer, false),
                Ended::Spent(answer) => (answer, true),
            };
            if answer.iter().any(|line| is_error(line)) {
                tracing::debug!(setting, ?answer, "the group does not know a setting");
                self.refused().insert(setting);
            }
            if spent {
                return Err(CliError::NoSession(format!("{setting:?} is not known to the group")));
            }
        }
        Ok(prompt)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.refused_settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    async fn converse(&mut self, command: &str) -> Result<Ended, CliError> {
        converse(self.shell.as_mut(), &self.prompt, command).await
    }
}

/// Refuses what would be two commands or would not fit on a line.
fn check(command: &str) -> Result<(), CliError> {
    if command.is_empty() || command.len() > 1000 || command.chars().any(char::is_control) {
        return Err(CliError::Unclear(format!("{:?} is not a command", public(command))));
    }
    Ok(())
}

/// The command without the secret that it may hold.
fn public(command: &str) -> String {
    match command.find(" password ") {
        Some(at) => format!("{} password ...", &command[..at]),
        None => command.to_string(),
    }
}

async fn first_prompt(shell: &mut dyn Shell) -> Result<String, CliError> {
    let deadline = Instant::now() + PROMPT_DEADLINE;
    let mut screen = Screen::default();
    loop {
        if let Some(prompt) = screen.first_prompt() {
            return Ok(prompt);
        }
        if let Seen::Question(question) = screen.seen("\n", "") {
            return Err(CliError::NotTrusted(format!(
                "the group asks {question:?} instead of giving a prompt: set it up"
            )));
        }
        let words = || screen.words();
        let bytes = match timeout_at(deadline, shell.receive()).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(CliError::NoSession(format!("the group gave no session: {:?}", words()))),
            Err(_) => return Err(CliError::NoSession(format!("the group gave no prompt: {:?}", words()))),
        };
        if !screen.feed(&bytes) {
            return Err(CliError::NoSession(String::from("the group's banner does not end")));
        }
    }
}

async fn converse(shell: &mut dyn Shell, prompt: &str, command: &str) -> Result<Ended, CliError> {
    let deadline = Instant::now() + COMMAND_DEADLINE;
    shell.send(format!("{command}\r").as_bytes()).await?;
    let mut screen = Screen::default();
    loop {
        match screen.seen(prompt, command) {
            Seen::Prompt => return Ok(Ended::AtPrompt(screen.answer(prompt, command))),
            Seen::Reprinted => return Ok(Ended::Spent(screen.answer(prompt, command))),
            Seen::Pager => {
                shell.send(b" ").await?;
                feed(&mut screen, b"\n")?;
            }
            Seen::Question(question) => {
                if !may_confirm(command, &question) {
                    let words = format!("{:?} was answered by the question {question:?}", public(command));
                    return Err(CliError::Unclear(words));
                }
                shell.send(b"y\r").await?;
                feed(&mut screen, b"\n")?;
            }
            Seen::Unfinished => {}
        }
        match timeout_at(deadline, shell.receive()).await {
            Ok(Some(bytes)) => feed(&mut screen, &bytes)?,
            Ok(None) => {
                let words = format!("the session ended during {:?} after {:?}", public(command), screen.words());
                return Err(CliError::Lost(words));
            }
            Err(_) => {
                let seconds = COMMAND_DEADLINE.as_secs();
                return Err(CliError::Lost(format!("no prompt within {seconds} s after {:?}", public(command))));
            }
        }
    }
}

fn feed(screen: &mut Screen, bytes: &[u8]) -> Result<(), CliError> {
    if screen.feed(bytes) {
        return Ok(());
    }
    Err(CliError::Lost(String::from("an answer that does not end")))
}

/// Each of these commands is sent only after the driver has convinced itself of what it does.
fn may_confirm(command: &str, question: &str) -> bool {
    let question = question.to_ascii_lowercase();
    let verbs = ["delete", "offline", "restore", "convert"];
    verbs.iter().any(|verb| command.contains(verb) && question.contains(verb))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
