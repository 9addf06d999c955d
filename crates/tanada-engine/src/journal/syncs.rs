//! Records on their way to the medium: applied and appended, written, synced, acknowledged.
//!
//! ```text
//!   record() --> block being filled --keep---> out of the process (J6b) --write--> on the device (J6a) --sync--> durable
//!                                                |                                 |                             |
//!                                                writes and discards are answered (the first of the two)         |
//!                                                                                     flushes, FUA, control -----+
//! ```
//! One sync runs, the next waits (J9); it covers what was written when it was issued. A failed journal write or sync is
//! final (J10).
//!
//! When the block being filled goes to the device, where it can be kept first: when it is full; when somebody waits
//! until it is durable (a flush waits for what was acknowledged on its volume, kept or written); by the rule of 64 MiB
//! or 1 s (J3); for want of a place to keep it; and at once while flushes are frequent, so that the next one finds it
//! written. (The sync itself is not begun before it is asked for: tried with writes that a flush follows each time, it
//! kept the client from its answer, and write + flush fell from 1.06 to 0.92 times raw.)

use tanada_disk::{DiskOp, DiskResult};
use tanada_format::{Geometry, Record};

use crate::api::Action;
use crate::failure::Failure;
use crate::guest::OpId;
use crate::state::{Pending, Phase, State, read_only};
use crate::tasks::exec::{Filler, Slot, slot};
use crate::versions::{Contradiction, VersionId};

/// Who waits for a sync.
pub struct SyncWaiter {
    /// Journal blocks up to this one must be durable ...
    seq: u64,
    /// ... by a sync of this number or a later one.
    sync: u64,
    pub filler: Filler<Result<(), Failure>>,
}

#[derive(Default)]
pub struct Syncs {
    /// Syncs begun so far.
    pub begun: u64,
    pub running: bool,
    pub waiters: Vec<SyncWaiter>,
    pub acknowledge: Vec<(u64, OpId)>,
    /// Data written since the last sync began, in bytes, and since when.
    pub unsynced_bytes: u64,
    pub unsynced_since: Option<u64>,
    /// So many more records are written at once: somebody is likely to wait for them soon.
    eager: u32,
    /// Groups of records since the last flush, and between the two before.
    since_flush: u32,
    flush_interval: u32,
}

impl Syncs {
    /// True where flushes come after every `interval` records or fewer.
    pub fn expects_flush(&self, interval: u32) -> bool {
        self.eager > 0 && self.flush_interval <= interval && self.since_flush < interval
    }
}

/// After a flush so many records are written to the device at once, so that the next flush finds them there.
const EAGER_RECORDS: u32 = 64;

impl State {
    /// Brings what was recorded in this turn out of the process: into memory that outlives it, where there is some
    /// (J6b), and to the device, where a block is full or somebody waits for it.
    pub fn write_journal(&mut self) {
        if !self.journal.has_records() || self.is_read_only() {
            return;
        }
        if self.journal.is_kept() {
            let kept = self.journal.keep(|block| self.actions.push_back(Action::Keep(block)));
            self.acknowledge_up_to(kept);
        }
        if self.is_journal_awaited() {
            self.journal.seal();
        }
        let geometry = self.alloc.geometry();
        for write in self.journal.take_writes(&geometry) {
            self.start_io(write.op, Pending::Journal { first: write.first });
        }
    }

    /// True where the block being filled must go to the device now.
    fn is_journal_awaited(&self) -> bool {
        let seq = self.journal.next_seq();
        !self.journal.is_kept()
            || self.syncs.eager > 0
            || self.waiting_for_journal.contains_key(&seq)
            || self.syncs.waiters.iter().any(|waiter| waiter.seq >= seq)
            || self.syncs.acknowledge.iter().any(|(awaited, _)| *awaited >= seq)
            || self.sync_is_due()
    }

    pub fn journal_written(&mut self, first: u64, result: DiskResult) {
        if let Err(error) = result {
            return self.fail(format!("writing the journal failed: {error}"));
        }
        let of_pair = self.journal.completed(first);
        self.room_waiters.drain(..).for_each(|filler| filler.fill(()));
        self.acknowledge_up_to(self.journal.written());
        if of_pair {
            self.pair_block_written();
        }
    }

    /// Applies and appends records that belong together, at one instant. Room must have been checked.
    pub fn record(&mut self, records: &[Record]) -> Result<u64, Contradiction> {
        assert!(!self.pairs.is_busy(), "records {records:?} behind a pair that has not ended");
        for record in records {
            self.apply(record)?;
        }
        let seq = self.journal.append(records);
        self.note_records(records, seq);
        Ok(seq)
    }

    /// `records`, in journal block `seq`, are applied.
    pub fn note_records(&mut self, records: &[Record], seq: u64) {
        self.syncs.unsynced_since.get_or_insert(self.now);
        self.syncs.eager = self.syncs.eager.saturating_sub(1);
        self.syncs.since_flush = self.syncs.since_flush.saturating_add(1);
        for record in records {
            self.note_seq(record, seq);
        }
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
            Record::Grow { store_blocks } => self.apply_grow(*store_blocks),
            other => self.versions.apply(other),
        }
    }

    fn apply_grow(&mut self, store_blocks: u64) -> Result<(), Contradiction> {
        let old = self.alloc.geometry();
        if store_blocks <= old.store_blocks() {
            // A checkpoint keeps the size as it is at its end: the store may have grown once and again since its cut.
            return Ok(());
        }
        let geometry = Geometry::new(store_blocks, old.journal_blocks()).map_err(|error| error.to_string())?;
        let device = self.config.device_bytes;
        if geometry.store_bytes() > device {
            return Err(format!("the store grew to {} bytes, the device has {device}", geometry.store_bytes()));
        }
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
        // What is on its way to the journal comes along, unless there is much else.
        let due = self.sync_is_due() && (written > self.journal.durable() || !self.journal.is_writing());
        if !asked && !due {
            return;
        }
        self.syncs.running = true;
        self.syncs.begun += 1;
        self.syncs.unsynced_bytes = 0;
        self.syncs.unsynced_since = (self.journal.last_seq() > written).then_some(self.now);
        self.start_io(DiskOp::Sync, Pending::Sync { covers: written });
    }

    /// Rule J3: what recovery must verify stays bounded.
    fn sync_is_due(&self) -> bool {
        let since = self.syncs.unsynced_since;
        since.is_some_and(|since| {
            self.syncs.unsynced_bytes >= self.config.sync_bytes || self.now >= since + self.config.sync_micros
        })
    }

    /// When the store syncs by itself, if nothing else makes it.
    pub fn sync_at(&self) -> Option<u64> {
        let waits = !self.syncs.running && !self.journal.is_writing();
        self.syncs.unsynced_since.filter(|_| waits).map(|since| since + self.config.sync_micros)
    }

    pub fn synced(&mut self, covers: u64, result: DiskResult) {
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

    /// Somebody wants what was written to be durable: that is likely to happen again.
    pub fn expect_flushes(&mut self) {
        self.syncs.eager = EAGER_RECORDS;
        self.syncs.flush_interval = std::mem::take(&mut self.syncs.since_flush);
    }

    /// Answers `op` when journal blocks up to `seq` are durable.
    pub fn acknowledge_durable(&mut self, seq: u64, op: OpId) {
        if self.journal.durable() >= seq {
            self.finish_op(op);
        } else {
            self.syncs.acknowledge.push((seq, op));
        }
    }
}
