//! The journal and its recovery on one page, without the engine: rules J1 to J4 and B1 against a naive history, over
//! power cut after power cut. Each rule is then broken on purpose, and the history must notice.
//!
//! A place holds a value; a write puts its value into a free data block and then a record into the journal. A checkpoint
//! keeps the whole map. Every state that recovery gives must be one that the history went through, and not an older one
//! than the last sync covered.

#[path = "../src/rng.rs"]
#[allow(dead_code, reason = "shared with the simulation, which uses more of it")]
mod rng;

use std::collections::{BTreeMap, BTreeSet};

use rng::Rng;

const PLACES: u64 = 5;
const DATA_BLOCKS: u64 = 16;
const RING: u64 = 24;
/// Journal blocks kept for recovery (J4).
const KEPT: u64 = 8;
const TORN: u64 = u64::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    RecordBeforeData,
    SkipInsteadOfStop,
    VerifyNothing,
    MarkTooHigh,
    NoIncarnation,
    NoRecoveryBlock,
    ReleaseAtApply,
    NoRoomKept,
    /// A checkpoint does not say in which incarnation the journal goes on.
    CheckpointForgetsIncarnation,
}

#[derive(Debug, Clone, Copy)]
enum Record {
    /// `value` stands for the checksum of what the block should hold.
    Map { place: u64, block: u64, value: u64 },
    /// Of journal block `seq` the first `count` records count.
    Recovered { seq: u64, count: usize },
}

#[derive(Debug, Clone)]
struct Block {
    incarnation: u64,
    seq: u64,
    durable: u64,
    records: Vec<Record>,
}

#[derive(Debug, Clone)]
enum Write {
    Data { block: u64, value: u64 },
    Journal(Block),
}

/// Writes that no sync covers yet; `true`: ended.
type Pending = Vec<(Write, bool)>;

/// What a superblock says.
#[derive(Clone, Default)]
struct Checkpoint {
    map: BTreeMap<u64, u64>,
    /// Where the journal goes on, and in which incarnation at the earliest.
    start: u64,
    incarnation: u64,
}

#[derive(Default)]
struct Device {
    data: BTreeMap<u64, u64>,
    ring: BTreeMap<u64, Block>,
    kept: Checkpoint,
    pending: Pending,
}

impl Device {
    fn land(&mut self, write: Write) {
        match write {
            Write::Data { block, value } => drop(self.data.insert(block, value)),
            Write::Journal(block) => drop(self.ring.insert(block.seq % RING, block)),
        }
    }

    fn sync(&mut self) {
        let (ended, rest): (Pending, Pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|(_, ended)| *ended);
        self.pending = rest;
        ended.into_iter().for_each(|(write, _)| self.land(write));
    }

    fn power_cut(&mut self, random: &mut Rng) {
        let survive = *random.pick(&[10, 50, 90]);
        for (write, _) in std::mem::take(&mut self.pending) {
            match write {
                write if random.chance(survive) => self.land(write),
                Write::Data { block, .. } if random.chance(30) => drop(self.data.insert(block, TORN)),
                Write::Journal(block) if random.chance(30) => drop(self.ring.remove(&(block.seq % RING))),
                _ => {}
            }
        }
    }
}

struct World {
    mistake: Mistake,
    random: Rng,
    device: Device,
    /// Every write in the order of its record; the value is its number.
    history: Vec<u64>,
    /// So many of them a sync has covered.
    safe: usize,
    map: BTreeMap<u64, u64>,
    busy: BTreeSet<u64>,
    /// Overwritten since the last cut.
    dropped: Vec<u64>,
    /// Place, block and value of data writes under way.
    writing: Vec<(u64, u64, u64)>,
    building: Vec<Record>,
    incarnation: u64,
    start: u64,
    next: u64,
    durable: u64,
    /// Map, start and dropped blocks of a checkpoint under way.
    cut: Option<(BTreeMap<u64, u64>, u64, Vec<u64>)>,
    /// Writes made, for values that never come twice.
    values: u64,
    /// History length at the end of each journal block.
    reached: BTreeMap<u64, usize>,
}

impl World {
    fn new(seed: u64, mistake: Mistake) -> World {
        let device = Device { kept: Checkpoint { start: 1, ..Checkpoint::default() }, ..Device::default() };
        World {
            mistake,
            random: Rng::new(seed),
            device,
            history: Vec::new(),
            safe: 0,
            map: BTreeMap::new(),
            busy: BTreeSet::new(),
            dropped: Vec::new(),
            writing: Vec::new(),
            building: Vec::new(),
            incarnation: 1,
            start: 1,
            next: 1,
            durable: 0,
            cut: None,
            values: 0,
            reached: BTreeMap::new(),
        }
    }

    fn run(&mut self, cuts: u64) -> Result<(), String> {
        for _ in 0..cuts {
            for _ in 0..self.random.within(1, 60) {
                self.act();
            }
            self.device.power_cut(&mut self.random);
            while !self.recover()? {
                self.device.power_cut(&mut self.random);
            }
        }
        Ok(())
    }

    fn act(&mut self) {
        match self.random.below(20) {
            0..=7 => self.write(),
            8..=13 => self.data_ended(),
            14..=15 => self.seal(),
            16..=17 => self.journal_ended(),
            18 => self.sync(),
            _ => self.checkpoint(),
        }
    }

    fn has_room(&self) -> bool {
        let kept = if self.mistake == Mistake::NoRoomKept { 0 } else { KEPT };
        // A record each for the writes under way, the block being filled, and this one.
        self.next - self.start + self.writing.len() as u64 + 2 + kept <= RING
    }

    fn write(&mut self) {
        let free = (0..DATA_BLOCKS).find(|block| !self.busy.contains(block));
        let (Some(block), true) = (free, self.has_room()) else { return };
        let place = self.random.below(PLACES);
        if self.writing.iter().any(|(busy, ..)| *busy == place) {
            return; // W1
        }
        self.values += 1;
        let value = self.values * PLACES + place;
        self.busy.insert(block);
        self.device.pending.push((Write::Data { block, value }, false));
        self.writing.push((place, block, value));
        if self.mistake == Mistake::RecordBeforeData {
            self.record(place, block, value);
        }
    }

    /// J1: a record when the data write has ended.
    fn data_ended(&mut self) {
        if self.writing.is_empty() {
            return;
        }
        let (place, block, value) = self.writing.remove(self.random.below(self.writing.len() as u64) as usize);
        for (write, ended) in &mut self.device.pending {
            *ended |= matches!(write, Write::Data { value: other, .. } if *other == value);
        }
        if self.mistake != Mistake::RecordBeforeData {
            self.record(place, block, value);
        }
    }

    fn record(&mut self, place: u64, block: u64, value: u64) {
        self.history.push(value);
        self.building.push(Record::Map { place, block, value });
        self.map_to(place, block);
        if self.building.len() == 3 {
            self.seal();
        }
    }

    fn map_to(&mut self, place: u64, block: u64) {
        if let Some(old) = self.map.insert(place, block) {
            match self.mistake {
                Mistake::ReleaseAtApply => drop(self.busy.remove(&old)),
                _ => self.dropped.push(old), // B1
            }
        }
    }

    fn release(&mut self, blocks: Vec<u64>) {
        for block in blocks {
            self.busy.remove(&block);
        }
    }

    fn seal(&mut self) {
        if self.building.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.building);
        let durable = if self.mistake == Mistake::MarkTooHigh { self.next - 1 } else { self.durable };
        let block = Block { incarnation: self.incarnation, seq: self.next, durable, records };
        self.device.pending.push((Write::Journal(block), false));
        self.reached.insert(self.next, self.history.len());
        self.next += 1;
    }

    fn journal_ended(&mut self) {
        let mut under_way: Vec<&mut bool> = Vec::new();
        for (write, ended) in &mut self.device.pending {
            if matches!(write, Write::Journal(_)) && !*ended {
                under_way.push(ended);
            }
        }
        let which = self.random.below(under_way.len() as u64) as usize;
        if let Some(ended) = under_way.into_iter().nth(which) {
            *ended = true;
        }
    }

    /// What had ended is durable; the journal as far as it has no gap.
    fn sync(&mut self) {
        let gap = |(write, ended): &(Write, bool)| match write {
            Write::Journal(block) if !ended => Some(block.seq),
            _ => None,
        };
        let written = self.device.pending.iter().filter_map(gap).min().unwrap_or(self.next) - 1;
        self.device.sync();
        self.durable = self.durable.max(written);
        self.safe = self.safe.max(self.reached.range(..=written).next_back().map_or(0, |(_, reached)| *reached));
    }

    /// A cut now, the rest later: writes go on between.
    fn checkpoint(&mut self) {
        let Some((map, start, dropped)) = self.cut.take() else {
            self.seal();
            self.cut = Some((self.map.clone(), self.next, std::mem::take(&mut self.dropped)));
            return;
        };
        self.sync();
        // The superblock itself is taken as atomic here; J8 is the whole simulation's.
        self.device.kept = Checkpoint { map, start, incarnation: self.incarnation };
        self.start = start;
        self.safe = self.safe.max(self.reached.range(..start).next_back().map_or(0, |(_, reached)| *reached));
        self.release(dropped);
    }

    /// Reads what the power cut left, decides, and fixes the verdict; `false` where the power fails before that.
    fn recover(&mut self) -> Result<bool, String> {
        let Checkpoint { map, start, incarnation } = self.device.kept.clone();
        let mut chain = self.chain(start, incarnation)?;
        self.cut_torn(&mut chain);
        (self.map, self.busy) = (map.clone(), map.into_values().collect());
        (self.dropped, self.writing, self.building, self.cut) = Default::default();
        for record in chain.iter().flat_map(|block| &block.records) {
            if let Record::Map { place, block, .. } = record {
                self.busy.insert(*block);
                self.map_to(*place, *block);
            }
        }
        let reached = self.instant()?;
        let latest = self.device.ring.values().map(|block| block.incarnation).max().unwrap_or(0).max(incarnation);
        self.incarnation = latest + u64::from(self.mistake != Mistake::NoIncarnation);
        self.start = start;
        self.next = start + chain.len() as u64;
        self.durable = self.next - 1;
        if self.mistake != Mistake::NoRecoveryBlock {
            if !self.has_room_for_verdict() {
                let map = self.map.clone();
                self.device.kept = Checkpoint { map, start: self.next, incarnation: self.incarnation };
                self.start = self.next;
                let dropped = std::mem::take(&mut self.dropped);
                self.release(dropped);
            }
            let verdict = chain.last().map(|block| Record::Recovered { seq: block.seq, count: block.records.len() });
            self.building.extend(verdict.filter(|_| self.start < self.next));
            self.building.extend(if self.building.is_empty() {
                Some(Record::Recovered { seq: 0, count: 0 })
            } else {
                None
            });
            self.seal();
            if self.random.chance(40) {
                return Ok(false);
            }
            self.device.pending.iter_mut().for_each(|(_, ended)| *ended = true);
            self.device.sync();
            self.durable = self.next - 1;
        }
        self.history.truncate(reached);
        self.safe = reached;
        self.reached = BTreeMap::from([(self.next - 1, reached)]);
        Ok(true)
    }

    fn has_room_for_verdict(&self) -> bool {
        self.mistake == Mistake::NoRoomKept || self.next - self.start + 2 <= RING
    }

    /// J3, J4: consecutive numbers, incarnations that never decrease, verdicts of earlier recoveries; no gap below the
    /// durable mark.
    fn chain(&self, start: u64, incarnation: u64) -> Result<Vec<Block>, String> {
        let earliest = if self.mistake == Mistake::CheckpointForgetsIncarnation { 0 } else { incarnation };
        let mut chain: Vec<Block> = Vec::new();
        loop {
            let seq = start + chain.len() as u64;
            let oldest = chain.last().map_or(earliest, |block| block.incarnation);
            let found =
                self.device.ring.get(&(seq % RING)).filter(|block| block.seq == seq && block.incarnation >= oldest);
            let Some(block) = found else { break };
            if let (Some(Record::Recovered { seq, count }), Some(last)) = (block.records.first(), chain.last_mut())
                && last.seq == *seq
            {
                last.records.truncate(*count);
            }
            chain.push(block.clone());
        }
        let end = start + chain.len() as u64;
        match self.device.ring.values().find(|block| block.seq > end && block.durable >= end) {
            Some(block) => Err(format!("block {end} is missing, block {} calls it durable", block.seq)),
            None => Ok(chain),
        }
    }

    /// J2: what is not known durable is verified, and the first record whose data is missing ends the journal.
    fn cut_torn(&self, chain: &mut Vec<Block>) {
        let durable = chain.iter().map(|block| block.durable).max().unwrap_or(0);
        let holds = |record: &Record| match record {
            Record::Map { block, value, .. } => self.device.data.get(block) == Some(value),
            Record::Recovered { .. } => true,
        };
        for index in 0..chain.len() {
            if chain[index].seq <= durable || self.mistake == Mistake::VerifyNothing {
                continue;
            }
            if self.mistake == Mistake::SkipInsteadOfStop {
                chain[index].records.retain(holds);
            } else if let Some(torn) = chain[index].records.iter().position(|record| !holds(record)) {
                chain[index].records.truncate(torn);
                return chain.truncate(index + 1);
            }
        }
    }

    /// How much of the history explains what all places hold.
    fn instant(&self) -> Result<usize, String> {
        let seen: BTreeMap<u64, u64> =
            self.map.iter().map(|(place, block)| (*place, self.device.data[block])).collect();
        let mut state: BTreeMap<u64, u64> = BTreeMap::new();
        for reached in 0..=self.history.len() {
            if reached >= self.safe && state == seen {
                return Ok(reached);
            }
            if let Some(value) = self.history.get(reached) {
                state.insert(value % PLACES, *value);
            }
        }
        Err(format!("{seen:?} is no instant from {} on of {:?}", self.safe, self.history))
    }
}

fn runs(mistake: Mistake, seeds: u64) -> Result<(), String> {
    (0..seeds)
        .try_for_each(|seed| World::new(seed, mistake).run(12).map_err(|message| format!("seed {seed}: {message}")))
}

#[test]
fn every_recovered_state_is_an_instant_of_the_history() {
    runs(Mistake::None, 6_000).unwrap_or_else(|message| panic!("{message}"));
}

#[test]
fn each_broken_rule_is_noticed() {
    for mistake in [
        Mistake::RecordBeforeData,
        Mistake::SkipInsteadOfStop,
        Mistake::VerifyNothing,
        Mistake::MarkTooHigh,
        Mistake::NoIncarnation,
        Mistake::NoRecoveryBlock,
        Mistake::ReleaseAtApply,
        Mistake::NoRoomKept,
        Mistake::CheckpointForgetsIncarnation,
    ] {
        assert!(runs(mistake, 6_000).is_err(), "{mistake:?} went unnoticed");
    }
}
