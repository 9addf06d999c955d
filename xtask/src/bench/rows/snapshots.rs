//! Snapshot and clone, durable, for volumes of 1 GiB to 16 TiB.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::bench::blockd::{Blockd, Space};
use crate::bench::nbd::Writer;
use crate::bench::stats::{median, percentile};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "snapshots",
    what: "snapshot and clone, durable, against the volume's size",
    rows: &["snapshot", "snapshot-p50", "snapshot-flat", "clone", "clone-p50", "clone-flat"],
    play,
    full_gib: 6,
    quick_gib: 6,
    quick_seconds: 30,
    is_quick: true,
};

const SIZES: [(&str, u64); 4] =
    [("1 GiB", GIB), ("64 GiB", 64 * GIB), ("1 TiB", 1024 * GIB), ("16 TiB", 16 * 1024 * GIB)];
/// Random blocks written to each volume first, and again before each snapshot.
const BLOCKS_FIRST: u64 = 20_000;
const BLOCKS_BETWEEN: u64 = 64;

fn play(bench: &mut Bench) -> Result<()> {
    let times = bench.size(200, 100);
    let mut store = Blockd::create(bench.dir.join("snapshots"), 4 * GIB, Space::Written)?;
    let mut volumes = Vec::new();
    for (name, bytes) in SIZES {
        let token = name.replace(' ', "");
        let volume = store.volume(&token, bytes)?;
        let mut writer = Writer::connect(&store.nbd_socket(), &token, 32, bytes)?;
        writer.overwrite(BLOCKS_FIRST)?;
        volumes.push((volume, writer));
    }
    let mut control = store.control()?;
    let mut cuts = vec![Vec::new(); SIZES.len()];
    let mut clones = vec![Vec::new(); SIZES.len()];
    for _ in 0..times {
        for (at, (volume, writer)) in volumes.iter_mut().enumerate() {
            writer.overwrite(BLOCKS_BETWEEN)?;
            let begun = Instant::now();
            let generation = store.snapshot(&mut control, volume)?;
            cuts[at].push(begun.elapsed().as_secs_f64() * 1000.0);
            let clone = store.new_id();
            let begun = Instant::now();
            control.call("clone", json!({"source": generation, "volume": clone}))?;
            clones[at].push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    fill_rows(bench, ["snapshot", "snapshot-p50", "snapshot-flat"], &cuts);
    fill_rows(bench, ["clone", "clone-p50", "clone-flat"], &clones);
    Ok(())
}

/// `times` holds the milliseconds of each size.
fn fill_rows(bench: &mut Bench, [p99_id, p50_id, flat_id]: [&'static str; 3], times: &[Vec<f64>]) {
    let p99s: Vec<f64> = times.iter().map(|times| percentile(times, 99.0)).collect();
    let p50s: Vec<f64> = times.iter().map(|times| median(times)).collect();
    let worst = |values: &[f64]| values.iter().copied().fold(f64::NAN, f64::max);
    let by_size = |values: &[f64]| -> Map<String, Value> {
        SIZES.iter().zip(values).map(|((name, _), value)| ((*name).to_string(), json!(value))).collect()
    };
    bench.report.value(p99_id, worst(&p99s), p99s.clone());
    bench.report.detail(p99_id, "p99_ms_by_size", by_size(&p99s).into());
    bench.report.value(p50_id, worst(&p50s), p50s.clone());
    bench.report.detail(p50_id, "p50_ms_by_size", by_size(&p50s).into());
    let smallest = p50s.first().copied().unwrap_or(f64::NAN);
    bench.report.compared(flat_id, p50s.clone(), vec![worst(&p50s) / smallest]);
}
