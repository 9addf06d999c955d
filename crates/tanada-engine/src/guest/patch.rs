//! Read-modify-write: parts of blocks that a guest changes.

use tanada_disk::Buf;

use crate::failure::Failure;
use crate::guest::OpId;
use crate::guest::data::zero_block;
use crate::state::{Handle, Patch};
use crate::versions::VersionId;

impl Handle {
    /// Reads, verifies and changes a part of one block, and queues the whole (W2).
    pub async fn patch(self, op: OpId, place: u64, at: usize, patch: Patch) {
        let Some(head) = self.with(|state| state.ops.get(&op).map(|op| op.head)) else { return };
        let result = self.patched(head, place, at, patch).await;
        self.with(|state| {
            match result {
                Ok(buf) => state.push_data(op, head, place, buf),
                Err(failure) => return state.part_failed(op, failure),
            }
            state.part_done(op);
        });
    }

    async fn patched(&self, head: VersionId, place: u64, at: usize, patch: Patch) -> Result<Buf, Failure> {
        let _reading = self.reading();
        let old = self.fetch_block(head, place).await?;
        let mut block = zero_block();
        let bytes = block.as_mut_slice();
        if let Some(old) = old {
            bytes.copy_from_slice(&old);
        }
        match patch {
            Patch::Bytes(new) => bytes[at..at + new.len()].copy_from_slice(&new),
            Patch::Zeros(length) => bytes[at..at + length].fill(0),
        }
        Ok(block.freeze())
    }
}
