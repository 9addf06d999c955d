//! The basic rows, on space that is written: each peer over a volume filled twice, and the medium and the client's ceiling
//! beside them.

use anyhow::Result;

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, CPU, P99, Runs, figure_of};
use crate::bench::fio::{self, ALL, Workload};
use crate::bench::peers::{Peer, QemuNbd, RAW, TANADA};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "plain",
    what: "an ordinary volume beside all peers",
    rows: &[
        "randwrite",
        "randread",
        "seqwrite",
        "seqread",
        "flush",
        "randwrite-p99",
        "randread-p99",
        "cpu-randwrite",
        "cpu-randread",
    ],
    play,
    full_gib: 20,
    quick_gib: 14,
    quick_seconds: 90,
    is_quick: true,
};

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(4 * GIB, GIB);
    let dir = bench.dir.clone();
    let mut store = Blockd::create(dir.join("plain"), bytes * 5 / 2, Space::Written)?;
    store.volume("plain", bytes)?;
    let raw = QemuNbd::create(&dir, "plain", "raw", bytes)?;
    let medium = Peer::medium(raw.image());
    let mut peers = vec![
        Peer::tanada(TANADA, &store, "plain"),
        Peer::qemu_nbd(RAW, raw),
        Peer::qemu_nbd("qemu-nbd qcow2", QemuNbd::create(&dir, "plain", "qcow2", bytes)?).into_context(),
        Peer::nbdkit_memory(&dir, bytes)?,
    ];
    for peer in &peers {
        fio::fill(&peer.place(), bytes)?;
    }
    // A second time: what the volume is made of then was already given back and taken again.
    for peer in peers.iter().filter(|peer| !peer.is_context) {
        fio::fill(&peer.place(), bytes)?;
    }
    peers.push(medium);
    for workload in ALL {
        if rows_of(workload).iter().any(|id| bench.wants(id)) {
            let runs = compare::rounds(bench, workload, &mut peers, bytes, &mut compare::nothing);
            compare::show(bench, "plain", workload, &runs, RAW);
            fill_rows(bench, workload, &runs);
        }
    }
    Ok(())
}

/// The rows that come from one workload.
fn rows_of(workload: &Workload) -> &'static [&'static str] {
    match workload.id {
        "randwrite" => &["randwrite", "randwrite-p99", "cpu-randwrite"],
        "randread" => &["randread", "randread-p99", "cpu-randread"],
        "seqwrite" => &["seqwrite"],
        "seqread" => &["seqread"],
        _ => &["flush"],
    }
}

fn fill_rows(bench: &mut Bench, workload: &Workload, runs: &Runs) {
    let (figure, _) = figure_of(workload);
    for id in rows_of(workload) {
        let report = &mut bench.report;
        match id {
            id if id.starts_with("cpu-") => {
                let values = runs.values(TANADA, CPU);
                report.value(id, crate::bench::stats::median(&values), values);
                report.detail(id, "raw_us", crate::bench::stats::median(&runs.values(RAW, CPU)).into());
            }
            id if id.ends_with("-p99") => {
                report.compared(id, runs.values(TANADA, P99), runs.ratios(TANADA, RAW, P99));
            }
            id => report.compared(id, runs.values(TANADA, figure), runs.ratios(TANADA, RAW, figure)),
        }
    }
}
