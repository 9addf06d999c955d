//! Mends checksums after an image was changed, from the leaves up: the change then means what it says.
//!
//! It reads raw bytes at the offsets of `docs/format.md` and believes nothing: what it meets may be anything.

use std::collections::BTreeMap;

use tanada_format::catalog::{REGION_ENTRY_BYTES, REGION_TABLE_PLACE};
use tanada_format::geometry::{JOURNAL_BLOCKS_MAX, JOURNAL_START, REGION_BLOCKS, SUPERBLOCK_AT};
use tanada_format::pointer::{BLOCK_MAX, POINTER_BYTES};
use tanada_format::version::VERSION_BYTES;
use tanada_format::{BLOCK_BYTES, ROOT_LEVEL, crc32c};

use super::image::{Block, Image};

/// Offsets in a superblock.
const SUPERBLOCK_CRC: usize = 28;
const CHECKPOINT: usize = 48;
const JOURNAL_BLOCKS: usize = 96;
const USED_BLOCKS: usize = 112;
const CATALOG: usize = 120;
/// Offset of the tree's pointer in a version record.
const VERSION_TREE: usize = 48;
/// Offset of the checksum in a pointer.
const POINTER_CRC: usize = 12;
/// In a journal block.
const JOURNAL_CRC: usize = 8;
const JOURNAL_RECORDS: usize = 64;

/// What to mend beyond checksums.
#[derive(Debug, Clone, Copy)]
pub struct SealOptions {
    /// Both copies of the newest superblock become the same.
    pub mirror: bool,
    /// Counts of used blocks, in region table and superblock, follow the bitmaps.
    pub count: bool,
    /// Checksums in journal records follow the data.
    pub journal_data: bool,
}

struct Sealer<'a> {
    image: &'a mut Image,
    options: SealOptions,
    /// Checksums by block; `None` while the block is being worked on, for pointers that run in a circle.
    done: BTreeMap<u64, Option<u32>>,
    regions_start: u64,
    used: u64,
}

pub fn seal(image: &mut Image, options: SealOptions) {
    let journal_blocks = newest(image).map_or(0, |at| number(image.get(at), JOURNAL_BLOCKS, 8));
    let journal_blocks = journal_blocks.min(JOURNAL_BLOCKS_MAX).min(image.length_blocks);
    let regions_start = (JOURNAL_START + journal_blocks).next_multiple_of(1024);
    seal_journal(image, journal_blocks, options);
    if let Some(at) = newest(image) {
        let mut bytes = *image.get(at);
        let mut sealer = Sealer { image, options, done: BTreeMap::new(), regions_start, used: 0 };
        sealer.pointer(&mut bytes[CATALOG..CATALOG + POINTER_BYTES], ROOT_LEVEL, 0, true);
        if options.count {
            bytes[USED_BLOCKS..USED_BLOCKS + 8].copy_from_slice(&sealer.used.to_le_bytes());
        }
        image.put(at, bytes);
        if options.mirror
            && let Some(slot) = SUPERBLOCK_AT.iter().find(|slot| slot.contains(&at))
        {
            slot.iter().for_each(|copy| image.put(*copy, bytes));
        }
    }
    seal_superblocks(image);
}

/// Gives every superblock the checksum of what it says.
pub fn seal_superblocks(image: &mut Image) {
    for at in SUPERBLOCK_AT.into_iter().flatten() {
        image.edit(at, |bytes| put_crc(bytes, SUPERBLOCK_CRC));
    }
}

/// The superblock that says it is the newest.
pub fn newest(image: &Image) -> Option<u64> {
    let copies = SUPERBLOCK_AT.into_iter().flatten().filter(|at| image.get(*at)[..8] == *b"TANADAST");
    copies.max_by_key(|at| number(image.get(*at), CHECKPOINT, 8))
}

pub fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    (0..length).fold(0, |number, n| number | u64::from(bytes[at + n]) << (8 * n))
}

fn put_crc(bytes: &mut Block, at: usize) {
    bytes[at..at + 4].fill(0);
    let crc = crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn seal_journal(image: &mut Image, blocks: u64, options: SealOptions) {
    for block in image.written(JOURNAL_START..JOURNAL_START + blocks) {
        let mut bytes = *image.get(block);
        if bytes[..8] != *b"TANADAJB" {
            continue;
        }
        if options.journal_data {
            seal_records(image, &mut bytes[JOURNAL_RECORDS..]);
        }
        put_crc(&mut bytes, JOURNAL_CRC);
        image.put(block, bytes);
    }
}

/// Gives map records the checksums of what lies where they point.
fn seal_records(image: &Image, records: &mut [u8]) {
    let mut at = 0;
    while at + 24 <= records.len() {
        let (kind, small) = (records[at], usize::from(records[at + 1]));
        let length = match kind {
            1 => 20 + 4 * (small + 1),
            2 | 6 => 20,
            3 => 24 + 24 * small,
            4 | 5 => 32,
            7 => 8,
            8..=10 => 16,
            _ => return,
        };
        if kind == 1 && at + length <= records.len() {
            let block = number(records, at + 14, 6);
            for n in 0..=small {
                let crc = image.crc(block.wrapping_add(n as u64));
                records[at + 20 + 4 * n..at + 24 + 4 * n].copy_from_slice(&crc.to_le_bytes());
            }
        }
        at += length;
    }
}

impl Sealer<'_> {
    /// Gives a pointer of a block at `level` + 1 the checksum of what it leads to, after mending that.
    fn pointer(&mut self, pointer: &mut [u8], level: u8, place: u64, is_catalog: bool) {
        let block = number(pointer, 0, 6) & BLOCK_MAX;
        if block == 0 || block >= self.image.length_blocks {
            return;
        }
        if let Some(crc) = self.node(block, level, place, is_catalog) {
            pointer[POINTER_CRC..].copy_from_slice(&crc.to_le_bytes());
        }
    }

    fn node(&mut self, block: u64, level: u8, place: u64, is_catalog: bool) -> Option<u32> {
        if let Some(crc) = self.done.get(&block) {
            return *crc;
        }
        self.done.insert(block, None);
        let mut bytes = *self.image.get(block);
        for (slot, pointer) in bytes.as_chunks_mut::<POINTER_BYTES>().0.iter_mut().enumerate() {
            let place = place << 8 | slot as u64;
            match level.checked_sub(1) {
                Some(below) => self.pointer(pointer, below, place, is_catalog),
                None => self.data(pointer, place, is_catalog),
            }
        }
        self.image.put(block, bytes);
        let crc = self.image.crc(block);
        self.done.insert(block, Some(crc));
        Some(crc)
    }

    fn data(&mut self, pointer: &mut [u8], place: u64, is_catalog: bool) {
        let block = number(pointer, 0, 6) & BLOCK_MAX;
        if block == 0 || block >= self.image.length_blocks {
            return;
        }
        if is_catalog && !self.done.contains_key(&block) {
            self.done.insert(block, None);
            let mut bytes = *self.image.get(block);
            if place < REGION_TABLE_PLACE {
                for record in bytes.as_chunks_mut::<VERSION_BYTES>().0 {
                    self.pointer(&mut record[VERSION_TREE..VERSION_TREE + POINTER_BYTES], ROOT_LEVEL, 0, false);
                }
            } else {
                let first = (place - REGION_TABLE_PLACE) * (BLOCK_BYTES / REGION_ENTRY_BYTES) as u64;
                for (n, entry) in (first..).zip(bytes.as_chunks_mut::<REGION_ENTRY_BYTES>().0) {
                    self.region(entry, n);
                }
            }
            self.image.put(block, bytes);
            self.done.insert(block, Some(self.image.crc(block)));
        }
        let crc = self.done.get(&block).copied().flatten().unwrap_or_else(|| self.image.crc(block));
        pointer[POINTER_CRC..].copy_from_slice(&crc.to_le_bytes());
    }

    fn region(&mut self, entry: &mut [u8; REGION_ENTRY_BYTES], region: u64) {
        let copy = u64::from(entry[8]);
        if copy == 0 {
            return;
        }
        let at = self.regions_start.saturating_add(region.saturating_mul(REGION_BLOCKS)).saturating_add((copy - 1) % 2);
        let page = self.image.get(at);
        entry[..4].copy_from_slice(&self.image.crc(at).to_le_bytes());
        let used = page.iter().map(|byte| byte.count_ones()).sum::<u32>().saturating_sub(2);
        if self.options.count {
            entry[4..8].copy_from_slice(&used.to_le_bytes());
        }
        self.used += u64::from(number(entry, 4, 4) as u32);
    }
}
