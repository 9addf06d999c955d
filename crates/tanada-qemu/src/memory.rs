//! A machine's memory, out through a pipe and in through a pipe, as QEMU's migration stream.
//!
//! ```text
//!   out:  runs ──begin_save──▶ runs, memory flows ──ended──▶ Saved: stands still, disks flushed ──go_on──▶ runs
//!                                   │ cancel, or the pipe's other end goes away
//!                                   └──▶ runs on as if nothing had been
//!   in:   Incoming ──begin_load──▶ memory flows ──ended──▶ paused, the caller says `cont`
//!                                   └── a stream that QEMU does not understand ends its process
//! ```
//! Between `ended` and `go_on` nothing of the guest happens: what is cut then is of the instant of the memory. The end of
//! the pipe comes a moment after `ended`, and with it the last bytes that were still in it.
//!
//! The stream says nothing about what machine it belongs to: only one with the same type, memory and devices at the same
//! places can read it ([`plugged`] tells the places). It has no checksum either; both are the caller's business.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::error::{QemuError, Result};
use crate::hotplug;
use crate::launch::{RunState, run_state};
use crate::machine::device_id;
use crate::qmp::{Event, QUICK, Qmp};

/// Bytes that the kernel keeps of a stream between QEMU and its reader; what an unprivileged pipe may have at most.
pub const PIPE_BYTES: usize = 1 << 20;
/// QEMU stops the guest when what is left takes no longer than this, in milliseconds.
const PAUSE_WANTED_MS: u64 = 100;
/// The name of the pipe's end on a connection.
const PIPE_NAME: &str = "memory";
/// A cancelled stream ends when QEMU's thread notices; it may be in the middle of a flush of the disks.
const CANCEL_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at something that has no event.
const LOOK: Duration = Duration::from_millis(5);

/// Memory on its way.
pub struct Transfer {
    qmp: Qmp,
    events: Receiver<Event>,
    stopped_at_us: Option<u64>,
}

impl Transfer {
    /// Has the memory written into `pipe`. The guest runs on.
    ///
    /// # Errors
    /// [`QemuError::Refused`] where a device of the machine cannot be saved.
    pub async fn begin_save(qmp: &Qmp, pipe: OwnedFd) -> Result<Transfer> {
        Transfer::begin(qmp, pipe, "migrate").await
    }

    /// Has a machine in [`RunState::Incoming`] read its memory from `pipe`.
    pub async fn begin_load(qmp: &Qmp, pipe: OwnedFd) -> Result<Transfer> {
        Transfer::begin(qmp, pipe, "migrate-incoming").await
    }

    async fn begin(qmp: &Qmp, pipe: OwnedFd, command: &str) -> Result<Transfer> {
        let events = qmp.events();
        let tell = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        qmp.execute("migrate-set-capabilities", tell, QUICK).await?;
        // 0: as fast as the pipe takes it.
        let pace = json!({ "max-bandwidth": 0, "downtime-limit": PAUSE_WANTED_MS });
        qmp.execute("migrate-set-parameters", pace, QUICK).await?;
        qmp.hand_over(PIPE_NAME, pipe).await?;
        qmp.execute(command, json!({ "uri": format!("fd:{PIPE_NAME}") }), QUICK).await?;
        Ok(Transfer { qmp: qmp.clone(), events, stopped_at_us: None })
    }

    /// Waits for the end of the transfer.
    ///
    /// # Errors
    /// [`QemuError::Protocol`] with QEMU's words where the stream broke; a machine that was saving runs on then.
    /// [`QemuError::Closed`] where the machine ended.
    pub async fn ended(&mut self) -> Result<()> {
        loop {
            let received = tokio::select! {
                biased;
                received = self.events.recv() => received,
                () = self.qmp.closed() => Err(RecvError::Closed),
            };
            let status = match received {
                Ok(event) => match self.note(&event) {
                    Some(status) => status,
                    None => continue,
                },
                Err(RecvError::Lagged(_)) => status(&self.qmp).await?,
                Err(RecvError::Closed) => return Err(QemuError::Closed { what: "a memory transfer".into() }),
            };
            match status.as_str() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => return Err(self.failure(&status).await),
                _ => {}
            }
        }
    }

    /// When the guest was stopped and let go again, by QEMU's clock in microseconds; call it after [`go_on`].
    pub fn stood_still_us(&mut self) -> Option<u64> {
        let mut resumed = None;
        while let Ok(event) = self.events.try_recv() {
            if event.name == "RESUME" {
                resumed = Some(event.at_us);
            }
            self.note(&event);
        }
        resumed?.checked_sub(self.stopped_at_us?)
    }

    /// The status that an event tells.
    fn note(&mut self, event: &Event) -> Option<String> {
        match event.name.as_str() {
            "STOP" => {
                self.stopped_at_us = Some(event.at_us);
                None
            }
            "MIGRATION" => event.data.get("status").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        }
    }

    async fn failure(&self, status: &str) -> QemuError {
        let told = self.qmp.execute("query-migrate", json!({}), QUICK).await.unwrap_or_default();
        let words = told.get("error-desc").and_then(Value::as_str).unwrap_or("QEMU does not say why");
        QemuError::Protocol { what: "a memory transfer".into(), detail: format!("{status}: {words}") }
    }
}

async fn status(qmp: &Qmp) -> Result<String> {
    let told = qmp.execute("query-migrate", json!({}), QUICK).await?;
    Ok(told.get("status").and_then(Value::as_str).unwrap_or("none").to_owned())
}

/// Ends a transfer that is under way, whoever began it; returns when it has ended. None is no error. Asked for, because one
/// that an earlier life of the daemon began may tell its end to nobody.
pub async fn cancel(qmp: &Qmp) -> Result<()> {
    let until = Instant::now() + CANCEL_LIMIT;
    qmp.execute("migrate_cancel", json!({}), QUICK).await?;
    loop {
        match status(qmp).await?.as_str() {
            "none" | "completed" | "failed" | "cancelled" => return Ok(()),
            other if Instant::now() >= until => {
                let what = format!("the end of a memory transfer that is {other}");
                return Err(QemuError::Deadline { what, limit: CANCEL_LIMIT });
            }
            _ => sleep(LOOK).await,
        }
    }
}

/// Lets a machine go on whose memory was written, or whose writing was given up. One that runs stays so.
pub async fn go_on(qmp: &Qmp) -> Result<()> {
    let until = Instant::now() + QUICK;
    loop {
        match qmp.execute("cont", json!({}), QUICK).await {
            // Between the end of the stream and the state Saved.
            Err(QemuError::Refused { message, .. }) if message.contains("not finalized") && Instant::now() < until => {
                sleep(LOOK).await;
            }
            other => return other.map(drop),
        }
    }
}

/// Waits until a machine is in this state, which no event tells.
///
/// # Errors
/// [`QemuError::Deadline`] after `limit`.
pub async fn until_state(qmp: &Qmp, wanted: RunState, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    loop {
        let state = run_state(qmp).await?;
        if state == wanted {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(QemuError::Deadline { what: format!("a machine that is {state:?} to be {wanted:?}"), limit });
        }
        sleep(LOOK).await;
    }
}

/// What a machine was built as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub machine_type: String,
    pub memory_bytes: u64,
    pub vcpus: u32,
}

/// Asks a machine what it is; its records may have been changed for its next start.
pub async fn built(qmp: &Qmp) -> Result<Built> {
    let kind = qmp.execute("qom-get", json!({ "path": "/machine", "property": "type" }), QUICK).await?;
    let kind = kind.as_str().unwrap_or_default();
    let memory = qmp.execute("query-memory-size-summary", json!({}), QUICK).await?;
    let processors = qmp.execute("query-cpus-fast", json!({}), QUICK).await?;
    Ok(Built {
        machine_type: kind.strip_suffix("-machine").unwrap_or(kind).to_owned(),
        memory_bytes: memory.get("base-memory").and_then(Value::as_u64).unwrap_or_default(),
        vcpus: processors.as_array().map_or(0, |all| u32::try_from(all.len()).unwrap_or(0)),
    })
}

/// A disk as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    pub id: Uuid,
    pub slot: u32,
    pub serial: String,
}

/// The disks of a machine at their places, in the order of slots.
pub async fn plugged(qmp: &Qmp) -> Result<Vec<Plugged>> {
    let mut found = Vec::new();
    for disk in hotplug::disks(qmp).await? {
        let Some(slot) = disk.slot else { continue };
        let path = format!("/machine/peripheral/{}", device_id(disk.id));
        let serial = qmp.execute("qom-get", json!({ "path": path, "property": "serial" }), QUICK).await?;
        found.push(Plugged { id: disk.id, slot, serial: serial.as_str().unwrap_or_default().to_owned() });
    }
    Ok(found)
}
