//! The cut: the instant that a checkpoint keeps, and what its end changes (store notes section 4).
//!
//! At the cut, with no checkpoint running: finished walks leave the version tree, dying versions that never reached
//! the disk vanish or hand over to their only child (V5), every delta is frozen. Everything later belongs to the next
//! checkpoint. Between cut and end, merges work on [`Item`]s; [`finish`] gives their trees to whoever holds the item
//! then: a generation taken meanwhile has inherited it from its head (V3).

use std::collections::BTreeMap;
use std::ops::Range;

use tanada_format::{Pointer, TREE_BLOCKS, VersionState};

use crate::map::delta::{Delta, DeltaCost};
use crate::map::tree::merge::{Base, MergeRules, Merged, Part};
use crate::versions::{UNMAPPED_MAX, Version, VersionId, Versions};

/// One tree to make.
#[derive(Debug, Clone)]
pub struct Item {
    pub version: VersionId,
    pub base: Base,
    pub delta: Delta,
    pub rules: MergeRules,
    mapped: Option<u64>,
}

/// A version's record in the checkpoint.
#[derive(Debug, Clone)]
pub struct CutRecord {
    pub slot: u64,
    record: tanada_format::Version,
    item: Option<usize>,
}

impl CutRecord {
    pub fn resolve(&self, merged: &[Merged]) -> tanada_format::Version {
        let mut record = self.record.clone();
        if let Some(item) = self.item {
            record.tree = merged[item].tree;
        }
        record
    }
}

#[derive(Debug)]
pub struct Cut {
    pub epoch: u64,
    pub next_id: VersionId,
    pub items: Vec<Item>,
    pub records: Vec<CutRecord>,
    /// Blocks that the last checkpoint's tree holds and the next one's will not: what walks freed.
    pub walked: Vec<u64>,
    /// Blocks that never were in a tree and are named by nobody any more.
    pub dropped: Vec<u64>,
    pub cost: DeltaCost,
}

impl Cut {
    /// Ranges of items to merge together: each begins with a tree that was there before, and holds what is made over
    /// it, at most `parts_max` items.
    pub fn chunks(&self, parts_max: usize) -> Vec<Range<usize>> {
        let mut chunks: Vec<Range<usize>> = Vec::new();
        for (at, item) in self.items.iter().enumerate() {
            match chunks.last_mut() {
                Some(last) if matches!(item.base, Base::Item(_)) && last.len() < parts_max => last.end = at + 1,
                _ => chunks.push(at..at + 1),
            }
        }
        chunks
    }

    /// The items of a chunk as parts of one merge, over what became of the chunks before.
    pub fn parts(&self, chunk: Range<usize>, merged: &[Merged]) -> Vec<Part<'_>> {
        let base = |item: &Item| match item.base {
            Base::Item(below) if below < chunk.start => Base::Tree(merged[below].tree),
            Base::Item(below) => Base::Item(below - chunk.start),
            tree => tree,
        };
        let part = |item| Part { base: base(item), delta: &item.delta, rules: item.rules };
        self.items[chunk.clone()].iter().map(part).collect()
    }
}

/// Freezes `versions`; `walked` is what deletion walks freed since the last cut.
pub fn cut(versions: &mut Versions, walked: Vec<u64>) -> Cut {
    let mut dropped = std::mem::take(&mut versions.dropped);
    while settle_all(versions, &mut dropped) {}
    give_slots(versions);
    let mut cut = Cut {
        epoch: versions.epoch,
        next_id: versions.next_id,
        items: Vec::new(),
        records: Vec::new(),
        walked,
        dropped,
        cost: std::mem::take(&mut versions.cost),
    };
    let mut order: Vec<VersionId> = versions.iter().filter(|version| version.parent == 0).map(|v| v.id).collect();
    while let Some(id) = order.pop() {
        freeze(versions, id, &mut cut);
        if let Some(version) = versions.get(id) {
            order.extend(&version.children);
        }
    }
    cut
}

/// One pass of clearing dying versions away; false where nothing more can go.
fn settle_all(versions: &mut Versions, dropped: &mut Vec<u64>) -> bool {
    let dying: Vec<VersionId> = versions.dying().map(|version| version.id).collect();
    let mut any = false;
    for id in dying {
        any |= settle(versions, id, dropped); // one that goes may let another go, in the next pass
    }
    any
}

fn settle(versions: &mut Versions, id: VersionId, dropped: &mut Vec<u64>) -> bool {
    let parent_cut = versions.parent_cut(id);
    let Some(version) = versions.get_mut(id).filter(|version| version.state == VersionState::Dying) else {
        return false;
    };
    if version.cursor == TREE_BLOCKS {
        versions.remove(id);
        return true;
    }
    let mut drop_block = |block| dropped.push(block);
    let Some(heir) = version.children.first().copied() else {
        let delta = std::mem::take(&mut version.delta);
        delta.for_each_born_after(parent_cut, &mut drop_block);
        if version.own {
            return false; // its tree is left for the walk
        }
        versions.remove(id);
        return true;
    };
    let (tree, own, slot, mapped) = (version.tree, version.own, version.slot, version.mapped);
    let unmapped = version.unmapped;
    let delta = version.delta.clone();
    let only_child = version.children.len() == 1;
    // An heir that has unmapped much would have to free it at once (V10).
    let may_inherit = |child: &&mut Version| only_child && !child.own && child.unmapped <= UNMAPPED_MAX;
    let Some(child) = versions.get_mut(heir).filter(may_inherit) else {
        return false;
    };
    delta.for_each_missing_in(&child.delta, parent_cut, &mut drop_block);
    child.tree = tree;
    child.own = own;
    child.mapped = mapped;
    child.unmapped += unmapped;
    child.slot = child.slot.or(slot);
    versions.remove(id);
    true
}

fn give_slots(versions: &mut Versions) {
    let taken: std::collections::BTreeSet<u64> = versions.iter().filter_map(|version| version.slot).collect();
    let mut free = (0..).filter(|slot| !taken.contains(slot));
    for version in versions.iter_mut().filter(|version| version.slot.is_none()) {
        version.slot = free.next();
    }
}

fn freeze(versions: &mut Versions, id: VersionId, cut: &mut Cut) {
    let Some(version) = versions.get(id) else { return };
    let parent = versions.get(version.parent);
    let parent_cut = parent.map_or(0, |parent| parent.ended);
    let walked = parent
        .filter(|parent| parent.state == VersionState::Dying && parent.cursor > 0)
        .map(|parent| (parent.cursor, versions.parent_cut(parent.id)));
    let base = match parent {
        _ if version.own => Base::Tree(version.tree),
        None => Base::Tree(Pointer::NULL),
        Some(parent) => parent.merging.map_or(Base::Tree(parent.tree), Base::Item),
    };
    let entries_after = if version.own { 0 } else { parent_cut };
    let mapped = if version.own { version.mapped } else { parent.map_or(Some(0), |parent| parent.mapped) };
    let needed = !version.own || !version.delta.is_empty();
    let Some(version) = versions.get_mut(id) else { return };
    version.frozen = std::mem::take(&mut version.delta);
    version.unmapped = 0;
    version.merging = needed.then_some(cut.items.len());
    cut.records.push(CutRecord { slot: version.slot.unwrap_or(0), record: version.record(), item: version.merging });
    if needed {
        let rules = MergeRules { entries_after, parent_cut, walked };
        cut.items.push(Item { version: id, base, delta: version.frozen.clone(), rules, mapped });
    }
}

/// The checkpoint is durable: its trees take the place of the frozen deltas.
pub fn finish(versions: &mut Versions, cut: &Cut, merged: &[Merged]) {
    let mut changed = Vec::new();
    let mut mapped: Vec<Option<u64>> = Vec::with_capacity(merged.len());
    for (item, merged) in cut.items.iter().zip(merged) {
        let before = match item.base {
            Base::Tree(tree) if tree.is_null() => Some(0),
            Base::Tree(_) => item.mapped,
            Base::Item(parent) => mapped[parent],
        };
        mapped.push(before.zip(merged.mapped).map(|(before, change)| before.saturating_add_signed(change)));
    }
    for version in versions.iter_mut() {
        version.frozen = Delta::default();
        if let Some(item) = version.merging.take() {
            version.tree = merged[item].tree;
            version.own = true;
            version.mapped = mapped[item];
            changed.push(version.id);
        }
    }
    changed.into_iter().for_each(|id| versions.touch(id));
    rebase(versions);
}

/// Gives every version without a tree of its own that of its nearest ancestor.
fn rebase(versions: &mut Versions) {
    let mut bases: BTreeMap<VersionId, (Pointer, Option<u64>)> = BTreeMap::new();
    let treeless: Vec<VersionId> = versions.iter().filter(|version| !version.own).map(|version| version.id).collect();
    for id in treeless {
        let mut path = vec![id];
        let mut at = versions.get(id).map_or(0, |version| version.parent);
        let base = loop {
            match versions.get(at) {
                None => break (Pointer::NULL, Some(0)),
                Some(version) if version.own => break (version.tree, version.mapped),
                Some(version) => match bases.get(&at) {
                    Some(base) => break *base,
                    None => {
                        path.push(at);
                        at = version.parent;
                    }
                },
            }
        };
        bases.extend(path.into_iter().map(|id| (id, base)));
    }
    for (id, (tree, mapped)) in bases {
        if let Some(version) = versions.get_mut(id) {
            (version.tree, version.mapped) = (tree, mapped);
        }
    }
}
