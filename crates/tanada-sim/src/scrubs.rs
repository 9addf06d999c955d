//! Scrubs: beside everything else on a sound device, where they must find nothing; and over flipped bits, through stops,
//! kills and power cuts, where they must name every flip and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use tanada_engine::{Control, DamagedPart, Reply, Request, ScrubDamage, ScrubState, ScrubStatus};
use tanada_format::VersionState;
use tanada_format::check::reachable;
use tanada_units::Uuid;

use crate::content::BLOCK;
use crate::rot::prepared;
use crate::world::{Stop, World, wrong};

const B: u64 = BLOCK as u64;

/// Faster than any device.
const FAST: u64 = 1 << 40;

/// Events within which a scrub of a small store must have come to its end.
const EVENTS_MAX: u64 = 400_000;

/// What became of flipped bits that scrubs went over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scrubbed {
    /// Scrubs that came to their end.
    pub finished: u64,
    /// Flips that they named.
    pub named: u64,
    /// Times that they were taken up again after a stop or a crash.
    pub resumed: u64,
}

/// Flips bits in the store of `seed`, scrubs it with interruptions, `rounds` times.
pub fn scrub_rot(seed: u64, rounds: u64) -> Result<Scrubbed, String> {
    let mut scrubbed = Scrubbed::default();
    let outcome = prepared(seed).and_then(|mut world| {
        world.kill();
        (0..rounds).try_for_each(|round| world.scrub_flips(round, &mut scrubbed))
    });
    outcome.map_err(|stop| format!("seed {seed}: {stop:?}"))?;
    Ok(scrubbed)
}

impl World {
    /// An administrator looks at the scrub, and starts, stops or resumes it.
    pub fn scrub(&mut self) -> Result<(), Stop> {
        self.look_at_scrub()?;
        match self.scrub.state {
            ScrubState::Running if self.rng.chance(15) => self.stop_scrub(),
            ScrubState::Running => Ok(()),
            ScrubState::Finished => self.start_scrub(ScrubStatus::default()),
            ScrubState::Idle | ScrubState::Stopped => {
                let from = if self.rng.chance(70) { self.scrub.clone() } else { ScrubStatus::default() };
                self.start_scrub(from)
            }
        }
    }

    fn start_scrub(&mut self, from: ScrubStatus) -> Result<(), Stop> {
        let rate = *self.rng.pick(&[4 << 20, 256 << 20, FAST]);
        let control = Control::ScrubStart { rate, from: from.mark, damage: from.damage };
        self.must(Request::Control(control), true)?;
        self.look_at_scrub()
    }

    /// Ends a scrub that runs; what it had done is remembered.
    pub fn stop_scrub(&mut self) -> Result<(), Stop> {
        if self.scrub.state == ScrubState::Running {
            self.must(Request::Control(Control::ScrubStop), false)?;
            self.look_at_scrub()?;
        }
        Ok(())
    }

    /// Remembers how the scrub stands, as a shell does that saves its mark now and then.
    fn look_at_scrub(&mut self) -> Result<(), Stop> {
        let (_, reply) = self.must(Request::Control(Control::ScrubStatus), false)?;
        let Reply::Scrub(status) = reply else { return wrong(format!("a scrub's status gave {reply:?}")) };
        // A process that has not begun one yet knows nothing of that of the process before.
        if status.state != ScrubState::Idle {
            self.scrub = *status;
        } else if self.scrub.state == ScrubState::Running {
            self.scrub.state = ScrubState::Stopped;
        }
        if !self.rotten && !self.scrub.damage.is_empty() {
            return wrong(format!("a scrub of a sound device reports {:?}", self.scrub.damage));
        }
        Ok(())
    }

    /// One round: some bits flip, and a scrub is stopped and killed until it has come to its end.
    fn scrub_flips(&mut self, round: u64, scrubbed: &mut Scrubbed) -> Result<(), Stop> {
        let seed = self.rng.next();
        let mut fork = self.fork(seed);
        let dies = fork.rng.chance(40);
        fork.settings.config.walk_blocks = if dies { 1 } else { fork.settings.config.walk_blocks };
        fork.open_store()?;
        fork.quiet = true;
        match dies {
            // Beside their walks, which take their time, the scrub finds what volumes share with them.
            true => fork.lose_generations()?,
            false => drop(fork.read_everything(&mut Vec::new())?),
        }
        let flipped = fork.flip_some(!dies)?;
        fork.rotten = true;
        fork.scrub = ScrubStatus::default();
        fork.start_scrub(ScrubStatus::default())?;
        let interrupted = !round.is_multiple_of(4);
        let end = fork.events + EVENTS_MAX;
        while fork.scrub.state != ScrubState::Finished {
            if fork.events > end {
                return wrong(format!("the scrub does not get on: {:?}", fork.scrub));
            }
            for _ in 0..fork.rng.within(1, 60) {
                fork.pump()?;
            }
            fork.look_at_scrub()?;
            if interrupted && fork.rng.chance(20) && fork.scrub.state == ScrubState::Running {
                fork.interrupt_scrub()?;
                scrubbed.resumed += 1;
            }
        }
        scrubbed.finished += 1;
        scrubbed.named += fork.check_scrub(&flipped)?;
        Ok(())
    }

    /// Stops the scrub, or all of the store, and takes the scrub up from what was last seen of it.
    fn interrupt_scrub(&mut self) -> Result<(), Stop> {
        match self.rng.below(3) {
            0 => self.stop_scrub()?,
            how => {
                if how == 1 {
                    self.kill()
                } else {
                    self.power_cut()
                }
                self.open_store()?;
                self.look_at_scrub()?;
            }
        }
        if self.scrub.state == ScrubState::Finished {
            return Ok(());
        }
        self.start_scrub(self.scrub.clone())
    }

    fn lose_generations(&mut self) -> Result<(), Stop> {
        let ids: Vec<Uuid> = self.model.generations.keys().copied().collect();
        ids.into_iter().try_for_each(|id| self.destroy_one(id))?;
        self.checkpoint()
    }

    /// Flips bits in several blocks of data, or in one map node with whatever is below it; their places on the device.
    fn flip_some(&mut self, may_be_map: bool) -> Result<BTreeSet<u64>, Stop> {
        let (nodes, data) = self.nodes_and_data(may_be_map)?;
        let mut flipped = BTreeSet::new();
        if may_be_map && self.rng.chance(50) && !nodes.is_empty() {
            flipped.insert(*self.rng.pick(&nodes));
        } else {
            let count = if data.is_empty() { 0 } else { self.rng.within(1, 6) };
            flipped.extend((0..count).map(|_| *self.rng.pick(&data)));
        }
        for block in &flipped {
            let bit = self.rng.below(B * 8);
            self.device.flip_bit(*block, bit);
        }
        Ok(flipped)
    }

    /// Blocks that stay where they are, map nodes and data: what versions reach that anybody can read, and ghosts, where
    /// none is about to go.
    fn nodes_and_data(&self, ghosts_stay: bool) -> Result<(Vec<u64>, Vec<u64>), Stop> {
        let report = self.check_image()?;
        let mut all = BTreeSet::new();
        let mut data = BTreeSet::new();
        let stays = |state: VersionState| state == VersionState::Live || ghosts_stay && state == VersionState::Ghost;
        for usage in report.versions.iter().filter(|usage| stays(usage.version.state)) {
            all.extend(reachable(&self.device, &report.superblock, &usage.version).map_err(Stop::Wrong)?);
        }
        // A block of data is one that holds what some client wrote.
        for (block, bytes) in all.iter().map(|block| (*block, self.device.peek(*block))) {
            if !is_node(&bytes, &all) {
                data.insert(block);
            }
        }
        Ok((all.difference(&data).copied().collect(), data.into_iter().collect()))
    }

    /// Every flip is named, with a volume or generation that cannot be read there; and nothing else is.
    fn check_scrub(&mut self, flipped: &BTreeSet<u64>) -> Result<u64, Stop> {
        let damage = std::mem::take(&mut self.scrub.damage);
        let named: BTreeMap<u64, &ScrubDamage> = damage.iter().map(|damage| (damage.block, damage)).collect();
        if let Some(missed) = flipped.iter().find(|block| !named.contains_key(block)) {
            return wrong(format!("a bit of block {missed} flipped, the scrub named {:?}", named.keys()));
        }
        if let Some(invented) = named.keys().find(|block| !flipped.contains(block)) {
            return wrong(format!("the scrub names block {invented}, bits flipped in {flipped:?}"));
        }
        if damage.len() as u64 != self.scrub.mark.damaged {
            return wrong(format!("{} pieces of damage, counted are {}", damage.len(), self.scrub.mark.damaged));
        }
        for damage in &damage {
            self.check_named(damage)?;
        }
        let mut refused = Vec::new();
        self.read_everything(&mut refused)?;
        for (id, block) in refused {
            let is_told = |damage: &ScrubDamage| {
                (damage.offset..damage.offset + damage.length.max(1)).contains(&(block * B)) || block == u64::MAX
            };
            if !damage.iter().any(is_told) {
                return wrong(format!("{id} cannot be read at block {block}, the scrub named {damage:?}"));
            }
        }
        Ok(damage.len() as u64)
    }

    /// What is said to be damaged cannot be read, under any of the names that it has.
    fn check_named(&mut self, damage: &ScrubDamage) -> Result<(), Stop> {
        let DamagedPart::Data = damage.part else {
            let named = matches!(damage.part, DamagedPart::Map { .. });
            return if named { Ok(()) } else { wrong(format!("part of a map is damaged, and named {damage:?}")) };
        };
        if damage.length != B {
            return wrong(format!("a block of data is damaged, and named {damage:?}"));
        }
        // A volume that goes on from a generation may have written it over. What ghosts alone hold has no name.
        match damage.generation.or(damage.volume) {
            Some(id) if self.reads_at(id, damage.offset)? => {
                wrong(format!("{id} can be read at {}, and is named {damage:?}", damage.offset))
            }
            _ => Ok(()),
        }
    }

    fn reads_at(&mut self, id: Uuid, offset: u64) -> Result<bool, Stop> {
        let (_, reply) = self.must(Request::Control(Control::Open { id, writable: false }), false)?;
        let Reply::Opened { export, size, .. } = reply else { return wrong(format!("open gave {reply:?}")) };
        let length = B.min(size.saturating_sub(offset)) as u32;
        let read = self.call(Request::Read { export, offset, length }, false)?.1.is_ok();
        self.must(Request::Control(Control::Close { export }), false)?;
        Ok(read)
    }
}

/// True for a block full of pointers, of which at least one leads to another block of the tree.
fn is_node(bytes: &[u8; BLOCK], tree: &BTreeSet<u64>) -> bool {
    let pointers = bytes.as_chunks::<16>().0.iter().map(tanada_format::Pointer::decode);
    let Ok(pointers) = pointers.collect::<Result<Vec<_>, _>>() else { return false };
    pointers.iter().any(|pointer| !pointer.is_null() && tree.contains(&pointer.block()))
}
