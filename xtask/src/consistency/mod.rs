//! `cargo xtask consistency`: what snapshots of a database under load are worth.
//!
//! ```text
//! for each mode:  N snapshots while two clients work ─▶ an instance of every one, inspected ─▶ judged by the ledger
//!                 ─▶ one instance booted whole
//! ```
//! | mode | the guest | file systems of a copy | the database of a copy |
//! |---|---|---|---|
//! | hooks | a freeze hook stops the database, then the file systems freeze | no journal to replay | starts as after a shutdown |
//! | frozen | the file systems freeze | no journal to replay | recovers from its log |
//! | crash | is not asked | replay their journals | recovers from its log |
//!
//! In every mode nothing that was committed may be missing and nothing may be half there. A copy that fails any of this
//! fails the run.

pub mod inspector;
pub mod report;
pub mod server;

use anyhow::{Context, Result, bail};

use crate::demo::machine::Machine;
use crate::demo::prepare;
use crate::demo::storage::Kind;
use crate::demo::world::World;
use crate::{demo, guest, setup};
use inspector::{Inspector, Seen};
use report::Row;
use server::{Mode, Server, Shot};

/// Transactions between two snapshots.
const BETWEEN: usize = 20;

/// What the command line may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Per mode.
    pub snapshots: usize,
    pub modes: Vec<Mode>,
    pub keep: bool,
    pub dev: bool,
}

impl Options {
    pub fn parse(args: &[&str]) -> Result<Options> {
        let mut options = Options { snapshots: 20, modes: Mode::ALL.to_vec(), keep: false, dev: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--keep" => options.keep = true,
                "--dev" => options.dev = true,
                "--snapshots" => {
                    let value = args.next().context("--snapshots needs a number")?;
                    options.snapshots =
                        value.parse().with_context(|| format!("--snapshots {value}: a number expected"))?;
                    if !(1..=200).contains(&options.snapshots) {
                        bail!("--snapshots {value}: 1 to 200 expected");
                    }
                }
                "--modes" => {
                    let value = args.next().context("--modes needs names: hooks,frozen,crash")?;
                    let mode = |name: &str| Mode::ALL.into_iter().find(|mode| mode.name() == name);
                    let modes: Option<Vec<Mode>> = value.split(',').map(mode).collect();
                    options.modes =
                        modes.with_context(|| format!("--modes {value}: of hooks,frozen,crash expected"))?;
                }
                other => {
                    bail!("consistency: unknown option {other}; --snapshots N, --modes, --keep and --dev are known")
                }
            }
        }
        Ok(options)
    }
}

pub fn run(options: &Options) -> Result<()> {
    setup::packages()?;
    let base = guest::build()?;
    let guest = guest::database::build(&base)?;
    let mut world = World::start(options.dev, &base.kernel, Kind::Tanada)?;
    let outcome = all(&mut world, &guest, options);
    demo::finish(world, options.keep, "consistency", outcome)
}

fn all(world: &mut World, guest: &guest::database::DatabaseGuest, options: &Options) -> Result<()> {
    let sr = prepare::storage_repository(world, Kind::Tanada)?;
    let mut server = Server::install(world, &sr, guest)?;
    world.remember_accelerator(true)?;
    server.start_clients(world, &[1, 2])?;
    let mut shots = Vec::new();
    for mode in &options.modes {
        server.prepare(world, *mode)?;
        let series = series(world, &server, *mode, options.snapshots)?;
        println!("taken: {}", times(*mode, &series)?);
        shots.extend(series);
    }
    let inspector = Inspector::start(world, &sr, &guest.root)?;
    let mut rows = Vec::new();
    for (shot, wait_ms) in &shots {
        let row = judged(world, &inspector, shot, *wait_ms)?;
        println!("ok {} {row}", shot.name);
        rows.push(row);
    }
    inspector.stop(world)?;
    for mode in &options.modes {
        if let Some((shot, _)) = shots.iter().rfind(|(shot, _)| shot.mode == *mode) {
            println!("ok {} booted whole: {}", shot.name, booted(world, shot)?);
        }
    }
    print!("{}", report::table(&rows));
    Ok(())
}

/// What is known before the copies are looked into, each as median and maximum.
fn times(mode: Mode, series: &[(Shot, u64)]) -> Result<String> {
    let spread = |key: &str, unit: u64| -> Result<String> {
        let values: Result<Vec<u64>> = series.iter().map(|(shot, _)| Ok(shot.frozen(key)? / unit)).collect();
        Ok(report::spread(values?.into_iter()))
    };
    let pauses: Result<Vec<u64>> = series.iter().map(|(shot, _)| shot.number("slowest_write_us")).collect();
    Ok(format!(
        "{} {}; froze within {} ms, frozen {} ms, write pause {} us, clients waited {} ms",
        series.len(),
        mode.name(),
        spread("freeze_us", 1000)?,
        spread("frozen_us", 1000)?,
        report::spread(pauses?.into_iter()),
        report::spread(series.iter().map(|(_, wait_ms)| *wait_ms)),
    ))
}

/// Snapshots under load; with each the clients' longest wait over it.
fn series(world: &World, server: &Server, mode: Mode, count: usize) -> Result<Vec<(Shot, u64)>> {
    let mut shots = Vec::new();
    for number in 1..=count {
        server.wait_for_transactions(world, BETWEEN)?;
        let shot = server.shoot(world, mode, &format!("{}-{number:02}", mode.name()))?;
        server.wait_for_transactions(world, BETWEEN)?;
        let wait_ms = shot.wait_ms(&server.ledger(world)?);
        shots.push((shot, wait_ms));
    }
    Ok(shots)
}

/// Inspects an instance and holds it to what its mode promises.
fn judged(world: &World, inspector: &Inspector, shot: &Shot, wait_ms: u64) -> Result<Row> {
    let seen = inspector.inspect(world, &shot.template)?;
    check_level(shot.mode, &level(shot)?, &seen)
        .with_context(|| format!("{}: {:?}, copy: {seen:?}", shot.name, shot.info))?;
    let verdict = shot.judge(&seen.found)?;
    Ok(Row {
        mode: shot.mode,
        level: level(shot)?,
        freeze_us: shot.frozen("freeze_us")?,
        frozen_us: shot.frozen("frozen_us")?,
        pause_us: shot.number("slowest_write_us")?,
        wait_ms,
        replays: seen.replays,
        recovered: seen.recovered,
        required: verdict.required,
        lost: verdict.lost,
    })
}

fn level(shot: &Shot) -> Result<String> {
    shot.info.get("consistency").cloned().with_context(|| format!("{}: snapshot_info has no consistency", shot.name))
}

/// The certificate says what the mode is to reach, and the copy bears it out.
fn check_level(mode: Mode, level: &str, seen: &Seen) -> Result<()> {
    if level != mode.level() {
        bail!("its certificate says '{level}', '{}' expected", mode.level());
    }
    if mode != Mode::Crash && !seen.untouched() {
        bail!("{level} consistent, but its file systems have journals to replay");
    }
    // Without these an inspection that sees nothing would pass everything.
    if mode == Mode::Crash && seen.dirty_journals == 0 {
        bail!("no journal of a running machine is to be replayed: the inspection is blind");
    }
    if mode != Mode::Hooks && !seen.recovered {
        bail!("the database of a running machine did not recover: the inspection is blind");
    }
    if mode == Mode::Hooks && seen.recovered {
        bail!("the hook stopped the database, but its copy went through crash recovery");
    }
    Ok(())
}

/// A whole machine of a snapshot: it boots, its database opens and holds what it has to.
pub fn booted(world: &World, shot: &Shot) -> Result<String> {
    let name = format!("new-name-label={}-instance", shot.name);
    let uuid = world.xe(&["vm-install", &format!("template={}", shot.template.uuid), &name])?;
    let instance = Server::boot(world, Machine { uuid })?;
    let verdict = shot.judge(&instance.audit(world)?)?;
    let told = instance.recoveries(world)?;
    let journals_replayed = !told.starts_with("journals replayed: 0,");
    if (shot.mode == Mode::Hooks && told != server::AT_REST) || (shot.mode == Mode::Frozen && journals_replayed) {
        bail!("the instance of {} says '{told}'", shot.name);
    }
    world.xe(&["vm-uninstall", &format!("uuid={}", instance.machine.uuid), "force=true"])?;
    Ok(format!("{told}; {} of {} transactions there, {} lost", verdict.present, verdict.required, verdict.lost))
}

#[cfg(test)]
mod tests {
    use tanada_witness::ledger::Found;

    use super::check_level;
    use super::inspector::Seen;
    use super::server::Mode;

    fn seen(dirty_journals: usize, recovered: bool) -> Seen {
        Seen { dirty_journals, replays: dirty_journals, recovered, found: Found::default() }
    }

    #[test]
    fn each_level_is_held_to_its_word() {
        check_level(Mode::Hooks, "application", &seen(0, false)).unwrap();
        check_level(Mode::Frozen, "file system", &seen(0, true)).unwrap();
        check_level(Mode::Crash, "crash", &seen(3, true)).unwrap();
    }

    #[test]
    fn a_level_that_the_copy_does_not_bear_out_is_refused() {
        check_level(Mode::Hooks, "file system", &seen(0, false)).expect_err("less than the hooks give");
        check_level(Mode::Crash, "file system", &seen(3, true)).expect_err("more than a crash gives");
        check_level(Mode::Hooks, "application", &seen(0, true)).expect_err("the database recovered");
        check_level(Mode::Hooks, "application", &seen(1, false)).expect_err("a journal is to be replayed");
        check_level(Mode::Frozen, "file system", &seen(1, true)).expect_err("a journal is to be replayed");
        check_level(Mode::Frozen, "file system", &seen(0, false)).expect_err("nothing is seen");
        check_level(Mode::Crash, "crash", &seen(0, true)).expect_err("nothing is seen");
    }
}
