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
//!
//! Pages are in memory within a budget ([`crate::space::region`]); how many blocks of each segment are free always is. The
//! segments to come are lined up ahead, so that their pages are there when they are opened:
//! ```text
//!   line_up -> pages to load -> (device) -> install -> allocate
//! ```

use std::collections::{BTreeSet, VecDeque};

use tanada_format::catalog::RegionEntry;
use tanada_format::geometry::{PAGE_COPIES, REGION_SEGMENTS, SEGMENT_BLOCKS};
use tanada_format::{BitmapPage, Geometry};

use crate::failure::{EIO, Failure};
use crate::space::region::{Bits, Region};

/// What a block is wanted for: data and map nodes come from different segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Data,
    Map,
}

/// A dirty bitmap page, as the checkpoint writes it.
pub struct PageWrite {
    pub block: u64,
    pub bytes: [u8; tanada_format::BLOCK_BYTES],
}

/// A bitmap page to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRead {
    pub region: u64,
    pub block: u64,
    pub crc: u32,
    pub used: u64,
}

/// Where a stream's blocks come from.
#[derive(Default)]
struct Line {
    /// Segment being filled and next bit in it.
    open: Option<(usize, u64)>,
    /// Free blocks of the open segment that are still ahead, at least.
    left: u64,
    /// Segments to fill next.
    next: VecDeque<usize>,
}

impl Line {
    fn holds(&self, segment: usize) -> bool {
        self.open.is_some_and(|(open, _)| open == segment) || self.next.contains(&segment)
    }
}

/// Segments before the first cold one that are looked at for such as are written and free.
const AHEAD_LOOKED_AT: usize = 1024;

pub struct Allocator {
    geometry: Geometry,
    regions: Vec<Region>,
    entries: Vec<RegionEntry>,
    /// Blocks not busy, by segment.
    segment_free: Vec<u16>,
    /// Segments that have been written at some time and not been handed back to the medium since.
    warm: Vec<bool>,
    /// By region: no warm segment of it has more free blocks than this.
    emptiest: Vec<u16>,
    /// No segment before this one is cold.
    first_cold: usize,
    /// Some warm segment may be free as a whole.
    maybe_idle: bool,
    /// Segments that are written and free as a whole, as far as is known; forgotten when one may have been taken.
    ahead: Option<usize>,
    lines: [Line; 2],
    free: u64,
    used: u64,
    /// Regions whose used bits changed since their page was saved.
    dirty: BTreeSet<u64>,
    /// Regions whose entry the catalog does not have yet; all dirty ones among them.
    changed: BTreeSet<u64>,
    /// Regions whose page the running checkpoint has saved already: a second time goes to the same place, the other is
    /// what the last checkpoint needs.
    saved: BTreeSet<u64>,
    /// Regions whose saved page may not be on the device yet.
    writing: BTreeSet<u64>,
    /// Regions that stay in memory until [`Allocator::save`].
    held: BTreeSet<u64>,
    /// Regions whose page cannot be read: nothing comes from them.
    broken: BTreeSet<u64>,
    /// Loaded regions, the longest loaded first.
    loaded: VecDeque<u64>,
    loaded_max: usize,
}

impl Allocator {
    /// Everything free. Keeps at most `loaded_max` regions in memory, more only while they are needed.
    pub fn new(geometry: Geometry, loaded_max: usize) -> Allocator {
        let mut allocator = Allocator {
            geometry,
            regions: Vec::new(),
            entries: Vec::new(),
            segment_free: Vec::new(),
            warm: Vec::new(),
            emptiest: Vec::new(),
            first_cold: 0,
            maybe_idle: false,
            ahead: None,
            lines: [Line::default(), Line::default()],
            free: 0,
            used: 0,
            dirty: BTreeSet::new(),
            changed: BTreeSet::new(),
            saved: BTreeSet::new(),
            writing: BTreeSet::new(),
            held: BTreeSet::new(),
            broken: BTreeSet::new(),
            loaded: VecDeque::new(),
            loaded_max,
        };
        allocator.extend();
        allocator
    }

    fn extend(&mut self) {
        let regions = self.geometry.region_count() as usize;
        self.regions.resize_with(regions, Region::default);
        self.entries.resize(regions, RegionEntry::Fresh);
        self.emptiest.resize(regions, 0);
        let segments = ((self.geometry.store_blocks() - self.geometry.regions_start()) / SEGMENT_BLOCKS) as usize;
        for segment in self.segment_free.len()..segments {
            let size = self.segment_size(segment);
            self.segment_free.push(size);
            self.warm.push(false);
            self.free += u64::from(size);
        }
    }

    /// Takes over a larger geometry.
    pub fn grow(&mut self, geometry: Geometry) {
        self.geometry = geometry;
        self.extend();
    }

    /// Takes over a saved page at open.
    pub fn load(&mut self, region: u64, entry: RegionEntry, page: BitmapPage) {
        let RegionEntry::Page { used, .. } = entry else { return };
        self.used += used;
        self.free -= used;
        for segment in 0..REGION_SEGMENTS {
            let words =
                &page.words()[(segment * SEGMENT_BLOCKS / 64) as usize..((segment + 1) * SEGMENT_BLOCKS / 64) as usize];
            let busy: u32 = words.iter().map(|word| word.count_ones()).sum();
            let index = (region * REGION_SEGMENTS + segment) as usize;
            if index < self.segment_free.len() {
                self.segment_free[index] = (SEGMENT_BLOCKS - u64::from(busy)) as u16;
                if u64::from(busy) > if segment == 0 { PAGE_COPIES } else { 0 } {
                    self.warm_up_to(index);
                }
                self.note_free(index);
            }
        }
        self.entries[region as usize] = entry;
        if self.loaded.len() < self.loaded_max {
            self.install(region, page);
        }
    }

    /// What lies before something used has been written.
    fn warm_up_to(&mut self, segment: usize) {
        for index in self.first_cold..=segment {
            self.warm[index] = true;
            self.note_free(index);
        }
        self.first_cold = self.first_cold.max(segment + 1);
    }

    /// Notes that a warm segment may have more free blocks than before.
    fn note_free(&mut self, segment: usize) {
        if self.warm[segment] {
            let emptiest = &mut self.emptiest[segment / REGION_SEGMENTS as usize];
            *emptiest = (*emptiest).max(self.segment_free[segment]);
        }
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

    // ---- pages

    /// What must be read before the region can be searched or saved; `None` where nothing must.
    pub fn page_of(&mut self, region: u64) -> Option<PageRead> {
        if self.regions.get(region as usize).is_none_or(|state| state.loaded().is_some()) {
            return None;
        }
        match self.entry(region) {
            RegionEntry::Page { copy, crc, used } => {
                Some(PageRead { region, block: self.geometry.page_block(region, copy), crc, used })
            }
            RegionEntry::Fresh => {
                self.install(region, BitmapPage::fresh());
                None
            }
        }
    }

    /// Takes over a page that was read.
    pub fn install(&mut self, region: u64, page: BitmapPage) {
        let state = &mut self.regions[region as usize];
        if state.loaded().is_none() {
            state.load(page);
            self.loaded.push_back(region);
            self.cool_some();
        }
    }

    /// The region's page cannot be read.
    pub fn give_up(&mut self, region: u64) {
        self.broken.insert(region);
        let of_region = |segment: &usize| *segment as u64 / REGION_SEGMENTS == region;
        self.lines.iter_mut().for_each(|line| line.next.retain(|segment| !of_region(segment)));
    }

    pub fn is_broken(&self, region: u64) -> bool {
        self.broken.contains(&region)
    }

    /// Keeps a region in memory until [`Allocator::save`].
    pub fn hold(&mut self, region: u64) {
        self.held.insert(region);
    }

    /// The region need not stay in memory any more.
    pub fn let_go(&mut self, region: u64) {
        self.held.remove(&region);
    }

    /// Lets go of pages beyond the budget, where that is possible.
    fn cool_some(&mut self) {
        for _ in 0..64 {
            if self.loaded.len() <= self.loaded_max {
                return;
            }
            let Some(region) = self.loaded.pop_front() else { return };
            let segments = region * REGION_SEGMENTS..(region + 1) * REGION_SEGMENTS;
            let in_line = |segment: &usize| segments.contains(&(*segment as u64));
            let needed = self
                .lines
                .iter()
                .any(|line| line.open.is_some_and(|(segment, _)| in_line(&segment)) || line.next.iter().any(in_line));
            let unsaved = self.dirty.contains(&region) || self.writing.contains(&region);
            let keep = needed || unsaved || self.held.contains(&region);
            if keep || !self.regions[region as usize].cool() {
                self.loaded.push_back(region);
            }
        }
    }

    // ---- taking

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

    // ---- the steps of a block's life

    /// True where the block may not be allocated now, or lies outside all regions. Its region must be in memory.
    pub fn is_busy(&self, block: u64) -> bool {
        match self.geometry.bit_of(block) {
            Some((_, bit)) if bit < PAGE_COPIES => true,
            Some((region, bit)) => self.regions[region as usize].loaded().is_none_or(|bits| bits.busy.get(bit)),
            None => true,
        }
    }

    /// free -> busy.
    pub fn mark_busy(&mut self, block: u64) {
        let (region, bit, segment) = self.locate(block);
        self.regions[region].take(bit);
        self.segment_free[segment] -= 1;
        self.free -= 1;
        if !self.warm[segment] {
            self.warm[segment] = true;
            self.note_free(segment);
        }
    }

    /// busy -> used: the checkpoint being written refers to it. Its region must be in memory.
    pub fn adopt(&mut self, block: u64) {
        let (region, bit, _) = self.locate(block);
        self.touch(region as u64);
        let Bits { used, busy } = self.regions[region].bits();
        assert!(busy.get(bit), "block {block} is adopted by a checkpoint without having been allocated");
        used.set(bit);
        self.used += 1;
    }

    /// used -> busy: the checkpoint being written refers to it no more. Its region must be in memory. Errors where the
    /// bitmap on the device says that it was free: that comes from outside, and the store is damaged (I4).
    pub fn disown(&mut self, block: u64) -> Result<(), Failure> {
        let (region, bit, _) = self.locate(block);
        if !self.regions[region].bits().used.get(bit) {
            let message = format!("block {block} is referred to twice, or by the map and free in its bitmap (I2, I4)");
            return Err(Failure::new(EIO, message));
        }
        self.touch(region as u64);
        self.regions[region].bits().used.clear(bit);
        self.used -= 1;
        Ok(())
    }

    fn touch(&mut self, region: u64) {
        if self.dirty.insert(region) {
            assert!(!self.writing.contains(&region), "region {region} changes while its page is written");
            self.changed.insert(region);
        }
    }

    /// busy -> free.
    pub fn release(&mut self, block: u64) {
        let (region, bit, segment) = self.locate(block);
        self.regions[region].give_back(bit);
        self.segment_free[segment] += 1;
        self.free += 1;
        self.maybe_idle |= self.segment_free[segment] == self.segment_size(segment);
        self.note_free(segment);
    }

    /// Blocks of a segment that can be allocated.
    fn segment_size(&self, segment: usize) -> u16 {
        let pages = if (segment as u64).is_multiple_of(REGION_SEGMENTS) { PAGE_COPIES } else { 0 };
        (SEGMENT_BLOCKS - pages) as u16
    }

    // ---- handing back

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

    // ---- saving

    /// A checkpoint begins: every page may be saved once.
    pub fn begin_saving(&mut self) {
        self.saved.clear();
    }

    /// Regions whose entries changed since the last [`Allocator::save`].
    pub fn changed_regions(&self) -> impl Iterator<Item = u64> + '_ {
        self.changed.iter().copied()
    }

    /// Gives the page of a region its new entry and returns what to write, into its idle copy. It may change again when
    /// [`Allocator::pages_written`] was called.
    pub fn save_region(&mut self, region: u64) -> Option<PageWrite> {
        if !self.dirty.remove(&region) {
            return None;
        }
        let first_time = self.saved.insert(region);
        let copy = match self.entry(region) {
            RegionEntry::Page { copy, .. } if first_time => 1 - copy,
            RegionEntry::Page { copy, .. } => copy,
            RegionEntry::Fresh => 0,
        };
        let used = &self.regions[region as usize].bits().used;
        let bytes = used.encode();
        self.entries[region as usize] = used.entry(copy);
        self.writing.insert(region);
        Some(PageWrite { block: self.geometry.page_block(region, copy), bytes })
    }

    /// All pages saved so far are on the device.
    pub fn pages_written(&mut self) {
        self.writing.clear();
        self.cool_some();
    }

    /// Saves all pages that are left; the catalog has every entry now.
    pub fn save(&mut self) -> Vec<PageWrite> {
        self.held.clear();
        self.changed.clear();
        let dirty: Vec<u64> = self.dirty.iter().copied().collect();
        dirty.into_iter().filter_map(|region| self.save_region(region)).collect()
    }
}

#[cfg(test)]
#[path = "alloc_tests.rs"]
mod tests;
