//! Which blocks are taken, and where the next ones come from.
//!
//! Two meanings of taken (rule B4):
//! - *used*: reachable from the checkpoint being kept; this is what bitmap pages save.
//! - *busy*: not allocatable now. All used blocks are busy; so are blocks of writes in flight, blocks that the journal
//!   names, and dropped blocks that a crash or a reader may still need.
//!
//! ```text
//!   free --allocate--> busy --adopt (checkpoint)--> used+busy --disown (checkpoint)--> busy --release--> free
//! ```
//! Every step asserts that the block was in the state before it (rule B5).
//!
//! Blocks come from one open segment per stream, front to back, all its holes. The next segment is the emptiest warm
//! one while that is at least half free, then one never used: a sparse file does not grow before it must.

use std::collections::BTreeSet;

use tanada_format::catalog::RegionEntry;
use tanada_format::geometry::{PAGE_COPIES, REGION_SEGMENTS, SEGMENT_BLOCKS};
use tanada_format::{BitmapPage, Geometry};

/// What a block is wanted for: data and map nodes come from different segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Data,
    Map,
}

struct Region {
    used: BitmapPage,
    busy: BitmapPage,
    /// Where the saved page is; `None` for a region that no checkpoint has used.
    copy: Option<u64>,
}

impl Region {
    fn fresh() -> Region {
        Region { used: BitmapPage::fresh(), busy: BitmapPage::fresh(), copy: None }
    }
}

/// A dirty bitmap page, as the checkpoint writes it.
pub struct PageWrite {
    pub block: u64,
    pub bytes: [u8; tanada_format::BLOCK_BYTES],
}

pub struct Allocator {
    geometry: Geometry,
    /// `None`: nothing busy in it.
    regions: Vec<Option<Region>>,
    entries: Vec<RegionEntry>,
    /// Blocks not busy, by segment.
    segment_free: Vec<u16>,
    /// Segments that have been written at some time and not been handed back to the medium since.
    warm: Vec<bool>,
    /// Some warm segment may be free as a whole.
    maybe_idle: bool,
    /// Segments that are written and free as a whole, as far as is known; forgotten when one may have been opened.
    ahead: Option<usize>,
    /// Open segment and next bit in it, by stream.
    cursors: [Option<(usize, u64)>; 2],
    free: u64,
    used: u64,
    dirty: BTreeSet<u64>,
}

impl Allocator {
    /// Everything free.
    pub fn new(geometry: Geometry) -> Allocator {
        let mut allocator = Allocator {
            geometry,
            regions: Vec::new(),
            entries: Vec::new(),
            segment_free: Vec::new(),
            warm: Vec::new(),
            maybe_idle: false,
            ahead: None,
            cursors: [None, None],
            free: 0,
            used: 0,
            dirty: BTreeSet::new(),
        };
        allocator.extend();
        allocator
    }

    fn extend(&mut self) {
        let regions = self.geometry.region_count() as usize;
        self.regions.resize_with(regions, || None);
        self.entries.resize(regions, RegionEntry::Fresh);
        let segments = ((self.geometry.store_blocks() - self.geometry.regions_start()) / SEGMENT_BLOCKS) as usize;
        for segment in self.segment_free.len()..segments {
            let pages = if (segment as u64).is_multiple_of(REGION_SEGMENTS) { PAGE_COPIES } else { 0 };
            self.segment_free.push((SEGMENT_BLOCKS - pages) as u16);
            self.warm.push(false);
            self.free += SEGMENT_BLOCKS - pages;
        }
    }

    /// Takes over a larger geometry.
    pub fn grow(&mut self, geometry: Geometry) {
        self.geometry = geometry;
        self.extend();
    }

    /// Takes over a saved page at open.
    pub fn load(&mut self, region: u64, entry: RegionEntry, page: BitmapPage) {
        let RegionEntry::Page { copy, used, .. } = entry else { return };
        self.used += used;
        self.free -= used;
        for segment in 0..REGION_SEGMENTS {
            let words =
                &page.words()[(segment * SEGMENT_BLOCKS / 64) as usize..((segment + 1) * SEGMENT_BLOCKS / 64) as usize];
            let busy: u32 = words.iter().map(|word| word.count_ones()).sum();
            let index = (region * REGION_SEGMENTS + segment) as usize;
            if let Some(free) = self.segment_free.get_mut(index) {
                *free = (SEGMENT_BLOCKS - u64::from(busy)) as u16;
                if u64::from(busy) > if segment == 0 { PAGE_COPIES } else { 0 } {
                    self.warm[..=index].fill(true);
                }
            }
        }
        self.regions[region as usize] = Some(Region { busy: page.clone(), used: page, copy: Some(copy) });
        self.entries[region as usize] = entry;
    }

    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Blocks that are not busy.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Blocks reachable from the checkpoint, those adopted since included.
    pub fn used(&self) -> u64 {
        self.used
    }

    pub fn entry(&self, region: u64) -> RegionEntry {
        self.entries.get(region as usize).copied().unwrap_or_default()
    }

    fn locate(&self, block: u64) -> (usize, u64, usize) {
        let Some((region, bit)) = self.geometry.bit_of(block).filter(|(_, bit)| *bit >= PAGE_COPIES) else {
            panic!("block {block} is not one of the {} that can be allocated", self.geometry.store_blocks())
        };
        (region as usize, bit, (region * REGION_SEGMENTS + bit / SEGMENT_BLOCKS) as usize)
    }

    fn region(&mut self, index: usize) -> &mut Region {
        self.regions[index].get_or_insert_with(Region::fresh)
    }

    /// A run of at most `want` blocks, busy from now on; `None` where nothing is free.
    pub fn allocate(&mut self, stream: Stream, want: u64) -> Option<(u64, u64)> {
        loop {
            let (segment, bit) = match self.cursors[stream as usize] {
                Some(cursor) => cursor,
                None => {
                    self.ahead = None;
                    (self.pick(stream)?, 0)
                }
            };
            let Some((first, count)) = self.run_in(segment, bit, want) else {
                self.cursors[stream as usize] = None;
                continue;
            };
            self.cursors[stream as usize] = Some((segment, first + count));
            self.warm[segment] = true;
            let block = self.geometry.regions_start() + segment as u64 * SEGMENT_BLOCKS + first;
            (block..block + count).for_each(|block| self.mark_busy(block));
            return Some((block, count));
        }
    }

    /// The segment to fill next.
    fn pick(&self, stream: Stream) -> Option<usize> {
        let other = self.cursors[1 - stream as usize].map(|(segment, _)| segment);
        let emptiest = (0..self.segment_free.len())
            .filter(|segment| self.warm[*segment] && Some(*segment) != other && self.segment_free[*segment] > 0)
            .max_by_key(|segment| (self.segment_free[*segment], usize::MAX - segment));
        if let Some(segment) = emptiest.filter(|segment| u64::from(self.segment_free[*segment]) >= SEGMENT_BLOCKS / 2) {
            return Some(segment);
        }
        let cold = (0..self.segment_free.len()).find(|segment| !self.warm[*segment] && Some(*segment) != other);
        cold.or(emptiest).or(other.filter(|segment| self.segment_free[*segment] > 0))
    }

    /// The first run of free blocks in `segment` from `bit` on.
    fn run_in(&self, segment: usize, bit: u64, want: u64) -> Option<(u64, u64)> {
        if self.segment_free[segment] == 0 {
            return None;
        }
        let within = segment as u64 % REGION_SEGMENTS * SEGMENT_BLOCKS;
        let pages = if within == 0 { PAGE_COPIES } else { 0 };
        let region = self.regions[(segment as u64 / REGION_SEGMENTS) as usize].as_ref();
        let busy = |bit: u64| region.map_or(bit < pages, |region| region.busy.get(within + bit));
        let mut first = bit;
        while first < SEGMENT_BLOCKS && busy(first) {
            let whole_word = first.is_multiple_of(64)
                && region.is_some_and(|region| region.busy.words()[((within + first) / 64) as usize] == u64::MAX);
            first += if whole_word { 64 } else { 1 };
        }
        let mut count = 0;
        while count < want && first + count < SEGMENT_BLOCKS && !busy(first + count) {
            count += 1;
        }
        (count > 0).then_some((first, count))
    }

    /// True where the block may not be allocated now, or lies outside all regions.
    pub fn is_busy(&self, block: u64) -> bool {
        match self.geometry.bit_of(block) {
            Some((_, bit)) if bit < PAGE_COPIES => true,
            Some((region, bit)) => self.regions[region as usize].as_ref().is_some_and(|region| region.busy.get(bit)),
            None => true,
        }
    }

    /// free -> busy.
    pub fn mark_busy(&mut self, block: u64) {
        let (region, bit, segment) = self.locate(block);
        self.region(region).busy.set(bit);
        self.segment_free[segment] -= 1;
        self.warm[segment] = true;
        self.free -= 1;
    }

    /// busy -> used: the checkpoint being written refers to it.
    pub fn adopt(&mut self, block: u64) {
        let (region, bit, _) = self.locate(block);
        let region_state = self.region(region);
        assert!(region_state.busy.get(bit), "block {block} is adopted by a checkpoint without having been allocated");
        region_state.used.set(bit);
        self.used += 1;
        self.dirty.insert(region as u64);
    }

    /// used -> busy: the checkpoint being written refers to it no more.
    pub fn disown(&mut self, block: u64) {
        let (region, bit, _) = self.locate(block);
        self.region(region).used.clear(bit);
        self.used -= 1;
        self.dirty.insert(region as u64);
    }

    /// busy -> free.
    pub fn release(&mut self, block: u64) {
        let (region, bit, segment) = self.locate(block);
        let region = self.region(region);
        assert!(!region.used.get(bit), "block {block} is released while the checkpoint refers to it");
        region.busy.clear(bit);
        self.segment_free[segment] += 1;
        self.free += 1;
        self.maybe_idle |= self.segment_free[segment] == self.segment_size(segment);
    }

    /// Blocks of a segment that can be allocated.
    fn segment_size(&self, segment: usize) -> u16 {
        let pages = if (segment as u64).is_multiple_of(REGION_SEGMENTS) { PAGE_COPIES } else { 0 };
        (SEGMENT_BLOCKS - pages) as u16
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
        let open = self.cursors.map(|cursor| cursor.map(|(segment, _)| segment));
        let idle = |segment: &usize| {
            self.warm[*segment]
                && self.segment_free[*segment] == self.segment_size(*segment)
                && !open.contains(&Some(*segment))
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
        let is_free = |segment: usize| self.segment_free[segment] == self.segment_size(segment);
        let open = self.cursors.map(|cursor| cursor.map(|(segment, _)| segment));
        let ready = (0..self.segment_free.len())
            .filter(|segment| self.warm[*segment] && is_free(*segment) && !open.contains(&Some(*segment)))
            .count();
        let cold = (0..self.segment_free.len()).find(|segment| !self.warm[*segment]);
        self.ahead = Some(if cold.is_some() { ready } else { usize::MAX });
        let segment = cold.filter(|_| ready < ahead)?;
        self.ahead = None;
        let count = u64::from(self.segment_size(segment));
        let end = self.geometry.regions_start() + (segment as u64 + 1) * SEGMENT_BLOCKS;
        (end - count..end).for_each(|block| self.mark_busy(block));
        Some((end - count, count))
    }

    /// All of the space has been written at some time.
    pub fn mark_all_warm(&mut self) {
        self.warm.fill(true);
    }

    /// Regions whose used bits changed since the last [`Allocator::save`].
    pub fn dirty_regions(&self) -> impl Iterator<Item = u64> + '_ {
        self.dirty.iter().copied()
    }

    /// Gives the pages of all dirty regions their new entries and returns what to write: each into its idle copy.
    pub fn save(&mut self) -> Vec<PageWrite> {
        let mut writes = Vec::new();
        for region in std::mem::take(&mut self.dirty) {
            let state = self.regions[region as usize].get_or_insert_with(Region::fresh);
            let copy = state.copy.map_or(0, |copy| 1 - copy);
            state.copy = Some(copy);
            self.entries[region as usize] = state.used.entry(copy);
            writes.push(PageWrite { block: self.geometry.page_block(region, copy), bytes: state.used.encode() });
        }
        writes
    }
}

#[cfg(test)]
mod tests {
    use super::{Allocator, Stream};
    use tanada_format::Geometry;
    use tanada_format::geometry::SEGMENT_BLOCKS;

    fn small() -> Allocator {
        Allocator::new(Geometry::new(5 * SEGMENT_BLOCKS, 64).expect("valid"))
    }

    #[test]
    fn every_block_is_handed_out_once_and_pages_never() {
        let mut allocator = small();
        let total = allocator.free();
        let mut seen = std::collections::BTreeSet::new();
        while let Some((block, count)) = allocator.allocate(Stream::Data, 100) {
            for block in block..block + count {
                assert!(allocator.geometry().is_allocatable(block));
                assert!(seen.insert(block));
            }
        }
        assert_eq!((seen.len() as u64, allocator.free()), (total, 0));
        for block in &seen {
            allocator.release(*block);
        }
        assert_eq!(allocator.free(), total);
    }

    #[test]
    fn holes_are_found_again() {
        let mut allocator = small();
        while allocator.allocate(Stream::Map, 1024).is_some() {}
        let start = allocator.geometry().regions_start();
        for block in [start + 7, start + 8, start + 2000] {
            allocator.release(block);
        }
        let mut found = vec![allocator.allocate(Stream::Data, 9), allocator.allocate(Stream::Data, 9)];
        found.sort();
        assert_eq!(found, [Some((start + 7, 2)), Some((start + 2000, 1))]);
        assert_eq!(allocator.allocate(Stream::Data, 1), None);
    }

    #[test]
    fn idle_segments_are_handed_back_but_a_few() {
        let mut allocator = Allocator::new(Geometry::new(66 * SEGMENT_BLOCKS, 64).expect("valid"));
        let mut blocks = Vec::new();
        while let Some((block, count)) = allocator.allocate(Stream::Data, 1024) {
            blocks.extend(block..block + count);
        }
        assert_eq!(allocator.take_idle_segment(), None);
        blocks.into_iter().for_each(|block| allocator.release(block));
        let mut handed_back = 0;
        while let Some((block, count)) = allocator.take_idle_segment() {
            handed_back += 1;
            assert!(allocator.is_busy(block), "not to be allocated while it is punched (B2)");
            (block..block + count).for_each(|block| allocator.release(block));
        }
        assert_eq!(handed_back, 64 - 64 / 20);
    }

    #[test]
    fn segments_are_written_ahead_but_a_few() {
        let mut allocator = Allocator::new(Geometry::new(66 * SEGMENT_BLOCKS, 64).expect("valid"));
        let mut prepared = Vec::new();
        while let Some((block, count)) = allocator.take_cold_segment(2) {
            assert!(allocator.is_busy(block), "not to be allocated while zeros are written over it");
            (block..block + count).for_each(|block| allocator.release(block));
            prepared.push(block);
        }
        assert_eq!(prepared.len(), 2);
        let (first, _) = allocator.allocate(Stream::Data, 1).expect("free");
        assert!(prepared.contains(&first), "what is written goes first");
        assert!(allocator.take_cold_segment(2).is_some(), "one was opened, another takes its place");
        allocator.mark_all_warm();
        assert_eq!(allocator.take_cold_segment(2), None);
    }

    #[test]
    #[should_panic(expected = "while the checkpoint refers to it")]
    fn releasing_a_used_block_is_a_bug() {
        let mut allocator = small();
        let (block, _) = allocator.allocate(Stream::Data, 1).expect("room");
        allocator.adopt(block);
        allocator.release(block);
    }
}
