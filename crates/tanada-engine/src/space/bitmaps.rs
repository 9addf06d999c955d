//! Bitmap pages between memory and device: read when a segment is about to be opened or a checkpoint changes them,
//! saved by the checkpoint region by region, so that a store of any size needs a few of them at a time.

use std::collections::BTreeSet;

use tanada_disk::DiskOp;
use tanada_format::{BLOCK_BYTES, BitmapPage};

use crate::background::checkpoint::BLOCKS_PER_TURN;
use crate::failure::{EIO, Failure};
use crate::space::alloc::{PageRead, PageWrite, Stream};
use crate::space::blocks::Blocks;
use crate::state::{BLOCK, Handle, Job, State};

/// Pages read at once.
const READS_AT_ONCE: usize = 32;

/// Blocks lined up for guests' data ahead of need: two segments.
const AHEAD_BLOCKS: u64 = 2048;

/// How often a checkpoint without a free block looks for one, in microseconds.
const HELD_BACK_MICROS: u64 = 1_000;

impl State {
    /// True where `blocks` blocks for guests' data are at hand; else their pages are on the way.
    pub fn has_data_at_hand(&mut self, blocks: u64) -> bool {
        let missing = self.alloc.line_up(Stream::Data, blocks);
        let at_hand = missing.is_empty();
        self.load_for_data(missing);
        at_hand
    }

    /// Has the pages of the segments to come read before somebody waits for them.
    pub fn line_up_data(&mut self) {
        if self.phase == crate::state::Phase::Serving {
            let missing = self.alloc.line_up(Stream::Data, AHEAD_BLOCKS);
            self.load_for_data(missing);
        }
    }

    fn load_for_data(&mut self, missing: Vec<PageRead>) {
        if !missing.is_empty() && !self.loading_pages {
            self.loading_pages = true;
            self.jobs.push_back(Job::LoadPages { pages: missing });
        }
    }
}

impl Handle {
    /// Reads pages for guests' writes.
    pub async fn load_for_data(self, pages: Vec<PageRead>) {
        self.load_pages(pages).await;
        self.with(|state| state.loading_pages = false);
    }

    /// Reads pages. A region whose page cannot be read is given up: nothing is taken from it any more.
    pub async fn load_pages(&self, pages: Vec<PageRead>) {
        for batch in pages.chunks(READS_AT_ONCE) {
            let read = |page: &PageRead| {
                let op = DiskOp::Read { at: page.block * BLOCK, length: BLOCK_BYTES as u32 };
                (*page, self.with(|state| state.task_io(op)))
            };
            let reads: Vec<_> = batch.iter().map(read).collect();
            for (page, slot) in reads {
                let bytes = slot.await;
                self.with(|state| {
                    let blocks = state.alloc.geometry().region_blocks(page.region);
                    let decode = |bytes: &[u8]| BitmapPage::decode(bytes, page.crc, page.used, blocks);
                    let why = match bytes.map(|bytes| bytes.map(|bytes| decode(&bytes))) {
                        Ok(Some(Ok(bitmap))) => return state.alloc.install(page, bitmap),
                        Ok(Some(Err(error))) => error.to_string(),
                        Ok(None) => "nothing was read".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    tracing::error!(region = page.region, why, "a bitmap page cannot be read");
                    state.alloc.give_up(page);
                });
            }
        }
    }

    /// Has these regions in memory. Errors where a page cannot be read: there is no way to save it.
    async fn load_regions(&self, regions: &[u64]) -> Result<(), Failure> {
        loop {
            if let Some(region) = regions.iter().find(|region| self.with(|state| state.alloc.is_broken(**region))) {
                return Err(Failure::new(EIO, format!("the bitmap of region {region} is damaged")));
            }
            let missing =
                |state: &mut State| regions.iter().filter_map(|region| state.alloc.page_of(*region)).collect();
            let pages: Vec<PageRead> = self.with(missing);
            if pages.is_empty() {
                return Ok(());
            }
            self.load_pages(pages).await;
        }
    }

    /// Has `blocks` blocks for map nodes at hand, as far as there are any. Blocks that only a slow reader or the medium
    /// still holds back are waited for: neither waits for a checkpoint.
    pub async fn map_room(&self, blocks: u64) {
        loop {
            let missing = self.with(|state| state.alloc.line_up(Stream::Map, blocks));
            if !missing.is_empty() {
                self.load_pages(missing).await;
                continue;
            }
            let again_at = self.with(|state| {
                let comes = state.alloc.free() < blocks && state.is_space_coming() && !state.is_read_only();
                comes.then(|| state.now + HELD_BACK_MICROS)
            });
            match again_at {
                Some(at) => self.wait_until(at).await,
                None => return,
            }
        }
    }

    /// Brings the bitmaps up to date with a checkpoint: `adopted` are used from now on, `dropped` no more. Calls `write`
    /// with the pages to be written, and goes on when that ends. The catalog's own regions are left for its save.
    pub async fn save_bitmaps(
        &self,
        adopted: &Blocks,
        dropped: &Blocks,
        write: impl AsyncFn(Vec<PageWrite>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        adopted.require_regions().and_then(|()| dropped.require_regions())?;
        let of_catalog = self.with(|state| {
            let geometry = state.alloc.geometry();
            let regions = state.catalog.blocks().filter_map(|block| geometry.bit_of(block)).map(|(region, _)| region);
            let regions: Vec<u64> = regions.collect::<BTreeSet<u64>>().into_iter().collect();
            regions.iter().for_each(|region| state.alloc.hold(*region));
            state.alloc.begin_saving();
            regions
        });
        self.load_regions(&of_catalog).await?;
        let regions: BTreeSet<u64> = adopted.regions().chain(dropped.regions()).collect();
        let regions: Vec<u64> = regions.into_iter().collect();
        for batch in regions.chunks(READS_AT_ONCE) {
            // What is here stays until it is saved: nothing cools a held region.
            self.with(|state| batch.iter().for_each(|region| state.alloc.hold(*region)));
            self.load_regions(batch).await?;
            for region in batch {
                self.apply(*region, adopted.of_region(*region), dropped.of_region(*region)).await?;
            }
            let pages = self.with(|state| {
                let of_catalog = |region: &u64| of_catalog.binary_search(region).is_ok();
                let pages = batch.iter().filter(|region| !of_catalog(region));
                pages.filter_map(|region| state.alloc.save_region(*region)).collect()
            });
            write(pages).await?;
            self.with(|state| {
                let done = batch.iter().filter(|region| of_catalog.binary_search(region).is_err());
                done.for_each(|region| state.alloc.let_go(*region));
                state.alloc.pages_written();
            });
        }
        Ok(())
    }

    async fn apply(&self, region: u64, adopted: &[u16], dropped: &[u16]) -> Result<(), Failure> {
        let start = self.with(|state| state.alloc.geometry().region_start(region));
        for chunk in adopted.chunks(BLOCKS_PER_TURN) {
            self.with(|state| chunk.iter().for_each(|bit| state.alloc.adopt(start + u64::from(*bit))));
            self.give_way().await;
        }
        for chunk in dropped.chunks(BLOCKS_PER_TURN) {
            self.with(|state| chunk.iter().try_for_each(|bit| state.alloc.disown(start + u64::from(*bit))))?;
            self.give_way().await;
        }
        Ok(())
    }

    /// Marks what the journal names: nothing of it may be in use already. Errors name the block.
    pub async fn mark_named(&self, named: Vec<u64>) -> Result<(), Failure> {
        let (geometry, mut blocks) = (self.with(|state| state.alloc.geometry()), Blocks::default());
        for block in named {
            if !geometry.is_allocatable(block) {
                return Err(Failure::new(EIO, format!("the journal names block {block}, which cannot hold data")));
            }
            blocks.push(&geometry, block);
        }
        let regions: Vec<u64> = blocks.regions().collect();
        for batch in regions.chunks(READS_AT_ONCE) {
            self.with(|state| batch.iter().for_each(|region| state.alloc.hold(*region)));
            self.load_regions(batch).await?;
            self.with(|state| {
                for region in batch {
                    for bit in blocks.of_region(*region) {
                        let block = geometry.region_start(*region) + u64::from(*bit);
                        if state.alloc.is_busy(block) {
                            let message = format!("block {block} is named by a record and in use already");
                            return Err(Failure::new(EIO, format!("the journal contradicts the store: {message}")));
                        }
                        state.alloc.mark_busy(block);
                    }
                    state.alloc.let_go(*region);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
