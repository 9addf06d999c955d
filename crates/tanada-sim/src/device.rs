//! A device in memory that may do everything a real one may.
//!
//! - Operations end in any order, some much later than others.
//! - A write is visible when it ended, perhaps earlier, perhaps in part; it is durable when a sync ended that was issued
//!   after the write had ended.
//! - Power cut: of writes that ended unsynced and of those in flight any subset of 512-byte sectors survives; of two
//!   that ended one after the other on one sector the older may survive alone, but never on top of the newer.
//! - Kill of the process: what ended stays (in the cache: a power cut may still take it), what was in flight lands or not.
//! - Faults on demand: failing reads, writes, syncs; flipped bits. After a failed sync what it covered may be gone.

use std::collections::BTreeMap;
use std::rc::Rc;

use tanada_disk::{Buf, BufMut, DiskError, DiskOp, DiskResult};
use tanada_engine::IoId;

use crate::content::BLOCK;
use crate::rng::Rng;

const SECTOR: usize = 512;

/// Where data begins with the small journals of simulated stores: behind two segments.
pub const REGIONS_START: u64 = 2048;

type Bytes = Rc<[u8; BLOCK]>;

/// Chances of faults, per mille of operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub read: u64,
    pub write: u64,
    pub sync: u64,
    /// Of writes beyond superblocks and journal.
    pub data: u64,
    /// Of those: what is below is full, and refuses this one and some more.
    pub full: u64,
}

impl Faults {
    pub fn any(&self) -> bool {
        self.read + self.write + self.sync + self.data + self.full > 0
    }
}

/// Writes that a full medium refuses before it has room again, at most.
const REFUSED_MAX: u64 = 12;

/// How a planted liar of a device misbehaves; for tests that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lie {
    #[default]
    None,
    /// Answers syncs without doing them.
    SyncsNothing,
    /// Keeps old content for one write in a hundred, and says it wrote.
    LosesWrites,
}

#[derive(Debug, Clone)]
struct Unsynced {
    serial: u64,
    block: u64,
    bytes: Bytes,
}

#[derive(Debug, Clone)]
struct InFlight {
    io: IoId,
    op: DiskOp,
    /// Event count before which it does not end.
    slow_until: u64,
    /// For syncs: the last write that had ended when it was issued.
    covers: u64,
    early_read: Option<Buf>,
}

/// Counts for reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceCounts {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub punches: u64,
    /// Injected.
    pub faults: u64,
}

#[derive(Debug, Clone)]
pub struct SimDevice {
    current: BTreeMap<u64, Bytes>,
    durable: BTreeMap<u64, Bytes>,
    unsynced: Vec<Unsynced>,
    in_flight: Vec<InFlight>,
    serial: u64,
    length_blocks: u64,
    pub faults: Faults,
    /// A sync failed since this was last cleared: acknowledged data may be gone as after a power cut.
    pub sync_failed: bool,
    /// Writes that are still to be refused for want of room.
    refuses: u64,
    pub lie: Lie,
    /// So many of a hundred operations take up to so many events.
    pub slow: (u64, u64),
    /// The next sync is one of them.
    pub slow_sync: bool,
    /// So many of a hundred hole punches are.
    pub slow_punch_percent: u64,
    /// They are slow even where nothing else is left to end.
    pub patient: bool,
    pub counts: DeviceCounts,
}

impl SimDevice {
    /// An empty device of `length` bytes; reads as zeros.
    pub fn new(length: u64) -> SimDevice {
        SimDevice {
            current: BTreeMap::new(),
            durable: BTreeMap::new(),
            unsynced: Vec::new(),
            in_flight: Vec::new(),
            serial: 0,
            length_blocks: length / BLOCK as u64,
            faults: Faults::default(),
            sync_failed: false,
            refuses: 0,
            lie: Lie::None,
            slow: (3, 1500),
            slow_sync: false,
            slow_punch_percent: 0,
            patient: false,
            counts: DeviceCounts::default(),
        }
    }

    pub fn length_bytes(&self) -> u64 {
        self.length_blocks * BLOCK as u64
    }

    /// Writes durably, outside of any engine: for formatting.
    pub fn preset(&mut self, at: u64, bytes: &[u8]) {
        for (n, chunk) in bytes.chunks(BLOCK).enumerate() {
            let block = at / BLOCK as u64 + n as u64;
            let mut whole = [0; BLOCK];
            whole[..chunk.len()].copy_from_slice(chunk);
            self.current.insert(block, Rc::new(whole));
            self.durable.insert(block, Rc::new(whole));
        }
    }

    /// What a read of the block gives now.
    pub fn peek(&self, block: u64) -> [u8; BLOCK] {
        self.current.get(&block).map_or([0; BLOCK], |bytes| **bytes)
    }

    /// Blocks that hold anything.
    pub fn written_blocks(&self) -> Vec<u64> {
        self.current.keys().copied().collect()
    }

    /// Rot: one bit of the block changes, durably.
    pub fn flip_bit(&mut self, block: u64, bit: u64) {
        let mut bytes = self.peek(block);
        bytes[bit as usize / 8 % BLOCK] ^= 1 << (bit % 8);
        self.current.insert(block, Rc::new(bytes));
        self.durable.insert(block, Rc::new(bytes));
    }

    pub fn is_punching(&self) -> bool {
        self.in_flight.iter().any(|operation| matches!(operation.op, DiskOp::Punch { .. }))
    }

    pub fn is_syncing(&self) -> bool {
        self.in_flight.iter().any(|operation| matches!(operation.op, DiskOp::Sync))
    }

    /// An operation in flight that changes blocks which `op` changes, too.
    pub fn changed_under(&self, op: &DiskOp) -> Option<&DiskOp> {
        let (first, end) = changed(op)?;
        let crosses = |other: &&DiskOp| changed(other).is_some_and(|other| other.0 < end && first < other.1);
        self.in_flight.iter().map(|operation| &operation.op).find(crosses)
    }

    /// The first and last blocks of reads in flight, begun after `since`, that `op` changes. What lies between them may be
    /// read only because it is less than another read would cost.
    pub fn read_under(&self, op: &DiskOp, since: IoId) -> Vec<u64> {
        let Some((first, end)) = changed(op) else { return Vec::new() };
        let wanted = |operation: &InFlight| match operation.op {
            DiskOp::Read { at, length } if operation.io > since => vec![at, at + u64::from(length) - BLOCK as u64],
            _ => Vec::new(),
        };
        let wanted = self.in_flight.iter().flat_map(wanted);
        wanted.filter(|at| (first..end).contains(at)).map(|at| at / BLOCK as u64).collect()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Takes an operation. `events` is the count of events so far.
    pub fn issue(&mut self, io: IoId, op: DiskOp, events: u64, rng: &mut Rng) {
        let slow = match op {
            DiskOp::Sync => std::mem::take(&mut self.slow_sync),
            DiskOp::Punch { .. } => self.slow_punch_percent > 0 && rng.chance(self.slow_punch_percent),
            _ => false,
        };
        let slow_until = if slow || rng.chance(self.slow.0) { events + rng.within(50, self.slow.1) } else { 0 };
        let mut early_read = None;
        match &op {
            DiskOp::Read { at, length } if rng.chance(30) => early_read = Some(self.gather(*at, *length)),
            DiskOp::Write { at, parts } if rng.chance(30) => {
                for (block, bytes) in blocks_of(*at, parts) {
                    let torn = self.torn(&self.current, block, &bytes, if rng.chance(50) { 50 } else { 100 }, rng);
                    self.current.insert(block, torn);
                }
            }
            _ => {}
        }
        self.in_flight.push(InFlight { io, op, slow_until, covers: self.serial, early_read });
    }

    /// Ends one operation of the device's choice; `None` where nothing is in flight, or nothing that may end yet.
    pub fn finish_one(&mut self, events: u64, rng: &mut Rng) -> Option<(IoId, DiskResult)> {
        if self.in_flight.is_empty() {
            return None;
        }
        let ready: Vec<usize> = (0..self.in_flight.len()).filter(|n| self.in_flight[*n].slow_until <= events).collect();
        if ready.is_empty() && self.patient {
            return None;
        }
        let which = match ready.is_empty() {
            true => rng.below(self.in_flight.len() as u64) as usize,
            false if rng.chance(40) => ready[0],
            false => *rng.pick(&ready),
        };
        let ended = self.in_flight.remove(which);
        let io = ended.io;
        Some((io, self.finish(ended, rng)))
    }

    fn finish(&mut self, ended: InFlight, rng: &mut Rng) -> DiskResult {
        match ended.op {
            DiskOp::Read { at, length } => {
                self.counts.reads += 1;
                let failed = rng.below(1000) < self.faults.read;
                self.counts.faults += u64::from(failed);
                if failed || at + u64::from(length) > self.length_bytes() {
                    return Err(DiskError::EIO);
                }
                Ok(Some(ended.early_read.unwrap_or_else(|| self.gather(at, length))))
            }
            DiskOp::Write { at, parts } => self.finish_write(at, &parts, rng),
            DiskOp::Sync => self.finish_sync(ended.covers, rng),
            DiskOp::Punch { at, length } => {
                self.counts.punches += 1;
                self.finish_punch(at, length, rng);
                Ok(None)
            }
            DiskOp::Grow { length } => {
                self.length_blocks = self.length_blocks.max(length / BLOCK as u64);
                Ok(None)
            }
        }
    }

    fn finish_write(&mut self, at: u64, parts: &[Buf], rng: &mut Rng) -> DiskResult {
        self.counts.writes += 1;
        let blocks = blocks_of(at, parts);
        if at / BLOCK as u64 + blocks.len() as u64 > self.length_blocks {
            return Err(DiskError::EIO);
        }
        self.serial += 1;
        let is_full = self.is_full(at, rng);
        let mut failed = is_full || rng.below(1000) < self.faults.write;
        if self.faults.data > 0 && at / BLOCK as u64 >= REGIONS_START {
            failed |= rng.below(1000) < self.faults.data;
        }
        self.counts.faults += u64::from(failed);
        let lost = self.lie == Lie::LosesWrites && rng.chance(1);
        for (block, bytes) in blocks {
            if lost {
                continue;
            }
            let bytes = if failed { self.torn(&self.current, block, &bytes, 50, rng) } else { bytes };
            self.current.insert(block, Rc::clone(&bytes));
            self.unsynced.push(Unsynced { serial: self.serial, block, bytes });
        }
        match (failed, is_full) {
            (false, _) => Ok(None),
            (true, false) => Err(DiskError::EIO),
            (true, true) => Err(DiskError::ENOSPC),
        }
    }

    /// True where what is below the store has no room for a write at `at`; journal and superblocks have theirs.
    fn is_full(&mut self, at: u64, rng: &mut Rng) -> bool {
        if self.faults.full == 0 || at / (BLOCK as u64) < REGIONS_START {
            return false;
        }
        if self.refuses == 0 && rng.below(1000) < self.faults.full {
            self.refuses = rng.within(1, REFUSED_MAX);
        }
        let is_full = self.refuses > 0;
        self.refuses = self.refuses.saturating_sub(1);
        is_full
    }

    fn finish_sync(&mut self, covers: u64, rng: &mut Rng) -> DiskResult {
        self.counts.syncs += 1;
        if self.lie == Lie::SyncsNothing {
            return Ok(None);
        }
        let failed = rng.below(1000) < self.faults.sync;
        self.counts.faults += u64::from(failed);
        self.sync_failed |= failed;
        let (covered, rest): (Vec<Unsynced>, Vec<Unsynced>) =
            std::mem::take(&mut self.unsynced).into_iter().partition(|write| write.serial <= covers);
        self.unsynced = rest;
        let mut lost = Vec::new();
        for write in covered {
            if failed && rng.chance(50) {
                lost.push(write.block);
            } else {
                self.durable.insert(write.block, write.bytes);
            }
        }
        lost.into_iter().for_each(|block| self.forget_cached(block));
        if failed { Err(DiskError::EIO) } else { Ok(None) }
    }

    /// After a failed sync the cache drops pages that it could not write: the block is what the medium and later writes say.
    fn forget_cached(&mut self, block: u64) {
        let later = self.unsynced.iter().rev().find(|write| write.block == block).map(|write| Rc::clone(&write.bytes));
        match later.or_else(|| self.durable.get(&block).cloned()) {
            Some(bytes) => self.current.insert(block, bytes),
            None => self.current.remove(&block),
        };
    }

    /// Zeros, garbage or the old content: the engine relies on none of them.
    fn finish_punch(&mut self, at: u64, length: u64, rng: &mut Rng) {
        self.serial += 1;
        let fill = match rng.below(3) {
            0 => return,
            1 => 0,
            _ => 0xdb,
        };
        for block in at / BLOCK as u64..(at + length) / BLOCK as u64 {
            if let Some(current) = self.current.get_mut(&block) {
                let bytes = Rc::new([fill; BLOCK]);
                *current = Rc::clone(&bytes);
                self.unsynced.push(Unsynced { serial: self.serial, block, bytes });
            }
        }
    }

    fn gather(&self, at: u64, length: u32) -> Buf {
        let mut buf = BufMut::zeroed(length as usize);
        for (n, chunk) in buf.as_mut_slice().chunks_mut(BLOCK).enumerate() {
            if let Some(bytes) = self.current.get(&(at / BLOCK as u64 + n as u64)) {
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            }
        }
        buf.freeze()
    }

    /// `bytes` over what `medium` holds, each sector surviving in `percent` of all cases.
    fn torn(&self, medium: &BTreeMap<u64, Bytes>, block: u64, bytes: &Bytes, percent: u64, rng: &mut Rng) -> Bytes {
        if percent >= 100 {
            return Rc::clone(bytes);
        }
        let mut mixed = medium.get(&block).map_or([0; BLOCK], |old| **old);
        for at in (0..BLOCK).step_by(SECTOR) {
            if rng.chance(percent) {
                mixed[at..at + SECTOR].copy_from_slice(&bytes[at..at + SECTOR]);
            }
        }
        Rc::new(mixed)
    }

    /// Writes that a power cut now may take or leave, block by block, in an order in which they may have landed.
    pub fn pending_writes(&self) -> usize {
        self.pending(None).len()
    }

    fn pending(&self, shuffle: Option<&mut Rng>) -> Vec<(u64, Bytes)> {
        let ended = self.unsynced.iter().map(|write| (write.block, Rc::clone(&write.bytes)));
        let mut flying: Vec<(u64, Bytes)> = Vec::new();
        for operation in &self.in_flight {
            if let DiskOp::Write { at, parts } = &operation.op {
                flying.extend(blocks_of(*at, parts));
            }
        }
        if let Some(rng) = shuffle {
            rng.shuffle(&mut flying);
        }
        ended.chain(flying).collect()
    }

    /// The power fails: a random part of what was not synced survives.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        let percent = *rng.pick(&[0, 10, 50, 50, 90, 100]);
        let tear = rng.chance(60);
        for (block, bytes) in self.pending(Some(rng)) {
            let survives = if rng.chance(percent) { 100 } else { 0 };
            let percent = if tear && rng.chance(30) { 50 } else { survives };
            let landed = self.torn(&self.durable, block, &bytes, percent, rng);
            if percent > 0 {
                self.durable.insert(block, landed);
            }
        }
        self.settle_on_durable();
    }

    /// The power fails: of pending write `n`, by its index, those sectors survive whose bit is set in `sectors(n)`.
    pub fn power_cut_exactly(&mut self, sectors: impl Fn(usize) -> u8) {
        for (n, (block, bytes)) in self.pending(None).into_iter().enumerate() {
            let survive = sectors(n);
            if survive == 0 {
                continue;
            }
            let mut mixed = self.durable.get(&block).map_or([0; BLOCK], |old| **old);
            for sector in (0..BLOCK / SECTOR).filter(|sector| survive >> sector & 1 != 0) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                mixed[range.clone()].copy_from_slice(&bytes[range]);
            }
            self.durable.insert(block, Rc::new(mixed));
        }
        self.settle_on_durable();
    }

    fn settle_on_durable(&mut self) {
        self.unsynced.clear();
        self.in_flight.clear();
        self.current = self.durable.clone();
    }

    /// The process dies, the machine goes on. By the time the next process has the lock (rule J7), every operation in
    /// flight has ended: carried out, in part, or cancelled.
    pub fn kill(&mut self, rng: &mut Rng) {
        let mut flying = std::mem::take(&mut self.in_flight);
        rng.shuffle(&mut flying);
        for operation in flying {
            match operation.op {
                DiskOp::Write { at, parts } => {
                    self.serial += 1;
                    let percent = *rng.pick(&[0, 50, 100, 100]);
                    for (block, bytes) in blocks_of(at, &parts) {
                        let bytes = self.torn(&self.current, block, &bytes, percent, rng);
                        self.current.insert(block, Rc::clone(&bytes));
                        self.unsynced.push(Unsynced { serial: self.serial, block, bytes });
                    }
                }
                DiskOp::Punch { at, length } => self.finish_punch(at, length, rng),
                DiskOp::Grow { length } => self.length_blocks = self.length_blocks.max(length / BLOCK as u64),
                DiskOp::Read { .. } | DiskOp::Sync => {}
            }
        }
    }
}

/// The bytes that an operation changes: the first, and the end.
fn changed(op: &DiskOp) -> Option<(u64, u64)> {
    match op {
        DiskOp::Write { at, parts } => Some((*at, *at + parts.iter().map(|part| part.len() as u64).sum::<u64>())),
        DiskOp::Punch { at, length } => Some((*at, *at + length)),
        DiskOp::Read { .. } | DiskOp::Sync | DiskOp::Grow { .. } => None,
    }
}

fn blocks_of(at: u64, parts: &[Buf]) -> Vec<(u64, Bytes)> {
    let mut block = at / BLOCK as u64;
    let mut blocks = Vec::new();
    for part in parts {
        for chunk in part.as_chunks::<BLOCK>().0 {
            blocks.push((block, Rc::new(*chunk)));
            block += 1;
        }
    }
    blocks
}
