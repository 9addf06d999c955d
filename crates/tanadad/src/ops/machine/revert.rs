//! `VM.revert`: a machine goes back to one of its snapshots.
//!
//! The plan is written down first: which disks go back in place (their VDIs stay the same) and which are made anew as
//! clones of the snapshot's, because the disk is gone or the storage cannot revert. The memory of a checkpoint is always
//! cloned: the machine is suspended with the copy, the checkpoint keeps its own. Carrying it out may be repeated, so
//! a crash in the middle is finished at the next start. After a failure the machine is halted, its records are as they
//! were; disks that went back already stay so, and the call may be repeated.

use std::sync::Arc;

use futures_util::FutureExt;
use tanada_driver::{CloneRequest, Driver, DriverError, DriverErrorKind, Moved};
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value, json};
use uuid::Uuid;

use super::copy;
use super::snapshot::{copy_media, disks_of};
use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::{Record, Tx, View};
use crate::ops::allowed;
use crate::ops::intents::{CloneDisk, Plan, RevertDisk, RevertPlan};
use crate::ops::records::{message, moved_text};
use crate::ops::sr::sizes_changed;
use crate::ops::vdi::{PlannedCopy, destroy_disk};
use crate::storage::{driver_error, is_attached, volume_id};
use crate::vmm::records::LAST_STOP_KEY;

pub fn handlers() -> Handlers {
    vec![("VM.revert", |ctx, args| revert(ctx, args).boxed())]
}

/// Fields that a revert leaves as they are now.
const KEPT: &[&str] = &[
    "uuid",
    "allowed_operations",
    "current_operations",
    "suspend_VDI",
    "power_state",
    "parent",
    "children",
    "metrics",
    "guest_metrics",
    "resident_on",
    "scheduled_to_be_resident_on",
    "domid",
    "protection_policy",
    "snapshot_schedule",
    "snapshots",
    "tags",
    "affinity",
    "consoles",
    "VBDs",
    "VIFs",
    "VGPUs",
    "VUSBs",
    "VTPMs",
    "attached_PCIs",
    "crash_dumps",
    "blobs",
    "appliance",
    "generation_id",
    "ha_always_run",
    "snapshot_metadata",
    "last_booted_record",
    "requires_reboot",
    "pending_guidances",
    "pending_guidances_recommended",
    "pending_guidances_full",
];

/// Beside those, for a snapshot that does not know its machine's record.
const KEPT_WITHOUT_METADATA: &[&str] = &[
    "name_label",
    "is_a_template",
    "is_a_snapshot",
    "is_default_template",
    "snapshot_of",
    "snapshot_time",
    "snapshot_info",
    "transportable_snapshot_id",
    "is_vmss_snapshot",
    "is_snapshot_from_vmpp",
];

async fn revert(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let snapshot = args.reference("snapshot")?;
    ctx.task.forbid_cancel();
    let record = ctx.db().read(|state| state.get("VM", &snapshot))?;
    let _snapshot_mark = ctx.begin("VM", &snapshot, "revert", |tx| allowed::vm(tx, &snapshot, "revert"))?;
    let vm = record.reference("snapshot_of");
    if ctx.db().read(|state| state.find("VM", &vm)).is_none() {
        ctx.db().write(|tx| revive(tx, &record, &vm))?;
    }
    let _vm_mark = ctx.begin("VM", &vm, "reverting", |tx| allowed::vm(tx, &vm, "reverting"))?;
    let plan = plan(&ctx.daemon, &vm, &snapshot)?;
    let machine = ctx.db().read(|state| state.get("VM", &vm))?;
    if machine.str("power_state") != "Halted" {
        crate::vmm::power::force_off(&ctx.daemon, &vm).await?;
    }
    for disk in &plan.in_place {
        if is_attached(&ctx.daemon, &Ref::from(disk.vdi.as_str())) {
            return Err(ApiError::vdi_in_use(&disk.vdi, "revert"));
        }
    }
    ctx.task.progress(0.1);
    let intent = Plan::Revert(plan.clone()).write(&ctx.daemon)?;
    match carry_out(&ctx.daemon, &plan, &intent).await {
        Ok(moved) => {
            ctx.task.moved(moved);
            Ok(Value::Void)
        }
        Err(error) => {
            give_up(&ctx.daemon, &plan, &intent).await;
            Err(revert_error(error, &snapshot, &vm))
        }
    }
}

/// Only what tells the user to make room passes as it is.
fn revert_error(error: ApiError, snapshot: &Ref, vm: &Ref) -> ApiError {
    tracing::warn!(%snapshot, %vm, %error, "a machine could not be reverted");
    match error.code.as_ref() {
        "SR_BACKEND_FAILURE_44" | "SR_BACKEND_FAILURE_109" | "VDI_INCOMPATIBLE_TYPE" => error,
        _ => ApiError::vm_revert_failed(snapshot, vm),
    }
}

/// Makes a machine that was destroyed again, under its old reference, so that its snapshots find it.
fn revive(tx: &mut Tx<'_>, snapshot: &Record, vm: &Ref) -> ApiResult<()> {
    if vm.is_null() {
        return Err(ApiError::handle_invalid("VM", vm));
    }
    let mut fields = restored(snapshot);
    let known = metadata(snapshot).unwrap_or_default();
    if let Some(uuid) = known.get("uuid").and_then(Value::as_str)
        && tx.find_by_uuid("VM", uuid).is_none()
    {
        fields.insert("uuid".into(), Value::from(uuid));
    }
    fields.insert("domid".into(), Value::from(-1));
    let metrics = tx.create("VM_metrics", Vec::<(&str, Value)>::new())?;
    fields.insert("metrics".into(), Value::from(metrics));
    if !fields.contains_key("name_label") {
        fields.insert("name_label".into(), Value::from(snapshot.str("name_label")));
    }
    tx.create_as("VM", vm.clone(), fields)?;
    Ok(())
}

fn metadata(snapshot: &Record) -> Option<Map> {
    let text = snapshot.str("snapshot_metadata");
    let parsed = serde_json::from_str(text).ok().map(json::from_json)?;
    parsed.as_map().cloned()
}

/// The fields that the machine gets back.
fn restored(snapshot: &Record) -> Map {
    let (mut fields, without) = match metadata(snapshot) {
        Some(fields) => (fields, &[] as &[&str]),
        None => (snapshot.to_map(), KEPT_WITHOUT_METADATA),
    };
    let known = |field: &str| snapshot.class().field(field).is_some();
    fields.retain(|field, _| known(field) && !KEPT.contains(&field.as_str()) && !without.contains(&field.as_str()));
    fields
}

/// Which disk goes back how.
fn plan(daemon: &Daemon, vm: &Ref, snapshot: &Ref) -> ApiResult<RevertPlan> {
    let (current, kept) =
        daemon.db.read(|state| Ok::<_, ApiError>((disks_of(state, vm, &[])?, disks_of(state, snapshot, &[])?)))?;
    let mut plan = RevertPlan {
        vm: vm.to_string(),
        snapshot: snapshot.to_string(),
        in_place: Vec::new(),
        cloned: Vec::new(),
        memory: memory(daemon, snapshot)?,
    };
    for disk in kept {
        let sr = disk.vdi.reference("SR");
        let driver = daemon.storage.driver(&sr)?;
        let generation = volume_id(disk.vdi.str("location"))?;
        let origin = disk.vdi.reference("snapshot_of");
        let head = current.iter().find(|now| *now.vdi.id() == origin && now.vdi.reference("SR") == sr);
        match head.filter(|_| driver.capabilities().revert_in_place) {
            Some(head) => plan.in_place.push(RevertDisk {
                sr: sr.to_string(),
                vdi: head.vdi.id().to_string(),
                volume: volume_id(head.vdi.str("location"))?,
                snapshot_vdi: disk.vdi.id().to_string(),
                generation,
            }),
            None => plan.cloned.push(CloneDisk {
                sr: sr.to_string(),
                snapshot_vdi: disk.vdi.id().to_string(),
                generation,
                volume: Uuid::new_v4(),
            }),
        }
    }
    Ok(plan)
}

/// The image of a checkpoint; `None` for a snapshot of the disks alone.
fn memory(daemon: &Daemon, snapshot: &Ref) -> ApiResult<Option<CloneDisk>> {
    let image = daemon.db.read(|state| {
        let snapshot = state.get("VM", snapshot)?;
        Ok::<_, ApiError>(match snapshot.str("power_state") {
            "Suspended" => state.find("VDI", &snapshot.reference("suspend_VDI")),
            _ => None,
        })
    })?;
    let Some(image) = image else { return Ok(None) };
    let sr = image.reference("SR");
    daemon.storage.driver(&sr)?;
    Ok(Some(CloneDisk {
        sr: sr.to_string(),
        snapshot_vdi: image.id().to_string(),
        generation: volume_id(image.str("location"))?,
        volume: Uuid::new_v4(),
    }))
}

fn driver_of(daemon: &Daemon, sr: &str) -> ApiResult<Arc<dyn Driver>> {
    daemon.storage.driver(&Ref::from(sr))
}

/// Does what the plan says, the storage first, then the records. May be repeated.
pub async fn carry_out(daemon: &Arc<Daemon>, plan: &RevertPlan, intent: &str) -> ApiResult<Moved> {
    let mut moved = Moved::default();
    // What may lack room comes before what cannot be taken back.
    for disk in plan.clones() {
        let request = CloneRequest {
            near: plan
                .cloned
                .iter()
                .find(|other| other.sr == disk.sr)
                .map(|first| first.volume)
                .filter(|first| *first != disk.volume),
            ..CloneRequest::new(disk.generation, disk.volume)
        };
        moved += driver_of(daemon, &disk.sr)?.clone_volume(&request).await.map_err(driver_error)?;
    }
    for disk in &plan.in_place {
        let driver = driver_of(daemon, &disk.sr)?;
        moved += again_if_unreachable(|| driver.revert(disk.volume, disk.generation)).await?;
    }
    let replaced = daemon.db.write(|tx| {
        let replaced = records(tx, plan, moved)?;
        tx.clear_intent(intent);
        Ok(replaced)
    })?;
    for vdi in &replaced {
        if let Err(error) = destroy_disk(daemon, vdi).await {
            tracing::warn!(%vdi, %error, "a disk that a revert replaced could not be destroyed; it stays on its SR");
        }
    }
    let mut srs: Vec<Ref> = plan
        .in_place
        .iter()
        .map(|disk| &disk.sr)
        .chain(plan.clones().map(|disk| &disk.sr))
        .map(|sr| Ref::from(sr.as_str()))
        .collect();
    srs.sort();
    srs.dedup();
    for sr in srs {
        sizes_changed(daemon, &sr).await;
    }
    Ok(moved)
}

/// A verb whose fate is unknown is repeated once.
async fn again_if_unreachable<T, F>(verb: impl Fn() -> F) -> ApiResult<T>
where
    F: Future<Output = Result<T, DriverError>>,
{
    match verb().await {
        Err(error) if error.kind == DriverErrorKind::Unreachable => verb().await.map_err(driver_error),
        result => result.map_err(driver_error),
    }
}

/// The machine's records as they were at the snapshot; answers the VDIs that are replaced and have to go.
fn records(tx: &mut Tx<'_>, plan: &RevertPlan, moved: Moved) -> ApiResult<Vec<Ref>> {
    let (vm, snapshot) = (Ref::from(plan.vm.as_str()), Ref::from(plan.snapshot.as_str()));
    let kept = tx.get("VM", &snapshot)?;
    let machine = tx.get("VM", &vm)?;
    let mut disks: Vec<(Ref, Ref)> = Vec::new();
    let mut replaced = Vec::new();
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
        for sibling in tx.all("VDI").iter().filter(|vdi| vdi.reference("snapshot_of") == old && !old.is_null()) {
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

/// After a failure: the clones go, the plan is struck off.
async fn give_up(daemon: &Daemon, plan: &RevertPlan, intent: &str) {
    let mut left = false;
    for disk in plan.clones() {
        let gone = match driver_of(daemon, &disk.sr) {
            Ok(driver) => driver.destroy(disk.volume).await.map_err(driver_error).map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = gone {
            tracing::warn!(volume = %disk.volume, %error, "a clone of a failed revert could not be destroyed");
            left = true;
        }
    }
    // What could not be destroyed now is a creation to be undone later.
    let undo = |disk: &CloneDisk| Plan::Create { sr: disk.sr.clone(), volumes: vec![disk.volume] };
    let struck = daemon.db.write(|tx| {
        let clones = plan.clones().filter(|_| left);
        let intents = clones.map(|disk| undo(disk).put(tx)).collect::<ApiResult<Vec<String>>>()?;
        tx.clear_intent(intent);
        Ok(intents)
    });
    match struck {
        Ok(intents) => intents.iter().for_each(|intent| daemon.left.add(intent)),
        Err(error) => tracing::error!(%error, "the end of a failed revert could not be recorded"),
    }
}
