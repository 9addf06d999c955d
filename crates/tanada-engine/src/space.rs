//! Free space: what is kept back, what is passed down to the medium, when an administrator is told.

use tanada_disk::DiskOp;
use tanada_units::MIB;

use crate::api::Alert;
use crate::state::{BLOCK, Pending, State};

/// Space is passed down when nothing was written for so long: first writes to a hole are slow, so what guests are about
/// to write again stays.
const PUNCH_IDLE_MICROS: u64 = 10_000_000;

impl State {
    /// When space may be passed down, if there is any to pass.
    pub fn punch_at(&self) -> Option<u64> {
        let waits = self.alloc.may_have_idle_segments() && !self.punching && !self.checkpoint.running;
        waits.then(|| (self.last_change + PUNCH_IDLE_MICROS).max(self.now + 1000))
    }

    /// Passes space down to the medium, a segment at a time, while nobody waits for anything else. Whole segments only:
    /// small holes fragment the file below and turn each later sync into a commit of its journal.
    pub fn punch_idle(&mut self) {
        let busy = self.punching || self.checkpoint.running || self.syncs.running || !self.ops.is_empty();
        if busy || self.now < self.last_change + PUNCH_IDLE_MICROS {
            return;
        }
        if let Some((first, count)) = self.alloc.take_idle_segment() {
            self.punching = true;
            let op = DiskOp::Punch { at: first * BLOCK, length: count * BLOCK };
            self.start_io(op, Pending::Punch { first, count });
        }
    }

    /// Free blocks that only checkpoints and deletions may take (store notes section 6).
    pub fn reserve(&self) -> u64 {
        let cost = self.versions.cost.nodes + self.checkpoint.frozen_cost.nodes + self.promised_nodes;
        let regions = self.alloc.geometry().region_count();
        let fixed = (self.config.reserve_bytes / BLOCK).min(self.alloc.geometry().allocatable_blocks() / 16);
        cost + 2 * self.catalog.reserve_blocks(regions) + fixed
    }

    /// Bytes of memory for one era's delta.
    pub fn delta_limit(&self) -> u64 {
        (self.config.memory_bytes * 3 / 16).max(MIB / 4)
    }

    /// Warns when the store becomes 80 % full, and says so when there is room again.
    pub fn watch_space(&mut self) {
        let (free, total) = (self.alloc.free(), self.alloc.geometry().allocatable_blocks());
        let nearly_full = free < total / 5;
        if nearly_full && !self.warned_nearly_full {
            let physical = self.alloc.geometry().store_bytes();
            self.alert(Alert::NearlyFull { free: free * BLOCK, physical });
        }
        if self.warned_full && free > self.reserve() + total / 50 {
            self.warned_full = false;
            self.alert(Alert::RoomAgain { free: free * BLOCK });
        }
        self.warned_nearly_full = if self.warned_nearly_full { free < total / 4 } else { nearly_full };
    }
}
