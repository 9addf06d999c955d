//! A new store: what to write where.

use std::ops::Range;

use uuid::Uuid;

use crate::error::FormatError;
use crate::geometry::{Geometry, HEAD_BLOCKS, JOURNAL_START, SEGMENT_BLOCKS, SUPERBLOCK_AT, default_journal_bytes};
use crate::node::BLOCK_BYTES;
use crate::superblock::{KEEP_SPACE, Superblock};

/// What a new store is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatOptions {
    pub store: Uuid,
    /// Bytes of the device or file; managed are whole segments of 4 MiB.
    pub device_bytes: u64,
    /// Bytes of the journal ring; `None` for a 64th of the store within 16 MiB and 1 GiB.
    pub journal_bytes: Option<u64>,
}

/// How to make it. Zero first, sync, write, sync: a crash between leaves no store, or an empty one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Ranges of bytes that must be zeros, written and not merely absent: a first write to a hole costs the host a
    /// commit of its own journal each time.
    pub zero: Vec<Range<u64>>,
    /// Offset in bytes and content.
    pub writes: Vec<(u64, Vec<u8>)>,
    pub superblock: Superblock,
}

impl Image {
    /// Makes all of the store's space written, and a store that keeps it ([`KEEP_SPACE`]).
    pub fn keep_space(mut self) -> Image {
        self.superblock.features_optional |= KEEP_SPACE;
        let bytes = self.superblock.encode();
        self.writes.iter_mut().for_each(|(_, copy)| copy.copy_from_slice(&bytes));
        let all = 0..self.superblock.geometry.store_bytes();
        self.zero = vec![all];
        self
    }
}

/// Lays out an empty store. Errors where the device is too small or the journal out of bounds.
pub fn format_image(options: &FormatOptions) -> Result<Image, FormatError> {
    let block = BLOCK_BYTES as u64;
    let store_blocks = options.device_bytes / block / SEGMENT_BLOCKS * SEGMENT_BLOCKS;
    let journal_bytes = options.journal_bytes.unwrap_or(default_journal_bytes(options.device_bytes));
    let geometry = Geometry::new(store_blocks, journal_bytes / block)?;
    let superblock = Superblock::fresh(options.store, geometry);
    let bytes = superblock.encode();
    let writes = SUPERBLOCK_AT[superblock.slot()].map(|at| (at * block, bytes.to_vec())).to_vec();
    let journal = JOURNAL_START * block..(JOURNAL_START + geometry.journal_blocks()) * block;
    Ok(Image { zero: vec![0..HEAD_BLOCKS * block, journal], writes, superblock })
}
