//! `cargo xtask …`: everything a developer or CI runs.

mod bench;
mod beside;
mod conformance;
mod consistency;
mod demo;
mod flat;
mod fuzz;
mod guest;
mod kills;
mod random;
mod setup;
mod sh;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND
  setup   installs the Debian packages (as root) and Python environments that demo and tests need
  guest [--database]
          makes the test guest from Debian packages, or the one with PostgreSQL
  demo [--keep] [--dev] [--generations N] [--sr tanada|netapp|equal]
          the main job end to end on a real guest, one line per step; on the embedded store or a simulated array
  demo --nightly [--keep] [--dev]
          schedule, quiesced snapshots, backups, loss and restore of a machine with a database under load
  demo --stop DIR
          ends what a demo with --keep left running
  test    everything: the tests of all crates, then the main job on a real guest
  consistency [--snapshots N] [--modes hooks,frozen,crash] [--keep] [--dev]
          snapshots of a database under load, each instantiated and judged by what its clients saw committed
  bench [--rounds N] [--seconds N] [--path DIR] [--json FILE] [--svg FILE] [--quick] [--rows NAME[,NAME]]
          the data plane beside its peers, in one run; --rows list shows what there is
  flat [--generations N] [--seconds N] [--keep] [--dev]
          how long requests of a running guest take with no generations kept, with many, and during exports
  conformance [--write]
          the driver suite over the embedded store and both simulated arrays, side by side; into docs/drivers.md
  sim [--seed N] [--runs N] [--minutes N] [--kind KIND] [--trace]
          the store under simulated kills, power cuts and faults; prints the seed of a failure
  mistakes [--only NAME[,NAME]] [--short] [--seconds N] [--write] [--list]
          plants each known mistake in a copy of the store and sees it caught
  kills [--count N] [--seed N] [--guest] [--dev]
          a real blockd killed over and over under clients that forget nothing, or under a real guest
  fuzz [--minutes N] [--keep] [TARGET...] | --short
          whatever reads outside bytes before anything that outside may send; --short: the inputs that CI tries";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["setup"] => setup::packages()
            .and_then(|()| setup::python())
            .and_then(|_| setup::ontap_client())
            .and_then(|_| setup::cinder_netapp())
            .and_then(|_| setup::cinder())
            .map(drop),
        ["guest"] => setup::packages().and_then(|()| guest::build()).map(|guest| println!("{}", guest.disk.display())),
        ["guest", "--database"] => setup::packages()
            .and_then(|()| guest::database::build(&guest::build()?))
            .map(|guest| println!("{}", guest.root.display())),
        ["demo", "--stop", dir] => {
            demo::stop(dir);
            Ok(())
        }
        ["demo", options @ ..] => demo::run(demo::Options::parse(options)?),
        ["test"] => test::run(),
        ["sim", options @ ..] => {
            let fixed = ["run", "--quiet", "--release", "--package", "tanada-sim", "--"];
            sh::run("cargo", &[&fixed, options].concat())
        }
        ["mistakes", options @ ..] => {
            let fixed = ["run", "--quiet", "--package", "tanada-sim", "--bin", "tanada-mistakes", "--"];
            sh::run("cargo", &[&fixed, options].concat())
        }
        ["kills", options @ ..] => kills::run(kills::Options::parse(options)?),
        ["fuzz", "--short"] => fuzz::short(),
        ["fuzz", options @ ..] => fuzz::run(&fuzz::Options::parse(options)?),
        ["conformance", options @ ..] => conformance::run(options),
        ["consistency", options @ ..] => consistency::run(&consistency::Options::parse(options)?),
        ["flat", options @ ..] => flat::run(&flat::Options::parse(options)?),
        ["bench", options @ ..] => bench::run(&bench::Options::parse(options)?),
        _ => bail!(USAGE),
    }
}
