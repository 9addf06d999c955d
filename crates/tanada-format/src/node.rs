//! A map node: 256 pointers in one block. Five levels of them map a volume.
//!
//! ```text
//!   level  4 (root)   3        2         1         0 (leaf)     data
//!   spans  4 PiB      16 TiB   64 GiB    256 MiB   1 MiB        4 KiB
//! ```
//!
//! Nodes carry no header: pointer, level and place authenticate them. A node of null pointers only is never written;
//! its parent holds a null pointer instead.

use crate::error::FormatError;
use crate::pointer::{POINTER_BYTES, Pointer};

/// Bytes of a block, and so of a node.
pub const BLOCK_BYTES: usize = 4096;

/// Pointers in a node.
pub const FANOUT: usize = BLOCK_BYTES / POINTER_BYTES;

/// Levels of every tree, whatever the volume's size; leaves are level 0.
pub const LEVELS: u8 = 5;

/// Level of the root.
pub const ROOT_LEVEL: u8 = LEVELS - 1;

/// Blocks a whole tree maps: 2^40, which is 4 PiB.
pub const TREE_BLOCKS: u64 = span_blocks(ROOT_LEVEL);

const _: () = assert!(FANOUT == 256);
const _: () = assert!(TREE_BLOCKS == 1 << 40);

/// Blocks of the volume that one node of `level` maps (a leaf: 256).
pub const fn span_blocks(level: u8) -> u64 {
    1 << (8 * (level as u64 + 1))
}

/// Slot of the volume's block number `place` in a node of `level`.
pub const fn slot_of(place: u64, level: u8) -> usize {
    (place >> (8 * level as u64) & 0xff) as usize
}

/// A node in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    pub pointers: [Pointer; FANOUT],
}

impl Node {
    pub const EMPTY: Node = Node { pointers: [Pointer::NULL; FANOUT] };

    /// A node that says the same of everything below.
    pub const fn filled(pointer: Pointer) -> Node {
        Node { pointers: [pointer; FANOUT] }
    }

    pub fn is_empty(&self) -> bool {
        self.pointers.iter().all(|pointer| pointer.is_null())
    }

    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        self.encode_into(&mut bytes);
        bytes
    }

    pub fn encode_into(&self, bytes: &mut [u8; BLOCK_BYTES]) {
        for (chunk, pointer) in bytes.chunks_exact_mut(POINTER_BYTES).zip(&self.pointers) {
            chunk.copy_from_slice(&pointer.encode());
        }
    }

    /// Decodes what a pointer with checksum `crc` led to. Errors: wrong length or checksum, a malformed pointer,
    /// a block outside a store of `store_blocks` blocks, a node without a single pointer.
    pub fn decode(bytes: &[u8], crc: u32, store_blocks: u64) -> Result<Node, FormatError> {
        FormatError::check_length("node", bytes, BLOCK_BYTES)?;
        let computed = crc32c::crc32c(bytes);
        if computed != crc {
            return Err(FormatError::Checksum { what: "node", stored: crc, computed });
        }
        let mut node = Node::EMPTY;
        for (slot, chunk) in node.pointers.iter_mut().zip(bytes.as_chunks::<POINTER_BYTES>().0) {
            *slot = Pointer::decode(chunk)?;
            slot.check_within(store_blocks)?;
        }
        if node.is_empty() {
            return Err(FormatError::Field {
                what: "node",
                field: "pointers",
                value: 0,
                accepted: "at least one that is not null",
            });
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, LEVELS, Node, slot_of, span_blocks};
    use crate::pointer::Pointer;

    #[test]
    fn slots_are_the_digits_of_the_place() {
        let place = 0x01_02_03_04_05;
        assert_eq!((0..LEVELS).rev().map(|level| slot_of(place, level)).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(span_blocks(0) * BLOCK_BYTES as u64, 1 << 20);
    }

    #[test]
    fn a_node_survives_and_any_flipped_byte_is_noticed() {
        let mut node = Node::EMPTY;
        node.pointers[0] = Pointer::new(1, 2, 3);
        node.pointers[255] = Pointer::new(99, 1 << 43, 4);
        let bytes = node.encode();
        let crc = crc32c::crc32c(&bytes);
        assert!(Node::decode(&bytes, crc, 100).is_ok_and(|back| back == node));
        assert!(Node::decode(&bytes, crc, 99).is_err(), "block 99 is outside of 99 blocks");
        for at in 0..BLOCK_BYTES {
            let mut bad = bytes;
            bad[at] ^= 0x10;
            assert!(Node::decode(&bad, crc, 100).is_err());
        }
        let empty = [0; BLOCK_BYTES];
        assert!(Node::decode(&empty, crc32c::crc32c(&empty), 100).is_err());
    }
}
