//! Deaths under a real guest: QEMU waits and goes on, the guest's own evidence is the judge.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Options;
use crate::demo::machine::Machine;
use crate::demo::storage::Kind;
use crate::demo::world::World;
use crate::demo::{kills, prepare};
use crate::guest;
use crate::random::Random;

/// Deaths between two judgements of the guest's disks.
const DEATHS_PER_ROUND: u64 = 5;

/// Runs a guest that writes, kills blockd under it, and lets the guest say what it finds; at last the store is checked.
pub fn run(options: Options) -> Result<()> {
    let guest = guest::build()?;
    let mut world = World::start(options.dev, &guest.kernel, Kind::Tanada)?;
    let outcome = under_guest(&mut world, &guest, options);
    if outcome.is_err() {
        world.show_logs();
    }
    world.stop();
    outcome
}

fn under_guest(world: &mut World, guest: &guest::Guest, options: Options) -> Result<()> {
    let sr = prepare::storage_repository(world, Kind::Tanada)?;
    let origin = prepare::virtual_machine(world, &sr, guest)?;
    world.remember_accelerator(true)?;
    prepare::known_data(world, &origin)?;
    let mut random = Random(options.seed);
    let mut done = 0;
    while done < options.count {
        let deaths = DEATHS_PER_ROUND.min(options.count - done);
        let mut pause = || Duration::from_millis(random.below(400));
        kills::data_plane(world, &origin, deaths, &mut pause).with_context(|| format!("deaths after {done}"))?;
        done += deaths;
        world.take_notes().last().inspect(|note| println!("  {done} deaths: {note}"));
        prepare::start_writer(world, &origin)?;
        judge_a_snapshot(world, &origin)?;
    }
    prepare::nothing_left(world, &sr, &origin)?;
    let found = world.take_notes();
    println!("kills under a guest: {done}, nothing lost; {}", found.first().map_or("", String::as_str));
    Ok(())
}

/// A snapshot of the writing guest is one instant, kills or not.
fn judge_a_snapshot(world: &World, origin: &Machine) -> Result<()> {
    let uuid = world.xe(&["vm-snapshot", &format!("uuid={}", origin.uuid), "new-name-label=between-deaths"])?;
    let snapshot = Machine { uuid };
    snapshot.judge(world).context("a snapshot between deaths")?;
    world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={}", snapshot.uuid), "force=true"]).map(drop)
}
