//! Figures against kept generations: Tanada's, qcow2's internal snapshots, reflink copies of a raw file on XFS.
//!
//! Between two generations each volume gets the same number of random overwrites, few enough that qcow2, which copies
//! 64 KiB for the first 4 KiB written into a cluster after a snapshot, fits on the disk. Before each turn everybody takes one
//! more generation (and drops the one before the last turn), so that all are measured where a snapshot has just been taken. Who needs too long to reach the next
//! number of generations is left behind, and the report says so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::bench::blockd::{Blockd, Space};
use crate::bench::chart::Curve;
use crate::bench::compare::{self, Figure, IOPS, P99, Runs};
use crate::bench::fio::{self, RANDREAD, RANDWRITE, Workload};
use crate::bench::nbd::Writer;
use crate::bench::peers::{Peer, QemuNbd, RAW, Reflinks, TANADA};
use crate::bench::stats::median;
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "curves",
    what: "IOPS and p99 against kept generations, beside qcow2 and reflinks",
    rows: &["qcow2-30"],
    play,
    full_gib: 37,
    quick_gib: 14,
    quick_seconds: 50,
    is_quick: true,
};

const QCOW2: &str = "qcow2, internal snapshots";
const REFLINKS: &str = "raw on XFS, reflink copies";

const POINTS_FULL: &[usize] = &[0, 30, 100, 365, 1000];
/// A quick run fills the row only; the curves take the full one.
const POINTS_QUICK: &[usize] = &[30];
/// Random overwrites between two generations.
const OVERWRITES: u64 = 100;
/// Longest time that one peer may take from one number of generations to the next.
const PATIENCE: Duration = Duration::from_secs(240);

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(2 * GIB, GIB);
    let dir = bench.dir.clone();
    let mut store = Blockd::create(dir.join("curves"), bench.size(20 * GIB, 3 * GIB), Space::Written)?;
    let volume = store.volume("curves", bytes)?;
    let raw = QemuNbd::create(&dir, "curves", "raw", bytes)?;
    let qcow2 = QemuNbd::create(&dir, "curves", "qcow2", bytes)?;
    // Before the peers: it is unmounted after they have ended.
    let reflinks = if bench.options.quick { None } else { reflinks(bench, bytes) };
    let qcow2 = Peer::qemu_nbd(QCOW2, qcow2);
    let mut peers = vec![
        Peer::tanada(TANADA, &store, "curves"),
        Peer::qemu_nbd(RAW, raw).into_context(),
        // Each of its turns costs a quick run up to half a minute of closing the image.
        if bench.options.quick { qcow2.into_context() } else { qcow2 },
    ];
    if let Some(reflinks) = &reflinks {
        peers.push(Peer::qemu_nbd(REFLINKS, QemuNbd::create(&reflinks.mount, "file", "raw", bytes)?));
    }
    for peer in &peers {
        fio::fill(&peer.place(), bytes)?;
    }
    let mut lines = Lines::default();
    let options = bench.options.clone();
    bench.options.seconds = options.seconds.min(5);
    bench.options.rounds = options.rounds.min(3);
    let mut extra = Extra::default();
    let mut kept = 0;
    let (points, workloads): (_, &[&Workload]) =
        if bench.options.quick { (POINTS_QUICK, &[&RANDWRITE]) } else { (POINTS_FULL, &[&RANDREAD, &RANDWRITE]) };
    for point in points {
        let mut left = Vec::new();
        for mut peer in peers {
            match keep(&mut peer, &mut store, &volume, point - kept) {
                Ok(()) => left.push(peer),
                Err(error) => bench.report.note(format!("{}, {point} generations: {error:#}", peer.name)),
            }
        }
        peers = left;
        kept = *point;
        for workload in workloads.iter().copied() {
            let mut before = |peer: &mut Peer| if kept == 0 { Ok(()) } else { extra.renew(peer, &mut store, &volume) };
            let runs = compare::rounds(bench, workload, &mut peers, bytes, &mut before);
            compare::show(bench, &format!("{kept} kept"), workload, &runs, RAW);
            lines.add(workload, kept, &peers, &runs);
            if kept == 30 && workload.id == RANDWRITE.id {
                bench.report.compared("qcow2-30", runs.values(TANADA, IOPS), runs.ratios(TANADA, QCOW2, IOPS));
            }
        }
    }
    bench.options = options;
    bench.report.curves.append(&mut lines.0);
    Ok(())
}

/// Where it cannot be made, the others are measured without it.
fn reflinks(bench: &mut Bench, bytes: u64) -> Option<Reflinks> {
    match Reflinks::create(&bench.dir.clone(), bytes * 3) {
        Ok(reflinks) => Some(reflinks),
        Err(error) => {
            bench.report.note(format!("{REFLINKS}: {error:#}"));
            None
        }
    }
}

/// So many generations more, with overwrites before each.
fn keep(peer: &mut Peer, store: &mut Blockd, volume: &str, count: usize) -> Result<()> {
    let begun = Instant::now();
    let mut writer = None;
    for done in 0..count {
        if begun.elapsed() > PATIENCE {
            bail!("{done} of {count} more took {} s; left behind here", PATIENCE.as_secs());
        }
        // A server that is restarted for each snapshot needs a new connection each time.
        let mut connected = match writer.take() {
            Some(writer) => writer,
            None => {
                let (socket, export) = peer.export(store);
                Writer::connect(&socket, &export, 32, done as u64 + 1)?
            }
        };
        connected.overwrite(OVERWRITES)?;
        if peer.name == QCOW2 {
            drop(connected);
        } else {
            writer = Some(connected);
        }
        take(peer, store, volume)?;
    }
    Ok(())
}

/// The generation that each peer took for the last turn, beyond those that it keeps.
#[derive(Debug, Default)]
struct Extra {
    taken: BTreeSet<String>,
    /// Tanada's.
    generation: Option<String>,
}

impl Extra {
    /// Drops the last one and takes another.
    fn renew(&mut self, peer: &mut Peer, store: &mut Blockd, volume: &str) -> Result<()> {
        let name = peer.name.clone();
        let is_first = self.taken.insert(name.clone());
        match (name.as_str(), peer.qemu()) {
            (QCOW2, Some(server)) if !is_first => server.drop_internal_snapshot()?,
            (REFLINKS, Some(server)) if !is_first => server.drop_reflink()?,
            (TANADA, None) => {
                let mut control = store.control()?;
                if let Some(generation) = self.generation.take() {
                    control.call("destroy", json!({"target": generation}))?;
                    control.call("settle", Value::Null)?;
                }
                self.generation = Some(store.snapshot(&mut control, volume)?);
                return Ok(());
            }
            _ => {}
        }
        take(peer, store, volume)
    }
}

fn take(peer: &mut Peer, store: &mut Blockd, volume: &str) -> Result<()> {
    let name = peer.name.clone();
    match (name.as_str(), peer.qemu()) {
        (QCOW2, Some(server)) => server.internal_snapshot(),
        (REFLINKS, Some(server)) => server.reflink(),
        (TANADA, None) => store.snapshot(&mut store.control()?, volume).map(drop),
        // The raw file knows no generations: it is only overwritten.
        _ => Ok(()),
    }
}

/// The curves under way.
#[derive(Debug, Default)]
struct Lines(Vec<Curve>);

impl Lines {
    fn add(&mut self, workload: &Workload, kept: usize, peers: &[Peer], runs: &Runs) {
        let write = workload.id == RANDWRITE.id;
        let titles = if write {
            ["4 KiB random write, IOPS", "4 KiB random write, p99, us"]
        } else {
            ["4 KiB random read, IOPS", "4 KiB random read, p99, us"]
        };
        for peer in peers {
            for (title, figure) in titles.iter().zip([IOPS as Figure, P99]) {
                let value = median(&runs.values(&peer.name, figure));
                if value.is_finite() {
                    self.point(title, &peer.name, kept, value);
                }
            }
        }
    }

    fn point(&mut self, title: &str, peer: &str, kept: usize, value: f64) {
        let point = (kept as f64, value);
        match self.0.iter_mut().find(|curve| curve.figure == title && curve.peer == peer) {
            Some(curve) => curve.points.push(point),
            None => self.0.push(Curve { figure: title.into(), peer: peer.into(), points: vec![point] }),
        }
    }
}
