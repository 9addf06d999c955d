//! What is known of one region's blocks, in memory or mostly not.
//!
//! ```text
//!   loaded:  used (as the next checkpoint saves it) and busy, a page each
//!   cold:    the saved page says what is used; here are only the blocks that are busy besides
//! ```
//! A region is cold from the beginning, and becomes cold again when its page is saved and memory is short. Freeing and
//! taking single blocks works in both; searching and what a checkpoint changes need the page.

use tanada_format::BitmapPage;
use tanada_format::geometry::REGION_BLOCKS;

/// Busy blocks beside the saved page that a cold region may have: more take as much memory as the page itself.
const EXTRA_MAX: usize = 1024;

pub enum Region {
    /// Bits busy and not used, sorted.
    Cold(Vec<u16>),
    Loaded(Box<Bits>),
}

pub struct Bits {
    pub used: BitmapPage,
    pub busy: BitmapPage,
}

impl Default for Region {
    fn default() -> Region {
        Region::Cold(Vec::new())
    }
}

impl Region {
    pub fn loaded(&self) -> Option<&Bits> {
        match self {
            Region::Loaded(bits) => Some(bits),
            Region::Cold(_) => None,
        }
    }

    /// Panics where it is cold: whoever changes what is used has it loaded before.
    pub fn bits(&mut self) -> &mut Bits {
        match self {
            Region::Loaded(bits) => bits,
            Region::Cold(_) => panic!("a region's bitmap is changed and not in memory"),
        }
    }

    /// Takes over the saved page.
    pub fn load(&mut self, page: BitmapPage) {
        let Region::Cold(extra) = self else { return };
        let mut busy = page.clone();
        extra.iter().for_each(|bit| busy.set(u64::from(*bit)));
        *self = Region::Loaded(Box::new(Bits { used: page, busy }));
    }

    /// Lets go of a page that is saved; false where too much is busy besides.
    pub fn cool(&mut self) -> bool {
        let Region::Loaded(bits) = self else { return false };
        let mut extra = Vec::new();
        for (word, (used, busy)) in (0u64..).zip(bits.used.words().iter().zip(bits.busy.words())) {
            let mut differ = busy & !used;
            while differ != 0 {
                extra.push((word * 64 + u64::from(differ.trailing_zeros())) as u16);
                differ &= differ - 1;
            }
            if extra.len() > EXTRA_MAX {
                return false;
            }
        }
        *self = Region::Cold(extra);
        true
    }

    /// free -> busy. Panics where the block is known to be busy (rule B5).
    pub fn take(&mut self, bit: u64) {
        match self {
            Region::Loaded(bits) => bits.busy.set(bit),
            Region::Cold(extra) => match extra.binary_search(&(bit as u16)) {
                Ok(_) => panic!("bit {bit} of a region is busy already"),
                Err(at) => extra.insert(at, bit as u16),
            },
        }
    }

    /// busy -> free. Panics where the block is free, or in use by the checkpoint (rule B5).
    pub fn give_back(&mut self, bit: u64) {
        match self {
            Region::Loaded(bits) => {
                assert!(!bits.used.get(bit), "bit {bit} of a region is released while the checkpoint refers to it");
                bits.busy.clear(bit);
            }
            Region::Cold(extra) => match extra.binary_search(&(bit as u16)) {
                Ok(at) => drop(extra.remove(at)),
                Err(_) => panic!("bit {bit} of a region is released and was not busy beside its page"),
            },
        }
    }
}

const _: () = assert!(REGION_BLOCKS <= 1 << 16, "bits of a region fit 16 bits");

#[cfg(test)]
mod tests {
    use super::{Bits, Region};
    use tanada_format::BitmapPage;

    #[test]
    fn cold_and_loaded_say_the_same() {
        let mut page = BitmapPage::fresh();
        page.set(100);
        let mut region = Region::default();
        region.load(page.clone());
        region.take(7);
        region.take(9);
        assert!(region.cool());
        region.take(8);
        region.give_back(9);
        region.load(page);
        let Bits { used, busy } = region.bits();
        let set = |page: &BitmapPage| (2..200).filter(|bit| page.get(*bit)).collect::<Vec<u64>>();
        assert_eq!((set(used), set(busy)), (vec![100], vec![7, 8, 100]));
    }

    #[test]
    #[should_panic(expected = "was not busy")]
    fn a_block_in_use_cannot_be_released_from_a_cold_region() {
        Region::default().give_back(100);
    }
}
