//! Which segments were written at some time: they are used again before new ones, filled with zeros ahead of use, handed
//! back to the medium late.

use tanada_format::geometry::{REGION_SEGMENTS, SEGMENT_BLOCKS};

use super::Allocator;

/// Segments before the first cold one that are looked at for such as are written and free.
const AHEAD_LOOKED_AT: usize = 1024;

impl Allocator {
    /// What lies before something used has been written.
    pub(super) fn warm_up_to(&mut self, segment: usize) {
        for index in self.first_cold..=segment {
            self.warm[index] = true;
            self.note_free(index);
        }
        self.first_cold = self.first_cold.max(segment + 1);
    }

    /// Notes that a warm segment may have more free blocks than before.
    pub(super) fn note_free(&mut self, segment: usize) {
        if self.warm[segment] {
            let emptiest = &mut self.emptiest[segment / REGION_SEGMENTS as usize];
            *emptiest = (*emptiest).max(self.segment_free[segment]);
        }
    }

    /// False where [`Allocator::take_idle_segment`] certainly finds none.
    pub fn may_have_idle_segments(&self) -> bool {
        self.maybe_idle
    }

    /// A warm segment, free as a whole, to hand back to the medium: first block and number of blocks, all busy until
    /// they are released again. `None` while no more than a twentieth of the store is warm and free.
    pub fn take_idle_segment(&mut self) -> Option<(u64, u64)> {
        if !self.maybe_idle {
            return None;
        }
        let idle = |segment: &usize| {
            self.warm[*segment]
                && self.segment_free[*segment] == self.segment_size(*segment)
                && !self.lines.iter().any(|line| line.holds(*segment))
        };
        let all: Vec<usize> = (0..self.segment_free.len()).filter(idle).collect();
        if all.len() <= self.segment_free.len() / 20 {
            self.maybe_idle = false;
            return None;
        }
        let segment = all[all.len() - 1]; // the last one: files end up short
        let count = u64::from(self.segment_size(segment));
        let end = self.geometry.regions_start() + (segment as u64 + 1) * SEGMENT_BLOCKS;
        (end - count..end).for_each(|block| self.mark_busy(block));
        self.warm[segment] = false;
        self.first_cold = self.first_cold.min(segment);
        Some((end - count, count))
    }

    /// A segment that was never written, to be filled with zeros: first block and number of blocks, all busy until they
    /// are released. `None` where `ahead` segments are written and free, or none is left that was not. No more than a
    /// twentieth of the store is written ahead: beyond that it would be handed back to the medium.
    pub fn take_cold_segment(&mut self, ahead: usize) -> Option<(u64, u64)> {
        let ahead = ahead.min(self.segment_free.len() / 20);
        if self.ahead.is_some_and(|ready| ready >= ahead) {
            return None;
        }
        let in_line = |segment: &usize| self.lines.iter().any(|line| line.holds(*segment));
        let is_free = |segment: &usize| self.segment_free[*segment] == self.segment_size(*segment);
        let cold = (self.first_cold..self.segment_free.len())
            .find(|segment| !self.warm[*segment] && is_free(segment) && !in_line(segment));
        let Some(segment) = cold else {
            self.ahead = Some(usize::MAX);
            return None;
        };
        // They lie before the first that was never written; of a large store not all is looked at.
        let ready = (segment.saturating_sub(AHEAD_LOOKED_AT)..segment)
            .filter(|segment| self.warm[*segment] && is_free(segment) && !in_line(segment))
            .count();
        self.ahead = Some(ready);
        if ready >= ahead {
            return None;
        }
        self.ahead = None;
        let count = u64::from(self.segment_size(segment));
        let end = self.geometry.regions_start() + (segment as u64 + 1) * SEGMENT_BLOCKS;
        (end - count..end).for_each(|block| self.mark_busy(block));
        Some((end - count, count))
    }

    /// All of the space has been written at some time.
    pub fn mark_all_warm(&mut self) {
        self.warm.fill(true);
        self.first_cold = self.warm.len();
        (0..self.warm.len()).for_each(|segment| self.note_free(segment));
    }
}
