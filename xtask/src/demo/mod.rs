//! `cargo xtask demo`: the main job, end to end, on a real guest, through `xe` alone.
//!
//! Every step is judged by content: by what the guest itself finds on its disks, or by what an outsider reads from a
//! snapshot. One line per step, with its time; the first failure ends the run, with the reason and the logs kept.

mod archive;
mod copies;
mod doctor;
mod documented;
mod freezes;
mod generations;
mod instances;
pub(crate) mod kills;
pub(crate) mod machine;
mod nightly;
pub(crate) mod prepare;
mod snapshot;
pub(crate) mod storage;
pub(crate) mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{guest, setup};
use storage::Kind;
use world::World;

/// What the command line may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Leave everything running and on disk at the end.
    pub keep: bool,
    /// Use the unoptimised build, as tests do.
    pub dev: bool,
    /// Generations taken in the step that takes many.
    pub generations: usize,
    /// What the repository is on.
    pub sr: Kind,
    /// The nightly job on the database guest instead of the main job.
    pub nightly: bool,
}

impl Options {
    pub fn parse(args: &[&str]) -> Result<Options> {
        let mut options = Options { keep: false, dev: false, generations: 0, sr: Kind::Tanada, nightly: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--keep" => options.keep = true,
                "--dev" => options.dev = true,
                "--nightly" => options.nightly = true,
                "--generations" => {
                    let value = args.next().context("--generations needs a number")?;
                    options.generations =
                        value.parse().with_context(|| format!("--generations {value}: a number expected"))?;
                    if !(4..=1000).contains(&options.generations) {
                        bail!("--generations {value}: 4 to 1000 expected");
                    }
                }
                "--sr" => options.sr = Kind::parse(args.next().context("--sr needs a type")?)?,
                other => bail!(
                    "demo: unknown option {other}; --keep, --dev, --nightly, --sr TYPE and --generations N are known"
                ),
            }
        }
        if options.nightly && (options.sr != Kind::Tanada || options.generations != 0) {
            bail!("demo --nightly runs on the embedded store with generations of its own: no --sr, no --generations");
        }
        if options.generations == 0 {
            options.generations = if options.sr == Kind::Tanada { 50 } else { 12 };
        }
        Ok(options)
    }
}

/// Runs the whole job.
pub fn run(options: Options) -> Result<()> {
    if options.nightly {
        return nightly::run(options);
    }
    setup::packages()?;
    let guest = guest::build()?;
    let mut world = World::start(options.dev, &guest.kernel, options.sr)?;
    let outcome = main_job(&mut world, &guest, options);
    finish(world, options.keep, "main job", outcome)
}

/// Says how it ended, and clears away unless it is to be kept.
pub(crate) fn finish(world: World, keep: bool, job: &str, outcome: Result<()>) -> Result<()> {
    match &outcome {
        Ok(()) => println!("{job}: ok"),
        Err(error) => {
            println!("{job}: FAILED: {error:#}");
            world.show_logs();
        }
    }
    if keep {
        world.keep();
    } else {
        world.stop();
    }
    outcome
}

/// Ends what a run with `--keep` left.
pub fn stop(dir: &str) {
    world::stop_world(Path::new(dir));
}

fn main_job(world: &mut World, guest: &guest::Guest, options: Options) -> Result<()> {
    let kind = options.sr;
    let sr = step(world, "sr-create", |world| prepare::storage_repository(world, kind))?;
    if kind != Kind::Tanada {
        step(world, "copy-between-types", |world| copies::there_and_back(world, &sr))?;
    }
    let origin = step(world, "import-and-start", |world| prepare::virtual_machine(world, &sr, guest))?;
    world.remember_accelerator(true)?;
    step(world, "guest-writes", |world| prepare::known_data(world, &origin))?;
    let first = step(world, "vm-snapshot", |world| snapshot::take_and_judge(world, &origin))?;
    step(world, "snapshot-is-template", |world| snapshot::is_a_template(world, &origin, &first))?;
    step(world, "vm-snapshot-with-quiesce", |world| snapshot::quiesced(world, &origin))?;
    step(world, "doctor-quiesce", |world| doctor::of_the_guest(world, &origin))?;
    step(world, "doctor-windows-stand-in", |world| doctor::of_a_stand_in(world, &origin))?;
    let kept = step(world, "generations", |world| generations::take_many(world, &origin, options.generations))?;
    if kind == Kind::Tanada {
        // Arrays do not tell how long a write had to wait.
        step(world, "snapshot-pause", |world| generations::report_pause(world, &kept))?;
    }
    let instances = step(world, "vm-install", |world| instances::three(world, &origin, &first))?;
    step(world, "backup-by-mount", |world| instances::backup_by_mount(world, &instances, &first))?;
    step(world, "instances-gone", |world| instances::remove_all(world, &instances))?;
    step(world, "template-export-import", |world| archive::there_and_back(world, &sr, &first))?;
    step(world, "damaged-archives", |world| archive::damaged_are_refused(world, &sr))?;
    step(world, "kill-tanadad", |world| kills::control_plane(world, &origin))?;
    step(world, "kill-tanadad-in-freeze", |world| freezes::control_plane_dies(world, &origin))?;
    step(world, "kill-guard-in-freeze", |world| freezes::guard_dies(world, &origin))?;
    match kind {
        Kind::Tanada => {
            step(world, "kill-blockd", |world| kills::data_plane(world, &origin, 3, &mut || Duration::ZERO))?
        }
        Kind::Netapp | Kind::Equal => {
            step(world, "controller-restart", |world| kills::controller_restart(world, &origin, 3))?;
        }
    }
    step(world, "snapshot-revert", |world| generations::revert(world, &origin, &kept))?;
    step(world, "delete-generations", |world| generations::delete_scrambled(world, &sr, kind, kept))?;
    match kind {
        Kind::Tanada => step(world, "store-check", |world| prepare::nothing_left(world, &sr, &origin)),
        Kind::Netapp | Kind::Equal => {
            step(world, "sr-introduce", |world| storage::introduce_again(world, &sr, kind))?;
            step(world, "sr-destroy", |world| storage::nothing_left(world, &sr, kind))
        }
    }
}

/// Runs one step and prints its line, then what it has to say, indented.
fn step<T>(world: &mut World, name: &str, act: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let value = act(world).with_context(|| format!("step {name}"))?;
    println!("ok {name} {}", start.elapsed().as_millis());
    for line in world.take_notes() {
        println!("   {line}");
    }
    Ok(value)
}

/// Tries until it succeeds; for conditions inside a guest, which sends no events.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if world::interrupted() => return Err(error),
            Err(error) if start.elapsed() > limit => return Err(error.context(format!("{what}: not within {limit:?}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
