//! `cargo xtask bench`: the data plane beside its peers, in one run.
//!
//! Everything is reached the same way: NBD on a unix socket, fio's nbd engine, one connection. Absolute figures on a shared
//! machine mean little; what counts is the ratio of two servers in the same round, and of these the median.
//!
//! ```text
//!   targets   what is measured, must and aim            rows/*    scenarios: each prepares servers and fills some rows
//!   report    rows, peers, notes; table and JSON        compare   rounds in shuffled order
//!   chart     SVG                                       fio, nbd  clients
//!   peers, blockd, plane   servers                      process, undo   programs run, everything undone at the end
//! ```
//! A scenario that fails leaves its rows "not measured" with the reason; the run goes on. Whatever is made under `--path`
//! is removed at the end, on Ctrl-C too.

mod blockd;
mod chart;
mod compare;
mod fio;
mod machine;
mod nbd;
mod options;
mod peers;
mod plane;
mod process;
mod report;
mod rows;
mod stats;
mod targets;
mod undo;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::random::Random;
use crate::{setup, sh};
use machine::Machine;
pub use options::Options;
use report::Report;
use rows::{SCENARIOS, Scenario};
use undo::{Act, Guard};

const GIB: u64 = 1 << 30;

/// A run under way, as scenarios see it.
#[derive(Debug)]
pub struct Bench {
    pub options: Options,
    pub dir: PathBuf,
    pub random: Random,
    pub report: Report,
    scenario: &'static str,
    deadline: Instant,
    begun: Instant,
}

/// A quick run begins nothing new after this; the rest of its ten minutes is for what is under way.
const QUICK: Duration = Duration::from_secs(540);

impl Bench {
    pub fn wants(&self, id: &str) -> bool {
        self.options.wants(id, self.scenario)
    }

    /// Past the time that the scenario was given.
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// A quick run whose ten minutes are nearly over.
    pub fn is_over(&self) -> bool {
        self.options.quick && self.begun.elapsed() >= QUICK
    }

    /// A size that `--quick` makes smaller.
    pub fn size(&self, full: u64, quick: u64) -> u64 {
        if self.options.quick { quick } else { full }
    }
}

pub fn run(options: &Options) -> Result<()> {
    if options.list {
        list();
        return Ok(());
    }
    setup::packages()?;
    let is_ours = std::env::var_os("TANADA_BIN").is_none();
    if is_ours {
        sh::run("cargo", &["build", "--quiet", "--release", "--package", "tanada"])?;
    }
    if is_ours && rows::mapped::SCENARIO.rows.iter().any(|id| options.wants(id, rows::mapped::SCENARIO.name)) {
        sh::run("cargo", &["build", "--quiet", "--release", "--package", "tanada-sim"])?;
    }
    undo::watch_signals();
    let (dir, _removed) = scratch(&options.path)?;
    let how = json!({
        "quick": options.quick, "rounds": options.rounds, "seconds": options.seconds,
        "rows": if options.rows.is_empty() { "all".into() } else { options.rows.join(",") },
        "commit": process::output("git", &["-C", &sh::root().to_string_lossy(), "rev-parse", "--short", "HEAD"])
            .map_or_else(|_| "unknown".into(), |text| text.trim().to_string()),
    });
    let mut bench = Bench {
        options: options.clone(),
        random: Random::from_clock(),
        report: Report::new(Machine::here(&dir), how),
        dir,
        scenario: "",
        deadline: Instant::now(),
        begun: Instant::now(),
    };
    for scenario in SCENARIOS {
        play(&mut bench, scenario);
        // Whatever ends a long run early, what it measured so far is not lost.
        save(&bench)?;
    }
    bench.report.print();
    Ok(())
}

fn play(bench: &mut Bench, scenario: &'static Scenario) {
    bench.scenario = scenario.name;
    let wanted: Vec<&'static str> = scenario.rows.iter().copied().filter(|id| bench.wants(id)).collect();
    if wanted.is_empty() || (bench.options.rows.is_empty() && bench.options.quick && !scenario.is_quick) {
        return;
    }
    if bench.is_over() {
        bench.report.missing(&wanted, "the ten minutes of a quick run were over");
        return;
    }
    let begun = Instant::now();
    bench.deadline = begun + Duration::from_secs(if bench.options.quick { scenario.quick_seconds } else { 900 });
    eprintln!("bench: {} ({})", scenario.name, scenario.what);
    let needed = if bench.options.quick { scenario.quick_gib } else { scenario.full_gib };
    let result = room(&bench.dir, needed).and_then(|()| (scenario.play)(bench));
    let reason = match result {
        Ok(()) => "the scenario left it out".to_string(),
        Err(error) => {
            let text = format!("{error:#}");
            bench.report.note(format!("{}: {text}", scenario.name));
            text
        }
    };
    bench.report.missing(&wanted, &reason);
    eprintln!("bench: {} took {} s", scenario.name, begun.elapsed().as_secs());
}

/// Writes what was measured so far to where it was asked for.
fn save(bench: &Bench) -> Result<()> {
    undo::stop_if_ending();
    if let Some(path) = &bench.options.json {
        std::fs::write(path, bench.report.json()?).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &bench.options.svg {
        chart::write(path, &bench.report)?;
    }
    Ok(())
}

/// A new folder under `path`, removed at the end.
fn scratch(path: &Path) -> Result<(PathBuf, Guard)> {
    std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    let path = path.canonicalize()?;
    let dir = path.join(format!("run-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let guard = Guard::new(Act::Remove(dir.clone()));
    Ok((dir, guard))
}

/// An error where the file system has not so much room, and 2 GiB more.
fn room(dir: &Path, needed_gib: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("room under {}", dir.display()))?;
    let free = stat.f_bavail * stat.f_frsize / GIB;
    if free < needed_gib + 2 {
        bail!("{needed_gib} GiB and 2 GiB of reserve are needed under {}, {free} GiB are free", dir.display());
    }
    Ok(())
}

fn list() {
    for scenario in SCENARIOS {
        println!("{:<12} {}", scenario.name, scenario.what);
        for id in scenario.rows {
            println!("    {:<22} {}", id, targets::by_id(id).map_or("", |target| target.name));
        }
    }
}
