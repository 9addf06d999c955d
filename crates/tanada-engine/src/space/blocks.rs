//! Many block numbers in little memory: two bytes each, by region.

use std::collections::BTreeMap;

use tanada_format::Geometry;

use crate::failure::{EIO, Failure};

/// Blocks by region, in no order within one.
#[derive(Debug, Default)]
pub struct Blocks {
    by_region: BTreeMap<u64, Vec<u16>>,
    count: u64,
    /// One that no region holds. A map on the device may refer to anything.
    stray: Option<u64>,
}

impl Blocks {
    pub fn push(&mut self, geometry: &Geometry, block: u64) {
        let Some((region, bit)) = geometry.bit_of(block).filter(|_| geometry.is_allocatable(block)) else {
            self.stray = Some(block);
            return;
        };
        self.by_region.entry(region).or_default().push(bit as u16);
        self.count += 1;
    }

    /// Errors where one was added that lies in no region, or is a bitmap page: nothing there is ever allocated.
    pub fn require_regions(&self) -> Result<(), Failure> {
        match self.stray {
            Some(block) => Err(Failure::new(EIO, format!("a map refers to block {block}, which cannot hold anything"))),
            None => Ok(()),
        }
    }

    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Regions that hold any of them, in order.
    pub fn regions(&self) -> impl Iterator<Item = u64> + '_ {
        self.by_region.keys().copied()
    }

    /// Those of one region.
    pub fn of_region(&self, region: u64) -> &[u16] {
        self.by_region.get(&region).map_or(&[], Vec::as_slice)
    }

    /// Takes some blocks out, `count` at most, all of one region: the region and the bits.
    pub fn take(&mut self, count: usize) -> Option<(u64, Vec<u16>)> {
        let mut last = self.by_region.last_entry()?;
        let (region, bits) = (*last.key(), last.get_mut());
        let taken = bits.split_off(bits.len().saturating_sub(count));
        if bits.is_empty() {
            last.remove();
        }
        self.count -= taken.len() as u64;
        Some((region, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::Blocks;
    use tanada_format::Geometry;
    use tanada_format::geometry::SEGMENT_BLOCKS;

    #[test]
    fn what_goes_in_comes_out_by_region() {
        let geometry = Geometry::new(80 * SEGMENT_BLOCKS, 64).expect("valid");
        let (first, second) = (geometry.region_start(0), geometry.region_start(1));
        let mut blocks = Blocks::default();
        [second + 9, first + 5, second + 7].iter().for_each(|block| blocks.push(&geometry, *block));
        assert_eq!((blocks.len(), blocks.of_region(0), blocks.of_region(1)), (3, &[5][..], &[9, 7][..]));
        assert_eq!(blocks.take(1), Some((1, vec![7])));
        assert_eq!(blocks.take(9), Some((1, vec![9])));
        assert_eq!(blocks.take(9), Some((0, vec![5])));
        assert!(blocks.is_empty() && blocks.take(9).is_none());
    }

    #[test]
    fn what_no_region_holds_is_told_and_not_kept() {
        let geometry = Geometry::new(80 * SEGMENT_BLOCKS, 64).expect("valid");
        for stray in [0, geometry.regions_start() - 1, geometry.page_block(1, 0), geometry.store_blocks()] {
            let mut blocks = Blocks::default();
            blocks.push(&geometry, geometry.region_start(0) + 5);
            assert!(blocks.require_regions().is_ok());
            blocks.push(&geometry, stray);
            assert!(blocks.require_regions().is_err() && blocks.len() == 1, "block {stray}");
        }
    }
}
