//! The version tree: generations and heads, each with its parent (store notes section 4).
//!
//! ```text
//!   snapshot of H:   P -- H    becomes   P -- G -- H      G takes H's tree, delta and parent (V3); the epoch moves
//!   clone of G:      P -- G    becomes   P -- G -- C      C starts over G's tree
//!   revert of H to G:          G -- H' under H's name; H is dying (V9)
//!   destroy:         dying with at most one child, ghost with several (V7, V8)
//! ```
//! Each change here is one journal record, applied in the same way when it happens and when it is replayed. Whatever
//! needs to read or free is left to the next cut ([`crate::versions::cut`]) and to the deletion walk.

pub mod cut;

use std::collections::{BTreeMap, BTreeSet};

use tanada_format::node::span_blocks;
use tanada_format::{Member, Pointer, Record, TREE_BLOCKS, VersionKind, VersionState};
use uuid::Uuid;

use crate::map::delta::{Change, Delta, DeltaCost};
use crate::map::tree::count::Exclusive;

/// Places that one version may have unmapped in an era without a generation that takes them (V10): 256 MiB.
pub const UNMAPPED_MAX: u64 = span_blocks(1);

/// Id of a version; never reused, 0 is none.
pub type VersionId = u64;

#[derive(Debug, Clone)]
pub struct Version {
    pub id: VersionId,
    pub uuid: Uuid,
    pub parent: VersionId,
    pub children: BTreeSet<VersionId>,
    /// S(v): the epoch that ended when it was taken; 0 for heads.
    pub ended: u64,
    /// Bytes.
    pub size: u64,
    pub kind: VersionKind,
    pub state: VersionState,
    pub hidden: bool,
    /// Rule V6: places before this one are walked.
    pub cursor: u64,
    /// Slot in the catalog's version table, given at the first cut.
    pub slot: Option<u64>,
    /// The tree in the last checkpoint: its own, or that of the nearest ancestor that has one.
    pub tree: Pointer,
    pub own: bool,
    /// Changes since the last cut.
    pub delta: Delta,
    /// Changes that the running checkpoint merges.
    pub frozen: Delta,
    /// Places unmapped since the last cut, or since its parent was taken, if that was later.
    pub unmapped: u64,
    /// Which item of the running checkpoint will become its tree.
    pub merging: Option<usize>,
    /// Last journal block with a record of it.
    pub last_seq: u64,
    /// Blocks mapped as of `tree`, where known.
    pub mapped: Option<u64>,
    /// Blocks that only it holds, as of `tree`, where known.
    pub exclusive: Option<Exclusive>,
}

impl Version {
    fn new(id: VersionId, uuid: Uuid, kind: VersionKind, size: u64) -> Version {
        Version {
            id,
            uuid,
            parent: 0,
            children: BTreeSet::new(),
            ended: 0,
            size,
            kind,
            state: VersionState::Live,
            hidden: false,
            cursor: 0,
            slot: None,
            tree: Pointer::NULL,
            own: false,
            delta: Delta::default(),
            frozen: Delta::default(),
            unmapped: 0,
            merging: None,
            last_seq: 0,
            mapped: None,
            exclusive: None,
        }
    }

    pub fn is_live(&self) -> bool {
        self.state == VersionState::Live
    }

    /// As a checkpoint keeps it.
    pub fn record(&self) -> tanada_format::Version {
        tanada_format::Version {
            id: self.id,
            parent: self.parent,
            uuid: self.uuid,
            ended: self.ended,
            size: self.size,
            tree: self.tree,
            cursor: self.cursor,
            instance: 0,
            kind: self.kind,
            state: self.state,
            hidden: self.hidden,
        }
    }
}

/// A ghost, for counting what it holds.
#[derive(Debug, Clone)]
pub struct Ghost {
    pub id: VersionId,
    pub tree: Pointer,
    /// Trees of the nearest versions below that are no ghosts.
    pub below: Vec<Pointer>,
    /// S(parent).
    pub parent_cut: u64,
}

/// All versions of a store.
#[derive(Debug, Default)]
pub struct Versions {
    by_id: BTreeMap<VersionId, Version>,
    /// Live versions by name.
    names: BTreeMap<Uuid, VersionId>,
    /// Versions that are dying.
    dying: BTreeSet<VersionId>,
    /// The running epoch, from 1 on.
    pub epoch: u64,
    pub next_id: VersionId,
    /// Cost of all deltas of the current era.
    pub cost: DeltaCost,
    /// Blocks of entries of this era that were replaced before any checkpoint saw them; released after the next (B1).
    pub dropped: Vec<u64>,
}

/// Why a record cannot be applied: the journal and the versions contradict each other.
pub type Contradiction = String;

impl Versions {
    /// None yet; the next gets the id `next_id`.
    pub fn new(epoch: u64, next_id: VersionId) -> Versions {
        Versions { epoch, next_id, ..Versions::default() }
    }

    pub fn get(&self, id: VersionId) -> Option<&Version> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: VersionId) -> Option<&mut Version> {
        self.by_id.get_mut(&id)
    }

    pub fn named(&self, uuid: Uuid) -> Option<&Version> {
        self.names.get(&uuid).and_then(|id| self.by_id.get(id))
    }

    /// How many there are, those that are dying and ghosts among them.
    pub fn len(&self) -> u64 {
        self.by_id.len() as u64
    }

    pub fn iter(&self) -> impl Iterator<Item = &Version> {
        self.by_id.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Version> {
        self.by_id.values_mut()
    }

    /// Versions that are dying, in the order of their ids.
    pub fn dying(&self) -> impl Iterator<Item = &Version> {
        self.dying.iter().filter_map(|id| self.by_id.get(id))
    }

    pub fn has_dying(&self) -> bool {
        !self.dying.is_empty()
    }

    /// S of the version's parent; 0 without one.
    pub fn parent_cut(&self, id: VersionId) -> u64 {
        self.get(id).and_then(|version| self.get(version.parent)).map_or(0, |parent| parent.ended)
    }

    /// The oldest ancestor.
    pub fn family(&self, id: VersionId) -> VersionId {
        let mut at = id;
        while let Some(parent) = self.get(at).map(|version| version.parent).filter(|parent| *parent != 0) {
            at = parent;
        }
        at
    }

    /// Takes over a version from a checkpoint. `load_children` must follow when all are there. Errors: an id or a name
    /// that another one has.
    pub fn load(&mut self, record: &tanada_format::Version, slot: u64) -> Result<(), Contradiction> {
        let mut version = Version::new(record.id, record.uuid, record.kind, record.size);
        version.parent = record.parent;
        version.ended = record.ended;
        version.state = record.state;
        version.hidden = record.hidden;
        version.cursor = record.cursor;
        version.slot = Some(slot);
        version.tree = record.tree;
        version.own = true;
        if version.id >= self.next_id || version.ended >= self.epoch {
            return Err(format!(
                "version {} ended {}, but the next id is {} and the epoch {}",
                version.id, version.ended, self.next_id, self.epoch
            ));
        }
        if version.is_live() && self.names.insert(version.uuid, version.id).is_some() {
            return Err(format!("two versions have the name {}", version.uuid));
        }
        if version.state == VersionState::Dying {
            self.dying.insert(version.id);
        }
        match self.by_id.insert(version.id, version) {
            Some(twin) => Err(format!("two versions have the id {}", twin.id)),
            None => Ok(()),
        }
    }

    /// Fills in the children of loaded versions. Errors: a parent that does not exist, is a head or ended later than its
    /// child (so that there are no circles); too many children for a dying version, too few for a ghost.
    pub fn load_children(&mut self) -> Result<(), Contradiction> {
        let pairs: Vec<(VersionId, VersionId, u64)> = self
            .iter()
            .filter(|version| version.parent != 0)
            .map(|version| (version.parent, version.id, version.ended))
            .collect();
        for (parent, child, ended) in pairs {
            let parent = self.require(parent)?;
            if parent.kind == VersionKind::Head || ended != 0 && parent.ended >= ended {
                return Err(format!(
                    "version {child}, ended {ended}, over version {}, ended {}",
                    parent.id, parent.ended
                ));
            }
            parent.children.insert(child);
        }
        let wrong = self.iter().find(|version| match version.state {
            VersionState::Live => false,
            VersionState::Dying => version.children.len() > 1,
            VersionState::Ghost => version.children.len() < 2,
        });
        match wrong {
            Some(version) => {
                Err(format!("{:?} version {} has {} children", version.state, version.id, version.children.len()))
            }
            None => Ok(()),
        }
    }

    fn require(&mut self, id: VersionId) -> Result<&mut Version, Contradiction> {
        self.by_id.get_mut(&id).ok_or_else(|| format!("version {id} does not exist"))
    }

    fn insert(&mut self, version: Version) -> Result<(), Contradiction> {
        if self.by_id.contains_key(&version.id) {
            return Err(format!("version {} exists already", version.id));
        }
        self.next_id = self.next_id.max(version.id + 1);
        if version.is_live() && self.names.insert(version.uuid, version.id).is_some() {
            return Err(format!("there is a version of the name {} already", version.uuid));
        }
        if let Some(parent) = self.by_id.get_mut(&version.parent) {
            parent.children.insert(version.id);
        }
        let id = version.id;
        self.by_id.insert(id, version);
        self.touch(id);
        Ok(())
    }

    /// Forgets what was counted of a version and its relatives, because one of them changes.
    pub fn touch(&mut self, id: VersionId) {
        let Some(version) = self.by_id.get_mut(&id) else { return };
        version.exclusive = None;
        let (parent, children) = (version.parent, version.children.clone());
        for relative in children.into_iter().chain([parent]) {
            if let Some(relative) = self.by_id.get_mut(&relative) {
                relative.exclusive = None;
            }
        }
    }

    /// What a record does to the versions; nothing where it is about something else.
    pub fn apply(&mut self, record: &Record) -> Result<(), Contradiction> {
        match record {
            Record::Map { head, place, block, crcs } => self.map(*head, *place, *block, crcs),
            Record::Unmap { head, place, blocks } => self.unmap(*head, *place, *blocks),
            Record::Snapshot { first_id, ended, hidden, members } => self.snapshot(*first_id, *ended, *hidden, members),
            Record::Create { head, size, uuid } => self.create(*head, *size, *uuid),
            Record::Clone { head, generation, uuid } => self.clone_generation(*head, *generation, *uuid),
            Record::Revert { head, generation, old_head } => self.revert(*head, *generation, *old_head),
            Record::Destroy { version } => self.destroy(*version),
            Record::Resize { head, size } => self.resize(*head, *size),
            Record::Grow { .. } | Record::Recovered { .. } => Ok(()),
        }
    }

    /// Maps a run of blocks in a head; the birth is the epoch of now (V1).
    pub fn map(&mut self, head: VersionId, place: u64, block: u64, crcs: &[u32]) -> Result<(), Contradiction> {
        let pointers: Vec<Pointer> =
            (block..).zip(crcs).map(|(block, crc)| Pointer::new(block, self.epoch, *crc)).collect();
        self.change(head, |delta, change| delta.map(place, &pointers, change))
    }

    pub fn unmap(&mut self, head: VersionId, place: u64, count: u64) -> Result<(), Contradiction> {
        self.change(head, |delta, change| delta.unmap(place, count, change))?;
        let head = self.require(head)?;
        head.unmapped = head.unmapped.saturating_add(count);
        Ok(())
    }

    /// True where a head may unmap `count` places more in this era: what the next checkpoint has to free for it stays
    /// within one subtree's worth (V10). Where its parent was taken in this era, all that was there before is that one's.
    pub fn may_unmap(&self, head: VersionId, count: u64) -> bool {
        let Some(version) = self.get(head) else { return true };
        version.unmapped.saturating_add(count) <= UNMAPPED_MAX
            || self.get(version.parent).is_some_and(|parent| parent.slot.is_none())
    }

    fn change(&mut self, head: VersionId, act: impl FnOnce(&mut Delta, &mut Change<'_>)) -> Result<(), Contradiction> {
        let own_after = self.parent_cut(head);
        let version = self.by_id.get_mut(&head).ok_or_else(|| format!("head {head} does not exist"))?;
        if version.kind != VersionKind::Head || !version.is_live() {
            return Err(format!("version {head} is no live head"));
        }
        let mut change = Change { birth: self.epoch, own_after, cost: &mut self.cost, dropped: &mut self.dropped };
        act(&mut version.delta, &mut change);
        Ok(())
    }

    pub fn create(&mut self, head: VersionId, size: u64, uuid: Uuid) -> Result<(), Contradiction> {
        self.insert(Version::new(head, uuid, VersionKind::Head, size))
    }

    /// Cuts all members at once; the epoch moves.
    pub fn snapshot(
        &mut self,
        first_id: VersionId,
        ended: u64,
        hidden: bool,
        members: &[Member],
    ) -> Result<(), Contradiction> {
        if ended != self.epoch {
            return Err(format!("a snapshot ends epoch {ended}, running is {}", self.epoch));
        }
        for (id, member) in (first_id..).zip(members) {
            let head = self.require(member.head)?;
            if head.kind != VersionKind::Head || !head.is_live() {
                return Err(format!("version {} is no live head", member.head));
            }
            if (first_id..id).contains(&head.parent) {
                return Err(format!("head {} is cut twice by one record", member.head));
            }
            let mut generation = head.clone();
            generation.id = id;
            generation.uuid = member.uuid;
            generation.children = BTreeSet::from([member.head]);
            generation.ended = ended;
            generation.kind = VersionKind::Generation;
            generation.hidden = hidden;
            generation.slot = None;
            head.parent = id;
            head.own = false;
            head.unmapped = 0;
            head.merging = None;
            let parent = generation.parent;
            self.insert(generation)?;
            if let Some(parent) = self.by_id.get_mut(&parent) {
                parent.children.remove(&member.head);
            }
        }
        self.epoch = ended + 1;
        Ok(())
    }

    fn head_over(&mut self, head: VersionId, generation: VersionId, uuid: Uuid) -> Result<(), Contradiction> {
        let over = self.require(generation)?;
        if over.kind != VersionKind::Generation || !over.is_live() {
            return Err(format!("version {generation} is no live generation"));
        }
        let mut version = Version::new(head, uuid, VersionKind::Head, over.size);
        version.parent = generation;
        version.tree = over.tree;
        version.delta = over.delta.clone();
        version.frozen = over.frozen.clone();
        version.mapped = over.mapped;
        self.insert(version)
    }

    pub fn clone_generation(
        &mut self,
        head: VersionId,
        generation: VersionId,
        uuid: Uuid,
    ) -> Result<(), Contradiction> {
        self.head_over(head, generation, uuid)
    }

    pub fn revert(&mut self, head: VersionId, generation: VersionId, old_head: VersionId) -> Result<(), Contradiction> {
        let old = self.require(old_head)?;
        if old.kind != VersionKind::Head {
            return Err(format!("version {old_head} is no head"));
        }
        let uuid = old.uuid;
        self.destroy(old_head)?;
        self.require(old_head)?.hidden = true; // its name goes on with the new head
        self.head_over(head, generation, uuid)
    }

    pub fn destroy(&mut self, id: VersionId) -> Result<(), Contradiction> {
        let version = self.require(id)?;
        if !version.is_live() {
            return Err(format!("version {id} is destroyed already"));
        }
        version.state = if version.children.len() > 1 { VersionState::Ghost } else { VersionState::Dying };
        let (uuid, dying) = (version.uuid, version.state == VersionState::Dying);
        self.names.remove(&uuid);
        if dying {
            self.dying.insert(id);
        }
        Ok(())
    }

    pub fn resize(&mut self, id: VersionId, size: u64) -> Result<(), Contradiction> {
        let version = self.require(id)?;
        if version.kind != VersionKind::Head || !version.is_live() {
            return Err(format!("version {id} is no live head"));
        }
        version.size = size;
        Ok(())
    }

    /// Takes a version out of the tree at a cut; its children become its parent's. A ghost parent with one child left
    /// is dying from now on.
    pub fn remove(&mut self, id: VersionId) -> Option<Version> {
        self.touch(id);
        let version = self.by_id.remove(&id)?;
        self.dying.remove(&id);
        for child in &version.children {
            if let Some(child) = self.by_id.get_mut(child) {
                child.parent = version.parent;
            }
        }
        if let Some(parent) = self.by_id.get_mut(&version.parent) {
            parent.children.remove(&id);
            parent.children.extend(&version.children);
            if parent.state == VersionState::Ghost && parent.children.len() < 2 {
                parent.state = VersionState::Dying;
                self.dying.insert(parent.id);
            }
        }
        Some(version)
    }

    /// All ghosts.
    pub fn ghosts(&self) -> Vec<Ghost> {
        let is_ghost = |version: &Version| version.state == VersionState::Ghost;
        let mut ghosts = Vec::new();
        for version in self.iter().filter(|version| is_ghost(version)) {
            let mut below = Vec::new();
            let mut open: Vec<VersionId> = version.children.iter().copied().collect();
            while let Some(child) = open.pop().and_then(|id| self.get(id)) {
                if is_ghost(child) {
                    open.extend(&child.children);
                } else {
                    below.push(child.tree);
                }
            }
            ghosts.push(Ghost { id: version.id, tree: version.tree, below, parent_cut: self.parent_cut(version.id) });
        }
        ghosts
    }

    /// What to walk next: one structural job per family, one begun goes first, then versions without children, which
    /// are one tree to read instead of two (V7). Both trees must be those of the last checkpoint (V4).
    pub fn next_to_walk(&self, is_stuck: impl Fn(VersionId) -> bool) -> Option<VersionId> {
        let ready = |version: &&Version| {
            let child_ready = version.children.iter().all(|child| self.get(*child).is_some_and(|child| child.own));
            version.own
                && version.delta.is_empty()
                && version.frozen.is_empty()
                && version.children.len() < 2
                && child_ready
                && version.cursor < TREE_BLOCKS
                && !is_stuck(version.id)
        };
        let begun: Vec<&Version> = self.dying().filter(|version| version.cursor > 0).collect();
        let families: BTreeSet<VersionId> = begun.iter().map(|version| self.family(version.id)).collect();
        if let Some(version) = begun.into_iter().find(ready) {
            return Some(version.id);
        }
        self.dying()
            .filter(ready)
            .filter(|version| families.is_empty() || !families.contains(&self.family(version.id)))
            .min_by_key(|version| (version.children.len(), version.id))
            .map(|version| version.id)
    }
}
