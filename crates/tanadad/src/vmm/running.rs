//! The handle on a running machine.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tanada_qemu::agent::GuestAgent;
use tanada_qemu::process::{Process, StateDir};
use tanada_qemu::qmp::Qmp;
use tanada_xapi::Ref;
use tokio::sync::watch;
use uuid::Uuid;

/// A machine with a process. Kept in [`super::Vmm`] until the process has ended and all is cleared up.
pub struct Running {
    pub vm: Ref,
    pub uuid: Uuid,
    pub dir: StateDir,
    pub process: Process,
    qmp: RwLock<Qmp>,
    agent: Arc<GuestAgent>,
    agent_open: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    /// Stopped by us for a moment.
    held: AtomicBool,
    /// Disks whose unplug was asked for and given up waiting for.
    pending_removals: Mutex<BTreeSet<Uuid>>,
}

impl Running {
    pub(super) fn new(vm: &Ref, uuid: Uuid, dir: StateDir, process: Process, qmp: Qmp) -> Running {
        let agent = Arc::new(GuestAgent::new(&dir.agent_socket()));
        let (agent_open, _) = watch::channel(false);
        let (ended, _) = watch::channel(false);
        Running {
            vm: vm.clone(),
            uuid,
            dir,
            process,
            qmp: RwLock::new(qmp),
            agent,
            agent_open,
            ended,
            held: AtomicBool::new(false),
            pending_removals: Mutex::default(),
        }
    }

    /// The connection of now; after a break the supervisor makes another.
    pub fn qmp(&self) -> Qmp {
        self.qmp.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace_qmp(&self, qmp: Qmp) {
        *self.qmp.write().unwrap_or_else(PoisonError::into_inner) = qmp;
    }

    /// The guest's agent, which may be absent; its commands have deadlines.
    pub fn agent(&self) -> Arc<GuestAgent> {
        self.agent.clone()
    }

    /// Does the guest's agent hold its port open? Only an answer proves that it lives.
    pub fn agent_present(&self) -> bool {
        *self.agent_open.borrow()
    }

    /// Waits until the guest's agent holds its port open.
    pub async fn agent_comes(&self) {
        let mut open = self.agent_open.subscribe();
        // The sender lives as long as self.
        let _ = open.wait_for(|open| *open).await;
    }

    /// True when that changed.
    pub(super) fn set_agent_open(&self, open: bool) -> bool {
        self.agent_open.send_replace(open) != open
    }

    pub(super) fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Waits until the process has ended, the disks are detached and the records say so.
    pub async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as self.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    pub(super) fn set_ended(&self) {
        self.ended.send_replace(true);
    }

    pub(super) fn note_pending_removal(&self, disk: Uuid) {
        self.pending_removals.lock().unwrap_or_else(PoisonError::into_inner).insert(disk);
    }

    /// True where the disk was waited for; it no longer is.
    pub(super) fn take_pending_removal(&self, disk: Uuid) -> bool {
        self.pending_removals.lock().unwrap_or_else(PoisonError::into_inner).remove(&disk)
    }
}
