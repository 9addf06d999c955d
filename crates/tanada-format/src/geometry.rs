//! Where things are on the device.
//!
//! ```text
//!   0            4 MiB                    regions_start                                      store_blocks
//!   | superblocks | journal ring | unused | region 0 | region 1 | ...            | last, maybe shorter |
//!                                           region = 128 MiB: | page copy 0 | page copy 1 | blocks ... |
//! ```
//!
//! - Superblocks lie at fixed offsets near the start, since the end moves when a store grows (rule J8).
//! - Journal block `seq` lies at ring position `seq % journal_blocks`.
//! - A region is what one bitmap page covers. Its page has two fixed places at the region's start and is always
//!   rewritten into the idle one: a bitmap needs neither allocation nor reserve, and growth only adds regions.
//! - A segment is what the allocator fills at a time. Regions and the store's end are aligned to segments.

use crate::error::FormatError;
use crate::node::BLOCK_BYTES;
use crate::pointer::BLOCK_MAX;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Blocks in a segment: 4 MiB.
pub const SEGMENT_BLOCKS: u64 = (4 << 20) / BLOCK;

/// Blocks in a region, as many as one bitmap page has bits: 128 MiB.
pub const REGION_BLOCKS: u64 = BLOCK * 8;

/// Copies of a region's bitmap page, at the region's first blocks.
pub const PAGE_COPIES: u64 = 2;

/// Segments in a region.
pub const REGION_SEGMENTS: u64 = REGION_BLOCKS / SEGMENT_BLOCKS;

/// Blocks at the start of the device for superblocks: one segment.
pub const HEAD_BLOCKS: u64 = SEGMENT_BLOCKS;

/// First block of the journal ring.
pub const JOURNAL_START: u64 = HEAD_BLOCKS;

/// Blocks of the smallest and largest journal: 256 KiB and 4 GiB. Stores for use take [`default_journal_bytes`].
pub const JOURNAL_BLOCKS_MIN: u64 = 64;
pub const JOURNAL_BLOCKS_MAX: u64 = 1 << 20;

/// Blocks of the ring kept for recovery blocks and control records (rule J4).
pub const JOURNAL_KEPT_BLOCKS: u64 = 8;

/// Block numbers of slot 0 copy 0, slot 0 copy 1, slot 1 copy 0, slot 1 copy 1: the copies of a slot 2 MiB apart.
pub const SUPERBLOCK_AT: [[u64; 2]; 2] = [[0, 512], [256, 768]];

/// Blocks of the largest store: 64 PiB.
pub const STORE_BLOCKS_MAX: u64 = (BLOCK_MAX + 1) / SEGMENT_BLOCKS * SEGMENT_BLOCKS;

const _: () = assert!(REGION_BLOCKS == 32_768 && REGION_SEGMENTS == 32 && SEGMENT_BLOCKS == 1024);
const _: () = assert!(SUPERBLOCK_AT[1][1] < HEAD_BLOCKS);
const _: () = assert!(JOURNAL_KEPT_BLOCKS * 4 < JOURNAL_BLOCKS_MIN);

/// Journal size for a device of `device_bytes`: a 64th, within 16 MiB and 1 GiB.
pub const fn default_journal_bytes(device_bytes: u64) -> u64 {
    let wanted = device_bytes / 64;
    let wanted = if wanted < 16 << 20 { 16 << 20 } else { wanted };
    let wanted = if wanted > 1 << 30 { 1 << 30 } else { wanted };
    wanted / BLOCK * BLOCK
}

/// The numbers all places follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    store_blocks: u64,
    journal_blocks: u64,
}

impl Geometry {
    /// `store_blocks` is the whole managed device, a multiple of [`SEGMENT_BLOCKS`].
    /// Errors: unaligned, too large, or without room for one segment of data; journal out of bounds.
    pub fn new(store_blocks: u64, journal_blocks: u64) -> Result<Geometry, FormatError> {
        let refuse = |field, value, accepted| Err(FormatError::Field { what: "geometry", field, value, accepted });
        if !store_blocks.is_multiple_of(SEGMENT_BLOCKS) {
            return refuse("store_blocks", store_blocks, "a multiple of 0x400 (4 MiB)");
        }
        if store_blocks > STORE_BLOCKS_MAX {
            return refuse("store_blocks", store_blocks, "at most 0x100000000000 (64 PiB)");
        }
        if !(JOURNAL_BLOCKS_MIN..=JOURNAL_BLOCKS_MAX).contains(&journal_blocks) {
            return refuse("journal_blocks", journal_blocks, "0x40 (256 KiB) to 0x100000 (4 GiB)");
        }
        let geometry = Geometry { store_blocks, journal_blocks };
        if store_blocks < geometry.regions_start() + SEGMENT_BLOCKS {
            return refuse("store_blocks", store_blocks, "at least superblocks, journal and one segment of 4 MiB");
        }
        Ok(geometry)
    }

    /// Blocks managed, from the device's start.
    pub fn store_blocks(&self) -> u64 {
        self.store_blocks
    }

    pub fn store_bytes(&self) -> u64 {
        self.store_blocks * BLOCK
    }

    pub fn journal_blocks(&self) -> u64 {
        self.journal_blocks
    }

    /// Device block of the journal block with number `seq`.
    pub fn journal_block(&self, seq: u64) -> u64 {
        JOURNAL_START + seq % self.journal_blocks
    }

    /// First block of region 0.
    pub fn regions_start(&self) -> u64 {
        (JOURNAL_START + self.journal_blocks).next_multiple_of(SEGMENT_BLOCKS)
    }

    pub fn region_count(&self) -> u64 {
        (self.store_blocks - self.regions_start()).div_ceil(REGION_BLOCKS)
    }

    /// First block of `region`.
    pub fn region_start(&self, region: u64) -> u64 {
        self.regions_start() + region * REGION_BLOCKS
    }

    /// Blocks of `region`, its bitmap pages included; the last region may be shorter than the others.
    pub fn region_blocks(&self, region: u64) -> u64 {
        self.store_blocks.saturating_sub(self.region_start(region)).min(REGION_BLOCKS)
    }

    /// Device block of copy 0 or 1 of the region's bitmap page.
    pub fn page_block(&self, region: u64, copy: u64) -> u64 {
        self.region_start(region) + copy % PAGE_COPIES
    }

    /// Region and bit of `block`; `None` outside all regions.
    pub fn bit_of(&self, block: u64) -> Option<(u64, u64)> {
        let inside = block.checked_sub(self.regions_start()).filter(|_| block < self.store_blocks)?;
        Some((inside / REGION_BLOCKS, inside % REGION_BLOCKS))
    }

    /// True where `block` may hold data or a node: in a region and not one of its bitmap pages.
    pub fn is_allocatable(&self, block: u64) -> bool {
        self.bit_of(block).is_some_and(|(_, bit)| bit >= PAGE_COPIES)
    }

    /// Blocks that can ever hold data or nodes.
    pub fn allocatable_blocks(&self) -> u64 {
        self.store_blocks - self.regions_start() - self.region_count() * PAGE_COPIES
    }
}

#[cfg(test)]
mod tests {
    use super::{Geometry, JOURNAL_START, REGION_BLOCKS, SEGMENT_BLOCKS};

    #[test]
    fn every_block_has_one_place() {
        let geometry = Geometry::new(40 * SEGMENT_BLOCKS, 64).expect("valid");
        assert_eq!(geometry.regions_start(), 2 * SEGMENT_BLOCKS);
        assert_eq!(geometry.region_count(), 2);
        assert_eq!(geometry.region_blocks(0), REGION_BLOCKS);
        assert_eq!(geometry.region_blocks(1), 6 * SEGMENT_BLOCKS);
        assert_eq!(geometry.journal_block(64), JOURNAL_START);
        assert_eq!(geometry.bit_of(geometry.region_start(1) + 5), Some((1, 5)));
        assert_eq!(geometry.bit_of(geometry.regions_start() - 1), None);
        assert_eq!(geometry.bit_of(geometry.store_blocks()), None);
        assert!(
            !geometry.is_allocatable(geometry.page_block(1, 1))
                && geometry.is_allocatable(geometry.page_block(1, 1) + 1)
        );
    }

    #[test]
    fn a_store_without_room_is_refused() {
        assert!(Geometry::new(2 * SEGMENT_BLOCKS, 64).is_err());
        assert!(Geometry::new(3 * SEGMENT_BLOCKS, 64).is_ok());
        assert!(Geometry::new(3 * SEGMENT_BLOCKS + 1, 64).is_err());
        assert!(Geometry::new(u64::MAX / 1024 * 1024, 64).is_err());
        assert!(Geometry::new(3 * SEGMENT_BLOCKS, 63).is_err());
    }
}
