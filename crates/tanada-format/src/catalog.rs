//! The catalog: what the store knows of versions and regions, kept in a hidden volume of its own.
//!
//! Its tree is like any volume's, its root is in the superblock, it has no parent and is never cut. Places in it:
//! ```text
//!   place  0                         65,536                                        in blocks of the hidden volume
//!          | version table            | region table ...
//!          | 16 records of 256 bytes  | 256 entries of 16 bytes
//! ```
//! A null pointer is a block of free records, or of regions never used.

use crate::error::FormatError;
use crate::field::Field;
use crate::geometry::{PAGE_COPIES, REGION_BLOCKS};
use crate::node::BLOCK_BYTES;
use crate::version::{VERSION_BYTES, VERSION_SLOTS_MAX};

/// Version records in a block.
pub const VERSIONS_PER_BLOCK: u64 = (BLOCK_BYTES / VERSION_BYTES) as u64;

/// First place of the version table.
pub const VERSION_TABLE_PLACE: u64 = 0;

/// First place of the region table: behind the largest version table.
pub const REGION_TABLE_PLACE: u64 = VERSION_TABLE_PLACE + VERSION_SLOTS_MAX / VERSIONS_PER_BLOCK;

/// Bytes of an entry of the region table.
pub const REGION_ENTRY_BYTES: usize = 16;

/// Entries in a block.
pub const REGIONS_PER_BLOCK: u64 = (BLOCK_BYTES / REGION_ENTRY_BYTES) as u64;

const _: () = assert!(REGION_TABLE_PLACE == 65_536 && REGIONS_PER_BLOCK == 256);

/// Place of a version's record in the catalog, and its offset in bytes within that block.
pub const fn version_place(slot: u64) -> (u64, usize) {
    (VERSION_TABLE_PLACE + slot / VERSIONS_PER_BLOCK, (slot % VERSIONS_PER_BLOCK) as usize * VERSION_BYTES)
}

/// Place of a region's entry in the catalog, and its offset in bytes within that block.
pub const fn region_place(region: u64) -> (u64, usize) {
    (REGION_TABLE_PLACE + region / REGIONS_PER_BLOCK, (region % REGIONS_PER_BLOCK) as usize * REGION_ENTRY_BYTES)
}

const WHAT: &str = "region table entry";
const F_CRC: Field = Field::first("crc", 4);
const F_USED: Field = F_CRC.then("used", 4);
const F_STATE: Field = F_USED.then("state", 1);
const F_SPARE: Field = F_STATE.then("spare", REGION_ENTRY_BYTES - F_STATE.end());

pub(crate) const FIELDS: &[Field] = &[F_CRC, F_USED, F_STATE, F_SPARE];

const _: () = assert!(F_SPARE.end() == REGION_ENTRY_BYTES);

/// What the region table says of a region's bitmap page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RegionEntry {
    /// Nothing in it was ever used: neither copy of the page means anything.
    #[default]
    Fresh,
    Page {
        /// Which of the two places holds the page: 0 or 1.
        copy: u64,
        /// CRC-32C of the page.
        crc: u32,
        /// Bits set, the two of the pages themselves left out.
        used: u64,
    },
}

impl RegionEntry {
    pub fn encode(self) -> [u8; REGION_ENTRY_BYTES] {
        let mut bytes = [0; REGION_ENTRY_BYTES];
        if let RegionEntry::Page { copy, crc, used } = self {
            F_CRC.put(&mut bytes, u64::from(crc));
            F_USED.put(&mut bytes, used);
            F_STATE.put(&mut bytes, copy + 1);
        }
        bytes
    }

    /// Errors: state unknown, more used than a region has, a fresh entry that says more.
    pub fn decode(bytes: &[u8]) -> Result<RegionEntry, FormatError> {
        FormatError::check_length(WHAT, bytes, REGION_ENTRY_BYTES)?;
        F_SPARE.check_zero(WHAT, bytes)?;
        match F_STATE.get(bytes) {
            0 => {
                F_CRC.check_zero(WHAT, bytes)?;
                F_USED.check_zero(WHAT, bytes)?;
                Ok(RegionEntry::Fresh)
            }
            state @ (1 | 2) => Ok(RegionEntry::Page {
                copy: state - 1,
                crc: F_CRC.get(bytes) as u32,
                used: F_USED.get_most(WHAT, bytes, REGION_BLOCKS - PAGE_COPIES)?,
            }),
            other => F_STATE.refuse(WHAT, other, "0 (fresh), 1 (page in copy 0) or 2 (page in copy 1)"),
        }
    }
}
