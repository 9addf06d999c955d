//! A store with a TiB mapped: what blockd holds in memory while it serves it, and how soon it serves again after a crash.
//!
//! The store is synthetic: `tanada-synth` writes real maps and bitmaps whose data blocks are holes of a sparse file.

use std::fs::Metadata;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Scenario;
use crate::bench::blockd::{self, Blockd};
use crate::bench::fio::{self, RANDREAD, RANDWRITE};
use crate::bench::process;
use crate::bench::stats::median;
use crate::bench::{Bench, GIB};

pub const SCENARIO: Scenario = Scenario {
    name: "mapped",
    what: "a store with 1 TiB mapped: memory, and opening after a crash",
    rows: &["memory", "open"],
    play,
    full_gib: 12,
    quick_gib: 10,
    quick_seconds: 40,
    is_quick: true,
};

const VOLUME_GIB: u64 = 1024;
const STORE_GIB: u64 = 1200;
const MIB: f64 = 1048576.0;

fn play(bench: &mut Bench) -> Result<()> {
    let (mut store, first) = Blockd::create_with(bench.dir.join("mapped"), make)?;
    let file = std::fs::metadata(store.store()).context("the store's file")?;
    let list = store.control()?.call("list", Value::Null)?;
    let volume = list["list"]["volumes"][0]["id"].clone();
    store.control()?.call("attach", json!({"token": "mapped", "target": volume, "writable": true}))?;
    let place = store.place("mapped");
    let seconds = bench.options.seconds.max(5);
    let mut opened = Vec::new();
    let (mut most, mut own) = (0.0f64, 0.0f64);
    for _ in 0..if bench.options.quick { 1 } else { 3 } {
        fio::run(&RANDREAD, &place, VOLUME_GIB * GIB, seconds, None)?;
        let figures = fio::run(&RANDWRITE, &place, VOLUME_GIB * GIB, seconds, None)?;
        let memory = process::memory(store.pid()).context("blockd's memory")?;
        most = most.max(memory.most as f64 / MIB);
        own = own.max(memory.anonymous as f64 / MIB);
        eprintln!("bench: mapped: {:.0} random writes a second, {most:.0} MiB at most", figures.iops);
        opened.push(store.kill()?.as_secs_f64());
    }
    bench.report.value("memory", most, vec![most]);
    bench.report.detail("memory", "anonymous_mib", json!(own.round()));
    bench.report.detail("memory", "store_file_gib", json!(allocated(&file) / GIB));
    bench.report.value("open", median(&opened), opened);
    bench.report.detail("open", "first_opening_s", json!(first.as_secs_f64()));
    Ok(())
}

fn make(store: &Path) -> Result<()> {
    // Built with the bench, beside the program that is measured.
    let maker = Path::new(&blockd::binary()).with_file_name("tanada-synth");
    if !maker.exists() {
        bail!("there is no {}, which makes the store", maker.display());
    }
    let (path, store_gib, volume_gib) = (store.to_string_lossy(), STORE_GIB.to_string(), VOLUME_GIB.to_string());
    process::output(&maker.to_string_lossy(), &[&path, &store_gib, &volume_gib]).map(drop)
}

fn allocated(file: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.blocks() * 512
}
