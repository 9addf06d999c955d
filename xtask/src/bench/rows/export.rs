//! What kept generations and exports cost a guest: p99 of a steady load on a disk with 400 generations kept beside a disk
//! with none, during an export of a generation that goes as fast as it can, and during one with a bound.
//!
//! The whole way of an export is in it: daemon, archive, HTTP, client. The load is that of a guest with work to do, not one
//! that asks for all there is: so many requests a second, a few at a time, and what is told is how long they take. Both disks
//! have the same history of overwriting. In the same run stands how fast the export itself is, beside `qemu-img convert` of
//! the same generation.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::bench::fio::{self, Figures, PACED_RANDREAD, PACED_RANDWRITE, Place, Workload};
use crate::bench::plane::{Guest, Plane};
use crate::bench::process;
use crate::bench::stats::median;
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "export",
    what: "p99 of a guest's requests with 400 generations and while one is exported, and the export's speed",
    rows: &[
        "paced-kept-randwrite-p99",
        "paced-kept-randread-p99",
        "export-randwrite-p99",
        "export-randread-p99",
        "export-unbounded-randwrite-p99",
        "export-unbounded-randread-p99",
        "export-mb",
    ],
    play,
    full_gib: 16,
    quick_gib: 8,
    quick_seconds: 75,
    is_quick: false,
};

/// Bytes per second of the export with a bound.
const BOUND: u64 = 32 << 20;
const GENERATIONS: u64 = 400;

/// The rows of one load.
struct Rows {
    kept: &'static str,
    bounded: &'static str,
    unbounded: &'static str,
}

const CASES: [(&Workload, Rows); 2] = [
    (
        &PACED_RANDWRITE,
        Rows {
            kept: "paced-kept-randwrite-p99",
            bounded: "export-randwrite-p99",
            unbounded: "export-unbounded-randwrite-p99",
        },
    ),
    (
        &PACED_RANDREAD,
        Rows {
            kept: "paced-kept-randread-p99",
            bounded: "export-randread-p99",
            unbounded: "export-unbounded-randread-p99",
        },
    ),
];

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(4 * GIB, GIB);
    // 4 KiB each, between two generations.
    let overwrites = bench.size(1024, 256);
    let room = 2 * bytes + GENERATIONS * overwrites * 4096 + GIB;
    let plane = Plane::start(&bench.dir.join("export"), room)?;
    let (kept, none) = (plane.guest("kept", bytes)?, plane.guest("none", bytes)?);
    for guest in [&kept, &none] {
        fio::fill(&guest.place, bytes)?;
    }
    let (mut writer, mut control) = (kept.writer(1)?, plane.control()?);
    for _ in 0..GENERATIONS {
        writer.overwrite(overwrites)?;
        plane.cut(&mut control, &kept)?;
    }
    none.writer(1)?.overwrite(GENERATIONS * overwrites)?;
    drop((writer, control));
    let snapshot = plane.xe(&["vm-snapshot", &format!("uuid={}", kept.vm), "new-name-label=exported"])?;
    bench.report.note(format!("export: {} GiB, {overwrites} overwrites between two generations", bytes / GIB));
    for (load, rows) in &CASES {
        if [rows.kept, rows.bounded, rows.unbounded].iter().any(|id| bench.wants(id)) {
            compare(bench, &plane, [&none, &kept], &snapshot, bytes, load, rows)?;
        }
    }
    if bench.wants("export-mb") {
        speed(bench, &plane, &snapshot, bytes)?;
    }
    Ok(())
}

/// Rounds of: no generations, all of them, during an export without a bound, during one with.
fn compare(
    bench: &mut Bench,
    plane: &Plane,
    [none, kept]: [&Guest; 2],
    snapshot: &str,
    bytes: u64,
    load: &Workload,
    rows: &Rows,
) -> Result<()> {
    let (mut alone, mut quiet, mut free, mut slow) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..bench.options.rounds {
        if round >= 2 && bench.is_late() {
            break;
        }
        let measure = |guest: &Guest| fio::run(load, &guest.place, bytes, bench.options.seconds, None);
        // In turns, so that neither is always the first.
        if round.is_multiple_of(2) {
            alone.push(measure(none)?);
            quiet.push(measure(kept)?);
        } else {
            quiet.push(measure(kept)?);
            alone.push(measure(none)?);
        }
        free.push(plane.during_export(snapshot, None, || measure(kept))?);
        slow.push(plane.during_export(snapshot, Some(BOUND), || measure(kept))?);
    }
    let p99 = |runs: &[Figures]| runs.iter().map(|run| run.p99_us).collect::<Vec<f64>>();
    let p50 = |runs: &[Figures]| median(&runs.iter().map(|run| run.p50_us).collect::<Vec<f64>>());
    for (id, runs, reference) in
        [(rows.kept, &quiet, &alone), (rows.bounded, &slow, &quiet), (rows.unbounded, &free, &quiet)]
    {
        let ratios = runs.iter().zip(reference).map(|(run, other)| run.p99_us / other.p99_us).collect();
        bench.report.compared(id, p99(runs), ratios);
        bench.report.detail(id, "reference_p99_us", json!(median(&p99(reference))));
        bench.report.detail(id, "p50_us", json!(p50(runs)));
        bench.report.detail(id, "reference_p50_us", json!(p50(reference)));
    }
    let cases = [("no generations", &alone), ("400", &quiet), ("export with a bound", &slow), ("without", &free)];
    let told = cases.map(|(name, runs)| format!("{name} {:.0} ({:.0})", median(&p99(runs)), p50(runs)));
    bench.report.note(format!("{}: p99 (p50) in us: {}", load.name, told.join(", ")));
    Ok(())
}

/// Export of the disk as a raw image beside `qemu-img convert` of the same generation to a raw file.
fn speed(bench: &mut Bench, plane: &Plane, snapshot: &str, bytes: u64) -> Result<()> {
    let disk = plane.disk(snapshot)?;
    let mut control = plane.control()?;
    control.call("attach", json!({"token": "convert", "target": disk, "writable": false}))?;
    let Place::Nbd(source) = plane.place("convert") else { bail!("a store is reached over NBD") };
    let (own, theirs) = (bench.dir.join("export.raw"), bench.dir.join("convert.raw"));
    let mb_per_s = |begun: Instant| bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
    let (mut exported, mut converted) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        let begun = Instant::now();
        plane.xe(&["vdi-export", &format!("uuid={disk}"), &format!("filename={}", own.display()), "format=raw"])?;
        exported.push(mb_per_s(begun));
        let begun = Instant::now();
        let to = theirs.to_string_lossy();
        process::output("qemu-img", &["convert", "-f", "raw", "-O", "raw", "-T", "none", &source, &to])?;
        process::output("sync", &[&to])?;
        converted.push(mb_per_s(begun));
        for file in [&own, &theirs] {
            std::fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
        }
    }
    control.call("detach", json!({"token": "convert"}))?;
    let ratios = exported.iter().zip(&converted).map(|(own, theirs)| own / theirs).collect();
    bench.report.note(format!(
        "export of a raw image {:.0} MB/s, qemu-img convert of the same generation {:.0} MB/s",
        median(&exported),
        median(&converted)
    ));
    bench.report.compared("export-mb", exported, ratios);
    bench.report.detail("export-mb", "qemu_img_convert_mb_s", json!(median(&converted)));
    Ok(())
}
