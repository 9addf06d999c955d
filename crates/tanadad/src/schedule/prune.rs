//! Snapshots that their machine's ladder no longer keeps.
//!
//! Only snapshots that a schedule made are looked at, and of those none that is marked to be kept
//! (`other_config:tanada-keep=true`). One that is in use (exported, mounted by a backup server) stays until it is not. One of a
//! time that is yet to come, by the clock of now, counts for nothing: whichever of the two was wrong, no other goes for it.

use std::sync::Arc;

use jiff::Timestamp;
use tanada_xapi::{DateTime, Ref};

use super::exceptions;
use super::look::{is_ahead, policy};
use super::notes::time;
use super::run::INFO_SLOT;
use crate::context::Daemon;
use crate::db::{Record, View};
use crate::ops::machine::discard;

/// What a look through one machine's snapshots came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub removed: u64,
    /// Some could not be removed now.
    pub postponed: bool,
}

/// The slot that a scheduled snapshot is for.
pub fn slot_of(snapshot: &Record) -> Timestamp {
    let slot = snapshot.entry("snapshot_info", INFO_SLOT).and_then(DateTime::parse);
    time(slot.unwrap_or_else(|| snapshot.datetime("snapshot_time")).unix())
}

/// The snapshots of a machine that may go, oldest first.
pub fn surplus(view: &impl View, vm: &Ref, now: Timestamp) -> Vec<Ref> {
    let Some(vm) = view.find("VM", vm) else { return Vec::new() };
    let schedule = view.find("VMSS", &vm.reference("snapshot_schedule"));
    let Some(policy) = schedule.and_then(|schedule| policy(&schedule)) else { return Vec::new() };
    let mut snapshots = view.resolve("VM", &vm.refs("snapshots"));
    snapshots.retain(|one| {
        let kept = one.entry("other_config", exceptions::KEEP_SNAPSHOT) == Some("true");
        let ours = one.bool("is_a_snapshot") && one.bool("is_vmss_snapshot") && !kept;
        ours && !is_ahead(slot_of(one).as_second(), now)
    });
    let slots: Vec<Timestamp> = snapshots.iter().map(|one| slot_of(one)).collect();
    let ladder = exceptions::own_ladder(&vm).unwrap_or(policy.ladder);
    let surplus = ladder.surplus(&policy.calendar.zone, &slots);
    surplus.into_iter().filter_map(|at| Some(snapshots.get(at)?.id().clone())).collect()
}

/// Removes what may go.
pub async fn prune(daemon: &Arc<Daemon>, vm: &Ref) -> Pruned {
    let mut pruned = Pruned::default();
    let now = daemon.schedules.clock.now();
    for snapshot in daemon.db.read(|state| surplus(state, vm, now)) {
        match discard::snapshot(daemon, &snapshot).await {
            Ok(()) => pruned.removed += 1,
            Err(error) => {
                tracing::info!(%vm, %snapshot, %error, "a snapshot that may go stays for now");
                pruned.postponed = true;
            }
        }
    }
    pruned
}
