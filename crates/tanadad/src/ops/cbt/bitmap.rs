//! Which parts of a disk changed, a bit for each 64 KiB, as `VDI.list_changed_blocks` answers it.
//!
//! Block `n` is bit `0x80 >> (n % 8)` of byte `n / 8`: the first block is the most significant bit of the first byte. There
//! are as many bytes as the disk needs, and the bits behind its last block are zero.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tanada_driver::Extent;
use tanada_xapi::{ApiError, ApiResult};

use super::UNKNOWN_CHANGES;

/// Bytes that one bit stands for.
pub const CHANGED_BLOCK_BYTES: u64 = 64 << 10;

/// Largest disk whose changes are told as a bitmap, in bytes: 64 TiB make 128 MiB of bits.
const SIZE_MAX: u64 = 64 << 40;

/// Grows as it is marked; [`Bitmap::sized`] gives it the length that clients expect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap(Vec<u8>);

impl Bitmap {
    pub fn from_bytes(bytes: Vec<u8>) -> Bitmap {
        Bitmap(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The blocks that these extents touch, whole or in part.
    ///
    /// # Errors
    /// `SR_BACKEND_FAILURE_460` where an extent lies behind what a bitmap may reach.
    pub fn of(extents: &[Extent]) -> ApiResult<Bitmap> {
        let end = extents.iter().map(|extent| extent.offset.saturating_add(extent.length)).max().unwrap_or(0);
        let mut bits = vec![0; bytes_for(end)?];
        for extent in extents.iter().filter(|extent| extent.length > 0) {
            let last = (extent.offset + extent.length - 1) / CHANGED_BLOCK_BYTES;
            for block in extent.offset / CHANGED_BLOCK_BYTES..=last {
                // In range: `bits` was made for the largest end.
                bits[(block / 8) as usize] |= 0x80 >> (block % 8);
            }
        }
        Ok(Bitmap(bits))
    }

    /// What changed in either.
    pub fn join(&mut self, other: &Bitmap) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine |= theirs;
        }
    }

    /// As long as a disk of `size` bytes needs, with nothing behind its last block.
    ///
    /// # Errors
    /// `SR_BACKEND_FAILURE_460` where the disk is too large for a bitmap.
    pub fn sized(mut self, size: u64) -> ApiResult<Bitmap> {
        self.0.resize(bytes_for(size)?, 0);
        let beyond = size.div_ceil(CHANGED_BLOCK_BYTES) % 8;
        if let (Some(last), 1..) = (self.0.last_mut(), beyond) {
            *last &= 0xff << (8 - beyond);
        }
        Ok(self)
    }

    pub fn to_base64(&self) -> String {
        STANDARD.encode(&self.0)
    }
}

fn bytes_for(size: u64) -> ApiResult<usize> {
    if size > SIZE_MAX {
        let words = format!("a disk of {size} bytes is too large for a bitmap; {SIZE_MAX} are possible");
        return Err(ApiError::sr_backend_failure(UNKNOWN_CHANGES, words));
    }
    usize::try_from(size.div_ceil(CHANGED_BLOCK_BYTES).div_ceil(8)).map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use super::{Bitmap, CHANGED_BLOCK_BYTES as BLOCK};
    use tanada_driver::Extent;

    fn bits(extents: &[(u64, u64)], size: u64) -> Vec<u8> {
        let extents: Vec<Extent> =
            extents.iter().map(|&(offset, length)| Extent { offset, length, data: true }).collect();
        Bitmap::of(&extents).unwrap().sized(size).unwrap().0
    }

    #[test]
    fn the_first_block_is_the_most_significant_bit() {
        assert_eq!(bits(&[(0, 1)], 16 * BLOCK), [0x80, 0]);
        assert_eq!(bits(&[(7 * BLOCK, BLOCK)], 16 * BLOCK), [0x01, 0]);
        assert_eq!(bits(&[(15 * BLOCK + 4096, 4096)], 16 * BLOCK), [0, 0x01]);
    }

    #[test]
    fn a_block_counts_where_any_of_its_bytes_does() {
        assert_eq!(bits(&[(BLOCK - 1, 2)], 8 * BLOCK), [0xc0]);
        assert_eq!(bits(&[(BLOCK, BLOCK)], 8 * BLOCK), [0x40]);
        assert_eq!(bits(&[(5, 0)], 8 * BLOCK), [0]);
    }

    #[test]
    fn there_are_as_many_bytes_as_the_disk_needs() {
        assert_eq!(bits(&[], 1).len(), 1);
        assert_eq!(bits(&[], 8 * BLOCK).len(), 1);
        assert_eq!(bits(&[], 8 * BLOCK + 1).len(), 2);
        // Nothing behind the last block, though what was compared was longer.
        assert_eq!(bits(&[(0, 8 * BLOCK)], 2 * BLOCK + 1), [0xe0]);
        assert!(Bitmap::default().sized(1 << 52).unwrap_err().is("SR_BACKEND_FAILURE_460"));
    }

    #[test]
    fn joining_keeps_what_either_has() {
        let mut one = Bitmap::from_bytes(vec![0x80]);
        one.join(&Bitmap::from_bytes(vec![0x01, 0x10]));
        assert_eq!(one, Bitmap::from_bytes(vec![0x81, 0x10]));
        assert_eq!(one.to_base64(), "gRA=");
    }
}
