//! Rot: a bit flips on the medium. Whatever is read afterwards is right or an error, never wrong, and the offline checker
//! names the damage.

use std::collections::BTreeSet;

use tanada_disk::Buf;
use tanada_engine::{Control, Reply, Request};
use tanada_format::VersionState;
use tanada_format::check::{CheckOptions, UNANNOUNCED, check, reachable};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_units::Uuid;

use crate::content::{BLOCK, Content};
use crate::device::{Faults, REGIONS_START};
use crate::kinds::{Kind, settings};
use crate::model::Kept;
use crate::reads::flatten;
use crate::world::{Settings, Stop, World, wrong};

/// What became of flipped bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rotted {
    /// Flips that the checker had to find and found.
    pub found: u64,
    /// Flips in blocks that nothing needs.
    pub harmless: u64,
    /// Reads that were answered with an error.
    pub refused: u64,
    /// Stores that refused to open.
    pub unopened: u64,
    /// Damaged blocks that refused a change of a part and were healed by a full overwrite.
    pub healed: u64,
}

const B: u64 = BLOCK as u64;

/// Runs the store of `seed` for a while, then flips a bit at a time in `flips` blocks.
pub fn rot(seed: u64, flips: u64) -> Result<Rotted, String> {
    rot_run(seed, flips).map_err(|stop| format!("seed {seed}: {stop:?}"))
}

/// A sound store of `seed` after some work, everything in its last checkpoint, nobody at it; the journal knows that
/// checkpoint, mostly.
pub fn prepared(seed: u64) -> Result<World, Stop> {
    let settings = Settings {
        faults: Faults::default(),
        may_be_full: false,
        brimming: false,
        device_bytes: 80 << 20,
        ..settings(seed, Some(Kind::Mixed), false)
    };
    let mut world = World::new(settings, seed)?;
    world.open_store()?;
    world.crash_at = world.events + 2_000;
    if let Stop::Wrong(message) = world.work() {
        return wrong(message);
    }
    world.crash_at = u64::MAX;
    world.kill();
    world.model.limbo = None;
    world.open_store()?;
    let listed = world.list()?;
    world.model.volumes.retain(|id, _| listed.contains_key(id));
    world.model.generations.retain(|id, _| listed.contains_key(id));
    world.quiet = true;
    world.checkpoint()?;
    world.settle()?;
    world.checkpoint()?;
    // The next checkpoint may follow at once.
    for _ in 0..3 {
        world.create()?;
    }
    Ok(world)
}

fn rot_run(seed: u64, flips: u64) -> Result<Rotted, Stop> {
    let mut world = prepared(seed)?;
    let truth = world.read_everything(&mut Vec::new())?;
    world.kill();
    let written = world.device.written_blocks();
    let report = world.check_image()?;
    let needed: Vec<u64> = written.iter().copied().filter(|block| report.uses(*block)).collect();
    let mut rotted = Rotted::default();
    for _ in 0..flips {
        let block = if world.rng.chance(70) && !needed.is_empty() {
            *world.rng.pick(&needed)
        } else {
            *world.rng.pick(&written)
        };
        let bit = world.rng.below(B * 8);
        world.rot_one(block, bit, &truth, &mut rotted)?;
    }
    Ok(rotted)
}

/// Rule J8: stores of so many seeds, each with both copies of its newest superblock damaged, which the journal knows.
/// Returns how many refused to open: all for which that can be told.
pub fn rot_superblocks(seeds: std::ops::Range<u64>) -> Result<u64, String> {
    let mut refused = 0;
    for seed in seeds {
        let outcome = prepared(seed).and_then(|mut world| {
            world.kill();
            world.rot_newest_superblock()
        });
        refused += u64::from(outcome.map_err(|stop| format!("seed {seed}: {stop:?}"))?);
    }
    Ok(refused)
}

/// What every block of everything reads as.
pub type Truth = Vec<(Uuid, u64, Content)>;

impl World {
    /// Every block ever written of everything; notes the reads that fail. Each of them names the place.
    pub fn read_everything(&mut self, refused: &mut Vec<(Uuid, u64)>) -> Result<Truth, Stop> {
        let volumes =
            self.model.volumes.iter().map(|(id, volume)| (*id, volume.blocks.keys().copied().collect::<Vec<_>>()));
        let generations = self.model.generations.iter().map(|(id, generation)| {
            let blocks = match &generation.kept {
                Kept::Settled(settled) => settled.keys().copied().collect(),
                Kept::Open { blocks, .. } => blocks.keys().copied().collect::<Vec<_>>(),
            };
            (*id, blocks)
        });
        let all: Vec<(Uuid, Vec<u64>)> = volumes.chain(generations).collect();
        let mut truth = Truth::new();
        for (id, blocks) in all {
            let Ok(Reply::Opened { export, size, .. }) =
                self.call(Request::Control(Control::Open { id, writable: false }), false)?.1
            else {
                refused.push((id, u64::MAX));
                continue;
            };
            for block in blocks.into_iter().filter(|block| block * B < size) {
                self.damage = None;
                match self.call(Request::Read { export, offset: block * B, length: B as u32 }, false)?.1 {
                    Ok(reply) => truth.push((id, block, Content::from_bytes(&flatten(reply, B)?))),
                    Err(_) if self.damage == Some((id, block * B)) => refused.push((id, block)),
                    Err(failure) => {
                        let named = self.damage;
                        return wrong(format!("{id} block {block} is damaged, the alert named {named:?}: {failure}"));
                    }
                }
            }
            self.must(Request::Control(Control::Close { export }), false)?;
        }
        Ok(truth)
    }

    fn rot_one(&self, block: u64, bit: u64, truth: &Truth, rotted: &mut Rotted) -> Result<(), Stop> {
        let mut fork = self.fork(block ^ bit);
        let needed = fork.is_needed(block);
        fork.device.flip_bit(block, bit);
        let noticed = match check(&fork.device, CheckOptions { data: true }) {
            Ok(report) => !report.is_clean() || report.notes.iter().any(|note| note.contains("superblock")),
            Err(_) => true,
        };
        match (needed, noticed) {
            (true, false) => {
                return wrong(format!("bit {bit} of block {block} flipped, and the checker finds nothing"));
            }
            (true, true) => rotted.found += 1,
            (false, _) => rotted.harmless += 1,
        }
        fork.rotten = true;
        match fork.open_store() {
            Ok(()) => {}
            Err(Stop::Wrong(message)) if message.contains("does not open") => {
                rotted.unopened += 1;
                return Ok(());
            }
            Err(stop) => return Err(stop),
        }
        let mut refused = Vec::new();
        let before = fork.read_everything(&mut refused)?;
        for (id, place, content) in &before {
            if !truth.contains(&(*id, *place, content.clone())) {
                return wrong(format!("bit {bit} of block {block} flipped, and {id} block {place} reads {content:?}"));
            }
        }
        rotted.refused += refused.len() as u64;
        // The journal's last block cannot be told from a torn one: what it says may be missing.
        if block >= REGIONS_START {
            let ids: BTreeSet<Uuid> = refused.iter().map(|(id, _)| *id).collect();
            let reaching = self.versions_reaching(block)?;
            if ids != reaching {
                return wrong(format!(
                    "bit {bit} of block {block} flipped, reads fail of {ids:?}, it is part of {reaching:?}"
                ));
            }
        }
        let damaged = refused.into_iter().find(|(id, place)| *place != u64::MAX && fork.model.volumes.contains_key(id));
        damaged.map_or(Ok(()), |(id, place)| {
            fork.heal(id, place, rotted)?;
            fork.goes_on(id, place, truth, &before)
        })
    }

    /// After a write to what is damaged, a checkpoint and a restart: what was healed is there, and everything else reads
    /// as it did, or is refused if it was refused before; where something is lost, the superblock says so (M1). `before`:
    /// what could be read.
    fn goes_on(&mut self, id: Uuid, place: u64, truth: &Truth, before: &Truth) -> Result<(), Stop> {
        self.checkpoint()?;
        self.kill();
        let report = check(&self.device, CheckOptions::default()).map_err(|error| Stop::Wrong(error.to_string()))?;
        if let Some(finding) = report.findings.iter().find(|finding| finding.contains(UNANNOUNCED)) {
            return wrong(format!("{id} block {place} was written over: {finding}"));
        }
        self.open_store()?;
        let healed = (id, place, Content::from_bytes(&[7; BLOCK]));
        let after = self.read_everything(&mut Vec::new())?;
        if let Some(missing) = before.iter().chain([&healed]).find(|read| !after.contains(read)) {
            return wrong(format!("{id} block {place} was written over, and {missing:?} cannot be read any more"));
        }
        match after.iter().find(|read| **read != healed && !truth.contains(read)) {
            Some(read) => wrong(format!("{id} block {place} was written over, and now {read:?} is read")),
            None => Ok(()),
        }
    }

    /// Live versions of which the block is a part, of data or map.
    fn versions_reaching(&self, block: u64) -> Result<BTreeSet<Uuid>, Stop> {
        let report = self.check_image()?;
        let mut found = BTreeSet::new();
        for usage in report.versions.iter().filter(|usage| usage.version.state == VersionState::Live) {
            let blocks = reachable(&self.device, &report.superblock, &usage.version).map_err(Stop::Wrong)?;
            if !usage.version.hidden && blocks.contains(&block) {
                found.insert(usage.version.uuid);
            }
        }
        Ok(found)
    }

    /// Rule W2: a change of a part of a damaged block is refused and leaves it damaged; a full overwrite heals it.
    fn heal(&mut self, id: Uuid, place: u64, rotted: &mut Rotted) -> Result<(), Stop> {
        let (_, reply) = self.must(Request::Control(Control::Open { id, writable: true }), false)?;
        let Reply::Opened { export, .. } = reply else { return wrong(format!("open gave {reply:?}")) };
        let offset = place * B;
        let write = |at: u64, length: usize| Request::Write {
            export,
            offset: offset + at,
            data: Buf::copy_from(&vec![7; length]),
            fua: false,
        };
        let read = Request::Read { export, offset, length: B as u32 };
        if self.call(write(512, 512), false)?.1.is_ok() || self.call(read.clone(), false)?.1.is_ok() {
            return wrong(format!("{id} block {place} is damaged, and a change of a part of it was taken"));
        }
        self.must(write(0, BLOCK), false)?;
        let (_, reply) = self.must(read, false)?;
        if flatten(reply, B)? != [7; BLOCK] {
            return wrong(format!("{id} block {place} was written over and reads otherwise"));
        }
        rotted.healed += 1;
        Ok(())
    }

    /// With both copies of the newest superblock damaged the older one must not be served. False where nothing was
    /// recorded since: the older one still has all it needs, and nobody can tell.
    fn rot_newest_superblock(&self) -> Result<bool, Stop> {
        let report = self.check_image()?;
        let newest = report.superblock.checkpoint;
        if report.journal.blocks.iter().all(|block| block.header.checkpoint < newest) {
            return Ok(false);
        }
        let mut fork = self.fork(newest);
        for block in SUPERBLOCK_AT[report.superblock.slot()] {
            fork.device.flip_bit(block, 8 * 100);
        }
        fork.rotten = true;
        match fork.open_store() {
            Err(Stop::Wrong(message)) if message.contains("does not open") => {
                let says_why = message.contains("the newest is damaged");
                if says_why { Ok(true) } else { wrong(format!("the newest superblock is damaged: {message}")) }
            }
            Err(stop) => Err(stop),
            Ok(()) => wrong("the newest superblock is damaged, and the store opens with the one before".to_owned()),
        }
    }

    /// Whether the block is used by the newest checkpoint: everything reachable, and superblocks.
    fn is_needed(&self, block: u64) -> bool {
        let Ok(report) = check(&self.device, CheckOptions::default()) else { return true };
        report.uses(block)
    }
}
