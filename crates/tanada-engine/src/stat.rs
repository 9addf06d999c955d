//! Figures: of a volume or generation, and of the whole store.

use tanada_format::{TREE_BLOCKS, VersionKind, VersionState};
use uuid::Uuid;

use crate::api::{Reply, StoreStat, VolumeInfo, VolumeKind, VolumeState, VolumeUsage};
use crate::failure::{ENOENT, Failure};
use crate::map::tree::count;
use crate::state::{BLOCK, Handle, Job, Phase, State};
use crate::versions::{Version, VersionId};

impl Handle {
    /// What a version uses, as of a checkpoint that has all of it. Counted once, then remembered until it or a relative
    /// changes.
    pub async fn stat(&self, id: Uuid) -> Result<Reply, Failure> {
        let settled = self.with(|state| {
            let version = state.live(id)?;
            Ok::<_, Failure>(version.own && version.delta.is_empty() && version.frozen.is_empty())
        })?;
        if !settled {
            self.checkpointed().await?;
        }
        let _reading = self.reading();
        let (version, tree) = self.with(|state| state.live(id).map(|version| (version.id, version.tree)))?;
        let known = self.with(|state| state.versions.get(version).and_then(|version| version.mapped));
        let mapped = match known {
            Some(mapped) => mapped,
            None => count::mapped(self, tree).await?,
        };
        let exclusive = self.exclusive(version).await?;
        self.with(|state| {
            let version =
                state.versions.get_mut(version).ok_or_else(|| Failure::new(ENOENT, format!("{id} went away")))?;
            if version.tree == tree {
                version.mapped = Some(mapped);
            }
            let usage = VolumeUsage {
                size: version.size,
                mapped: mapped * BLOCK,
                exclusive: (exclusive.data + exclusive.nodes) * BLOCK,
                shared: mapped.saturating_sub(exclusive.data) * BLOCK,
            };
            let info = state.live(id).map(|version| state.info(version))?;
            Ok(Reply::Usage { info, usage })
        })
    }

    /// Blocks that only this version holds.
    pub async fn exclusive(&self, id: VersionId) -> Result<count::Exclusive, Failure> {
        let _reading = self.reading();
        let asked = self.with(|state| {
            let version = state.versions.get(id)?;
            let children: Vec<_> =
                version.children.iter().filter_map(|child| state.versions.get(*child)).map(|c| c.tree).collect();
            Some((version.exclusive, version.tree, children, state.versions.parent_cut(id)))
        });
        let Some((known, tree, children, parent_cut)) = asked else { return Ok(count::Exclusive::default()) };
        if let Some(known) = known {
            return Ok(known);
        }
        let found = count::exclusive(self, tree, &children, parent_cut).await?;
        self.with(|state| {
            if let Some(version) = state.versions.get_mut(id).filter(|version| version.tree == tree) {
                version.exclusive = Some(found);
            }
        });
        Ok(found)
    }

    /// Counts what ghosts alone hold. A ghost's parent or child may be one, too: a block that several hold is counted at
    /// the topmost, beside the nearest versions below that are none.
    pub async fn count_ghosts(self) {
        let _reading = self.reading();
        let ghosts = self.with(|state| state.versions.ghosts());
        let mut blocks = 0;
        for ghost in ghosts {
            match count::exclusive(&self, ghost.tree, &ghost.below, ghost.parent_cut).await {
                Ok(found) => blocks += found.data + found.nodes,
                Err(failure) => return tracing::warn!(%failure, ghost.id, "a ghost cannot be counted"),
            }
        }
        self.with(|state| state.ghost_held = blocks * BLOCK);
    }
}

/// Ghosts are counted again at most this often: it reads as much as differs.
const GHOST_MICROS: u64 = 60_000_000;

impl State {
    /// Has ghosts counted where that was long ago; the next to ask sees the result.
    pub fn recount_ghosts(&mut self) {
        if !self.versions.iter().any(|version| version.state == VersionState::Ghost) {
            self.ghost_held = 0;
        } else if self.ghosts_counted_at.is_none_or(|at| self.now >= at + GHOST_MICROS) {
            self.ghosts_counted_at = Some(self.now);
            self.jobs.push_back(Job::CountGhosts);
        }
    }

    pub fn info(&self, version: &Version) -> VolumeInfo {
        let parent = self.versions.get(version.parent).filter(|parent| parent.is_live() && !parent.hidden);
        VolumeInfo {
            id: version.uuid,
            kind: match version.kind {
                VersionKind::Head => VolumeKind::Volume,
                VersionKind::Generation => VolumeKind::Generation,
            },
            parent: parent.map(|parent| parent.uuid),
            size: version.size,
            state: match version.state {
                VersionState::Live => VolumeState::Live,
                VersionState::Ghost => VolumeState::Ghost,
                VersionState::Dying => {
                    let done = version.cursor.min(TREE_BLOCKS).saturating_mul(BLOCK).min(version.size);
                    VolumeState::Dying { done, total: version.size }
                }
            },
            open_count: self.open_count(version.id),
        }
    }

    pub fn store_stat(&self) -> StoreStat {
        let geometry = self.alloc.geometry();
        let count =
            |wanted: &dyn Fn(&Version) -> bool| self.versions.iter().filter(|version| wanted(version)).count() as u32;
        let heads = self.versions.iter().filter(|version| version.is_live() && version.kind == VersionKind::Head);
        let cost = self.versions.cost.plus(self.checkpoint.frozen_cost);
        let waiting = self.versions.dropped.len() + self.walked.len();
        StoreStat {
            store: self.store,
            incarnation: self.journal.incarnation,
            checkpoint: self.journal.checkpoint,
            physical: geometry.store_bytes(),
            used: geometry.store_bytes() - self.alloc.free() * BLOCK,
            free: self.alloc.free().saturating_sub(self.reserve()) * BLOCK,
            reserved: self.reserve().min(self.alloc.free()) * BLOCK,
            unreleased: (self.releases.blocks() + self.checkpoint.garbage + waiting as u64) * BLOCK,
            virtual_size: heads.map(|version| version.size).sum(),
            ghost_held: self.ghost_held,
            volumes: count(&|version| version.is_live() && version.kind == VersionKind::Head),
            generations: count(&|v| v.is_live() && v.kind == VersionKind::Generation && !v.hidden),
            dying: count(&|version| version.state == VersionState::Dying),
            journal_used: self.journal.used() * BLOCK,
            journal_size: self.journal.blocks() * BLOCK,
            delta_entries: cost.entries,
            blocks_per_write_x100: (self.data_blocks * 100).checked_div(self.data_writes).unwrap_or(0),
            moved: self.relayout.moved_blocks * BLOCK,
            read_ahead: self.ahead.answered,
            failed: match &self.phase {
                Phase::ReadOnly(message) => Some(message.clone()),
                _ => None,
            },
        }
    }
}
