//! Whole runs by seed: episodes of work, each ended by a crash, then everything is read back; at the end everything is
//! destroyed and the bitmap must hold the catalog alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tanada_units::Uuid;

use crate::counters::Counters;
use crate::device::{Faults, Lie};
use crate::kinds::{Kind, settings};
use crate::verify::Ended;
use crate::world::{Stop, World, wrong};

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// First seed; the following ones are tried in turn.
    pub seed: u64,
    /// Runs at most.
    pub runs: u64,
    /// No new run begins after this long.
    pub time: Option<Duration>,
    /// Prints every event to standard error.
    pub trace: bool,
    /// A planted mistake, to see that it is caught.
    pub lie: Lie,
    /// Runs of this kind only; each seed chooses where there is none.
    pub kind: Option<Kind>,
}

impl Options {
    /// One run of `seed`.
    pub fn one(seed: u64) -> Options {
        Options { seed, runs: 1, time: None, trace: false, lie: Lie::None, kind: None }
    }
}

/// A run that showed the store breaking a promise.
#[derive(Debug, Clone)]
pub struct Broken {
    pub seed: u64,
    pub message: String,
}

/// What the runs did, and the first that failed.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub runs: u64,
    pub counters: Counters,
    /// Differs where a run is not repeated exactly.
    pub digest: u64,
    pub broken: Option<Broken>,
}

/// Runs seeds until one fails, the number is reached or time is up.
pub fn run(options: &Options) -> Report {
    let start = Instant::now();
    let mut report = Report::default();
    for seed in options.seed..options.seed.saturating_add(options.runs) {
        if options.time.is_some_and(|time| start.elapsed() >= time) {
            break;
        }
        report.runs += 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| run_seed(seed, options, &mut report)));
        let message = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(message)) => message,
            Err(panic) => panic_text(panic.as_ref()),
        };
        report.broken = Some(Broken { seed, message });
        break;
    }
    report
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
    format!("panic: {}", text.unwrap_or_default())
}

fn run_seed(seed: u64, options: &Options, report: &mut Report) -> Result<(), String> {
    let settings = settings(seed, options.kind, options.trace);
    let mut world = World::new(settings, seed).map_err(text)?;
    world.device.lie = options.lie;
    let outcome = episodes(&mut world);
    world.counters.device_writes = world.device.counts.writes;
    world.counters.device_syncs = world.device.counts.syncs;
    world.counters.faults = world.device.counts.faults;
    report.counters += world.counters;
    report.digest = report.digest.rotate_left(7) ^ world.digest;
    outcome.map_err(|stop| format!("at event {}: {}", world.events, text(stop)))
}

fn text(stop: Stop) -> String {
    match stop {
        Stop::Crash => "a crash outside of its episode".to_owned(),
        Stop::Wrong(message) => message,
    }
}

fn episodes(world: &mut World) -> Result<(), Stop> {
    let episodes = world.rng.within(2, 7);
    world.open_store()?;
    if world.settings.brimming {
        world.fill()?;
    }
    if world.settings.flood_percent > 0 {
        world.create_to_flood()?;
    }
    for _ in 0..episodes {
        let lengths = if world.settings.contents > 0 { [10, 30, 60, 300] } else { [30, 300, 1500, 6000] };
        let length = *world.rng.pick(&lengths);
        world.crash_at = world.events + world.rng.within(1, length);
        world.device.faults = world.settings.faults;
        let stop = world.work();
        world.device.faults = Faults::default();
        world.crash_at = u64::MAX;
        if let Stop::Wrong(_) = stop {
            return Err(stop);
        }
        let crashed = world.event();
        let mut ended = world.crash();
        world.check_image()?;
        // Several crashes in a row: during recovery, too.
        while world.rng.chance(30) {
            world.start();
            let steps = world.rng.below(60);
            for _ in 0..steps {
                world.pump()?;
            }
            world.counters.in_recovery += 1;
            if world.crash() == Ended::PowerCut {
                ended = Ended::PowerCut;
            }
        }
        if std::mem::take(&mut world.device.sync_failed) {
            ended = Ended::PowerCut;
        }
        world.open_store()?;
        world.verify_recovery(ended, crashed)?;
        world.check_image()?;
        if world.rng.chance(25) {
            world.account()?;
        }
    }
    finish(world)
}

/// Everything goes; what is left is the catalog.
fn finish(world: &mut World) -> Result<(), Stop> {
    world.account()?;
    world.quiet = true;
    let mut ids: Vec<Uuid> = world.model.generations.keys().chain(world.model.volumes.keys()).copied().collect();
    world.rng.shuffle(&mut ids);
    for id in ids {
        world.destroy_one(id)?;
    }
    world.settle()?;
    world.checkpoint()?;
    world.settle()?;
    let listed = world.list()?;
    world.check_list(&listed)?;
    world.check_empty()?;
    world.check_figures()
}

impl World {
    /// Until the crash, or something wrong.
    pub fn work(&mut self) -> Stop {
        loop {
            if self.read_only {
                return Stop::Crash;
            }
            if let Err(stop) = self.act() {
                return stop;
            }
        }
    }

    pub fn open_store(&mut self) -> Result<(), Stop> {
        self.start();
        self.turn()?;
        loop {
            match self.opened.take() {
                Some(Ok(_)) => return Ok(()),
                Some(Err(failure)) => return wrong(format!("the store does not open: {failure}")),
                None => self.pump()?,
            }
        }
    }

    /// No guest waits for anything any more.
    pub fn wait_for_guests(&mut self) -> Result<(), Stop> {
        while !self.pending.is_empty() {
            self.pump()?;
        }
        Ok(())
    }

    /// The store comes to rest, and all its figures must be those of a full walk.
    fn account(&mut self) -> Result<(), Stop> {
        self.quiet = true;
        self.stop_scrub()?;
        self.wait_for_guests()?;
        self.checkpoint()?;
        self.settle()?;
        self.checkpoint()?;
        self.settle()?;
        self.check_usage()?;
        self.check_figures()?;
        self.quiet = false;
        Ok(())
    }

    /// Nobody asks for anything, until the store hands space down to the medium.
    fn idle(&mut self) -> Result<(), Stop> {
        self.quiet = true;
        let until = self.now + 11_000_000;
        for _ in 0..self.rng.within(20, 400) {
            self.pump()?;
            if self.now > until && self.rng.chance(20) {
                break;
            }
        }
        self.quiet = false;
        Ok(())
    }

    fn crash(&mut self) -> Ended {
        let kills = if self.settings.contents > 0 { 10 } else { 50 };
        if self.rng.chance(kills) {
            self.counters.kills += 1;
            self.kill();
            Ended::Killed
        } else {
            self.counters.power_cuts += 1;
            self.power_cut();
            Ended::PowerCut
        }
    }

    /// Guests work for a while, or an administrator does something.
    fn act(&mut self) -> Result<(), Stop> {
        if self.model.volumes.is_empty() {
            return self.create();
        }
        if self.settings.contents > 0 && self.rng.chance(95) {
            self.echo();
            return self.pump();
        }
        if self.settings.flood_percent > 0 && self.rng.chance(self.settings.flood_percent) {
            return self.flood();
        }
        if self.settings.scrub_percent > 0 && self.rng.chance(self.settings.scrub_percent) {
            return self.scrub();
        }
        match self.rng.below(1000) {
            0..=5 if (self.model.volumes.len() as u64) < self.settings.volumes_max => self.create(),
            6..=20 => self.snapshot(),
            21..=24 => self.clone_generation(),
            25..=27 => self.clone_volume(),
            28..=31 => self.revert(),
            32..=42 => self.destroy(),
            43..=45 => self.resize(),
            46..=49 => self.checkpoint(),
            50..=51 => self.settle(),
            52..=54 => self.grow(),
            55..=58 => self.backup(),
            59..=61 => self.difference(),
            62..=63 => self.changed_since(),
            64..=66 => self.idle(),
            67 => self.flood(),
            _ => {
                self.traffic();
                self.pump()
            }
        }
    }
}
