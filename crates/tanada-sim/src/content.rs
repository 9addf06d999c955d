//! What a block holds: zeros, or bytes that tell who wrote them.

use std::fmt;
use std::rc::Rc;

pub const BLOCK: usize = 4096;

/// One block's bytes, cheap to copy and compare.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Content {
    #[default]
    Zero,
    Bytes(Rc<[u8; BLOCK]>),
}

impl Content {
    pub fn from_bytes(bytes: &[u8]) -> Content {
        let mut block = [0; BLOCK];
        block[..bytes.len()].copy_from_slice(bytes);
        if block == [0; BLOCK] { Content::Zero } else { Content::Bytes(Rc::new(block)) }
    }

    pub fn bytes(&self) -> &[u8; BLOCK] {
        match self {
            Content::Zero => &[0; BLOCK],
            Content::Bytes(bytes) => bytes,
        }
    }

    pub fn is_zero(&self) -> bool {
        matches!(self, Content::Zero)
    }

    /// The block with `patch` laid over it from byte `at` on.
    pub fn patched(&self, at: usize, patch: &[u8]) -> Content {
        let mut block = *self.bytes();
        block[at..at + patch.len()].copy_from_slice(patch);
        Content::from_bytes(&block)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Zero => f.write_str("zeros"),
            Content::Bytes(bytes) => {
                let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
                write!(f, "{:x}..{:x}..{:x}", word(0), word(2048), word(4088))
            }
        }
    }
}

/// `length` bytes that no other `tag` gives; byte n depends on n too, so that a shifted copy is noticed.
pub fn pattern(tag: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut word = 0u64;
    while bytes.len() < length {
        let mixed = (tag << 20 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        bytes.extend_from_slice(&mixed.to_le_bytes());
        word += 1;
    }
    bytes.truncate(length);
    bytes
}
