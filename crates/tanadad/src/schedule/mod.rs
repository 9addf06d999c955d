//! Snapshot schedules (XenAPI's VMSS) carried out, and the space they take watched over.
//!
//! ```text
//!  records ─▶ look: who is due ─▶ engine: so many at once ─▶ run: VM.snapshot ─▶ records ─▶ prune: what may go
//!   + clock   (pure, from tanada-schedule)                        └─ failed: again later, at last a message
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`vmss`] | the messages of class VMSS, `VM.set_snapshot_schedule` |
//! | [`look`] | what is due, from records, notes and the clock |
//! | [`engine`] | the task that carries it out, bounded |
//! | [`run`] | one machine's run, and its end in records |
//! | [`prune`] | snapshots that no rung of the ladder keeps |
//! | [`exceptions`] | what a machine's `other_config` asks for itself |
//! | [`notes`] | what is remembered between runs |
//! | [`space`] | room for guests' writes, growth, warnings |
//! | [`clock`], [`steer`] | the time; and how tests and demonstrations move it |
//!
//! # What survives what
//!
//! - Which slot a machine has handled is a note of its own, written in the transaction that marks the snapshot. A daemon
//!   that dies in the middle of a hundred machines goes on with those that are left.
//! - The name that a snapshot will have is noted before it is taken. One that was taken when the daemon died, and not yet
//!   marked, is found by it and marked instead of being taken again.
//! - Snapshots are removed as `VDI.destroy` removes disks: by an intent each, finished at the next start.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tanada_xapi::Ref;
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::context::{Daemon, Handlers};
use crate::db::{Db, View};

pub mod clock;
pub mod engine;
pub mod exceptions;
pub mod look;
pub mod notes;
pub mod prune;
pub mod run;
pub mod space;
pub mod steer;
pub mod vmss;

use clock::Clock;

/// What schedules keep while the daemon lives.
pub struct Schedules {
    pub clock: Clock,
    /// Woken when a schedule or its machines change.
    pub changed: Arc<Notify>,
    running: Mutex<HashSet<Ref>>,
    to_prune: Mutex<BTreeSet<Ref>>,
}

impl Schedules {
    pub fn new(config: &Config, db: &Db) -> Schedules {
        Schedules {
            clock: Clock::new(config.clock.is_some(), db.read(|state| state.note(clock::NOTE))),
            changed: Arc::default(),
            running: Mutex::default(),
            to_prune: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, HashSet<Ref>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn to_prune(&self) -> MutexGuard<'_, BTreeSet<Ref>> {
        self.to_prune.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a machine for one run; `None` while another run of it goes on.
    pub fn claim(daemon: &Arc<Daemon>, vm: &Ref) -> Option<Claim> {
        let free = daemon.schedules.running().insert(vm.clone());
        free.then(|| Claim { daemon: daemon.clone(), vm: vm.clone() })
    }

    /// The snapshots of these machines are to be gone through.
    pub fn prune_later(&self, vms: impl IntoIterator<Item = Ref>) {
        self.to_prune().extend(vms);
    }
}

/// A machine under a run of its schedule; free again when this is dropped.
#[must_use = "the machine is free again when this is dropped"]
pub struct Claim {
    daemon: Arc<Daemon>,
    vm: Ref,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.daemon.schedules.running().remove(&self.vm);
    }
}

pub fn handlers() -> Handlers {
    vmss::handlers()
}

/// Waits until the daemon is about to end.
async fn ending(stopping: &mut watch::Receiver<bool>) {
    // An error means that the daemon is gone, which is no different.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Begins to carry schedules out; machines and storage are known by now.
pub async fn start(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    let orders = match daemon.config.clock.clone() {
        Some(socket) => Some(steer::listen(&socket, daemon.stopping.subscribe())?),
        None => None,
    };
    engine::start(daemon, orders);
    Ok(())
}
