//! All state of an open store, and how it meets the device.
//!
//! Events change it at once; tasks ([`crate::exec`]) reach it through a [`Handle`], in closures that end before the next
//! await. What waits for what:
//! ```text
//!   guest write: busy blocks -> admission (space, delta, journal) -> data write -> record -> journal write -> answer
//!   FUA, flush, control: ... -> one sync, shared by all that wait -> answer
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use tanada_disk::{Buf, DiskError, DiskOp, DiskResult};
use tanada_format::{BLOCK_BYTES, Geometry, Record, Superblock};
use tanada_units::MIB;
use uuid::Uuid;

use crate::alloc::Allocator;
use crate::api::{Action, Alert, IoId, Reply, Request, RequestId};
use crate::cache::NodeCache;
use crate::catalog::Catalog;
use crate::checkpoint::BLOCKS_PER_TURN;
use crate::config::EngineConfig;
use crate::data::{DataWrite, Piece};
use crate::delta::DeltaCost;
use crate::exec::{Filler, Slot, slot};
use crate::failure::{EIO, EROFS, Failure};
use crate::guest::{Export, GuestOp, OpId};
use crate::journal::Journal;
use crate::locks::BusyBlocks;
use crate::versions::{Contradiction, VersionId, Versions};

pub const BLOCK: u64 = BLOCK_BYTES as u64;

/// Space is passed down when nothing was written for so long: first writes to a hole are slow, so what guests are about
/// to write again stays.
const PUNCH_IDLE_MICROS: u64 = 10_000_000;

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
enum Pending {
    Task(Filler<DiskResult>),
    Data(DataWrite),
    Journal {
        first: u64,
    },
    Sync {
        covers: u64,
    },
    /// Space handed back to the medium; failing is harmless.
    Punch {
        first: u64,
        count: u64,
    },
}

/// Work for a task.
pub enum Job {
    Open,
    Read { request: RequestId, export: u32, offset: u64, length: u32 },
    Patch { op: OpId, place: u64, at: usize, patch: Patch },
    Extents { request: RequestId, request_body: Request },
    Control { request: RequestId, control: crate::api::Control },
    Checkpoint,
    Walk,
    CountGhosts,
}

/// New bytes for a part of a block.
pub enum Patch {
    Bytes(Buf),
    Zeros(usize),
}

struct SyncWaiter {
    /// Journal blocks up to this one must be durable ...
    seq: u64,
    /// ... by a sync of this number or a later one.
    sync: u64,
    filler: Filler<Result<(), Failure>>,
}

#[derive(Default)]
pub struct Syncs {
    /// Syncs begun so far.
    begun: u64,
    running: bool,
    waiters: Vec<SyncWaiter>,
    acknowledge: Vec<(u64, OpId)>,
    /// Data written since the last sync began, in bytes, and since when.
    pub unsynced_bytes: u64,
    pub unsynced_since: Option<u64>,
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
    /// Told when the checkpoint of a cut is durable.
    pub waiters: Vec<(u64, Filler<Result<(), Failure>>)>,
    /// Delta that the running one merges.
    pub frozen_cost: DeltaCost,
    /// Blocks that it will let go.
    pub garbage: u64,
    pub slots: u64,
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
    /// Delta nodes that admitted writes may still make.
    pub promised_nodes: u64,
    pub stalled_since_cut: Option<u64>,
    pub data_writes: u64,
    pub data_blocks: u64,

    /// Reads in progress by round; the round moves when a checkpoint's trees are taken over (B3).
    readers: BTreeMap<u64, u64>,
    pub round: u64,
    /// Blocks to release when all readers of this round or an earlier one are gone.
    releases: VecDeque<(u64, Vec<u64>)>,
    pub unreleased: u64,
    /// When a guest last changed something.
    pub last_change: u64,
    /// A hole punch is in flight.
    punching: bool,
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
    pub ghost_held: u64,
    pub ghosts_counted_at: Option<u64>,
    warned_nearly_full: bool,
    pub warned_full: bool,
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
            superblock: None,
            store: Uuid::nil(),
            versions: Versions::default(),
            alloc: Allocator::new(geometry),
            catalog: Catalog::default(),
            journal: Journal::new(Uuid::nil(), 0, 0, 64, 1, 1),
            cache,
            syncs: Syncs::default(),
            checkpoint: CheckpointState { last_at: now, ..CheckpointState::default() },
            exports: BTreeMap::new(),
            next_export: 1,
            ops: BTreeMap::new(),
            waiting_for_journal: BTreeMap::new(),
            next_op: 1,
            busy: BTreeMap::new(),
            pending: VecDeque::new(),
            promised_nodes: 0,
            stalled_since_cut: None,
            data_writes: 0,
            data_blocks: 0,
            readers: BTreeMap::new(),
            round: 0,
            releases: VecDeque::new(),
            unreleased: 0,
            last_change: now,
            punching: false,
            more_releases: false,
            walked: Vec::new(),
            walking: None,
            walk_queued: false,
            walk_failed: std::collections::BTreeSet::new(),
            settle_waiters: Vec::new(),
            room_waiters: Vec::new(),
            ghost_held: 0,
            ghosts_counted_at: None,
            warned_nearly_full: false,
            warned_full: false,
            next_hidden: 0,
            config,
        }
    }

    // ---- device operations

    fn start_io(&mut self, op: DiskOp, pending: Pending) {
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
            Some(Pending::Journal { first }) => self.journal_written(first, result),
            Some(Pending::Sync { covers }) => self.synced(covers, result),
            Some(Pending::Punch { first, count }) => {
                self.punching = false;
                (first..first + count).for_each(|block| self.alloc.release(block));
            }
        }
    }

    // ---- journal and syncs

    /// Writes what was recorded in this turn, all in one go (J6a).
    pub fn write_journal(&mut self) {
        if !self.journal.has_records() || self.is_read_only() {
            return;
        }
        let geometry = self.alloc.geometry();
        for write in self.journal.take_writes(&geometry) {
            self.syncs.unsynced_since.get_or_insert(self.now);
            self.start_io(write.op, Pending::Journal { first: write.first });
        }
    }

    fn journal_written(&mut self, first: u64, result: DiskResult) {
        if let Err(error) = result {
            return self.fail(format!("writing the journal failed: {error}"));
        }
        self.journal.completed(first);
        self.acknowledge_written();
    }

    /// Applies and appends records that belong together, at one instant. Room must have been checked.
    pub fn record(&mut self, records: &[Record]) -> Result<u64, Contradiction> {
        for record in records {
            self.apply(record)?;
        }
        let seq = self.journal.append(records);
        for record in records {
            self.note_seq(record, seq);
        }
        Ok(seq)
    }

    fn note_seq(&mut self, record: &Record, seq: u64) {
        let heads: Vec<VersionId> = match record {
            Record::Map { head, .. }
            | Record::Unmap { head, .. }
            | Record::Create { head, .. }
            | Record::Clone { head, .. }
            | Record::Revert { head, .. }
            | Record::Resize { head, .. } => vec![*head],
            Record::Snapshot { members, .. } => members.iter().map(|member| member.head).collect(),
            Record::Destroy { .. } | Record::Grow { .. } | Record::Recovered { .. } => Vec::new(),
        };
        for head in heads {
            if let Some(version) = self.versions.get_mut(head) {
                version.last_seq = seq;
            }
        }
    }

    /// What a record does to the versions; the same now and at replay.
    pub fn apply(&mut self, record: &Record) -> Result<(), Contradiction> {
        match record {
            Record::Map { head, place, block, crcs } => self.versions.map(*head, *place, *block, crcs),
            Record::Unmap { head, place, blocks } => self.versions.unmap(*head, *place, *blocks),
            Record::Snapshot { first_id, ended, hidden, members } => {
                self.versions.snapshot(*first_id, *ended, *hidden, members)
            }
            Record::Create { head, size, uuid } => self.versions.create(*head, *size, *uuid),
            Record::Clone { head, generation, uuid } => self.versions.clone_generation(*head, *generation, *uuid),
            Record::Revert { head, generation, old_head } => self.versions.revert(*head, *generation, *old_head),
            Record::Destroy { version } => self.versions.destroy(*version),
            Record::Resize { head, size } => self.versions.resize(*head, *size),
            Record::Grow { store_blocks } => self.apply_grow(*store_blocks),
            Record::Recovered { .. } => Ok(()),
        }
    }

    fn apply_grow(&mut self, store_blocks: u64) -> Result<(), Contradiction> {
        let old = self.alloc.geometry();
        if store_blocks < old.store_blocks() {
            return Err(format!("the store shrinks from {} to {store_blocks} blocks", old.store_blocks()));
        }
        let geometry = Geometry::new(store_blocks, old.journal_blocks()).map_err(|error| error.to_string())?;
        self.alloc.grow(geometry);
        Ok(())
    }

    /// Completes when journal blocks up to `seq` are durable.
    pub fn durable(&mut self, seq: u64) -> Slot<Result<(), Failure>> {
        self.wait_sync(seq, 0)
    }

    /// Completes when everything written before now is durable.
    pub fn barrier(&mut self) -> Slot<Result<(), Failure>> {
        self.wait_sync(0, self.syncs.begun + 1)
    }

    fn wait_sync(&mut self, seq: u64, sync: u64) -> Slot<Result<(), Failure>> {
        let (filler, slot) = slot();
        if let Phase::ReadOnly(message) = &self.phase {
            filler.fill(Err(read_only(message)));
        } else if sync == 0 && self.journal.durable() >= seq {
            filler.fill(Ok(()));
        } else {
            self.syncs.waiters.push(SyncWaiter { seq, sync, filler });
        }
        slot
    }

    /// Starts a sync where somebody waits for one: one running, the next waiting (J9).
    pub fn start_sync(&mut self) {
        if self.syncs.running || self.is_read_only() {
            return;
        }
        let written = self.journal.written();
        let asked = self.syncs.waiters.iter().any(|waiter| waiter.seq <= written)
            || self.syncs.acknowledge.iter().any(|(seq, _)| *seq <= written);
        if !asked && !self.sync_is_due() {
            return;
        }
        self.syncs.running = true;
        self.syncs.begun += 1;
        self.syncs.unsynced_bytes = 0;
        self.syncs.unsynced_since = None;
        self.start_io(DiskOp::Sync, Pending::Sync { covers: written });
    }

    /// Rule J3: what recovery must verify stays bounded.
    fn sync_is_due(&self) -> bool {
        let since = self.syncs.unsynced_since;
        since.is_some_and(|since| {
            self.syncs.unsynced_bytes >= self.config.sync_bytes || self.now >= since + self.config.sync_micros
        })
    }

    fn synced(&mut self, covers: u64, result: DiskResult) {
        self.syncs.running = false;
        if let Err(error) = result {
            return self.fail(format!("syncing the device failed: {error}"));
        }
        self.journal.made_durable(covers);
        let (done, number) = (self.journal.durable(), self.syncs.begun);
        let waiters = std::mem::take(&mut self.syncs.waiters);
        for waiter in waiters {
            if waiter.seq <= done && waiter.sync <= number {
                waiter.filler.fill(Ok(()));
            } else {
                self.syncs.waiters.push(waiter);
            }
        }
        let acknowledge = std::mem::take(&mut self.syncs.acknowledge);
        for (seq, op) in acknowledge {
            if seq <= done {
                self.finish_op(op);
            } else {
                self.syncs.acknowledge.push((seq, op));
            }
        }
    }

    /// Answers `op` when journal blocks up to `seq` are durable.
    pub fn acknowledge_durable(&mut self, seq: u64, op: OpId) {
        if self.journal.durable() >= seq {
            self.finish_op(op);
        } else {
            self.syncs.acknowledge.push((seq, op));
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

    // ---- readers and releases (B1-B3)

    fn enter(&mut self) -> u64 {
        *self.readers.entry(self.round).or_insert(0) += 1;
        self.round
    }

    fn leave(&mut self, round: u64) {
        if let Some(count) = self.readers.get_mut(&round) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&round);
            }
        }
    }

    /// Lets `blocks` go when all readers that began before now are gone. The checkpoint that dropped them is durable.
    pub fn release_later(&mut self, blocks: Vec<u64>) {
        self.unreleased += blocks.len() as u64;
        self.releases.push_back((self.round, blocks));
        self.round += 1;
    }

    fn can_release(&self) -> bool {
        let oldest = self.readers.first_key_value().map_or(u64::MAX, |(round, _)| *round);
        self.releases.front().is_some_and(|(round, _)| *round < oldest)
    }

    /// Releases what no reader needs any more, a bounded number of blocks per turn; true where more is left.
    pub fn release_some(&mut self) -> bool {
        let mut budget = BLOCKS_PER_TURN;
        while budget > 0 && self.can_release() {
            let Some((_, blocks)) = self.releases.front_mut() else { break };
            let now = blocks.split_off(blocks.len().saturating_sub(budget));
            if blocks.is_empty() {
                self.releases.pop_front();
            }
            budget -= now.len().min(budget);
            self.unreleased -= now.len() as u64;
            now.into_iter().for_each(|block| self.alloc.release(block));
        }
        self.can_release()
    }

    pub fn has_releases(&self) -> bool {
        !self.releases.is_empty()
    }

    // ---- space

    /// When space may be passed down, if there is any to pass.
    pub fn punch_at(&self) -> Option<u64> {
        let waits = self.alloc.may_have_idle_segments() && !self.punching && !self.checkpoint.running;
        waits.then(|| (self.last_change + PUNCH_IDLE_MICROS).max(self.now + 1000))
    }

    /// Passes space down to the medium, a segment at a time, while nobody waits for anything else. Whole segments only:
    /// small holes fragment the file below and turn each later sync into a commit of its journal.
    pub fn punch_idle(&mut self) {
        let busy = self.punching || self.checkpoint.running || self.syncs.running || !self.ops.is_empty();
        if busy || self.now < self.last_change + PUNCH_IDLE_MICROS {
            return;
        }
        if let Some((first, count)) = self.alloc.take_idle_segment() {
            self.punching = true;
            let op = DiskOp::Punch { at: first * BLOCK, length: count * BLOCK };
            self.start_io(op, Pending::Punch { first, count });
        }
    }

    /// Free blocks that only checkpoints and deletions may take (store notes section 6).
    pub fn reserve(&self) -> u64 {
        let cost = self.versions.cost.nodes + self.checkpoint.frozen_cost.nodes + self.promised_nodes;
        let regions = self.alloc.geometry().region_count();
        let fixed = (self.config.reserve_bytes / BLOCK).min(self.alloc.geometry().allocatable_blocks() / 16);
        cost + 2 * self.catalog.reserve_blocks(regions) + fixed
    }

    /// Bytes of memory for one era's delta.
    pub fn delta_limit(&self) -> u64 {
        (self.config.memory_bytes * 3 / 16).max(MIB / 4)
    }

    /// Warns when the store becomes 80 % full, and says so when there is room again.
    pub fn watch_space(&mut self) {
        let (free, total) = (self.alloc.free(), self.alloc.geometry().allocatable_blocks());
        let nearly_full = free < total / 5;
        if nearly_full && !self.warned_nearly_full {
            let physical = self.alloc.geometry().store_bytes();
            self.alert(Alert::NearlyFull { free: free * BLOCK, physical });
        }
        if self.warned_full && free > self.reserve() + total / 50 {
            self.warned_full = false;
            self.alert(Alert::RoomAgain { free: free * BLOCK });
        }
        self.warned_nearly_full = if self.warned_nearly_full { free < total / 4 } else { nearly_full };
    }

    /// A name for something the store makes for itself; never the same twice.
    pub fn hidden_uuid(&mut self) -> Uuid {
        self.next_hidden += 1;
        let salt = (u128::from(self.config.seed) << 64) ^ (u128::from(self.journal.incarnation) << 40);
        let mixed = (salt ^ u128::from(self.next_hidden)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        uuid::Builder::from_random_bytes(mixed.to_be_bytes()).into_uuid()
    }
}

fn read_only(message: &str) -> Failure {
    Failure::new(EROFS, format!("the store is read-only until it is restarted: {message}"))
}

/// Counts a reader from look-up to end (B3); dropped when it ends.
pub struct Reading {
    handle: Handle,
    round: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.handle.with(|state| state.leave(self.round));
    }
}

impl Handle {
    /// Runs `act` on the state; must not nest.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    pub fn reading(&self) -> Reading {
        let round = self.with(State::enter);
        Reading { handle: self.clone(), round }
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
