//! Power of VMs, and VBDs plugged into running ones: checks and marks; the doing is in [`crate::vmm`].

use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::allowed;
use super::machine::trial;
use crate::context::{Args, CallContext, Handlers, Operation};
use crate::db::{Tx, View};
use crate::rpc::session::Role;
use crate::vmm::description::VmRecords;
use crate::vmm::power::{self, StartMode};
use crate::vmm::{disks, plugin};

pub fn handlers() -> Handlers {
    vec![
        ("VM.start", |ctx, args| Box::pin(start(ctx, args))),
        ("VM.start_on", |ctx, args| Box::pin(start_on(ctx, args))),
        ("VM.clean_shutdown", |ctx, args| Box::pin(clean_shutdown(ctx, args))),
        ("VM.hard_shutdown", |ctx, args| Box::pin(hard_shutdown(ctx, args))),
        ("VM.shutdown", |ctx, args| Box::pin(shutdown(ctx, args))),
        ("VM.clean_reboot", |ctx, args| Box::pin(clean_reboot(ctx, args))),
        ("VM.hard_reboot", |ctx, args| Box::pin(hard_reboot(ctx, args))),
        ("VM.pause", |ctx, args| Box::pin(pause(ctx, args))),
        ("VM.unpause", |ctx, args| Box::pin(unpause(ctx, args))),
        ("VM.power_state_reset", |ctx, args| Box::pin(power_state_reset(ctx, args))),
        ("VM.call_plugin", |ctx, args| Box::pin(call_plugin(ctx, args))),
        ("VM.get_possible_hosts", |ctx, args| Box::pin(get_possible_hosts(ctx, args))),
        ("VM.assert_can_boot_here", |ctx, args| Box::pin(assert_can_boot_here(ctx, args))),
        ("VBD.plug", |ctx, args| Box::pin(plug(ctx, args))),
        ("VBD.unplug", |ctx, args| Box::pin(unplug(ctx, args))),
        ("VBD.unplug_force", |ctx, args| Box::pin(unplug_force(ctx, args))),
    ]
}

/// Checks an operation on a VM and marks it as under way.
fn begin(ctx: &CallContext, vm: &Ref, operation: &'static str) -> ApiResult<Operation> {
    ctx.begin("VM", vm, operation, |tx| allowed::vm(tx, vm, operation))
}

async fn start(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    start_as(&ctx, &vm, args.bool("start_paused")?, "start").await
}

async fn start_on(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, host) = (args.reference("vm")?, args.reference("host")?);
    ctx.db().read(|state| state.get("host", &host))?;
    start_as(&ctx, &vm, args.bool("start_paused")?, "start_on").await
}

async fn start_as(ctx: &CallContext, vm: &Ref, paused: bool, operation: &'static str) -> ApiResult<Value> {
    let _busy = begin(ctx, vm, operation)?;
    let mode = if paused { StartMode::Paused } else { StartMode::Run };
    power::start(&ctx.daemon, vm, mode).await?;
    Ok(Value::Void)
}

async fn clean_shutdown(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "clean_shutdown")?;
    power::clean_shutdown(&ctx.daemon, &vm, &ctx.task).await?;
    Ok(Value::Void)
}

async fn hard_shutdown(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "hard_shutdown")?;
    power::force_off(&ctx.daemon, &vm).await?;
    Ok(Value::Void)
}

async fn shutdown(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "shutdown")?;
    power::shutdown(&ctx.daemon, &vm, &ctx.task).await?;
    Ok(Value::Void)
}

async fn clean_reboot(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "clean_reboot")?;
    power::clean_reboot(&ctx.daemon, &vm, &ctx.task).await?;
    Ok(Value::Void)
}

async fn hard_reboot(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "hard_reboot")?;
    power::hard_reboot(&ctx.daemon, &vm).await?;
    Ok(Value::Void)
}

async fn pause(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "pause")?;
    power::pause(&ctx.daemon, &vm).await?;
    Ok(Value::Void)
}

async fn unpause(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "unpause")?;
    power::unpause(&ctx.daemon, &vm).await?;
    Ok(Value::Void)
}

/// A machine that does run here is ended first: what the database calls halted must not run.
async fn power_state_reset(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = begin(&ctx, &vm, "power_state_reset")?;
    power::force_off(&ctx.daemon, &vm).await?;
    Ok(Value::Void)
}

async fn call_plugin(ctx: CallContext, args: Args) -> ApiResult<Value> {
    if !ctx.session.may(Role::PoolAdmin) {
        let words = format!("needs role {}, the session has {}", Role::PoolAdmin.name(), ctx.session.role().name());
        return Err(ApiError::rbac_permission_denied("vm.call_plugin", words));
    }
    let (vm, name, function) = (args.reference("vm")?, args.str("plugin")?, args.str("fn")?);
    if name == trial::NAME {
        return trial::call(&ctx, &vm, function, args.map("args")?).await;
    }
    if name != plugin::NAME {
        return Err(ApiError::new("XENAPI_MISSING_PLUGIN", vec![name.to_owned()]));
    }
    // Not marked as under way: the guest may be asked while anything else happens to the VM.
    ctx.db().read(|state| {
        let record = state.get("VM", &vm)?;
        match record.str("power_state") {
            "Running" => Ok(()),
            actual => Err(ApiError::vm_bad_power_state(&vm, "running", actual.to_lowercase())),
        }
    })?;
    let machine = power::machine_of(&ctx.daemon, &vm)?;
    let answer = ctx.task.until_cancelled(plugin::call(&machine, function, args.map("args")?)).await??;
    Ok(Value::from(answer))
}

/// The hosts on which the VM could start now: this one, or none.
async fn get_possible_hosts(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    ctx.db().read(|state| {
        let host = state.only("host")?;
        match check_boot(state, &vm) {
            Ok(()) => Ok(Value::set([host.id()])),
            Err(error) if error.is("HANDLE_INVALID") => Err(error),
            Err(_) => Ok(Value::empty_set()),
        }
    })
}

async fn assert_can_boot_here(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, host) = (args.reference("self")?, args.reference("host")?);
    ctx.db().read(|state| {
        state.get("host", &host)?;
        check_boot(state, &vm)
    })?;
    Ok(Value::Void)
}

/// Is everything that the VM needs on this host?
fn check_boot(view: &impl View, vm: &Ref) -> ApiResult<()> {
    let records = VmRecords::look_up(view, vm)?;
    records.memory_bytes()?;
    records.vcpus()?;
    for disk in &records.disks {
        let sr = view.get("VDI", &disk.vdi)?.reference("SR");
        let pbds = view.find("SR", &sr).map(|sr| sr.refs("PBDs")).unwrap_or_default();
        if !view.resolve("PBD", &pbds).iter().any(|pbd| pbd.bool("currently_attached")) {
            return Err(ApiError::vm_requires_sr(vm, sr));
        }
    }
    Ok(())
}

async fn plug(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vbd = args.reference("self")?;
    let _busy = ctx.begin("VBD", &vbd, "plug", |tx| check_plug(tx, &vbd))?;
    disks::plug(&ctx.daemon, &vbd).await?;
    Ok(Value::Void)
}

async fn unplug(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vbd = args.reference("self")?;
    let _busy = ctx.begin("VBD", &vbd, "unplug", |tx| {
        check_unplug(tx, &vbd)?;
        match tx.get("VBD", &vbd)?.bool("unpluggable") {
            true => Ok(()),
            false => Err(ApiError::vbd_not_unpluggable(&vbd)),
        }
    })?;
    disks::unplug(&ctx.daemon, &vbd).await?;
    Ok(Value::Void)
}

/// As unplug, also where the VBD says that it is not unpluggable. The guest is asked all the same: a disk that
/// vanishes under it would only turn into errors there.
async fn unplug_force(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vbd = args.reference("self")?;
    let _busy = ctx.begin("VBD", &vbd, "unplug_force", |tx| check_unplug(tx, &vbd))?;
    disks::unplug(&ctx.daemon, &vbd).await?;
    Ok(Value::Void)
}

fn check_plug(tx: &mut Tx<'_>, vbd: &Ref) -> ApiResult<()> {
    check_idle(tx, vbd)?;
    let record = tx.get("VBD", vbd)?;
    if record.bool("currently_attached") {
        return Err(ApiError::device_already_attached(vbd));
    }
    if record.bool("empty") {
        return Err(ApiError::vbd_is_empty(vbd));
    }
    Ok(())
}

fn check_unplug(tx: &mut Tx<'_>, vbd: &Ref) -> ApiResult<()> {
    if !tx.get("VBD", vbd)?.bool("currently_attached") {
        return Err(ApiError::device_already_detached(vbd));
    }
    check_idle(tx, vbd)
}

/// The VM runs, and neither it nor the VBD is in the middle of something that moves disks.
fn check_idle(tx: &mut Tx<'_>, vbd: &Ref) -> ApiResult<()> {
    let record = tx.get("VBD", vbd)?;
    let vm = tx.get("VM", &record.reference("VM"))?;
    if vm.bool("is_a_snapshot") {
        return Err(ApiError::vm_is_snapshot(vm.id(), "plug"));
    }
    if vm.bool("is_a_template") {
        return Err(ApiError::vm_is_template(vm.id(), "plug"));
    }
    if vm.str("power_state") != "Running" {
        return Err(ApiError::vm_bad_power_state(vm.id(), "running", vm.str("power_state").to_lowercase()));
    }
    let ending = ["clean_shutdown", "hard_shutdown", "shutdown", "clean_reboot", "hard_reboot", "suspend", "pause"];
    let busy =
        vm.map("current_operations").values().filter_map(Value::as_str).find(|operation| ending.contains(operation));
    if let Some(operation) = busy {
        return Err(ApiError::operation_not_allowed(format!("VM {} is in the middle of {operation}", vm.id())));
    }
    match record.map("current_operations").iter().next() {
        Some((task, operation)) => {
            Err(ApiError::other_operation_in_progress("VBD", vbd, operation.as_str().unwrap_or_default(), task))
        }
        None => Ok(()),
    }
}
