//! The merge: old tree + entries of one era -> new tree, and what fell out. Frees are decided here and in the deletion
//! walk, nowhere else (rule V4).

use std::rc::Rc;

use tanada_format::node::span_blocks;
use tanada_format::{FANOUT, Node, Pointer, ROOT_LEVEL};

use super::{NodeSource, node_or_empty};
use crate::delta::{Delta, DeltaNode, Slots};
use crate::failure::Failure;

/// What a merge does to the store.
pub trait MergeStore: NodeSource {
    /// Stores a new node at a new place and returns a pointer to it, born in `birth`.
    fn write(&self, node: &Node, birth: u64) -> impl Future<Output = Result<Pointer, Failure>>;
    /// The tree refers to this data block from now on.
    fn adopt(&self, block: u64);
    /// The version was the last to refer to this block, of data or of the map.
    fn free(&self, block: u64);
}

/// Which entries of a delta apply, and which replaced pointers are the version's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct MergeRules {
    /// Entries born at or before this epoch are in the base already: S(parent) where the base is the parent's new tree
    /// (rule V3), 0 where it is the version's own.
    pub entries_after: u64,
    /// S(parent): what is born later belongs to this version alone.
    pub parent_cut: u64,
    /// While the parent is being walked: its cursor and S(grandparent). Left of the cursor the version counts as the
    /// grandparent's child already (rule V6).
    pub walked: Option<(u64, u64)>,
}

impl MergeRules {
    /// The epoch after which a pointer to something ending at place `end` is the version's own.
    fn limit(&self, end: u64) -> u64 {
        match self.walked {
            Some((cursor, grandparent_cut)) if end <= cursor => grandparent_cut,
            _ => self.parent_cut,
        }
    }

    /// The epoch up to which nothing within a range starting at place `start` can be the version's own.
    fn limit_below(&self, start: u64) -> u64 {
        match self.walked {
            Some((cursor, grandparent_cut)) if start < cursor => grandparent_cut,
            _ => self.parent_cut,
        }
    }
}

/// What a merge made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    pub tree: Pointer,
    /// Change of the number of mapped blocks; `None` where a subtree left without having been read.
    pub mapped: Option<i64>,
}

/// Merges `delta` into `old`.
pub async fn merge<S: MergeStore>(
    store: &S,
    old: Pointer,
    delta: &Delta,
    rules: MergeRules,
) -> Result<Merged, Failure> {
    let Some(root) = &delta.root else { return Ok(Merged { tree: old, mapped: Some(0) }) };
    let mut merger = Merger { store, rules, mapped: Some(0) };
    let (tree, _) = merger.node(old, root, ROOT_LEVEL, 0).await?;
    Ok(Merged { tree, mapped: merger.mapped })
}

struct Merger<'a, S> {
    store: &'a S,
    rules: MergeRules,
    mapped: Option<i64>,
}

impl<S: MergeStore> Merger<'_, S> {
    fn count(&mut self, change: i64) {
        self.mapped = self.mapped.map(|mapped| mapped + change);
    }

    /// Merges one node; returns the new pointer and the birth of the newest entry applied, 0 if none had an effect.
    async fn node(
        &mut self,
        old: Pointer,
        delta: &DeltaNode,
        level: u8,
        start: u64,
    ) -> Result<(Pointer, u64), Failure> {
        if delta.birth <= self.rules.entries_after {
            return Ok((old, 0));
        }
        let mut node = node_or_empty(self.store, old).await?;
        let newest = match &delta.slots {
            Slots::Leaf(_) => self.leaf_slots(&mut node, delta, start),
            Slots::Inner(_) => Box::pin(self.inner_slots(&mut node, delta, level, start)).await?,
        };
        if newest == 0 {
            return Ok((old, 0));
        }
        if !old.is_null() && old.birth() > self.rules.limit(start + span_blocks(level)) {
            self.store.free(old.block());
        }
        let new = if node.is_empty() { Pointer::NULL } else { self.store.write(&node, newest).await? };
        Ok((new, newest))
    }

    fn leaf_slots(&mut self, node: &mut Rc<Node>, delta: &DeltaNode, start: u64) -> u64 {
        let Slots::Leaf(entries) = &delta.slots else { return 0 };
        let (mut newest, entries_after) = (0, self.rules.entries_after);
        for entry in entries.iter().filter(|entry| entry.birth() > entries_after) {
            let old = node.pointers[entry.slot()];
            if old.is_null() && entry.pointer.is_null() {
                continue;
            }
            if !old.is_null() {
                self.count(-1);
                if old.birth() > self.rules.limit(start + entry.slot() as u64 + 1) {
                    self.store.free(old.block());
                }
            }
            if !entry.pointer.is_null() {
                self.count(1);
                self.store.adopt(entry.pointer.block());
            }
            Rc::make_mut(node).pointers[entry.slot()] = entry.pointer;
            newest = newest.max(entry.birth());
        }
        newest
    }

    async fn inner_slots(
        &mut self,
        node: &mut Rc<Node>,
        delta: &DeltaNode,
        level: u8,
        start: u64,
    ) -> Result<u64, Failure> {
        let Slots::Inner(entries) = &delta.slots else { return Ok(0) };
        let step = span_blocks(level) / FANOUT as u64;
        let mut newest = 0;
        for entry in entries {
            let below = start + entry.slot() as u64 * step;
            let old = node.pointers[entry.slot()];
            let mut new = old;
            if let Some(cut) = entry.cut().filter(|cut| *cut > self.rules.entries_after && !new.is_null()) {
                self.free_tree(new, level - 1, below).await?;
                new = Pointer::NULL;
                newest = newest.max(cut);
            }
            if let Some(child) = &entry.child {
                let (merged, birth) = self.node(new, child, level - 1, below).await?;
                new = merged;
                newest = newest.max(birth);
            }
            if new != old {
                Rc::make_mut(node).pointers[entry.slot()] = new;
            }
        }
        Ok(newest)
    }

    /// Frees what is the version's own in a subtree that is unmapped as a whole.
    async fn free_tree(&mut self, pointer: Pointer, level: u8, start: u64) -> Result<(), Failure> {
        if pointer.birth() <= self.rules.limit_below(start) {
            self.mapped = None;
            return Ok(());
        }
        let node = self.store.node(pointer).await?;
        let step = span_blocks(level) / FANOUT as u64;
        for (slot, child) in node.pointers.iter().enumerate().filter(|(_, child)| !child.is_null()) {
            let below = start + slot as u64 * step;
            if level > 0 {
                Box::pin(self.free_tree(*child, level - 1, below)).await?;
            } else {
                self.count(-1);
                if child.birth() > self.rules.limit(below + 1) {
                    self.store.free(child.block());
                }
            }
        }
        if pointer.birth() > self.rules.limit(start + span_blocks(level)) {
            self.store.free(pointer.block());
        }
        Ok(())
    }
}
