//! `cargo xtask kills`: a real blockd on a real file, killed over and over, under clients who forget nothing.
//!
//! ```text
//!   writers (3) ──NBD──▶ blockd ◀──control── curator: cuts, clones, reverts, deletions; generations by digest
//!   fio ──▶ QEMU ──NBD──▶  │
//!                     kill -9, once something was acknowledged; then one of
//!      at once   the keeper starts the next one, which is often killed while it recovers
//!      frozen    the keeper is stopped meanwhile: the checker sees what the dead one left
//!      both      the keeper is killed as well: the checker, then a new keeper
//! ```
//! After each death every writer finds out by itself, comes back, and reads its whole volume: what was acknowledged must
//! be there, flushed or not; what was under way is old or new by blocks of 4 KiB. Half of them look before they send
//! again what was not acknowledged. In half of all lives nobody flushes: then much of what is acknowledged is in no
//! journal block on the device yet, only in the memory kept for the next life (rule J6b). The page cache outlives a process, so this says nothing about power cuts: those are
//! simulated (`crates/tanada-sim`).

mod curator;
mod fio;
mod guest;
mod model;
mod nbd;
mod plane;
mod writer;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Signal, kill_process};

use crate::random::Random;
use crate::sh;
use curator::{Curator, Deeds};
use plane::{Commander, PATIENCE, Plane, end};
use writer::{Shared, Volume, Writer};

const MIB: u64 = 1 << 20;
/// Sizes of the writers' volumes: odd ones, so that ends are met.
const VOLUMES: [u64; 3] = [8 * MIB, 12 * MIB + 4096, 5 * MIB + 64 * 1024];
const FIO_BYTES: u64 = 32 * MIB;
/// Room for all generations that are kept at a time, twice over. The file is sparse.
const STORE_BYTES: u64 = 1536 * MIB;

/// What the command line may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Deaths.
    pub count: u64,
    pub seed: u64,
    /// Under a real guest instead.
    pub guest: bool,
    /// Use the unoptimised build, as tests do.
    pub dev: bool,
}

impl Options {
    pub fn parse(args: &[&str]) -> Result<Options> {
        let mut options = Options { count: 50, seed: 1, guest: false, dev: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut number = || -> Result<u64> {
                let value = args.next().with_context(|| format!("{arg} needs a number"))?;
                value.parse().with_context(|| format!("{arg} {value}: a whole number expected"))
            };
            match *arg {
                "--count" => options.count = number()?.max(1),
                "--seed" => options.seed = number()?,
                "--guest" => options.guest = true,
                "--dev" => options.dev = true,
                other => bail!("kills: {other} is not known; --count N, --seed N, --guest and --dev are"),
            }
        }
        Ok(options)
    }
}

/// How a death is arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    AtOnce,
    Frozen,
    Both,
}

/// Deaths and what was looked at, for the report.
#[derive(Debug, Default)]
struct Tally {
    at_once: u64,
    during_recovery: u64,
    frozen: u64,
    both: u64,
    checks: u64,
}

pub fn run(options: Options) -> Result<()> {
    crate::setup::packages()?;
    if options.guest {
        return guest::run(options);
    }
    let binary = sh::tanada(options.dev)?;
    let dir = tempfile::Builder::new().prefix("tanada-kills-").tempdir().context("a scratch directory")?;
    println!("kills: {} of them, seed {}, in {}", options.count, options.seed, dir.path().display());
    let outcome = all_kills(&binary, dir.path(), options);
    if outcome.is_err() {
        println!("kept for a look: {}", dir.keep().display());
    }
    outcome
}

fn all_kills(binary: &Path, dir: &Path, options: Options) -> Result<()> {
    let plane = Plane::start(binary, dir, STORE_BYTES)?;
    let outcome = with_clients(&plane, options);
    let stopped = plane.stop();
    outcome?;
    stopped?;
    plane.check(true).context("after a clean end")
}

/// Starts everybody, kills, waits for everybody.
fn with_clients(plane: &Plane, options: Options) -> Result<()> {
    let mut commander = Commander::new(plane);
    let mut volumes = Vec::new();
    for (number, bytes) in (1..).zip(VOLUMES) {
        let token = format!("disk-{number}");
        let id = commander.volume(&token, bytes)?;
        volumes.push(Volume::new(token, id, number, bytes));
    }
    commander.volume("fio", FIO_BYTES)?;
    let shared = Shared::default();
    let failed: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let start = Instant::now();
    let (mut deeds, mut fio_rounds, mut tally) = (Deeds::default(), 0, Tally::default());
    // The first failure ends the run for all.
    let guarded = |what: &'static str, result: Result<()>| {
        if let Err(error) = result {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.context(what));
            shared.stop.store(true, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let (shared, volumes, guarded) = (&shared, &volumes, &guarded);
        for (n, volume) in (0..).zip(volumes.iter()) {
            let seed = options.seed.wrapping_mul(1000) + n;
            scope.spawn(move || guarded("a writer", Writer::new(plane, volume, shared, seed).and_then(Writer::run)));
        }
        let deeds = &mut deeds;
        scope.spawn(move || {
            let result = Curator::new(plane, volumes, shared, options.seed ^ 0xc0).run();
            guarded("the curator", result.map(|done| *deeds = done));
        });
        let rounds = &mut fio_rounds;
        scope.spawn(move || {
            let result = fio::run(plane, "fio", shared, options.seed);
            guarded("fio", result.map(|done| *rounds = done));
        });
        guarded("the killer", kill_all(plane, shared, options, &mut tally));
        shared.stop.store(true, Ordering::Relaxed);
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.context(format!("after {tally:?}, seed {}", options.seed)));
    }
    println!(
        "kills: {} at once, {} during recovery, {} with the checker before the next life, {} with the keeper; {} checks clean",
        tally.at_once, tally.during_recovery, tally.frozen, tally.both, tally.checks
    );
    println!(
        "  {} changes acknowledged and none lost, volumes read back as a whole {} times; fio verified {fio_rounds} rounds",
        shared.acknowledged.load(Ordering::Relaxed),
        shared.verified.load(Ordering::Relaxed)
    );
    println!(
        "  {} cuts judged, {} clones, {} reverts, {} deletions, {} generations re-read; {:.0} s",
        deeds.cuts,
        deeds.clones,
        deeds.reverts,
        deeds.deletions,
        deeds.reread,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn kill_all(plane: &Plane, shared: &Shared, options: Options, tally: &mut Tally) -> Result<()> {
    let mut random = Random(options.seed);
    for n in 0..options.count {
        wait_for_work(shared, &mut random)?;
        if shared.is_over() {
            return Ok(());
        }
        shared.returned.store(0, Ordering::SeqCst);
        let way = match random.below(10) {
            0..=3 => Way::AtOnce,
            4..=6 => Way::Frozen,
            _ => Way::Both,
        };
        let data = n % 4 == 0;
        kill(plane, way, data, tally, &mut random).with_context(|| format!("death {} ({way:?})", n + 1))?;
        if (n + 1) % 25 == 0 {
            println!("  {} deaths, {} changes acknowledged", n + 1, shared.acknowledged.load(Ordering::Relaxed));
        }
    }
    // The last life has to be lived through, too.
    wait_for_work(shared, &mut random)
}

/// Waits until all writers are back from the last death and a random number of changes was acknowledged since.
fn wait_for_work(shared: &Shared, random: &mut Random) -> Result<()> {
    let start = Instant::now();
    let wait = |what: &str, is_there: &dyn Fn() -> bool| -> Result<()> {
        while !is_there() && !shared.is_over() {
            if start.elapsed() > PATIENCE {
                return Err(anyhow!("{what}: not within {PATIENCE:?}"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    wait("all writers are back", &|| shared.returned.load(Ordering::SeqCst) >= VOLUMES.len() as u64)?;
    shared.calm.store(random.below(2) == 0, Ordering::Relaxed);
    let most = [30, 300, 3000][random.below(3) as usize];
    let goal = shared.acknowledged.load(Ordering::Relaxed) + 1 + random.below(most);
    wait("changes are acknowledged", &|| shared.acknowledged.load(Ordering::Relaxed) >= goal)?;
    // Anywhere between two events, not only behind an acknowledgement.
    thread::sleep(Duration::from_micros(random.below(5000)));
    Ok(())
}

fn kill(plane: &Plane, way: Way, data: bool, tally: &mut Tally, random: &mut Random) -> Result<()> {
    let blockd = plane.blockd()?;
    match way {
        Way::AtOnce => {
            end(blockd, Signal::KILL)?;
            tally.at_once += 1;
            // Often the next one dies young: while it recovers, or just after.
            let mut former = blockd;
            while random.below(2) == 0 {
                let young = plane.successor(former)?;
                thread::sleep(Duration::from_micros(random.below(40_000)));
                end(young, Signal::KILL)?;
                former = young;
                tally.during_recovery += 1;
            }
        }
        Way::Frozen => {
            let keeper = plane.keeper()?;
            kill_process(keeper, Signal::STOP).context("stopping the keeper")?;
            let seen = end(blockd, Signal::KILL).and_then(|()| plane.check(data));
            kill_process(keeper, Signal::CONT).context("waking the keeper")?;
            seen?;
            tally.frozen += 1;
            tally.checks += 1;
        }
        Way::Both => {
            let keeper = plane.keeper()?;
            // The keeper first: it must not start another one between.
            kill_process(keeper, Signal::KILL).context("killing the keeper")?;
            end(blockd, Signal::KILL)?;
            end(keeper, Signal::KILL)?;
            plane.check(data)?;
            plane.keep()?;
            tally.both += 1;
            tally.checks += 1;
        }
    }
    Ok(())
}
