//! Which blocks are reachable, and what the bitmaps say.

use std::collections::BTreeMap;

use super::{Findings, JournalScan, ReadAt};
use crate::bitmap::BitmapPage;
use crate::catalog::RegionEntry;
use crate::geometry::{Geometry, PAGE_COPIES};
use crate::record::Record;
use crate::superblock::Superblock;

/// One bit for each block that was reached.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    geometry: Geometry,
    words: Vec<u64>,
    count: u64,
}

impl Marks {
    pub fn new(geometry: &Geometry) -> Marks {
        Marks { geometry: *geometry, words: vec![0; geometry.store_blocks().div_ceil(64) as usize], count: 0 }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn get(&self, block: u64) -> bool {
        self.words.get(block as usize / 64).is_some_and(|word| word >> (block % 64) & 1 != 0)
    }

    /// Errors where the block cannot hold data or nodes, or was reached before: used twice (I2).
    pub fn mark(&mut self, block: u64) -> Result<(), String> {
        if !self.geometry.is_allocatable(block) {
            return Err(format!("block {block} is outside of the regions, or a bitmap page"));
        }
        if self.get(block) {
            return Err(format!("block {block} is used twice"));
        }
        self.words[block as usize / 64] |= 1 << (block % 64);
        self.count += 1;
        Ok(())
    }
}

/// Compares every region's page with what is reachable (I4). Returns the bits set.
pub(super) fn check_bitmaps(
    source: &dyn ReadAt,
    superblock: &Superblock,
    regions: &[RegionEntry],
    marks: &Marks,
    findings: &mut Findings,
) -> u64 {
    let mut used = 0;
    for (region, entry) in regions.iter().enumerate() {
        match read_page(source, &superblock.geometry, region as u64, *entry) {
            Ok(page) => {
                used += page.used();
                compare(&superblock.geometry, region as u64, &page, marks, findings);
            }
            Err(text) => findings.add(format!("bitmap of region {region}: {text}")),
        }
    }
    if used != superblock.used_blocks {
        findings.add(format!("{used} bits are set, the superblock says {}", superblock.used_blocks));
    }
    used
}

fn read_page(source: &dyn ReadAt, geometry: &Geometry, region: u64, entry: RegionEntry) -> Result<BitmapPage, String> {
    match entry {
        RegionEntry::Fresh => Ok(BitmapPage::fresh()),
        RegionEntry::Page { copy, crc, used } => {
            let bytes = source.read_block(geometry.page_block(region, copy))?;
            let page = BitmapPage::decode(&bytes, crc, used, geometry.region_blocks(region));
            page.map_err(|error| error.to_string())
        }
    }
}

fn compare(geometry: &Geometry, region: u64, page: &BitmapPage, marks: &Marks, findings: &mut Findings) {
    for bit in PAGE_COPIES..geometry.region_blocks(region) {
        let block = geometry.region_start(region) + bit;
        match (page.get(bit), marks.get(block)) {
            (true, false) => {
                findings.add(format!("block {block} is marked used and reachable from nowhere: leaked (I4)"))
            }
            (false, true) => findings.add(format!("block {block} is in use and marked free (I4)")),
            _ => {}
        }
    }
}

/// Blocks that the journal maps are free in the checkpoint (B4), and none is mapped twice (B1).
pub(super) fn check_journal_blocks(geometry: &Geometry, journal: &JournalScan, marks: &Marks, findings: &mut Findings) {
    let mut named: BTreeMap<u64, u64> = BTreeMap::new();
    for scanned in &journal.blocks {
        let seq = scanned.header.seq;
        for record in &scanned.records {
            let Record::Map { block, crcs, .. } = record else { continue };
            for block in *block..*block + crcs.len() as u64 {
                if marks.get(block) {
                    findings.add(format!("journal block {seq} maps block {block}, which the checkpoint uses"));
                }
                if !geometry.is_allocatable(block) {
                    findings.add(format!("journal block {seq} maps block {block}, which cannot hold data"));
                }
                if let Some(before) = named.insert(block, seq) {
                    findings.add(format!("journal blocks {before} and {seq} both map block {block} (B1)"));
                }
            }
        }
    }
}
