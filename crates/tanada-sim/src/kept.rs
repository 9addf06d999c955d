//! Memory that outlives a killed process, not a power cut (rule J6b).

use tanada_engine::{KEPT_COPIES, KeptBlock, KeptMemory, KeptPlaces};

use crate::content::BLOCK;
use crate::rng::Rng;

#[derive(Debug, Clone)]
pub struct KeptRing {
    count: u64,
    places: KeptPlaces,
    copies: Vec<Vec<u8>>,
    /// The process that runs has kept something.
    in_use: bool,
}

impl KeptRing {
    pub fn new(count: u64) -> KeptRing {
        KeptRing {
            count,
            places: KeptPlaces::new(count),
            copies: vec![vec![0; BLOCK]; count as usize * KEPT_COPIES],
            in_use: false,
        }
    }

    /// What the next process finds. It begins with the first copies.
    pub fn found(&mut self) -> KeptMemory {
        (self.places, self.in_use) = (KeptPlaces::new(self.count), false);
        KeptMemory { places: self.count, found: self.copies.clone() }
    }

    pub fn keep(&mut self, block: &KeptBlock) {
        self.in_use = true;
        let at = self.places.next(block.seq);
        self.copies[at].copy_from_slice(&block.bytes[..]);
    }

    /// The process dies, perhaps while it copies an image: the copy that was to be written next is torn.
    pub fn kill(&mut self, rng: &mut Rng) {
        if self.in_use && rng.chance(50) {
            let at = self.places.next(rng.below(self.count));
            let torn = &mut self.copies[at][..rng.within(1, BLOCK as u64) as usize];
            torn.iter_mut().for_each(|byte| *byte ^= 0x5a);
        }
    }

    /// Memory does not survive this.
    pub fn power_cut(&mut self) {
        *self = KeptRing::new(self.count);
    }
}
