//! Free space: what is kept back, what is passed down to the medium, what is written ahead, when an administrator is
//! told.
//!
//! A first write to a hole of a sparse file is slow, and so is the sync behind it: the host allocates, and commits its
//! own journal. So a few segments ahead of the allocator are filled with zeros in quiet moments, and whole segments are
//! handed back late, when nobody writes. A store that was made with all of its space (`KEEP_SPACE`) needs neither.

pub mod alloc;
pub mod bitmaps;
pub mod blocks;
pub mod region;
pub mod releases;

use tanada_disk::{BufMut, DiskOp, DiskResult};
use tanada_format::superblock::KEEP_SPACE;
use tanada_units::MIB;

use crate::api::Alert;
use crate::state::{BLOCK, Pending, State};

/// Space is passed down when nothing was written for so long: first writes to a hole are slow, so what guests are about
/// to write again stays.
const PUNCH_IDLE_MICROS: u64 = 10_000_000;

/// Space is written ahead while no more requests than this are under way, in pieces of so many blocks: a sync must wait
/// for them, too.
const PREPARE_OPS_MAX: usize = 4;
const PREPARE_BLOCKS: u64 = 128;

/// A segment being filled with zeros; its blocks are busy meanwhile, as those being punched are.
#[derive(Debug, Clone, Copy)]
pub struct Preparing {
    first: u64,
    count: u64,
    done: u64,
    in_flight: bool,
}

/// Nothing tells when a full file system has room again: guests are let on after so long without a refusal.
const MEDIUM_RETRY_MICROS: u64 = 10_000_000;

impl State {
    /// True where space is not handed back: all of it was written when the store was made.
    pub fn keeps_space(&self) -> bool {
        self.superblock.as_ref().is_some_and(|superblock| superblock.features_optional & KEEP_SPACE != 0)
    }

    /// Fills space that was never written with zeros, ahead of who will want it.
    pub fn prepare_space(&mut self) {
        if self.config.prepare_segments == 0 || self.ops.len() > PREPARE_OPS_MAX || self.keeps_space() {
            return;
        }
        let Some(preparing) = self.preparing.filter(|preparing| !preparing.in_flight) else {
            if self.preparing.is_none() {
                self.begin_preparing();
            }
            return;
        };
        let Preparing { first, count, done, .. } = preparing;
        let blocks = (count - done).min(PREPARE_BLOCKS);
        let zeros = BufMut::zeroed((blocks * BLOCK) as usize).freeze();
        self.preparing = Some(Preparing { done: done + blocks, in_flight: true, ..preparing });
        let op = DiskOp::Write { at: (first + done) * BLOCK, parts: vec![zeros] };
        self.start_io(op, Pending::Prepare);
    }

    fn begin_preparing(&mut self) {
        let roomy = self.alloc.free() > self.alloc.geometry().allocatable_blocks() / 10;
        if !roomy || self.data_writes == 0 {
            return;
        }
        let segment = self.alloc.take_cold_segment(self.config.prepare_segments);
        self.preparing = segment.map(|(first, count)| Preparing { first, count, done: 0, in_flight: false });
    }

    /// A piece was written. What could not be written stays busy until a restart: the device may still do it (J10).
    pub fn prepared(&mut self, result: DiskResult) {
        let Some(preparing) = &mut self.preparing else { return };
        preparing.in_flight = false;
        let Preparing { first, count, done, .. } = *preparing;
        if result.is_err() {
            self.config.prepare_segments = 0;
            self.preparing = None;
        } else if done == count {
            (first..first + count).for_each(|block| self.alloc.release(block));
            self.preparing = None;
        }
    }

    /// When space may be passed down, if there is any to pass.
    pub fn punch_at(&self) -> Option<u64> {
        let idle = self.alloc.may_have_idle_segments() && !self.keeps_space();
        let waits = idle && !self.punching && !self.checkpoint.running;
        waits.then(|| (self.last_change + PUNCH_IDLE_MICROS).max(self.now + 1000))
    }

    /// Passes space down to the medium, a segment at a time, while nobody waits for anything else. Whole segments only:
    /// small holes fragment the file below and turn each later sync into a commit of its journal.
    pub fn punch_idle(&mut self) {
        let busy = self.punching || self.checkpoint.running || self.syncs.running || !self.ops.is_empty();
        if busy || self.keeps_space() || self.now < self.last_change + PUNCH_IDLE_MICROS {
            return;
        }
        if let Some((first, count)) = self.alloc.take_idle_segment() {
            self.punching = true;
            let op = DiskOp::Punch { at: first * BLOCK, length: count * BLOCK };
            self.start_io(op, Pending::Punch { first, count });
        }
    }

    /// True where blocks will be free without any checkpoint: when a reader ends, or the medium has done its part.
    pub fn is_space_coming(&self) -> bool {
        !self.releases.is_empty() || self.preparing.is_some() || self.punching
    }

    /// Free blocks that only checkpoints and deletions may take (store notes section 6).
    pub fn reserve(&self) -> u64 {
        let cost = self.versions.cost.nodes + self.checkpoint.frozen_cost.nodes + self.promised_nodes;
        let fixed = (self.config.reserve_bytes / BLOCK).min(self.alloc.geometry().allocatable_blocks() / 16);
        cost + 2 * self.catalog_reserve() + fixed
    }

    /// Blocks that saving the catalog may need.
    pub fn catalog_reserve(&self) -> u64 {
        self.catalog.reserve_blocks(self.alloc.geometry().region_count())
    }

    /// Bytes of memory for one era's delta.
    pub fn delta_limit(&self) -> u64 {
        (self.config.memory_bytes * 3 / 16).max(MIB / 4)
    }

    /// What is below the store (a sparse file's file system, a thin pool) has refused a write for want of room.
    pub fn medium_is_full(&mut self) {
        self.medium_full_at = Some(self.now);
        self.warn_full();
    }

    /// When guests may try again on a medium that was full, where that is still to come.
    pub fn medium_retry_at(&self) -> Option<u64> {
        self.medium_full_at.map(|at| at + MEDIUM_RETRY_MICROS).filter(|at| *at > self.now)
    }

    /// Warns when the store becomes 80 % full, and says so when there is room again.
    pub fn watch_space(&mut self) {
        let (free, total) = (self.alloc.free(), self.alloc.geometry().allocatable_blocks());
        let nearly_full = free < total / 5;
        if nearly_full && !self.warned_nearly_full {
            let physical = self.alloc.geometry().store_bytes();
            self.alert(Alert::NearlyFull { free: free * BLOCK, physical });
        }
        if self.warned_full && self.medium_retry_at().is_none() && free > self.reserve() + total / 50 {
            self.warned_full = false;
            self.medium_full_at = None;
            self.alert(Alert::RoomAgain { free: free * BLOCK });
        }
        self.warned_nearly_full = if self.warned_nearly_full { free < total / 4 } else { nearly_full };
    }
}
