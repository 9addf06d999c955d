//! V1-V9 against exact reachability: random group snapshots, clones, reverts, deletions in any order, slow walks,
//! work between cut and end of a checkpoint, crashes. No device: trees in memory, versions, cut, merge and walk as the
//! store runs them, beside flat maps.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tanada_format::{Member, Node, Pointer, ROOT_LEVEL, Record, TREE_BLOCKS, Version, VersionKind, VersionState};
use uuid::Uuid;

use crate::failure::{EBUSY, Failure};
use crate::map::delta::Lookup;
use crate::map::tree::merge::{MergeStore, Merged, merge};
use crate::map::tree::walk::{WalkStore, walk};
use crate::map::tree::{NodeSource, diff::diff};
use crate::testing::Random;
use crate::versions::cut::{Cut, cut, finish};
use crate::versions::{VersionId, Versions};

/// 27 places, three slots on each of three levels: borders of leaves and of inner nodes among them.
fn places() -> Vec<u64> {
    let digits = [0u64, 1, 255];
    let mut all = Vec::new();
    for high in digits {
        for middle in digits {
            all.extend(digits.iter().map(|low| high << 16 | middle << 8 | low));
        }
    }
    all
}

/// Runs what never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("trees in memory never wait"),
    }
}

/// Nodes by block.
#[derive(Default)]
struct Memory {
    nodes: RefCell<BTreeMap<u64, Rc<Node>>>,
    next: RefCell<u64>,
    adopted: RefCell<Vec<u64>>,
    freed: RefCell<Vec<u64>>,
    /// Nodes that a walk may still read, and where it has come to.
    budget: RefCell<u64>,
    cursor: RefCell<u64>,
}

impl Memory {
    fn block(&self) -> u64 {
        *self.next.borrow_mut() += 1;
        *self.next.borrow()
    }
}

impl NodeSource for Memory {
    async fn node(&self, pointer: Pointer) -> Result<Rc<Node>, Failure> {
        let mut budget = self.budget.borrow_mut();
        if *budget == 0 {
            return Err(Failure::new(EBUSY, "enough for now"));
        }
        *budget -= 1;
        let nodes = self.nodes.borrow();
        Ok(Rc::clone(nodes.get(&pointer.block()).unwrap_or_else(|| panic!("{pointer:?} leads to a freed node"))))
    }
}

impl MergeStore for Memory {
    async fn write(&self, node: &Rc<Node>, _old: Pointer, birth: u64) -> Result<Pointer, Failure> {
        let block = self.block();
        self.nodes.borrow_mut().insert(block, Rc::clone(node));
        self.adopted.borrow_mut().push(block);
        Ok(Pointer::new(block, birth, 0))
    }

    fn adopt(&self, block: u64) {
        self.adopted.borrow_mut().push(block);
    }

    fn free(&self, block: u64) {
        self.freed.borrow_mut().push(block);
    }

    fn lost(&self, part: usize, level: u8, start: u64, why: &Failure) {
        panic!("memory lost a node of level {level} at place {start} of part {part}: {why}");
    }
}

impl WalkStore for Memory {
    fn free(&self, block: u64) {
        self.freed.borrow_mut().push(block);
    }

    fn advance(&self, cursor: u64) {
        *self.cursor.borrow_mut() = cursor;
    }
}

type Flat = BTreeMap<u64, u64>;

/// What a power cut leaves.
#[derive(Default, Clone)]
struct Durable {
    records: Vec<Version>,
    epoch: u64,
    next_id: VersionId,
    used: BTreeSet<u64>,
    log: Vec<Record>,
}

struct World {
    random: Random,
    memory: Memory,
    versions: Versions,
    flats: BTreeMap<VersionId, Flat>,
    used: BTreeSet<u64>,
    /// Freed by walks since the last cut.
    walked: Vec<u64>,
    durable: Durable,
    /// Cut and not finished.
    running: Option<Cut>,
    since_cut: Vec<Record>,
    names: u128,
}

impl World {
    fn new(seed: u64) -> World {
        let versions = Versions::new(1, 1);
        let durable = Durable { epoch: 1, next_id: 1, ..Durable::default() };
        World {
            random: Random::new(seed),
            memory: Memory::default(),
            versions,
            flats: BTreeMap::new(),
            used: BTreeSet::new(),
            walked: Vec::new(),
            durable,
            running: None,
            since_cut: Vec::new(),
            names: 0,
        }
    }

    fn name(&mut self) -> Uuid {
        self.names += 1;
        Uuid::from_u128(self.names)
    }

    fn live(&mut self, kind: VersionKind) -> Option<VersionId> {
        let all: Vec<VersionId> =
            self.versions.iter().filter(|v| v.is_live() && v.kind == kind).map(|version| version.id).collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len() as u64) as usize])
    }

    fn apply(&mut self, record: Record) {
        self.flatten(&record);
        self.replay(record);
    }

    fn replay(&mut self, record: Record) {
        self.versions.apply(&record).expect("made from what is there");
        self.durable.log.push(record.clone());
        self.since_cut.push(record);
    }

    fn flatten(&mut self, record: &Record) {
        match record {
            Record::Map { head, place, block, .. } => {
                self.flats.entry(*head).or_default().insert(*place, *block);
            }
            Record::Unmap { head, place, blocks } => {
                self.flats.entry(*head).or_default().retain(|at, _| *at < *place || *at >= place + blocks);
            }
            Record::Snapshot { first_id, members, .. } => {
                for (id, member) in (*first_id..).zip(members) {
                    let flat = self.flats.entry(member.head).or_default().clone();
                    self.flats.insert(id, flat);
                }
            }
            Record::Clone { head, generation, .. } | Record::Revert { head, generation, .. } => {
                let flat = self.flats.entry(*generation).or_default().clone();
                self.flats.insert(*head, flat);
            }
            Record::Create { head, .. } => drop(self.flats.insert(*head, Flat::new())),
            _ => {}
        }
    }

    fn act(&mut self) {
        let next_id = self.versions.next_id;
        match self.random.below(100) {
            0..=3 => {
                let uuid = self.name();
                self.apply(Record::Create { head: next_id, size: 1 << 40, uuid });
            }
            4..=54 => {
                let Some(head) = self.live(VersionKind::Head) else { return };
                let places = places();
                let place = places[self.random.below(27) as usize];
                if self.random.below(4) > 0 {
                    let block = self.memory.block();
                    self.apply(Record::Map { head, place, block, crcs: vec![0] });
                } else {
                    let blocks = [1, 2, 256, 1 << 16, 1 << 24][self.random.below(5) as usize];
                    self.apply(Record::Unmap { head, place: place / blocks * blocks, blocks });
                }
            }
            55..=64 => self.snapshot(next_id),
            65..=70 => {
                let Some(generation) = self.live(VersionKind::Generation) else { return };
                let uuid = self.name();
                self.apply(Record::Clone { head: next_id, generation, uuid });
            }
            71..=74 => {
                let Some(generation) = self.live(VersionKind::Generation) else { return };
                let Some(old_head) = self.live(VersionKind::Head) else { return };
                if self.versions.family(generation) == self.versions.family(old_head) {
                    self.apply(Record::Revert { head: next_id, generation, old_head });
                }
            }
            75..=84 => {
                let kind = if self.random.below(4) == 0 { VersionKind::Head } else { VersionKind::Generation };
                let Some(version) = self.live(kind) else { return };
                self.apply(Record::Destroy { version });
            }
            85..=92 => self.walk_a_little(),
            93..=97 => self.move_checkpoint(),
            _ => self.crash(),
        }
    }

    fn snapshot(&mut self, first_id: VersionId) {
        let heads: Vec<VersionId> =
            self.versions.iter().filter(|v| v.is_live() && v.kind == VersionKind::Head).map(|v| v.id).collect();
        let mut members = Vec::new();
        for head in heads {
            if self.random.below(2) == 0 {
                members.push(Member { head, uuid: self.name() });
            }
        }
        if !members.is_empty() && self.versions.iter().count() < 14 {
            let ended = self.versions.epoch;
            self.apply(Record::Snapshot { first_id, ended, hidden: false, members });
        }
    }

    /// Some nodes of a walk, as [`crate::background::walker`] chooses and runs it.
    fn walk_a_little(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(id) = self.versions.next_to_walk(|_| false) else { return };
        let Some(version) = self.versions.get(id) else { return };
        let (tree, cursor, parent_cut) = (version.tree, version.cursor, self.versions.parent_cut(id));
        let child = version.children.first().and_then(|child| self.versions.get(*child));
        let child = child.map_or(Pointer::NULL, |child| child.tree);
        // The way down two trees is ten nodes: enough for a leaf or two, so that cuts and writes come between.
        *self.memory.budget.borrow_mut() = 8 + self.random.below(12);
        *self.memory.cursor.borrow_mut() = cursor;
        let _ = now(walk(&self.memory, tree, child, parent_cut, cursor));
        self.walked.append(&mut self.memory.freed.borrow_mut());
        let cursor = *self.memory.cursor.borrow();
        if let Some(version) = self.versions.get_mut(id) {
            version.cursor = cursor;
        }
    }

    /// Cuts, or finishes what was cut before: other work happens between.
    fn move_checkpoint(&mut self) {
        let Some(made) = self.running.take() else {
            self.running = Some(cut(&mut self.versions, std::mem::take(&mut self.walked)));
            self.since_cut.clear();
            return;
        };
        *self.memory.budget.borrow_mut() = u64::MAX;
        let merged = self.merge(&made);
        for block in self.memory.adopted.borrow_mut().drain(..) {
            assert!(self.used.insert(block), "block {block} is adopted twice (B5)");
        }
        for block in made.walked.iter().copied().chain(self.memory.freed.borrow_mut().drain(..)) {
            assert!(self.used.remove(&block), "block {block} is freed and was not used (B5)");
            self.memory.nodes.borrow_mut().remove(&block);
        }
        finish(&mut self.versions, &made, &merged);
        self.durable = Durable {
            records: made.records.iter().map(|record| record.resolve(&merged)).collect(),
            epoch: made.epoch,
            next_id: made.next_id,
            used: self.used.clone(),
            log: self.since_cut.clone(),
        };
        self.check_used();
    }

    /// What builds upon one another together, in chunks.
    fn merge(&mut self, made: &Cut) -> Vec<Merged> {
        let mut merged: Vec<Merged> = Vec::new();
        for range in made.chunks(1 + self.random.below(4) as usize) {
            let parts = made.parts(range, &merged);
            merged.extend(now(merge(&self.memory, &parts)).expect("memory does not fail"));
        }
        merged
    }

    /// The last durable checkpoint, and the log since.
    fn crash(&mut self) {
        let durable = self.durable.clone();
        self.versions = Versions::new(durable.epoch, durable.next_id);
        for (slot, record) in (0..).zip(&durable.records) {
            self.versions.load(record, slot).expect("saved in order");
        }
        self.versions.load_children().expect("saved in order");
        self.used = durable.used;
        (self.running, self.walked) = (None, Vec::new());
        self.durable.log.clear();
        self.since_cut.clear();
        self.durable.records = durable.records;
        durable.log.into_iter().for_each(|record| self.replay(record));
    }

    /// I4: used are the blocks reachable from versions, of a dying one those right of its cursor.
    fn check_used(&self) {
        let mut reachable = BTreeSet::new();
        for record in &self.durable.records {
            self.reach(record.tree, ROOT_LEVEL, 0, record.cursor, &mut reachable);
        }
        let leaked: Vec<_> = self.used.difference(&reachable).collect();
        let lost: Vec<_> = reachable.difference(&self.used).collect();
        assert!(leaked.is_empty() && lost.is_empty(), "leaked {leaked:?}, freed though in use {lost:?}");
    }

    fn reach(&self, pointer: Pointer, level: u8, start: u64, cursor: u64, reachable: &mut BTreeSet<u64>) {
        let end = start + tanada_format::node::span_blocks(level);
        if pointer.is_null() || end <= cursor {
            return;
        }
        reachable.insert(pointer.block());
        let nodes = self.memory.nodes.borrow();
        let Some(node) = nodes.get(&pointer.block()) else { panic!("{pointer:?} is reachable and freed") };
        for (slot, child) in node.pointers.iter().enumerate().filter(|(_, child)| !child.is_null()) {
            let below = start + slot as u64 * (end - start) / 256;
            if level > 0 {
                self.reach(*child, level - 1, below, cursor, reachable);
            } else if below >= cursor {
                reachable.insert(child.block());
            }
        }
    }

    /// Every live version reads as its flat map.
    fn check_content(&self) {
        for version in self.versions.iter().filter(|version| version.is_live()) {
            let flat = self.flats.get(&version.id).cloned().unwrap_or_default();
            for place in places() {
                let found = match version.delta.get(place) {
                    Lookup::Absent => version.frozen.get(place),
                    found => found,
                };
                let block = match found {
                    Lookup::Data(pointer) => pointer.block(),
                    Lookup::Hole => 0,
                    Lookup::Absent => self.in_tree(version.tree, place),
                };
                assert_eq!(block, flat.get(&place).copied().unwrap_or(0), "version {} at {place:#x}", version.id);
            }
        }
    }

    fn in_tree(&self, tree: Pointer, place: u64) -> u64 {
        let mut pointer = tree;
        for level in (0..=ROOT_LEVEL).rev() {
            if pointer.is_null() {
                return 0;
            }
            let nodes = self.memory.nodes.borrow();
            pointer = nodes[&pointer.block()].pointers[tanada_format::node::slot_of(place, level)];
        }
        pointer.block()
    }

    /// V11: the difference of two versions in trees is that of their flat maps.
    fn check_difference(&mut self) {
        let settled: Vec<VersionId> = self
            .versions
            .iter()
            .filter(|v| v.is_live() && v.own && v.delta.is_empty() && v.frozen.is_empty())
            .map(|version| version.id)
            .collect();
        if settled.is_empty() {
            return;
        }
        let a = settled[self.random.below(settled.len() as u64) as usize];
        let b = settled[self.random.below(settled.len() as u64) as usize];
        let tree = |id| self.versions.get(id).map_or(Pointer::NULL, |version| version.tree);
        *self.memory.budget.borrow_mut() = u64::MAX;
        let runs = now(diff(&self.memory, tree(a), tree(b), 0, TREE_BLOCKS, 10_000)).expect("memory does not fail");
        let (old, new) = (&self.flats[&a], &self.flats[&b]);
        for place in places() {
            let run = runs.iter().find(|run| (run.place..run.place + run.count).contains(&place));
            assert_eq!(run.is_some(), old.get(&place) != new.get(&place), "{a} to {b} at {place:#x}");
            assert!(run.is_none_or(|run| run.mapped == new.contains_key(&place)));
        }
    }

    /// Destroys everything; nothing may be left.
    fn end(&mut self) {
        while let Some(version) = self.live(VersionKind::Head).or_else(|| self.live(VersionKind::Generation)) {
            self.apply(Record::Destroy { version });
        }
        for _ in 0..10_000 {
            if self.versions.iter().next().is_none() && self.running.is_none() {
                assert!(self.used.is_empty(), "left over: {:?}", self.used);
                return;
            }
            self.walk_a_little();
            self.move_checkpoint();
        }
        panic!("deletion does not end: {:?}", self.versions.iter().map(|v| (v.id, v.state)).collect::<Vec<_>>());
    }
}

#[test]
fn versions_agree_with_flat_maps_and_exact_reachability() {
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..500 {
            world.act();
            if world.random.below(10) == 0 {
                world.check_content();
                world.check_difference();
            }
        }
        world.check_content();
        world.end();
    }
}

/// Versions of all three states and interrupted walks do occur: else the test above would show nothing.
#[test]
fn the_model_reaches_what_it_is_meant_to() {
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let mut world = World::new(seed);
        for _ in 0..500 {
            world.act();
            for version in world.versions.iter() {
                seen.insert((version.state == VersionState::Ghost, version.cursor > 0 && version.cursor < TREE_BLOCKS));
            }
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}
