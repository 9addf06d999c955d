//! VHD: dynamic and differencing images both ways, fixed ones in.
//!
//! ```text
//! footer copy (512) | header (1024) | locator (512) | table of blocks | [ bitmap | 2 MiB ]* | footer (512)
//! ```
//! All numbers are big endian, a sector has 512 bytes. The table has a sector number for each block, or all ones for one
//! that is not there. In a block's bitmap the most significant bit of the first byte stands for the first sector; sectors
//! without a bit are zero in a dynamic image and the parent's in a differencing one.
//!
//! A stream can be read if its table stands before its blocks; every writer known does that. Blocks may lie in any order
//! and with gaps between them, in which others keep tables of their own.

mod footer;
mod header;
mod read;
mod write;

pub use footer::{Footer, Kind};
pub use header::Header;
pub use read::{DynamicReader, FixedReader, Opened};
pub use write::{Parent, plan};

/// Bytes of a block that we write, and of everybody else's.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// Bytes of a sector, of a footer, and what tables and bitmaps are rounded up to.
pub const SECTOR: u64 = 512;

/// A block that is not there.
const ABSENT: u32 = u32::MAX;

/// Complement of the sum of all bytes, those at `field` taken as zero.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !(sum(&bytes[..field]).wrapping_add(sum(&bytes[field + 4..])))
}
