//! `VM.revert`: a machine goes back to one of its snapshots.
//!
//! The plan ([`plan`]) is written down first: what becomes of each disk.
//!
//! | | when | the disk's VDI | its volume |
//! |---|---|---|---|
//! | switched | the machine has several disks, and the storage clones without copying | stays | a clone of the snapshot's |
//! | in place | it has this one disk; the storage copies clones, or has no room for them | stays | stays, with the old content |
//! | made anew | the disk is gone, or the storage reverts nothing | a new one | a clone of the snapshot's |
//!
//! Clones are made first, then disks go back in place, then the records change, in one transaction ([`carry_out`]). Where
//! nothing goes back in place the revert is all or nothing: after a failure the machine is halted with the disks that it
//! had. Several disks that go back in place may stay behind at two instants. The machine bears a mark
//! ([`UNFINISHED_KEY`]) from before the first of them until the records have changed, and is not started with it.
//!
//! The memory of a checkpoint is always cloned: the machine is suspended with the copy, the checkpoint keeps its own.
//! Carrying a plan out may be repeated, so a crash in the middle is finished at the next start, and the call may be
//! repeated after a failure.

mod carry_out;
mod plan;

use futures_util::FutureExt;
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value, json};

use crate::context::{Args, CallContext, Handlers, Operation};
use crate::db::{Record, Tx, View};
use crate::ops::allowed;
use crate::ops::intents::RevertPlan;
use crate::ops::vdi::begin;

pub use carry_out::end;
pub use plan::UNFINISHED_KEY;

use plan::Way;

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
    let plan = plan::plan(&ctx.daemon, &vm, &snapshot, Way::Switched)?;
    let machine = ctx.db().read(|state| state.get("VM", &vm))?;
    if machine.str("power_state") != "Halted" {
        crate::vmm::power::force_off(&ctx.daemon, &vm).await?;
    }
    let _disks = hold(&ctx, &plan)?;
    ctx.task.progress(0.1);
    let mut done = carry_out::at_once(&ctx.daemon, &plan).await;
    if !plan.switched.is_empty() && done.as_ref().is_err_and(|error| error.is("SR_BACKEND_FAILURE_44")) {
        tracing::info!(%vm, "there is no room for clones beside the disks: they go back in place");
        done = carry_out::at_once(&ctx.daemon, &plan::plan(&ctx.daemon, &vm, &snapshot, Way::InPlace)?).await;
    }
    let moved = done.map_err(|error| revert_error(error, &snapshot, &vm))?;
    ctx.task.moved(moved);
    Ok(Value::Void)
}

/// Marks the disks whose content changes: nobody attaches them meanwhile, and what he writes would be lost. `VDI_IN_USE` where
/// somebody has one.
fn hold(ctx: &CallContext, plan: &RevertPlan) -> ApiResult<Vec<Operation>> {
    plan.changed().map(|vdi| begin(ctx, &Ref::from(vdi), "blocked", false).map(|(mark, ..)| mark)).collect()
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
