//! Memory that outlives the process (rule J6b): images of journal blocks that the device does not have yet.
//!
//! ```text
//!   place 0           place 1           ...     block s lies in place s modulo the number of places
//!   | copy 0 | copy 1 | copy 0 | copy 1 |
//! ```
//! A block is kept anew each time records came into it, in the two copies of its place by turns: a process that dies
//! while it copies leaves a torn copy, which its checksum shows, and beside it the image before, which holds
//! everything that was acknowledged. A place is used for another block only when the device has the former one.
//!
//! What is found at the next start counts only if the life that kept it was the last one that served the store: its
//! incarnation must be the largest that journal and superblock know. The shell sees to it that memory of another boot is
//! not shown: after a power cut the device may have lost data that the images name.

use std::collections::BTreeMap;

use tanada_format::{BLOCK_BYTES, JournalBlock, JournalHeader};
use uuid::Uuid;

/// An image to keep. It must be in the memory before any later action is carried out.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptBlock {
    /// Number of the journal block.
    pub seq: u64,
    pub bytes: Box<[u8; BLOCK_BYTES]>,
}

impl std::fmt::Debug for KeptBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeptBlock({})", self.seq)
    }
}

/// Memory for images, as an engine gets to know it when it opens a store.
#[derive(Debug, Clone, Default)]
pub struct KeptMemory {
    /// Journal blocks that fit at a time.
    pub places: u64,
    /// What is there: 4 KiB each, torn, old and empty copies among them, in any order.
    pub found: Vec<Vec<u8>>,
}

/// Where the next image of a block goes: for whoever carries out [`crate::Action::Keep`].
#[derive(Debug, Clone)]
pub struct KeptPlaces {
    next_copy: Vec<usize>,
}

/// Copies of each place.
pub const COPIES: usize = 2;

impl KeptPlaces {
    pub fn new(places: u64) -> KeptPlaces {
        KeptPlaces { next_copy: vec![0; places as usize] }
    }

    /// Index of the 4 KiB that take the next image of block `seq`.
    pub fn next(&mut self, seq: u64) -> usize {
        let place = (seq % self.next_copy.len() as u64) as usize;
        let copy = self.next_copy[place];
        self.next_copy[place] = (copy + 1) % COPIES;
        place * COPIES + copy
    }
}

/// The images that a life of `incarnation` left, the fullest of each block.
pub fn images(found: &[Vec<u8>], store: Uuid, incarnation: u64) -> BTreeMap<u64, (JournalBlock, Vec<u8>)> {
    let mut images: BTreeMap<u64, (JournalBlock, Vec<u8>)> = BTreeMap::new();
    for bytes in found {
        let is_of_that_life = |header: &JournalHeader| header.incarnation == incarnation;
        if !JournalHeader::decode(bytes, store).as_ref().is_ok_and(is_of_that_life) {
            continue;
        }
        let Ok(block) = JournalBlock::decode(bytes, store) else { continue };
        let known = images.get(&block.header.seq).map_or(0, |(known, _)| known.records.len());
        if block.records.len() > known {
            images.insert(block.header.seq, (block, bytes.clone()));
        }
    }
    images
}

#[cfg(test)]
mod tests {
    use super::{KeptPlaces, images};
    use tanada_format::{JournalBuilder, JournalHeader, Record};
    use uuid::Uuid;

    fn image(incarnation: u64, seq: u64, records: usize) -> Vec<u8> {
        let mut builder = JournalBuilder::new();
        for version in 1..=records as u64 {
            assert!(builder.push(&Record::Destroy { version }));
        }
        let header = JournalHeader { store: Uuid::nil(), incarnation, seq, durable_seq: 0, checkpoint: 1 };
        builder.seal(&header).to_vec()
    }

    #[test]
    fn the_fullest_whole_image_of_the_last_life_counts() {
        let mut torn = image(3, 7, 3);
        torn[100] ^= 1;
        let found = [image(3, 7, 1), torn, image(3, 7, 2), image(2, 8, 1), vec![0; 4096], vec![1; 10]];
        let images = images(&found, Uuid::nil(), 3);
        assert_eq!(images.keys().copied().collect::<Vec<_>>(), [7]);
        assert_eq!(images[&7].0.records.len(), 2);
    }

    #[test]
    fn images_of_a_block_go_to_its_copies_by_turns() {
        let mut places = KeptPlaces::new(2);
        assert_eq!([4, 4, 5, 4, 6].map(|seq| places.next(seq)), [0, 1, 2, 0, 1]);
    }
}
