//! A store aged by random overwriting, half full and nearly full.

use anyhow::{Result, bail};

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, IOPS};
use crate::bench::fio::{self, RANDWRITE};
use crate::bench::peers::{Peer, QemuNbd, RAW, TANADA};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "aged",
    what: "random writing on a store aged by random overwriting, 50 % and 80 % full",
    rows: &["randwrite-aged50", "randwrite-aged80"],
    play,
    full_gib: 20,
    quick_gib: 8,
    quick_seconds: 55,
    is_quick: true,
};

/// The volumes are overwritten at random so many times before measuring.
const TIMES_FULL: u64 = 4;
const TIMES_QUICK: u64 = 2;

fn play(bench: &mut Bench) -> Result<()> {
    let store_bytes = bench.size(8 * GIB, 3 * GIB);
    let times = bench.size(TIMES_FULL, TIMES_QUICK);
    let dir = bench.dir.clone();
    let mut store = Blockd::create(dir.join("aged"), store_bytes, Space::Written)?;
    let half = (store_bytes / 2).next_multiple_of(1 << 20);
    let third = (store_bytes * 3 / 10).next_multiple_of(1 << 20);
    store.volume("half", half)?;
    let raw = QemuNbd::create(&dir, "aged", "raw", half)?;
    let mut peers = vec![Peer::tanada(TANADA, &store, "half"), Peer::qemu_nbd(RAW, raw)];
    for peer in &peers {
        fio::fill(&peer.place(), half)?;
    }
    age(&store, &[("half", half)], times)?;
    measure(bench, "randwrite-aged50", &store, &mut peers, half, times)?;
    if bench.wants("randwrite-aged80") {
        store.volume("third", third)?;
        fio::fill(&store.place("third"), third)?;
        age(&store, &[("half", half), ("third", third)], times)?;
        measure(bench, "randwrite-aged80", &store, &mut peers, half, times)?;
    }
    Ok(())
}

/// Overwrites each volume at random, `times` times, in turn.
fn age(store: &Blockd, volumes: &[(&str, u64)], times: u64) -> Result<()> {
    for _ in 0..times {
        for (token, bytes) in volumes {
            fio::overwrite(&store.place(token), *bytes, *bytes)?;
        }
    }
    Ok(())
}

fn measure(
    bench: &mut Bench,
    id: &'static str,
    store: &Blockd,
    peers: &mut [Peer],
    bytes: u64,
    times: u64,
) -> Result<()> {
    if !bench.wants(id) {
        return Ok(());
    }
    let runs = compare::rounds(bench, &RANDWRITE, peers, bytes, &mut compare::nothing);
    compare::show(bench, id, &RANDWRITE, &runs, RAW);
    bench.report.compared(id, runs.values(TANADA, IOPS), runs.ratios(TANADA, RAW, IOPS));
    let stat = store.stat()?;
    let (Some(used), Some(physical)) = (stat["used"].as_u64(), stat["physical"].as_u64()) else {
        bail!("a store's figures without used and physical: {stat}");
    };
    bench.report.detail(id, "overwritten_times", times.into());
    bench.report.detail(id, "used_percent", (used * 100 / physical.max(1)).into());
    bench.report.detail(id, "blocks_per_write_x100", stat["blocks_per_write_x100"].clone());
    Ok(())
}
