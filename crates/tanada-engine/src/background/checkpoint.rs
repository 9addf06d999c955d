//! The checkpoint: what the journal says becomes trees.
//!
//! ```text
//!   cut (one event) -> merge every changed version -> catalog, bitmaps -> sync
//!       -> superblock into the older slot, both copies -> sync -> trees taken over, journal trimmed, blocks released
//! ```
//! Until the second sync has ended the old superblock stands and nothing it needs is touched (J8, B2). Guests go on
//! throughout: the merge yields after every few nodes, its reads and writes in flight are capped, and it takes about
//! half of the time that the next era will need to fill, unless somebody waits for it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use tanada_disk::{Buf, BufMut, DiskOp, DiskResult};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::node::span_blocks;
use tanada_format::superblock::LOST_PLACES;
use tanada_format::{BLOCK_BYTES, Geometry, Node, Pointer, Superblock, TREE_BLOCKS, crc32c};

use crate::api::Alert;
use crate::background::ahead::Ahead;
use crate::failure::{ENOSPC, Failure};
use crate::map::delta::{DeltaCost, drop_some};
use crate::map::tree::NodeSource;
use crate::map::tree::merge::{Base, MergeStore, Merged, Part, merge};
use crate::space::alloc::{PageWrite, Stream};
use crate::space::blocks::Blocks;
use crate::state::{BLOCK, Handle, Job, State};
use crate::tasks::exec::Slot;
use crate::versions::VersionId;
use crate::versions::cut::{Cut, Item, cut, finish};

/// Map nodes in one device write: 256 KiB.
const BATCH_NODES: usize = 64;

/// Device writes of a checkpoint in flight: with 256 KiB each, 1 MiB. A guest's sync must wait for them too.
const WRITES_IN_FLIGHT_MAX: usize = 4;

/// Nodes handled between two turns, where no guest waits for the checkpoint: some 200 us.
const NODES_PER_TURN: usize = 64;

/// Delta nodes let go of between two turns: some 200 us.
const DROPPED_PER_TURN: usize = 2000;

/// Bits of bitmaps changed between two turns: some 200 us.
pub const BLOCKS_PER_TURN: usize = 10_000;

/// Versions merged side by side at most: a node of each on every level is held.
const PARTS_MAX: usize = 64;

/// A merge is stretched over at most so many microseconds for each node: slower helps nobody.
const PACED_MICROS_PER_NODE: u64 = 50;

/// A checkpoint that finds no room on the medium tries again after so many microseconds.
const FULL_MEDIUM_MICROS: u64 = 1_000_000;

/// How often a failing write of a checkpoint is tried before the store gives up (J10).
const TRIES: usize = 3;

/// A map node that cannot be read is tried again so often, with this many microseconds between, before what it maps is
/// given up for lost: a medium may have a bad moment.
const READ_TRIES: usize = 4;
const READ_AGAIN_MICROS: u64 = 20_000;

/// What the merges of one checkpoint read and made.
struct MergeIo<'a> {
    handle: &'a Handle,
    ahead: Ahead,
    pace: Pace,
    work: RefCell<Work>,
    /// The versions whose parts are being merged.
    versions: RefCell<Vec<VersionId>>,
    /// Something could not be read and is lost.
    lost: Cell<bool>,
}

/// How fast the merge may go where nobody waits for it.
struct Pace {
    began: u64,
    /// Microseconds for all of it.
    span: u64,
    /// Delta nodes to merge; 0 where it need not keep any time.
    nodes: u64,
}

impl Pace {
    const NONE: Pace = Pace { began: 0, span: 0, nodes: 0 };
}

#[derive(Default)]
struct Work {
    adopted: Blocks,
    freed: Blocks,
    batch: Vec<(u64, [u8; BLOCK_BYTES])>,
    in_flight: VecDeque<(DiskOp, Slot<DiskResult>)>,
    /// New nodes that the device does not have yet: a child may be merged over its parent's new tree.
    unwritten: BTreeMap<u64, (u32, Rc<Node>)>,
    since_turn: usize,
    written: u64,
}

impl NodeSource for MergeIo<'_> {
    async fn node(&self, pointer: Pointer) -> Result<Rc<Node>, Failure> {
        self.pace().await;
        if let Some((crc, node)) = self.work.borrow().unwritten.get(&pointer.block())
            && *crc == pointer.crc()
        {
            return Ok(Rc::clone(node));
        }
        let mut found = self.ahead.node(pointer).await;
        for _ in 1..READ_TRIES {
            if found.is_ok() {
                break;
            }
            self.handle.wait_until(self.handle.with(|state| state.now) + READ_AGAIN_MICROS).await;
            found = self.ahead.node(pointer).await;
        }
        found
    }

    async fn prefetch(&self, level: u8, pointers: Vec<Pointer>) {
        if level == 0 {
            self.keep_time().await;
        }
        self.ahead.read(level, pointers, async || self.pace().await).await;
    }
}

impl MergeStore for MergeIo<'_> {
    async fn write(&self, node: &Rc<Node>, old: Pointer, birth: u64) -> Result<Pointer, Failure> {
        self.pace().await;
        let bytes = node.encode();
        let crc = crc32c(&bytes);
        self.handle.map_room(1).await;
        let block = self.handle.with(|state| {
            state.checkpoint.merged_nodes += 1;
            state.alloc.allocate(Stream::Map, 1)
        });
        let Some((block, _)) = block else {
            return Err(Failure::new(ENOSPC, "no block is free for a map node: the reserve was too small"));
        };
        let pointer = Pointer::new(block, birth, crc);
        // In the cache it takes the place of what readers used; others would only sweep it.
        if old.is_null() || self.ahead.is_cached(old) {
            self.handle.with(|state| state.cache.insert(pointer, Rc::clone(node)));
        }
        let full = {
            let mut work = self.work.borrow_mut();
            work.written += 1;
            work.adopted.push(&self.geometry(), block);
            work.unwritten.insert(block, (crc, Rc::clone(node)));
            work.batch.push((block, bytes));
            work.batch.len() >= BATCH_NODES
        };
        if full {
            self.flush().await?;
        }
        Ok(pointer)
    }

    fn adopt(&self, block: u64) {
        self.work.borrow_mut().adopted.push(&self.geometry(), block);
    }

    fn free(&self, block: u64) {
        self.work.borrow_mut().freed.push(&self.geometry(), block);
    }

    fn lost(&self, part: usize, level: u8, start: u64, why: &Failure) {
        self.lost.set(true);
        let version = self.versions.borrow().get(part).copied().unwrap_or(0);
        self.handle.with(|state| {
            let (volume, generation) = state.scrub_names(version);
            let volume = volume.or(generation).unwrap_or_default();
            let bytes = span_blocks(level) * BLOCK;
            let message =
                format!("{}: what it mapped within these {bytes} bytes is lost until written over", why.message);
            tracing::error!(version, level, place = start, message, "lost");
            state.alert(Alert::Damage { volume, offset: start * BLOCK, message });
        });
    }
}

impl MergeIo<'_> {
    fn new(handle: &Handle, pace: Pace) -> MergeIo<'_> {
        let (versions, lost) = (RefCell::default(), Cell::new(false));
        MergeIo { handle, ahead: Ahead::new(handle), pace, work: RefCell::default(), versions, lost }
    }

    /// Of this moment: a store that grows meanwhile has the same places, and more of them.
    fn geometry(&self) -> Geometry {
        self.handle.with(|state| state.alloc.geometry())
    }

    async fn write_pages(&self, pages: Vec<PageWrite>) -> Result<(), Failure> {
        self.work.borrow_mut().batch.extend(pages.into_iter().map(|page| (page.block, page.bytes)));
        self.finish_all().await
    }

    /// Waits where the merge is ahead of its time.
    async fn keep_time(&self) {
        let Pace { began, span, nodes } = self.pace;
        let done = self.work.borrow().written.min(nodes);
        if let Some(due) = (span * done).checked_div(nodes) {
            self.handle.sleep_until(began + due).await;
        }
    }

    /// Gives way to guests now and then.
    async fn pace(&self) {
        let due = {
            let mut work = self.work.borrow_mut();
            work.since_turn += 1;
            work.since_turn >= NODES_PER_TURN && !self.handle.with(|state| state.checkpoint.urgent)
        };
        if due {
            self.work.borrow_mut().since_turn = 0;
            self.handle.next_turn().await;
        }
    }

    /// Writes the batch, neighbours together.
    async fn flush(&self) -> Result<(), Failure> {
        let mut batch = std::mem::take(&mut self.work.borrow_mut().batch);
        batch.sort_unstable_by_key(|(block, _)| *block);
        for run in batch.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let op = write_of(run[0].0, run.iter().map(|(_, bytes)| &bytes[..]), run.len());
            self.start(op).await?;
        }
        Ok(())
    }

    async fn start(&self, op: DiskOp) -> Result<(), Failure> {
        while self.work.borrow().in_flight.len() >= WRITES_IN_FLIGHT_MAX {
            self.finish_one().await?;
        }
        let slot = self.handle.with(|state| state.task_io(op.clone()));
        self.work.borrow_mut().in_flight.push_back((op, slot));
        Ok(())
    }

    async fn finish_one(&self) -> Result<(), Failure> {
        let oldest = self.work.borrow_mut().in_flight.pop_front();
        let Some((op, slot)) = oldest else { return Ok(()) };
        let blocks = blocks_of(&op);
        if slot.await.is_err() {
            self.handle.write_stubbornly(op, TRIES - 1).await?;
        }
        blocks.for_each(|block| drop(self.work.borrow_mut().unwritten.remove(&block)));
        Ok(())
    }

    async fn finish_all(&self) -> Result<(), Failure> {
        self.flush().await?;
        while !self.work.borrow().in_flight.is_empty() {
            self.finish_one().await?;
        }
        Ok(())
    }
}

fn write_of<'b>(block: u64, parts: impl Iterator<Item = &'b [u8]>, count: usize) -> DiskOp {
    let mut buffer = BufMut::zeroed(count * BLOCK_BYTES);
    for (to, from) in buffer.as_mut_slice().chunks_exact_mut(BLOCK_BYTES).zip(parts) {
        to.copy_from_slice(from);
    }
    DiskOp::Write { at: block * BLOCK, parts: vec![buffer.freeze()] }
}

/// Blocks that a write covers.
fn blocks_of(op: &DiskOp) -> Range<u64> {
    let DiskOp::Write { at, parts } = op else { return 0..0 };
    let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
    at / BLOCK..(at + bytes) / BLOCK
}

/// Makes all new trees: versions that build upon one another together.
async fn merge_all(io: &MergeIo<'_>, cut: &Cut) -> Result<Vec<Merged>, Failure> {
    let mut merged: Vec<Merged> = Vec::with_capacity(cut.items.len());
    for range in cut.chunks(PARTS_MAX) {
        let items = &cut.items[range.clone()];
        io.versions.replace(items.iter().map(|item| item.version).collect());
        let part = |item: &'_ Item| {
            let base = match item.base {
                Base::Item(below) if below < range.start => Base::Tree(merged[below].tree),
                Base::Item(below) => Base::Item(below - range.start),
                tree => tree,
            };
            (base, item.rules)
        };
        let bases: Vec<_> = items.iter().map(part).collect();
        let parts: Vec<Part<'_>> =
            items.iter().zip(bases).map(|(item, (base, rules))| Part { base, delta: &item.delta, rules }).collect();
        let made = merge(io, &parts).await.map_err(|failure| {
            let versions: Vec<u64> = items.iter().map(|item| item.version).collect();
            Failure::new(failure.errno, format!("versions {versions:?}: {}", failure.message))
        })?;
        merged.extend(made);
    }
    Ok(merged)
}

impl Handle {
    /// Writes a checkpoint; a failure makes the store read-only.
    pub async fn checkpoint(self) {
        let made = self.write_checkpoint().await;
        self.with(|state| {
            state.checkpoint.running = false;
            if let Err(failure) = made {
                state.fail(format!("a checkpoint could not be written: {}", failure.message));
            }
        });
    }

    async fn write_checkpoint(&self) -> Result<(), Failure> {
        let (cut, number, journal_seq, pace) = self.with(State::begin_checkpoint);
        let span = pace.span;
        let io = MergeIo::new(self, pace);
        let merged = merge_all(&io, &cut).await?;
        io.finish_all().await?;
        if io.lost.get() {
            self.with(|state| state.checkpoint.features_required |= LOST_PLACES);
        }
        let (reads, work) = (io.ahead.reads(), io.work.into_inner());
        tracing::debug!(checkpoint = number, reads, writes = work.written, "map nodes of a merge");
        let mut garbage = work.freed;
        self.add_slowly(&mut garbage, &cut.walked).await;
        self.map_room(self.with(|state| state.catalog_reserve())).await;
        let pages = MergeIo::new(self, Pace::NONE);
        self.save_bitmaps(&work.adopted, &garbage, async |writes| pages.write_pages(writes).await).await?;
        self.add_slowly(&mut garbage, &cut.dropped).await;
        let (superblock, writes, freed) = self.with(|state| state.put_together(&cut, number, journal_seq, &merged))?;
        self.add_slowly(&mut garbage, &freed).await;
        garbage.require_regions()?;
        let io = MergeIo::new(self, Pace::NONE);
        for (block, bytes) in &writes {
            io.work.borrow_mut().batch.push((*block, **bytes));
        }
        io.finish_all().await?;
        self.with(|state| state.alloc.pages_written());
        self.with(State::barrier).await?;
        let bytes = Buf::copy_from(&superblock.encode());
        for at in SUPERBLOCK_AT[superblock.slot()] {
            let op = DiskOp::Write { at: at * BLOCK, parts: vec![bytes.clone()] };
            self.write_stubbornly(op, TRIES).await?;
        }
        self.with(State::barrier).await?;
        self.with(|state| state.note_checkpoint(cut.cost.nodes, span));
        self.with(|state| state.end_checkpoint(&cut, &merged, superblock, journal_seq, garbage));
        self.drop_slowly(cut).await;
        Ok(())
    }

    /// Adds to `blocks`, a bounded number per turn.
    async fn add_slowly(&self, blocks: &mut Blocks, more: &[u64]) {
        let geometry = self.with(|state| state.alloc.geometry());
        for chunk in more.chunks(BLOCKS_PER_TURN) {
            chunk.iter().for_each(|block| blocks.push(&geometry, *block));
            self.give_way().await;
        }
    }

    /// Lets go of what was merged, a bounded number of nodes per turn.
    async fn drop_slowly(&self, cut: Cut) {
        let mut left: Vec<_> = cut.items.into_iter().filter_map(|item| item.delta.root).collect();
        while drop_some(&mut left, DROPPED_PER_TURN) {
            self.next_turn().await;
        }
    }

    /// Writes what a checkpoint needs. A medium without room is waited for: guests' writes fail or wait meanwhile, and
    /// nothing is lost. Anything else is tried a few times.
    async fn write_stubbornly(&self, op: DiskOp, tries: usize) -> Result<(), Failure> {
        let mut failed = 0;
        loop {
            let errno = match self.disk(op.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => error.errno,
            };
            if errno == ENOSPC {
                let again_at = self.with(State::held_by_full_medium)?;
                self.wait_until(again_at).await;
                continue;
            }
            failed += 1;
            if failed >= tries {
                return Err(State::data_failure(errno, "writing the map"));
            }
        }
    }
}

impl State {
    /// The running checkpoint finds no room on the medium: who waits for it is told, and it goes on trying. When to try
    /// again.
    fn held_by_full_medium(&mut self) -> Result<u64, Failure> {
        self.check_writable()?;
        self.medium_is_full();
        let failure = Failure::new(
            ENOSPC,
            format!(
                "the medium below the store has no room for checkpoint {}; it is tried again",
                self.journal.checkpoint + 1
            ),
        );
        for (_, filler) in std::mem::take(&mut self.checkpoint.waiters) {
            filler.fill(Err(failure.clone()));
        }
        Ok(self.now + FULL_MEDIUM_MICROS)
    }

    /// Starts a checkpoint where one is due and none runs.
    pub fn start_checkpoint(&mut self) {
        if self.can_checkpoint() && (self.checkpoint.wanted || self.checkpoint_is_due()) {
            self.checkpoint.running = true;
            self.checkpoint.wanted = false;
            self.jobs.push_back(Job::Checkpoint);
        }
    }

    pub fn can_checkpoint(&self) -> bool {
        !self.checkpoint.running && !self.pairs.is_busy() && self.phase == crate::state::Phase::Serving
    }

    /// True where something changed that a checkpoint would keep.
    pub fn is_dirty(&self) -> bool {
        self.versions.cost != DeltaCost::default()
            || !self.versions.dropped.is_empty()
            || !self.walked.is_empty()
            || self.journal.used() > 1
            || self.versions.dying().any(|version| version.cursor == TREE_BLOCKS)
    }

    fn checkpoint_is_due(&self) -> bool {
        let used = self.journal.used() * 100;
        let garbage = (self.versions.dropped.len() + self.walked.len()) as u64;
        used >= self.journal.blocks() * self.config.checkpoint_journal_percent
            || self.versions.cost.entries >= self.config.checkpoint_entries
            || self.versions.cost.bytes() >= self.delta_limit() / 2
            || garbage > (self.alloc.free() / 4).max(256)
            || self.now >= self.checkpoint.last_at + self.config.checkpoint_micros && self.is_dirty()
    }

    /// The cut, the number and journal start of the checkpoint, and how fast it goes.
    fn begin_checkpoint(&mut self) -> (Cut, u64, u64, Pace) {
        assert!(!self.pairs.is_busy(), "a cut while a record waits for its data");
        self.journal.seal();
        let walked = std::mem::take(&mut self.walked);
        let cut = cut(&mut self.versions, walked);
        self.checkpoint.cuts += 1;
        self.checkpoint.frozen_cost = cut.cost;
        self.checkpoint.garbage = (cut.walked.len() + cut.dropped.len()) as u64;
        let era = self.now - self.checkpoint.cut_at;
        self.checkpoint.cut_at = self.now;
        // A small merge disturbs nobody.
        let nodes = if cut.cost.nodes >= self.config.paced_nodes_min { cut.cost.nodes } else { 0 };
        let pace = Pace { began: self.now, span: (era / 2).min(nodes * PACED_MICROS_PER_NODE), nodes };
        self.expect_checkpoint(cut.cost.nodes);
        (cut, self.journal.checkpoint + 1, self.journal.next_seq(), pace)
    }

    /// Everything is merged and written, the bitmaps are up to date: lays out catalog and superblock. Returns what to
    /// write, and the catalog's old places.
    #[expect(clippy::type_complexity, reason = "three plain results of one step")]
    fn put_together(
        &mut self,
        cut: &Cut,
        number: u64,
        journal_seq: u64,
        merged: &[Merged],
    ) -> Result<(Superblock, Vec<(u64, Box<[u8; BLOCK_BYTES]>)>, Vec<u64>), Failure> {
        let records: Vec<(u64, tanada_format::Version)> =
            cut.records.iter().map(|record| (record.slot, record.resolve(merged))).collect();
        let slots = records.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0);
        self.checkpoint.slots = self.checkpoint.slots.max(slots);
        let saved = self.catalog.save(&records, cut.epoch, &mut self.alloc)?;
        let Some(last) = &self.superblock else { return Err(Failure::new(ENOSPC, "the store is not open")) };
        let superblock = Superblock {
            features_required: last.features_required | self.checkpoint.features_required,
            checkpoint: number,
            incarnation: self.journal.incarnation,
            epoch: cut.epoch,
            next_version: cut.next_id,
            version_slots: self.checkpoint.slots,
            geometry: self.alloc.geometry(),
            journal_seq,
            used_blocks: self.alloc.used(),
            catalog: saved.root,
            ..last.clone()
        };
        Ok((superblock, saved.writes, saved.freed))
    }

    /// The superblock is durable.
    fn end_checkpoint(
        &mut self,
        cut: &Cut,
        merged: &[Merged],
        superblock: Superblock,
        journal_seq: u64,
        garbage: Blocks,
    ) {
        finish(&mut self.versions, cut, merged);
        self.journal.trim(superblock.checkpoint, journal_seq);
        self.superblock = Some(superblock);
        self.checkpoint.finished += 1;
        self.checkpoint.frozen_cost = DeltaCost::default();
        self.checkpoint.garbage = 0;
        self.checkpoint.last_at = self.now;
        self.checkpoint.urgent = self.checkpoint.wanted;
        self.releases.later(garbage);
        let finished = self.checkpoint.finished;
        for (cut, filler) in std::mem::take(&mut self.checkpoint.waiters) {
            if cut <= finished {
                filler.fill(Ok(()));
            } else {
                self.checkpoint.waiters.push((cut, filler));
            }
        }
        self.room_waiters.drain(..).for_each(|filler| filler.fill(()));
    }
}
