//! Bitmap pages: read when they are needed, kept within a budget, saved once per checkpoint into their idle copy.

use tanada_format::geometry::REGION_SEGMENTS;
use tanada_format::{BLOCK_BYTES, BitmapPage, RegionEntry};

use super::Allocator;

/// A dirty bitmap page, as the checkpoint writes it.
pub struct PageWrite {
    pub block: u64,
    pub bytes: [u8; BLOCK_BYTES],
}

/// A bitmap page to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRead {
    pub region: u64,
    pub block: u64,
    pub crc: u32,
    pub used: u64,
}

impl Allocator {
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
                self.take_in(region, BitmapPage::fresh());
                None
            }
        }
    }

    /// Takes over a page that was read. What a checkpoint has saved anew while it was on its way is let go: it says of
    /// blocks in use that they are free.
    pub fn install(&mut self, read: PageRead, page: BitmapPage) {
        if self.page_of(read.region) == Some(read) {
            self.take_in(read.region, page);
        }
    }

    /// From now on the region is in memory.
    pub(super) fn take_in(&mut self, region: u64, page: BitmapPage) {
        let state = &mut self.regions[region as usize];
        if state.loaded().is_none() {
            state.load(page);
            self.loaded.push_back(region);
            self.cool_some();
        }
    }

    /// The region's page cannot be read; nothing comes from it any more, unless it is known by another read.
    pub fn give_up(&mut self, read: PageRead) {
        if self.page_of(read.region) != Some(read) {
            return;
        }
        let region = read.region;
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
