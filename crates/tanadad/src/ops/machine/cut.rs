//! The instant of a snapshot.
//!
//! | the machine | its disks | how they are cut |
//! |---|---|---|
//! | anything | on one storage that can cut them together | by the storage, at one point in the order of writes |
//! | does not run | otherwise | one part after the other: nobody writes |
//! | runs | otherwise | held (its requests are finished first), cut part by part, let go |
//!
//! The last case is told in the snapshot's `snapshot_info` and in its message: the guest stood still. That a machine is
//! held is written down before, so that one that a crash leaves so goes on at the next start.

use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// The disks of a machine that are on one SR.
#[derive(Clone)]
pub struct Part {
    pub sr: Ref,
    pub driver: Arc<dyn Driver>,
    pub planned: Vec<PlannedCopy>,
}

/// What a cut came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutDone {
    /// Of all parts together.
    pub report: CutReport,
    pub instantness: Instantness,
    /// When each part was done, after the first.
    pub after: Vec<Duration>,
}

/// Cuts all disks at one instant, or says why not; what was made of the others is then the caller's to undo.
pub async fn cut(daemon: &Arc<Daemon>, vm: &Ref, parts: &[Part]) -> ApiResult<CutDone> {
    let [part] = parts else {
        if parts.is_empty() {
            let (report, instantness) = (CutReport::default(), Instantness::Storage);
            return Ok(CutDone { report, instantness, after: Vec::new() });
        }
        tracing::info!(%vm, srs = parts.len(), "the disks are on several SRs; they are cut one SR after the other");
        return part_by_part(daemon, vm, parts, true).await;
    };
    let began = Instant::now();
    match copy_volumes(part.driver.as_ref(), &part.planned, true).await {
        Ok(report) => {
            daemon.pace.record(part.sr.as_str(), began.elapsed());
            Ok(CutDone { report, instantness: Instantness::Storage, after: vec![Duration::ZERO] })
        }
        Err(error) if error.kind == DriverErrorKind::NotAtomic => {
            tracing::info!(%vm, %error, "the storage cannot cut these disks together; they are cut one by one");
            part_by_part(daemon, vm, parts, false).await
        }
        Err(error) => Err(driver_error(error)),
    }
}

async fn part_by_part(daemon: &Arc<Daemon>, vm: &Ref, parts: &[Part], together: bool) -> ApiResult<CutDone> {
    let done = |(report, after), instantness| CutDone { report, instantness, after };
    let Some(machine) = daemon.vmm.machine(vm) else {
        return Ok(done(each(daemon, parts, together).await?, Instantness::Storage));
    };
    let intent = Plan::Hold { vm: vm.to_string() }.write(daemon)?;
    let since = Instant::now();
    match vmm::power::hold(&machine).await {
        Ok(true) => {
            let cut = each(daemon, parts, together).await;
            // Whatever became of the cut, the guest goes on first.
            let_go(daemon, &machine, &intent).await;
            let held_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            Ok(done(cut?, Instantness::Held { held_us }))
        }
        Ok(false) => {
            intents::clear(daemon, &intent)?;
            Ok(done(each(daemon, parts, together).await?, Instantness::Storage))
        }
        Err(error) => {
            let_go(daemon, &machine, &intent).await;
            Err(error)
        }
    }
}

/// Every part in turn; the disks of a part at once where that is known to be possible, or not known yet.
async fn each(daemon: &Daemon, parts: &[Part], together: bool) -> ApiResult<(CutReport, Vec<Duration>)> {
    let (mut total, mut ends) = (CutReport::default(), Vec::new());
    for part in parts {
        let began = Instant::now();
        let at_once =
            if together { copy_volumes(part.driver.as_ref(), &part.planned, true).await.map(Some) } else { Ok(None) };
        match at_once {
            Ok(Some(report)) => add(&mut total, report),
            Ok(None) => one_by_one(part, &mut total).await?,
            Err(error) if error.kind == DriverErrorKind::NotAtomic => one_by_one(part, &mut total).await?,
            Err(error) => return Err(driver_error(error)),
        }
        daemon.pace.record(part.sr.as_str(), began.elapsed());
        ends.push(Instant::now());
    }
    let first = ends.first().copied();
    let after = ends.into_iter().map(|end| first.map_or(Duration::ZERO, |first| end.duration_since(first))).collect();
    Ok((total, after))
}

async fn one_by_one(part: &Part, total: &mut CutReport) -> ApiResult<()> {
    for copy in &part.planned {
        let report = copy_volumes(part.driver.as_ref(), std::slice::from_ref(copy), true).await;
        add(total, report.map_err(driver_error)?);
    }
    Ok(())
}

fn add(total: &mut CutReport, report: CutReport) {
    total.moved += report.moved;
    total.total_us += report.total_us;
    total.slowest_write_us = total.slowest_write_us.max(report.slowest_write_us);
    total.writes_observed += report.writes_observed;
}

/// A machine that does not go on now does a little later: the intent stays.
async fn let_go(daemon: &Daemon, machine: &Running, intent: &str) {
    let gone_on = vmm::power::release(machine).await;
    if let Err(error) = gone_on.and_then(|()| intents::clear(daemon, intent)) {
        tracing::error!(vm = %machine.uuid, %error, "a machine that was held for a snapshot does not go on");
        daemon.left.add(intent);
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
