//! The life of a VM.

use crate::command::select::{Selection, Templates, VMS, each_vm, vms};
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::params::Params;
use crate::record::Object;
use crate::record::field::scalar;
use tanada_certificate::{Cause, Certificate, Level};
use tanada_xapi::{ApiError, Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new("vm-create", &["name-label"], &["name-description"], "Creates a VM without disks.", create).hidden(),
    Command::new("vm-destroy", &["uuid"], &[], "Destroys a VM and leaves its disks alone.", |x| {
        x.message("VM.destroy")
    }),
    Command::new("vm-clone", &["new-name-label"], &["new-name-description"], "Clones VMs, sharing their data.", clone)
        .selects_vms(),
    Command::new(
        "vm-copy",
        &["new-name-label"],
        &["new-name-description", "sr-uuid"],
        "Copies a VM with all its data.",
        copy,
    )
    .selects_vms(),
    Command::new(
        "vm-snapshot",
        &["new-name-label"],
        &["new-name-description", "ignore-vdi-uuids"],
        "Takes a snapshot of VMs, all disks at one instant.",
        |x| snapshot(x, "VM.snapshot"),
    )
    .selects_vms(),
    Command::new(
        "vm-snapshot-with-quiesce",
        &["new-name-label"],
        &["new-name-description"],
        "Takes a snapshot with the guest at rest, or fails.",
        |x| snapshot(x, "VM.snapshot_with_quiesce"),
    )
    .selects_vms(),
    Command::new(
        "vm-checkpoint",
        &["new-name-label"],
        &["new-name-description"],
        "Takes a snapshot of VMs with their memory, of one instant; they run on.",
        |x| snapshot(x, "VM.checkpoint"),
    )
    .selects_vms(),
    Command::new("vm-start", &[], &["force", "on", "paused", "progress"], "Starts VMs.", start).selects_vms(),
    Command::new("vm-shutdown", &[], &["force", "progress"], "Shuts VMs down; --force pulls the plug.", shutdown)
        .selects_vms(),
    Command::new("vm-reboot", &[], &["force", "progress"], "Reboots VMs; --force resets them.", reboot).selects_vms(),
    Command::new("vm-pause", &[], &[], "Pauses VMs.", |x| power(x, "VM.pause", &[])).selects_vms(),
    Command::new("vm-unpause", &[], &[], "Lets paused VMs go on.", |x| power(x, "VM.unpause", &[])).selects_vms(),
    Command::new("vm-suspend", &[], &["progress"], "Writes the memory of VMs to disk and ends them.", |x| {
        power(x, "VM.suspend", &[])
    })
    .selects_vms(),
    Command::new("vm-resume", &[], &["force", "on", "progress"], "Lets suspended VMs go on where they were.", resume)
        .selects_vms(),
    Command::new("vm-reset-powerstate", &[], &[], "Marks VMs as halted; needs --force.", reset).selects_vms(),
    Command::new(
        "vm-call-plugin",
        &["plugin", "fn"],
        &["vm-uuid", "args:"],
        "Calls a function of a plugin for VMs and prints its answer.",
        call_plugin,
    )
    .selects_vms(),
    Command::new(
        "vm-memory-limits-set",
        &["static-min", "static-max", "dynamic-min", "dynamic-max"],
        &[],
        "Sets all memory limits of VMs.",
        |x| memory(x, "VM.set_memory_limits", &["static-min", "static-max", "dynamic-min", "dynamic-max"]),
    )
    .selects_vms(),
    Command::new("vm-memory-static-range-set", &["min", "max"], &[], "Sets the static memory range of VMs.", |x| {
        memory(x, "VM.set_memory_static_range", &["min", "max"])
    })
    .selects_vms(),
    Command::new("vm-memory-dynamic-range-set", &["min", "max"], &[], "Sets the dynamic memory range of VMs.", |x| {
        memory(x, "VM.set_memory_dynamic_range", &["min", "max"])
    })
    .selects_vms(),
    Command::new("vm-memory-set", &["memory"], &[], "Sets all memory limits of VMs to one size.", |x| {
        memory(x, "VM.set_memory", &["memory"])
    })
    .selects_vms(),
];

/// Clone and copy also take templates.
pub const ANY: Selection = Selection { templates: Templates::Included, control_domains: false, single: false };
const ANY_ONE: Selection = Selection { templates: Templates::Included, control_domains: false, single: true };
const TO_START: Selection = Selection { templates: Templates::ToExplain, control_domains: false, single: false };

/// A record for `VM.create` with what the parameters say and modest defaults.
fn create(ctx: &mut Ctx<'_>) -> Outcome {
    let memory = Value::Int(256 << 20);
    let none = || Value::from("");
    let null = || Value::from(Ref::null());
    let record = Value::map([
        ("name_label", Value::from(ctx.params.need("name-label")?)),
        ("name_description", Value::from(ctx.params.or("name-description", ""))),
        ("user_version", Value::Int(0)),
        ("is_a_template", Value::Bool(false)),
        ("affinity", null()),
        ("memory_target", memory.clone()),
        ("memory_static_max", memory.clone()),
        ("memory_dynamic_max", memory.clone()),
        ("memory_dynamic_min", memory.clone()),
        ("memory_static_min", memory),
        ("VCPUs_params", Value::empty_map()),
        ("VCPUs_max", Value::Int(1)),
        ("VCPUs_at_startup", Value::Int(1)),
        ("actions_after_shutdown", Value::from("destroy")),
        ("actions_after_reboot", Value::from("restart")),
        ("actions_after_crash", Value::from("restart")),
        ("PV_bootloader", none()),
        ("PV_kernel", none()),
        ("PV_ramdisk", none()),
        ("PV_args", none()),
        ("PV_bootloader_args", none()),
        ("PV_legacy_args", none()),
        ("HVM_boot_policy", Value::from("BIOS order")),
        ("HVM_boot_params", Value::map([("order", "cd")])),
        ("HVM_shadow_multiplier", Value::Float(1.0)),
        ("platform", Value::empty_map()),
        ("PCI_bus", none()),
        ("recommendations", none()),
        ("xenstore_data", Value::empty_map()),
        ("ha_always_run", Value::Bool(false)),
        ("ha_restart_priority", none()),
        ("tags", Value::empty_set()),
        ("blocked_operations", Value::empty_map()),
        ("other_config", Value::empty_map()),
    ]);
    let vm = ctx.call("VM.create", vec![record])?;
    ctx.print_uuid("VM", &vm)
}

fn describe_new(ctx: &Ctx<'_>, vm: &Value) -> Outcome {
    match ctx.params.get("new-name-description") {
        Some(text) => ctx.call("VM.set_name_description", vec![vm.clone(), Value::from(text)]).map(drop),
        None => Ok(()),
    }
}

fn clone(ctx: &mut Ctx<'_>) -> Outcome {
    let name = ctx.params.need("new-name-label")?.to_owned();
    each_vm(ctx, &ANY, |ctx, vm| {
        let params = vec![Value::from(&vm.reference), Value::from(&name)];
        let new = ctx.api()?.run("VM.clone", params, "Cloning")?;
        describe_new(ctx, &new)?;
        ctx.print_uuid("VM", &new)
    })
}

fn copy(ctx: &mut Ctx<'_>) -> Outcome {
    let sr = match ctx.params.get("sr-uuid") {
        Some(_) => ctx.by_uuid_param("sr-uuid", "SR")?,
        None => Ref::null(),
    };
    let name = ctx.params.need("new-name-label")?.to_owned();
    each_vm(ctx, &ANY_ONE, |ctx, vm| {
        let params = vec![Value::from(&vm.reference), Value::from(&name), Value::from(&sr)];
        let new = ctx.api()?.run("VM.copy", params, "Copying")?;
        describe_new(ctx, &new)?;
        ctx.print_uuid("VM", &new)
    })
}

fn snapshot(ctx: &mut Ctx<'_>, method: &str) -> Outcome {
    let name = ctx.params.need("new-name-label")?.to_owned();
    let mut ignored = Vec::new();
    for uuid in ctx.params.or("ignore-vdi-uuids", "").split(',').filter(|uuid| !uuid.is_empty()) {
        ignored.push(Value::from(ctx.api()?.by_uuid("VDI", uuid)?));
    }
    each_vm(ctx, &VMS, |ctx, vm| {
        let mut params = vec![Value::from(&vm.reference), Value::from(&name)];
        if !ignored.is_empty() {
            params.push(Value::Set(ignored.clone()));
        }
        let new = ctx.api()?.run(method, params, "Taking a snapshot")?;
        describe_new(ctx, &new)?;
        ctx.print_uuid("VM", &new)?;
        say_what_it_lacks(ctx, &new)
    })
}

/// A snapshot of a running machine that could not be quiesced: why, and what to do, beside the output that scripts read.
fn say_what_it_lacks(ctx: &mut Ctx<'_>, snapshot: &Value) -> Outcome {
    let reference = Ref::from(snapshot.as_str().unwrap_or_default());
    let Some(record) = ctx.api()?.record("VM", &reference)? else { return Ok(()) };
    let info = record.get("snapshot_info").and_then(Value::as_map);
    let info = info.map(|info| info.iter().map(|(key, value)| (key.clone(), scalar(value))).collect());
    let Some(certificate) = info.and_then(|info| Certificate::from_map(&info)) else { return Ok(()) };
    let Some(downgrade) = certificate.downgrade else { return Ok(()) };
    let unasked = matches!(downgrade.cause, Some(Cause::Skipped | Cause::NotRunning));
    if certificate.level != Level::Crash || unasked {
        return Ok(());
    }
    ctx.remark(&format!(
        "Only crash-consistent: {}. Until that is mended, stop the guest's services before a snapshot.",
        downgrade.with_advice()
    ));
    Ok(())
}

/// `method(vm, more...)` on each selected VM.
fn power(ctx: &mut Ctx<'_>, method: &str, more: &[Value]) -> Outcome {
    each_vm(ctx, &TO_START, |ctx, vm| run_on(ctx, vm, method, more))
}

fn run_on(ctx: &mut Ctx<'_>, vm: &Object, method: &str, more: &[Value]) -> Outcome {
    let mut params = vec![Value::from(&vm.reference)];
    params.extend_from_slice(more);
    ctx.api()?.run(method, params, method).map(drop)
}

fn start(ctx: &mut Ctx<'_>) -> Outcome {
    let flags = [Value::Bool(ctx.params.flag("paused")?), Value::Bool(ctx.params.flag("force")?)];
    let host = match ctx.params.get("on") {
        Some(name) => Some(host_by_name(ctx, name)?),
        None => None,
    };
    each_vm(ctx, &TO_START, |ctx, vm| {
        let outcome = match &host {
            Some(host) => run_on(ctx, vm, "VM.start_on", &[&[Value::from(host)], &flags[..]].concat()),
            None => run_on(ctx, vm, "VM.start", &flags),
        };
        if let Err(Failure::Api(error)) = &outcome
            && error.is("NO_HOSTS_AVAILABLE")
        {
            explain_hosts(ctx, vm)?;
        }
        outcome
    })
}

/// A host by uuid, host name or name-label.
fn host_by_name(ctx: &Ctx<'_>, name: &str) -> Result<Ref, Failure> {
    let named = |host: &Object| {
        ["uuid", "hostname", "name_label"]
            .iter()
            .any(|field| host.record.get(*field).map(scalar).as_deref() == Some(name))
    };
    let found = ctx.api()?.all("host")?.into_iter().find(named);
    found.map(|host| host.reference).ok_or_else(|| Failure::cli(format!("No matching hosts found: {name}")))
}

/// Why no host will have the VM, one line per host.
fn explain_hosts(ctx: &mut Ctx<'_>, vm: &Object) -> Outcome {
    let hosts = ctx.api()?.all("host")?;
    for host in hosts {
        let name = host.record.get("name_label").map(scalar).unwrap_or_default();
        let params = vec![Value::from(&vm.reference), Value::from(&host.reference)];
        let verdict = match ctx.call("VM.assert_can_boot_here", params) {
            Ok(_) => "OK".to_owned(),
            Err(failure) => format!("Cannot start here [{}]", ctx.summary(&failure)),
        };
        ctx.line(&format!("{name:<20}: {verdict}"))?;
    }
    Ok(())
}

fn shutdown(ctx: &mut Ctx<'_>) -> Outcome {
    let method = if ctx.params.flag("force")? { "VM.hard_shutdown" } else { "VM.clean_shutdown" };
    power(ctx, method, &[])
}

fn reboot(ctx: &mut Ctx<'_>) -> Outcome {
    let method = if ctx.params.flag("force")? { "VM.hard_reboot" } else { "VM.clean_reboot" };
    power(ctx, method, &[])
}

fn resume(ctx: &mut Ctx<'_>) -> Outcome {
    let flags = [Value::Bool(false), Value::Bool(ctx.params.flag("force")?)];
    let host = match ctx.params.get("on") {
        Some(name) => Some(host_by_name(ctx, name)?),
        None => None,
    };
    each_vm(ctx, &TO_START, |ctx, vm| match &host {
        Some(host) => run_on(ctx, vm, "VM.resume_on", &[&[Value::from(host)], &flags[..]].concat()),
        None => run_on(ctx, vm, "VM.resume", &flags),
    })
}

fn reset(ctx: &mut Ctx<'_>) -> Outcome {
    need_force(&ctx.params)?;
    power(ctx, "VM.power_state_reset", &[])
}

/// What `--force` must confirm.
pub fn need_force(params: &Params) -> Outcome {
    if params.flag("force")? {
        return Ok(());
    }
    Err(Failure::cli(
        "This may lead to damaged data: the VM could still be running. Use --force to perform the operation",
    ))
}

/// `method` with the sizes that the parameters give, in that order.
fn memory(ctx: &mut Ctx<'_>, method: &str, params: &[&str]) -> Outcome {
    let sizes: Vec<Value> =
        params.iter().map(|name| ctx.params.size(name).map(Value::Int)).collect::<Result<_, _>>()?;
    each_vm(ctx, &ANY, |ctx, vm| {
        let mut all = vec![Value::from(&vm.reference)];
        all.extend(sizes.iter().cloned());
        ctx.call(method, all).map(drop)
    })
}

fn call_plugin(ctx: &mut Ctx<'_>) -> Outcome {
    let (plugin, function) = (ctx.params.need("plugin")?.to_owned(), ctx.params.need("fn")?.to_owned());
    let args = ctx.params.map_value("args");
    let chosen: Vec<Object> = match ctx.params.get("vm-uuid") {
        Some(uuid) => vec![ctx.api()?.object_by_uuid("VM", uuid)?],
        None => vms(ctx, &VMS)?,
    };
    for vm in chosen {
        let params = vec![Value::from(vm.reference), Value::from(&plugin), Value::from(&function), args.clone()];
        let answer = ctx.call("VM.call_plugin", params)?;
        ctx.line(&scalar(&answer))?;
    }
    Ok(())
}

/// Halts a VM that is not halted.
pub fn halt(ctx: &Ctx<'_>, vm: &Object) -> Outcome {
    let state = vm.record.get("power_state").map(scalar).unwrap_or_default();
    if state == "Halted" {
        return Ok(());
    }
    match ctx.call("VM.hard_shutdown", vec![Value::from(&vm.reference)]) {
        // It halted by itself in the meantime.
        Err(Failure::Api(ApiError { code, .. })) if code == "VM_BAD_POWER_STATE" => Ok(()),
        other => other.map(drop),
    }
}
