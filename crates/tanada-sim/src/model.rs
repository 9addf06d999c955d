//! The naive model: what clients sent and were answered, without any idea of how a store works.

use std::collections::BTreeMap;

use tanada_engine::ExportId;
use tanada_units::Uuid;

use crate::content::Content;
use crate::history::{BlockHistory, Change, Interval, NEVER, Op};

/// Block number in a volume -> what it may hold. Absent: never written, zeros.
pub type Blocks = BTreeMap<u64, BlockHistory>;

/// A content, and the operation that gave it.
pub type Settled = BTreeMap<u64, (Content, usize)>;

#[derive(Debug, Clone)]
pub struct Volume {
    pub size: u64,
    pub blocks: Blocks,
    /// Volumes and generations of one family may be compared and reverted to.
    pub family: u64,
    pub export: Option<ExportId>,
    /// Operations not known durable.
    pub loose: Vec<usize>,
    /// Requests not answered.
    pub outstanding: u64,
}

#[derive(Debug, Clone)]
pub enum Kept {
    /// Read once; must never read otherwise.
    Settled(Settled),
    /// Not yet read: one instant within the interval, the same for the whole group.
    Open { blocks: Blocks, within: Interval, group: u64 },
}

#[derive(Debug, Clone)]
pub struct Generation {
    /// What it was cut from.
    pub volume: Uuid,
    pub size: u64,
    pub kept: Kept,
    pub family: u64,
}

/// A control operation that was not answered when the crash came: it happened or it did not.
#[derive(Debug, Clone)]
pub enum Limbo {
    Create {
        id: Uuid,
        size: u64,
    },
    Snapshot {
        group: Vec<(Uuid, Uuid)>,
        number: u64,
    },
    /// From a generation, or from a volume.
    Clone {
        source: Uuid,
        volume: Uuid,
    },
    Revert {
        volume: Uuid,
        generation: Uuid,
    },
    Destroy {
        id: Uuid,
    },
    Resize {
        id: Uuid,
        size: u64,
    },
    Grow,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub ops: Vec<Op>,
    pub volumes: BTreeMap<Uuid, Volume>,
    pub generations: BTreeMap<Uuid, Generation>,
    /// What is under way, and when it was submitted.
    pub limbo: Option<(Limbo, u64)>,
    pub next_number: u64,
}

impl Model {
    pub fn new() -> Model {
        // Operation 0 stands for "never written".
        Model { ops: vec![Op { submitted: 0, answered: 0, durable: true }], ..Model::default() }
    }

    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub fn new_op(&mut self, submitted: u64) -> usize {
        self.ops.push(Op { submitted, answered: NEVER, durable: false });
        self.ops.len() - 1
    }

    pub fn add_volume(&mut self, id: Uuid, size: u64, family: u64, blocks: Blocks) {
        let volume = Volume { size, blocks, family, export: None, loose: Vec::new(), outstanding: 0 };
        self.volumes.insert(id, volume);
    }

    /// Bytes at `offset` are overwritten.
    pub fn write(&mut self, volume: Uuid, op: usize, offset: u64, data: &[u8]) {
        let Some(volume) = self.volumes.get_mut(&volume) else { return };
        volume.loose.push(op);
        let mut done = 0;
        while done < data.len() {
            let at = (offset + done as u64) % 4096;
            let take = (data.len() - done).min(4096 - at as usize);
            let block = (offset + done as u64) / 4096;
            let change = Change::Patch { at: at as usize, bytes: data[done..done + take].into() };
            volume.blocks.entry(block).or_insert_with(|| BlockHistory::settled(Content::Zero, 0)).push(op, change);
            done += take;
        }
    }

    /// The range reads as zeros; with `whole_blocks` parts of blocks are left alone.
    pub fn zero(&mut self, volume: Uuid, op: usize, offset: u64, length: u64, whole_blocks: bool) {
        let Some(volume) = self.volumes.get_mut(&volume) else { return };
        volume.loose.push(op);
        let end = offset + length;
        if !whole_blocks {
            for edge in [offset, end] {
                if !edge.is_multiple_of(4096) {
                    volume.blocks.entry(edge / 4096).or_insert_with(|| BlockHistory::settled(Content::Zero, 0));
                }
            }
        }
        for (block, history) in volume.blocks.range_mut(offset / 4096..end.div_ceil(4096)) {
            let (from, to) = (offset.max(block * 4096), end.min((block + 1) * 4096));
            if to - from == 4096 {
                history.push(op, Change::Zero);
            } else if !whole_blocks {
                let zeros = vec![0; (to - from) as usize];
                history.push(op, Change::Patch { at: (from % 4096) as usize, bytes: zeros.into() });
            }
        }
    }

    pub fn answered(&mut self, volume: Uuid, op: usize, at: u64, durable: bool) {
        self.ops[op].answered = at;
        self.ops[op].durable |= durable;
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.outstanding -= 1;
        }
    }

    pub fn failed(&mut self, volume: Uuid, op: usize) {
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.outstanding -= 1;
            volume.blocks.values_mut().for_each(|history| history.doubt(op));
        }
    }

    /// Everything on the volume answered before `submitted` is durable.
    pub fn flushed(&mut self, volume: Uuid, submitted: u64) {
        let ops = &mut self.ops;
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.loose.retain(|op| {
                let covered = ops[*op].answered < submitted;
                ops[*op].durable |= covered;
                !covered && !ops[*op].durable
            });
        }
    }

    pub fn flushed_all(&mut self, submitted: u64) {
        let ids: Vec<Uuid> = self.volumes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.flushed(id, submitted));
    }

    pub fn prune(&mut self, oldest: u64) {
        for volume in self.volumes.values_mut() {
            volume.blocks.values_mut().for_each(|history| history.prune(&self.ops, oldest));
        }
    }

    /// The volume holds exactly this now.
    pub fn settle_volume(&mut self, id: Uuid, settled: &Settled) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.blocks = blocks_of(settled);
            volume.loose.clear();
        }
    }
}

pub fn blocks_of(settled: &Settled) -> Blocks {
    settled.iter().map(|(block, (content, op))| (*block, BlockHistory::settled(content.clone(), *op))).collect()
}
