//! A generation at a backup server: all disks of a snapshot connected with another VM, and away again.
//!
//! Made of standard calls alone (`VDI.clone`, `VBD.create`, `VBD.plug` and back). What belongs together is known by marks
//! in `other_config`, so that it can be taken away by whoever comes, also after a crash in the middle:
//!
//! | object | key | value |
//! |---|---|---|
//! | VBD | [`ATTACHED`] | uuid of the snapshot |
//! | VDI (a clone) | [`THROW_AWAY`] | uuid of the snapshot; the server destroys it when it loses its last VBD |

use std::thread::sleep;
use std::time::Duration;

use crate::command::snapshot::snapshot_param;
use crate::command::vmdisk::vbds;
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::Object;
use crate::record::field::scalar;
use tanada_xapi::{Map, Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new(
        "snapshot-attach",
        &["vm-uuid"],
        &["uuid", "snapshot-uuid", "mode"],
        "Connects all disks of a snapshot with another VM, such as a backup server: mode=ro (default) as they are and \
         read-only; mode=clone as writable clones that snapshot-detach throws away, for file systems that must replay a log.",
        attach,
    ),
    Command::new(
        "snapshot-detach",
        &[],
        &["uuid", "snapshot-uuid", "vm-uuid", "timeout"],
        "Takes away what snapshot-attach connected, from one VM or from all, with its clones (timeout: seconds a guest may \
         take to let go; 0).",
        detach,
    ),
];

const ATTACHED: &str = "tanada:attached-from";
const THROW_AWAY: &str = "tanada:throw-away";

/// virtio shows a guest this much of a disk's serial number, which is its uuid.
const SERIAL_BYTES: usize = 20;
/// Between two requests to let a disk go.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    ReadOnly,
    Clone,
}

/// A disk that was connected.
struct Connected {
    /// Its number in the snapshot.
    number: String,
    vbd: Ref,
    vdi: Ref,
}

fn text(record: &Map, field: &str) -> String {
    record.get(field).map(scalar).unwrap_or_default()
}

fn mark(record: &Map, key: &str) -> Option<String> {
    record.get("other_config")?.get(key).map(scalar)
}

fn attach(ctx: &mut Ctx<'_>) -> Outcome {
    let mode = match ctx.params.or("mode", "ro").to_ascii_lowercase().as_str() {
        "ro" => Mode::ReadOnly,
        "clone" => Mode::Clone,
        other => return Err(Failure::cli(format!("mode={other} is none of ro, clone"))),
    };
    let snapshot = snapshot_param(ctx)?;
    let vm = ctx.api()?.object_by_uuid("VM", ctx.params.need("vm-uuid")?)?;
    let uuid = text(&snapshot.record, "uuid");
    if vm.record.get("is_a_template").and_then(Value::as_bool) == Some(true) {
        return Err(Failure::cli(format!("{} is a template or a snapshot, no VM", text(&vm.record, "uuid"))));
    }
    if vbds(ctx, &vm, "Disk")?.iter().any(|vbd| mark(&vbd.record, ATTACHED).as_deref() == Some(&uuid)) {
        return Err(Failure::cli(format!(
            "Snapshot {uuid} is attached to this VM already: snapshot-detach comes first"
        )));
    }
    let disks = vbds(ctx, &snapshot, "Disk")?;
    if disks.is_empty() {
        return Err(Failure::cli(format!("Snapshot {uuid} has no disks")));
    }
    let running = text(&vm.record, "power_state") == "Running";
    let mut connected = Vec::new();
    for disk in &disks {
        match connect(ctx, &uuid, disk, &vm.reference, mode, running) {
            Ok(one) => connected.push(one),
            Err(failure) => {
                // The first failure is the one to tell; what stays is marked.
                for one in connected.iter().rev() {
                    let _ = disconnect(ctx, &one.vbd, 0);
                }
                return Err(failure);
            }
        }
    }
    tell(ctx, &snapshot, &vm, mode, &connected)
}

/// Leaves nothing of this disk where it fails.
fn connect(
    ctx: &Ctx<'_>,
    snapshot: &str,
    disk: &Object,
    vm: &Ref,
    mode: Mode,
    running: bool,
) -> Result<Connected, Failure> {
    let number = text(&disk.record, "userdevice");
    let source = Ref::from(text(&disk.record, "VDI"));
    let vdi = match mode {
        Mode::ReadOnly => source,
        Mode::Clone => {
            let purpose = Value::map([(THROW_AWAY, snapshot)]);
            Ref::from(scalar(&ctx.api()?.run("VDI.clone", vec![Value::from(source), purpose], "Cloning")?))
        }
    };
    let made = ctx.call(
        "VBD.create",
        vec![Value::map([
            ("VM", Value::from(vm)),
            ("VDI", Value::from(&vdi)),
            ("userdevice", Value::from("autodetect")),
            ("bootable", Value::Bool(false)),
            ("mode", Value::from(if mode == Mode::Clone { "RW" } else { "RO" })),
            ("type", Value::from("Disk")),
            ("unpluggable", Value::Bool(true)),
            ("empty", Value::Bool(false)),
            ("other_config", Value::map([(ATTACHED, snapshot)])),
            ("qos_algorithm_type", Value::from("")),
            ("qos_algorithm_params", Value::empty_map()),
        ])],
    );
    let vbd = match made {
        Ok(vbd) => vbd,
        Err(failure) => {
            if mode == Mode::Clone {
                let _ = throw_away(ctx, &vdi);
            }
            return Err(failure);
        }
    };
    if running && let Err(failure) = ctx.api()?.run("VBD.plug", vec![vbd.clone()], "Plugging") {
        let _ = ctx.call("VBD.destroy", vec![vbd]);
        return Err(failure);
    }
    Ok(Connected { number, vbd: Ref::from(scalar(&vbd)), vdi })
}

fn tell(ctx: &mut Ctx<'_>, snapshot: &Object, vm: &Object, mode: Mode, connected: &[Connected]) -> Outcome {
    let mut lines = Vec::new();
    let mut uuids = Vec::new();
    for one in connected {
        let record = |class: &str, id: &Ref| -> Result<Map, Failure> {
            Ok(ctx.api()?.record(class, id)?.map(|record| (*record).clone()).unwrap_or_default())
        };
        // What was read before the plug does not name the device.
        let device = scalar(&ctx.call("VBD.get_device", vec![Value::from(&one.vbd)])?);
        let device = if device.is_empty() { "at its next start".to_owned() } else { device };
        let serial: String = text(&record("VDI", &one.vdi)?, "uuid").chars().take(SERIAL_BYTES).collect();
        lines.push(format!("  disk {}: {device}, /dev/disk/by-id/virtio-{serial}", one.number));
        uuids.push(ctx.api()?.uuid("VBD", &one.vbd)?);
    }
    if ctx.is_minimal()? {
        return ctx.line(&uuids.join(","));
    }
    let name = |object: &Object| format!("{} ({})", text(&object.record, "uuid"), text(&object.record, "name_label"));
    let how = match mode {
        Mode::ReadOnly => "read-only",
        Mode::Clone => "as writable clones that go when they are detached",
    };
    ctx.line(&format!("Snapshot {} is attached to VM {}, {how}:", name(snapshot), name(vm)))?;
    lines.iter().try_for_each(|line| ctx.line(line))
}

/// Goes by the marks alone: the snapshot may be gone by now, and so may the VM. A disk that is held keeps no other from going.
fn detach(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = ctx.params.get("snapshot-uuid").or_else(|| ctx.params.get("uuid")).map(str::to_owned);
    let snapshot = snapshot.ok_or_else(|| Failure::cli("Required parameter not found: snapshot-uuid or uuid."))?;
    let vm = match ctx.params.get("vm-uuid") {
        Some(_) => Some(ctx.by_uuid_param("vm-uuid", "VM")?),
        None => None,
    };
    let patience_s = ctx.params.int_or("timeout", 0)?;
    let is_ours = |object: &Object, key: &str| mark(&object.record, key).as_deref() == Some(&snapshot);
    let mut found = ctx.api()?.all("VBD")?;
    found.retain(|vbd| {
        let at_vm = vm.as_ref().is_none_or(|vm| text(&vbd.record, "VM") == vm.as_str());
        at_vm && is_ours(vbd, ATTACHED)
    });
    let mut held = Vec::new();
    for vbd in &found {
        match disconnect(ctx, &vbd.reference, patience_s) {
            Err(failure @ Failure::Api(_)) => {
                let told = format!("{} stays: {}", place(ctx, vbd)?, ctx.summary(&failure));
                ctx.remark(&told);
                held.push(text(&vbd.record, "VDI"));
            }
            other => other?,
        }
    }
    let mut stays = !held.is_empty();
    if vm.is_none() {
        // Clones of an attempt that was broken off before they were connected.
        let mut clones = ctx.api()?.all("VDI")?;
        clones.retain(|vdi| is_ours(vdi, THROW_AWAY) && !held.iter().any(|held| held == vdi.reference.as_str()));
        for clone in &clones {
            match throw_away(ctx, &clone.reference) {
                Err(failure @ Failure::Api(_)) => {
                    let told = format!("The clone {} stays: {}", text(&clone.record, "uuid"), ctx.summary(&failure));
                    ctx.remark(&told);
                    stays = true;
                }
                other => other?,
            }
        }
    }
    match (found.len(), found.len() - held.len()) {
        (0, _) => ctx.line(&format!("Nothing of snapshot {snapshot} is attached"))?,
        (_, 1) => ctx.line("1 disk detached")?,
        (_, disks) => ctx.line(&format!("{disks} disks detached"))?,
    }
    if stays { Err(Failure::Reported) } else { Ok(()) }
}

/// Which disk of which machine, for a person who has to look why it is held there.
fn place(ctx: &Ctx<'_>, vbd: &Object) -> Result<String, Failure> {
    let vm = ctx.api()?.record("VM", &Ref::from(text(&vbd.record, "VM")))?;
    let vm = vm.map(|vm| format!("{} ({})", text(&vm, "uuid"), text(&vm, "name_label"))).unwrap_or_default();
    let (device, uuid) = (text(&vbd.record, "device"), text(&vbd.record, "uuid"));
    let device = if device.is_empty() { "a disk".to_owned() } else { device };
    Ok(format!("{device} of VM {vm}, VBD {uuid},"))
}

/// Unplugs the device where it is plugged, and destroys it. The server destroys a throw-away disk with it.
fn disconnect(ctx: &Ctx<'_>, vbd: &Ref, mut patience_s: i64) -> Outcome {
    let attached = ctx.call("VBD.get_currently_attached", vec![Value::from(vbd)])?;
    while attached.as_bool() == Some(true) {
        match ctx.api()?.run("VBD.unplug", vec![Value::from(vbd)], "Unplugging") {
            Ok(_) => break,
            Err(Failure::Api(error)) if error.is("DEVICE_ALREADY_DETACHED") => break,
            Err(Failure::Api(error)) if patience_s > 0 && is_patient(&error) => {
                sleep(PAUSE);
                patience_s -= PAUSE.as_secs() as i64;
            }
            Err(failure) => return Err(failure),
        }
    }
    ctx.call("VBD.destroy", vec![Value::from(vbd)]).map(drop)
}

fn is_patient(error: &tanada_xapi::ApiError) -> bool {
    error.is("DEVICE_DETACH_REJECTED") || error.is("DEVICE_DETACH_TIMEOUT")
}

/// Fine when it is gone already.
fn throw_away(ctx: &Ctx<'_>, vdi: &Ref) -> Outcome {
    match ctx.call("VDI.destroy", vec![Value::from(vdi)]) {
        Err(Failure::Api(error)) if error.is("HANDLE_INVALID") => Ok(()),
        other => other.map(drop),
    }
}
