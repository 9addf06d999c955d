//! What a group snapshot makes writers wait, seen from the client.
//!
//! Each volume has a client of its own with 32 writes in flight that notes when each was sent and answered. For each cut:
//! - **pause**: the longest time around the cut in which no write of the group was answered. This is the row.
//! - volume pause: the same for the one volume of the group that waited longest.
//! - slowest write: of all that overlapped the command, from sending to answer: the queue in front of it included.
//!
//! The same three for moments half-way between two cuts show what the load alone does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::bench::blockd::{Blockd, Space};
use crate::bench::fio;
use crate::bench::nbd::{Timed, Writer};
use crate::bench::stats::{median, percentile};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "pause",
    what: "write pause of a group snapshot under load",
    rows: &["pause-1", "pause-4", "pause-16"],
    play,
    full_gib: 17,
    quick_gib: 9,
    quick_seconds: 45,
    is_quick: true,
};

const DEPTH: usize = 32;
/// All volumes of a group together.
const GROUP_BYTES: u64 = GIB;
const SPACING: Duration = Duration::from_millis(60);

fn play(bench: &mut Bench) -> Result<()> {
    let cuts = bench.size(300, 60);
    let mut store = Blockd::create(bench.dir.join("pause"), bench.size(16 * GIB, 8 * GIB), Space::Written)?;
    let mut last = None;
    for (id, volumes) in [("pause-1", 1), ("pause-4", 4), ("pause-16", 16)] {
        if bench.wants(id) {
            if let Some(last) = last.replace(volumes) {
                clear(&store, last)?;
            }
            let (around, between, own) = measure(&mut store, volumes, cuts)?;
            let pauses: Vec<f64> = around.iter().map(|wait| wait.group).collect();
            bench.report.value(id, percentile(&pauses, 99.0), pauses.clone());
            bench.report.detail(id, "cuts", cuts.into());
            bench.report.detail(id, "p50_ms", median(&pauses).into());
            bench.report.detail(id, "around_cuts_p99_ms", summary(&around));
            bench.report.detail(id, "between_cuts_p99_ms", summary(&between));
            bench.report.detail(id, "blockd_slowest_write_p99_ms", percentile(&own, 99.0).into());
            let text = format!("{id}: around cuts {}, between them {} (p99, ms)", summary(&around), summary(&between));
            bench.report.note(text);
        }
    }
    Ok(())
}

/// Milliseconds waited around one moment.
#[derive(Debug, Clone, Copy)]
struct Wait {
    group: f64,
    volume: f64,
    slowest: f64,
}

fn summary(waits: &[Wait]) -> Value {
    let p99 = |figure: fn(&Wait) -> f64| {
        let value = percentile(&waits.iter().map(figure).collect::<Vec<_>>(), 99.0);
        (value * 1000.0).round() / 1000.0
    };
    json!({"pause": p99(|w| w.group), "volume_pause": p99(|w| w.volume), "slowest_write": p99(|w| w.slowest)})
}

/// A moment with a width: a command from its sending to its answer.
type Window = (Instant, Instant);

fn measure(store: &mut Blockd, volumes: usize, cuts: u64) -> Result<(Vec<Wait>, Vec<Wait>, Vec<f64>)> {
    let bytes = GROUP_BYTES / volumes as u64;
    let stop = Arc::new(AtomicBool::new(false));
    let mut ids = Vec::new();
    let mut writers = Vec::new();
    for number in 0..volumes {
        let token = format!("of-{volumes}-{number}");
        ids.push(store.volume(&token, bytes)?);
        fio::fill(&store.place(&token), bytes)?;
        writers.push(Writer::connect(&store.nbd_socket(), &token, DEPTH, number as u64 + 1)?);
    }
    let load = |mut writer: Writer| {
        let stop = Arc::clone(&stop);
        thread::spawn(move || writer.write_until(&stop))
    };
    let threads: Vec<_> = writers.into_iter().map(load).collect();
    let result = cut_often(store, &ids, cuts);
    stop.store(true, Ordering::Relaxed);
    let mut logs = Vec::new();
    for thread in threads {
        logs.push(thread.join().map_err(|_| anyhow!("a writer panicked"))??);
    }
    let (windows, own) = result?;
    let between: Vec<Window> = windows
        .windows(2)
        .map(|pair| {
            let middle = pair[0].1 + (pair[1].0.saturating_duration_since(pair[0].1)) / 2;
            (middle, middle + (pair[0].1 - pair[0].0))
        })
        .collect();
    let waits = |windows: &[Window]| windows.iter().map(|window| wait(&logs, *window)).collect();
    Ok((waits(&windows), waits(&between), own))
}

/// Makes room for the next group: destroys all volumes and generations.
fn clear(store: &Blockd, volumes: usize) -> Result<()> {
    let mut control = store.control()?;
    for number in 0..volumes {
        control.call("detach", json!({"token": format!("of-{volumes}-{number}")}))?;
    }
    let list = control.call("list", Value::Null)?;
    for volume in list["list"]["volumes"].as_array().context("a list without volumes")? {
        control.call("destroy", json!({"target": volume["id"]}))?;
    }
    control.call("settle", Value::Null).map(drop)
}

/// When each cut was, and what blockd says of the slowest write, in milliseconds.
fn cut_often(store: &mut Blockd, volumes: &[String], cuts: u64) -> Result<(Vec<Window>, Vec<f64>)> {
    let mut control = store.control()?;
    let (mut windows, mut own) = (Vec::new(), Vec::new());
    for _ in 0..cuts {
        // Paced, so that each cut meets a steady load; how long exactly does not matter.
        thread::sleep(SPACING);
        let group: Vec<Value> =
            volumes.iter().map(|volume| json!({"volume": volume, "generation": store.new_id()})).collect();
        let begun = Instant::now();
        let answer = control.call("snapshot", json!({"group": group}))?;
        windows.push((begun, Instant::now()));
        let slowest = answer["cut"]["slowest_write_us"].as_f64();
        own.push(slowest.with_context(|| format!("a cut is answered with {answer}"))? / 1000.0);
    }
    thread::sleep(SPACING);
    Ok((windows, own))
}

fn wait(logs: &[Vec<Timed>], window: Window) -> Wait {
    let answers: Vec<Vec<Instant>> = logs.iter().map(|log| answers_around(log, window)).collect();
    let mut all: Vec<Instant> = answers.iter().flatten().copied().collect();
    all.sort_unstable();
    let overlapping = logs.iter().flat_map(|log| near(log, window));
    let overlapping = overlapping.filter(|timed| timed.sent <= window.1 && timed.answered >= window.0);
    Wait {
        group: longest_gap(&all, window),
        volume: answers.iter().map(|answers| longest_gap(answers, window)).fold(0.0, f64::max),
        slowest: overlapping.map(|timed| millis(timed.answered - timed.sent)).fold(0.0, f64::max),
    }
}

/// A log is sorted by the times of answers. Two seconds on both sides hold every wait that is not a failure by itself.
fn near(log: &[Timed], (from, to): Window) -> &[Timed] {
    const REACH: Duration = Duration::from_secs(2);
    let first = log.partition_point(|timed| timed.answered + REACH < from);
    let last = log.partition_point(|timed| timed.answered < to + REACH);
    &log[first..last]
}

fn answers_around(log: &[Timed], window: Window) -> Vec<Instant> {
    near(log, window).iter().map(|timed| timed.answered).collect()
}

/// The longest time between two answers in a row that overlaps the window, in milliseconds.
fn longest_gap(answers: &[Instant], (from, to): Window) -> f64 {
    let gaps = answers.windows(2).filter(|pair| pair[0] <= to && pair[1] >= from);
    gaps.map(|pair| millis(pair[1] - pair[0])).fold(0.0, f64::max)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::{Timed, wait};
    use std::time::{Duration, Instant};

    #[test]
    fn the_gap_over_the_cut_counts_and_no_other() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let log = |answers: &[u64]| answers.iter().map(|ms| Timed { sent: at(ms - 1), answered: at(*ms) }).collect();
        // The first volume hears nothing from 10 to 25, the second answers at 17 between; a gap of 70 lies elsewhere.
        let logs: Vec<Vec<Timed>> = vec![log(&[5, 10, 25, 30, 100]), log(&[6, 17, 26, 31, 101])];
        let found = wait(&logs, (at(12), at(20)));
        assert_eq!((found.group, found.volume, found.slowest), (8.0, 15.0, 1.0));
    }
}
