//! A region's bitmap page: one bit per block, set where the block is reachable from the checkpoint (rule B4).
//!
//! Bit n is bit n % 8 of byte n / 8. The bits of the page's own two places are always set, bits past the end of a short
//! last region always clear.

use crate::catalog::RegionEntry;
use crate::error::FormatError;
use crate::geometry::{PAGE_COPIES, REGION_BLOCKS};
use crate::node::BLOCK_BYTES;

const WORDS: usize = BLOCK_BYTES / 8;
const WHAT: &str = "bitmap page";

#[derive(Clone, PartialEq, Eq)]
pub struct BitmapPage {
    words: Box<[u64; WORDS]>,
}

impl Default for BitmapPage {
    fn default() -> BitmapPage {
        BitmapPage::fresh()
    }
}

impl BitmapPage {
    /// A page of a region in which nothing is used.
    pub fn fresh() -> BitmapPage {
        let mut page = BitmapPage { words: Box::new([0; WORDS]) };
        (0..PAGE_COPIES).for_each(|bit| page.set(bit));
        page
    }

    /// 64 bits at a time, for searching; bit n of the page is bit n % 64 of word n / 64.
    pub fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    pub fn get(&self, bit: u64) -> bool {
        self.words[bit as usize / 64] >> (bit % 64) & 1 != 0
    }

    /// Panics where the bit is set already (rule B5).
    pub fn set(&mut self, bit: u64) {
        assert!(!self.get(bit), "bit {bit} of a bitmap page is set already");
        self.words[bit as usize / 64] |= 1 << (bit % 64);
    }

    /// Panics where the bit is clear already (rule B5).
    pub fn clear(&mut self, bit: u64) {
        assert!(self.get(bit), "bit {bit} of a bitmap page is clear already");
        self.words[bit as usize / 64] &= !(1 << (bit % 64));
    }

    /// Bits set, the pages' own left out.
    pub fn used(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() - PAGE_COPIES
    }

    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.words.iter()) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The entry that names this page, written to `copy`.
    pub fn entry(&self, copy: u64) -> RegionEntry {
        RegionEntry::Page { copy, crc: crc32c::crc32c(&self.encode()), used: self.used() }
    }

    /// Decodes the page of a region with `region_blocks` blocks that `crc` and `used` of its entry speak of.
    pub fn decode(bytes: &[u8], crc: u32, used: u64, region_blocks: u64) -> Result<BitmapPage, FormatError> {
        FormatError::check_length(WHAT, bytes, BLOCK_BYTES)?;
        let computed = crc32c::crc32c(bytes);
        if computed != crc {
            return Err(FormatError::Checksum { what: WHAT, stored: crc, computed });
        }
        let mut page = BitmapPage { words: Box::new([0; WORDS]) };
        for (word, chunk) in page.words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        if (0..PAGE_COPIES).any(|bit| !page.get(bit)) {
            return Err(FormatError::Field { what: WHAT, field: "own bits", value: 0, accepted: "both set" });
        }
        if let Some(bit) = (region_blocks..REGION_BLOCKS).find(|bit| page.get(*bit)) {
            return Err(FormatError::TooLarge { what: WHAT, field: "bit", value: bit, most: region_blocks - 1 });
        }
        if page.used() != used {
            return Err(FormatError::Field {
                what: WHAT,
                field: "used",
                value: page.used(),
                accepted: "as many bits as its entry in the region table says",
            });
        }
        Ok(page)
    }
}
