//! `cargo xtask flat`: what a running guest feels of its kept generations, and of exports of one of them.
//!
//! ```text
//! none kept ─▶ while N are taken ─▶ N kept ─▶ while one is exported, bounded and not ─▶ while N are deleted ─▶ none kept
//! ```
//! A load inside of a real guest asks for so many 4 KiB a second at random places of its disk, O_DIRECT, and tells how long
//! each took: all of the way is in it, from the guest's kernel over QEMU to the store. Generations are snapshots of the
//! machine as anybody takes them, with `xe`; that nobody is frozen for them is the machine's own setting here, so that what is
//! measured is the storage. The first and the last line show how much the machine itself moved in the meantime.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tanada_witness::pace::Felt;

use crate::demo::machine::Machine;
use crate::demo::prepare;
use crate::demo::storage::Kind;
use crate::demo::world::World;
use crate::{beside, demo, guest, setup, sh};

/// The disk under load: all of it holds data.
const DISK_BYTES: u64 = 256 << 20;
/// Requests a second while something is compared.
const A_SECOND: u64 = 500;
/// Writes a second between two generations, and the least time for them: some 256, a MiB.
const A_SECOND_BETWEEN: u64 = 1000;
const BETWEEN: Duration = Duration::from_millis(256);
/// Bytes a second of the export with a bound.
const BOUND: u64 = 32 << 20;
/// For a guest without hardware help on a busy host.
const SLACK: Duration = Duration::from_secs(120);

/// What the command line may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub generations: usize,
    /// How long each line is measured, reading and writing.
    pub seconds: u64,
    pub keep: bool,
    pub dev: bool,
}

impl Options {
    pub fn parse(args: &[&str]) -> Result<Options> {
        let mut options = Options { generations: 400, seconds: 10, keep: false, dev: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut number = |least: u64, most: u64| -> Result<u64> {
                let value = args.next().with_context(|| format!("{arg} needs a number"))?;
                match value.parse() {
                    Ok(number) if (least..=most).contains(&number) => Ok(number),
                    _ => bail!("{arg} {value}: {least} to {most} expected"),
                }
            };
            match *arg {
                "--generations" => options.generations = number(1, 10_000)? as usize,
                "--seconds" => options.seconds = number(1, 600)?,
                "--keep" => options.keep = true,
                "--dev" => options.dev = true,
                other => {
                    bail!("flat: unknown option {other}; --generations N, --seconds N, --keep and --dev are known")
                }
            }
        }
        Ok(options)
    }
}

pub fn run(options: &Options) -> Result<()> {
    setup::packages()?;
    let guest = guest::build()?;
    let mut world = World::start(options.dev, &guest.kernel, Kind::Tanada)?;
    let outcome = all(&mut world, &guest, options);
    demo::finish(world, options.keep, "flat", outcome)
}

/// A running machine whose second disk is under load.
struct Loaded<'a> {
    world: &'a World,
    machine: Machine,
    seconds: u64,
}

fn all(world: &mut World, guest: &guest::Guest, options: &Options) -> Result<()> {
    let sr = prepare::storage_repository(world, Kind::Tanada)?;
    let machine = machine(world, &sr, guest)?;
    world.remember_accelerator(true)?;
    let loaded = Loaded { world, machine, seconds: options.seconds };
    let count = options.generations;
    println!("{:<44} {:>22} {:>22}", "p99 (p50) slowest, ms", "read", "write");
    loaded.line("no generations kept")?;
    let mut kept = Vec::new();
    let taking = loaded.while_busy(|| {
        for number in 1..=count {
            let begun = Instant::now();
            kept.push(loaded.snapshot(number)?);
            std::thread::sleep(BETWEEN.saturating_sub(begun.elapsed()));
        }
        Ok(())
    })?;
    show(&format!("while {count} are taken"), None, &taking);
    loaded.line(&format!("{count} kept"))?;
    let newest = kept.last().context("a generation is kept")?;
    for (name, bound) in [("an export with rate=32MiB", Some(BOUND)), ("an export without a bound", None)] {
        let export = || loaded.export(newest, bound);
        let both = beside::repeatedly(export, || loaded.both())?;
        show(&format!("{count} kept, {name}"), Some(&both[0]), &both[1]);
    }
    let deleting = loaded.while_busy(|| kept.iter().try_for_each(|snapshot| loaded.delete(snapshot)))?;
    show(&format!("while {count} are deleted"), None, &deleting);
    loaded.line("none kept again")
}

/// The small guest with a disk of random bytes, booted.
fn machine(world: &World, sr: &str, guest: &guest::Guest) -> Result<Machine> {
    let data = world.dir.join("data.raw");
    let mib = (DISK_BYTES >> 20).to_string();
    sh::output(
        "dd",
        &["if=/dev/urandom", &format!("of={}", data.display()), "bs=1M", &format!("count={mib}"), "status=none"],
    )?;
    let label = "new-name-label=flat";
    let uuid = world.xe(&["vm-install", "template=Other install media", label, &format!("sr-uuid={sr}")])?;
    let machine = Machine { uuid };
    prepare::set_memory(world, &machine, 256)?;
    let root_bytes = guest.disk.metadata().context("the guest's disk image")?.len();
    prepare::add_disk(world, sr, &machine, "0", root_bytes, Some(&guest.disk))?;
    prepare::add_disk(world, sr, &machine, "1", DISK_BYTES, Some(&data))?;
    std::fs::remove_file(&data).with_context(|| format!("removing {}", data.display()))?;
    world.xe(&["vm-param-set", &format!("uuid={}", machine.uuid), "other-config:tanada-quiesce=skip"])?;
    machine.start(world)?;
    Ok(machine)
}

impl Loaded<'_> {
    fn line(&self, name: &str) -> Result<()> {
        let [read, write] = self.both()?;
        show(name, Some(&read), &write);
        Ok(())
    }

    /// Reading, then writing.
    fn both(&self) -> Result<[Felt; 2]> {
        Ok([self.load("read")?, self.load("write")?])
    }

    fn load(&self, way: &str) -> Result<Felt> {
        let command = format!("tanada-witness pace {way} /dev/vdb {DISK_BYTES} {A_SECOND} {}", self.seconds);
        let limit = Duration::from_secs(self.seconds) + SLACK;
        Felt::parse(&self.machine.guest_within(self.world, &command, limit)?)
    }

    /// What a load of writing feels while something is done.
    fn while_busy(&self, act: impl FnOnce() -> Result<()>) -> Result<Felt> {
        let endless = u32::MAX;
        let start = format!(
            "tanada-witness pace write /dev/vdb {DISK_BYTES} {A_SECOND_BETWEEN} {endless} >/run/pace 2>&1 </dev/null & \
             echo $! >/run/pace.pid"
        );
        self.machine.guest(self.world, &start)?;
        act()?;
        // What it says, should it have ended before, is no figure and fails as such.
        let stop = "kill $(cat /run/pace.pid); until [ -s /run/pace ]; do sleep 0.1; done; cat /run/pace";
        Felt::parse(&self.machine.guest(self.world, stop)?)
    }

    fn snapshot(&self, number: usize) -> Result<String> {
        let (vm, label) = (format!("uuid={}", self.machine.uuid), format!("new-name-label=kept-{number}"));
        self.world.xe(&["vm-snapshot", &vm, &label])
    }

    fn delete(&self, snapshot: &str) -> Result<()> {
        self.world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={snapshot}"), "force=true"]).map(drop)
    }

    fn export(&self, snapshot: &str, bound: Option<u64>) -> Command {
        let mut args =
            vec!["snapshot-export-to-template".to_owned(), format!("snapshot-uuid={snapshot}"), "filename=".to_owned()];
        args.extend(bound.map(|rate| format!("rate={rate}")));
        self.world.xe_command(&args)
    }
}

fn show(name: &str, read: Option<&Felt>, write: &Felt) {
    println!("{name:<44} {:>22} {:>22}", read.map_or_else(String::new, cell), cell(write));
}

/// Milliseconds, as the table's head has them.
fn cell(felt: &Felt) -> String {
    let [p99, p50, slowest] = [felt.p99_us, felt.p50_us, felt.slowest_us].map(|us| us as f64 / 1000.0);
    format!("{p99:.2} ({p50:.2}) {slowest:.1}")
}

#[cfg(test)]
mod tests {
    use tanada_witness::pace::Felt;

    use super::{Options, cell};

    #[test]
    fn the_command_line_is_read() {
        let options = Options::parse(&["--generations", "30", "--seconds", "2", "--dev"]).unwrap();
        assert_eq!(options, Options { generations: 30, seconds: 2, keep: false, dev: true });
        for wrong in [["--generations", "0"], ["--seconds", "x"], ["--hurry", "1"]] {
            assert!(Options::parse(&wrong).unwrap_err().to_string().contains(wrong[0]));
        }
    }

    #[test]
    fn figures_are_told_in_milliseconds() {
        let felt = Felt { requests: 10, p50_us: 310, p99_us: 1_250, slowest_us: 20_040 };
        assert_eq!(cell(&felt), "1.25 (0.31) 20.0");
    }
}
