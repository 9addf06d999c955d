//! Suspending: a machine's memory goes to a disk and its process ends; resuming: a new process goes on where it was.
//!
//! ```text
//!              held     memory out    image durable      COMMIT            process ended
//!   Running ─────┬──────────┬───────────────┬───────────────●── Suspended ──────┬─────────▶ Suspended
//!     crash:     └─ goes on ┴─ goes on ─────┘ goes on       └ the process is ended at the next start
//!
//!              process waits    memory in     COMMIT        goes on        image destroyed
//!   Suspended ──────┬───────────────┬────────────●── Running ──┬───────────────┬──────────▶ Running
//!     crash:        └ it is ended ──┘ it is ended └ it goes on at the next start; the image goes then
//! ```
//! The commit is one transaction: before it the memory is in the process, after it in the image (and the other way round),
//! never in both and never in neither. A process of a VM that is Suspended in the database never runs an instruction.
//! Disks of a suspended VM stay its own: nobody else may write to them ([`crate::storage::attach_vdi`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tanada_qemu::QemuError;
use tanada_qemu::launch::{self, HostSettings};
use tanada_qemu::qmp::QUICK;
use tanada_xapi::{ApiError, ApiResult, Ref};
use tokio::time::timeout;

use super::description::VmRecords;
use super::memory::hardware::Hardware;
use super::memory::load::Image;
use super::memory::place::{self, NewImage};
use super::memory::{give_up, save};
use super::power::{StartMode, hold, machine_of};
use super::records::{self, Power};
use super::{Running, disks, supervise};
use crate::context::Daemon;
use crate::db::View;
use crate::ops::intents::{self, Plan};
use crate::rpc::task::TaskHandle;
use crate::transfer::attached::{Access, Attached};

/// An agent that has not come by then is not asked to thaw and not told the time.
const AGENT_LIMIT: Duration = Duration::from_secs(60);
/// Thawing runs the guest's hooks.
const THAW_LIMIT: Duration = Duration::from_secs(30);

/// Writes the memory of a running machine to a disk and ends the process. On an error it goes on.
pub async fn suspend(daemon: &Arc<Daemon>, vm: &Ref, task: &TaskHandle) -> ApiResult<()> {
    let machine = machine_of(daemon, vm)?;
    let hardware = Hardware::of(daemon, &machine).await?;
    let record = daemon.db.read(|state| state.get("VM", vm))?;
    let image = NewImage::create(daemon, &record, hardware.memory_bytes).await?;
    let intent = Plan::Memory { vm: vm.to_string() }.write(daemon)?;
    // Nobody is served any more: a guest that stands still is saved in one pass.
    let held = hold(&machine).await;
    if let Ok(false) = held {
        intents::clear(daemon, &intent)?;
        image.discard(daemon).await;
        return Err(ApiError::operation_not_allowed(
            "the machine does not run at this moment; repeat this when it does",
        ));
    }
    let written = match held {
        Ok(_) => write_image(daemon, &machine, hardware, &image, task).await,
        Err(error) => Err(error),
    };
    let suspended = match written {
        Ok(()) => commit_suspend(daemon, vm, &image, &intent),
        Err(error) => Err(error),
    };
    if let Err(error) = suspended {
        match give_up(&machine).await {
            Ok(()) => intents::clear(daemon, &intent)?,
            Err(error) => {
                tracing::error!(%vm, %error, "a machine that was to be suspended does not go on");
                daemon.left.add(&intent);
            }
        }
        image.discard(daemon).await;
        return Err(error);
    }
    machine.process.kill_now();
    machine.ended().await;
    Ok(())
}

async fn write_image(
    daemon: &Arc<Daemon>,
    machine: &Arc<Running>,
    hardware: Hardware,
    image: &NewImage,
    task: &TaskHandle,
) -> ApiResult<()> {
    let disk = Attached::open(daemon, &image.vdi, Access::Write).await?;
    let written = async {
        let standing = save::save(machine, hardware, disk.client()?, &task.part(0.0, 0.9)).await?;
        standing.complete().await.map(drop)
    };
    let written = written.await;
    disk.release().await;
    written
}

fn commit_suspend(daemon: &Daemon, vm: &Ref, image: &NewImage, intent: &str) -> ApiResult<()> {
    daemon.db.write(|tx| {
        // Somebody may have taken the power away meanwhile.
        match tx.get("VM", vm)?.str("power_state") {
            "Running" | "Paused" => {}
            other => return Err(ApiError::vm_bad_power_state(vm, "running", other.to_lowercase())),
        }
        tx.set("VM", vm, "suspend_VDI", &image.vdi)?;
        tx.set("VM", vm, "power_state", "Suspended")?;
        image.keep(tx);
        tx.clear_intent(intent);
        Ok(())
    })
}

/// Builds a machine over the memory of a suspended VM. On an error it stays suspended, with its memory.
pub async fn resume(daemon: &Arc<Daemon>, vm: &Ref, mode: StartMode, task: &TaskHandle) -> ApiResult<()> {
    if daemon.vmm.machine(vm).is_some() {
        return Err(ApiError::internal(format!("VM {vm} is suspended in the database and has a process")));
    }
    let vdi = daemon.db.read(|state| {
        let vdi = state.get("VM", vm)?.reference("suspend_VDI");
        state.find("VDI", &vdi).map(|_| vdi).ok_or_else(|| ApiError::vm_has_no_suspend_vdi(vm))
    })?;
    let settings = daemon.vmm.host.settings().await?;
    let image = Image::open(daemon, &vdi).await?;
    let waiting = wait_for_memory(daemon, vm, &image, &settings, task).await;
    let hardware = image.head.hardware.clone();
    image.release().await;
    let machine = waiting?;
    let left = match commit_resume(daemon, &machine, &hardware, mode) {
        Ok(left) => left,
        Err(error) => {
            machine.process.kill_now();
            machine.ended().await;
            return Err(error);
        }
    };
    if mode == StartMode::Run {
        let_run(daemon, &machine, &left).await?;
        wake_up(&machine);
    }
    machine.set_held(false);
    left.image.discard(daemon).await;
    Ok(())
}

/// From the image to a process that has the memory and stands still.
async fn wait_for_memory(
    daemon: &Arc<Daemon>,
    vm: &Ref,
    image: &Image,
    settings: &HostSettings,
    task: &TaskHandle,
) -> ApiResult<Arc<Running>> {
    let (records, here) = daemon.db.read(|state| {
        let here = state.only("host")?.id().clone();
        Ok::<_, ApiError>((VmRecords::look_up(state, vm)?, here))
    })?;
    let hardware = &image.head.hardware;
    hardware.check_host(settings, vm, &here)?;
    daemon.vmm.host.check_memory(hardware.memory_bytes)?;
    let machine = match build(daemon, &records, hardware, &here, settings).await {
        Ok(machine) => machine,
        Err(error) => {
            for disk in &records.disks {
                disks::detach(daemon, &disk.vbd).await;
            }
            return Err(error);
        }
    };
    let version = machine.qmp.version();
    // From here on the supervisor clears up, whatever happens.
    let machine = supervise::begin(daemon, vm, machine, false);
    machine.set_held(true);
    let loaded = match hardware.check_qemu(version, vm, &here) {
        Ok(()) => image.load(&machine, &task.part(0.1, 0.9)).await,
        Err(error) => Err(error),
    };
    match loaded {
        Ok(()) => Ok(machine),
        Err(error) => {
            machine.process.kill_now();
            machine.ended().await;
            Err(error)
        }
    }
}

/// Attaches the disks and builds the machine as it was.
async fn build(
    daemon: &Arc<Daemon>,
    records: &VmRecords,
    hardware: &Hardware,
    here: &Ref,
    settings: &HostSettings,
) -> ApiResult<launch::Machine> {
    let mut specs = Vec::new();
    for (seat, disk) in hardware.seats(records, here)? {
        let mut spec = disks::attach(daemon, disk, records.boot_index(disk)).await?;
        spec.slot = Some(seat.slot);
        spec.serial.clone_from(&seat.serial);
        specs.push(spec);
    }
    let mut spec = records.machine(&daemon.vmm.host, specs)?;
    hardware.apply(&mut spec, records.vm.id(), here)?;
    let dir = daemon.vmm.host.machine_dir(records.uuid);
    launch::launch_incoming(&spec, settings, &dir).await.map_err(ApiError::internal)
}

/// What a resumed machine leaves to be done.
struct Left {
    image: NewImage,
    /// The machine has yet to go on.
    hold: Option<String>,
}

fn commit_resume(daemon: &Daemon, machine: &Running, hardware: &Hardware, mode: StartMode) -> ApiResult<Left> {
    daemon.db.write(|tx| {
        let power = match mode {
            StartMode::Run => Power::Running,
            StartMode::Paused => Power::Paused,
        };
        records::resumed(tx, machine, hardware, power)?;
        let image = place::let_go(tx, &machine.vm)?.ok_or_else(|| ApiError::vm_has_no_suspend_vdi(&machine.vm))?;
        let hold = match mode {
            StartMode::Run => Some(Plan::Hold { vm: machine.vm.to_string() }.put(tx)?),
            StartMode::Paused => None,
        };
        Ok(Left { image, hold })
    })
}

/// The first instruction. A machine that QEMU refuses to let run has not run: its VM is suspended again.
async fn let_run(daemon: &Arc<Daemon>, machine: &Running, left: &Left) -> ApiResult<()> {
    let going = machine.qmp().execute("cont", json!({}), QUICK).await;
    let Some(hold) = &left.hold else { return Ok(()) };
    let Err(error) = going else { return intents::clear(daemon, hold) };
    if matches!(error, QemuError::Refused { .. }) {
        daemon.db.write(|tx| {
            tx.set("VM", &machine.vm, "suspend_VDI", &left.image.vdi)?;
            tx.set("VM", &machine.vm, "power_state", "Suspended")?;
            left.image.keep(tx);
            tx.clear_intent(hold);
            Ok(())
        })?;
        machine.process.kill_now();
        machine.ended().await;
    } else {
        // It may have run; a second one must not.
        machine.process.kill_now();
        machine.ended().await;
        intents::clear(daemon, hold)?;
        left.image.discard(daemon).await;
    }
    Err(ApiError::internal(error))
}

/// A guest that slept believes that no time has passed, and one whose memory was taken while it was frozen would stand still for
/// ever: whoever owed the thaw took its end for the guest's. Whether it listens is its own affair.
fn wake_up(machine: &Arc<Running>) {
    let machine = machine.clone();
    tokio::spawn(async move {
        if timeout(AGENT_LIMIT, machine.agent_comes()).await.is_err() {
            return;
        }
        let agent = machine.agent();
        if agent.is_frozen(QUICK).await.unwrap_or(false) {
            tracing::warn!(vm = %machine.uuid, "a resumed guest is frozen; it is thawed");
            if let Err(error) = agent.thaw(THAW_LIMIT).await {
                tracing::warn!(vm = %machine.uuid, %error, "a resumed guest does not answer to thaw");
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = json!({ "time": u64::try_from(now.as_nanos()).unwrap_or(0) });
        if let Err(error) = agent.command("guest-set-time", time, QUICK).await {
            tracing::info!(vm = %machine.uuid, %error, "a resumed guest was not told the time");
        }
    });
}

/// Takes the memory of a suspended VM away: it is halted.
pub async fn forget(daemon: &Arc<Daemon>, vm: &Ref) -> ApiResult<()> {
    let image = daemon.db.write(|tx| {
        let image = place::let_go(tx, vm)?;
        // What its memory had not written yet is lost.
        if tx.find("VM", vm).is_some_and(|vm| vm.str("power_state") != "Halted") {
            records::note_stop(tx, vm, false)?;
        }
        records::halted(tx, vm)?;
        Ok(image)
    })?;
    if let Some(image) = image {
        image.discard(daemon).await;
    }
    Ok(())
}
