//! A plan becomes true: the storage first, then the records.

use std::sync::Arc;

use tanada_driver::{CloneRequest, Driver, DriverError, DriverErrorKind, Moved};
use tanada_xapi::{ApiError, ApiResult, Ref};
use uuid::Uuid;

use super::super::copy;
use super::super::snapshot::{copy_media, disks_of};
use super::plan::{self, UNFINISHED_KEY};
use super::{hold, restored};
use crate::context::{CallContext, Daemon};
use crate::db::{Record, Tx, View};
use crate::ops::intents::{self, CloneDisk, Plan, RevertPlan, SwitchDisk};
use crate::ops::records::{message, moved_text};
use crate::ops::sr::{sizes_changed, space_comes_back};
use crate::ops::vdi::{PlannedCopy, destroy_disk};
use crate::storage::driver_error;
use crate::vmm::records::LAST_STOP_KEY;

/// Why a plan did not become true.
struct Failed {
    error: ApiError,
    /// A disk may have gone back in place.
    touched: bool,
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Failed {
        Failed { error, touched: false }
    }
}

/// Writes the plan down and carries it out, or nothing is left of it but what went back in place.
pub async fn at_once(daemon: &Arc<Daemon>, plan: &RevertPlan) -> ApiResult<Moved> {
    let intent = plan::write(daemon, plan)?;
    match carry_out(daemon, plan, &intent).await {
        Ok(moved) => Ok(moved),
        Err(failed) => {
            give_up(daemon, plan, &intent, failed.touched).await;
            Err(failed.error)
        }
    }
}

/// Ends a plan of an earlier life. What cannot be carried out is given up, unless an SR is away or disks go back in place:
/// then it is tried again, and the mark keeps the machine from being started meanwhile.
pub async fn end(daemon: &Arc<Daemon>, plan: &RevertPlan, intent: &str) -> ApiResult<()> {
    let there = |id: &str| daemon.db.read(|state| state.find("VM", &Ref::from(id)).is_some());
    if !there(&plan.vm) || !there(&plan.snapshot) {
        give_up(daemon, plan, intent, true).await;
        return Ok(());
    }
    for sr in srs(plan) {
        daemon.storage.driver(&sr)?;
    }
    let held = hold(&CallContext::internal(daemon), plan);
    let done = match &held {
        Ok(_) => carry_out(daemon, plan, intent).await,
        Err(error) => Err(Failed::from(error.clone())),
    };
    match done {
        Ok(_) => Ok(()),
        Err(failed) if plan.in_place.is_empty() => {
            tracing::warn!(vm = plan.vm, error = %failed.error, "a revert that was under way is given up");
            give_up(daemon, plan, intent, false).await;
            Ok(())
        }
        Err(failed) => Err(failed.error),
    }
}

fn driver_of(daemon: &Daemon, sr: &str) -> ApiResult<Arc<dyn Driver>> {
    daemon.storage.driver(&Ref::from(sr))
}

fn srs(plan: &RevertPlan) -> Vec<Ref> {
    let named = plan.in_place.iter().map(|disk| &disk.sr).chain(plan.clones().map(|disk| &disk.sr));
    let mut srs: Vec<Ref> = named.map(|sr| Ref::from(sr.as_str())).collect();
    srs.sort();
    srs.dedup();
    srs
}

/// Does what the plan says, the storage first, then the records. May be repeated.
async fn carry_out(daemon: &Arc<Daemon>, plan: &RevertPlan, intent: &str) -> Result<Moved, Failed> {
    let mut moved = Moved::default();
    // What may lack room comes before what cannot be taken back.
    for disk in plan.clones() {
        let request = clone_request(daemon, plan, disk);
        moved += driver_of(daemon, &disk.sr)?.clone_volume(&request).await.map_err(driver_error)?;
    }
    let mut touched = false;
    for disk in &plan.in_place {
        let driver = driver_of(daemon, &disk.sr).map_err(|error| Failed { error, touched })?;
        match again_if_unreachable(|| driver.revert(disk.volume, disk.generation)).await {
            Ok(more) => moved += more,
            Err(error) => {
                let touched = touched || !is_refusal(error.kind);
                return Err(Failed { error: driver_error(error), touched });
            }
        }
        touched = true;
    }
    let written = daemon.db.write(|tx| {
        let ended = Ended { replaced: records(tx, plan, moved)?, left: leave_old(tx, plan)? };
        tx.clear_intent(intent);
        Ok(ended)
    });
    tidy_up(daemon, plan, written.map_err(|error| Failed { error, touched })?).await;
    Ok(moved)
}

/// Errors that say that nothing was done.
fn is_refusal(kind: DriverErrorKind) -> bool {
    use DriverErrorKind::{Busy, InvalidArgument, NotFound, Unsupported};
    matches!(kind, NotFound | Busy | Unsupported | InvalidArgument)
}

fn clone_request(daemon: &Daemon, plan: &RevertPlan, disk: &CloneDisk) -> CloneRequest {
    let first = plan.disk_clones().find(|other| other.sr == disk.sr).map(|first| first.volume);
    let (machine, source) = daemon.db.read(|state| {
        (state.find("VM", &Ref::from(plan.vm.as_str())), state.find("VDI", &Ref::from(disk.snapshot_vdi.as_str())))
    });
    CloneRequest {
        near: first.filter(|first| *first != disk.volume),
        vm: machine.and_then(|machine| machine.uuid().parse().ok()),
        name_label: source.map(|source| source.str("name_label").to_owned()).unwrap_or_default(),
        ..CloneRequest::new(disk.generation, disk.volume)
    }
}

/// What has to go when the records have changed.
struct Ended {
    /// VDIs that new ones stand in for.
    replaced: Vec<Ref>,
    /// Intents for the volumes that VDIs had before.
    left: Vec<(Ref, Uuid, String)>,
}

/// The volumes that no VDI names any more.
fn leave_old(tx: &mut Tx<'_>, plan: &RevertPlan) -> ApiResult<Vec<(Ref, Uuid, String)>> {
    let leave = |disk: &SwitchDisk| {
        let sr = disk.clone.sr.clone();
        let intent = Plan::Create { sr: sr.clone(), volumes: vec![disk.old] }.put(tx)?;
        Ok((Ref::from(sr.as_str()), disk.old, intent))
    };
    plan.switched.iter().map(leave).collect()
}

/// After the records have changed; what cannot be done now is done later.
async fn tidy_up(daemon: &Arc<Daemon>, plan: &RevertPlan, ended: Ended) {
    for (sr, volume, intent) in &ended.left {
        intents::give_up(daemon, sr, &[*volume], intent).await;
    }
    for vdi in &ended.replaced {
        if let Err(error) = destroy_disk(daemon, vdi).await {
            tracing::warn!(%vdi, %error, "a disk that a revert replaced could not be destroyed; it stays on its SR");
        }
    }
    for sr in srs(plan) {
        sizes_changed(daemon, &sr).await;
    }
    for (sr, ..) in &ended.left {
        space_comes_back(daemon, sr);
    }
}

/// A verb whose fate is unknown is repeated once.
async fn again_if_unreachable<T, F>(verb: impl Fn() -> F) -> Result<T, DriverError>
where
    F: Future<Output = Result<T, DriverError>>,
{
    match verb().await {
        Err(error) if error.kind == DriverErrorKind::Unreachable => verb().await,
        result => result,
    }
}

/// The machine's records as they were at the snapshot; answers the VDIs that are replaced and have to go.
fn records(tx: &mut Tx<'_>, plan: &RevertPlan, moved: Moved) -> ApiResult<Vec<Ref>> {
    let (vm, snapshot) = (Ref::from(plan.vm.as_str()), Ref::from(plan.snapshot.as_str()));
    let kept = tx.get("VM", &snapshot)?;
    let machine = tx.get("VM", &vm)?;
    let mut disks: Vec<(Ref, Ref)> = Vec::new();
    let mut replaced = Vec::new();
    for disk in &plan.switched {
        let (now, then) = (Ref::from(disk.vdi.as_str()), Ref::from(disk.clone.snapshot_vdi.as_str()));
        let size = tx.get("VDI", &then)?.int("virtual_size");
        tx.set("VDI", &now, "virtual_size", size)?;
        tx.set("VDI", &now, "location", disk.clone.volume.to_string())?;
        disks.push((then, now));
    }
    for disk in &plan.in_place {
        let (now, then) = (Ref::from(disk.vdi.as_str()), Ref::from(disk.snapshot_vdi.as_str()));
        let size = tx.get("VDI", &then)?.int("virtual_size");
        tx.set("VDI", &now, "virtual_size", size)?;
        disks.push((then, now));
    }
    for disk in &plan.cloned {
        let then = Ref::from(disk.snapshot_vdi.as_str());
        let source = tx.get("VDI", &then)?;
        let copy = PlannedCopy { source: source.clone(), source_volume: disk.generation, volume: disk.volume };
        let now = copy.record(tx, false)?;
        let old = source.reference("snapshot_of");
        let had = tx.resolve("VBD", &machine.refs("VBDs")).iter().any(|vbd| vbd.reference("VDI") == old);
        if had && tx.find("VDI", &old).is_some() {
            replaced.push(old.clone());
        }
        for sibling in tx.having("VDI", "snapshot_of", old.as_str()) {
            tx.set("VDI", sibling.id(), "snapshot_of", &now)?;
        }
        disks.push((then, now));
    }
    for (field, value) in restored(&kept) {
        tx.set("VM", &vm, &field, value)?;
    }
    // The machine's disks are worth what the snapshot's are, whatever came before.
    match kept.entry("other_config", LAST_STOP_KEY) {
        Some(worth) => tx.put_entry("VM", &vm, "other_config", LAST_STOP_KEY, worth.to_owned())?,
        None => tx.remove_entry("VM", &vm, "other_config", LAST_STOP_KEY)?,
    }
    tx.set("VM", &vm, "ha_always_run", false)?;
    tx.set("VM", &vm, "generation_id", copy::generation_id())?;
    tx.set("VM", &vm, "parent", &snapshot)?;
    devices(tx, &machine, &kept, &vm, &disks)?;
    if let Some(image) = &plan.memory {
        asleep(tx, &vm, image)?;
    }
    let uuid = machine.uuid().to_owned();
    message(tx, "VM_SNAPSHOT_REVERTED", 5, "VM", &uuid, &moved_text(moved))?;
    Ok(replaced)
}

/// The snapshot's devices instead of the machine's, over the machine's disks.
fn devices(tx: &mut Tx<'_>, machine: &Record, snapshot: &Record, vm: &Ref, disks: &[(Ref, Ref)]) -> ApiResult<()> {
    for vbd in machine.refs("VBDs") {
        tx.destroy("VBD", &vbd)?;
    }
    for vif in machine.refs("VIFs") {
        tx.destroy("VIF", &vif)?;
    }
    for vbd in tx.resolve("VBD", &snapshot.refs("VBDs")).iter().filter(|vbd| vbd.str("type") == "Disk") {
        let then = vbd.reference("VDI");
        if let Some((_, now)) = disks.iter().find(|(old, _)| *old == then) {
            copy::vbd(tx, vbd, vm, now)?;
        }
    }
    copy_media(tx, snapshot, vm)?;
    copy::vifs(tx, snapshot, vm, true)
}

/// The machine sleeps with a copy of the checkpoint's memory, its devices attached.
fn asleep(tx: &mut Tx<'_>, vm: &Ref, image: &CloneDisk) -> ApiResult<()> {
    let source = tx.get("VDI", &Ref::from(image.snapshot_vdi.as_str()))?;
    let copy = PlannedCopy { source, source_volume: image.generation, volume: image.volume }.record(tx, false)?;
    tx.set("VM", vm, "suspend_VDI", &copy)?;
    tx.set("VM", vm, "power_state", "Suspended")?;
    for (class, field) in [("VBD", "VBDs"), ("VIF", "VIFs")] {
        for device in tx.get("VM", vm)?.refs(field) {
            tx.set(class, &device, "currently_attached", true)?;
        }
    }
    Ok(())
}

/// After a failure: the clones go, the plan is struck off; so is its mark, unless disks may be of two instants.
async fn give_up(daemon: &Daemon, plan: &RevertPlan, intent: &str, touched: bool) {
    let vm = Ref::from(plan.vm.as_str());
    let struck = daemon.db.write(|tx| {
        let mixed = touched && disks_of(tx, &vm, &[]).is_ok_and(|disks| disks.len() > 1);
        if !mixed && !plan.in_place.is_empty() && !plan.marked_before && tx.find("VM", &vm).is_some() {
            tx.remove_entry("VM", &vm, "other_config", UNFINISHED_KEY)?;
        }
        plan::strike(tx, plan, intent)
    });
    let undo = match struck {
        Ok(undo) => undo,
        Err(error) => return tracing::error!(%error, "the end of a failed revert could not be recorded"),
    };
    for (disk, undo) in plan.clones().zip(&undo) {
        intents::give_up(daemon, &Ref::from(disk.sr.as_str()), &[disk.volume], undo).await;
    }
}
