//! A checkpoint's new map nodes on their way to the device, and the old ones on theirs from it.
//!
//! Writes go out in batches, a few at a time, and no guest waits for them: where nobody waits for the checkpoint, the
//! merge gives way after every few nodes and keeps the time that it was given.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use tanada_disk::{BufMut, DiskOp, DiskResult};
use tanada_format::node::span_blocks;
use tanada_format::{BLOCK_BYTES, Geometry, Node, Pointer, crc32c};

use crate::api::Alert;
use crate::background::ahead::Ahead;
use crate::background::checkpoint::TRIES;
use crate::failure::{ENOSPC, Failure};
use crate::map::tree::NodeSource;
use crate::map::tree::merge::{MergeStore, Merged, merge};
use crate::space::alloc::{PageWrite, Stream};
use crate::space::blocks::Blocks;
use crate::state::{BLOCK, Handle};
use crate::tasks::exec::Slot;
use crate::versions::VersionId;
use crate::versions::cut::Cut;

/// Map nodes in one device write: 256 KiB.
const BATCH_NODES: usize = 64;

/// Device writes of a checkpoint in flight: with 256 KiB each, 1 MiB. A guest's sync must wait for them too.
const WRITES_IN_FLIGHT_MAX: usize = 4;

/// Nodes handled between two turns, where no guest waits for the checkpoint: some 200 us.
const NODES_PER_TURN: usize = 64;

/// Versions merged side by side at most: a node of each on every level is held.
const PARTS_MAX: usize = 64;

/// A map node that cannot be read is tried again so often, with this many microseconds between, before what it maps is
/// given up for lost: a medium may have a bad moment.
const READ_TRIES: usize = 4;
const READ_AGAIN_MICROS: u64 = 20_000;

/// What the merges of one checkpoint read and made.
pub struct MergeIo<'a> {
    handle: &'a Handle,
    ahead: Ahead,
    pace: Pace,
    work: RefCell<Work>,
    /// The versions whose parts are being merged.
    versions: RefCell<Vec<VersionId>>,
    /// Something could not be read and is lost.
    lost: Cell<bool>,
}

/// What became of the blocks of a checkpoint's merges.
pub struct Made {
    /// The new trees refer to them.
    pub adopted: Blocks,
    /// The new trees refer to them no more.
    pub freed: Blocks,
    /// Something could not be read and is lost.
    pub has_lost: bool,
}

/// How fast the merge may go where nobody waits for it.
pub struct Pace {
    pub began: u64,
    /// Microseconds for all of it.
    pub span: u64,
    /// Delta nodes to merge; 0 where it need not keep any time.
    pub nodes: u64,
}

impl Pace {
    pub const NONE: Pace = Pace { began: 0, span: 0, nodes: 0 };
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
    pub fn new(handle: &Handle, pace: Pace) -> MergeIo<'_> {
        let (versions, lost) = (RefCell::default(), Cell::new(false));
        MergeIo { handle, ahead: Ahead::new(handle), pace, work: RefCell::default(), versions, lost }
    }

    /// Of this moment: a store that grows meanwhile has the same places, and more of them.
    fn geometry(&self) -> Geometry {
        self.handle.with(|state| state.alloc.geometry())
    }

    /// Makes all new trees of checkpoint `number`, versions that build upon one another together, and has their nodes on
    /// the device.
    pub async fn merge_all(self, cut: &Cut, number: u64) -> Result<(Vec<Merged>, Made), Failure> {
        let mut merged: Vec<Merged> = Vec::with_capacity(cut.items.len());
        for range in cut.chunks(PARTS_MAX) {
            let versions: Vec<VersionId> = cut.items[range.clone()].iter().map(|item| item.version).collect();
            self.versions.replace(versions.clone());
            let made = merge(&self, &cut.parts(range, &merged)).await.map_err(|failure| {
                Failure::new(failure.errno, format!("versions {versions:?}: {}", failure.message))
            })?;
            merged.extend(made);
        }
        self.finish_all().await?;
        let (reads, work) = (self.ahead.reads(), self.work.into_inner());
        tracing::debug!(checkpoint = number, reads, writes = work.written, "map nodes of a merge");
        let Work { adopted, freed, .. } = work;
        Ok((merged, Made { adopted, freed, has_lost: self.lost.get() }))
    }

    /// Writes bitmap pages, neighbours together.
    pub async fn write_pages(&self, pages: Vec<PageWrite>) -> Result<(), Failure> {
        self.write_blocks(pages.into_iter().map(|page| (page.block, page.bytes))).await
    }

    /// Writes blocks, neighbours together.
    pub async fn write_blocks(&self, blocks: impl Iterator<Item = (u64, [u8; BLOCK_BYTES])>) -> Result<(), Failure> {
        self.work.borrow_mut().batch.extend(blocks);
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
