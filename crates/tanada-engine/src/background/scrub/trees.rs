//! Scrubbing what volumes and generations hold: a stretch of 256 MiB of places at a time, all versions side by side.

use std::collections::BTreeMap;
use std::rc::Rc;

use tanada_format::node::{slot_of, span_blocks};
use tanada_format::{FANOUT, Node, Pointer, ROOT_LEVEL, VersionKind, VersionState, crc32c};
use uuid::Uuid;

use super::{DamagedPart, ScrubDamage, Scrubber, Stopped};
use crate::map::tree::NodeSource;
use crate::space::releases::Reading;
use crate::state::{BLOCK, State};
use crate::versions::VersionId;

/// A stretch is what one node of this level maps: 256 MiB.
const STRETCH_LEVEL: u8 = 1;

/// Blocks in one device read at most, 256 KiB: a guest's read waits behind no more than that.
const READ_BLOCKS_MAX: usize = 64;

/// Nodes looked up between two turns: some 200 us where all are in the cache.
const LOOKED_UP_MAX: usize = 1_000;

/// A version whose content is scrubbed: its tree, and the epoch up to which an ancestor answers for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Source {
    version: VersionId,
    tree: Pointer,
    limit: u64,
}

/// Where a version goes on: its first stretch with something of its own that ends behind the place asked for.
pub struct Ahead {
    source: Source,
    next: Option<(u64, Pointer)>,
}

/// One version's part in a stretch.
struct Part {
    source: Source,
    node: Pointer,
}

impl Scrubber {
    /// Scrubs the next stretch that ends behind `from`, from there on; where to go on, `None` at the end of everything.
    pub async fn stretch(&mut self, from: u64) -> Result<Option<u64>, Stopped> {
        let reading = self.handle.reading();
        let Some((start, parts)) = self.find(from, &reading).await? else { return Ok(None) };
        if start >= from {
            for part in &parts {
                self.node(part.source, part.node, STRETCH_LEVEL, start, &reading).await?;
            }
        }
        let first = from.max(start) - start;
        for slot in (first / span_blocks(0)) as usize..FANOUT {
            let place = start + slot as u64 * span_blocks(0);
            for part in &parts {
                self.give_way().await;
                // Where the node is damaged, that is on record.
                let Ok(node) = self.handle.node(part.node).await else { continue };
                self.leaf(part.source, node.pointers[slot], place, &reading).await?;
            }
            let next = place + span_blocks(0);
            if reading.is_overtaken() {
                return Ok(Some(next));
            }
            self.advance(next)?;
        }
        Ok(Some(start + span_blocks(STRETCH_LEVEL)))
    }

    /// The first stretch that ends behind `from` and in which anybody has something of its own, and who does.
    async fn find(&mut self, from: u64, reading: &Reading) -> Result<Option<(u64, Vec<Part>)>, Stopped> {
        let sources = self.handle.with(|state| state.scrub_sources());
        let mut known = std::mem::take(&mut self.ahead);
        for source in sources {
            // A tree never changes: what was found in it stays, until the place asked for is beyond it.
            let is_good = |ahead: &Ahead| {
                ahead.source == source && ahead.next.is_none_or(|(start, _)| start + span_blocks(STRETCH_LEVEL) > from)
            };
            let ahead = match known.remove(&source.version).filter(is_good) {
                Some(ahead) => ahead,
                None => {
                    let next = self.next_below(source, source.tree, ROOT_LEVEL, 0, from, reading).await?;
                    Ahead { source, next }
                }
            };
            self.ahead.insert(source.version, ahead);
        }
        Ok(first_stretch(&self.ahead))
    }

    /// The first node of the stretch level below `pointer` that ends behind `from`, with its first place.
    async fn next_below(
        &mut self,
        source: Source,
        pointer: Pointer,
        level: u8,
        start: u64,
        from: u64,
        reading: &Reading,
    ) -> Result<Option<(u64, Pointer)>, Stopped> {
        if !pointer.has_block() || pointer.birth() <= source.limit || start + span_blocks(level) <= from {
            return Ok(None);
        }
        if level == STRETCH_LEVEL {
            return Ok(Some((start, pointer)));
        }
        self.give_way().await;
        // What begins behind `from` is entered now; what began before it has been verified when it was.
        let node = match start >= from {
            true => self.node(source, pointer, level, start, reading).await?,
            false => self.handle.node(pointer).await.ok(),
        };
        let Some(node) = node else { return Ok(None) };
        let first = if from > start { slot_of(from, level) } else { 0 };
        for slot in first..FANOUT {
            let (child, below) = (node.pointers[slot], start + slot as u64 * span_blocks(level - 1));
            let found = Box::pin(self.next_below(source, child, level - 1, below, from, reading)).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Verifies a node on the device. Where it is damaged, the cache may still have it.
    async fn node(
        &self,
        source: Source,
        pointer: Pointer,
        level: u8,
        start: u64,
        reading: &Reading,
    ) -> Result<Option<Rc<Node>>, Stopped> {
        let store_blocks = self.handle.with(|state| state.alloc.geometry().store_blocks());
        let node = match self.verified(pointer).await {
            Ok(bytes) => Node::decode(&bytes, pointer.crc(), store_blocks).map_err(|error| error.to_string()),
            Err(said) => Err(said),
        };
        self.pace(1, reading).await?;
        Ok(match node {
            Ok(node) => {
                let node = Rc::new(node);
                self.report_lost(source, pointer, &node, level, start).await;
                if level > 0 {
                    // Guests' leaves stay; what leads to the next stretch is looked up soon.
                    self.handle.with(|state| state.cache.insert(pointer, Rc::clone(&node)));
                }
                Some(node)
            }
            Err(said) => {
                self.damaged(source, DamagedPart::Map { level }, pointer, start, span_blocks(level), said).await;
                self.handle.with(|state| state.cache.get(pointer))
            }
        })
    }

    /// Names what a node, found behind `pointer`, says is lost and the version answers for.
    async fn report_lost(&self, source: Source, pointer: Pointer, node: &Node, level: u8, start: u64) {
        let is_own = |slot: &usize| node.pointers[*slot].is_lost() && node.pointers[*slot].birth() > source.limit;
        let slots: Vec<usize> = (0..FANOUT).filter(is_own).collect();
        let step = span_blocks(level) / FANOUT as u64;
        let part = level.checked_sub(1).map_or(DamagedPart::Data, |level| DamagedPart::Map { level });
        for run in slots.chunk_by(|a, b| a + 1 == *b) {
            let (place, blocks) = (start + run[0] as u64 * step, run.len() as u64 * step);
            let said = "what was here is lost with a map node that was damaged".to_owned();
            self.damaged(source, part, pointer, place, blocks, said).await;
        }
    }

    /// Verifies a leaf and the data under it that the version answers for.
    async fn leaf(&self, source: Source, leaf: Pointer, start: u64, reading: &Reading) -> Result<(), Stopped> {
        if !leaf.has_block() || leaf.birth() <= source.limit {
            return Ok(());
        }
        let Some(node) = self.node(source, leaf, 0, start, reading).await? else { return Ok(()) };
        let mut own: Vec<(Pointer, u64)> = (node.pointers.iter().copied())
            .zip(start..)
            .filter(|(pointer, _)| pointer.has_block() && pointer.birth() > source.limit)
            .collect();
        own.sort_unstable_by_key(|(pointer, _)| pointer.block());
        for neighbours in own.chunk_by(|(a, _), (b, _)| a.block() + 1 == b.block()) {
            for run in neighbours.chunks(READ_BLOCKS_MAX) {
                self.data(source, run).await;
                self.pace(run.len() as u64, reading).await?;
            }
        }
        Ok(())
    }

    /// Verifies neighbouring blocks of data.
    async fn data(&self, source: Source, run: &[(Pointer, u64)]) {
        let Some((first, _)) = run.first() else { return };
        let bytes = self.handle.read_blocks(first.block(), (run.len() as u64 * BLOCK) as u32).await;
        for (n, (pointer, place)) in run.iter().enumerate() {
            let is_well = bytes.as_ref().is_ok_and(|bytes| {
                let block = bytes.slice(n * BLOCK as usize..(n + 1) * BLOCK as usize);
                crc32c(&block) == pointer.crc()
            });
            if !is_well && let Err(said) = self.verified(*pointer).await {
                self.damaged(source, DamagedPart::Data, *pointer, *place, 1, said).await;
            }
        }
    }

    async fn damaged(
        &self,
        source: Source,
        part: DamagedPart,
        pointer: Pointer,
        place: u64,
        blocks: u64,
        message: String,
    ) {
        let (volume, generation) = self.names(source.version, pointer, place).await;
        self.handle.with(|state| {
            let size = state.versions.get(source.version).map_or(u64::MAX, |version| version.size);
            let offset = place * BLOCK;
            let length = (blocks * BLOCK).min(size.saturating_sub(offset));
            let block = pointer.block();
            let damage = ScrubDamage { part, block, volume, generation, offset, length, message };
            state.scrub_damaged(self.run, damage);
        });
    }

    /// Under which names clients know the block behind `pointer`, for which version `id` answers: a volume that holds it,
    /// or else one that goes on from the generation; and the oldest generation that does. None has it where a ghost
    /// alone is left of all who did.
    async fn names(&self, id: VersionId, pointer: Pointer, place: u64) -> (Option<Uuid>, Option<Uuid>) {
        let below = self.handle.with(|state| state.scrub_below(id));
        let (mut volume, mut generation, mut heir) = (None, None, None);
        for Named { uuid, kind, tree } in below {
            let (name, is_head) = match kind {
                VersionKind::Head => (&mut volume, true),
                VersionKind::Generation => (&mut generation, false),
            };
            heir = heir.or(is_head.then_some(uuid));
            if name.is_none() && self.leads_to(tree, pointer, place).await {
                *name = Some(uuid);
            }
            if volume.is_some() {
                break;
            }
        }
        (volume.or(heir.filter(|_| generation.is_some())), generation)
    }

    /// Whether `tree` has `pointer` on its way to `place`.
    async fn leads_to(&self, tree: Pointer, pointer: Pointer, place: u64) -> bool {
        let mut at = tree;
        for level in (0..=ROOT_LEVEL).rev() {
            if at == pointer || !at.has_block() {
                break;
            }
            let Ok(node) = self.handle.node(at).await else { return false };
            at = node.pointers[slot_of(place, level)];
        }
        at == pointer
    }

    /// Lets guests in after many look-ups that needed no device.
    async fn give_way(&mut self) {
        self.looked_up += 1;
        if self.looked_up >= LOOKED_UP_MAX {
            self.looked_up = 0;
            self.handle.next_turn().await;
        }
    }
}

fn first_stretch(ahead: &BTreeMap<VersionId, Ahead>) -> Option<(u64, Vec<Part>)> {
    let start = ahead.values().filter_map(|ahead| ahead.next).map(|(start, _)| start).min()?;
    let part = |ahead: &Ahead| {
        let (at, node) = ahead.next?;
        (at == start).then_some(Part { source: ahead.source, node })
    };
    Some((start, ahead.values().filter_map(part).collect()))
}

/// A version that clients know, and its tree in the last checkpoint.
struct Named {
    uuid: Uuid,
    kind: VersionKind,
    tree: Pointer,
}

impl State {
    /// What clients know of version `id` and of all that came from it, older ones first.
    fn scrub_below(&self, id: VersionId) -> Vec<Named> {
        let (mut named, mut below) = (Vec::new(), vec![id]);
        while let Some(version) = below.pop().and_then(|id| self.versions.get(id)) {
            if version.is_live() && !version.hidden {
                named.push(Named { uuid: version.uuid, kind: version.kind, tree: version.tree });
            }
            below.extend(version.children.iter().rev());
        }
        named
    }

    /// Everything with content of its own, as of the last checkpoint.
    fn scrub_sources(&self) -> Vec<Source> {
        let sources = self.versions.iter().filter(|version| version.state != VersionState::Dying);
        let sources = sources.map(|version| Source {
            version: version.id,
            tree: version.tree,
            limit: self.scrub_limit(version.parent),
        });
        sources.filter(|source| !source.tree.is_null() && source.tree.birth() > source.limit).collect()
    }

    /// The cut of the nearest ancestor that is scrubbed itself, beginning with `id`; 0 without one.
    fn scrub_limit(&self, id: VersionId) -> u64 {
        let mut ancestor = self.versions.get(id);
        while let Some(version) = ancestor {
            if version.state != VersionState::Dying {
                return version.ended;
            }
            ancestor = self.versions.get(version.parent);
        }
        0
    }
}
