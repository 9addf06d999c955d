//! What is mapped, and what changed since a generation: extents.
//!
//! Holes of whole subtrees are passed over in one step, not place by place: a thin volume of 64 TiB has 17 billion places
//! and may have a dozen leaves. What changed is read from the trees of the last checkpoint ([`crate::map::tree::diff`],
//! V11).

use tanada_format::node::{slot_of, span_blocks};
use tanada_format::{Pointer, ROOT_LEVEL};
use uuid::Uuid;

use crate::api::{Extent, ExtentKind, Reply, Request, RequestId};
use crate::failure::{EINVAL, EIO, ENOENT, Failure};
use crate::map::tree::NodeSource;
use crate::map::tree::diff::diff;
use crate::state::{BLOCK, Handle};
use crate::versions::{Version, VersionId};

impl Handle {
    /// The extents of a range, mapped or not.
    async fn extents(
        &self,
        version: VersionId,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, Failure> {
        let _reading = self.reading();
        let (first, end) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
        let mut list = ExtentList::new(offset, offset + length, extents_max);
        let mut place = first;
        while place < end && !list.is_full() {
            let hole = self.hole_from(version, place).await?.min(end - place);
            if hole > 0 {
                list.push(place, hole, ExtentKind::Hole);
                place += hole;
                continue;
            }
            let count = (span_blocks(0) - place % span_blocks(0)).min(end - place);
            for pointer in self.look_up(version, place, count).await? {
                list.push(place, 1, if pointer.is_null() { ExtentKind::Hole } else { ExtentKind::Data });
                place += 1;
            }
        }
        Ok(list.finish())
    }

    /// The number of places from `place` on that are certainly holes because a whole subtree is; 0 where it takes a
    /// look at the leaf. Call it while reading is counted (B3).
    async fn hole_from(&self, version: VersionId, place: u64) -> Result<u64, Failure> {
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

    /// Makes sure that both are in the last checkpoint's trees as they are now (V11). A head is taken as it is at the
    /// checkpoint asked for.
    async fn in_checkpoint(&self, ids: &[Uuid]) -> Result<Vec<VersionId>, Failure> {
        let found = self.with(|state| {
            ids.iter()
                .map(|id| state.live(*id).map(|version| (version.id, version.is_settled())))
                .collect::<Result<Vec<_>, Failure>>()
        })?;
        if found.iter().any(|(_, settled)| !settled) {
            self.checkpointed().await?;
        }
        Ok(found.into_iter().map(|(id, _)| id).collect())
    }

    /// Changed extents of `from`..`to` as of the last checkpoint, with the unchanged ones between them.
    pub async fn difference(
        &self,
        from: Uuid,
        to: Uuid,
        offset: u64,
        length: u64,
        extents_max: u32,
    ) -> Result<Vec<Extent>, Failure> {
        let ids = self.in_checkpoint(&[from, to]).await?;
        let _reading = self.reading();
        let (old, new, size) = self.with(|state| {
            let (from, to) = (ids[0], ids[1]);
            // What was destroyed while the checkpoint was waited for may have been given back in part (V7).
            let live = |id| state.versions.get(id).filter(|version| version.is_live());
            let (Some(a), Some(b)) = (live(from), live(to)) else {
                return Err(Failure::new(ENOENT, "a generation went away while it was compared"));
            };
            if state.versions.family(from) != state.versions.family(to) {
                let message = format!("{} and {} are of different families: they share no history", a.uuid, b.uuid);
                return Err(Failure::new(EINVAL, message));
            }
            Ok((a.tree, b.tree, a.size.max(b.size)))
        })?;
        let end = offset.saturating_add(length).min(size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let runs = diff(self, old, new, offset / BLOCK, end.div_ceil(BLOCK), extents_max.max(1) as usize).await?;
        let complete = runs.len() < extents_max.max(1) as usize;
        let mut list = ExtentList::new(offset, end, usize::MAX - 1);
        let mut place = offset / BLOCK;
        for run in runs {
            list.push(place, run.place - place, ExtentKind::Same);
            list.push(run.place, run.count, if run.mapped { ExtentKind::Data } else { ExtentKind::Hole });
            place = run.place + run.count;
        }
        if complete {
            list.push(place, end.div_ceil(BLOCK).saturating_sub(place), ExtentKind::Same);
        }
        Ok(list.finish())
    }

    /// Answers a guest's question for extents.
    pub async fn guest_extents(self, request: RequestId, body: Request) {
        let Request::Extents { export, offset, length, extents_max, since } = body else { return };
        let held = self.with(|state| state.exports.get(&export.0).map_or((0, Uuid::nil()), |e| (e.version, e.uuid)));
        let result = match since {
            None => self.extents(held.0, offset, length, extents_max as usize).await,
            Some(since) => self.difference(since, held.1, offset, length, extents_max).await.map(|mut extents| {
                extents.truncate(extents_max.max(1) as usize);
                extents
            }),
        };
        self.with(|state| state.answer(request, export.0, result.map(Reply::Extents)));
    }
}

impl Version {
    /// Its tree in the last checkpoint is all there is to it, as far as it concerns others.
    fn is_settled(&self) -> bool {
        self.own && self.delta.is_empty() && self.frozen.is_empty()
    }
}

/// Collects neighbouring extents of one kind, within a range of bytes.
pub struct ExtentList {
    start: u64,
    end: u64,
    extents_max: usize,
    list: Vec<Extent>,
}

impl ExtentList {
    pub fn new(start: u64, end: u64, extents_max: usize) -> ExtentList {
        ExtentList { start, end, extents_max: extents_max.max(1), list: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.list.len() > self.extents_max
    }

    pub fn push(&mut self, place: u64, count: u64, kind: ExtentKind) {
        let from = (place * BLOCK).max(self.start);
        let to = ((place + count) * BLOCK).min(self.end);
        if from >= to {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.kind == kind => last.length = to - last.offset,
            _ => self.list.push(Extent { offset: from, length: to - from, kind }),
        }
    }

    pub fn finish(mut self) -> Vec<Extent> {
        self.list.truncate(self.extents_max);
        self.list
    }
}
