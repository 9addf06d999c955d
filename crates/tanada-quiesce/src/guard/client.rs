//! The daemon's end of the door: the guard as a process that is started, asked, heard and ended.
//!
//! A guard at work beats every [`BEAT`](super::BEAT). One that is not heard for two looks in a row hangs: it is ended as if it
//! had died. Two looks, for a host that stood still itself finds a look over before it finds what was said meanwhile.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tanada_qemu::agent::Lent;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

use super::warden::{self, Frozen};
use super::{Ask, Failure, Said, Thawed};

/// How long a guard may take to be loaded and begin, per look. Nothing is frozen before.
const LOOK_FIRST: Duration = Duration::from_secs(5);
/// The time in which a guard at work is heard, per look: four beats.
const LOOK: Duration = Duration::from_secs(2);
const LOOKS: u32 = 2;
/// A process that was told to end, or has nothing left to do, is gone by then.
const END_LIMIT: Duration = Duration::from_secs(2);

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
    said: Lines<BufReader<OwnedReadHalf>>,
    asks: OwnedWriteHalf,
    child: Child,
    /// How long the next look is, and how many in a row heard nothing.
    look: Duration,
    silent: u32,
    pub(super) lent: Lent,
    pub(super) limits: Limits,
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
        let (read, asks) = UnixStream::from_std(ours).map_err(failed)?.into_split();
        Ok(Guard { said: BufReader::new(read).lines(), asks, child, look: LOOK_FIRST, silent: 0, lent, limits })
    }

    /// Asks the guest to freeze. `ledger` already holds the debt; it is paid in the background where this fails, and also
    /// where nobody waits for it any more.
    ///
    /// # Errors
    /// Why the guest is not frozen.
    pub async fn freeze(self, ledger: Arc<dyn Ledger>) -> Result<Frozen, NotFrozen> {
        warden::freeze(self, ledger).await
    }

    /// One that is dead does not hear; what it said before is still to be read.
    pub(super) async fn ask(&mut self, ask: &Ask) {
        let line = serde_json::to_string(ask).unwrap_or_default() + "\n";
        if let Err(error) = self.asks.write_all(line.as_bytes()).await {
            tracing::debug!(%error, ?ask, "the guard does not hear");
        }
    }

    /// What it says next, beats left out, within `limit` where there is one. May be dropped while it waits.
    ///
    /// # Errors
    /// In words: it is dead, it hangs, it says what cannot be understood, or it does nothing but beat.
    pub(super) async fn hear(&mut self, limit: Option<Duration>) -> Result<Said, String> {
        let until = limit.map(|limit| Instant::now() + limit);
        loop {
            let look = Instant::now() + self.look;
            let heard = timeout_at(until.map_or(look, |until| until.min(look)), self.said.next_line()).await;
            match heard {
                Ok(Ok(Some(line))) => {
                    (self.look, self.silent) = (LOOK, 0);
                    match serde_json::from_str(&line) {
                        Ok(Said::Alive) => {}
                        Ok(said) => return Ok(said),
                        Err(error) => return Err(format!("the guard's answer is none: {error}")),
                    }
                }
                Ok(Ok(None)) => return Err("the guard died".into()),
                Ok(Err(error)) => return Err(format!("the guard died: {error}")),
                Err(_) if until.is_some_and(|until| until <= Instant::now()) => {
                    return Err(format!("no answer of the guard within {} s", limit.unwrap_or_default().as_secs()));
                }
                Err(_) => {
                    self.silent += 1;
                    if self.silent == LOOKS {
                        let silence = (self.look * LOOKS).as_secs();
                        return Err(format!("the guard hangs: nothing was heard of it for {silence} s"));
                    }
                }
            }
        }
    }

    /// Waits for its end, and sees to it where it does not come. True where it ended by itself and says that all is well.
    pub(super) async fn ended_well(&mut self) -> bool {
        match timeout(END_LIMIT, self.child.wait()).await {
            Ok(status) => status.is_ok_and(|status| status.success()),
            Err(_) => {
                self.end().await;
                false
            }
        }
    }

    /// Ends the process, so that the agent's port is free.
    pub(super) async fn end(&mut self) {
        match timeout(END_LIMIT, self.child.kill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the guard of a frozen guest cannot be ended"),
            // Held by the kernel. The port may be free all the same; whoever asks on finds out.
            Err(_) => tracing::error!(pid = self.child.id(), "the guard of a frozen guest was killed and does not end"),
        }
    }
}
