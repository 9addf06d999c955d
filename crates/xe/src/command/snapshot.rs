//! Snapshots of VMs.

use crate::command::vm::{halt, need_force};
use crate::command::vmdisk::list_disks;
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::Object;
use tanada_xapi::{Ref, Value};

pub const WHICH: &[&str] = &["uuid", "snapshot-uuid"];

pub const COMMANDS: &[Command] = &[
    Command::new(
        "snapshot-clone",
        &["new-name-label"],
        &["uuid", "snapshot-uuid", "new-name-description"],
        "Makes a template from a snapshot, sharing its data.",
        clone,
    ),
    Command::new(
        "snapshot-copy",
        &["new-name-label"],
        &["uuid", "snapshot-uuid", "new-name-description", "sr-uuid"],
        "Makes a template from a snapshot with a full copy of its data.",
        copy,
    ),
    Command::new("snapshot-revert", &[], WHICH, "Brings the VM of a snapshot back to it.", revert),
    Command::new("snapshot-destroy", &[], WHICH, "Destroys a snapshot and leaves its disks alone.", destroy),
    Command::new(
        "snapshot-reset-powerstate",
        &[],
        &["uuid", "snapshot-uuid", "force"],
        "Marks a snapshot as halted; needs --force.",
        reset,
    ),
    Command::new(
        "snapshot-disk-list",
        &[],
        &["uuid", "snapshot-uuid", "vbd-params", "vdi-params"],
        "Lists the disks of a snapshot.",
        disk_list,
    ),
];

/// The snapshot that `snapshot-uuid` or `uuid` names.
pub fn snapshot_param(ctx: &Ctx<'_>) -> Result<Object, Failure> {
    let uuid = ctx.params.get("snapshot-uuid").or_else(|| ctx.params.get("uuid"));
    let uuid = uuid.ok_or_else(|| Failure::cli("Required parameter not found: snapshot-uuid or uuid."))?;
    let object = ctx.api()?.object_by_uuid("VM", uuid)?;
    if object.record.get("is_a_snapshot").and_then(Value::as_bool) != Some(true) {
        return Err(Failure::cli(format!("{uuid} is not a snapshot")));
    }
    Ok(object)
}

fn finish(ctx: &mut Ctx<'_>, new: &Value) -> Outcome {
    if let Some(text) = ctx.params.get("new-name-description") {
        ctx.call("VM.set_name_description", vec![new.clone(), Value::from(text)])?;
    }
    ctx.print_uuid("VM", new)
}

fn clone(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = snapshot_param(ctx)?;
    let params = vec![Value::from(snapshot.reference), Value::from(ctx.params.need("new-name-label")?)];
    let new = ctx.api()?.run("VM.clone", params, "Cloning")?;
    finish(ctx, &new)
}

fn copy(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = snapshot_param(ctx)?;
    let sr = match ctx.params.get("sr-uuid") {
        Some(_) => ctx.by_uuid_param("sr-uuid", "SR")?,
        None => Ref::null(),
    };
    let name = Value::from(ctx.params.need("new-name-label")?);
    let new = ctx.api()?.run("VM.copy", vec![Value::from(snapshot.reference), name, Value::from(sr)], "Copying")?;
    finish(ctx, &new)
}

fn revert(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = snapshot_param(ctx)?;
    ctx.api()?.run("VM.revert", vec![Value::from(snapshot.reference)], "Reverting").map(drop)
}

fn destroy(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = snapshot_param(ctx)?;
    halt(ctx, &snapshot)?;
    ctx.call("VM.destroy", vec![Value::from(snapshot.reference)]).map(drop)
}

fn reset(ctx: &mut Ctx<'_>) -> Outcome {
    need_force(&ctx.params)?;
    let snapshot = snapshot_param(ctx)?;
    ctx.call("VM.power_state_reset", vec![Value::from(snapshot.reference)]).map(drop)
}

fn disk_list(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = snapshot_param(ctx)?;
    list_disks(ctx, &snapshot, "Disk")
}
