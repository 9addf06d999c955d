//! Deletion in the background: one walk at a time, between checkpoints, with a cursor (V4, V6, V7).
//!
//! A walk reads the trees of the last checkpoint and stops at the next cut, which saves its frees and its cursor
//! together; after that checkpoint it goes on from there, on the new trees.

use std::rc::Rc;

use tanada_format::{Node, Pointer};

use crate::api::{Alert, Reply, RequestId};
use crate::background::ahead::Ahead;
use crate::failure::{EBUSY, EIO, Failure};
use crate::map::tree::NodeSource;
use crate::map::tree::walk::{WalkStore, walk};
use crate::state::{BLOCK, Handle, Phase, State};
use crate::versions::VersionId;

/// Nodes read between two turns.
const NODES_PER_TURN: usize = 32;

/// Where guests write, a checkpoint is made for the sake of deletion after this many microseconds.
const DELETION_MICROS: u64 = 1_000_000;

struct WalkIo {
    handle: Handle,
    ahead: Ahead,
    version: VersionId,
    /// Cuts made when it began; it ends when there is another.
    cuts: u64,
    nodes: std::cell::Cell<usize>,
}

impl NodeSource for WalkIo {
    async fn node(&self, pointer: Pointer) -> Result<Rc<Node>, Failure> {
        self.pace().await;
        let node = self.ahead.node(pointer).await;
        // Everything from here to the next node happens at one instant.
        let go_on = self.handle.with(|state| {
            let room = (state.walked.len() as u64) < state.config.walk_blocks;
            state.checkpoint.cuts == self.cuts && room && state.phase == Phase::Serving
        });
        if go_on { node } else { Err(Failure::new(EBUSY, "interrupted by a cut")) }
    }

    async fn prefetch(&self, level: u8, pointers: Vec<Pointer>) {
        self.ahead.read(level, pointers, async || self.pace().await).await;
    }
}

impl WalkIo {
    async fn pace(&self) {
        let nodes = self.nodes.get() + 1;
        self.nodes.set(nodes);
        if nodes.is_multiple_of(NODES_PER_TURN) && !self.handle.with(|state| state.checkpoint.urgent) {
            self.handle.next_turn().await;
        }
    }
}

impl WalkStore for WalkIo {
    fn free(&self, block: u64) {
        self.handle.with(|state| state.walked.push(block));
    }

    fn advance(&self, cursor: u64) {
        self.handle.with(|state| {
            if let Some(version) = state.versions.get_mut(self.version) {
                version.cursor = cursor;
            }
        });
    }
}

impl Handle {
    /// Walks dying versions until a cut comes or there is nothing to walk.
    pub async fn walk(self) {
        self.with(|state| state.walk_queued = false);
        while let Some((version, dying, child, parent_cut, cursor, cuts)) = self.with(State::begin_walk) {
            let ahead = Ahead::new(&self);
            let io = WalkIo { handle: self.clone(), ahead, version, cuts, nodes: std::cell::Cell::new(0) };
            let reading = self.reading();
            let result = walk(&io, dying, child, parent_cut, cursor).await;
            drop(reading);
            tracing::debug!(version, reads = io.ahead.reads(), "map nodes of a walk");
            let go_on = self.with(|state| state.end_walk(version, cuts, result));
            if !go_on {
                break;
            }
            self.next_turn().await;
        }
    }
}

impl State {
    /// What to walk next, and where from.
    fn begin_walk(&mut self) -> Option<(VersionId, Pointer, Pointer, u64, u64, u64)> {
        if self.walking.is_some() || self.checkpoint.running || self.phase != Phase::Serving {
            return None;
        }
        let id = self.next_to_walk()?;
        self.walking = Some(id);
        let version = self.versions.get(id)?;
        let child = version.children.first().and_then(|child| self.versions.get(*child));
        let child = child.map_or(Pointer::NULL, |child| child.tree);
        Some((id, version.tree, child, self.versions.parent_cut(id), version.cursor, self.checkpoint.cuts))
    }

    fn end_walk(&mut self, id: VersionId, cuts: u64, result: Result<(), Failure>) -> bool {
        self.walking = None;
        match result {
            Ok(()) => {
                // The next of its family goes on from the checkpoint that takes this one out (V7).
                let others = self.versions.dying().any(|version| version.id != id);
                let seldom = self.ops.is_empty() || self.now >= self.checkpoint.last_at + DELETION_MICROS;
                self.checkpoint.wanted |= others && seldom;
                true
            }
            Err(failure) if failure.errno == EBUSY => {
                if self.checkpoint.cuts == cuts {
                    self.checkpoint.wanted = true; // its bound is reached
                }
                false
            }
            Err(failure) => {
                let uuid = self.versions.get(id).map(|version| version.uuid).unwrap_or_default();
                let offset = self.versions.get(id).map_or(0, |version| version.cursor.saturating_mul(BLOCK));
                let message = format!("its space cannot be given back: {}", failure.message);
                self.alert(Alert::Damage { volume: uuid, offset, message });
                self.walk_failed.insert(id);
                true
            }
        }
    }

    pub fn next_to_walk(&self) -> Option<VersionId> {
        self.versions.next_to_walk(|id| self.walk_failed.contains(&id))
    }

    /// Notes who waits until nothing is pending. In a store that is read-only that never comes.
    pub fn wait_to_settle(&mut self, request: RequestId) {
        match self.check_writable() {
            Err(failure) if self.is_read_only() => self.reply(request, Err(failure)),
            _ => self.settle_waiters.push(request),
        }
    }

    /// Answers those who wait until nothing is pending, or sees to it that it ends.
    pub fn settle(&mut self) {
        if self.settle_waiters.is_empty() {
            return;
        }
        if self.checkpoint.running {
            self.checkpoint.urgent = true;
        } else if self.wants_to_settle() {
            self.want_checkpoint();
        } else if self.walking.is_none() && !self.has_garbage() && self.releases.is_empty() {
            let stuck = self.versions.dying().find(|version| self.walk_failed.contains(&version.id));
            let result = match stuck {
                None => Ok(Reply::Done),
                Some(version) => Err(Failure::new(EIO, format!("the space of {} is stuck: damage", version.uuid))),
            };
            for request in std::mem::take(&mut self.settle_waiters) {
                self.reply(request, result.clone());
            }
        }
    }

    /// Somebody waits until nothing is pending, and only a checkpoint brings that nearer.
    pub fn wants_to_settle(&self) -> bool {
        let waits = !self.settle_waiters.is_empty() && !self.checkpoint.running;
        waits && self.has_garbage() && !self.has_walk()
    }

    /// True where a walk is on its way, or can be begun before the next checkpoint.
    pub fn has_walk(&self) -> bool {
        self.walking.is_some() || self.has_room_for_walk() && self.next_to_walk().is_some()
    }

    /// What walks free is bounded between two checkpoints.
    fn has_room_for_walk(&self) -> bool {
        (self.walked.len() as u64) < self.config.walk_blocks
    }

    /// Something dropped is not given back yet, and can be.
    fn has_garbage(&self) -> bool {
        let walkable = self.versions.dying().any(|version| !self.walk_failed.contains(&version.id));
        walkable || !self.walked.is_empty() || !self.versions.dropped.is_empty()
    }

    /// Starts a walk where there is something to walk.
    pub fn start_walk(&mut self) {
        if self.can_walk() {
            self.walk_queued = true;
            self.jobs.push_back(crate::state::Job::Walk);
        }
    }

    pub fn can_walk(&self) -> bool {
        let can = !self.checkpoint.running && self.walking.is_none() && self.phase == Phase::Serving;
        can && self.has_room_for_walk()
            && !self.walk_queued
            && self.versions.has_dying()
            && self.next_to_walk().is_some()
    }
}
