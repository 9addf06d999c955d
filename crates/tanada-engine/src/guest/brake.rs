//! The brake: writers that are faster than the checkpoints wait, a little and early rather than long and late, so that
//! latency bends instead of breaking.
//!
//! ```text
//!   fullness of journal or delta      0 ........ 75 % ........ 92 %
//!                                     no wait    0 to 1 ms     held until a checkpoint makes room
//!   lead over a checkpoint that       0 ... 5 % ........ 35 %
//!   is expected to be late            no wait   0 to 250 us
//! ```
//! Waits grow with the square, and are per 4 KiB write; larger ones wait longer. Fullness alone would brake only when
//! most of the room is gone, and then hard: a store whose map is much larger than its cache needs seconds for a
//! checkpoint, and guests would be fast for some seconds and stand nearly still for others. So where the last checkpoint
//! was late (it took longer than the time it gives itself), the next is expected to go at its speed, and writers are let
//! through as the checkpoint advances: they lead when the delta is fuller than is due at this moment. An expectation may be
//! wrong, so what the checkpoint has done by now counts where it is more, and this wait is never as long as the other.

use crate::state::State;

/// Writers are delayed while the journal or the delta is filled beyond the first of these, more the fuller it is, and
/// held beyond the second, until the running checkpoint makes room.
const DELAYED_PER_MILLE: u64 = 750;
pub const HELD_PER_MILLE: u64 = 920;

/// How full the delta is meant to be when a late checkpoint ends: below what delays by itself.
const DUE_AT_END_PER_MILLE: u64 = 650;

/// Lead over what is due at which delays begin, and at which they are longest.
const LEAD_FREE_PER_MILLE: u64 = 50;
const LEAD_MOST_PER_MILLE: u64 = 350;

/// What a small write waits for where writers are all but held, in microseconds: a thousand of them pass in a second
/// then, and any checkpoint keeps up with that.
const DELAY_MICROS_MAX: u64 = 1000;

/// Those who wait are let through in small groups, so many microseconds' worth: a wake-up for each would cost more time
/// than it waits for.
const GROUP_MICROS: u64 = 200;

/// What a write of `blocks` waits for, in microseconds, where it is not held.
fn delay_micros(pressure: u64, lead: u64, blocks: u64) -> u64 {
    let part = |value: u64, from: u64, to: u64| value.clamp(from, to).saturating_sub(from) * 1000 / (to - from);
    let full = part(pressure, DELAYED_PER_MILLE, HELD_PER_MILLE);
    let ahead = part(lead, LEAD_FREE_PER_MILLE, LEAD_MOST_PER_MILLE);
    let most = full.max(ahead / 2);
    DELAY_MICROS_MAX * most * most / 1_000_000 * (1 + blocks / 8)
}

/// `part` of `whole` in per mille, all of it at most.
fn per_mille(part: u64, whole: u64) -> u64 {
    (part * 1000).checked_div(whole).unwrap_or(1000).min(1000)
}

/// How far the delta, filled to `filled` per mille, is ahead of a checkpoint that has come to `progress` per mille.
fn lead_per_mille(filled: u64, progress: u64) -> u64 {
    (filled * 1000 / DUE_AT_END_PER_MILLE).saturating_sub(progress)
}

impl State {
    fn delta_per_mille(&self) -> u64 {
        self.versions.cost.bytes() * 1000 / self.delta_limit()
    }

    /// How full journal or delta are, whichever is fuller, in per mille.
    pub fn pressure(&self) -> u64 {
        let journal = self.journal.used() * 1000 / self.journal.blocks();
        journal.max(self.delta_per_mille())
    }

    fn lead(&self) -> u64 {
        match self.checkpoint.expected_micros.filter(|_| self.checkpoint.running) {
            Some(expected) => {
                let by_time = per_mille(self.now - self.checkpoint.cut_at, expected);
                // Not every node of a delta is written; what is written says how far it came at least.
                let by_work = per_mille(self.checkpoint.merged_nodes, self.checkpoint.frozen_cost.nodes);
                lead_per_mille(self.delta_per_mille(), by_time.max(by_work))
            }
            None => 0,
        }
    }

    /// True where a writer of `blocks` may pass now; the next one's wait begins then.
    pub fn pass_brake(&mut self, pressure: u64, blocks: u64) -> bool {
        let delay = delay_micros(pressure, self.lead(), blocks);
        if delay == 0 {
            return true;
        }
        if self.now < self.admit_at {
            return false;
        }
        self.admit_at = self.admit_at.max(self.now.saturating_sub(GROUP_MICROS)) + delay;
        true
    }

    /// When writers that are delayed may go on, if any are.
    pub fn admission_at(&self) -> Option<u64> {
        let waits = !self.pending.is_empty() && self.admit_at > self.now;
        waits.then_some(self.admit_at + GROUP_MICROS)
    }

    /// A checkpoint of `nodes` delta nodes begins.
    pub fn expect_checkpoint(&mut self, nodes: u64) {
        self.checkpoint.merged_nodes = 0;
        self.checkpoint.expected_micros = self.checkpoint.late_nanos_per_node.map(|nanos| nodes * nanos / 1000);
    }

    /// True where guests wait for the running checkpoint, or will.
    pub fn is_checkpoint_late(&self) -> bool {
        self.checkpoint.running && (self.checkpoint.urgent || self.checkpoint.expected_micros.is_some())
    }

    /// The running checkpoint, of `nodes` delta nodes, has ended; it gave itself `span` microseconds.
    pub fn note_checkpoint(&mut self, nodes: u64, span: u64) {
        let took = self.now - self.checkpoint.cut_at;
        let was_late = span > 0 && took > span + span / 4; // its end is not paced
        self.checkpoint.late_nanos_per_node = (took * 1000).checked_div(nodes).filter(|_| was_late);
        self.checkpoint.expected_micros = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{DELAY_MICROS_MAX, HELD_PER_MILLE, delay_micros, lead_per_mille, per_mille};

    #[test]
    fn nobody_waits_below_three_quarters_and_waits_grow_to_the_most() {
        assert_eq!(delay_micros(0, 0, 1), 0);
        assert_eq!(delay_micros(750, 50, 1), 0);
        let delays: Vec<u64> = (750..=HELD_PER_MILLE).map(|pressure| delay_micros(pressure, 0, 1)).collect();
        assert!(delays.is_sorted(), "{delays:?}");
        assert_eq!(delays.last(), Some(&DELAY_MICROS_MAX));
        let half = delay_micros(835, 0, 1);
        assert_eq!(half, DELAY_MICROS_MAX / 4, "half of the way is a quarter of the wait");
        let steepest = delays.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(steepest < Some(DELAY_MICROS_MAX / 50), "it bends: {delays:?}");
        assert_eq!(delay_micros(2000, 0, 1), DELAY_MICROS_MAX);
    }

    #[test]
    fn large_writes_wait_longer_and_the_worse_of_two_reasons_counts() {
        assert_eq!(delay_micros(HELD_PER_MILLE, 0, 64), 9 * DELAY_MICROS_MAX);
        assert_eq!(delay_micros(0, 350, 1), DELAY_MICROS_MAX / 4, "thousands pass in a second");
        assert_eq!(delay_micros(0, 1000, 1), DELAY_MICROS_MAX / 4);
        assert_eq!(delay_micros(835, 200, 1), delay_micros(835, 0, 1));
        assert!(delay_micros(760, 300, 1) > delay_micros(760, 0, 1));
    }

    #[test]
    fn the_lead_is_what_is_filled_beyond_what_is_due() {
        assert_eq!(lead_per_mille(0, 0), 0);
        assert_eq!(lead_per_mille(325, per_mille(2_000_000, 4_000_000)), 0, "half of the way, half of the room");
        assert_eq!(lead_per_mille(325, per_mille(1_000_000, 4_000_000)), 250);
        assert_eq!(lead_per_mille(650, per_mille(9_000_000, 4_000_000)), 0, "it should have ended: fullness counts");
        assert_eq!(lead_per_mille(650, per_mille(5, 0)), 0);
    }
}
