//! Freezing a guest's file systems around a cut, with a hard end: a guest that was frozen is always thawed.
//!
//! ```text
//!  write down ─▶ freeze (deadline) ─▶ cut ─▶ still frozen? ─▶ thaw (repeated until it answers) ─▶ strike off
//! ```
//! The intent lets the next life of the daemon thaw a guest that this one froze and could not thaw. Whether the freeze
//! held is asked before the thaw: a guest thaws itself after some time, and a cut after that is only crash-consistent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tanada_qemu::agent::GuestAgent;
use tanada_xapi::{ApiError, ApiResult, Ref};

use crate::context::Daemon;
use crate::ops::intents::{self, Plan};

/// A guest that has not frozen by then is not going to; longer pauses hurt more than a crash-consistent snapshot.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const ASK_LIMIT: Duration = Duration::from_secs(5);
const THAW_LIMIT: Duration = Duration::from_secs(5);
const THAW_ATTEMPTS: u32 = 6;

/// What became of the wish to quiesce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    /// Nobody could freeze the guest, for this reason.
    Crash { reason: String },
    /// The guest's file systems were frozen over the cut.
    FileSystem { frozen_us: u64, file_systems: u64 },
}

impl Level {
    /// `snapshot_info:disk-snapshot-type`.
    pub const fn disk_snapshot_type(&self) -> &'static str {
        match self {
            Level::Crash { .. } => "crash_consistent",
            Level::FileSystem { .. } => "quiesced",
        }
    }
}

/// A guest under freeze; ends with [`Frozen::thaw`].
pub struct Frozen {
    agent: Arc<GuestAgent>,
    vm: Ref,
    intent: String,
    since: Instant,
    file_systems: u64,
}

/// The agent of a running machine that has one; else why not.
fn agent(daemon: &Daemon, vm: &Ref) -> Result<Arc<GuestAgent>, String> {
    let Some(machine) = daemon.vmm.machine(vm) else { return Err("the machine does not run".into()) };
    if machine.agent_present() { Ok(machine.agent()) } else { Err("the guest has no agent".into()) }
}

/// Freezes the guest, or says why it is not frozen.
pub async fn freeze(daemon: &Arc<Daemon>, vm: &Ref) -> ApiResult<Result<Frozen, String>> {
    let agent = match agent(daemon, vm) {
        Ok(agent) => agent,
        Err(reason) => return Ok(Err(reason)),
    };
    let intent = Plan::Freeze { vm: vm.to_string() }.write(daemon)?;
    let since = Instant::now();
    match agent.freeze(FREEZE_LIMIT).await {
        Ok(0) => {
            intents::clear(daemon, &intent)?;
            Ok(Err("the guest froze no file system".into()))
        }
        Ok(file_systems) => Ok(Ok(Frozen { agent, vm: vm.clone(), intent, since, file_systems })),
        Err(error) => {
            // It may have frozen all the same.
            thaw(daemon, vm, &agent, &intent).await;
            Ok(Err(format!("the guest did not freeze: {error}")))
        }
    }
}

impl Frozen {
    /// Thaws the guest and says what the freeze was worth.
    pub async fn thaw(self, daemon: &Arc<Daemon>) -> Level {
        let held = self.agent.is_frozen(ASK_LIMIT).await;
        let frozen_us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        thaw(daemon, &self.vm, &self.agent, &self.intent).await;
        match held {
            Ok(true) => Level::FileSystem { frozen_us, file_systems: self.file_systems },
            Ok(false) => Level::Crash { reason: "the guest thawed itself before the cut was done".into() },
            Err(error) => Level::Crash { reason: format!("it is not known whether the freeze held: {error}") },
        }
    }
}

/// Thaws until the guest answers or is gone; the intent stays when it does not.
async fn thaw(daemon: &Arc<Daemon>, vm: &Ref, agent: &GuestAgent, intent: &str) {
    for _ in 0..THAW_ATTEMPTS {
        match agent.thaw(THAW_LIMIT).await {
            Ok(_) => {
                strike_off(daemon, intent);
                return;
            }
            Err(error) if daemon.vmm.machine(vm).is_none() => {
                tracing::info!(%vm, %error, "a frozen guest has ended");
                strike_off(daemon, intent);
                return;
            }
            Err(error) => tracing::warn!(%vm, %error, "a guest does not answer to thaw; asking again"),
        }
    }
    tracing::error!(%vm, "a guest could not be thawed; it will be tried when the daemon starts again");
}

fn strike_off(daemon: &Daemon, intent: &str) {
    if let Err(error) = intents::clear(daemon, intent) {
        tracing::error!(%error, "a thaw could not be recorded");
    }
}

/// For a guest that an earlier life of the daemon froze.
pub async fn thaw_leftover(daemon: &Arc<Daemon>, vm: &Ref, intent: &str) {
    match daemon.vmm.machine(vm) {
        Some(machine) => thaw(daemon, vm, &machine.agent(), intent).await,
        None => strike_off(daemon, intent),
    }
}

/// The error of `VM.snapshot_with_quiesce` for a guest that cannot be frozen.
pub fn refusal(vm: &Ref, reason: &str) -> ApiError {
    if reason.contains("did not freeze") {
        return ApiError::vm_snapshot_with_quiesce_failed(vm, reason);
    }
    ApiError::vm_snapshot_with_quiesce_not_supported(vm, reason)
}
