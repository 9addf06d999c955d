//! Start, stop, restart and pause. Whether an operation is allowed has been checked, and it has been marked as under
//! way, before anything here is called.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tanada_qemu::agent::ShutdownMode;
use tanada_qemu::launch::{self, RunState};
use tanada_qemu::machine::DiskSpec;
use tanada_qemu::qmp::{Event, QUICK};
use tanada_xapi::{ApiError, ApiResult, Ref};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::description::VmRecords;
use super::records::{self, Power};
use super::{Running, disks, supervise, suspend};
use crate::context::Daemon;
use crate::db::View;
use crate::rpc::task::TaskHandle;

/// How long a guest may take to shut down, from the request to the end of its process.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(120);
/// A guest whose agent was asked and that is still there after this gets its power button pressed.
const AGENT_HEAD_START: Duration = Duration::from_secs(15);
/// `stop` waits for the requests in flight.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Does the guest run after the start?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMode {
    Run,
    Paused,
}

/// Starts a halted VM. On an error nothing is left of the attempt.
pub async fn start(daemon: &Arc<Daemon>, vm: &Ref, mode: StartMode) -> ApiResult<()> {
    if daemon.vmm.machine(vm).is_some() {
        return Err(ApiError::internal(format!("VM {vm} is halted in the database and has a process")));
    }
    let settings = daemon.vmm.host.settings().await?;
    let records = daemon.db.read(|state| VmRecords::look_up(state, vm))?;
    daemon.vmm.host.check_memory(records.memory_bytes()?)?;
    let machine = match build(daemon, &records, &settings).await {
        Ok(machine) => machine,
        Err(error) => {
            detach_all(daemon, &records).await;
            return Err(error);
        }
    };
    // From here on the supervisor clears up, whatever happens.
    let machine = supervise::begin(daemon, vm, machine, false);
    let power = match mode {
        StartMode::Run => Power::Running,
        StartMode::Paused => Power::Paused,
    };
    let mut begun = records::started(daemon, &machine, &records, power);
    if begun.is_ok() && mode == StartMode::Run {
        begun = machine.qmp().execute("cont", json!({}), QUICK).await.map(drop).map_err(ApiError::internal);
    }
    if begun.is_err() {
        machine.process.kill_now();
        machine.ended().await;
    }
    begun
}

/// Attaches the disks and launches; the machine waits in prelaunch.
async fn build(
    daemon: &Arc<Daemon>,
    records: &VmRecords,
    settings: &launch::HostSettings,
) -> ApiResult<launch::Machine> {
    let mut specs: Vec<DiskSpec> = Vec::new();
    for disk in &records.disks {
        specs.push(disks::attach(daemon, disk, records.boot_index(disk)).await?);
    }
    let spec = records.machine(&daemon.vmm.host, specs)?;
    let dir = daemon.vmm.host.machine_dir(records.uuid);
    launch::launch(&spec, settings, &dir).await.map_err(ApiError::internal)
}

async fn detach_all(daemon: &Arc<Daemon>, records: &VmRecords) {
    for disk in &records.disks {
        disks::detach(daemon, &disk.vbd).await;
    }
}

/// Takes the power away. A VM without a process becomes Halted; the memory of a suspended one is lost.
pub async fn force_off(daemon: &Arc<Daemon>, vm: &Ref) -> ApiResult<()> {
    if let Some(machine) = daemon.vmm.machine(vm) {
        // Nothing to flush: QEMU caches no writes, what was acknowledged is with the storage.
        machine.process.kill_now();
        machine.ended().await;
        let state = daemon.db.read(|state| state.find("VM", vm).map(|vm| vm.str("power_state").to_owned()));
        // It was just being suspended.
        if state.as_deref() != Some("Suspended") {
            return Ok(());
        }
    }
    suspend::forget(daemon, vm).await
}

/// Asks the guest to shut down and waits until it has. `VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT` where it does not.
pub async fn clean_shutdown(daemon: &Arc<Daemon>, vm: &Ref, task: &TaskHandle) -> ApiResult<()> {
    let machine = machine_of(daemon, vm)?;
    let asked = async {
        if machine.agent_present() {
            match machine.agent().shutdown(ShutdownMode::Powerdown).await {
                Ok(()) if timeout(AGENT_HEAD_START, machine.ended()).await.is_ok() => return Ok(()),
                Ok(()) => {
                    tracing::debug!(vm = %machine.uuid, "the agent took the request and the guest is still there")
                }
                Err(error) => tracing::debug!(vm = %machine.uuid, %error, "the agent does not shut down"),
            }
        }
        press_power_button(&machine).await?;
        machine.ended().await;
        Ok(())
    };
    match timeout(SHUTDOWN_LIMIT, task.until_cancelled(asked)).await {
        Ok(ended) => ended?,
        Err(_) => Err(ApiError::vm_failed_shutdown_acknowledgment(vm)),
    }
}

async fn press_power_button(machine: &Running) -> ApiResult<()> {
    match machine.qmp().execute("system_powerdown", json!({}), QUICK).await {
        // Closed: it has just ended by itself.
        Ok(_) | Err(tanada_qemu::QemuError::Closed { .. }) => Ok(()),
        Err(error) => Err(ApiError::internal(error)),
    }
}

/// Clean where the guest takes part, hard where it does not.
pub async fn shutdown(daemon: &Arc<Daemon>, vm: &Ref, task: &TaskHandle) -> ApiResult<()> {
    let running = daemon.db.read(|state| state.get("VM", vm).map(|vm| vm.str("power_state") == "Running"))?;
    if running {
        match clean_shutdown(daemon, vm, task).await {
            Err(error) if !error.is("TASK_CANCELLED") => tracing::info!(vm = %vm, %error, "no clean shutdown"),
            ended => return ended,
        }
    }
    force_off(daemon, vm).await
}

/// Asks the guest to restart itself and waits for the reset.
pub async fn clean_reboot(daemon: &Arc<Daemon>, vm: &Ref, task: &TaskHandle) -> ApiResult<()> {
    let machine = machine_of(daemon, vm)?;
    let mut events = machine.qmp().events();
    let rebooted = async {
        if machine.agent_present() && machine.agent().shutdown(ShutdownMode::Reboot).await.is_ok() {
            return wait_for(&mut events, "RESET").await;
        }
        // Without an agent there is only the power button: the machine is held where it would power off, and reset there.
        set_shutdown_action(&machine, "pause").await?;
        press_power_button(&machine).await?;
        wait_for(&mut events, "SHUTDOWN").await?;
        reset(&machine).await
    };
    let outcome = timeout(SHUTDOWN_LIMIT, task.until_cancelled(rebooted)).await;
    if let Err(error) = set_shutdown_action(&machine, "poweroff").await {
        tracing::debug!(vm = %machine.uuid, %error, "the action at shutdown could not be put back");
    }
    match outcome {
        Ok(rebooted) => rebooted?,
        Err(_) => Err(ApiError::vm_failed_shutdown_acknowledgment(vm)),
    }
}

async fn set_shutdown_action(machine: &Running, action: &str) -> ApiResult<()> {
    machine
        .qmp()
        .execute("set-action", json!({ "shutdown": action }), QUICK)
        .await
        .map(drop)
        .map_err(ApiError::internal)
}

async fn wait_for(events: &mut Receiver<Event>, name: &str) -> ApiResult<()> {
    loop {
        match events.recv().await {
            Ok(event) if event.name == name && event.data.get("guest").and_then(Json::as_bool) == Some(true) => {
                return Ok(());
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err(ApiError::internal("the machine ended instead of restarting")),
        }
    }
}

/// Presses the reset button; the machine runs afterwards, one that is held for a moment when it is let go.
pub async fn hard_reboot(daemon: &Arc<Daemon>, vm: &Ref) -> ApiResult<()> {
    let machine = machine_of(daemon, vm)?;
    reset(&machine).await?;
    daemon.db.write(|tx| records::power_state(tx, vm, Power::Running))
}

pub(super) async fn reset(machine: &Running) -> ApiResult<()> {
    let qmp = machine.qmp();
    qmp.execute("system_reset", json!({}), QUICK).await.map_err(ApiError::internal)?;
    if launch::run_state(&qmp).await.map_err(ApiError::internal)? != RunState::Running && !machine.is_held() {
        qmp.execute("cont", json!({}), QUICK).await.map_err(ApiError::internal)?;
    }
    Ok(())
}

/// Holds the guest's processors; its requests are finished first.
pub async fn pause(daemon: &Arc<Daemon>, vm: &Ref) -> ApiResult<()> {
    let machine = machine_of(daemon, vm)?;
    machine.qmp().execute("stop", json!({}), STOP_LIMIT).await.map_err(ApiError::internal)?;
    daemon.db.write(|tx| records::power_state(tx, vm, Power::Paused))
}

/// Holds the guest's processors for a moment that its records do not show; its requests are finished first. False where
/// it does not run anyway, and so does not write.
pub async fn hold(machine: &Running) -> ApiResult<bool> {
    match launch::run_state(&machine.qmp()).await.map_err(ApiError::internal)? {
        RunState::Running => {}
        RunState::IoError => {
            let words = "the machine waits for its storage and may go on at any moment; repeat this when it runs";
            return Err(ApiError::operation_not_allowed(words));
        }
        _ => return Ok(false),
    }
    machine.set_held(true);
    let stopped = machine.qmp().execute("stop", json!({}), STOP_LIMIT).await;
    if stopped.is_err() {
        machine.set_held(false);
    }
    stopped.map(|_| true).map_err(ApiError::internal)
}

/// Lets a machine go on that was held.
pub async fn release(machine: &Running) -> ApiResult<()> {
    let going = machine.qmp().execute("cont", json!({}), QUICK).await;
    machine.set_held(false);
    going.map(drop).map_err(ApiError::internal)
}

/// Writes down that a machine runs, if it does.
pub async fn note_running(daemon: &Daemon, vm: &Ref) {
    let Some(machine) = daemon.vmm.machine(vm) else { return };
    let noted = match launch::run_state(&machine.qmp()).await {
        Ok(RunState::Running) => daemon.db.write(|tx| records::observed(tx, vm, Power::Running)),
        Ok(_) => Ok(()),
        Err(error) => Err(ApiError::internal(error)),
    };
    if let Err(error) = noted {
        tracing::warn!(%vm, %error, "what a machine does could not be written down");
    }
}

pub async fn unpause(daemon: &Arc<Daemon>, vm: &Ref) -> ApiResult<()> {
    let machine = machine_of(daemon, vm)?;
    machine.qmp().execute("cont", json!({}), QUICK).await.map_err(ApiError::internal)?;
    daemon.db.write(|tx| records::power_state(tx, vm, Power::Running))
}

/// The machine behind a VM that the database calls running.
pub fn machine_of(daemon: &Daemon, vm: &Ref) -> ApiResult<Arc<Running>> {
    daemon.vmm.machine(vm).ok_or_else(|| ApiError::internal(format!("VM {vm} has no process on this host")))
}
