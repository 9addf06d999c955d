//! The trees of all versions, parents before children: I1, I2, births, checksums.

use std::collections::{BTreeMap, BTreeSet};

use super::space::Marks;
use super::state::{read_checked, read_node};
use super::{CheckOptions, Findings, ReadAt, VersionUsage, name};
use crate::node::{Node, ROOT_LEVEL, span_blocks};
use crate::pointer::Pointer;
use crate::superblock::{LOST_PLACES, Superblock};
use crate::version::{Version, VersionKind, VersionState};

/// What the checker says of a store with lost places that an older reader would take for sound.
pub const UNANNOUNCED: &str = "of which the superblock's required features say nothing";

/// Walks all versions; returns what each uses.
pub(super) fn check_versions(
    source: &dyn ReadAt,
    superblock: &Superblock,
    versions: &[Version],
    options: CheckOptions,
    marks: &mut Marks,
    findings: &mut Findings,
) -> Vec<VersionUsage> {
    let by_id: BTreeMap<u64, &Version> = versions.iter().map(|version| (version.id, version)).collect();
    let mut walker = TreeWalker { source, superblock, options, marks, findings, counts: BTreeMap::new(), owned: 0 };
    let mut usage = Vec::new();
    for version in parents_first(versions) {
        walker.owned = 0;
        let chain = ancestors(version, &by_id);
        let references: Vec<Pointer> = chain.iter().map(|ancestor| ancestor.tree).collect();
        let mapped_blocks = walker.subtree(
            version,
            &chain,
            version.tree,
            &references,
            ROOT_LEVEL,
            0,
            version_last(version, superblock),
        );
        usage.push(VersionUsage { version: version.clone(), mapped_blocks, own_blocks: walker.owned });
    }
    usage.sort_by_key(|usage| usage.version.id);
    usage
}

/// The newest birth that may stand in the version's tree.
fn version_last(version: &Version, superblock: &Superblock) -> u64 {
    if version.kind == VersionKind::Generation { version.ended } else { superblock.epoch }
}

/// Generations in the order of their ends, then heads: parents come before their children.
fn parents_first(versions: &[Version]) -> Vec<&Version> {
    let mut order: Vec<&Version> = versions.iter().collect();
    order.sort_by_key(|version| (version.kind == VersionKind::Head, version.ended, version.id));
    order
}

/// Parent, and as long as these are being walked, their parents: left of a cursor a child counts as the grandparent's.
fn ancestors<'a>(version: &Version, by_id: &BTreeMap<u64, &'a Version>) -> Vec<&'a Version> {
    let mut chain: Vec<&Version> = Vec::new();
    let mut id = version.parent;
    while let Some(parent) = by_id.get(&id) {
        chain.push(parent);
        if parent.state != VersionState::Dying || chain.len() > by_id.len() {
            break;
        }
        id = parent.parent;
    }
    chain
}

struct TreeWalker<'a> {
    source: &'a dyn ReadAt,
    superblock: &'a Superblock,
    options: CheckOptions,
    marks: &'a mut Marks,
    findings: &'a mut Findings,
    /// Data blocks below each node reached so far.
    counts: BTreeMap<u64, u64>,
    owned: u64,
}

impl TreeWalker<'_> {
    /// Checks what `pointer` of `version` leads to, a node of `level` at `place`; returns its data blocks.
    /// `references` are the pointers of the `chain` of ancestors at the same place, `newest` the birth of the node above.
    #[allow(clippy::too_many_arguments)]
    fn subtree(
        &mut self,
        version: &Version,
        chain: &[&Version],
        pointer: Pointer,
        references: &[Pointer],
        level: u8,
        place: u64,
        newest: u64,
    ) -> u64 {
        let end = place + span_blocks(level);
        if !self.judge(version, chain, pointer, references, end, place, newest) {
            return self.counts.get(&pointer.block()).copied().unwrap_or(0);
        }
        let text = || format!("{}, level {level}, place {place}", name(version));
        let node = match read_node(self.source, pointer, self.superblock) {
            Ok(node) => node,
            Err(error) => {
                self.findings.add(format!("{}: {error}", text()));
                return 0;
            }
        };
        let above: Vec<Node> = references.iter().map(|pointer| self.reference_node(*pointer)).collect();
        let (mut count, mut lost) = (0, Vec::new());
        for (slot, child) in node.pointers.iter().enumerate() {
            let place = place + slot as u64 * (span_blocks(level) / 256);
            let references: Vec<Pointer> = above.iter().map(|node| node.pointers[slot]).collect();
            count += match level.checked_sub(1) {
                _ if child.is_lost() => {
                    let end = place + span_blocks(level) / 256;
                    if self.judge(version, chain, *child, &references, end, place, pointer.birth()) {
                        lost.push(slot as u64);
                    }
                    0
                }
                Some(below) if !child.is_null() => {
                    self.subtree(version, chain, *child, &references, below, place, pointer.birth())
                }
                None if !child.is_null() => {
                    self.data(version, chain, *child, &references, place, pointer.birth());
                    1
                }
                _ => 0,
            };
        }
        if !lost.is_empty() && self.superblock.features_required & LOST_PLACES == 0 {
            self.findings.add(format!("{}: lost places, {UNANNOUNCED} (M1)", text()));
        }
        for run in lost.chunk_by(|a, b| a + 1 == *b) {
            let step = span_blocks(level) / 256;
            let (first, blocks) = (place + run[0] * step, run.len() as u64 * step);
            let name = name(version);
            self.findings
                .add(format!("{name}: {blocks} blocks from place {first} on are lost with a damaged map node"));
        }
        self.counts.insert(pointer.block(), count);
        count
    }

    /// Ancestors' nodes are only compared with; what is wrong with them was said when they were walked.
    fn reference_node(&self, pointer: Pointer) -> Node {
        if !pointer.has_block() {
            return Node::filled(pointer);
        }
        read_node(self.source, pointer, self.superblock).unwrap_or(Node::EMPTY)
    }

    fn data(
        &mut self,
        version: &Version,
        chain: &[&Version],
        pointer: Pointer,
        references: &[Pointer],
        place: u64,
        newest: u64,
    ) {
        let owned = self.judge(version, chain, pointer, references, place + 1, place, newest);
        if place >= version.size / 4096 && owned && version.state == VersionState::Live {
            self.findings.add(format!(
                "{}: place {place} is mapped, beyond its size of {} bytes",
                name(version),
                version.size
            ));
        }
        if owned
            && self.options.data
            && let Err(error) = read_checked(self.source, pointer, "data")
        {
            self.findings.add(format!("{}, offset {}: {error}", name(version), place * 4096));
        }
    }

    /// Whether the version has this block, or this loss, for itself: a block is marked then.
    /// False where an ancestor has it, or where the walk of a dying version has passed.
    #[allow(clippy::too_many_arguments)]
    fn judge(
        &mut self,
        version: &Version,
        chain: &[&Version],
        pointer: Pointer,
        references: &[Pointer],
        end: u64,
        place: u64,
        newest: u64,
    ) -> bool {
        if pointer.is_null() || version.state == VersionState::Dying && end <= version.cursor {
            return false;
        }
        let passed = |ancestor: &&Version| ancestor.state == VersionState::Dying && end <= ancestor.cursor;
        let measured = chain.iter().zip(references).find(|(ancestor, _)| !passed(ancestor));
        let (ended, reference) = measured.map_or((0, Pointer::NULL), |(ancestor, pointer)| (ancestor.ended, *pointer));
        if pointer == reference {
            return false;
        }
        let text = |what: String| format!("{}, place {place}, {pointer:?}: {what}", name(version));
        if pointer.birth() <= ended {
            self.findings.add(text(format!("born up to {ended} and not its parent's, which is {reference:?} (I1)")));
            return false;
        }
        if pointer.birth() > newest {
            self.findings.add(text(format!("born after {newest}, the birth of what holds it (V2)")));
        }
        if pointer.is_lost() {
            return true; // and has no block to be marked
        }
        match self.marks.mark(pointer.block()) {
            Ok(()) => {
                self.owned += 1;
                true
            }
            Err(error) => {
                self.findings.add(text(format!("{error} (I2)")));
                false
            }
        }
    }
}

/// All blocks that a version's tree reaches, data and nodes, without pruning: for comparing counts in small stores.
/// Errors: what cannot be read.
pub fn reachable(source: &dyn ReadAt, superblock: &Superblock, version: &Version) -> Result<BTreeSet<u64>, String> {
    let mut blocks = BTreeSet::new();
    let mut todo = vec![(version.tree, ROOT_LEVEL, 0u64)];
    while let Some((pointer, level, place)) = todo.pop() {
        if !pointer.has_block() || place + span_blocks(level) <= version.cursor {
            continue;
        }
        blocks.insert(pointer.block());
        let node = read_node(source, pointer, superblock)?;
        for (slot, child) in node.pointers.iter().enumerate().filter(|(_, child)| child.has_block()) {
            match level.checked_sub(1) {
                Some(below) => todo.push((*child, below, place + slot as u64 * (span_blocks(level) / 256))),
                None => drop(blocks.insert(child.block())),
            }
        }
    }
    Ok(blocks)
}
