//! Busy blocks (rule W1): whatever changes blocks holds them while it is in flight; a second one on the same block
//! waits in order of arrival. Reads take nothing.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Names a holder; chosen by the caller.
pub type Ticket = u64;

/// The busy blocks of one volume.
#[derive(Debug, Default)]
pub struct BusyBlocks {
    /// First block -> (end, holder). Ranges held do not overlap.
    held: BTreeMap<u64, (u64, Ticket)>,
    waiting: VecDeque<(Range<u64>, Ticket)>,
}

impl BusyBlocks {
    /// Takes the range for `ticket` now, or queues it; true where it is taken. The range must not be empty.
    pub fn acquire(&mut self, range: Range<u64>, ticket: Ticket) -> bool {
        let taken = self.acquire_now(range.clone(), ticket);
        if !taken {
            self.waiting.push_back((range, ticket));
        }
        taken
    }

    /// Takes the range for `ticket` if nobody holds a part of it or waits for one; true where it is taken.
    pub fn acquire_now(&mut self, range: Range<u64>, ticket: Ticket) -> bool {
        let is_free = !self.is_held(&range) && !self.waiting.iter().any(|(other, _)| overlap(other, &range));
        if is_free {
            self.held.insert(range.start, (range.end, ticket));
        }
        is_free
    }

    /// Gives back what `ticket` holds from `start` on; returns the tickets that hold their blocks now.
    pub fn release(&mut self, start: u64) -> Vec<Ticket> {
        self.held.remove(&start);
        let mut granted = Vec::new();
        let mut passed: Vec<Range<u64>> = Vec::new();
        let mut rest = VecDeque::new();
        for (range, ticket) in std::mem::take(&mut self.waiting) {
            if self.is_held(&range) || passed.iter().any(|earlier| overlap(earlier, &range)) {
                passed.push(range.clone());
                rest.push_back((range, ticket));
            } else {
                self.held.insert(range.start, (range.end, ticket));
                granted.push(ticket);
            }
        }
        self.waiting = rest;
        granted
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    fn is_held(&self, range: &Range<u64>) -> bool {
        self.held.range(..range.end).next_back().is_some_and(|(_, (end, _))| *end > range.start)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::BusyBlocks;

    #[test]
    fn overlapping_ranges_wait_in_order_of_arrival() {
        let mut busy = BusyBlocks::default();
        assert!(busy.acquire(0..4, 1));
        assert!(busy.acquire(8..9, 2));
        assert!(!busy.acquire(3..10, 3));
        assert!(!busy.acquire(4..5, 4), "free, but the third came first and wants it");
        assert_eq!(busy.release(0), []);
        assert_eq!(busy.release(8), [3]);
        assert_eq!(busy.release(3), [4]);
        assert_eq!(busy.release(4), []);
        assert!(busy.is_empty());
        assert!(busy.acquire_now(0..4, 5) && !busy.acquire_now(3..9, 6));
        assert_eq!(busy.release(0), [], "who did not get it at once does not wait");
    }
}
