//! Sizes and identities that every plane of Tanada agrees on.
//!
//! The unit is always last in a name: `offset_bytes`, `length_blocks`, `at_sector`. Where a plain integer is named
//! `offset`, `length` or `size` it is in **bytes**.

/// Bytes in a store block: the granularity of mapping, checksums and allocation.
pub const BLOCK_BYTES: u64 = 4096;

/// Bytes in the smallest request a guest may send (the logical sector of every virtual disk).
pub const SECTOR_BYTES: u64 = 512;

/// Bytes in one kibibyte, mebibyte, gibibyte, tebibyte.
pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;

/// Rounds `bytes` up to whole blocks, in blocks. Saturates instead of overflowing.
pub const fn blocks_covering(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

/// True where `bytes` is a multiple of the block size.
pub const fn is_block_aligned(bytes: u64) -> bool {
    bytes.is_multiple_of(BLOCK_BYTES)
}

pub use uuid::Uuid;

#[cfg(test)]
mod tests {
    use super::{blocks_covering, is_block_aligned};

    #[test]
    fn rounding_is_up() {
        assert_eq!(blocks_covering(0), 0);
        assert_eq!(blocks_covering(1), 1);
        assert_eq!(blocks_covering(4096), 1);
        assert_eq!(blocks_covering(4097), 2);
        assert!(is_block_aligned(8192) && !is_block_aligned(512));
    }
}
