//! A store in memory: what the checker reads and the engine's operations change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use tanada_disk::{Buf, DiskError, DiskOp, DiskResult};
use tanada_format::check::ReadAt;
use tanada_format::{BLOCK_BYTES, crc32c};

pub type Block = [u8; BLOCK_BYTES];

/// A device of a certain length over blocks that it shares with others; what was never written reads as zeros.
#[derive(Clone, Default)]
pub struct Image {
    /// With their checksums.
    shared: Arc<BTreeMap<u64, (Block, u32)>>,
    changed: BTreeMap<u64, Block>,
    pub length_blocks: u64,
}

static ZEROS: Block = [0; BLOCK_BYTES];
static ZEROS_CRC: LazyLock<u32> = LazyLock::new(|| crc32c(&ZEROS));

impl Image {
    pub fn new(bytes: u64) -> Image {
        Image { length_blocks: bytes / BLOCK_BYTES as u64, ..Image::default() }
    }

    /// Shares everything from now on: a clone copies no block.
    pub fn freeze(&mut self) {
        let kept = self.written(0..u64::MAX).into_iter();
        let blocks = kept.map(|block| (block, (*self.get(block), crc32c(self.get(block))))).collect();
        (self.shared, self.changed) = (Arc::new(blocks), BTreeMap::new());
    }

    pub fn get(&self, block: u64) -> &Block {
        let shared = || self.shared.get(&block).map(|(bytes, _)| bytes);
        self.changed.get(&block).or_else(shared).unwrap_or(&ZEROS)
    }

    pub fn crc(&self, block: u64) -> u32 {
        match (self.changed.get(&block), self.shared.get(&block)) {
            (Some(bytes), _) => crc32c(bytes),
            (None, Some((_, crc))) => *crc,
            (None, None) => *ZEROS_CRC,
        }
    }

    pub fn put(&mut self, block: u64, bytes: Block) {
        if block < self.length_blocks && *self.get(block) != bytes {
            self.changed.insert(block, bytes);
        }
    }

    /// Changes a block in place.
    pub fn edit(&mut self, block: u64, change: impl FnOnce(&mut Block)) {
        let mut bytes = *self.get(block);
        change(&mut bytes);
        self.put(block, bytes);
    }

    /// Blocks of the range with anything in them.
    pub fn written(&self, range: Range<u64>) -> BTreeSet<u64> {
        let shared = self.shared.range(range.clone()).map(|(block, _)| *block);
        let changed = self.changed.range(range).map(|(block, _)| *block);
        shared.chain(changed).filter(|block| *self.get(*block) != ZEROS).collect()
    }

    /// Does what the engine asks for.
    pub fn carry_out(&mut self, op: &DiskOp) -> DiskResult {
        match op {
            DiskOp::Read { at, length } => {
                let mut bytes = vec![0; *length as usize];
                self.read_at(*at, &mut bytes).map_err(|_| DiskError::EIO)?;
                Ok(Some(Buf::copy_from(&bytes)))
            }
            DiskOp::Write { at, parts } => {
                let chunks = parts.iter().flat_map(|part| part.as_chunks::<BLOCK_BYTES>().0);
                for (block, chunk) in (at / BLOCK_BYTES as u64..).zip(chunks) {
                    if block >= self.length_blocks {
                        return Err(DiskError::EIO);
                    }
                    self.put(block, *chunk);
                }
                Ok(None)
            }
            DiskOp::Grow { length } => {
                self.length_blocks = self.length_blocks.max(length / BLOCK_BYTES as u64);
                Ok(None)
            }
            DiskOp::Sync | DiskOp::Punch { .. } => Ok(None),
        }
    }
}

impl ReadAt for Image {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.length_blocks * BLOCK_BYTES as u64) {
            return Err(format!("{} bytes at {offset} are beyond the end", bytes.len()));
        }
        for (block, chunk) in (offset / BLOCK_BYTES as u64..).zip(bytes.chunks_mut(BLOCK_BYTES)) {
            chunk.copy_from_slice(&self.get(block)[..chunk.len()]);
        }
        Ok(())
    }
}
