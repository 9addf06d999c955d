//! Follows one machine from its start, or from being found, to its end.
//!
//! One task for each machine owns the connection's events. It writes what happens into the database, brings the machine
//! back after a fault of the storage, and clears up after the process. It is the only one who calls a machine ended.
//!
//! | event | what follows |
//! |---|---|
//! | process ends | disks detached, records Halted, waiters told; started again where the VM asks for it |
//! | STOP, RESUME | the run state is asked for and written; a disk's fault arms the next `cont` |
//! | VSERPORT_CHANGE | the agent came or went: the guest's facts are read or struck off |
//! | RESET | waiters see it on their own; `actions_after_reboot=destroy` ends the machine |
//! | GUEST_PANICKED | `actions_after_crash` decides |
//! | DEVICE_DELETED | an unplug that came late is finished |
//! | connection lost, process alive | connected again, state asked for |

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tanada_qemu::hotplug::{self, IoStatus};
use tanada_qemu::launch::{self, Machine, RunState};
use tanada_qemu::machine::AGENT_PORT_ID;
use tanada_qemu::qmp::{Event, QUICK, Qmp};
use tanada_qemu::resume::{RETRY, ResumePolicy};
use tanada_xapi::{ApiError, ApiResult, Ref};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep_until;

use super::records::{self, Power};
use super::{Running, disks, guest, power};
use crate::context::Daemon;
use crate::db::View;

/// Between two attempts to reach a process that lives and does not answer; it may be draining a dead disk.
const RECONNECT_PAUSE: Duration = Duration::from_secs(2);
/// A dead connection is waited for so long before it is tried again.
const RECONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Guests tell nothing unasked; addresses and the like are asked for this often.
const GUEST_FACTS_EVERY: Duration = Duration::from_secs(60);
/// The first answers after the agent has come lack the addresses that are still on their way.
const GUEST_FACTS_SOON: Duration = Duration::from_secs(5);

/// Registers a machine and begins to follow it.
pub(super) fn begin(daemon: &Arc<Daemon>, vm: &Ref, machine: Machine, agent_open: bool) -> Arc<Running> {
    let Machine { uuid, dir, process, qmp, events } = machine;
    let running = Arc::new(Running::new(vm, uuid, dir, process, qmp));
    running.set_agent_open(agent_open);
    daemon.vmm.insert(running.clone());
    let supervisor = Supervisor {
        daemon: daemon.clone(),
        machine: running.clone(),
        resume: ResumePolicy::default(),
        cont_at: None,
        facts_at: agent_open.then(Instant::now),
        no_space: false,
        shutdown: None,
    };
    tokio::spawn(supervisor.run(events));
    running
}

/// Takes over a machine that an earlier life of the daemon started: the records follow what is found.
pub(super) async fn adopt(daemon: &Arc<Daemon>, vm: &Ref, machine: Machine, power: Power) -> ApiResult<()> {
    let found = hotplug::disks(&machine.qmp).await.map_err(ApiError::internal)?;
    // Known before anybody can ask: a thaw that is owed must not wait for the first event.
    let agent_open = launch::agent_port_open(&machine.qmp).await.map_err(ApiError::internal)?;
    let running = begin(daemon, vm, machine, agent_open);
    daemon.db.write(|tx| {
        records::resident(tx, &running, power)?;
        let record = tx.get("VM", vm)?;
        let mut names = (0..).map(records::disk_name);
        for disk in &found {
            let (vbd, name) = (tx.find_by_uuid("VBD", &disk.id.to_string()), names.next().unwrap_or_default());
            if let Some(vbd) = vbd.filter(|vbd| vbd.reference("VM") == *vm) {
                let name = if vbd.str("device").is_empty() { name } else { vbd.str("device").to_owned() };
                records::disk_attached(tx, vbd.id(), &name)?;
            }
        }
        for vbd in tx.resolve("VBD", &record.refs("VBDs")) {
            if !found.iter().any(|disk| disk.id.to_string() == vbd.uuid()) {
                records::disk_detached(tx, vbd.id())?;
            }
        }
        record.refs("VIFs").iter().try_for_each(|vif| tx.set("VIF", vif, "currently_attached", true))
    })
}

struct Supervisor {
    daemon: Arc<Daemon>,
    machine: Arc<Running>,
    resume: ResumePolicy,
    cont_at: Option<Instant>,
    facts_at: Option<Instant>,
    /// The last failed request lacked space.
    no_space: bool,
    /// The reason of the last SHUTDOWN event.
    shutdown: Option<String>,
}

/// The next thing that happens to a machine.
enum Happening {
    Ended,
    Event(Event),
    /// Events were missed, or the connection is another: ask for everything.
    Look,
    ConnectionLost,
    Cont,
    GuestFacts,
}

impl Supervisor {
    async fn run(mut self, mut events: Receiver<Event>) {
        self.look().await;
        loop {
            match self.next(&mut events).await {
                Happening::Ended => break,
                Happening::Event(event) => self.event(&event).await,
                Happening::Look => self.look().await,
                Happening::ConnectionLost => match self.reconnect().await {
                    Some(fresh) => {
                        events = fresh;
                        self.look().await;
                    }
                    None => break,
                },
                Happening::Cont => self.cont().await,
                Happening::GuestFacts => self.guest_facts().await,
            }
        }
        self.clear_up(&mut events).await;
    }

    async fn next(&self, events: &mut Receiver<Event>) -> Happening {
        let at = |when: Option<Instant>| when.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)).into();
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Ok(event) => Happening::Event(event),
                Err(RecvError::Lagged(_)) => Happening::Look,
                Err(RecvError::Closed) => Happening::ConnectionLost,
            },
            _ = self.machine.process.exited() => Happening::Ended,
            () = sleep_until(at(self.cont_at)), if self.cont_at.is_some() => Happening::Cont,
            () = sleep_until(at(self.facts_at)), if self.facts_at.is_some() => Happening::GuestFacts,
        }
    }

    /// None where the process ended instead.
    async fn reconnect(&mut self) -> Option<Receiver<Event>> {
        loop {
            let control = self.machine.dir.control_socket();
            tokio::select! {
                biased;
                _ = self.machine.process.exited() => return None,
                connected = Qmp::connect(&control, RECONNECT_LIMIT) => match connected {
                    Ok((qmp, events)) => {
                        self.machine.replace_qmp(qmp);
                        return Some(events);
                    }
                    Err(error) => tracing::warn!(vm = %self.machine.uuid, %error, "the machine lives and does not answer"),
                },
            }
            tokio::select! {
                _ = self.machine.process.exited() => return None,
                () = tokio::time::sleep(RECONNECT_PAUSE) => {}
            }
        }
    }

    async fn event(&mut self, event: &Event) {
        match event.name.as_str() {
            "STOP" => self.look_at_run_state().await,
            // A guest that was resumed has its agent open already.
            "RESUME" => self.look().await,
            "BLOCK_IO_ERROR" => self.disk_failed(event),
            "SHUTDOWN" => self.shutdown = text(&event.data, "reason"),
            "RESET" => self.reset(event),
            "GUEST_PANICKED" => self.panicked().await,
            "VSERPORT_CHANGE" if event.data.get("id").and_then(Json::as_str) == Some(AGENT_PORT_ID) => {
                self.agent_port(event.data.get("open").and_then(Json::as_bool) == Some(true));
            }
            "DEVICE_DELETED" => {
                if let Some(disk) = hotplug::deleted_disk(event) {
                    disks::late_removal(&self.daemon, &self.machine, disk).await;
                }
            }
            _ => {}
        }
    }

    /// Everything that events would have told.
    async fn look(&mut self) {
        self.look_at_run_state().await;
        match launch::agent_port_open(&self.machine.qmp()).await {
            Ok(open) => self.agent_port(open),
            Err(error) => tracing::debug!(vm = %self.machine.uuid, %error, "the agent's port cannot be asked for"),
        }
    }

    async fn look_at_run_state(&mut self) {
        let state = match launch::run_state(&self.machine.qmp()).await {
            Ok(state) => state,
            // It is ending or hanging; whichever, there will be another event.
            Err(error) => return tracing::debug!(vm = %self.machine.uuid, %error, "no run state"),
        };
        match state {
            RunState::Running => {
                self.cont_at = None;
                self.write(|tx, vm| records::observed(tx, vm, Power::Running));
            }
            RunState::Paused if self.machine.is_held() => {}
            RunState::Paused => self.write(|tx, vm| records::observed(tx, vm, Power::Paused)),
            RunState::IoError => self.stopped_by_disk().await,
            RunState::Panicked => self.write(|tx, vm| records::machine_state(tx, vm, "crashed")),
            // Held at its power-off by a reboot that a crash cut short: the guest is off.
            RunState::Shutdown if self.shutdown.is_none() => self.machine.process.kill_now(),
            RunState::Prelaunch | RunState::Incoming | RunState::Saved | RunState::Shutdown | RunState::Other => {}
        }
    }

    fn disk_failed(&mut self, event: &Event) {
        self.no_space = event.data.get("nospace").and_then(Json::as_bool) == Some(true);
        let (operation, reason) = (text(&event.data, "operation"), text(&event.data, "reason"));
        let (operation, reason) = (operation.unwrap_or_default(), reason.unwrap_or_default());
        tracing::warn!(vm = %self.machine.uuid, operation, reason, no_space = self.no_space, "a disk of the guest failed");
    }

    /// The guest waits for its storage. It counts as running: nobody has to do anything for it to go on.
    async fn stopped_by_disk(&mut self) {
        let disks = hotplug::disks(&self.machine.qmp()).await.unwrap_or_default();
        self.no_space |= disks.iter().any(|disk| disk.io_status == IoStatus::NoSpace);
        let decision = self.resume.stopped(Instant::now(), self.no_space);
        if decision.alarm {
            tracing::error!(vm = %self.machine.uuid, no_space = self.no_space, "the guest still waits for its storage");
        }
        self.cont_at = Some(decision.cont_at);
        let why = if self.no_space { "no space left on the storage" } else { "waiting for the storage" };
        let failed: Vec<String> =
            disks.iter().filter(|disk| disk.io_status != IoStatus::Ok).map(|disk| disk.id.to_string()).collect();
        self.write(|tx, vm| {
            for vbd in failed.iter().filter_map(|uuid| tx.find_by_uuid("VBD", uuid)).collect::<Vec<_>>() {
                tx.set("VBD", vbd.id(), "status_detail", why)?;
            }
            tx.set("VM", vm, "power_state", "Running")?;
            records::machine_state(tx, vm, "io-error")
        });
    }

    async fn cont(&mut self) {
        if self.machine.is_held() {
            // Whoever holds it lets it go; what waits for the storage is tried again then.
            self.cont_at = Some(Instant::now() + RETRY);
            return;
        }
        self.cont_at = None;
        self.no_space = false;
        if let Err(error) = self.machine.qmp().execute("cont", json!({}), QUICK).await {
            tracing::warn!(vm = %self.machine.uuid, %error, "the machine does not go on yet");
            self.cont_at = Some(self.resume.stopped(Instant::now(), false).cont_at);
            return;
        }
        self.write(|tx, vm| {
            for vbd in tx.get("VM", vm)?.refs("VBDs") {
                tx.set("VBD", &vbd, "status_detail", "")?;
            }
            Ok(())
        });
    }

    fn reset(&self, event: &Event) {
        let by_guest = event.data.get("guest").and_then(Json::as_bool) == Some(true);
        if by_guest && self.action("actions_after_reboot") == "destroy" {
            self.machine.process.kill_now();
        }
    }

    async fn panicked(&self) {
        let action = self.action("actions_after_crash");
        tracing::warn!(vm = %self.machine.uuid, action, "the guest's kernel gave up");
        match action.as_str() {
            "destroy" | "coredump_and_destroy" => self.machine.process.kill_now(),
            "preserve" => self.write(|tx, vm| records::machine_state(tx, vm, "crashed")),
            _ => {
                if let Err(error) = power::reset(&self.machine).await {
                    tracing::error!(vm = %self.machine.uuid, %error, "the machine cannot be restarted after its crash");
                }
            }
        }
    }

    fn action(&self, field: &str) -> String {
        let action = self.daemon.db.read(|state| state.find("VM", &self.machine.vm).map(|vm| vm.str(field).to_owned()));
        action.unwrap_or_default()
    }

    fn agent_port(&mut self, open: bool) {
        if !self.machine.set_agent_open(open) {
            return;
        }
        if open {
            self.facts_at = Some(Instant::now());
        } else {
            self.facts_at = None;
            self.write(guest::gone);
        }
    }

    /// Asked in a task of its own: a guest that does not answer delays nobody.
    async fn guest_facts(&mut self) {
        let first = self.daemon.db.read(|state| {
            let vm = state.find("VM", &self.machine.vm)?;
            state.find("VM_guest_metrics", &vm.reference("guest_metrics")).map(|facts| !facts.bool("live"))
        });
        let pause = if first.unwrap_or(true) { GUEST_FACTS_SOON } else { GUEST_FACTS_EVERY };
        self.facts_at = Some(Instant::now() + pause);
        let (daemon, machine) = (self.daemon.clone(), self.machine.clone());
        tokio::spawn(async move {
            if let Err(error) = guest::refresh(&daemon, &machine).await {
                tracing::debug!(vm = %machine.uuid, %error, "the guest does not tell about itself");
            }
        });
    }

    fn write(&self, change: impl FnOnce(&mut crate::db::Tx<'_>, &Ref) -> ApiResult<()>) {
        let vm = &self.machine.vm;
        let written = self.daemon.db.write(|tx| match tx.find("VM", vm) {
            Some(_) => change(tx, vm),
            None => Ok(()),
        });
        if let Err(error) = written {
            tracing::error!(vm = %self.machine.uuid, %error, "the machine's state could not be written");
        }
    }

    /// After the end of the process.
    async fn clear_up(mut self, events: &mut Receiver<Event>) {
        let exit = self.machine.process.exited().await;
        while let Ok(event) = events.try_recv() {
            if event.name == "SHUTDOWN" {
                self.shutdown = text(&event.data, "reason");
            }
        }
        tracing::info!(vm = %self.machine.uuid, %exit, reason = self.shutdown, "machine ended");
        if !matches!(self.shutdown.as_deref(), Some("guest-shutdown" | "host-signal" | "host-qmp-quit")) {
            tracing::debug!(vm = %self.machine.uuid, log = self.machine.dir.stderr_tail(), "last words of qemu");
        }
        let vm = self.machine.vm.clone();
        let vbds = self.daemon.db.read(|state| state.find("VM", &vm).map(|vm| vm.refs("VBDs"))).unwrap_or_default();
        for vbd in &vbds {
            disks::detach(&self.daemon, vbd).await;
        }
        let restart =
            self.shutdown.as_deref() == Some("guest-shutdown") && self.action("actions_after_shutdown") == "restart";
        let by_guest = self.shutdown.as_deref() == Some("guest-shutdown");
        self.write(|tx, vm| {
            records::note_stop(tx, vm, by_guest)?;
            records::ended(tx, vm)
        });
        self.daemon.vmm.remove(&vm);
        self.machine.set_ended();
        if restart && let Err(error) = power::start(&self.daemon, &vm, power::StartMode::Run).await {
            tracing::error!(vm = %self.machine.uuid, %error, "the machine should start again after its shutdown and does not");
        }
    }
}

fn text(data: &Json, member: &str) -> Option<String> {
    data.get(member).and_then(Json::as_str).map(str::to_owned)
}
