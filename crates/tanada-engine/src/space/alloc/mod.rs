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
//! Here are the table of regions and the steps of a block's life; where the next block comes from is in [`lines`], pages
//! and their saving in [`pages`], what was written at some time in [`warm`].

mod lines;
mod pages;
#[cfg(test)]
mod tests;
mod warm;

use std::collections::{BTreeSet, VecDeque};

use tanada_format::catalog::RegionEntry;
use tanada_format::geometry::{PAGE_COPIES, REGION_SEGMENTS, SEGMENT_BLOCKS};
use tanada_format::{BitmapPage, Geometry};

use crate::failure::{EIO, Failure};
use crate::space::region::{Bits, Region};

use lines::Line;
pub use lines::Stream;
pub use pages::{PageRead, PageWrite};

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
            self.take_in(region, page);
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
}
