//! Map nodes read ahead: what a merge or a walk will need next, sorted by place on the device, neighbours in one read,
//! several reads at a time. Leaves read ahead are held until the next batch, beside the cache, which they would only
//! sweep; nodes above them go through the cache.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use tanada_disk::{Buf, DiskOp, DiskResult};
use tanada_format::{BLOCK_BYTES, Node, Pointer};

use crate::failure::Failure;
use crate::map::tree::NodeSource;
use crate::state::{BLOCK, Handle};
use crate::tasks::exec::Slot;

/// Reads in flight at once: enough to keep a disk busy beside guests, few enough that these do not queue behind them.
const READS_IN_FLIGHT_MAX: usize = 8;

/// The same where guests wait for what is read: they are slowed by it more than by a queue at the disk.
const READS_IN_FLIGHT_LATE: usize = 24;

/// Blocks of one read at most: 128 KiB.
const READ_BLOCKS_MAX: u64 = 32;

/// Blocks nobody asked for that are read to save a read: leaves of other versions lie between.
const GAP_BLOCKS_MAX: u64 = 4;

/// Nodes of one batch at most: 2 MiB. What is more is read when it is asked for.
const BATCH_NODES_MAX: usize = 512;

/// Where a merge or a walk gets its nodes.
pub struct Ahead {
    handle: Handle,
    held: RefCell<BTreeMap<u64, (u32, Rc<Node>)>>,
    /// Nodes read from the device.
    reads: std::cell::Cell<u64>,
}

impl Ahead {
    pub fn new(handle: &Handle) -> Ahead {
        Ahead { handle: handle.clone(), held: RefCell::default(), reads: std::cell::Cell::new(0) }
    }

    /// Nodes read from the device so far.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// True where guests' reads use this node too.
    pub fn is_cached(&self, pointer: Pointer) -> bool {
        self.handle.with(|state| state.cache.get(pointer).is_some())
    }

    pub async fn node(&self, pointer: Pointer) -> Result<Rc<Node>, Failure> {
        if let Some((crc, node)) = self.held.borrow().get(&pointer.block())
            && *crc == pointer.crc()
        {
            return Ok(Rc::clone(node));
        }
        if let Some(node) = self.handle.with(|state| state.cache.get(pointer)) {
            return Ok(node);
        }
        self.reads.set(self.reads.get() + 1);
        self.handle.node(pointer).await
    }

    /// Reads what of `pointers` is not in memory. What cannot be read is left for [`Ahead::node`] to say so.
    /// `pace` is called once per node.
    pub async fn read(&self, level: u8, pointers: Vec<Pointer>, pace: impl AsyncFn()) {
        let missing = self.missing(pointers);
        if level == 0 {
            self.held.borrow_mut().clear();
        }
        let mut in_flight: VecDeque<(&[Pointer], Slot<DiskResult>)> = VecDeque::new();
        let is_late = self.handle.with(|state| state.is_checkpoint_late());
        let reads_max = if is_late { READS_IN_FLIGHT_LATE } else { READS_IN_FLIGHT_MAX };
        for run in runs(&missing) {
            if in_flight.len() >= reads_max
                && let Some((run, slot)) = in_flight.pop_front()
            {
                self.take(level, run, slot.await, &pace).await;
            }
            let (first, last) = (run[0].block(), run[run.len() - 1].block());
            let op = DiskOp::Read { at: first * BLOCK, length: ((last + 1 - first) * BLOCK) as u32 };
            in_flight.push_back((run, self.handle.with(|state| state.task_io(op))));
        }
        for (run, slot) in in_flight {
            self.take(level, run, slot.await, &pace).await;
        }
    }

    /// Those that are in no memory yet, in the order of their blocks.
    fn missing(&self, pointers: Vec<Pointer>) -> Vec<Pointer> {
        let mut missing: Vec<Pointer> = self.handle.with(|state| {
            pointers.into_iter().filter(|pointer| pointer.has_block() && state.cache.get(*pointer).is_none()).collect()
        });
        missing.sort_unstable_by_key(|pointer| (pointer.block(), pointer.crc()));
        missing.dedup();
        missing.truncate(BATCH_NODES_MAX);
        missing
    }

    async fn take(&self, level: u8, run: &[Pointer], result: DiskResult, pace: &impl AsyncFn()) {
        let Ok(Some(bytes)) = result else { return };
        let store_blocks = self.handle.with(|state| state.alloc.geometry().store_blocks());
        for pointer in run {
            pace().await;
            let at = ((pointer.block() - run[0].block()) * BLOCK) as usize;
            let Some(node) = decode(&bytes, at, *pointer, store_blocks) else { continue };
            self.reads.set(self.reads.get() + 1);
            if level == 0 {
                self.held.borrow_mut().insert(pointer.block(), (pointer.crc(), node));
            } else {
                self.handle.with(|state| state.cache.insert(*pointer, node));
            }
        }
    }
}

fn decode(bytes: &Buf, at: usize, pointer: Pointer, store_blocks: u64) -> Option<Rc<Node>> {
    let bytes = bytes.get(at..at + BLOCK_BYTES)?;
    Node::decode(bytes, pointer.crc(), store_blocks).ok().map(Rc::new)
}

/// Cuts sorted pointers into reads.
fn runs(sorted: &[Pointer]) -> impl Iterator<Item = &[Pointer]> {
    let mut rest = sorted;
    std::iter::from_fn(move || {
        let first = rest.first()?.block();
        let together = |pair: &[Pointer]| {
            let (a, b) = (pair[0].block(), pair[1].block());
            b - a <= GAP_BLOCKS_MAX + 1 && b - first < READ_BLOCKS_MAX
        };
        let count = 1 + rest.windows(2).take_while(|pair| together(pair)).count();
        let (run, more) = rest.split_at(count);
        rest = more;
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::runs;
    use tanada_format::Pointer;

    #[test]
    fn neighbours_are_read_together_up_to_a_bound() {
        let blocks = [1u64, 2, 3, 8, 14].into_iter().chain(100..140);
        let pointers: Vec<Pointer> = blocks.map(|block| Pointer::new(block, 1, 0)).collect();
        let spans: Vec<(u64, u64)> = runs(&pointers).map(|run| (run[0].block(), run[run.len() - 1].block())).collect();
        assert_eq!(spans, [(1, 8), (14, 14), (100, 131), (132, 139)]);
    }
}
