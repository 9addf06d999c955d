//! The checkpoint: what the journal says becomes trees.
//!
//! ```text
//!   cut (one event) -> merge every changed version -> catalog, bitmaps -> sync
//!       -> superblock into the older slot, both copies -> sync -> trees taken over, journal trimmed, blocks released
//! ```
//! Until the second sync has ended the old superblock stands and nothing it needs is touched (J8, B2). Guests go on
//! throughout: the merge gives way to them ([`crate::background::merging`]), and takes about half of the time that the
//! next era will need to fill, unless somebody waits for it.

use tanada_disk::{Buf, DiskOp};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::superblock::LOST_PLACES;
use tanada_format::{BLOCK_BYTES, Superblock, TREE_BLOCKS};

use crate::background::merging::{MergeIo, Pace};
use crate::failure::{ENOSPC, Failure};
use crate::map::delta::{DeltaCost, drop_some};
use crate::map::tree::merge::Merged;
use crate::space::blocks::Blocks;
use crate::state::{BLOCK, Handle, Job, State};
use crate::versions::cut::{Cut, cut, finish};

/// Delta nodes let go of between two turns: some 200 us.
const DROPPED_PER_TURN: usize = 2000;

/// Bits of bitmaps changed between two turns: some 200 us.
pub const BLOCKS_PER_TURN: usize = 10_000;

/// A merge is stretched over at most so many microseconds for each node: slower helps nobody.
const PACED_MICROS_PER_NODE: u64 = 50;

/// A checkpoint that finds no room on the medium tries again after so many microseconds.
const FULL_MEDIUM_MICROS: u64 = 1_000_000;

/// How often a failing write of a checkpoint is tried before the store gives up (J10).
pub const TRIES: usize = 3;

impl Handle {
    /// Writes a checkpoint; a failure makes the store read-only.
    pub async fn checkpoint(self) {
        let made = self.write_checkpoint().await;
        self.with(|state| {
            state.checkpoint.running = false;
            if let Err(failure) = made {
                state.fail(format!("a checkpoint could not be written: {}", failure.message));
            }
        });
    }

    async fn write_checkpoint(&self) -> Result<(), Failure> {
        let (cut, number, journal_seq, pace) = self.with(State::begin_checkpoint);
        let span = pace.span;
        let (merged, made) = MergeIo::new(self, pace).merge_all(&cut, number).await?;
        if made.has_lost {
            self.with(|state| state.checkpoint.features_required |= LOST_PLACES);
        }
        let mut garbage = made.freed;
        self.add_slowly(&mut garbage, &cut.walked).await;
        self.map_room(self.with(|state| state.catalog_reserve())).await;
        let pages = MergeIo::new(self, Pace::NONE);
        self.save_bitmaps(&made.adopted, &garbage, async |writes| pages.write_pages(writes).await).await?;
        self.add_slowly(&mut garbage, &cut.dropped).await;
        let (superblock, writes, freed) = self.with(|state| state.put_together(&cut, number, journal_seq, &merged))?;
        self.add_slowly(&mut garbage, &freed).await;
        garbage.require_regions()?;
        pages.write_blocks(writes.into_iter().map(|(block, bytes)| (block, *bytes))).await?;
        self.with(|state| state.alloc.pages_written());
        self.with(State::barrier).await?;
        let bytes = Buf::copy_from(&superblock.encode());
        for at in SUPERBLOCK_AT[superblock.slot()] {
            let op = DiskOp::Write { at: at * BLOCK, parts: vec![bytes.clone()] };
            self.write_stubbornly(op, TRIES).await?;
        }
        self.with(State::barrier).await?;
        self.with(|state| state.note_checkpoint(cut.cost.nodes, span));
        self.with(|state| state.end_checkpoint(&cut, &merged, superblock, journal_seq, garbage));
        self.drop_slowly(cut).await;
        Ok(())
    }

    /// Adds to `blocks`, a bounded number per turn.
    async fn add_slowly(&self, blocks: &mut Blocks, more: &[u64]) {
        let geometry = self.with(|state| state.alloc.geometry());
        for chunk in more.chunks(BLOCKS_PER_TURN) {
            chunk.iter().for_each(|block| blocks.push(&geometry, *block));
            self.give_way().await;
        }
    }

    /// Lets go of what was merged, a bounded number of nodes per turn.
    async fn drop_slowly(&self, cut: Cut) {
        let mut left: Vec<_> = cut.items.into_iter().filter_map(|item| item.delta.root).collect();
        while drop_some(&mut left, DROPPED_PER_TURN) {
            self.next_turn().await;
        }
    }

    /// Writes what a checkpoint needs. A medium without room is waited for: guests' writes fail or wait meanwhile, and
    /// nothing is lost. Anything else is tried a few times.
    pub async fn write_stubbornly(&self, op: DiskOp, tries: usize) -> Result<(), Failure> {
        let mut failed = 0;
        loop {
            let errno = match self.disk(op.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => error.errno,
            };
            if errno == ENOSPC {
                let again_at = self.with(State::held_by_full_medium)?;
                self.wait_until(again_at).await;
                continue;
            }
            failed += 1;
            if failed >= tries {
                return Err(State::data_failure(errno, "writing the map"));
            }
        }
    }
}

impl State {
    /// The running checkpoint finds no room on the medium: who waits for it is told, and it goes on trying. When to try
    /// again.
    fn held_by_full_medium(&mut self) -> Result<u64, Failure> {
        self.check_writable()?;
        self.medium_is_full();
        let failure = Failure::new(
            ENOSPC,
            format!(
                "the medium below the store has no room for checkpoint {}; it is tried again",
                self.journal.checkpoint + 1
            ),
        );
        for (_, filler) in std::mem::take(&mut self.checkpoint.waiters) {
            filler.fill(Err(failure.clone()));
        }
        Ok(self.now + FULL_MEDIUM_MICROS)
    }

    /// Starts a checkpoint where one is due and none runs.
    pub fn start_checkpoint(&mut self) {
        if self.can_checkpoint() && (self.checkpoint.wanted || self.checkpoint_is_due()) {
            self.checkpoint.running = true;
            self.checkpoint.wanted = false;
            self.jobs.push_back(Job::Checkpoint);
        }
    }

    pub fn can_checkpoint(&self) -> bool {
        !self.checkpoint.running && !self.pairs.is_busy() && self.phase == crate::state::Phase::Serving
    }

    /// True where something changed that a checkpoint would keep.
    pub fn is_dirty(&self) -> bool {
        self.versions.cost != DeltaCost::default()
            || !self.versions.dropped.is_empty()
            || !self.walked.is_empty()
            || self.journal.used() > 1
            || self.versions.dying().any(|version| version.cursor == TREE_BLOCKS)
    }

    fn checkpoint_is_due(&self) -> bool {
        let used = self.journal.used() * 100;
        let garbage = (self.versions.dropped.len() + self.walked.len()) as u64;
        used >= self.journal.blocks() * self.config.checkpoint_journal_percent
            || self.versions.cost.entries >= self.config.checkpoint_entries
            || self.versions.cost.bytes() >= self.delta_limit() / 2
            || garbage > (self.alloc.free() / 4).max(256)
            || self.now >= self.checkpoint.last_at + self.config.checkpoint_micros && self.is_dirty()
    }

    /// The cut, the number and journal start of the checkpoint, and how fast it goes.
    fn begin_checkpoint(&mut self) -> (Cut, u64, u64, Pace) {
        assert!(!self.pairs.is_busy(), "a cut while a record waits for its data");
        self.journal.seal();
        let walked = std::mem::take(&mut self.walked);
        let cut = cut(&mut self.versions, walked);
        self.checkpoint.cuts += 1;
        self.checkpoint.frozen_cost = cut.cost;
        self.checkpoint.garbage = (cut.walked.len() + cut.dropped.len()) as u64;
        let era = self.now - self.checkpoint.cut_at;
        self.checkpoint.cut_at = self.now;
        // A small merge disturbs nobody.
        let nodes = if cut.cost.nodes >= self.config.paced_nodes_min { cut.cost.nodes } else { 0 };
        let pace = Pace { began: self.now, span: (era / 2).min(nodes * PACED_MICROS_PER_NODE), nodes };
        self.expect_checkpoint(cut.cost.nodes);
        (cut, self.journal.checkpoint + 1, self.journal.next_seq(), pace)
    }

    /// Everything is merged and written, the bitmaps are up to date: lays out catalog and superblock. Returns what to
    /// write, and the catalog's old places.
    #[expect(clippy::type_complexity, reason = "three plain results of one step")]
    fn put_together(
        &mut self,
        cut: &Cut,
        number: u64,
        journal_seq: u64,
        merged: &[Merged],
    ) -> Result<(Superblock, Vec<(u64, Box<[u8; BLOCK_BYTES]>)>, Vec<u64>), Failure> {
        let records: Vec<(u64, tanada_format::Version)> =
            cut.records.iter().map(|record| (record.slot, record.resolve(merged))).collect();
        let slots = records.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0);
        self.checkpoint.slots = self.checkpoint.slots.max(slots);
        let saved = self.catalog.save(&records, cut.epoch, &mut self.alloc)?;
        let Some(last) = &self.superblock else { return Err(Failure::new(ENOSPC, "the store is not open")) };
        let superblock = Superblock {
            features_required: last.features_required | self.checkpoint.features_required,
            checkpoint: number,
            incarnation: self.journal.incarnation,
            epoch: cut.epoch,
            next_version: cut.next_id,
            version_slots: self.checkpoint.slots,
            geometry: self.alloc.geometry(),
            journal_seq,
            used_blocks: self.alloc.used(),
            catalog: saved.root,
            ..last.clone()
        };
        Ok((superblock, saved.writes, saved.freed))
    }

    /// The superblock is durable.
    fn end_checkpoint(
        &mut self,
        cut: &Cut,
        merged: &[Merged],
        superblock: Superblock,
        journal_seq: u64,
        garbage: Blocks,
    ) {
        finish(&mut self.versions, cut, merged);
        self.journal.trim(superblock.checkpoint, journal_seq);
        self.superblock = Some(superblock);
        self.checkpoint.finished += 1;
        self.checkpoint.frozen_cost = DeltaCost::default();
        self.checkpoint.garbage = 0;
        self.checkpoint.last_at = self.now;
        self.checkpoint.urgent = self.checkpoint.wanted;
        self.releases.later(garbage);
        self.yield_ahead();
        let finished = self.checkpoint.finished;
        for (cut, filler) in std::mem::take(&mut self.checkpoint.waiters) {
            if cut <= finished {
                filler.fill(Ok(()));
            } else {
                self.checkpoint.waiters.push((cut, filler));
            }
        }
        self.room_waiters.drain(..).for_each(|filler| filler.fill(()));
    }
}
