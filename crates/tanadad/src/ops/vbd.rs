//! VBDs: a disk's place in a machine. Plugging is the business of whoever runs the machine.

use futures_util::FutureExt;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::records::{given, text, truth};
use super::throw_away;
use crate::context::{Args, CallContext, Handlers};
use crate::db::{Record, Tx, View};

pub fn handlers() -> Handlers {
    vec![
        ("VBD.create", |ctx, args| create(ctx, args).boxed()),
        ("VBD.destroy", |ctx, args| destroy(ctx, args).boxed()),
        ("VBD.set_mode", |ctx, args| set_mode(ctx, args).boxed()),
        ("VBD.set_userdevice", |ctx, args| set_userdevice(ctx, args).boxed()),
        ("VBD.insert", |ctx, args| insert(ctx, args).boxed()),
        ("VBD.eject", |ctx, args| eject(ctx, args).boxed()),
        ("VM.get_allowed_VBD_devices", |ctx, args| allowed_devices(ctx, args).boxed()),
    ]
}

/// Numbers of disks in a machine.
const DEVICES: u32 = 255;
/// How many free numbers clients are told.
const DEVICES_TOLD: usize = 16;

const DISK_TYPES: &[&str] = &["system", "user", "ephemeral", "suspend", "crashdump", "metadata", "rrd", "pvs_cache"];

/// The number that a device name stands for: `0`, `xvda`, `hda` and `sda` are one place.
pub fn device_number(name: &str) -> Option<u32> {
    let number = match name.parse::<u32>() {
        Ok(number) if name.bytes().all(|byte| byte.is_ascii_digit()) => number,
        _ => letters(["xvd", "hd", "sd", "vd"].iter().find_map(|prefix| name.strip_prefix(prefix))?)?,
    };
    (number < DEVICES).then_some(number)
}

/// `a` is 0, `z` 25, `aa` 26.
fn letters(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 2 || !text.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return None;
    }
    Some(text.bytes().fold(0, |sum, byte| sum * 26 + u32::from(byte - b'a') + 1) - 1)
}

/// Numbers in use by a machine's VBDs.
fn used(view: &impl View, vm: &Record) -> Vec<u32> {
    view.resolve("VBD", &vm.refs("VBDs")).iter().filter_map(|vbd| device_number(vbd.str("userdevice"))).collect()
}

/// Free numbers, ascending.
fn free(view: &impl View, vm: &Record) -> Vec<u32> {
    let used = used(view, vm);
    (0..DEVICES).filter(|number| !used.contains(number)).collect()
}

async fn allowed_devices(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let free: Vec<String> = ctx.db().read(|state| {
        let vm = state.get("VM", &vm)?;
        Ok::<_, ApiError>(free(state, &vm).iter().take(DEVICES_TOLD).map(|number| number.to_string()).collect())
    })?;
    Ok(Value::set(free))
}

async fn create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let record = args.map("args")?;
    let (vm, vdi) = (Ref::from(text(record, "VM")), Ref::from(text(record, "VDI")));
    let (kind, mode, empty) = (text(record, "type"), text(record, "mode"), truth(record, "empty"));
    let fields = given("VBD", record)?;
    let made = ctx.db().write(|tx| {
        let machine = tx.get("VM", &vm)?;
        if !empty {
            check_disk(tx.get("VDI", &vdi)?.as_ref(), mode)?;
        }
        if kind == "CD" && mode != "RO" {
            return Err(ApiError::vbd_cds_must_be_readonly());
        }
        if empty && kind != "CD" {
            return Err(ApiError::vbd_not_removable_media("in constructor"));
        }
        let number = place(tx, &machine, text(record, "userdevice"))?;
        let suspended = machine.str("power_state") == "Suspended";
        let vdi = if empty { Ref::null() } else { vdi.clone() };
        let mut fields: Vec<_> = fields
            .into_iter()
            .filter(|(field, _)| !matches!(*field, "userdevice" | "device" | "VDI" | "currently_attached"))
            .collect();
        if !record.contains_key("unpluggable") {
            fields.push(("unpluggable", Value::from(true)));
        }
        fields.extend([
            ("userdevice", Value::from(number.to_string())),
            ("VDI", Value::from(&vdi)),
            ("currently_attached", Value::from(suspended && truth(record, "currently_attached"))),
        ]);
        tx.create("VBD", fields)
    })?;
    Ok(Value::from(made))
}

fn check_disk(vdi: &Record, mode: &str) -> ApiResult<()> {
    let kind = vdi.str("type");
    if !DISK_TYPES.contains(&kind) {
        return Err(ApiError::vdi_incompatible_type(vdi.id(), kind));
    }
    if !vdi.bool("managed") {
        return Err(ApiError::vdi_not_managed(vdi.id()));
    }
    if mode == "RW" && (vdi.bool("read_only") || vdi.bool("is_a_snapshot")) {
        return Err(ApiError::vdi_readonly(vdi.id()));
    }
    Ok(())
}

/// The number for a new device by the name that the client gave.
fn place(tx: &Tx<'_>, machine: &Record, name: &str) -> ApiResult<u32> {
    if matches!(name, "autodetect" | "") {
        return free(tx, machine).first().copied().ok_or_else(|| ApiError::invalid_device(name));
    }
    let number = device_number(name).ok_or_else(|| ApiError::invalid_device(name))?;
    match used(tx, machine).contains(&number) {
        true => Err(ApiError::device_already_exists(name)),
        false => Ok(number),
    }
}

async fn destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vbd = args.reference("self")?;
    let vdi = ctx.db().write(|tx| {
        let record = tx.get("VBD", &vbd)?;
        if record.bool("currently_attached") {
            return Err(ApiError::operation_not_allowed("VBD is still attached; unplug it first"));
        }
        tx.destroy("VBD", &vbd)?;
        Ok(record.reference("VDI"))
    })?;
    throw_away::end(&ctx.daemon, &vdi).await;
    Ok(Value::Void)
}

async fn set_mode(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vbd, mode) = (args.reference("self")?, args.string("value")?);
    ctx.db().write(|tx| {
        let record = tx.get("VBD", &vbd)?;
        let vm = tx.get("VM", &record.reference("VM"))?;
        let state = vm.str("power_state");
        if state != "Halted" {
            return Err(ApiError::vm_bad_power_state(vm.id(), "halted", state.to_lowercase()));
        }
        if record.str("type") == "CD" && mode != "RO" {
            return Err(ApiError::vbd_cds_must_be_readonly());
        }
        if let Some(vdi) = tx.find("VDI", &record.reference("VDI")) {
            check_disk(&vdi, &mode)?;
        }
        tx.set("VBD", &vbd, "mode", mode.as_str())
    })?;
    Ok(Value::Void)
}

async fn set_userdevice(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vbd, name) = (args.reference("self")?, args.string("value")?);
    ctx.db().write(|tx| {
        let record = tx.get("VBD", &vbd)?;
        if record.bool("currently_attached") {
            return Err(ApiError::operation_not_allowed("VBD is attached; its device cannot change"));
        }
        if device_number(&name) == device_number(record.str("userdevice")) {
            return Ok(());
        }
        let machine = tx.get("VM", &record.reference("VM"))?;
        let number = place(tx, &machine, &name)?;
        tx.set("VBD", &vbd, "userdevice", number.to_string())
    })?;
    Ok(Value::Void)
}

fn removable(vbd: &Record) -> ApiResult<()> {
    if vbd.str("type") == "Disk" { Err(ApiError::vbd_not_removable_media(vbd.id())) } else { Ok(()) }
}

/// Media in a running machine would need a drive that changes them; that is not there yet.
fn halted(view: &impl View, vbd: &Record, operation: &'static str) -> ApiResult<()> {
    let vm = view.get("VM", &vbd.reference("VM"))?;
    match vm.str("power_state") {
        "Halted" => Ok(()),
        "Suspended" => Err(ApiError::vm_bad_power_state(vm.id(), "halted, running", "suspended")),
        _ => Err(ApiError::not_implemented(operation)),
    }
}

async fn insert(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vbd, vdi) = (args.reference("vbd")?, args.reference("vdi")?);
    ctx.db().write(|tx| {
        let record = tx.get("VBD", &vbd)?;
        removable(&record)?;
        if !record.bool("empty") {
            return Err(ApiError::vbd_not_empty(&vbd));
        }
        halted(tx, &record, "VBD.insert into a running machine")?;
        check_disk(tx.get("VDI", &vdi)?.as_ref(), record.str("mode"))?;
        tx.set_all("VBD", &vbd, [("VDI", Value::from(&vdi)), ("empty", Value::from(false))])
    })?;
    Ok(Value::Void)
}

async fn eject(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vbd = args.reference("vbd")?;
    ctx.db().write(|tx| {
        let record = tx.get("VBD", &vbd)?;
        removable(&record)?;
        if record.bool("empty") {
            return Err(ApiError::vbd_is_empty(&vbd));
        }
        halted(tx, &record, "VBD.eject from a running machine")?;
        tx.set_all("VBD", &vbd, [("VDI", Value::from(Ref::null())), ("empty", Value::from(true))])
    })?;
    Ok(Value::Void)
}

#[cfg(test)]
mod tests {
    use super::device_number;

    #[test]
    fn names_of_one_place_have_one_number() {
        for (name, number) in [("0", 0), ("xvda", 0), ("hda", 0), ("sda", 0), ("xvdd", 3), ("sdz", 25), ("xvdaa", 26)] {
            assert_eq!(device_number(name), Some(number), "{name}");
        }
        for wrong in ["", "255", "-1", "+1", "xvd", "xvdA", "xvdaaa", "disk", "autodetect"] {
            assert_eq!(device_number(wrong), None, "{wrong}");
        }
    }
}
