//! Holes of whole subtrees: what nobody ever mapped is passed over in one step, not place by place. A thin volume of
//! 64 TiB has 17 billion places and may have a dozen leaves.

use tanada_format::node::{slot_of, span_blocks};
use tanada_format::{Pointer, ROOT_LEVEL};

use crate::failure::{EIO, Failure};
use crate::map::tree::NodeSource;
use crate::state::Handle;
use crate::versions::VersionId;

impl Handle {
    /// The number of places from `place` on that are certainly holes because a whole subtree is; 0 where it takes a
    /// look at the leaf. Call it while reading is counted (B3).
    pub async fn hole_from(&self, version: VersionId, place: u64) -> Result<u64, Failure> {
        let layers = self.with(|state| {
            let version = state.versions.get(version)?;
            Some((version.delta.uniform(place), version.frozen.uniform(place), version.tree))
        });
        let Some((delta, frozen, tree)) = layers else {
            return Err(Failure::new(EIO, "the volume was replaced while it was read"));
        };
        let level = match (delta, frozen) {
            (Some((level, true)), _) => Some(level),
            (Some((level, false)), Some((below, true))) => Some(level.min(below)),
            (Some((level, false)), Some((below, false))) => {
                self.null_level(tree, place).await?.map(|null| null.min(level).min(below))
            }
            _ => None,
        };
        Ok(level.map_or(0, |level| span_blocks(level) - place % span_blocks(level)))
    }

    /// The level of the largest subtree around `place` that `tree` does not have.
    async fn null_level(&self, tree: Pointer, place: u64) -> Result<Option<u8>, Failure> {
        let mut pointer = tree;
        for level in (0..=ROOT_LEVEL).rev() {
            if !pointer.has_block() {
                return Ok(pointer.is_null().then_some(level));
            }
            if level > 0 {
                pointer = self.node(pointer).await?.pointers[slot_of(place, level)];
            }
        }
        Ok(None)
    }
}
