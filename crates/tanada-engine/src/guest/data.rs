//! Guests' blocks on their way to the device: admission, placement, merging, recording.
//!
//! All that arrived in a turn is placed together: writes of many guests become few device writes. A record is made when
//! its data write has completed, never before (J1).

use tanada_disk::{Buf, BufMut, DiskOp, DiskResult};
use tanada_format::node::span_blocks;
use tanada_format::record::MAP_BLOCKS_MAX;
use tanada_format::{LEVELS, Record, crc32c};

use crate::api::Alert;
use crate::failure::{EIO, ENOSPC, Failure};
use crate::guest::OpId;
use crate::guest::brake::HELD_PER_MILLE;
use crate::journal::Journal;
use crate::map::delta::DeltaCost;
use crate::space::alloc::Stream;
use crate::state::{BLOCK, State};
use crate::versions::VersionId;

/// Whole blocks of one op, waiting to be placed or unmapped.
pub struct Piece {
    pub op: OpId,
    pub head: VersionId,
    pub place: u64,
    pub kind: PieceKind,
    /// What is left of a piece of which a part is placed already: the brake has let it pass.
    pub is_rest: bool,
}

pub enum PieceKind {
    Data(Buf),
    /// So many places become holes.
    Unmap(u64),
}

/// What a device write carries of one piece: one run of blocks, one record to be.
pub struct Run {
    op: OpId,
    pub head: VersionId,
    place: u64,
    block: u64,
    crcs: Vec<u32>,
}

/// A device write of guests' data in flight.
pub struct DataWrite {
    first: u64,
    blocks: u64,
    parts: Vec<Buf>,
    pub runs: Vec<Run>,
    promised_journal: u64,
    promised_nodes: u64,
    /// Its records are in the journal already ([`crate::journal::pair`]).
    pub is_paired: bool,
}

/// Blocks in one device write at most: 1 MiB.
const WRITE_BLOCKS_MAX: u64 = MAP_BLOCKS_MAX as u64;

/// Whether a piece may go on now.
enum Admission {
    Yes,
    /// Something will make room: a checkpoint, a release.
    Wait,
    Never,
}

impl State {
    /// Places what waits, in order of arrival, as far as there is room.
    pub fn place_pending(&mut self) {
        if self.is_read_only() {
            return self.pending.clear(); // their ops are answered already
        }
        let mut open: Option<DataWrite> = None;
        let before = self.data_writes;
        while let Some(piece) = self.pending.pop_front() {
            match self.admit(&piece, open.as_ref()) {
                Admission::Yes => {
                    self.stalled_since_cut = None;
                    match piece.kind {
                        PieceKind::Unmap(count) => self.unmap_piece(&piece, count),
                        PieceKind::Data(ref buf) => {
                            let buf = buf.clone();
                            if let Some(rest) = self.place(&piece, buf, &mut open) {
                                self.pending.push_front(rest);
                            }
                        }
                    }
                }
                Admission::Wait => {
                    self.pending.push_front(piece);
                    break;
                }
                Admission::Never => {
                    self.warn_full();
                    self.refuse_piece(&piece);
                }
            }
        }
        self.placed_all = self.pending.is_empty();
        if let Some(write) = open {
            let is_only = self.data_writes == before;
            self.start_write(write, is_only);
        }
    }

    /// True where blocks came after this turn had placed all there were: an op that got its busy blocks while others were
    /// placed or refused, and that needed no device to put its edges together.
    pub fn has_unplaced(&self) -> bool {
        self.placed_all && !self.pending.is_empty()
    }

    pub fn warn_full(&mut self) {
        if !self.warned_full {
            self.warned_full = true;
            self.alert(Alert::Full);
        }
    }

    fn admit(&mut self, piece: &Piece, open: Option<&DataWrite>) -> Admission {
        let blocks = match &piece.kind {
            PieceKind::Data(buf) => buf.len() as u64 / BLOCK,
            PieceKind::Unmap(_) => 0,
        };
        let pressure = self.pressure();
        // J11: one run is placed, in a device write of its own at worst; what is left of the piece is asked for again.
        let records = open.map_or(0, DataWrite::journal_blocks) + Journal::promise_for(blocks, 1);
        let has_room = self.journal.has_room(records + 1);
        if pressure >= HELD_PER_MILLE || !has_room && !self.journal.has_late_write() {
            self.need_checkpoint();
        }
        if pressure >= HELD_PER_MILLE || !has_room {
            return Admission::Wait;
        }
        if !piece.is_rest && !self.pass_brake(pressure, blocks) {
            return Admission::Wait;
        }
        if blocks == 0 && self.pairs.is_busy() {
            return Admission::Wait;
        }
        if blocks == 0 {
            return Admission::Yes; // giving up space draws on the reserve
        }
        if self.alloc.free() >= self.reserve() + blocks + nodes_for(blocks) {
            return if self.has_data_at_hand(blocks) { Admission::Yes } else { Admission::Wait };
        }
        self.wait_for_space()
    }

    /// There is no room: waits for what checkpoints and walks can release, and only then says no.
    fn wait_for_space(&mut self) -> Admission {
        if self.is_space_coming() {
            return Admission::Wait;
        }
        let since = *self.stalled_since_cut.get_or_insert(self.checkpoint.cuts);
        let dying = self.versions.dying().any(|version| !self.walk_failed.contains(&version.id));
        let clean = self.versions.cost == DeltaCost::default()
            && self.versions.dropped.is_empty()
            && self.walked.is_empty()
            && !self.checkpoint.running;
        // A block overwritten before the first cut is released by the second checkpoint's end at the latest.
        let hopeless = (clean || self.checkpoint.finished >= since + 2) && !dying && self.promised_nodes == 0;
        if hopeless {
            self.stalled_since_cut = None;
            return Admission::Never;
        }
        // A walk needs time between checkpoints; what it frees comes with the next.
        if !self.has_walk() {
            self.need_checkpoint();
        }
        Admission::Wait
    }

    /// What a checkpoint will free is waited for: the running one hurries, or one is made.
    pub fn need_checkpoint(&mut self) {
        self.checkpoint.urgent = true;
        self.checkpoint.wanted |= !self.checkpoint.running;
    }

    /// A checkpoint whose cut comes after now is waited for.
    pub fn want_checkpoint(&mut self) {
        self.checkpoint.wanted = true;
        self.checkpoint.urgent = true;
    }

    fn unmap_piece(&mut self, piece: &Piece, count: u64) {
        if !self.is_live_head(piece.head) {
            return self.part_failed(piece.op, Failure::new(EIO, "the volume was replaced while it was written"));
        }
        let empty = self
            .versions
            .get(piece.head)
            .is_some_and(|version| version.tree.is_null() && version.delta.is_empty() && version.frozen.is_empty());
        if empty {
            return self.part_done(piece.op);
        }
        // Without a slot for the generation the next checkpoint has to do it all: late, but a discard is never refused.
        let result = if self.versions.may_unmap(piece.head, count) || !self.has_slots(1) {
            self.record(&[Record::Unmap { head: piece.head, place: piece.place, blocks: count }])
        } else {
            self.unmap_large(piece.head, piece.place, count)
        };
        match result {
            Ok(seq) => self.part_recorded(piece.op, seq),
            Err(message) => self.part_failed(piece.op, Failure::new(EIO, message)),
        }
    }

    /// Rule V10: a hidden generation takes the content, the head loses the range, the generation is destroyed. The
    /// throttled walk then frees in proportion to the difference, and no checkpoint meets an unbounded job.
    fn unmap_large(&mut self, head: VersionId, place: u64, blocks: u64) -> Result<u64, String> {
        let (first_id, ended, uuid) = (self.versions.next_id, self.versions.epoch, self.hidden_uuid());
        let members = vec![tanada_format::Member { head, uuid }];
        self.record(&[
            Record::Snapshot { first_id, ended, hidden: true, members },
            Record::Unmap { head, place, blocks },
            Record::Destroy { version: first_id },
        ])
    }

    /// Gives a piece the next run of free blocks, joined to the device write being put together where it continues it.
    /// Returns what is left of the piece.
    fn place(&mut self, piece: &Piece, buf: Buf, open: &mut Option<DataWrite>) -> Option<Piece> {
        let buf = if buf.is_aligned() { buf } else { Buf::copy_from(&buf) };
        let blocks = buf.len() as u64 / BLOCK;
        let room = open.as_ref().map_or(0, |write| WRITE_BLOCKS_MAX - write.blocks);
        let want = blocks.min(if room == 0 { WRITE_BLOCKS_MAX } else { room });
        let Some((block, count)) = self.alloc.allocate(Stream::Data, want) else {
            self.refuse_piece(piece);
            return None;
        };
        if open.as_ref().is_none_or(|write| room == 0 || write.first + write.blocks != block)
            && let Some(full) = open.replace(DataWrite::new(block))
        {
            self.start_write(full, false);
        }
        let bytes = buf.slice(0..(count * BLOCK) as usize);
        let crcs = bytes.chunks_exact(BLOCK as usize).map(crc32c).collect();
        let run = Run { op: piece.op, head: piece.head, place: piece.place, block, crcs };
        if let Some(write) = open {
            write.push(run, bytes, count);
        }
        self.promised_nodes += nodes_for(count);
        (count < blocks).then(|| {
            self.add_part(piece.op);
            let kind = PieceKind::Data(buf.slice((count * BLOCK) as usize..buf.len()));
            Piece { op: piece.op, head: piece.head, place: piece.place + count, kind, is_rest: true }
        })
    }

    /// `is_only`: no other is started in this turn.
    fn start_write(&mut self, mut write: DataWrite, is_only: bool) {
        write.promised_journal = write.journal_blocks();
        write.promised_nodes = write.runs.iter().map(|run| nodes_for(run.crcs.len() as u64)).sum();
        self.journal.promise(write.promised_journal);
        self.data_writes += 1;
        self.data_blocks += write.blocks;
        self.data_in_flight += 1;
        if is_only {
            self.try_pair(&mut write);
        }
        let parts = std::mem::take(&mut write.parts);
        self.data_io(DiskOp::Write { at: write.first * BLOCK, parts }, write);
    }

    fn settle_promises(&mut self, write: &DataWrite) {
        self.journal.keep_promise(write.promised_journal);
        self.promised_nodes -= write.promised_nodes;
        self.syncs.unsynced_bytes += write.blocks * BLOCK;
        self.syncs.unsynced_since.get_or_insert(self.now);
    }

    /// A device write has ended whose records the journal has: they are applied.
    pub fn apply_write(&mut self, write: DataWrite, seq: u64) {
        self.settle_promises(&write);
        for run in write.runs {
            let record = run.record();
            if let Err(message) = self.apply(&record) {
                return self.fail(format!("a record that is in the journal already cannot be applied: {message}"));
            }
            self.note_records(&[record], seq);
            self.part_recorded(run.op, seq);
        }
    }

    /// A device write has ended: its runs are recorded, or its ops fail.
    pub fn record_write(&mut self, write: DataWrite, result: DiskResult) {
        self.settle_promises(&write);
        for run in write.runs {
            if matches!(&result, Err(error) if error.errno == ENOSPC) {
                self.refused_by_full_medium(run, write.is_paired);
            } else if let Err(error) = result {
                // The blocks stay busy until a restart: the device may still write them (J10).
                self.part_failed(run.op, State::data_failure(error.errno, "writing data"));
            } else if self.is_read_only() {
                self.part_failed(run.op, Failure::new(EIO, "the store became read-only"));
            } else {
                self.record_run(run);
            }
        }
    }

    /// A file below without room has written nothing and will write nothing: the blocks may go back, at once where no
    /// record names them (B1). The journal block of a pair did, and until a sync a crash may bring that one back.
    fn refused_by_full_medium(&mut self, run: Run, is_named: bool) {
        self.medium_is_full();
        let count = run.crcs.len() as u64;
        let blocks = run.block..run.block + count;
        if is_named {
            self.versions.dropped.extend(blocks);
        } else {
            blocks.for_each(|block| self.alloc.release(block));
        }
        let volume = self.versions.get(run.head).map(|version| version.uuid).unwrap_or_default();
        let message = format!(
            "no room for {} bytes at offset {} of volume {volume}: the file system or pool below the store is full",
            count * BLOCK,
            run.place * BLOCK
        );
        self.part_failed(run.op, Failure::new(ENOSPC, message));
    }

    fn record_run(&mut self, run: Run) {
        let blocks = run.block..run.block + run.crcs.len() as u64;
        match self.record(&[run.record()]) {
            Ok(seq) => self.part_recorded(run.op, seq),
            Err(message) => {
                // The head was replaced meanwhile (V9); no record names the blocks, so they may go back at once (B1).
                blocks.for_each(|block| self.alloc.release(block));
                self.part_failed(run.op, Failure::new(EIO, message));
            }
        }
    }
}

impl Run {
    pub fn record(&self) -> Record {
        Record::Map { head: self.head, place: self.place, block: self.block, crcs: self.crcs.clone() }
    }
}

impl DataWrite {
    fn new(first: u64) -> DataWrite {
        let (parts, runs) = (Vec::new(), Vec::new());
        DataWrite { first, blocks: 0, parts, runs, promised_journal: 0, promised_nodes: 0, is_paired: false }
    }

    /// Blocks of the journal that its records may need.
    fn journal_blocks(&self) -> u64 {
        Journal::promise_for(self.blocks, self.runs.len() as u64)
    }

    fn push(&mut self, run: Run, bytes: Buf, count: u64) {
        self.blocks += count;
        match self.parts.last().and_then(|last| last.join(&bytes)) {
            Some(joined) => *self.parts.last_mut().expect("just looked at") = joined,
            None => self.parts.push(bytes),
        }
        self.runs.push(run);
    }
}

/// Delta nodes that mapping a run of `blocks` may make or copy, at worst.
pub fn nodes_for(blocks: u64) -> u64 {
    u64::from(LEVELS) + blocks.div_ceil(span_blocks(0))
}

/// A block of zeros, for patches over holes.
pub fn zero_block() -> BufMut {
    BufMut::zeroed(BLOCK as usize)
}
