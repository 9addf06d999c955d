//! All state of an open store, and how it meets the device.
//!
//! Events change it at once; tasks ([`crate::tasks::exec`]) reach it through a [`Handle`], in closures that end before
//! the next await. What waits for what:
//! ```text
//!   guest write: busy blocks -> admission (space, delta, journal) -> data write -> record -> journal write -> answer
//!   FUA, flush, control: ... -> one sync, shared by all that wait -> answer
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use tanada_disk::{Buf, DiskError, DiskOp, DiskResult};
use tanada_format::{BLOCK_BYTES, Geometry, Superblock};
use uuid::Uuid;

use crate::api::{Action, Alert, IoId, Reply, Request, RequestId};
use crate::background::relayout::{Move, Relayout};
use crate::background::scrub::Scrub;
use crate::config::EngineConfig;
use crate::failure::{EIO, EROFS, Failure};
use crate::guest::busy::BusyBlocks;
use crate::guest::data::{DataWrite, Piece};
use crate::guest::read::{GuestRead, GuestReads, ReadId};
use crate::guest::read_ahead::ReadAhead;
use crate::guest::{Export, GuestOp, OpId};
use crate::journal::Journal;
use crate::journal::pair::Pairs;
use crate::journal::syncs::Syncs;
use crate::map::cache::NodeCache;
use crate::map::catalog::Catalog;
use crate::map::delta::DeltaCost;
use crate::space::Preparing;
use crate::space::alloc::{Allocator, PageRead};
use crate::space::releases::Releases;
use crate::tasks::exec::{Filler, Slot, slot};
use crate::tasks::timers::Timers;
use crate::versions::{VersionId, Versions};

pub const BLOCK: u64 = BLOCK_BYTES as u64;

/// Tasks reach the state through this.
#[derive(Clone)]
pub struct Handle(pub Rc<RefCell<State>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Opening,
    Serving,
    /// A sync or journal write failed (J10): reads only, until restarted.
    ReadOnly(String),
    /// It could not be opened.
    Refused(Failure),
}

/// Who is told how a device operation ended.
pub enum Pending {
    Task(Filler<DiskResult>),
    Data(DataWrite),
    /// Blocks being brought together.
    Move(Move),
    /// A run of a guest's read: `count` blocks from number `from` of those it wants.
    Read {
        read: ReadId,
        from: usize,
        count: usize,
    },
    Journal {
        first: u64,
    },
    Sync {
        covers: u64,
    },
    /// A pair's journal block written anew, without its records.
    Void,
    /// Space filled with zeros.
    Prepare,
    /// Space handed back to the medium; failing is harmless.
    Punch {
        first: u64,
        count: u64,
    },
}

/// Work for a task.
pub enum Job {
    Open,
    /// A look-up that needs nodes from the device.
    Read(Box<GuestRead>),
    /// Blocks that did not verify.
    MendRead(Box<GuestRead>),
    Patch {
        op: OpId,
        place: u64,
        at: usize,
        patch: Patch,
    },
    Extents {
        request: RequestId,
        request_body: Request,
    },
    Control {
        request: RequestId,
        control: crate::api::Control,
    },
    Checkpoint,
    LoadPages {
        pages: Vec<PageRead>,
    },
    Walk,
    CountGhosts,
    Scrub {
        run: u64,
    },
}

/// New bytes for a part of a block.
pub enum Patch {
    Bytes(Buf),
    Zeros(usize),
}

/// Where the checkpoint stands.
#[derive(Default)]
pub struct CheckpointState {
    pub running: bool,
    /// Somebody asked for one, or a limit was reached.
    pub wanted: bool,
    /// Its guests wait for it: no pacing.
    pub urgent: bool,
    /// Cuts made, and cuts whose checkpoint is durable.
    pub cuts: u64,
    pub finished: u64,
    pub last_at: u64,
    /// When the last cut was made.
    pub cut_at: u64,
    /// Told when the checkpoint of a cut is durable.
    pub waiters: Vec<(u64, Filler<Result<(), Failure>>)>,
    /// Delta that the running one merges.
    pub frozen_cost: DeltaCost,
    /// Blocks that it will let go.
    pub garbage: u64,
    pub slots: u64,
    /// How long the running one is expected to take, in microseconds, where the last one was late.
    pub expected_micros: Option<u64>,
    /// Map nodes that it has written so far.
    pub merged_nodes: u64,
    /// What the last one took for each delta node, where it was late.
    pub late_nanos_per_node: Option<u64>,
    /// Features that its superblock asks for, beside those of the last one.
    pub features_required: u32,
}

pub struct State {
    pub config: EngineConfig,
    pub now: u64,
    pub phase: Phase,
    pub actions: VecDeque<Action>,
    next_io: u64,
    ios: BTreeMap<IoId, Pending>,
    pub jobs: VecDeque<Job>,
    /// Tasks that gave way to guests until the next turn.
    pub yielded: Vec<Waker>,
    pub timers: Timers,

    pub superblock: Option<Superblock>,
    pub store: Uuid,
    pub versions: Versions,
    pub alloc: Allocator,
    pub catalog: Catalog,
    pub journal: Journal,
    pub cache: NodeCache,
    pub syncs: Syncs,
    pub checkpoint: CheckpointState,

    pub exports: BTreeMap<u32, Export>,
    pub next_export: u32,
    pub ops: BTreeMap<OpId, GuestOp>,
    /// Ops whose records are in a journal block that is not written yet.
    pub waiting_for_journal: BTreeMap<u64, Vec<OpId>>,
    pub next_op: OpId,
    pub busy: BTreeMap<VersionId, BusyBlocks>,
    pub pending: VecDeque<Piece>,
    /// Placing ended with nothing left: what is pending now came after it.
    pub placed_all: bool,
    /// Delta nodes that admitted writes may still make.
    pub promised_nodes: u64,
    pub stalled_since_cut: Option<u64>,
    pub data_writes: u64,
    pub data_in_flight: usize,
    pub pairs: Pairs,
    pub data_blocks: u64,

    pub releases: Releases,
    pub reads: GuestReads,
    pub ahead: ReadAhead,
    pub relayout: Relayout,
    /// When a guest last changed something.
    pub last_change: u64,
    /// Bitmap pages for guests' writes are being read.
    pub loading_pages: bool,
    /// A hole punch is in flight.
    pub punching: bool,
    pub preparing: Option<Preparing>,
    /// Delayed writers go on then.
    pub admit_at: u64,
    /// Blocks are left to release in the next turn.
    pub more_releases: bool,
    /// What deletion walks freed since the last cut.
    pub walked: Vec<u64>,
    pub walking: Option<VersionId>,
    pub walk_queued: bool,
    /// Dying versions whose trees are damaged.
    pub walk_failed: std::collections::BTreeSet<VersionId>,
    pub settle_waiters: Vec<RequestId>,
    /// Control operations that wait for room in the journal.
    pub room_waiters: Vec<Filler<()>>,
    pub scrub: Scrub,
    /// Requests of guests so far, reads among them.
    pub guest_requests: u64,
    pub ghost_held: u64,
    pub ghosts_counted_at: Option<u64>,
    pub warned_nearly_full: bool,
    pub warned_full: bool,
    /// When the medium last refused a write for want of room.
    pub medium_full_at: Option<u64>,
    next_hidden: u64,
}

impl State {
    pub fn new(config: EngineConfig, now: u64) -> State {
        // A stand-in until the superblock is read; nothing is allocated from it.
        let geometry = Geometry::new(4096, 64).unwrap_or_else(|error| unreachable!("a constant geometry: {error}"));
        let cache = NodeCache::new(config.memory_bytes * 5 / 16);
        State {
            now,
            phase: Phase::Opening,
            actions: VecDeque::new(),
            next_io: 1,
            ios: BTreeMap::new(),
            jobs: VecDeque::from([Job::Open]),
            yielded: Vec::new(),
            timers: Timers::default(),
            superblock: None,
            store: Uuid::nil(),
            versions: Versions::default(),
            alloc: Allocator::new(geometry, 1),
            catalog: Catalog::default(),
            journal: Journal::new(Uuid::nil(), 0, 0, 64, 1, 1),
            cache,
            syncs: Syncs::default(),
            checkpoint: CheckpointState { last_at: now, cut_at: now, ..CheckpointState::default() },
            exports: BTreeMap::new(),
            next_export: 1,
            ops: BTreeMap::new(),
            waiting_for_journal: BTreeMap::new(),
            next_op: 1,
            busy: BTreeMap::new(),
            pending: VecDeque::new(),
            placed_all: true,
            promised_nodes: 0,
            stalled_since_cut: None,
            data_writes: 0,
            data_in_flight: 0,
            pairs: Pairs::default(),
            data_blocks: 0,
            releases: Releases::default(),
            reads: GuestReads::default(),
            ahead: ReadAhead::default(),
            relayout: Relayout::default(),
            last_change: now,
            loading_pages: false,
            punching: false,
            preparing: None,
            admit_at: 0,
            more_releases: false,
            walked: Vec::new(),
            walking: None,
            walk_queued: false,
            walk_failed: std::collections::BTreeSet::new(),
            settle_waiters: Vec::new(),
            room_waiters: Vec::new(),
            scrub: Scrub::default(),
            guest_requests: 0,
            ghost_held: 0,
            ghosts_counted_at: None,
            warned_nearly_full: false,
            warned_full: false,
            medium_full_at: None,
            next_hidden: 0,
            config,
        }
    }

    // ---- device operations

    pub fn start_io(&mut self, op: DiskOp, pending: Pending) {
        let io = IoId(self.next_io);
        self.next_io += 1;
        self.ios.insert(io, pending);
        self.actions.push_back(Action::Disk { io, op });
    }

    /// Starts an operation that a task waits for.
    pub fn task_io(&mut self, op: DiskOp) -> Slot<DiskResult> {
        let (filler, slot) = slot();
        self.start_io(op, Pending::Task(filler));
        slot
    }

    pub fn data_io(&mut self, op: DiskOp, write: DataWrite) {
        self.start_io(op, Pending::Data(write));
    }

    pub fn complete(&mut self, io: IoId, result: DiskResult) {
        match self.ios.remove(&io) {
            None => tracing::error!(io = io.0, "the end of an operation that was never started"),
            Some(Pending::Task(filler)) => filler.fill(result),
            Some(Pending::Data(write)) => self.data_written(write, result),
            Some(Pending::Move(moving)) => self.moved(moving, result),
            Some(Pending::Read { read, from, count }) => self.run_read(read, from, count, result),
            Some(Pending::Journal { first }) => self.journal_written(first, result),
            Some(Pending::Sync { covers }) => self.synced(covers, result),
            Some(Pending::Void) => self.voided(result),
            Some(Pending::Prepare) => self.prepared(result),
            Some(Pending::Punch { first, count }) => {
                self.punching = false;
                (first..first + count).for_each(|block| self.alloc.release(block));
            }
        }
    }

    // ---- failures

    pub fn is_read_only(&self) -> bool {
        matches!(self.phase, Phase::ReadOnly(_))
    }

    /// Final (J10): reads only, errors to everybody else; a restart recovers from what is on the medium.
    pub fn fail(&mut self, message: String) {
        if self.is_read_only() {
            return;
        }
        tracing::error!(message, "the store is read-only");
        self.phase = Phase::ReadOnly(message.clone());
        self.actions.push_back(Action::Alert(Alert::ReadOnly { message: message.clone() }));
        let failure = read_only(&message);
        for waiter in std::mem::take(&mut self.syncs.waiters) {
            waiter.filler.fill(Err(failure.clone()));
        }
        for (_, filler) in std::mem::take(&mut self.checkpoint.waiters) {
            filler.fill(Err(failure.clone()));
        }
        for request in std::mem::take(&mut self.settle_waiters) {
            self.reply(request, Err(failure.clone()));
        }
        self.room_waiters.drain(..).for_each(|filler| filler.fill(()));
        self.syncs.acknowledge.clear();
        self.waiting_for_journal.clear();
        self.pending.clear();
        self.pairs.clear();
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            self.abort_op(op, Failure::new(EIO, format!("the store is read-only: {message}")));
        }
    }

    /// Errors where the store takes no changes.
    pub fn check_writable(&self) -> Result<(), Failure> {
        match &self.phase {
            Phase::Serving => Ok(()),
            Phase::ReadOnly(message) => Err(read_only(message)),
            Phase::Refused(failure) => Err(failure.clone()),
            Phase::Opening => Err(Failure::new(crate::failure::EBUSY, "the store is still opening")),
        }
    }

    pub fn reply(&mut self, request: RequestId, result: Result<Reply, Failure>) {
        self.actions.push_back(Action::Reply { request, result });
    }

    pub fn alert(&mut self, alert: Alert) {
        self.actions.push_back(Action::Alert(alert));
    }

    /// A name for something the store makes for itself; never the same twice.
    pub fn hidden_uuid(&mut self) -> Uuid {
        self.next_hidden += 1;
        let salt = (u128::from(self.config.seed) << 64) ^ (u128::from(self.journal.incarnation) << 40);
        let mixed = (salt ^ u128::from(self.next_hidden)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        uuid::Builder::from_random_bytes(mixed.to_be_bytes()).into_uuid()
    }
}

pub fn read_only(message: &str) -> Failure {
    Failure::new(EROFS, format!("the store is read-only until it is restarted: {message}"))
}

impl Handle {
    /// Runs `act` on the state; must not nest.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    pub async fn disk(&self, op: DiskOp) -> DiskResult {
        let slot = self.with(|state| state.task_io(op));
        slot.await
    }

    /// Reads `length` bytes at block `block`.
    pub async fn read_blocks(&self, block: u64, length: u32) -> Result<Buf, DiskError> {
        match self.disk(DiskOp::Read { at: block * BLOCK, length }).await? {
            Some(buf) if buf.len() == length as usize => Ok(buf),
            _ => Err(DiskError::EIO),
        }
    }

    /// Gives way to guests, unless somebody waits for this.
    pub async fn give_way(&self) {
        if !self.with(|state| state.checkpoint.urgent) {
            self.next_turn().await;
        }
    }

    /// Gives way to guests until the next turn.
    pub async fn next_turn(&self) {
        let mut waited = false;
        std::future::poll_fn(|context| {
            if waited {
                return std::task::Poll::Ready(());
            }
            waited = true;
            self.with(|state| state.yielded.push(context.waker().clone()));
            std::task::Poll::Pending
        })
        .await;
    }
}
