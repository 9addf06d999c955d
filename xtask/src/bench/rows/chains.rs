//! Random writing and reading beside qcow2 with 20 internal snapshots and with a chain of 30 overlays; Tanada keeps as many
//! generations.

use anyhow::Result;

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, IOPS};
use crate::bench::fio::{self, RANDREAD, RANDWRITE};
use crate::bench::nbd::Writer;
use crate::bench::peers::{Peer, QemuNbd, TANADA};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "chains",
    what: "beside qcow2 with 20 internal snapshots and a chain of 30",
    rows: &["internal-20-write", "internal-20-read", "chain-30-write", "chain-30-read"],
    play,
    full_gib: 18,
    quick_gib: 14,
    quick_seconds: 40,
    is_quick: false,
};

const INTERNAL: &str = "qcow2, 20 internal snapshots";
const CHAIN: &str = "qcow2, chain of 30";
/// Random overwrites between two snapshots.
const OVERWRITES: u64 = 500;

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(2 * GIB, GIB);
    let dir = bench.dir.clone();
    let mut store = Blockd::create(dir.join("chains"), bytes * 3, Space::Written)?;
    let volume = store.volume("chains", bytes)?;
    let mut peers = vec![
        Peer::tanada(TANADA, &store, "chains"),
        Peer::qemu_nbd(INTERNAL, QemuNbd::create(&dir, "internal", "qcow2", bytes)?),
        Peer::qemu_nbd(CHAIN, QemuNbd::create(&dir, "chain", "qcow2", bytes)?),
    ];
    for peer in &peers {
        fio::fill(&peer.place(), bytes)?;
    }
    for (at, count) in [(0, 30), (1, 20), (2, 30)] {
        let peer = &mut peers[at];
        for number in 0..count {
            let (socket, export) = peer.export(&store);
            Writer::connect(&socket, &export, 32, number + 1)?.overwrite(OVERWRITES)?;
            match (at, peer.qemu()) {
                (1, Some(server)) => server.internal_snapshot()?,
                (2, Some(server)) => server.overlay()?,
                _ => drop(store.snapshot(&mut store.control()?, &volume)?),
            }
        }
    }
    for (workload, kind) in [(&RANDREAD, "read"), (&RANDWRITE, "write")] {
        let runs = compare::rounds(bench, workload, &mut peers, bytes, &mut compare::nothing);
        compare::show(bench, "chains", workload, &runs, TANADA);
        for (id, peer) in [("internal-20", INTERNAL), ("chain-30", CHAIN)] {
            if let Some(id) = SCENARIO.rows.iter().find(|row| **row == format!("{id}-{kind}")) {
                bench.report.compared(id, runs.values(TANADA, IOPS), runs.ratios(TANADA, peer, IOPS));
            }
        }
    }
    Ok(())
}
