//! The merge: old trees + entries of one era -> new trees, and what fell out. Frees are decided here and in the deletion
//! walk, nowhere else (rule V4).
//!
//! Versions that build upon one another in one era (a generation, the head over it, clones of it) are merged together,
//! place by place: all versions of one leaf are written side by side, so that a later deletion walk finds its pair of
//! leaves in one read. Where a version has no entries of its own, its new pointer is that of the version below it.
//!
//! ```text
//!   part 0   old tree of its own  + entries   ->  new tree 0
//!   part 1   new tree 0           + entries   ->  new tree 1        in every node of the recursion the same:
//!   part 2   new tree 1           + entries   ->  new tree 2        a base is a pointer, or what an earlier one becomes
//! ```
//!
//! **A node that cannot be read** costs what it mapped and nothing else: the new node in its place says *lost* wherever
//! this era has no entry of its own. Reads there are errors that name the place, a write or an unmapping heals it.
//! Blocks below the damaged node stay in use, since nobody can tell which they are.

use std::rc::Rc;

use tanada_format::node::span_blocks;
use tanada_format::{FANOUT, Node, Pointer, ROOT_LEVEL};

use super::{NodeSource, node_behind};
use crate::failure::Failure;
use crate::map::delta::{Delta, DeltaNode, InnerEntry, Slots};

/// What a merge does to the store.
pub trait MergeStore: NodeSource {
    /// Stores a new node at a new place and returns a pointer to it, born in `birth`. It takes the place of `old`.
    fn write(&self, node: &Rc<Node>, old: Pointer, birth: u64) -> impl Future<Output = Result<Pointer, Failure>>;
    /// The tree refers to this data block from now on.
    fn adopt(&self, block: u64);
    /// The version was the last to refer to this block, of data or of the map.
    fn free(&self, block: u64);
    /// A node that mapped what begins at place `start` for part number `part` cannot be read: what it mapped is lost to
    /// that version, and its space to the store.
    fn lost(&self, part: usize, level: u8, start: u64, why: &Failure);
}

/// What a new tree, or a part of one, is made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Tree(Pointer),
    /// What becomes of an earlier one of the same list.
    Item(usize),
}

/// One tree to make.
pub struct Part<'a> {
    pub base: Base,
    pub delta: &'a Delta,
    pub rules: MergeRules,
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

/// Leaves asked for ahead of their merge: a MiB of them.
const AHEAD_LEAVES: usize = 256;

/// Makes the trees of all `parts`; a part's base comes before it.
pub async fn merge<S: MergeStore>(store: &S, parts: &[Part<'_>]) -> Result<Vec<Merged>, Failure> {
    let rules = parts.iter().map(|part| part.rules).collect();
    let mut merger = Merger { store, rules, mapped: vec![Some(0); parts.len()] };
    let layers: Vec<Layer<'_>> = parts
        .iter()
        .enumerate()
        .map(|(at, part)| Layer { part: at, base: part.base, cut: None, delta: part.delta.root.as_deref() })
        .collect();
    let made = merger.slot(&layers, ROOT_LEVEL, 0).await?;
    Ok(made.iter().zip(merger.mapped).map(|(made, mapped)| Merged { tree: made.pointer, mapped }).collect())
}

/// What one version says of one slot.
struct Layer<'a> {
    /// Which part.
    part: usize,
    /// `Item`: an earlier layer.
    base: Base,
    /// Birth of "all below is unmapped".
    cut: Option<u64>,
    delta: Option<&'a DeltaNode>,
}

/// One version's entries for one node.
struct Frame<'a> {
    part: usize,
    /// `Item`: an earlier frame.
    base: Base,
    delta: &'a DeltaNode,
}

impl<'a> Frame<'a> {
    fn inner(&self) -> &'a [InnerEntry] {
        match &self.delta.slots {
            Slots::Inner(entries) => entries,
            Slots::Leaf(_) => &[],
        }
    }

    fn entry(&self, slot: usize) -> Option<&'a InnerEntry> {
        let entries = self.inner();
        entries.binary_search_by_key(&slot, InnerEntry::slot).ok().map(|at| &entries[at])
    }
}

/// What became of a slot or node.
#[derive(Debug, Clone, Copy)]
struct Made {
    pointer: Pointer,
    /// Birth of the newest entry applied; 0 where none had an effect.
    birth: u64,
}

/// Layers of one slot whose nodes are still to be merged.
#[derive(Default)]
struct Open<'a> {
    frames: Vec<Frame<'a>>,
    /// By layer: the frame that makes its pointer, and whether it is the layer's own.
    frame_of: Vec<Option<(usize, bool)>>,
    made: Vec<Made>,
}

struct Merger<'a, S> {
    store: &'a S,
    rules: Vec<MergeRules>,
    mapped: Vec<Option<i64>>,
}

impl<S: MergeStore> Merger<'_, S> {
    fn count(&mut self, part: usize, change: i64) {
        self.mapped[part] = self.mapped[part].map(|mapped| mapped + change);
    }

    fn lost(&mut self, part: usize, level: u8, start: u64, why: &Failure) {
        self.mapped[part] = None;
        self.store.lost(part, level, start, why);
    }

    /// Merges what all versions say of one slot, whose nodes are of `level`.
    async fn slot(&mut self, layers: &[Layer<'_>], level: u8, start: u64) -> Result<Vec<Made>, Failure> {
        let mut open = Open::default();
        for layer in layers {
            let after = self.rules[layer.part].entries_after;
            let cut = layer.cut.filter(|cut| *cut > after);
            if let (Some(_), Base::Item(below)) = (cut, layer.base)
                && open.frame_of[below].is_some()
            {
                self.close(&mut open, level, start).await?; // what is cut must be known
            }
            let mut base = match layer.base {
                Base::Item(below) => match open.frame_of[below] {
                    Some((frame, _)) => Base::Item(frame),
                    None => Base::Tree(open.made[below].pointer),
                },
                tree => tree,
            };
            let mut birth = 0;
            if let (Some(cut), Base::Tree(old)) = (cut, base)
                && !old.is_null()
            {
                self.free_tree(layer.part, old, level, start).await?;
                (base, birth) = (Base::Tree(Pointer::NULL), cut);
            }
            open.push(layer, base, birth, after);
        }
        self.close(&mut open, level, start).await?;
        Ok(open.made)
    }

    /// Merges the nodes that are open.
    async fn close(&mut self, open: &mut Open<'_>, level: u8, start: u64) -> Result<(), Failure> {
        let frames = std::mem::take(&mut open.frames);
        if frames.is_empty() {
            return Ok(());
        }
        let made = Box::pin(self.nodes(&frames, level, start)).await?;
        for (slot, frame) in open.made.iter_mut().zip(&mut open.frame_of) {
            if let Some((frame, own)) = frame.take() {
                slot.pointer = made[frame].pointer;
                slot.birth = slot.birth.max(if own { made[frame].birth } else { 0 });
            }
        }
        Ok(())
    }

    /// Merges one node of all versions that have entries below it.
    async fn nodes(&mut self, frames: &[Frame<'_>], level: u8, start: u64) -> Result<Vec<Made>, Failure> {
        let mut nodes: Vec<Rc<Node>> = Vec::with_capacity(frames.len());
        let mut lost = vec![0; frames.len()];
        for (frame, lost) in frames.iter().zip(&mut lost) {
            nodes.push(match frame.base {
                Base::Item(below) => Rc::clone(&nodes[below]),
                Base::Tree(old) => match node_behind(self.store, old).await {
                    Ok(node) => node,
                    Err(why) => {
                        self.lost(frame.part, level, start, &why);
                        *lost = frame.delta.birth;
                        Rc::new(Node::filled(Pointer::lost(*lost)))
                    }
                },
            });
        }
        let newest = match level {
            0 => self.leaves(frames, &mut nodes, start),
            _ => self.inner(frames, &mut nodes, level, start).await?,
        };
        let mut made: Vec<Made> = Vec::with_capacity(frames.len());
        for ((frame, node), birth) in frames.iter().zip(&nodes).zip(newest.iter().zip(&lost).map(|(a, b)| *a.max(b))) {
            let old = match frame.base {
                Base::Tree(old) => old,
                Base::Item(below) => made[below].pointer,
            };
            if birth == 0 {
                made.push(Made { pointer: old, birth });
                continue;
            }
            if old.has_block() && old.birth() > self.rules[frame.part].limit(start + span_blocks(level)) {
                self.store.free(old.block());
            }
            let pointer = if node.is_empty() { Pointer::NULL } else { self.store.write(node, old, birth).await? };
            made.push(Made { pointer, birth });
        }
        Ok(made)
    }

    fn leaves(&mut self, frames: &[Frame<'_>], nodes: &mut [Rc<Node>], start: u64) -> Vec<u64> {
        let mut newest = Vec::with_capacity(frames.len());
        for (at, frame) in frames.iter().enumerate() {
            if let Base::Item(below) = frame.base {
                nodes[at] = Rc::clone(&nodes[below]);
            }
            newest.push(self.leaf_slots(frame, &mut nodes[at], start));
        }
        newest
    }

    fn leaf_slots(&mut self, frame: &Frame<'_>, node: &mut Rc<Node>, start: u64) -> u64 {
        let Slots::Leaf(entries) = &frame.delta.slots else { return 0 };
        let rules = self.rules[frame.part];
        let mut newest = 0;
        for entry in entries.iter().filter(|entry| entry.birth() > rules.entries_after) {
            let old = node.pointers[entry.slot()];
            if old.is_null() && entry.pointer.is_null() {
                continue;
            }
            if old.has_block() {
                self.count(frame.part, -1);
                if old.birth() > rules.limit(start + entry.slot() as u64 + 1) {
                    self.store.free(old.block());
                }
            }
            if !entry.pointer.is_null() {
                self.count(frame.part, 1);
                self.store.adopt(entry.pointer.block());
            }
            Rc::make_mut(node).pointers[entry.slot()] = entry.pointer;
            newest = newest.max(entry.birth());
        }
        newest
    }

    async fn inner(
        &mut self,
        frames: &[Frame<'_>],
        nodes: &mut [Rc<Node>],
        level: u8,
        start: u64,
    ) -> Result<Vec<u64>, Failure> {
        let step = span_blocks(level) / FANOUT as u64;
        let mut newest = vec![0; frames.len()];
        let mut from = 0;
        let mut looked_up_to = 0;
        while let Some(slot) = next_slot(frames, from) {
            from = slot + 1;
            if level == 2 && slot >= looked_up_to {
                looked_up_to = self.look_ahead(frames, nodes, slot).await?;
            }
            let layers: Vec<Layer<'_>> =
                frames.iter().zip(nodes.iter()).map(|(frame, node)| layer_of(frame, node, slot)).collect();
            let made = self.slot(&layers, level - 1, start + slot as u64 * step).await?;
            for (at, made) in made.iter().enumerate() {
                if nodes[at].pointers[slot] != made.pointer {
                    Rc::make_mut(&mut nodes[at]).pointers[slot] = made.pointer;
                }
                newest[at] = newest[at].max(made.birth);
            }
        }
        Ok(newest)
    }

    /// Asks for the leaves that the slots from `from` on of a node of level 2 need, some hundreds in all, and for the
    /// nodes above them. Returns the first slot that was left out.
    async fn look_ahead(&self, frames: &[Frame<'_>], nodes: &[Rc<Node>], from: usize) -> Result<usize, Failure> {
        let mut wanted: Vec<(Pointer, &DeltaNode, MergeRules)> = Vec::new();
        let (mut leaves, mut end) = (0, from);
        while let Some(slot) = next_slot(frames, end) {
            let below = frames.iter().zip(nodes).filter_map(|(frame, node)| {
                let (child, rules) = (frame.entry(slot)?.child.as_deref()?, self.rules[frame.part]);
                (child.birth > rules.entries_after).then_some((node.pointers[slot], child, rules))
            });
            let below: Vec<_> = below.collect();
            let count: usize = below.iter().map(|(_, child, _)| child.len()).sum();
            if slot > from && leaves + count > AHEAD_LEAVES {
                break;
            }
            leaves += count;
            end = slot + 1;
            wanted.extend(below.into_iter().filter(|(pointer, ..)| pointer.has_block()));
        }
        self.store.prefetch(1, wanted.iter().map(|(pointer, ..)| *pointer).collect()).await;
        let mut pointers = Vec::with_capacity(leaves);
        for (pointer, child, rules) in wanted {
            let (Ok(node), Slots::Inner(entries)) = (self.store.node(pointer).await, &child.slots) else { continue };
            // What is only unmapped is read where it is the version's own, to be freed.
            let leaves = entries.iter().map(|entry| (node.pointers[entry.slot()], entry));
            let needed = leaves.filter(|(leaf, entry)| entry.child.is_some() || leaf.birth() > rules.limit_below(0));
            pointers.extend(needed.map(|(leaf, _)| leaf).filter(|leaf| leaf.has_block()));
        }
        self.store.prefetch(0, pointers).await;
        Ok(end)
    }

    /// Frees what is the version's own in a subtree that is unmapped as a whole.
    async fn free_tree(&mut self, part: usize, pointer: Pointer, level: u8, start: u64) -> Result<(), Failure> {
        let rules = self.rules[part];
        if !pointer.has_block() {
            return Ok(());
        }
        if pointer.birth() <= rules.limit_below(start) {
            self.mapped[part] = None;
            return Ok(());
        }
        let node = match self.store.node(pointer).await {
            Ok(node) => node,
            Err(why) => {
                self.lost(part, level, start, &why);
                Rc::new(Node::EMPTY)
            }
        };
        let step = span_blocks(level) / FANOUT as u64;
        if level == 1 {
            let own = |child: &&Pointer| child.has_block() && child.birth() > rules.limit_below(start);
            self.store.prefetch(0, node.pointers.iter().filter(own).copied().collect()).await;
        }
        for (slot, child) in node.pointers.iter().enumerate().filter(|(_, child)| child.has_block()) {
            let below = start + slot as u64 * step;
            if level > 0 {
                Box::pin(self.free_tree(part, *child, level - 1, below)).await?;
            } else {
                self.count(part, -1);
                if child.birth() > rules.limit(below + 1) {
                    self.store.free(child.block());
                }
            }
        }
        if pointer.birth() > rules.limit(start + span_blocks(level)) {
            self.store.free(pointer.block());
        }
        Ok(())
    }
}

impl<'a> Open<'a> {
    fn push(&mut self, layer: &Layer<'a>, base: Base, birth: u64, entries_after: u64) {
        let delta = layer.delta.filter(|delta| delta.birth > entries_after);
        let (pointer, frame) = match (delta, base) {
            (Some(delta), _) => {
                self.frames.push(Frame { part: layer.part, base, delta });
                (Pointer::NULL, Some((self.frames.len() - 1, true)))
            }
            (None, Base::Tree(tree)) => (tree, None),
            (None, Base::Item(frame)) => (Pointer::NULL, Some((frame, false))),
        };
        self.made.push(Made { pointer, birth });
        self.frame_of.push(frame);
    }
}

/// The first slot from `from` on of which a frame says something.
fn next_slot(frames: &[Frame<'_>], from: usize) -> Option<usize> {
    let first = |frame: &Frame<'_>| {
        let entries = frame.inner();
        let at = entries.partition_point(|entry| entry.slot() < from);
        entries.get(at).map(InnerEntry::slot)
    };
    frames.iter().filter_map(first).min()
}

fn layer_of<'a>(frame: &Frame<'a>, node: &Node, slot: usize) -> Layer<'a> {
    let base = match frame.base {
        Base::Tree(_) => Base::Tree(node.pointers[slot]),
        below => below,
    };
    let entry = frame.entry(slot);
    Layer {
        part: frame.part,
        base,
        cut: entry.and_then(InnerEntry::cut),
        delta: entry.and_then(|entry| entry.child.as_deref()),
    }
}
