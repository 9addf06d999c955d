//! A block pointer: where a block is, when it last changed, and what its bytes add up to.
//!
//! ```text
//!   bit   0            44            88   96           128
//!         | block (44) | birth (44)  | kind | CRC-32C (32) |   little endian, 16 bytes
//! ```
//!
//! - *block*: number of the 4 KiB block on the device; 44 bits reach 64 PiB. Block 0 holds a superblock, so no pointer
//!   names it, and 16 zero bytes are the null pointer: unmapped, reads as zeros.
//! - *birth*: the epoch of the last change of what is pointed to (rules V1, V2).
//! - *kind*, 8 bits: 0, or 1 for *lost*: the map node that said what is here could not be read when the map around it
//!   was written anew. A lost pointer has a birth, block 0 and checksum 0. Reading there is an error; writing or
//!   unmapping puts an ordinary pointer in its place.
//! - *CRC*: CRC-32C of the 4 KiB pointed to. The parent vouches for the child; nodes carry no header.

use crate::error::FormatError;

/// Bytes of a pointer on disk.
pub const POINTER_BYTES: usize = 16;

/// Largest block number a pointer can hold.
pub const BLOCK_MAX: u64 = (1 << 44) - 1;

/// Largest epoch a pointer can hold.
pub const EPOCH_MAX: u64 = (1 << 44) - 1;

/// Kind of a lost pointer.
const LOST: u64 = 1;

/// 16 bytes in memory as on disk. Two pointers are equal exactly when they are identical on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Pointer {
    low: u64,
    high: u64,
}

impl Pointer {
    /// Unmapped: reads as zeros.
    pub const NULL: Pointer = Pointer { low: 0, high: 0 };

    /// Panics where `block` is 0 or does not fit 44 bits, or `birth` does not fit: a mistake of the caller.
    pub fn new(block: u64, birth: u64, crc: u32) -> Pointer {
        assert!(block != 0 && block <= BLOCK_MAX, "block {block} is no target for a pointer");
        assert!(birth <= EPOCH_MAX, "epoch {birth} does not fit a pointer");
        Pointer { low: block | birth << 44, high: birth >> 20 | u64::from(crc) << 32 }
    }

    /// What was here is lost since epoch `birth`. Panics where `birth` does not fit: a mistake of the caller.
    pub fn lost(birth: u64) -> Pointer {
        assert!(birth <= EPOCH_MAX, "epoch {birth} does not fit a pointer");
        Pointer { low: birth << 44, high: birth >> 20 | LOST << 24 }
    }

    pub fn is_null(self) -> bool {
        self == Pointer::NULL
    }

    /// Nobody knows what is here: neither data nor a hole.
    pub fn is_lost(self) -> bool {
        self.kind() == LOST
    }

    /// True where it leads to a block: neither null nor lost.
    pub fn has_block(self) -> bool {
        self.block() != 0
    }

    fn kind(self) -> u64 {
        self.high >> 24 & 0xff
    }

    /// Block number on the device; 0 for the null pointer and for lost ones.
    pub fn block(self) -> u64 {
        self.low & BLOCK_MAX
    }

    /// Epoch of the last change of what is pointed to.
    pub fn birth(self) -> u64 {
        self.low >> 44 | (self.high & 0xff_ffff) << 20
    }

    /// CRC-32C of the block pointed to.
    pub fn crc(self) -> u32 {
        (self.high >> 32) as u32
    }

    pub fn encode(self) -> [u8; POINTER_BYTES] {
        let mut bytes = [0; POINTER_BYTES];
        bytes[..8].copy_from_slice(&self.low.to_le_bytes());
        bytes[8..].copy_from_slice(&self.high.to_le_bytes());
        bytes
    }

    /// Errors: an unknown kind, block 0 with anything else set, or a lost pointer with a block or a checksum. Whether
    /// the block lies in the store is the caller's to check ([`Pointer::check_within`]).
    pub fn decode(bytes: &[u8; POINTER_BYTES]) -> Result<Pointer, FormatError> {
        let both = u128::from_le_bytes(*bytes);
        let pointer = Pointer { low: both as u64, high: (both >> 64) as u64 };
        let refuse = |field, value, accepted| Err(FormatError::Field { what: "pointer", field, value, accepted });
        match pointer.kind() {
            0 => {}
            LOST if pointer.block() == 0 && pointer.crc() == 0 => return Ok(pointer),
            LOST => return refuse("block", pointer.block(), "block 0 and checksum 0 for what is lost"),
            kind => return refuse("kind", kind, "0, or 1 for lost"),
        }
        if pointer.block() == 0 && !pointer.is_null() {
            return refuse("block", 0, "a block other than 0, or 16 zero bytes for unmapped");
        }
        Ok(pointer)
    }

    /// Errors where the block lies outside a store of `store_blocks` blocks. The null pointer and lost ones are always
    /// within.
    pub fn check_within(self, store_blocks: u64) -> Result<(), FormatError> {
        if self.block() < store_blocks || !self.has_block() {
            return Ok(());
        }
        let most = store_blocks.saturating_sub(1);
        Err(FormatError::TooLarge { what: "pointer", field: "block", value: self.block(), most })
    }
}

impl std::fmt::Debug for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_null() {
            return f.write_str("null");
        }
        if self.is_lost() {
            return write!(f, "lost@{}", self.birth());
        }
        write!(f, "{}@{}#{:08x}", self.block(), self.birth(), self.crc())
    }
}

/// CRC-32C (Castagnoli) as used everywhere in the format.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_MAX, EPOCH_MAX, Pointer};

    #[test]
    fn the_corners_survive_a_round_trip() {
        for (block, birth, crc) in [(1, 0, 0), (BLOCK_MAX, EPOCH_MAX, u32::MAX), (5, 1 << 20, 7), (9, (1 << 20) - 1, 1)]
        {
            let pointer = Pointer::new(block, birth, crc);
            assert_eq!((pointer.block(), pointer.birth(), pointer.crc()), (block, birth, crc));
            assert_eq!(Pointer::decode(&pointer.encode()), Ok(pointer));
        }
        assert_eq!(Pointer::decode(&[0; 16]), Ok(Pointer::NULL));
    }

    #[test]
    fn what_is_lost_has_a_birth_and_nothing_else() {
        for birth in [0, 1, 1 << 20, EPOCH_MAX] {
            let lost = Pointer::lost(birth);
            assert_eq!((lost.birth(), lost.block(), lost.crc()), (birth, 0, 0));
            assert_eq!((lost.is_lost(), lost.is_null(), lost.has_block()), (true, false, false));
            assert_eq!(Pointer::decode(&lost.encode()), Ok(lost));
            assert!(lost.check_within(1).is_ok());
        }
        assert!(!Pointer::NULL.is_lost() && !Pointer::NULL.has_block());
        assert!(!Pointer::new(1, EPOCH_MAX, u32::MAX).is_lost());
        for (at, bit) in [(0, 1), (15, 1), (11, 2), (11, 0x80)] {
            let mut bytes = Pointer::lost(7).encode();
            bytes[at] |= bit;
            assert!(Pointer::decode(&bytes).is_err(), "byte {at} with {bit:#x}");
        }
    }

    #[test]
    fn spare_bits_and_a_null_with_content_are_refused() {
        let mut bytes = Pointer::new(1, 2, 3).encode();
        bytes[11] = 1;
        assert!(Pointer::decode(&bytes).is_err());
        let mut bytes = [0; 16];
        bytes[15] = 1;
        assert!(Pointer::decode(&bytes).is_err());
        assert!(Pointer::new(10, 0, 0).check_within(10).is_err());
        assert!(Pointer::new(9, 0, 0).check_within(10).is_ok());
    }
}
