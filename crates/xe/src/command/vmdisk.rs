//! Disks as seen from their VM.

use crate::command::select::{Selection, Templates, VMS, each_vm};
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::scalar;
use crate::record::{Object, class};
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new(
        "vm-disk-add",
        &["disk-size", "device"],
        &["sr-uuid"],
        "Adds a new disk to VMs, at once where they run.",
        add,
    )
    .selects_vms(),
    Command::new("vm-disk-remove", &["device"], &[], "Removes a disk from VMs and destroys it.", remove).selects_vms(),
    Command::new("vm-disk-list", &[], &["vbd-params", "vdi-params"], "Lists the disks of VMs.", |x| list(x, "Disk"))
        .selects_vms(),
    Command::new("vm-cd-list", &[], &["vbd-params", "vdi-params"], "Lists the CDs of VMs.", |x| list(x, "CD"))
        .selects_vms(),
];

const ANY: Selection = Selection { templates: Templates::Included, control_domains: false, single: false };

/// The devices of a VM that have the type `kind`, sorted by number.
pub fn vbds(ctx: &Ctx<'_>, vm: &Object, kind: &str) -> Result<Vec<Object>, Failure> {
    let mut found = Vec::new();
    for vbd in vm.record.get("VBDs").and_then(Value::as_set).unwrap_or_default() {
        let reference = Ref::from(scalar(vbd));
        if let Some(record) = ctx.api()?.record("VBD", &reference)?
            && record.get("type").map(scalar).as_deref() == Some(kind)
        {
            found.push(Object { reference, record });
        }
    }
    found.sort_by_key(|vbd| vbd.record.get("userdevice").and_then(Value::as_int));
    Ok(found)
}

fn add(ctx: &mut Ctx<'_>) -> Outcome {
    let size = ctx.params.size("disk-size")?;
    let device = ctx.params.need("device")?.to_owned();
    let sr = match ctx.params.get("sr-uuid") {
        Some(_) => ctx.by_uuid_param("sr-uuid", "SR")?,
        None => ctx.default_sr()?.ok_or_else(|| Failure::cli("The pool has no default SR: give sr-uuid"))?,
    };
    each_vm(ctx, &VMS, |ctx, vm| {
        let uuid = vm.record.get("uuid").map(scalar).unwrap_or_default();
        let vdi = ctx.call(
            "VDI.create",
            vec![Value::map([
                ("name_label", Value::from("Created by xe")),
                ("name_description", Value::from("Created by xe")),
                ("SR", Value::from(&sr)),
                ("virtual_size", Value::Int(size)),
                ("type", Value::from("user")),
                ("sharable", Value::Bool(false)),
                ("read_only", Value::Bool(false)),
                ("other_config", Value::empty_map()),
                ("xenstore_data", Value::empty_map()),
                ("sm_config", Value::map([("vmhint", uuid)])),
                ("tags", Value::empty_set()),
            ])],
        )?;
        let connected = connect(ctx, vm, &vdi, &device);
        if connected.is_err() {
            // The first failure is the one to tell.
            let _ = ctx.call("VDI.destroy", vec![vdi]);
        }
        connected
    })
}

/// Makes the VBD that owns the disk, and plugs it where the VM runs.
fn connect(ctx: &Ctx<'_>, vm: &Object, vdi: &Value, device: &str) -> Outcome {
    let vbd = ctx.call(
        "VBD.create",
        vec![Value::map([
            ("VM", Value::from(&vm.reference)),
            ("VDI", vdi.clone()),
            ("userdevice", Value::from(device)),
            ("bootable", Value::Bool(false)),
            ("mode", Value::from("RW")),
            ("type", Value::from("Disk")),
            ("unpluggable", Value::Bool(true)),
            ("empty", Value::Bool(false)),
            ("other_config", Value::map([("owner", "")])),
            ("qos_algorithm_type", Value::from("")),
            ("qos_algorithm_params", Value::empty_map()),
        ])],
    )?;
    if vm.record.get("power_state").map(scalar).as_deref() != Some("Running") {
        return Ok(());
    }
    let plugged = ctx.call("VBD.plug", vec![vbd.clone()]).map(drop);
    if plugged.is_err() {
        let _ = ctx.call("VBD.destroy", vec![vbd]);
    }
    plugged
}

fn remove(ctx: &mut Ctx<'_>) -> Outcome {
    let device = ctx.params.need("device")?.to_owned();
    each_vm(ctx, &VMS, |ctx, vm| {
        let disks = vbds(ctx, vm, "Disk")?;
        let found = disks.iter().find(|vbd| vbd.record.get("userdevice").map(scalar).as_deref() == Some(&device));
        let vbd = found.ok_or_else(|| Failure::cli(format!("Disk not found: the VM has no device {device}")))?;
        let vdi = Ref::from(vbd.record.get("VDI").map(scalar).unwrap_or_default());
        ctx.call("VBD.destroy", vec![Value::from(&vbd.reference)])?;
        if vdi.is_null() { Ok(()) } else { ctx.call("VDI.destroy", vec![Value::from(vdi)]).map(drop) }
    })
}

fn list(ctx: &mut Ctx<'_>, kind: &'static str) -> Outcome {
    each_vm(ctx, &ANY, |ctx, vm| list_disks(ctx, vm, kind))
}

/// `Disk 0 VBD:` and `Disk 0 VDI:` with their records.
pub fn list_disks(ctx: &mut Ctx<'_>, vm: &Object, kind: &str) -> Outcome {
    let (Some(vbd_table), Some(vdi_table)) = (class("vbd"), class("vdi")) else { return Ok(()) };
    let defaults: &[&str] = if kind == "CD" {
        &["uuid", "vm-name-label", "empty", "userdevice"]
    } else {
        &["uuid", "vm-name-label", "userdevice"]
    };
    let wanted = |params: Option<&str>, table: &crate::record::Class, defaults: &[&'static str]| match params {
        Some(list) => table.chosen(Some(list)).iter().map(|field| field.name).collect(),
        None => defaults.to_vec(),
    };
    let vbd_names = wanted(ctx.params.get("vbd-params"), vbd_table, &[]);
    let vbd_names = if vbd_names.is_empty() { defaults.to_vec() } else { vbd_names };
    let vdi_defaults: &[&'static str] = &["uuid", "name-label", "sr-name-label", "virtual-size"];
    let vdi_names = wanted(ctx.params.get("vdi-params"), vdi_table, vdi_defaults);
    let is_minimal = ctx.is_minimal()?;
    let mut shown = Vec::new();
    for (index, vbd) in vbds(ctx, vm, kind)?.iter().enumerate() {
        let cells = ctx.cells(vbd_table, vbd, &vbd_names)?;
        if is_minimal {
            shown.push(cells);
        } else {
            ctx.line(&format!("{kind} {index} VBD:"))?;
            ctx.records(&[cells])?;
        }
        let reference = Ref::from(vbd.record.get("VDI").map(scalar).unwrap_or_default());
        if reference.is_null() {
            continue;
        }
        let Some(record) = ctx.api()?.record("VDI", &reference)? else { continue };
        let cells = ctx.cells(vdi_table, &Object { reference, record }, &vdi_names)?;
        if is_minimal {
            shown.push(cells);
        } else {
            ctx.line(&format!("{kind} {index} VDI:"))?;
            ctx.records(&[cells])?;
        }
    }
    if is_minimal { ctx.records(&shown) } else { Ok(()) }
}
