//! The journal's ring as the writer sees it (store notes section 2).
//!
//! ```text
//!   start_seq ............ durable ........ written ........ kept ........... next_seq
//!   | needed by recovery   | survives a     | survives a     | survives a     | block being filled; the memory
//!   |                      | power cut      | killed process | killed process | has its records so far
//! ```
//! Records are appended in the order in which they are applied (J1, V1). Blocks are sealed once and never rewritten on
//! the device (J5). A place of the ring is taken anew only when recovery needs its former block no more and the write of
//! that one has ended (J11). *written* and *kept* only move over blocks without a gap: an acknowledged record is never
//! behind a hole (J6).
//!
//! Two ways out of the process:
//! - J6(a), without memory that outlives it: the block being filled is sealed and written in every turn that recorded
//!   something; what it holds is acknowledged when that write has ended.
//! - J6(b), with such memory: an image of every block that is not written yet goes there at the end of the turn, once
//!   for a block and turn, and what it holds is acknowledged at once. The block goes to the device when it is full or
//!   when somebody waits for it. A block's place in the memory is free again when the device has it; where all places
//!   are taken, way (a) it is until one is free.

pub mod kept;
pub mod pair;
pub mod syncs;

use std::collections::BTreeMap;

use tanada_disk::{Buf, BufMut, DiskOp};
use tanada_format::geometry::JOURNAL_KEPT_BLOCKS;
use tanada_format::journal::RECORDS_BYTES;
use tanada_format::{BLOCK_BYTES, Geometry, JournalBuilder, JournalHeader, Record};
use uuid::Uuid;

use crate::journal::kept::KeptBlock;

pub struct Journal {
    pub store: Uuid,
    pub incarnation: u64,
    /// Last durable checkpoint (J8).
    pub checkpoint: u64,
    blocks: u64,
    next_seq: u64,
    start_seq: u64,
    durable: u64,
    building: JournalBuilder,
    sealed: Vec<(u64, [u8; BLOCK_BYTES])>,
    /// First and last block of writes in flight.
    in_flight: BTreeMap<u64, u64>,
    /// Blocks that writes in flight will need for their records, at worst.
    promised: u64,
    /// Blocks that fit into memory that outlives the process; 0 without any.
    kept_places: u64,
    /// Sealed blocks up to this one are in that memory, or written.
    kept: u64,
    /// So many records of the block being filled are there, too.
    kept_records: usize,
    /// A block whose data is still under way; nothing is appended behind it (see [`crate::journal::pair`]).
    alone: Option<u64>,
    /// The last block of which a record may have been acknowledged for being kept.
    acknowledged: u64,
}

/// A write of journal blocks, to be carried out.
pub struct JournalWrite {
    pub first: u64,
    pub op: DiskOp,
}

impl Journal {
    /// A journal whose next block is `next_seq`; everything before is durable.
    pub fn new(store: Uuid, incarnation: u64, checkpoint: u64, blocks: u64, start_seq: u64, next_seq: u64) -> Journal {
        Journal {
            store,
            incarnation,
            checkpoint,
            blocks,
            next_seq,
            start_seq,
            durable: next_seq - 1,
            building: JournalBuilder::new(),
            sealed: Vec::new(),
            in_flight: BTreeMap::new(),
            promised: 0,
            kept_places: 0,
            kept: next_seq - 1,
            kept_records: 0,
            alone: None,
            acknowledged: 0,
        }
    }

    /// From now on blocks are kept in memory for `places` blocks that outlives the process (J6b).
    pub fn keep_in(&mut self, places: u64) {
        self.kept_places = places;
    }

    /// Appends records that belong together: they come into one block, so that a torn tail takes all or none of them.
    /// Returns the number of their block. Room must have been checked.
    pub fn append(&mut self, records: &[Record]) -> u64 {
        let bytes: usize = records.iter().map(Record::encoded_bytes).sum();
        assert!(bytes <= RECORDS_BYTES, "a group of {} records takes {bytes} bytes, more than a block", records.len());
        if bytes > self.building.room() {
            self.seal();
        }
        for record in records {
            assert!(self.building.push(record), "room was just made");
        }
        self.next_seq
    }

    /// Ends the block being filled, if anything is in it. Rather than write over what recovery needs the process ends
    /// (J8): who records has looked for room before (J11).
    pub fn seal(&mut self) {
        if self.building.is_empty() {
            return;
        }
        assert!(
            self.used() <= self.blocks,
            "block {} of the journal would be one too many of {}",
            self.next_seq,
            self.blocks
        );
        self.sealed.push((self.next_seq, self.image()));
        if self.kept + 1 == self.next_seq && self.kept_records == self.building.count() {
            self.kept = self.next_seq;
        }
        self.building.clear();
        self.kept_records = 0;
        self.next_seq += 1;
    }

    /// Appends records whose data is only now being written, in a block of their own. Until [`Journal::settle_alone`]
    /// it does not count as written.
    pub fn append_alone(&mut self, records: &[Record]) -> u64 {
        self.seal();
        let seq = self.append(records);
        self.alone = Some(seq);
        self.seal();
        seq
    }

    /// The data of the block that stood alone is there, or the block is void.
    pub fn settle_alone(&mut self) {
        self.alone = None;
    }

    /// The write that takes all records out of the block that stands alone: their data could not be written.
    pub fn void_alone(&self, geometry: &Geometry) -> DiskOp {
        let seq = self.alone.unwrap_or(self.next_seq);
        let bytes = JournalBuilder::new().seal(&self.header(seq));
        DiskOp::Write { at: geometry.journal_block(seq) * BLOCK_BYTES as u64, parts: vec![Buf::copy_from(&bytes)] }
    }

    fn header(&self, seq: u64) -> JournalHeader {
        JournalHeader {
            store: self.store,
            incarnation: self.incarnation,
            seq,
            durable_seq: self.durable,
            checkpoint: self.checkpoint,
        }
    }

    /// The block being filled, as it would be written now.
    fn image(&self) -> [u8; BLOCK_BYTES] {
        self.building.seal(&self.header(self.next_seq))
    }

    /// Hands everything recorded so far to the memory that outlives the process, as far as it has room and no block
    /// before is missing from it. Returns the block up to which every record is out of the process now.
    pub fn keep(&mut self, mut each: impl FnMut(KeptBlock)) -> u64 {
        let written = self.written();
        self.kept = self.kept.max(written);
        let last = written + self.kept_places;
        for (seq, bytes) in &self.sealed {
            if *seq == self.kept + 1 && *seq <= last && Some(*seq) != self.alone {
                each(KeptBlock { seq: *seq, bytes: Box::new(*bytes) });
                self.kept = *seq;
                self.acknowledged = *seq;
            }
        }
        let seq = self.next_seq;
        if self.building.is_empty() || self.kept + 1 != seq || seq > last {
            return self.kept;
        }
        if self.building.count() > self.kept_records {
            each(KeptBlock { seq, bytes: Box::new(self.image()) });
            self.kept_records = self.building.count();
            self.acknowledged = seq;
        }
        seq
    }

    /// No record behind this block is acknowledged yet.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.max(self.written())
    }

    /// Returns the writes that bring all sealed blocks to the device.
    pub fn take_writes(&mut self, geometry: &Geometry) -> Vec<JournalWrite> {
        let sealed = std::mem::take(&mut self.sealed);
        let mut writes = Vec::new();
        for run in sealed.chunk_by(|(_, _), (seq, _)| seq % self.blocks != 0) {
            let mut buffer = BufMut::zeroed(run.len() * BLOCK_BYTES);
            for (part, (_, bytes)) in buffer.as_mut_slice().chunks_exact_mut(BLOCK_BYTES).zip(run) {
                part.copy_from_slice(bytes);
            }
            let (first, last) = (run[0].0, run[run.len() - 1].0);
            self.in_flight.insert(first, last);
            let at = geometry.journal_block(first) * BLOCK_BYTES as u64;
            writes.push(JournalWrite { first, op: DiskOp::Write { at, parts: vec![buffer.freeze()] } });
        }
        writes
    }

    /// A write that began with block `first` ended well. True where it brought the block that stands alone.
    pub fn completed(&mut self, first: u64) -> bool {
        let last = self.in_flight.remove(&first).unwrap_or(first);
        self.alone.is_some_and(|alone| (first..=last).contains(&alone))
    }

    /// All blocks up to this one have left the process.
    pub fn written(&self) -> u64 {
        let in_flight = self.in_flight.first_key_value().map(|(first, _)| *first);
        let sealed = self.sealed.first().map(|(seq, _)| *seq);
        in_flight.or(sealed).into_iter().chain(self.alone).min().unwrap_or(self.next_seq) - 1
    }

    /// First block that recovery needs.
    pub fn start_seq(&self) -> u64 {
        self.start_seq
    }

    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// A sync that was issued when `written` was this ended well.
    pub fn made_durable(&mut self, written: u64) {
        self.durable = self.durable.max(written);
    }

    /// The block being filled, or the one that the next record begins.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// True where writes of blocks are under way.
    pub fn is_writing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// True where blocks may be acknowledged before they are written.
    pub fn is_kept(&self) -> bool {
        self.kept_places > 0
    }

    /// The block that holds the last record so far.
    pub fn last_seq(&self) -> u64 {
        if self.building.is_empty() { self.next_seq - 1 } else { self.next_seq }
    }

    pub fn has_records(&self) -> bool {
        !self.building.is_empty() || !self.sealed.is_empty()
    }

    /// Checkpoint `checkpoint` is durable: blocks before `start_seq` are not needed any more.
    pub fn trim(&mut self, checkpoint: u64, start_seq: u64) {
        (self.checkpoint, self.start_seq) = (checkpoint, start_seq);
    }

    /// Blocks in use, the one being filled included.
    pub fn used(&self) -> u64 {
        self.next_seq + 1 - self.start_seq
    }

    /// Places of the ring that nothing else may be written to: those in use, and those of blocks that are still on their
    /// way to the device. A write may take longer than a round of the ring, and would land on a later round's block (J11).
    fn taken(&self) -> u64 {
        self.next_seq + 1 - self.start_seq.min(self.written() + 1)
    }

    /// True where a write that has not ended takes places that no checkpoint can free.
    pub fn has_late_write(&self) -> bool {
        self.written() + 1 < self.start_seq
    }

    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks of records that a write of `runs` runs with `blocks` blocks in all may need, at worst.
    pub fn promise_for(blocks: u64, runs: u64) -> u64 {
        1 + (blocks * 4 + runs * 20).div_ceil(RECORDS_BYTES as u64 - 1100)
    }

    /// True where guests may fill `wanted` more blocks; what is kept is for recovery and control (J4).
    pub fn has_room(&self, wanted: u64) -> bool {
        self.taken() + self.promised + wanted + JOURNAL_KEPT_BLOCKS <= self.blocks
    }

    /// True where a control record finds room.
    pub fn has_control_room(&self) -> bool {
        self.taken() + self.promised + 4 <= self.blocks
    }

    pub fn promise(&mut self, blocks: u64) {
        self.promised += blocks;
    }

    pub fn keep_promise(&mut self, blocks: u64) {
        self.promised -= blocks;
    }
}

#[cfg(test)]
mod tests {
    use super::Journal;
    use tanada_disk::DiskOp;
    use tanada_format::geometry::SEGMENT_BLOCKS;
    use tanada_format::{Geometry, Record};
    use uuid::Uuid;

    #[test]
    fn written_moves_over_blocks_without_a_gap_and_runs_end_at_the_ring() {
        let geometry = Geometry::new(5 * SEGMENT_BLOCKS, 64).expect("valid");
        let mut journal = Journal::new(Uuid::nil(), 1, 1, 64, 60, 62);
        assert_eq!(journal.append(&[Record::Destroy { version: 1 }]), 62);
        journal.seal();
        let first = journal.take_writes(&geometry);
        for _ in 0..4 {
            journal.append(&[Record::Destroy { version: 1 }]);
            journal.seal();
        }
        let second = journal.take_writes(&geometry);
        assert_eq!(second.iter().map(|write| write.first).collect::<Vec<_>>(), [63, 64]);
        assert!(matches!(&second[1].op, DiskOp::Write { at, .. } if *at == geometry.journal_block(64) * 4096));
        journal.completed(64);
        assert_eq!(journal.written(), 61);
        journal.completed(62);
        assert_eq!(journal.written(), 62);
        journal.completed(63);
        assert_eq!((journal.written(), first.len()), (66, 1));
    }

    #[test]
    fn kept_moves_over_blocks_without_a_gap_and_no_further_than_there_are_places() {
        let geometry = Geometry::new(5 * SEGMENT_BLOCKS, 64).expect("valid");
        let mut journal = Journal::new(Uuid::nil(), 1, 1, 64, 60, 62);
        let record = [Record::Destroy { version: 1 }];
        let mut seen = Vec::new();
        journal.append(&record);
        assert_eq!((journal.keep(|block| seen.push(block.seq)), journal.acknowledged()), (61, 61), "no memory");
        journal.keep_in(2);
        assert_eq!((journal.keep(|block| seen.push(block.seq)), journal.acknowledged()), (62, 62));
        assert_eq!(journal.keep(|block| seen.push(block.seq)), 62);
        assert_eq!(seen, [62], "nothing new, nothing to keep");
        journal.append(&record);
        journal.seal();
        journal.append(&record);
        assert_eq!(journal.keep(|block| seen.push(block.seq)), 63);
        assert_eq!(seen, [62, 62, 63], "a block that is sealed has got more records");
        journal.seal();
        journal.append(&record);
        assert_eq!((journal.keep(|block| seen.push(block.seq)), seen.len()), (63, 3), "62 and 63 have the places");
        journal.take_writes(&geometry);
        journal.completed(62);
        assert_eq!((journal.written(), journal.keep(|block| seen.push(block.seq))), (63, 64));
        assert_eq!((seen.last(), journal.acknowledged()), (Some(&64), 64));
    }
}
