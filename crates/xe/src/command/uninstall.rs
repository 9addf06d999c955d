//! Destroying machines, templates and snapshots together with the disks that are theirs.

use crate::command::select::{VMS, vms};
use crate::command::snapshot::snapshot_param;
use crate::command::vm::halt;
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::Object;
use crate::record::field::scalar;
use tanada_xapi::{Map, Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new("vm-uninstall", &[], &["force"], "Destroys VMs, their snapshots and their disks.", vm).selects_vms(),
    Command::new("template-uninstall", &["template-uuid"], &["force"], "Destroys a template and its disks.", template),
    Command::new(
        "snapshot-uninstall",
        &[],
        &["uuid", "snapshot-uuid", "force"],
        "Destroys a snapshot and its disks.",
        snapshot,
    ),
];

fn vm(ctx: &mut Ctx<'_>) -> Outcome {
    let mut doomed = vms(ctx, &VMS)?;
    for vm in doomed.clone() {
        for snapshot in vm.record.get("snapshots").and_then(Value::as_set).unwrap_or_default() {
            let reference = Ref::from(scalar(snapshot));
            if let Some(record) = ctx.api()?.record("VM", &reference)? {
                doomed.push(Object { reference, record });
            }
        }
    }
    uninstall(ctx, &doomed)
}

fn template(ctx: &mut Ctx<'_>) -> Outcome {
    let uuid = ctx.params.need("template-uuid")?.to_owned();
    let template = ctx.api()?.object_by_uuid("VM", &uuid)?;
    if template.record.get("is_a_template").and_then(Value::as_bool) != Some(true) {
        return Err(Failure::cli(format!("{uuid} is not a template")));
    }
    uninstall(ctx, &[template])
}

fn snapshot(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = snapshot_param(ctx)?;
    uninstall(ctx, &[snapshot])
}

fn label(object: &Object) -> String {
    let text = |field: &str| object.record.get(field).map(scalar).unwrap_or_default();
    format!("{} ({})", text("uuid"), text("name_label"))
}

/// Disks that go with the VM: those whose device says `owner`, unless the VM merely reads them.
fn owned_disks(ctx: &Ctx<'_>, vm: &Object) -> Result<Vec<Object>, Failure> {
    let mut disks = Vec::new();
    let mut add = |reference: Ref| -> Outcome {
        if !reference.is_null()
            && let Some(record) = ctx.api()?.record("VDI", &reference)?
        {
            disks.push(Object { reference, record });
        }
        Ok(())
    };
    for vbd in vm.record.get("VBDs").and_then(Value::as_set).unwrap_or_default() {
        let Some(vbd) = ctx.api()?.record("VBD", &Ref::from(scalar(vbd)))? else { continue };
        let vdi = Ref::from(vbd.get("VDI").map(scalar).unwrap_or_default());
        if is_owner(ctx, vm, &vbd, &vdi)? {
            add(vdi)?;
        }
    }
    add(Ref::from(vm.record.get("suspend_VDI").map(scalar).unwrap_or_default()))?;
    Ok(disks)
}

/// What a VM reads, such as a generation at a backup server, is somebody else's: whoever connected it may have marked the
/// device as any other. A generation goes with its own snapshot alone.
fn is_owner(ctx: &Ctx<'_>, vm: &Object, vbd: &Map, vdi: &Ref) -> Result<bool, Failure> {
    let says = |record: &Map, field: &str| record.get(field).and_then(Value::as_bool) == Some(true);
    if vbd.get("other_config").is_none_or(|map| map.get("owner").is_none()) {
        return Ok(false);
    }
    if says(&vm.record, "is_a_template") {
        return Ok(true);
    }
    let is_read_only = vbd.get("mode").and_then(Value::as_str) == Some("RO");
    Ok(!is_read_only && !ctx.api()?.record("VDI", vdi)?.is_some_and(|vdi| says(&vdi, "is_a_snapshot")))
}

fn uninstall(ctx: &mut Ctx<'_>, doomed: &[Object]) -> Outcome {
    let mut with_disks = Vec::new();
    for vm in doomed {
        with_disks.push((vm, owned_disks(ctx, vm)?));
    }
    let ours: Vec<Ref> = doomed.iter().map(|vm| vm.reference.clone()).collect();
    ctx.line("The following items are about to be destroyed")?;
    for (vm, disks) in &with_disks {
        ctx.line(&format!("VM : {}", label(vm)))?;
        for disk in disks {
            let shared = if is_shared(ctx, disk, &ours)? { " ** WARNING: disk is shared by other VMs" } else { "" };
            ctx.line(&format!("VDI: {} {shared}", label(disk)))?;
        }
    }
    if !ctx.params.flag("force")? && !ctx.confirm()? {
        return Ok(());
    }
    for (vm, disks) in &with_disks {
        halt(ctx, vm)?;
        ctx.call("VM.destroy", vec![Value::from(&vm.reference)])?;
        let suspend = vm.record.get("suspend_VDI").map(scalar).unwrap_or_default();
        for disk in disks {
            let destroyed = ctx.call("VDI.destroy", vec![Value::from(&disk.reference)]);
            // The image of a suspended VM goes with its hard shutdown.
            if disk.reference.as_str() != suspend {
                destroyed?;
            }
        }
    }
    ctx.line("All objects destroyed")
}

/// Is the disk connected to a VM that stays?
fn is_shared(ctx: &Ctx<'_>, disk: &Object, ours: &[Ref]) -> Result<bool, Failure> {
    for vbd in disk.record.get("VBDs").and_then(Value::as_set).unwrap_or_default() {
        let Some(vbd) = ctx.api()?.record("VBD", &Ref::from(scalar(vbd)))? else { continue };
        if !ours.contains(&Ref::from(vbd.get("VM").map(scalar).unwrap_or_default())) {
            return Ok(true);
        }
    }
    Ok(false)
}
