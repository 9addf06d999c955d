//! Read-triggered re-layout (rule V12): what random overwriting has scattered is brought together again.
//!
//! ```text
//!   a stream of reads over scattered blocks --> the read just answered has them in memory, verified (W2)
//!     -> still the same pointers, the head's own, nobody writes there --> busy blocks (W1), a free run, one write
//!     -> written: still the same pointers, still the head's own --> an ordinary record (J1)  |  else the run is let go
//! ```
//! Why this is safe: a move is a write of what stands there already. It holds its blocks, so no guest's write comes
//! between; a snapshot or a revert may, and then the pointers are no longer the head's own, and nothing is recorded.
//! The old blocks go the way of all overwritten blocks (B1), the record is replayed like any other (J2).
//!
//! Only the head's own blocks are moved, those born after its parent was taken: a generation's blocks would have to be
//! copied, which costs space, and would come up as changed in a difference. So right after a snapshot nothing can be
//! moved; what is overwritten from then on can.
//!
//! It never makes anybody wait: it has a budget of bytes per second, few writes in flight, and rests while writers
//! wait for room, a checkpoint hurries, or less than a fifth of the store is free.

use tanada_disk::{DiskOp, DiskResult};
use tanada_format::record::MAP_BLOCKS_MAX;
use tanada_format::{Pointer, Record};

use crate::guest::data::nodes_for;
use crate::guest::read::GuestRead;
use crate::journal::Journal;
use crate::space::alloc;
use crate::state::{BLOCK, Pending, Phase, State};
use crate::versions::VersionId;

/// Moves in flight at most.
const MOVES_MAX: usize = 8;
/// A read whose runs are longer than this on average is not worth a write.
const RUN_BLOCKS_GOOD: usize = 8;
/// After so many attempts in a row that found only short runs of free space ...
const MISSES_MAX: u32 = 4;
/// ... none is made for so long, in microseconds.
const REST_MICROS: u64 = 1_000_000;
/// Where re-layout stands.
#[derive(Default)]
pub struct Relayout {
    /// Bytes that may be moved now, as of `filled_at`.
    budget: u64,
    filled_at: u64,
    in_flight: usize,
    misses: u32,
    rests_until: u64,
    /// Blocks moved since the store was opened.
    pub moved_blocks: u64,
}

impl Relayout {
    fn fill(&mut self, now: u64, bytes_per_second: u64) {
        let more = u128::from(now.saturating_sub(self.filled_at)) * u128::from(bytes_per_second) / 1_000_000;
        if more >= u128::from(BLOCK) {
            let limit = bytes_per_second / 4 + 64 * BLOCK;
            self.budget = limit.min(self.budget.saturating_add(more.min(u128::from(limit)) as u64));
            self.filled_at = now;
        }
    }
}

/// Blocks on their way to a better place.
pub struct Move {
    head: VersionId,
    place: u64,
    old: Vec<Pointer>,
    /// First of the new blocks.
    block: u64,
    promised_journal: u64,
    promised_nodes: u64,
}

impl Move {
    fn new_blocks(&self) -> std::ops::Range<u64> {
        self.block..self.block + self.old.len() as u64
    }
}

impl State {
    /// A read of a stream has been answered: moves what it shows to be scattered.
    pub fn relayout(&mut self, read: &GuestRead) {
        if read.runs() * RUN_BLOCKS_GOOD <= read.blocks() || !self.may_move() || !self.is_live_head(read.version) {
            return;
        }
        self.relayout.fill(self.now, self.config.relayout_bytes_per_second);
        let own_after = self.versions.parent_cut(read.version);
        let is_own = |index: &usize| {
            let pointer = read.pointer(*index);
            pointer.has_block() && pointer.birth() > own_after
        };
        let own: Vec<usize> = (0..read.blocks()).filter(is_own).collect();
        for span in own.chunk_by(|a, b| a + 1 == *b).flat_map(|span| span.chunks(MAP_BLOCKS_MAX)) {
            let breaks = span.windows(2).filter(|pair| {
                let [before, after] = [pair[0], pair[1]].map(|index| read.pointer(index).block());
                before + 1 != after
            });
            if breaks.count() * RUN_BLOCKS_GOOD >= span.len() && span.len() > 1 {
                self.begin_move(read, span[0], span.len());
            }
        }
    }

    fn may_move(&self) -> bool {
        let roomy = self.alloc.free() >= self.alloc.geometry().allocatable_blocks() / 5;
        self.phase == Phase::Serving
            && self.config.relayout_bytes_per_second > 0
            && self.relayout.in_flight < MOVES_MAX
            && self.now >= self.relayout.rests_until
            && roomy
            && self.pending.is_empty()
            && !self.checkpoint.urgent
            && self.journal.used() * 2 <= self.journal.blocks()
            && self.versions.cost.bytes() * 2 <= self.delta_limit()
    }

    fn begin_move(&mut self, read: &GuestRead, from: usize, count: usize) {
        let (head, place) = (read.version, read.first() + from as u64);
        let blocks = count as u64;
        let old: Vec<Pointer> = (from..from + count).map(|index| read.pointer(index)).collect();
        let promised_journal = Journal::promise_for(blocks, 1);
        let has_room = self.journal.has_room(promised_journal + 1)
            && self.alloc.free() >= self.reserve() + blocks + nodes_for(blocks);
        if self.relayout.budget < blocks * BLOCK || !has_room || !self.stands(head, place, &old) {
            return;
        }
        let ticket = self.next_op;
        self.next_op += 1;
        if !self.busy.entry(head).or_default().acquire_now(place..place + blocks, ticket) {
            return;
        }
        let Some((block, count)) = self.free_run(count) else { return self.give_back(head, place) };
        let parts = read.content(from, count);
        let promised_nodes = nodes_for(count as u64);
        self.journal.promise(promised_journal);
        self.promised_nodes += promised_nodes;
        self.relayout.budget -= count as u64 * BLOCK;
        self.relayout.in_flight += 1;
        let old = old[..count].to_vec();
        let moving = Move { head, place, old, block, promised_journal, promised_nodes };
        self.start_io(DiskOp::Write { at: block * BLOCK, parts }, Pending::Move(moving));
    }

    /// A run of free blocks, of `count` or at least half as many: shorter ones are not worth it.
    fn free_run(&mut self, count: usize) -> Option<(u64, usize)> {
        let (block, found) = self.alloc.allocate(alloc::Stream::Data, count as u64)?;
        if found as usize * 2 >= count.max(2) {
            self.relayout.misses = 0;
            return Some((block, found as usize));
        }
        (block..block + found).for_each(|block| self.alloc.release(block));
        self.relayout.misses += 1;
        if self.relayout.misses >= MISSES_MAX {
            self.relayout.misses = 0;
            self.relayout.rests_until = self.now + REST_MICROS;
        }
        None
    }

    /// True where the places from `place` on are mapped as `old` says; false also where that cannot be told now.
    fn stands(&mut self, head: VersionId, place: u64, old: &[Pointer]) -> bool {
        let mut found = Vec::with_capacity(old.len());
        self.look_up_cached(head, place, old.len() as u64, &mut found) == old.len() as u64 && found == old
    }

    /// The new run is written: it counts from now on, unless something came between.
    pub fn moved(&mut self, moving: Move, result: DiskResult) {
        self.relayout.in_flight -= 1;
        self.journal.keep_promise(moving.promised_journal);
        self.promised_nodes -= moving.promised_nodes;
        self.syncs.unsynced_bytes += moving.old.len() as u64 * BLOCK;
        self.syncs.unsynced_since.get_or_insert(self.now);
        // After a failed write the blocks stay busy until a restart: the device may still write them (J10).
        if result.is_ok() && !self.record_move(&moving) {
            moving.new_blocks().for_each(|block| self.alloc.release(block));
        }
        self.give_back(moving.head, moving.place);
    }

    /// False where the move came too late; no record names its blocks then (B1).
    fn record_move(&mut self, moving: &Move) -> bool {
        let own_after = self.versions.parent_cut(moving.head);
        // Beside a pair nothing may be recorded; moves can be given up at any time, so this one does not wait.
        let is_due = self.phase == Phase::Serving
            && !self.pairs.is_busy()
            && self.is_live_head(moving.head)
            && moving.old.iter().all(|pointer| pointer.birth() > own_after)
            && self.stands(moving.head, moving.place, &moving.old);
        if !is_due {
            return false;
        }
        let crcs = moving.old.iter().map(|pointer| pointer.crc()).collect();
        let record = Record::Map { head: moving.head, place: moving.place, block: moving.block, crcs };
        let recorded = self.record(&[record]).is_ok();
        self.relayout.moved_blocks += if recorded { moving.old.len() as u64 } else { 0 };
        recorded
    }
}

#[cfg(test)]
mod tests {
    use super::Relayout;

    #[test]
    fn the_budget_grows_with_time_and_is_bounded() {
        let mut relayout = Relayout::default();
        relayout.fill(1_000_000, 0);
        assert_eq!(relayout.budget, 0);
        relayout.fill(2_000, 100 << 20);
        assert!((209_000..210_000).contains(&relayout.budget), "{}", relayout.budget);
        relayout.fill(u64::MAX, 100 << 20);
        assert_eq!(relayout.budget, (25 << 20) + 64 * 4096);
    }
}
