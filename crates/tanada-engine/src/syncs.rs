//! Records on their way to the medium: applied and appended, written, synced, acknowledged.
//!
//! ```text
//!   record() --> block being filled --write--> written (survives a killed process: J6a) --sync--> durable
//!                                       |                                                   |
//!                                       writes and discards are answered                    flushes, FUA, control
//! ```
//! One sync runs, the next waits (J9); it covers what was written when it was issued. A failed journal write or sync is
//! final (J10).

use tanada_disk::{DiskOp, DiskResult};
use tanada_format::{Geometry, Record};

use crate::exec::{Filler, Slot, slot};
use crate::failure::Failure;
use crate::guest::OpId;
use crate::state::{Pending, Phase, State, read_only};
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
}

impl State {
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

    pub fn journal_written(&mut self, first: u64, result: DiskResult) {
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

    /// Answers `op` when journal blocks up to `seq` are durable.
    pub fn acknowledge_durable(&mut self, seq: u64, op: OpId) {
        if self.journal.durable() >= seq {
            self.finish_op(op);
        } else {
            self.syncs.acknowledge.push((seq, op));
        }
    }
}
