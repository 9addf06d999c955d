//! Dropped blocks on their way back to the allocator (rules B1-B3).
//!
//! ```text
//!   superblock durable --> release_later(blocks)   the round moves
//!   readers of this round and of earlier ones gone --> release_some(): free again, a bounded number per turn
//! ```
//! A reader holds its round from look-up to end: it may still read what a checkpoint has dropped meanwhile. The walker
//! is a reader too.

use std::collections::{BTreeMap, VecDeque};

use crate::background::checkpoint::BLOCKS_PER_TURN;
use crate::space::blocks::Blocks;
use crate::state::{Handle, State};

#[derive(Default)]
pub struct Releases {
    /// Readers by the round in which they began; the round moves when a checkpoint's trees are taken over.
    readers: BTreeMap<u64, u64>,
    round: u64,
    /// Blocks to release when all readers of this round or an earlier one are gone.
    queue: VecDeque<(u64, Blocks)>,
    blocks: u64,
}

impl Releases {
    /// Counts a reader in; whoever reads gives the round back with [`Releases::leave`].
    pub fn enter(&mut self) -> u64 {
        *self.readers.entry(self.round).or_insert(0) += 1;
        self.round
    }

    pub fn leave(&mut self, round: u64) {
        if let Some(count) = self.readers.get_mut(&round) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&round);
            }
        }
    }

    /// Lets `blocks` go when all readers that began before now are gone. The checkpoint that dropped them is durable.
    pub fn later(&mut self, blocks: Blocks) {
        self.blocks += blocks.len();
        self.queue.push_back((self.round, blocks));
        self.round += 1;
    }

    /// True where blocks may wait for who began to read in `round`.
    pub fn is_overtaken(&self, round: u64) -> bool {
        self.round != round
    }

    fn is_ready(&self) -> bool {
        let oldest = self.readers.first_key_value().map_or(u64::MAX, |(round, _)| *round);
        self.queue.front().is_some_and(|(round, _)| *round < oldest)
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Blocks that wait.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

impl State {
    /// Releases what no reader needs any more, a bounded number of blocks per turn; true where more is left.
    pub fn release_some(&mut self) -> bool {
        let mut budget = BLOCKS_PER_TURN;
        while budget > 0 && self.releases.is_ready() {
            let Some((_, blocks)) = self.releases.queue.front_mut() else { break };
            let taken = blocks.take(budget);
            if blocks.is_empty() {
                self.releases.queue.pop_front();
            }
            let Some((region, bits)) = taken else { continue };
            budget -= bits.len();
            self.releases.blocks -= bits.len() as u64;
            let start = self.alloc.geometry().region_start(region);
            bits.into_iter().for_each(|bit| self.alloc.release(start + u64::from(bit)));
        }
        self.releases.is_ready()
    }
}

/// Counts a reader from look-up to end (B3); dropped when it ends.
pub struct Reading {
    handle: Handle,
    round: u64,
}

impl Reading {
    /// True where blocks wait for this reader to end.
    pub fn is_overtaken(&self) -> bool {
        self.handle.with(|state| state.releases.is_overtaken(self.round))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.handle.with(|state| state.releases.leave(self.round));
    }
}

impl Handle {
    pub fn reading(&self) -> Reading {
        let round = self.with(|state| state.releases.enter());
        Reading { handle: self.clone(), round }
    }
}
