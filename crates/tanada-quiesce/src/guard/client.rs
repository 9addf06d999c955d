//! The daemon's end of the door.
//!
//! The agent's port is lent to the guard and comes back when the guard has ended. A guard that dies or does not answer
//! in time is ended for certain, and the guest is thawed from here.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tanada_qemu::agent::{GuestAgent, Lent};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::thawing::{self, FLAG_LIMIT};
use super::{Ask, Failure, Said, Thawed, Why};

/// On top of every limit of the guest's, for the guard itself: to connect, to sync, to be scheduled.
const GRACE: Duration = Duration::from_secs(10);

/// Where debts of a thaw are written down. Called from any task.
pub trait Ledger: Send + Sync {
    /// Durably: from here on a thaw is owed. Says why not.
    fn owe(&self) -> Result<(), String>;
    /// The guest is thawed, or gone.
    fn paid(&self);
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the guest to freeze.
    pub freeze: Duration,
    /// For it to stay frozen.
    pub window: Duration,
    /// For it to answer a thaw.
    pub thaw: Duration,
}

/// A guard process with its door.
pub struct Guard {
    door: BufReader<UnixStream>,
    child: Child,
    lent: Lent,
    limits: Limits,
}

/// A guest that answered its freeze. Dropping it closes the door: the guard thaws.
#[must_use = "a frozen guest is to be thawed"]
pub struct Frozen {
    guard: Guard,
    pub count: u64,
    pub asked: Duration,
    since: Instant,
}

/// Why there is no frozen guest. Whatever it did is being undone in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFrozen {
    Guest(Failure, String),
    /// The guard did not start, died or did not answer.
    Guard(String),
}

/// How a freeze ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub thawed: Thawed,
    /// What became of the guard where it could not do its part.
    pub guard_failed: Option<String>,
}

impl Guard {
    /// Starts one by `program` (this program, as a rule).
    ///
    /// # Errors
    /// In words: the process does not start.
    pub fn start(program: &Path, lent: Lent, limits: Limits) -> Result<Guard, String> {
        let failed = |error: std::io::Error| format!("the guard {} does not start: {error}", program.display());
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut command = Command::new(program);
        command.arg0("tanada");
        command.arg("quiesce-guard").arg("--agent").arg(lent.socket());
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let child = command.spawn().map_err(failed)?;
        // The command holds the child's end of the door, which must be the only one left open.
        drop(command);
        let door = BufReader::new(UnixStream::from_std(ours).map_err(failed)?);
        Ok(Guard { door, child, lent, limits })
    }

    /// The process; for tests that end it.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks the guest to freeze. `ledger` already holds the debt; it is paid in the background where this fails.
    pub async fn freeze(mut self, ledger: &Arc<dyn Ledger>) -> Result<Frozen, NotFrozen> {
        let Limits { freeze, window, thaw } = self.limits;
        let ask = Ask::Freeze { limit: millis(freeze), window: millis(window), thaw: millis(thaw) };
        let outcome = match self.exchange(&ask, freeze).await {
            Ok(Said::Frozen { count, asked_us }) => {
                let asked = Duration::from_micros(asked_us);
                return Ok(Frozen { guard: self, count, asked, since: Instant::now() });
            }
            Ok(Said::NotFrozen { failure, words }) => NotFrozen::Guest(failure, words),
            Ok(Said::Thawed(_)) => NotFrozen::Guard("the guard thawed before it had frozen".into()),
            Err(words) => NotFrozen::Guard(words),
        };
        let does_its_part = matches!(outcome, NotFrozen::Guest(..));
        if !does_its_part {
            self.kill().await;
        }
        tokio::spawn(self.finish(ledger.clone(), does_its_part));
        Err(outcome)
    }

    /// One line there, one line back; an error in words where none comes.
    async fn exchange(&mut self, ask: &Ask, limit: Duration) -> Result<Said, String> {
        let limit = limit + GRACE;
        let line = serde_json::to_string(ask).map_err(|error| error.to_string())? + "\n";
        let exchange = async {
            // A guard that has said its last word does not hear this; its word is what counts.
            let sent = self.door.get_mut().write_all(line.as_bytes()).await;
            let mut answer = String::new();
            match self.door.read_line(&mut answer).await {
                Ok(0) => Err(format!("the guard died{}", sent.err().map_or(String::new(), |e| format!(" ({e})")))),
                Ok(_) => serde_json::from_str(&answer).map_err(|error| format!("the guard's answer is none: {error}")),
                Err(error) => Err(format!("the guard died: {error}")),
            }
        };
        timeout(limit, exchange).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
    }

    /// Ends the process for certain, so that the agent's port is free.
    async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::error!(%error, "the guard of a frozen guest cannot be ended");
        }
    }

    /// Waits until the guard has ended, thaws unless it says at its end that it did, and strikes the debt off.
    async fn finish(mut self, ledger: Arc<dyn Ledger>, does_its_part: bool) {
        let status: Option<ExitStatus> = self.child.wait().await.ok();
        if !does_its_part || !status.is_some_and(|status| status.success()) {
            tracing::warn!(?status, "the guard of a frozen guest ended before its time; thawing");
            thawing::until_thawed(&GuestAgent::new(self.lent.socket()), self.limits.thaw).await;
        }
        ledger.paid();
    }
}

impl Frozen {
    pub fn guard_pid(&self) -> Option<u32> {
        self.guard.pid()
    }

    /// Thaws and tells what was seen. Where the guest does not confirm it is asked on in the background.
    pub async fn thaw(mut self, ledger: &Arc<dyn Ledger>) -> Ended {
        let limit = FLAG_LIMIT * 2 + self.guard.limits.thaw;
        let (thawed, guard_failed) = match self.guard.exchange(&Ask::Thaw, limit).await {
            Ok(Said::Thawed(thawed)) => (thawed, None),
            Ok(other) => self.thaw_directly(format!("the guard answered {other:?}")).await,
            Err(words) => self.thaw_directly(words).await,
        };
        if thawed.confirmed {
            ledger.paid();
            // The port is back when the guard has ended, which it is about to.
            tokio::spawn(async move { self.guard.child.wait().await.map(|_| drop(self.guard.lent)) });
        } else {
            tokio::spawn(self.guard.finish(ledger.clone(), guard_failed.is_none()));
        }
        Ended { thawed, guard_failed }
    }

    async fn thaw_directly(&mut self, words: String) -> (Thawed, Option<String>) {
        tracing::warn!(words, "the guard of a frozen guest does not do its part; thawing");
        let after = self.since.elapsed();
        self.guard.kill().await;
        let agent = GuestAgent::new(self.guard.lent.socket());
        let flag = agent.is_frozen(FLAG_LIMIT).await.ok();
        let (answer, confirmed) = thawing::once(&agent, self.guard.limits.thaw).await;
        let why = Why::Asked;
        let (after_us, lasted_us) = (micros(after), micros(self.since.elapsed()));
        (Thawed { why, after_us, lasted_us, flag, answer, confirmed }, Some(words))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
