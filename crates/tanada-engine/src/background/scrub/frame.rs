//! Scrubbing what holds the store together: superblock copies, journal, catalog, bitmap pages.

use tanada_format::catalog::RegionEntry;
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::{BLOCK_BYTES, BitmapPage, JournalBlock, Node, Pointer, ROOT_LEVEL, Superblock};

use super::{DamagedPart, ScrubDamage, Scrubber, Stopped};
use crate::state::BLOCK;

/// A page or superblock that changes while it is verified is looked at again after so many microseconds.
const AGAIN_MICROS: u64 = 10_000;

impl Scrubber {
    pub async fn frame(&self) -> Result<(), Stopped> {
        self.superblocks().await?;
        self.journal().await?;
        self.catalog().await?;
        self.bitmaps().await
    }

    /// Both copies of the newest superblock. The other slot is about to be written over and means nothing.
    async fn superblocks(&self) -> Result<(), Stopped> {
        let mut verified = 0;
        while verified < 2 {
            // A checkpoint that ends meanwhile makes another one the newest: once more.
            verified += usize::from(self.superblock(verified).await?);
        }
        Ok(())
    }

    /// Verifies a copy of the newest superblock; false where it is not the newest any more.
    async fn superblock(&self, copy: usize) -> Result<bool, Stopped> {
        let reading = self.handle.reading();
        let Some(newest) = self.handle.with(|state| state.superblock.clone()) else { return Ok(true) };
        let at = SUPERBLOCK_AT[newest.slot()][copy];
        let said = match self.handle.read_blocks(at, BLOCK_BYTES as u32).await {
            Ok(bytes) => match Superblock::decode(&bytes, newest.slot()) {
                Ok(found) if found == newest => None,
                Ok(found) => Some(format!("it is that of checkpoint {}", found.checkpoint)),
                Err(error) => Some(error.to_string()),
            },
            Err(error) => Some(error.to_string()),
        };
        self.pace(1, &reading).await?;
        let is_newest = self.handle.with(|state| state.superblock.as_ref() == Some(&newest));
        if let Some(said) = said.filter(|_| is_newest) {
            self.frame_damaged(DamagedPart::Superblock, at, format!("copy {copy} of the superblock: {said}"));
        }
        Ok(is_newest)
    }

    /// The journal blocks that a restart would need and that are durable.
    async fn journal(&self) -> Result<(), Stopped> {
        let (first, last) = self.handle.with(|state| (state.journal.start_seq(), state.journal.durable()));
        for seq in first..=last {
            let reading = self.handle.reading();
            let at = self.handle.with(|state| state.alloc.geometry().journal_block(seq));
            let store = self.handle.with(|state| state.store);
            let said = match self.handle.read_blocks(at, BLOCK_BYTES as u32).await {
                Ok(bytes) => match JournalBlock::decode(&bytes, store) {
                    Ok(block) if block.header.seq == seq => None,
                    Ok(block) => Some(format!("it holds number {}", block.header.seq)),
                    Err(error) => Some(error.to_string()),
                },
                Err(error) => Some(error.to_string()),
            };
            self.pace(1, &reading).await?;
            let is_needed = self.handle.with(|state| state.journal.start_seq() <= seq);
            if let Some(said) = said.filter(|_| is_needed) {
                self.frame_damaged(DamagedPart::Journal, at, format!("journal block number {seq}: {said}"));
            }
        }
        Ok(())
    }

    /// The catalog's tree on the device; the engine itself works with its copy in memory.
    async fn catalog(&self) -> Result<(), Stopped> {
        let reading = self.handle.reading();
        let root = self.handle.with(|state| state.superblock.as_ref().map_or(Pointer::NULL, |newest| newest.catalog));
        let store_blocks = self.handle.with(|state| state.alloc.geometry().store_blocks());
        let mut todo = vec![(root, Some(ROOT_LEVEL))];
        while let Some((pointer, level)) = todo.pop() {
            if pointer.is_null() {
                continue;
            }
            match (self.verified(pointer).await, level) {
                (Ok(bytes), Some(level)) => match Node::decode(&bytes, pointer.crc(), store_blocks) {
                    Ok(node) => todo.extend(node.pointers.iter().map(|below| (*below, level.checked_sub(1)))),
                    Err(error) => self.frame_damaged(DamagedPart::Catalog, pointer.block(), error.to_string()),
                },
                (Ok(_), None) => {}
                (Err(said), _) => {
                    self.frame_damaged(DamagedPart::Catalog, pointer.block(), format!("catalog: {said}"));
                }
            }
            self.pace(1, &reading).await?;
        }
        Ok(())
    }

    async fn bitmaps(&self) -> Result<(), Stopped> {
        let regions = self.handle.with(|state| state.alloc.geometry().region_count());
        for region in 0..regions {
            while !self.bitmap(region).await? {
                let again = self.handle.with(|state| state.now) + AGAIN_MICROS;
                self.handle.wait_until(again).await;
            }
        }
        Ok(())
    }

    /// Verifies a region's page; false where a checkpoint was about to change it.
    async fn bitmap(&self, region: u64) -> Result<bool, Stopped> {
        let reading = self.handle.reading();
        let (geometry, entry) = self.handle.with(|state| (state.alloc.geometry(), state.alloc.entry(region)));
        let began_settled = self.handle.with(|state| !state.checkpoint.running);
        let RegionEntry::Page { copy, crc, used } = entry else { return Ok(true) };
        let at = geometry.page_block(region, copy);
        let said = match self.handle.read_blocks(at, BLOCK as u32).await {
            Ok(bytes) => BitmapPage::decode(&bytes, crc, used, geometry.region_blocks(region)).err(),
            Err(error) => {
                self.frame_damaged(
                    DamagedPart::Bitmap { region },
                    at,
                    format!("bitmap page of region {region}: {error}"),
                );
                None
            }
        };
        self.pace(1, &reading).await?;
        // A page is announced before it is written: the look-up may have come in between, and the checkpoint have ended.
        let ends_settled = self.handle.with(|state| state.alloc.entry(region) == entry && !state.checkpoint.running);
        let is_settled = began_settled && ends_settled;
        if let Some(said) = said {
            if !is_settled {
                return Ok(false);
            }
            self.frame_damaged(DamagedPart::Bitmap { region }, at, format!("bitmap page of region {region}: {said}"));
        }
        Ok(true)
    }

    fn frame_damaged(&self, part: DamagedPart, block: u64, message: String) {
        let damage = ScrubDamage { part, block, volume: None, generation: None, offset: 0, length: 0, message };
        self.handle.with(|state| state.scrub_damaged(self.run, damage));
    }
}
