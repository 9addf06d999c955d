//! The instant of a snapshot.
//!
//! | the machine | the storage | how its disks are cut |
//! |---|---|---|
//! | anything | can cut them together | by the storage, at one point in the order of writes |
//! | does not run | cannot | one by one: nobody writes |
//! | runs | cannot | held (its requests are finished first), cut one by one, let go |
//!
//! The last case is told in the snapshot's `snapshot_info` and in its message: the guest stood still. That a machine is
//! held is written down before, so that one that a crash leaves so goes on at the next start.

use std::sync::Arc;
use std::time::Instant;

use tanada_driver::{CutReport, Driver, DriverErrorKind};
use tanada_xapi::{ApiResult, Ref};

use crate::context::Daemon;
use crate::ops::intents::{self, Plan};
use crate::ops::vdi::{PlannedCopy, copy_volumes};
use crate::storage::driver_error;
use crate::vmm::{self, Running};

/// How the disks came to be of one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instantness {
    /// By the storage, or because nobody wrote.
    Storage,
    /// The machine stood still for so long.
    Held { held_us: u64 },
}

/// Cuts all disks at one instant, or none.
pub async fn cut(
    daemon: &Arc<Daemon>,
    vm: &Ref,
    driver: &dyn Driver,
    planned: &[PlannedCopy],
) -> ApiResult<(CutReport, Instantness)> {
    match copy_volumes(driver, planned, true).await {
        Ok(report) => Ok((report, Instantness::Storage)),
        Err(error) if error.kind == DriverErrorKind::NotAtomic => {
            tracing::info!(%vm, %error, "the storage cannot cut these disks together; they are cut one by one");
            one_by_one(daemon, vm, driver, planned).await
        }
        Err(error) => Err(driver_error(error)),
    }
}

async fn one_by_one(
    daemon: &Arc<Daemon>,
    vm: &Ref,
    driver: &dyn Driver,
    planned: &[PlannedCopy],
) -> ApiResult<(CutReport, Instantness)> {
    let Some(machine) = daemon.vmm.machine(vm) else {
        return Ok((each(driver, planned).await?, Instantness::Storage));
    };
    let intent = Plan::Hold { vm: vm.to_string() }.write(daemon)?;
    let since = Instant::now();
    match vmm::power::hold(&machine).await {
        Ok(true) => {
            let report = each(driver, planned).await;
            // Whatever became of the cut, the guest goes on first.
            let_go(daemon, &machine, &intent).await;
            let held_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            Ok((report?, Instantness::Held { held_us }))
        }
        Ok(false) => {
            intents::clear(daemon, &intent)?;
            Ok((each(driver, planned).await?, Instantness::Storage))
        }
        Err(error) => {
            let_go(daemon, &machine, &intent).await;
            Err(error)
        }
    }
}

async fn each(driver: &dyn Driver, planned: &[PlannedCopy]) -> ApiResult<CutReport> {
    let mut total = CutReport::default();
    for copy in planned {
        let report = copy_volumes(driver, std::slice::from_ref(copy), true).await.map_err(driver_error)?;
        total.moved += report.moved;
        total.total_us += report.total_us;
    }
    Ok(total)
}

/// A machine that does not go on now does at the next start: the intent stays.
async fn let_go(daemon: &Daemon, machine: &Running, intent: &str) {
    let gone_on = vmm::power::release(machine).await;
    if let Err(error) = gone_on.and_then(|()| intents::clear(daemon, intent)) {
        tracing::error!(vm = %machine.uuid, %error, "a machine that was held for a snapshot does not go on");
    }
}

/// For a machine that an earlier life of the daemon held.
pub async fn release_leftover(daemon: &Arc<Daemon>, vm: &Ref, intent: &str) {
    match daemon.vmm.machine(vm) {
        Some(machine) => let_go(daemon, &machine, intent).await,
        None => {
            if let Err(error) = intents::clear(daemon, intent) {
                tracing::error!(%error, "the end of a held machine could not be recorded");
            }
        }
    }
}
