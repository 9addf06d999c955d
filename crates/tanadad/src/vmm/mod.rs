//! Running machines: one QEMU each, followed by one supervisor.
//!
//! ```text
//!              start: attach disks, launch, records       exit of the process: detach disks, records
//!   (Halted) ------------------------------> Running ------------------------------------> (Halted)
//!                                             |   ^  \
//!                                   stop, or  |   |   \ the daemon ends or dies: nothing happens to the guest;
//!                                 a disk fails|   |    \ the next daemon attaches again and corrects the records
//!                                             v   | cont
//!                                            Paused / waiting for storage
//! ```
//! - The process is the truth; the database follows it. A machine's records become `Running` before its guest runs its
//!   first instruction, and `Halted` after its process has ended, so a machine is never run twice.
//! - Whoever ends a machine kills the process or asks the guest, and waits for [`Running::ended`]; the clearing up is the
//!   supervisor's alone ([`supervise`]).
//! - A machine found in prelaunch at start-up belongs to a start that a crash interrupted: it is ended, that start is undone.
//! - A suspended VM has its memory on a disk: a process found of it is ended ([`suspend`]).
//!
//! | module | what |
//! |---|---|
//! | [`host`] | how this host runs QEMU: user, accelerator, directories |
//! | [`description`] | records of a VM into a machine's description |
//! | [`running`] | the handle on a running machine |
//! | [`supervise`] | follows one machine's events to its end |
//! | [`records`] | what a machine's state means in the database |
//! | [`guest`] | what the guest says about itself |
//! | [`power`] | start, stop, restart, pause |
//! | [`suspend`] | suspend and resume |
//! | [`memory`] | a machine's memory as an image on a disk |
//! | [`disks`] | VBDs plugged and unplugged |
//! | [`plugin`] | `VM.call_plugin`: the guest agent, for administrators |

pub mod description;
pub mod disks;
pub mod guest;
pub mod host;
pub mod memory;
pub mod plugin;
pub mod power;
pub mod records;
pub mod running;
pub mod supervise;
pub mod suspend;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tanada_qemu::launch::{self, RunState};
use tanada_qemu::process::StateDir;
use tanada_xapi::Ref;
use uuid::Uuid;

use crate::context::Daemon;
use crate::db::{Record, View};
use host::Host;
use records::Power;
pub use running::Running;

/// The machines that run here.
pub struct Vmm {
    pub host: Host,
    machines: Mutex<HashMap<Ref, Arc<Running>>>,
}

impl Vmm {
    pub fn new(host: Host) -> Vmm {
        Vmm { host, machines: Mutex::default() }
    }

    /// The machine of a VM, while it has a process.
    pub fn machine(&self, vm: &Ref) -> Option<Arc<Running>> {
        self.lock().get(vm).cloned()
    }

    fn insert(&self, machine: Arc<Running>) {
        self.lock().insert(machine.vm.clone(), machine);
    }

    fn remove(&self, vm: &Ref) {
        self.lock().remove(vm);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ref, Arc<Running>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Re-attaches to machines that run already. Storage is attached, the API is not open yet.
pub async fn start(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    daemon.vmm.host.prepare()?;
    for uuid in daemon.vmm.host.machine_dirs()? {
        if let Err(error) = reattach(daemon, uuid).await {
            tracing::error!(vm = %uuid, %error, "a machine cannot be attached again; it is left as it is");
        }
    }
    records::halt_those_without_process(daemon)?;
    daemon.vmm.host.choose_accelerator_in_background();
    Ok(())
}

async fn reattach(daemon: &Arc<Daemon>, uuid: Uuid) -> anyhow::Result<()> {
    let dir = daemon.vmm.host.machine_dir(uuid);
    let vm = daemon.db.read(|state| state.find_by_uuid("VM", &uuid.to_string()));
    let Some(machine) = launch::reattach(uuid, &dir).await? else {
        if vm.is_none() {
            daemon.vmm.host.forget_machine(&uuid.to_string());
        }
        return Ok(());
    };
    let state = launch::run_state(&machine.qmp).await?;
    let power = match state {
        RunState::Prelaunch | RunState::Paused => Power::Paused,
        _ => Power::Running,
    };
    // A VM that was started paused is in prelaunch too, and its records say so. What waits for the memory of a suspended
    // VM, or has given it away, is not the VM any more.
    let whole = |vm: &Arc<Record>| match (state, vm.str("power_state")) {
        (RunState::Incoming, _) | (_, "Suspended") => false,
        (RunState::Prelaunch, power) => power == "Paused",
        _ => true,
    };
    let Some(vm) = vm.filter(whole) else {
        tracing::warn!(vm = %uuid, ?state, "ending a machine that was being started, has given its memory away or is not known any more");
        machine.process.kill().await;
        return Ok(());
    };
    tracing::info!(vm = %uuid, pid = machine.process.pid(), ?state, "attached again");
    supervise::adopt(daemon, vm.id(), machine, power).await?;
    Ok(())
}

/// Cuts the logs of machines that write too much.
pub async fn bound_logs(daemon: &Arc<Daemon>) {
    let dirs: Vec<_> = daemon.vmm.lock().values().map(|machine| machine.dir.clone()).collect();
    let bounding = tokio::task::spawn_blocking(move || dirs.iter().for_each(StateDir::bound_logs));
    if let Err(error) = bounding.await {
        tracing::error!(%error, "the logs of machines were not looked at");
    }
}

/// Before the end of the process: lets go of the machines, which run on.
pub async fn stop(daemon: &Arc<Daemon>) {
    daemon.vmm.lock().clear();
}
