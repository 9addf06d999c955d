//! `cargo xtask bench`: the data plane beside its peers, in one run, interleaved, medians of several rounds.
//!
//! Everything is reached the same way: NBD on a unix socket, fio's nbd engine, one connection. Ratios are against
//! qemu-nbd serving a raw file in the same round; absolute figures on a shared machine mean little.

mod fio;
mod peers;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{setup, sh};
use fio::Workload;
use peers::Peer;

/// What the command line may ask for.
#[derive(Debug, Clone)]
pub struct Options {
    pub rounds: usize,
    pub seconds: u32,
    pub path: PathBuf,
    pub json: Option<PathBuf>,
}

impl Options {
    pub fn parse(args: &[&str]) -> Result<Options> {
        let mut options = Options { rounds: 3, seconds: 4, path: sh::target_dir().join("bench"), json: None };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("bench: {arg} needs a value"));
            match *arg {
                "--rounds" => options.rounds = value()?.parse().context("--rounds: a number expected")?,
                "--seconds" => options.seconds = value()?.parse().context("--seconds: a number expected")?,
                "--path" => options.path = PathBuf::from(value()?),
                "--json" => options.json = Some(PathBuf::from(value()?)),
                other => {
                    bail!("bench: unknown option {other}; --rounds N, --seconds N, --path DIR, --json FILE are known")
                }
            }
        }
        if options.rounds == 0 || options.seconds == 0 {
            bail!("bench: --rounds and --seconds begin at 1");
        }
        Ok(options)
    }
}

/// Size of the volume that is measured; written in full before.
pub const VOLUME_BYTES: u64 = 1 << 30;
/// Generations kept in the second half of the run, with random overwrites between them.
const GENERATIONS: usize = 50;
/// Random 4 KiB overwrites between two generations.
const OVERWRITES: u32 = 1000;

pub fn run(options: &Options) -> Result<()> {
    setup::packages()?;
    sh::run("cargo", &["build", "--quiet", "--release", "--package", "tanada"])?;
    if options.path.exists() {
        std::fs::remove_dir_all(&options.path).with_context(|| format!("clearing {}", options.path.display()))?;
    }
    std::fs::create_dir_all(&options.path)?;
    let mut peers = peers::all(&options.path)?;
    let mut report = report::Report::new();
    for peer in &mut peers {
        fio::run(&Workload::FILL, &peer.uri()?, options.seconds)?;
    }
    measure(options, &mut peers, 0, &mut report)?;
    println!("taking {GENERATIONS} generations with {OVERWRITES} random overwrites between them");
    for peer in &mut peers {
        peer.keep_generations(GENERATIONS, OVERWRITES)?;
    }
    measure(options, &mut peers, GENERATIONS, &mut report)?;
    for peer in &mut peers {
        report.extend(peer.own_figures()?);
    }
    for peer in peers {
        peer.stop()?;
    }
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()?).with_context(|| format!("writing {}", path.display()))?;
    }
    std::fs::remove_dir_all(&options.path).with_context(|| format!("clearing {}", options.path.display()))
}

fn measure(options: &Options, peers: &mut [Peer], generations: usize, report: &mut report::Report) -> Result<()> {
    for round in 0..options.rounds {
        for workload in Workload::MEASURED {
            // Another peer begins in each round, so that no one always runs on a rested disk.
            for index in 0..peers.len() {
                let peer = &mut peers[(index + round) % 3];
                let value = fio::run(workload, &peer.uri()?, options.seconds)?;
                report.add(workload.name, peer.name, generations, value);
            }
        }
    }
    Ok(())
}
