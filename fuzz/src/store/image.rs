//! A store in memory: what the checker reads and the engine's operations change.

use std::collections::BTreeMap;
use std::rc::Rc;

use tanada_disk::{Buf, DiskError, DiskOp, DiskResult};
use tanada_format::BLOCK_BYTES;
use tanada_format::check::ReadAt;

pub type Block = [u8; BLOCK_BYTES];

/// A device of a certain length; what was never written reads as zeros.
#[derive(Clone, Default)]
pub struct Image {
    blocks: BTreeMap<u64, Rc<Block>>,
    pub length_blocks: u64,
}

impl Image {
    pub fn new(bytes: u64) -> Image {
        Image { blocks: BTreeMap::new(), length_blocks: bytes / BLOCK_BYTES as u64 }
    }

    pub fn get(&self, block: u64) -> Block {
        self.blocks.get(&block).map_or([0; BLOCK_BYTES], |bytes| **bytes)
    }

    pub fn put(&mut self, block: u64, bytes: Block) {
        if block < self.length_blocks {
            self.blocks.insert(block, Rc::new(bytes));
        }
    }

    /// Changes a block in place.
    pub fn edit(&mut self, block: u64, change: impl FnOnce(&mut Block)) {
        let mut bytes = self.get(block);
        change(&mut bytes);
        self.put(block, bytes);
    }

    /// The block reads as zeros from now on.
    pub fn forget(&mut self, block: u64) {
        self.blocks.remove(&block);
    }

    /// Blocks that were ever written.
    pub fn written(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
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
                let mut block = at / BLOCK_BYTES as u64;
                for chunk in parts.iter().flat_map(|part| part.as_chunks::<BLOCK_BYTES>().0) {
                    if block >= self.length_blocks {
                        return Err(DiskError::EIO);
                    }
                    self.put(block, *chunk);
                    block += 1;
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
