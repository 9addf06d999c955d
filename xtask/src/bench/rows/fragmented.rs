//! Sequential reading after random overwriting, the known enemy of redirect-on-write, and after re-layout.

use anyhow::Result;

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, MB_PER_S};
use crate::bench::fio::{self, SEQREAD};
use crate::bench::peers::{Peer, QemuNbd, RAW, TANADA};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "fragmented",
    what: "sequential reading after random overwriting, and after re-layout",
    rows: &["seqread-20", "seqread-100", "seqread-relaid"],
    play,
    full_gib: 16,
    quick_gib: 8,
    quick_seconds: 50,
    is_quick: true,
};

/// The volume is read through at most so often until nothing moves any more.
const PASSES_MAX: u64 = 8;

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(4 * GIB, GIB);
    let dir = bench.dir.clone();
    let mut store = Blockd::create(dir.join("fragmented"), bytes * 5 / 2, Space::Written)?;
    store.volume("fragmented", bytes)?;
    // Reading itself would lay the volume out anew.
    store.restart_with(&["--relayout", "0"])?;
    let raw = QemuNbd::create(&dir, "fragmented", "raw", bytes)?;
    let mut peers = vec![Peer::tanada(TANADA, &store, "fragmented"), Peer::qemu_nbd(RAW, raw)];
    for peer in &peers {
        fio::fill(&peer.place(), bytes)?;
    }
    if bench.wants("seqread-20") {
        for peer in &peers {
            fio::overwrite(&peer.place(), bytes, bytes / 5)?;
        }
        measure(bench, "seqread-20", &mut peers, bytes);
    }
    for peer in &peers {
        fio::overwrite(&peer.place(), bytes, bytes)?;
    }
    if bench.wants("seqread-100") {
        measure(bench, "seqread-100", &mut peers, bytes);
    }
    if bench.wants("seqread-relaid") {
        store.restart_with(&[])?;
        peers[0] = Peer::tanada(TANADA, &store, "fragmented");
        let (mut passes, mut moved) = (0, None);
        while passes < PASSES_MAX {
            fio::read_all(&peers[0].place(), bytes)?;
            passes += 1;
            let now = store.stat()?["moved"].as_u64();
            if now == moved {
                break;
            }
            moved = now;
        }
        measure(bench, "seqread-relaid", &mut peers, bytes);
        bench.report.detail("seqread-relaid", "passes_before", passes.into());
        bench.report.detail("seqread-relaid", "moved_bytes", moved.into());
    }
    Ok(())
}

fn measure(bench: &mut Bench, id: &'static str, peers: &mut [Peer], bytes: u64) {
    let runs = compare::rounds(bench, &SEQREAD, peers, bytes, &mut compare::nothing);
    compare::show(bench, id, &SEQREAD, &runs, RAW);
    bench.report.compared(id, runs.values(TANADA, MB_PER_S), runs.ratios(TANADA, RAW, MB_PER_S));
}
