//! Rot: a bit flips on the medium. Whatever is read afterwards is right or an error, never wrong, and the offline checker
//! names the damage.

use tanada_engine::{Control, Reply, Request};
use tanada_format::check::{CheckOptions, check};
use tanada_units::Uuid;

use crate::content::{BLOCK, Content};
use crate::device::Faults;
use crate::kinds::settings;
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
}

const B: u64 = BLOCK as u64;

/// Runs the store of `seed` for a while, then flips a bit at a time in `flips` blocks.
pub fn rot(seed: u64, flips: u64) -> Result<Rotted, String> {
    rot_run(seed, flips).map_err(|stop| format!("seed {seed}: {stop:?}"))
}

fn rot_run(seed: u64, flips: u64) -> Result<Rotted, Stop> {
    let settings =
        Settings { faults: Faults::default(), may_be_full: false, device_bytes: 80 << 20, ..settings(seed, false) };
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
    let truth = world.read_everything(&mut 0)?;
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

type Truth = Vec<(Uuid, u64, Content)>;

impl World {
    /// Every block ever written of everything; counts the reads that fail.
    fn read_everything(&mut self, refused: &mut u64) -> Result<Truth, Stop> {
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
                *refused += 1;
                continue;
            };
            for block in blocks.into_iter().filter(|block| block * B < size) {
                match self.call(Request::Read { export, offset: block * B, length: B as u32 }, false)?.1 {
                    Ok(reply) => truth.push((id, block, Content::from_bytes(&flatten(reply, B)?))),
                    Err(_) => *refused += 1,
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
        for (id, place, content) in fork.read_everything(&mut rotted.refused)? {
            if !truth.contains(&(id, place, content.clone())) {
                return wrong(format!("bit {bit} of block {block} flipped, and {id} block {place} reads {content:?}"));
            }
        }
        Ok(())
    }

    /// Whether the block is used by the newest checkpoint: everything reachable, and superblocks.
    fn is_needed(&self, block: u64) -> bool {
        let Ok(report) = check(&self.device, CheckOptions::default()) else { return true };
        report.uses(block)
    }
}
