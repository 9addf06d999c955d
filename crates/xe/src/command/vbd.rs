//! Virtual block devices: a disk at a VM.

use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new(
        "vbd-create",
        &["vm-uuid", "device"],
        &["vdi-uuid", "bootable", "type", "mode", "unpluggable"],
        "Connects a disk with a VM; plug it to use it in a running one.",
        create,
    ),
    Command::new("vbd-destroy", &["uuid"], &[], "Destroys a device and leaves the disk alone.", |x| {
        x.message("VBD.destroy")
    }),
    Command::new("vbd-plug", &["uuid"], &[], "Plugs a device into its running VM.", |x| {
        x.task("VBD.plug", Vec::new()).map(drop)
    }),
    Command::new("vbd-unplug", &["uuid"], &["timeout", "force"], "Unplugs a device from its running VM.", unplug),
    Command::new("vbd-insert", &["uuid", "vdi-uuid"], &[], "Inserts a disk into a CD drive.", insert),
    Command::new("vbd-eject", &["uuid"], &[], "Ejects the disk of a CD drive.", |x| x.message("VBD.eject")),
];

fn create(ctx: &mut Ctx<'_>) -> Outcome {
    let vdi = match ctx.params.get("vdi-uuid") {
        Some(_) => ctx.by_uuid_param("vdi-uuid", "VDI")?,
        None => Ref::null(),
    };
    let kind = choice(ctx.params.or("type", "Disk"), "type", &["CD", "Disk", "Floppy"])?;
    let mode = choice(ctx.params.or("mode", "RW"), "mode", &["RO", "RW"])?;
    if vdi.is_null() && kind != "CD" {
        return Err(Failure::cli("Only a device of type=CD can be empty: give vdi-uuid"));
    }
    let record = Value::map([
        ("VM", Value::from(ctx.by_uuid_param("vm-uuid", "VM")?)),
        ("VDI", Value::from(&vdi)),
        ("userdevice", Value::from(ctx.params.need("device")?)),
        ("bootable", Value::Bool(ctx.params.flag("bootable")?)),
        ("mode", Value::from(mode)),
        ("type", Value::from(kind)),
        ("unpluggable", Value::Bool(ctx.params.flag_or("unpluggable", true)?)),
        ("empty", Value::Bool(vdi.is_null())),
        ("other_config", Value::empty_map()),
        ("qos_algorithm_type", Value::from("")),
        ("qos_algorithm_params", Value::empty_map()),
    ]);
    let vbd = ctx.call("VBD.create", vec![record])?;
    ctx.print_uuid("VBD", &vbd)
}

/// One of `allowed`, in any case.
fn choice(text: &str, name: &str, allowed: &[&'static str]) -> Result<&'static str, Failure> {
    let found = allowed.iter().find(|word| word.eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| {
        Failure::cli(format!("Failed to parse parameter '{name}': '{text}' is none of {}", allowed.join(", ")))
    })
}

/// A guest may refuse to let go at first: `timeout` seconds long it is asked again.
fn unplug(ctx: &mut Ctx<'_>) -> Outcome {
    const PAUSE_S: i64 = 5;
    let method = if ctx.params.flag("force")? { "VBD.unplug_force" } else { "VBD.unplug" };
    let mut left_s = ctx.params.int_or("timeout", 0)?;
    loop {
        match ctx.task(method, Vec::new()) {
            Err(Failure::Api(error)) if error.is("DEVICE_DETACH_REJECTED") && left_s > 0 => {
                std::thread::sleep(std::time::Duration::from_secs(PAUSE_S as u64));
                left_s -= PAUSE_S;
            }
            other => return other.map(drop),
        }
    }
}

fn insert(ctx: &mut Ctx<'_>) -> Outcome {
    let vbd = ctx.by_uuid_param("uuid", "VBD")?;
    let vdi = ctx.by_uuid_param("vdi-uuid", "VDI")?;
    ctx.call("VBD.insert", vec![Value::from(vbd), Value::from(vdi)]).map(drop)
}
