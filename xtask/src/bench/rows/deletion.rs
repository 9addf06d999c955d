//! What deleting a generation costs, in map blocks read and written per leaf that differs.
//!
//! The kernel's count of bytes that blockd had read from and written to the device while an otherwise idle store deleted one
//! generation, in blocks of 4 KiB: an upper bound, since the journal, bitmaps, catalog and superblocks of the checkpoints
//! are in it. A leaf (1 MiB of the volume) differs where it was written to both before the generation (since its predecessor)
//! and after it (until its successor): only there does it hold a block that nobody else has.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bench::blockd::{Blockd, Control, Space};
use crate::bench::nbd::Writer;
use crate::bench::{Bench, GIB};
use crate::bench::{fio, process};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "deletion",
    what: "map blocks read and written for deleting a generation",
    rows: &["delete-oldest", "delete-middle", "delete-shared"],
    play,
    full_gib: 6,
    quick_gib: 6,
    quick_seconds: 30,
    is_quick: true,
};

/// Large and thin: its map is larger than the cache, so that what is read is read from the device.
const BYTES: u64 = 64 * GIB;
const LEAF: u64 = 1 << 20;
/// Random blocks written between two generations.
const OVERWRITES: u64 = 8000;
const GENERATIONS: usize = 6;

fn play(bench: &mut Bench) -> Result<()> {
    let mut store = Blockd::create(bench.dir.join("deletion"), BYTES + 8 * GIB, Space::Sparse)?;
    let volume = store.volume("deletion", BYTES)?;
    fio::touch_everywhere(&store.place("deletion"), BYTES, LEAF)?;
    let mut control = store.control()?;
    let mut writer = Writer::connect(&store.nbd_socket(), "deletion", 32, 1)?;
    let mut generations = Vec::new();
    // Leaves written to between each generation and the next.
    let mut after: Vec<BTreeSet<u64>> = Vec::new();
    for _ in 0..GENERATIONS {
        generations.push(store.snapshot(&mut control, &volume)?);
        after.push(overwrite(&mut writer)?);
    }
    // The last one is shared with a clone that goes its own way.
    let last = GENERATIONS - 1;
    let clone = store.new_id();
    control.call("clone", json!({"source": generations[last], "volume": clone}))?;
    control.call("attach", json!({"token": "clone", "target": clone, "writable": true}))?;
    let in_clone = overwrite(&mut Writer::connect(&store.nbd_socket(), "clone", 32, 2)?)?;
    control.call("detach", json!({"token": "clone"}))?;
    control.call("checkpoint", Value::Null)?;
    control.call("settle", Value::Null)?;

    // The oldest has no predecessor: every leaf is older than nothing.
    let oldest = after[0].len();
    let middle = after[1].intersection(&after[2]).count();
    let shared = after[last - 1].intersection(&after[last]).count() + in_clone.len();
    let cost = Cost { pid: store.pid() };
    cost.measure(bench, "delete-oldest", oldest, || destroy(&mut control, &generations[0]))?;
    cost.measure(bench, "delete-middle", middle, || destroy(&mut control, &generations[2]))?;
    // Its blocks are the clone's, too, until that goes as well: both are one deletion.
    cost.measure(bench, "delete-shared", shared, || {
        destroy(&mut control, &generations[last])?;
        destroy(&mut control, &clone)
    })
}

/// Overwrites at random; the leaves that this touched.
fn overwrite(writer: &mut Writer) -> Result<BTreeSet<u64>> {
    let mut leaves = BTreeSet::new();
    let mut seen = |offset| {
        leaves.insert(offset / LEAF);
    };
    writer.overwrite_seen(OVERWRITES, &mut seen)?;
    Ok(leaves)
}

/// Returns when nothing of it is left to do.
fn destroy(control: &mut Control, target: &str) -> Result<()> {
    control.call("destroy", json!({"target": target}))?;
    control.call("settle", Value::Null).map(drop)
}

struct Cost {
    pid: u32,
}

impl Cost {
    fn measure(
        &self,
        bench: &mut Bench,
        id: &'static str,
        leaves: usize,
        delete: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let device = || process::device_bytes(self.pid).context("blockd's device I/O");
        let before = device()?;
        let begun = std::time::Instant::now();
        delete()?;
        let after = device()?;
        let per_leaf = |from: u64, to: u64| to.saturating_sub(from) as f64 / 4096.0 / leaves as f64;
        let (read, written) = (per_leaf(before.0, after.0), per_leaf(before.1, after.1));
        bench.report.value(id, read + written, vec![read + written]);
        bench.report.detail(id, "read", json!(read));
        bench.report.detail(id, "written", json!(written));
        bench.report.detail(id, "differing_leaves", json!(leaves));
        bench.report.detail(id, "seconds", json!(begun.elapsed().as_secs_f64()));
        bench.report.note(format!("{id}: {read:.2} read, {written:.2} written per leaf, {leaves} leaves differ"));
        Ok(())
    }
}
