//! What changed in one version since the last cut: a sparse trie of the tree's own shape.
//!
//! ```text
//!   level 4   { slot -> child }                      only changed slots are there
//!   ...
//!   level 1   { slot -> [cut] child }                cut: everything below was unmapped, then the child applies
//!   level 0   { slot -> pointer or hole, birth }
//! ```
//!
//! Invariants:
//! 1. The map nodes on disk are immutable; this is the only mutable thing over them. Writes never read the map.
//! 2. Nodes are shared by reference count and copied when changed while shared. A snapshot clones the root: O(1), and a
//!    lookup never chains through generations, because the copy takes its entries along.
//! 3. A node's birth is the epoch of the last change below it (rule V2), so births prune here as on disk.

use std::sync::Arc;

use tanada_format::{FANOUT, Pointer, ROOT_LEVEL};

use tanada_format::node::{slot_of, span_blocks};

/// Memory and future checkpoint work that changes to deltas made: counted up when a node is created or copied.
/// One block of reserve per node is exactly what the checkpoint may need for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeltaCost {
    pub nodes: u64,
    pub entries: u64,
}

impl DeltaCost {
    /// Estimated bytes of memory; the constants are the sizes of a node with its allocation and of an entry with slack.
    pub fn bytes(&self) -> u64 {
        self.nodes * 112 + self.entries * 36
    }

    pub fn plus(&self, other: DeltaCost) -> DeltaCost {
        DeltaCost { nodes: self.nodes + other.nodes, entries: self.entries + other.entries }
    }
}

/// One changed block: mapped to `pointer`, or a hole where that is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafEntry {
    pub pointer: Pointer,
    /// `birth << 8 | slot`: a hole has a birth too, and 24 bytes hold it all.
    tag: u64,
}

impl LeafEntry {
    fn new(slot: usize, pointer: Pointer, birth: u64) -> LeafEntry {
        LeafEntry { pointer, tag: birth << 8 | slot as u64 }
    }

    pub fn slot(&self) -> usize {
        (self.tag & 0xff) as usize
    }

    pub fn birth(&self) -> u64 {
        self.tag >> 8
    }
}

/// One changed subtree.
#[derive(Debug, Clone)]
pub struct InnerEntry {
    slot: u8,
    /// Birth of "all below is unmapped", 0 for none. What the child holds came later.
    cut: u64,
    pub child: Option<Arc<DeltaNode>>,
}

impl InnerEntry {
    pub fn slot(&self) -> usize {
        usize::from(self.slot)
    }

    pub fn cut(&self) -> Option<u64> {
        (self.cut != 0).then_some(self.cut)
    }
}

#[derive(Debug, Clone)]
pub enum Slots {
    Leaf(Vec<LeafEntry>),
    Inner(Vec<InnerEntry>),
}

#[derive(Debug, Clone)]
pub struct DeltaNode {
    /// Epoch of the last change at or below this node.
    pub birth: u64,
    pub slots: Slots,
}

impl DeltaNode {
    fn new(level: u8) -> DeltaNode {
        let slots = if level == 0 { Slots::Leaf(Vec::new()) } else { Slots::Inner(Vec::new()) };
        DeltaNode { birth: 0, slots }
    }

    /// Entries of this node itself.
    pub fn len(&self) -> usize {
        match &self.slots {
            Slots::Leaf(entries) => entries.len(),
            Slots::Inner(entries) => entries.len(),
        }
    }

    /// The entry for `slot` of a leaf.
    fn leaf_entry(&self, slot: usize) -> Option<&LeafEntry> {
        match &self.slots {
            Slots::Leaf(entries) => entries.binary_search_by_key(&slot, LeafEntry::slot).ok().map(|at| &entries[at]),
            Slots::Inner(_) => None,
        }
    }

    fn inner_entry(&self, slot: usize) -> Option<&InnerEntry> {
        match &self.slots {
            Slots::Inner(entries) => entries.binary_search_by_key(&slot, InnerEntry::slot).ok().map(|at| &entries[at]),
            Slots::Leaf(_) => None,
        }
    }
}

/// What a delta says about one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    Data(Pointer),
    Hole,
    /// Nothing: ask the layer below.
    Absent,
}

/// What a delta says about the 256 blocks of one leaf.
#[derive(Clone, Copy)]
pub struct LeafView<'a> {
    cut: bool,
    node: Option<&'a DeltaNode>,
}

impl LeafView<'_> {
    pub fn get(&self, slot: usize) -> Lookup {
        match self.node.and_then(|node| node.leaf_entry(slot)) {
            Some(entry) if entry.pointer.is_null() => Lookup::Hole,
            Some(entry) => Lookup::Data(entry.pointer),
            None if self.cut => Lookup::Hole,
            None => Lookup::Absent,
        }
    }
}

/// Where changes of a delta are made and accounted: the birth given to them, which old entries are the version's own,
/// and where the blocks of those go.
pub struct Change<'a> {
    /// Epoch of the change (rule V1: the epoch in which the record is applied).
    pub birth: u64,
    /// Entries born after this epoch (S of the parent) belong to this version alone: overwritten, they are dropped.
    pub own_after: u64,
    pub cost: &'a mut DeltaCost,
    /// Blocks of own entries that were replaced; they were never in a tree (rule V4).
    pub dropped: &'a mut Vec<u64>,
}

/// A delta; empty for a version without changes. Cloning is O(1).
#[derive(Debug, Clone, Default)]
pub struct Delta {
    pub root: Option<Arc<DeltaNode>>,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// What is said about the leaf that maps `place`.
    pub fn leaf(&self, place: u64) -> LeafView<'_> {
        let mut cut = false;
        let mut node = match &self.root {
            Some(root) => root.as_ref(),
            None => return LeafView { cut, node: None },
        };
        for level in (1..=ROOT_LEVEL).rev() {
            let Some(entry) = node.inner_entry(slot_of(place, level)) else { return LeafView { cut, node: None } };
            cut |= entry.cut != 0;
            match &entry.child {
                Some(child) => node = child,
                None => return LeafView { cut, node: None },
            }
        }
        LeafView { cut, node: Some(node) }
    }

    /// The level of the largest subtree around `place` of which this delta says one thing: that all of it is a hole
    /// (`true`), or nothing (`false`). `None` where it speaks of single places of the leaf.
    pub fn uniform(&self, place: u64) -> Option<(u8, bool)> {
        let Some(mut node) = self.root.as_deref() else { return Some((ROOT_LEVEL, false)) };
        let mut cut = false;
        for level in (1..=ROOT_LEVEL).rev() {
            let entry = node.inner_entry(slot_of(place, level));
            cut |= entry.is_some_and(|entry| entry.cut != 0);
            match entry.and_then(|entry| entry.child.as_deref()) {
                Some(child) => node = child,
                None => return Some((level - 1, cut)),
            }
        }
        None
    }

    #[cfg(test)]
    pub fn get(&self, place: u64) -> Lookup {
        self.leaf(place).get(slot_of(place, 0))
    }

    /// Maps the places from `place` on to `pointers`, whose births must be `change.birth`.
    pub fn map(&mut self, place: u64, pointers: &[Pointer], change: &mut Change<'_>) {
        let mut done = 0;
        while done < pointers.len() {
            let at = place + done as u64;
            let count = (FANOUT - slot_of(at, 0)).min(pointers.len() - done);
            let leaf = self.leaf_mut(at, change);
            let Slots::Leaf(entries) = &mut leaf.slots else { unreachable!("level 0 holds leaf entries") };
            for (i, pointer) in pointers[done..done + count].iter().enumerate() {
                put(entries, LeafEntry::new(slot_of(at, 0) + i, *pointer, change.birth), change);
            }
            done += count;
        }
    }

    /// Makes holes of `count` places from `place` on.
    pub fn unmap(&mut self, place: u64, count: u64, change: &mut Change<'_>) {
        if count > 0 {
            unmap_below(&mut self.root, ROOT_LEVEL, 0, place, place + count, change);
        }
    }

    fn leaf_mut(&mut self, place: u64, change: &mut Change<'_>) -> &mut DeltaNode {
        let mut slot = &mut self.root;
        for level in (1..=ROOT_LEVEL).rev() {
            let node = own(slot, level, change);
            let Slots::Inner(entries) = &mut node.slots else { unreachable!("level {level} holds inner entries") };
            slot = &mut entry_at(entries, slot_of(place, level), change.cost).child;
        }
        own(slot, 0, change)
    }

    /// Calls `visit` with the block of every mapped entry born after `after`.
    pub fn for_each_born_after(&self, after: u64, visit: &mut impl FnMut(u64)) {
        if let Some(root) = &self.root {
            visit_born_after(root, after, visit);
        }
    }

    /// Calls `visit` with the block of every mapped entry born after `after` that `other` does not hold at the same
    /// place, pruning where both share a node (rule V5: entries that the heir no longer has).
    pub fn for_each_missing_in(&self, other: &Delta, after: u64, visit: &mut impl FnMut(u64)) {
        if let Some(root) = &self.root {
            visit_missing(root, other.root.as_ref(), after, visit);
        }
    }
}

fn visit_born_after(node: &DeltaNode, after: u64, visit: &mut impl FnMut(u64)) {
    if node.birth <= after {
        return;
    }
    match &node.slots {
        Slots::Leaf(entries) => entries
            .iter()
            .filter(|entry| !entry.pointer.is_null() && entry.birth() > after)
            .for_each(|entry| visit(entry.pointer.block())),
        Slots::Inner(entries) => entries
            .iter()
            .filter_map(|entry| entry.child.as_ref())
            .for_each(|child| visit_born_after(child, after, visit)),
    }
}

fn visit_missing(node: &Arc<DeltaNode>, other: Option<&Arc<DeltaNode>>, after: u64, visit: &mut impl FnMut(u64)) {
    let Some(other) = other else { return visit_born_after(node, after, visit) };
    if node.birth <= after || Arc::ptr_eq(node, other) {
        return;
    }
    match &node.slots {
        Slots::Leaf(entries) => {
            for entry in entries.iter().filter(|entry| !entry.pointer.is_null() && entry.birth() > after) {
                if other.leaf_entry(entry.slot()).is_none_or(|theirs| theirs.pointer != entry.pointer) {
                    visit(entry.pointer.block());
                }
            }
        }
        Slots::Inner(entries) => {
            for entry in entries {
                let Some(child) = &entry.child else { continue };
                let theirs = other.inner_entry(entry.slot()).and_then(|theirs| theirs.child.as_ref());
                visit_missing(child, theirs, after, visit);
            }
        }
    }
}

/// Lets go of some `nodes` of deltas that nobody needs any more; true where more are left. Dropping a large delta at once
/// would take tens of milliseconds.
pub fn drop_some(left: &mut Vec<Arc<DeltaNode>>, nodes: usize) -> bool {
    for _ in 0..nodes {
        let Some(node) = left.pop() else { return false };
        if let Ok(DeltaNode { slots: Slots::Inner(entries), .. }) = Arc::try_unwrap(node) {
            left.extend(entries.into_iter().filter_map(|entry| entry.child));
        }
    }
    !left.is_empty()
}

/// Makes the node in `slot` exist and be owned by this delta alone, and gives it the change's birth.
fn own<'a>(slot: &'a mut Option<Arc<DeltaNode>>, level: u8, change: &mut Change<'_>) -> &'a mut DeltaNode {
    let node = slot.get_or_insert_with(|| {
        change.cost.nodes += 1;
        Arc::new(DeltaNode::new(level))
    });
    if Arc::get_mut(node).is_none() {
        change.cost.nodes += 1;
        change.cost.entries += node.len() as u64;
    }
    let node = Arc::make_mut(node);
    node.birth = node.birth.max(change.birth);
    node
}

fn entry_at<'a>(entries: &'a mut Vec<InnerEntry>, slot: usize, cost: &mut DeltaCost) -> &'a mut InnerEntry {
    let at = match entries.binary_search_by_key(&slot, InnerEntry::slot) {
        Ok(at) => at,
        Err(at) => {
            cost.entries += 1;
            entries.insert(at, InnerEntry { slot: slot as u8, cut: 0, child: None });
            at
        }
    };
    &mut entries[at]
}

fn put(entries: &mut Vec<LeafEntry>, entry: LeafEntry, change: &mut Change<'_>) {
    match entries.binary_search_by_key(&entry.slot(), LeafEntry::slot) {
        Ok(at) => {
            let old = std::mem::replace(&mut entries[at], entry);
            if !old.pointer.is_null() && old.birth() > change.own_after {
                change.dropped.push(old.pointer.block());
            }
        }
        Err(at) => {
            change.cost.entries += 1;
            entries.insert(at, entry);
        }
    }
}

/// Unmaps the part of `from..to` that the node in `slot`, starting at place `start`, covers.
fn unmap_below(slot: &mut Option<Arc<DeltaNode>>, level: u8, start: u64, from: u64, to: u64, change: &mut Change<'_>) {
    let node = own(slot, level, change);
    let step = span_blocks(level) / FANOUT as u64;
    let first = from.saturating_sub(start) / step;
    let last = (to - 1 - start).min(span_blocks(level) - 1) / step;
    for index in first..=last {
        let below = start + index * step;
        match &mut node.slots {
            Slots::Leaf(entries) => put(entries, LeafEntry::new(index as usize, Pointer::NULL, change.birth), change),
            Slots::Inner(entries) => {
                let entry = entry_at(entries, index as usize, change.cost);
                if from <= below && below + step <= to {
                    entry.cut = change.birth;
                    if let Some(child) = entry.child.take() {
                        visit_born_after(&child, change.own_after, &mut |block| change.dropped.push(block));
                    }
                } else {
                    unmap_below(&mut entry.child, level - 1, below, from, to, change);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Delta, DeltaCost, Lookup};
    use std::collections::BTreeMap;
    use tanada_format::Pointer;

    #[derive(Default)]
    struct Bench {
        delta: Delta,
        cost: DeltaCost,
        dropped: Vec<u64>,
    }

    impl Bench {
        fn map(&mut self, place: u64, block: u64, birth: u64, own_after: u64) {
            let mut change = Change { birth, own_after, cost: &mut self.cost, dropped: &mut self.dropped };
            self.delta.map(place, &[Pointer::new(block, birth, 0)], &mut change);
        }

        fn unmap(&mut self, place: u64, count: u64, birth: u64, own_after: u64) {
            let mut change = Change { birth, own_after, cost: &mut self.cost, dropped: &mut self.dropped };
            self.delta.unmap(place, count, &mut change);
        }
    }

    #[test]
    fn an_own_entry_is_dropped_and_an_inherited_one_is_not() {
        let mut bench = Bench::default();
        bench.map(7, 100, 3, 0);
        let generation = bench.delta.clone();
        bench.map(7, 101, 4, 3);
        assert_eq!(bench.dropped, [], "block 100 is the generation's now");
        bench.map(7, 102, 4, 3);
        assert_eq!(bench.dropped, [101]);
        assert_eq!(generation.get(7), Lookup::Data(Pointer::new(100, 3, 0)));
        assert_eq!(bench.delta.get(7), Lookup::Data(Pointer::new(102, 4, 0)));
        let mut missing = Vec::new();
        generation.for_each_missing_in(&bench.delta, 0, &mut |block| missing.push(block));
        assert_eq!(missing, [100]);
    }

    #[test]
    fn a_copied_path_is_paid_for_once() {
        let mut bench = Bench::default();
        bench.map(0, 100, 1, 0);
        assert_eq!(bench.cost.nodes, 5);
        let _generation = bench.delta.clone();
        bench.map(1, 101, 2, 1);
        bench.map(2, 102, 2, 1);
        assert_eq!(bench.cost.nodes, 10);
    }

    #[test]
    fn large_unmaps_cut_subtrees_and_drop_what_was_own() {
        let mut bench = Bench::default();
        bench.map(5, 100, 1, 0);
        bench.map(70_000, 101, 1, 0);
        bench.unmap(3, 200_000, 1, 0);
        bench.dropped.sort();
        assert_eq!(bench.dropped, [100, 101]);
        assert_eq!(bench.delta.get(2), Lookup::Absent);
        assert_eq!(bench.delta.get(3), Lookup::Hole);
        assert_eq!(bench.delta.get(200_002), Lookup::Hole);
        assert_eq!(bench.delta.get(200_003), Lookup::Absent);
        bench.map(70_001, 102, 1, 0);
        assert_eq!(bench.delta.get(70_001), Lookup::Data(Pointer::new(102, 1, 0)));
        assert_eq!(bench.delta.get(70_002), Lookup::Hole, "the cut shows through beside a later write");
    }

    #[test]
    fn random_changes_agree_with_a_flat_map() {
        let mut random = crate::testing::Random::new(5);
        let mut bench = Bench::default();
        let mut flat: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        for step in 1..4000 {
            let place = random.below(3000) + if random.below(3) == 0 { 65_000 } else { 0 };
            if random.below(5) == 0 {
                let count = 1 + random.below(1200);
                bench.unmap(place, count, step, 0);
                flat.extend((place..place + count).map(|at| (at, None)));
            } else {
                bench.map(place, step, step, 0);
                flat.insert(place, Some(step));
            }
            let at = random.below(70_000);
            let expected = match flat.get(&at) {
                None => Lookup::Absent,
                Some(None) => Lookup::Hole,
                Some(Some(block)) => Lookup::Data(Pointer::new(*block, *block, 0)),
            };
            assert_eq!(bench.delta.get(at), expected, "place {at} after step {step}");
        }
    }
}
