//! Where a stream's next blocks come from: the open segment, front to back, then those lined up behind it.

use std::collections::{BTreeSet, VecDeque};

use tanada_format::geometry::{REGION_SEGMENTS, SEGMENT_BLOCKS};

use super::{Allocator, PageRead};
use crate::space::region::Bits;

/// What a block is wanted for: data and map nodes come from different segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Data,
    Map,
}

/// Where a stream's blocks come from.
#[derive(Default)]
pub(super) struct Line {
    /// Segment being filled and next bit in it.
    pub open: Option<(usize, u64)>,
    /// Free blocks of the open segment that are still ahead, at least.
    pub left: u64,
    /// Segments to fill next.
    pub next: VecDeque<usize>,
}

impl Line {
    pub fn holds(&self, segment: usize) -> bool {
        self.open.is_some_and(|(open, _)| open == segment) || self.next.contains(&segment)
    }
}

impl Allocator {
    /// Sees to it that at least `blocks` blocks are at hand for `stream`. Returns the pages that must be read for that:
    /// none where they are at hand, or where there is no more space.
    pub fn line_up(&mut self, stream: Stream, blocks: u64) -> Vec<PageRead> {
        let line = &self.lines[stream as usize];
        let mut at_hand =
            line.left + line.next.iter().map(|segment| u64::from(self.segment_free[*segment])).sum::<u64>();
        while at_hand < blocks {
            let Some(segment) = self.pick() else { break };
            at_hand += u64::from(self.segment_free[segment]);
            self.lines[stream as usize].next.push_back(segment);
        }
        let mut next: Vec<usize> = self.lines[stream as usize].next.iter().copied().collect();
        if at_hand < blocks {
            // What is left is in the other line, and its pages may be on their way for that one.
            next.extend(self.lines.iter().flat_map(|line| &line.next));
        }
        let regions: BTreeSet<u64> = next.into_iter().map(|segment| segment as u64 / REGION_SEGMENTS).collect();
        regions.into_iter().filter_map(|region| self.page_of(region)).collect()
    }

    /// A run of at most `want` blocks, busy from now on; `None` where nothing is free in the regions in memory.
    pub fn allocate(&mut self, stream: Stream, want: u64) -> Option<(u64, u64)> {
        loop {
            let (segment, bit) = match self.lines[stream as usize].open {
                Some(open) => open,
                None => self.open_next(stream)?,
            };
            let Some((first, count)) = self.run_in(segment, bit, want) else {
                let line = &mut self.lines[stream as usize];
                (line.open, line.left) = (None, 0);
                continue;
            };
            let line = &mut self.lines[stream as usize];
            line.open = Some((segment, first + count));
            line.left = line.left.saturating_sub(count);
            let block = self.geometry.regions_start() + segment as u64 * SEGMENT_BLOCKS + first;
            (block..block + count).for_each(|block| self.mark_busy(block));
            return Some((block, count));
        }
    }

    /// Opens the next segment of a line: the first that is in memory, else any that is, else one that the other stream
    /// has open.
    fn open_next(&mut self, stream: Stream) -> Option<(usize, u64)> {
        if self.lines[stream as usize].next.is_empty()
            && let Some(segment) = self.pick()
        {
            self.lines[stream as usize].next.push_back(segment);
        }
        let next: Vec<usize> = self.lines[stream as usize].next.iter().copied().collect();
        let ready = next.iter().position(|segment| self.is_ready(*segment));
        let segment = match ready.and_then(|at| self.lines[stream as usize].next.remove(at)) {
            Some(segment) => segment,
            None => (0..self.segment_free.len()).find(|segment| {
                let loaded = self.regions[segment / REGION_SEGMENTS as usize].loaded().is_some();
                loaded && self.segment_free[*segment] > 0
            })?,
        };
        let line = &mut self.lines[stream as usize];
        line.open = Some((segment, 0));
        line.left = u64::from(self.segment_free[segment]);
        line.open
    }

    fn is_ready(&mut self, segment: usize) -> bool {
        self.segment_free[segment] > 0 && self.page_of(segment as u64 / REGION_SEGMENTS).is_none()
    }

    /// The segment to fill next, of those in no line.
    fn pick(&mut self) -> Option<usize> {
        self.ahead = None;
        let emptiest = self.emptiest_warm();
        if let Some(segment) = emptiest.filter(|segment| u64::from(self.segment_free[*segment]) >= SEGMENT_BLOCKS / 2) {
            return Some(segment);
        }
        while self.warm.get(self.first_cold).is_some_and(|warm| *warm) {
            self.first_cold += 1;
        }
        let cold =
            (self.first_cold..self.segment_free.len()).find(|segment| !self.warm[*segment] && !self.is_taken(*segment));
        cold.or(emptiest)
    }

    fn is_taken(&self, segment: usize) -> bool {
        self.segment_free[segment] == 0
            || self.broken.contains(&(segment as u64 / REGION_SEGMENTS))
            || self.lines.iter().any(|line| line.holds(segment))
    }

    /// The warm segment with the most free blocks, of those in no line.
    fn emptiest_warm(&mut self) -> Option<usize> {
        loop {
            let (region, bound) = self.emptiest.iter().copied().enumerate().rev().max_by_key(|(_, free)| *free)?;
            if bound == 0 {
                return None;
            }
            let first = region * REGION_SEGMENTS as usize;
            let end = (first + REGION_SEGMENTS as usize).min(self.segment_free.len());
            let best = (first..end)
                .filter(|segment| self.warm[*segment] && !self.is_taken(*segment))
                .max_by_key(|segment| (self.segment_free[*segment], usize::MAX - segment));
            self.emptiest[region] = best.map_or(0, |segment| self.segment_free[segment]);
            if self.emptiest[region] == bound {
                return best;
            }
        }
    }

    /// The first run of free blocks in `segment` from `bit` on.
    fn run_in(&self, segment: usize, bit: u64, want: u64) -> Option<(u64, u64)> {
        if self.segment_free[segment] == 0 {
            return None;
        }
        let within = segment as u64 % REGION_SEGMENTS * SEGMENT_BLOCKS;
        let Bits { busy, .. } = self.regions[(segment as u64 / REGION_SEGMENTS) as usize].loaded()?;
        let mut first = bit;
        while first < SEGMENT_BLOCKS && busy.get(within + first) {
            let whole_word = first.is_multiple_of(64) && busy.words()[((within + first) / 64) as usize] == u64::MAX;
            first += if whole_word { 64 } else { 1 };
        }
        let mut count = 0;
        while count < want && first + count < SEGMENT_BLOCKS && !busy.get(within + first + count) {
            count += 1;
        }
        (count > 0).then_some((first, count))
    }
}
