//! Brings logs and volumes to where nothing more can be given back. See the page above this module.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tanada_driver::{Driver, Moved};
use tanada_xapi::{ApiResult, Ref};
use uuid::Uuid;

use super::bitmap::Bitmap;
use super::logs::{Log, Logs};
use crate::context::Daemon;
use crate::db::{Record, View};
use crate::ops::sr::space_comes_back;
use crate::storage::{driver_error, volume_id};

/// A VDI, as far as this matters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    volume: Uuid,
    /// For a snapshot: reference of the disk that it was taken of.
    snapshot_of: Option<String>,
    /// In seconds since 1970.
    taken: i64,
    has_data: bool,
}

impl Disk {
    fn of(vdi: &Record) -> Option<Disk> {
        Some(Disk {
            volume: volume_id(vdi.str("location")).ok()?,
            snapshot_of: vdi.bool("is_a_snapshot").then(|| vdi.reference("snapshot_of").to_string()),
            taken: vdi.datetime("snapshot_time").unix(),
            has_data: vdi.str("type") != super::METADATA_TYPE,
        })
    }
}

/// What may have become possible: the logs that are gone through.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    pub all: bool,
    /// References of disks whose snapshots came, went or changed.
    pub disks: BTreeSet<String>,
    pub volumes: BTreeSet<Uuid>,
}

impl Touched {
    /// This VDI came, went or changed.
    pub fn add(&mut self, vdi: &Record) {
        self.disks.extend([vdi.id().to_string(), vdi.reference("snapshot_of").to_string()]);
        self.volumes.extend(volume_id(vdi.str("location")));
    }

    pub fn concerns(&self, log: &Log) -> bool {
        self.all
            || self.disks.contains(&log.disk)
            || self.volumes.contains(&log.volume)
            || self.volumes.contains(&log.next)
    }
}

/// What is to be done next with the logs of an SR.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The VDI has its data after all: what was begun did not come to pass.
    Disregard(Uuid),
    /// Nobody refers to the log: its volume goes, if it is still there, and the log.
    Drop(Uuid),
    /// There is a later snapshot: what changed until then is written down, and the volume goes.
    Resolve { log: Log, next: Uuid },
    /// The log is nobody's VDI any more: those that lead to it lead further.
    Bypass(Log),
}

impl Step {
    fn volume(&self) -> Uuid {
        match self {
            Step::Disregard(volume) | Step::Drop(volume) => *volume,
            Step::Resolve { log, .. } | Step::Bypass(log) => log.volume,
        }
    }
}

/// `skipped` are logs whose step failed already in this round. `disks` are those that the touched logs have to do with.
fn next_step(logs: &BTreeMap<Uuid, Log>, disks: &[Disk], skipped: &BTreeSet<Uuid>, touched: &Touched) -> Option<Step> {
    let led_to: BTreeSet<Uuid> = logs.values().filter(|log| !log.is_pending()).map(|log| log.next).collect();
    for log in logs.values().filter(|log| touched.concerns(log) && !skipped.contains(&log.volume)) {
        let owner = disks.iter().find(|disk| disk.volume == log.volume);
        if owner.is_some_and(|owner| owner.has_data) {
            return Some(Step::Disregard(log.volume));
        }
        if owner.is_none() && !led_to.contains(&log.volume) {
            return Some(Step::Drop(log.volume));
        }
        if log.is_pending() {
            if let Some(next) = later(log, logs, disks) {
                return Some(Step::Resolve { log: log.clone(), next });
            }
        } else if owner.is_none() {
            return Some(Step::Bypass(log.clone()));
        }
    }
    None
}

/// The first snapshot of the same disk after this one whose volume is there.
fn later(log: &Log, logs: &BTreeMap<Uuid, Log>, disks: &[Disk]) -> Option<Uuid> {
    let is_there = |disk: &Disk| disk.has_data || logs.get(&disk.volume).is_some_and(Log::is_pending);
    let same = disks.iter().filter(|disk| {
        disk.snapshot_of.as_deref() == Some(log.disk.as_str()) && disk.volume != log.volume && is_there(disk)
    });
    // Of two taken in one second either will do: what is told may be too much by what lies between them, never too little.
    let later = same.filter(|disk| disk.taken >= log.taken);
    later.min_by_key(|disk| (disk.taken, disk.volume)).map(|disk| disk.volume)
}

/// Does everything that can be done now with the touched logs; what fails is left for the next time. The caller holds
/// [`Logs::turn`] for writing.
pub async fn settle(daemon: &Arc<Daemon>, sr: Uuid, mut touched: Touched) {
    let logs = &daemon.cbt;
    let Some(record) = daemon.db.read(|state| state.find_by_uuid("SR", &sr.to_string())) else { return };
    let Ok(driver) = daemon.storage.driver(record.id()) else { return };
    touched.all |= logs.take_left(sr);
    let done_with = logs.done_with(sr);
    let (mut given_back, mut well) = (false, true);
    if !done_with.is_empty() {
        let disks = daemon.db.read(|state| disks_at(state, record.id(), &done_with));
        (given_back, well) = destroy_done(logs, sr, driver.as_ref(), done_with, &disks).await;
    }
    let mut skipped = BTreeSet::new();
    loop {
        let known = logs.of(sr);
        let disks = daemon.db.read(|state| disks_of(state, record.id(), known.values(), &touched));
        let Some(step) = next_step(&known, &disks, &skipped, &touched) else { break };
        let volume = step.volume();
        // What this log led to may be of no more use, and what led to it may lead further.
        touched.volumes.insert(volume);
        touched.volumes.extend(known.get(&volume).map(|log| log.next));
        match carry_out(logs, sr, driver.as_ref(), step).await {
            Ok(gone) => given_back |= gone,
            Err(error) => {
                tracing::warn!(sr = record.uuid(), %volume, %error, "a log of changed blocks stays as it is for now");
                skipped.insert(volume);
            }
        }
    }
    if !well || !skipped.is_empty() {
        logs.leave(sr);
    }
    if given_back {
        space_comes_back(daemon, record.id());
    }
}

/// The VDIs that the touched logs have to do with: their owners, and the snapshots of their disks.
fn disks_of<'a>(
    view: &impl View,
    sr: &Ref,
    logs: impl Iterator<Item = &'a Log> + Clone,
    touched: &Touched,
) -> Vec<Disk> {
    let logs = logs.filter(|log| touched.concerns(log));
    let families: BTreeSet<&str> = logs.clone().map(|log| log.disk.as_str()).collect();
    let snapshots = families.into_iter().flat_map(|disk| view.having("VDI", "snapshot_of", disk));
    let snapshots = snapshots.filter(|vdi| vdi.reference("SR") == *sr).filter_map(|vdi| Disk::of(&vdi));
    let owners: Vec<Uuid> = logs.map(|log| log.volume).collect();
    let all: BTreeMap<Uuid, Disk> =
        snapshots.chain(disks_at(view, sr, &owners)).map(|disk| (disk.volume, disk)).collect();
    all.into_values().collect()
}

/// The VDIs that have these volumes.
fn disks_at(view: &impl View, sr: &Ref, volumes: &[Uuid]) -> Vec<Disk> {
    let vdis = volumes.iter().flat_map(|volume| view.having("VDI", "location", &volume.to_string()));
    vdis.filter(|vdi| vdi.reference("SR") == *sr).filter_map(|vdi| Disk::of(&vdi)).collect()
}

/// Destroys the volumes whose changes are written down: what an earlier life or a failing storage left. Whether one went, and
/// whether all did.
async fn destroy_done(logs: &Logs, sr: Uuid, driver: &dyn Driver, volumes: Vec<Uuid>, disks: &[Disk]) -> (bool, bool) {
    let (mut given_back, mut well) = (false, true);
    for volume in volumes {
        let has_data = disks.iter().any(|disk| disk.volume == volume && disk.has_data);
        match if has_data { Ok(Moved::default()) } else { driver.destroy(volume).await } {
            Ok(moved) => {
                logs.is_gone(sr, volume);
                given_back |= moved.changed;
            }
            Err(error) => {
                tracing::warn!(%sr, %volume, %error, "a volume whose data is destroyed stays for now");
                well = false;
            }
        }
    }
    (given_back, well)
}

/// True where a volume went.
async fn carry_out(logs: &Logs, sr: Uuid, driver: &dyn Driver, step: Step) -> ApiResult<bool> {
    match step {
        Step::Disregard(volume) => logs.remove(sr, volume).map(|()| false),
        Step::Drop(volume) => {
            let moved = driver.destroy(volume).await.map_err(driver_error)?;
            logs.remove(sr, volume)?;
            Ok(moved.changed)
        }
        Step::Resolve { log, next } => {
            let extents = driver.difference(log.volume, next).await.map_err(driver_error)?;
            let volume = log.volume;
            logs.save(sr, &Log { next, ..log }, &Bitmap::of(&extents)?)?;
            // Once the changes are written down; where this fails it is done again later, also by the next process.
            let moved = driver.destroy(volume).await.map_err(driver_error)?;
            logs.is_gone(sr, volume);
            Ok(moved.changed)
        }
        Step::Bypass(passed) => {
            let onward = logs.bitmap(sr, passed.volume)?;
            let before = logs.of(sr).into_values();
            for log in before.filter(|log| log.next == passed.volume && log.volume != passed.volume) {
                let mut changed = logs.bitmap(sr, log.volume)?;
                changed.join(&onward);
                logs.save(sr, &Log { next: passed.next, ..log }, &changed)?;
            }
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{Disk, Log, Step, Touched, next_step};
    use uuid::Uuid;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn log(volume: u128, taken: i64, next: u128) -> Log {
        Log { volume: id(volume), disk: "d".into(), taken, next: id(next) }
    }

    fn snapshot(volume: u128, taken: i64, has_data: bool) -> Disk {
        Disk { volume: id(volume), snapshot_of: Some("d".into()), taken, has_data }
    }

    fn step(logs: &[Log], disks: &[Disk]) -> Option<Step> {
        let logs: BTreeMap<Uuid, Log> = logs.iter().map(|log| (log.volume, log.clone())).collect();
        let all = Touched { all: true, ..Touched::default() };
        let step = next_step(&logs, disks, &BTreeSet::new(), &all);
        // It is found by what was touched alone, too, and by nothing else.
        let volume = step.as_ref().map(Step::volume);
        let one = Touched { volumes: volume.into_iter().collect(), ..Touched::default() };
        assert_eq!(next_step(&logs, disks, &BTreeSet::new(), &one), step);
        step
    }

    #[test]
    fn the_newest_snapshot_waits_for_a_later_one() {
        let waiting = log(1, 10, 1);
        let earlier = snapshot(9, 5, true);
        let other_disk = Disk { snapshot_of: Some("e".into()), ..snapshot(8, 15, true) };
        let head = Disk { snapshot_of: None, ..snapshot(7, 0, true) };
        let mut disks = vec![snapshot(1, 10, false), earlier, other_disk, head];
        assert_eq!(step(std::slice::from_ref(&waiting), &disks), None);
        disks.extend([snapshot(3, 30, true), snapshot(2, 20, true)]);
        assert_eq!(step(std::slice::from_ref(&waiting), &disks), Some(Step::Resolve { log: waiting, next: id(2) }));
    }

    #[test]
    fn one_that_waits_itself_will_do_and_one_that_is_gone_will_not() {
        let disks = [snapshot(1, 10, false), snapshot(2, 20, false), snapshot(3, 30, true)];
        let (first, waiting) = (log(1, 10, 1), log(2, 20, 2));
        assert_eq!(step(&[first.clone(), waiting], &disks), Some(Step::Resolve { log: first.clone(), next: id(2) }));
        assert_eq!(step(&[first.clone(), log(2, 20, 3)], &disks), Some(Step::Resolve { log: first, next: id(3) }));
    }

    #[test]
    fn a_destroyed_snapshot_is_kept_as_long_as_a_log_leads_to_it() {
        // 1 leads to 2, whose VDI is gone, and there is no later snapshot.
        let disks = [snapshot(1, 10, false)];
        assert_eq!(step(&[log(1, 10, 2), log(2, 20, 2)], &disks), None);
        let later = [snapshot(1, 10, false), snapshot(3, 30, true)];
        let kept = log(2, 20, 2);
        assert_eq!(
            step(&[log(1, 10, 2), kept.clone()], &later),
            Some(Step::Resolve { log: kept.clone(), next: id(3) })
        );
        assert_eq!(step(&[log(1, 10, 2), log(2, 20, 3)], &later), Some(Step::Bypass(log(2, 20, 3))));
        assert_eq!(step(&[log(1, 10, 3), log(2, 20, 3)], &later), Some(Step::Drop(id(2))));
        assert_eq!(step(&[log(1, 10, 3)], &later), None);
    }

    #[test]
    fn what_did_not_come_to_pass_is_disregarded() {
        assert_eq!(step(&[log(1, 10, 1)], &[snapshot(1, 10, true)]), Some(Step::Disregard(id(1))));
    }
}
