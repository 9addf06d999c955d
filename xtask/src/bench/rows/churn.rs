//! A generation taken every second and the oldest deleted, against the same volume left alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use crate::bench::blockd::{Blockd, Control, Space};
use crate::bench::compare::{self, P99, figure_of};
use crate::bench::fio::{self, ALL};
use crate::bench::peers::Peer;
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "churn",
    what: "a generation every second, the oldest deleted, against own quiet values",
    rows: &[
        "churn-randwrite",
        "churn-randread",
        "churn-seqwrite",
        "churn-seqread",
        "churn-flush",
        "churn-randwrite-p99",
        "churn-randread-p99",
    ],
    play,
    full_gib: 21,
    quick_gib: 6,
    quick_seconds: 55,
    is_quick: true,
};

const BUSY: &str = "tanada, a generation a second";
const QUIET: &str = "tanada, quiet";
/// Generations kept at a time.
const KEPT: usize = 3;
const PERIOD: Duration = Duration::from_secs(1);

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(2 * GIB, GIB / 2);
    let dir = bench.dir.clone();
    // Written through within a second, each generation holds as much as the volume, and so does one that is being deleted.
    let mut store = Blockd::create(dir.join("churn"), bytes * 10, Space::Written)?;
    let volume = store.volume("churn", bytes)?;
    let mut peers = vec![Peer::tanada(BUSY, &store, "churn"), Peer::tanada(QUIET, &store, "churn")];
    for _ in 0..2 {
        fio::fill(&peers[0].place(), bytes)?;
    }
    let options = bench.options.clone();
    // At least a few generations in each turn.
    bench.options.seconds = options.seconds.max(3);
    bench.options.rounds = if options.quick { options.rounds.min(2) } else { options.rounds };
    for workload in ALL {
        let row = format!("churn-{}", workload.id);
        let row_p99 = format!("{row}-p99");
        let ids: Vec<&'static str> = SCENARIO.rows.iter().copied().filter(|id| *id == row || *id == row_p99).collect();
        if !ids.iter().any(|id| bench.wants(id)) {
            continue;
        }
        let mut taker = None;
        let mut taken = 0;
        let mut before = |peer: &mut Peer| {
            taken += end(&mut taker, &store)?;
            if peer.name == BUSY {
                taker = Some(Taker::start(&mut store, &volume)?);
            }
            Ok(())
        };
        let runs = compare::rounds(bench, workload, &mut peers, bytes, &mut before);
        taken += end(&mut taker, &store)?;
        compare::show(bench, "churn", workload, &runs, QUIET);
        for id in ids {
            let figure = if id.ends_with("-p99") { P99 } else { figure_of(workload).0 };
            bench.report.compared(id, runs.values(BUSY, figure), runs.ratios(BUSY, QUIET, figure));
            bench.report.detail(id, "generations_taken", taken.into());
        }
    }
    bench.options = options;
    Ok(())
}

/// Takes generations on a thread of its own.
struct Taker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Taker {
    fn start(store: &mut Blockd, volume: &str) -> Result<Taker> {
        let stop = Arc::new(AtomicBool::new(false));
        // More names than turns have seconds.
        let names: Vec<String> = (0..600).map(|_| store.new_id()).collect();
        let (control, volume, stopped) = (store.control()?, volume.to_string(), Arc::clone(&stop));
        let thread = thread::spawn(move || take(control, &volume, names, &stopped));
        Ok(Taker { stop, thread })
    }
}

/// How many were taken.
fn take(mut control: Control, volume: &str, names: Vec<String>, stop: &AtomicBool) -> Result<u64> {
    let begun = Instant::now();
    let mut kept: VecDeque<String> = VecDeque::new();
    let mut taken = 0;
    for name in names {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        control.call("snapshot", json!({"group": [{"volume": volume, "generation": name}]}))?;
        taken += 1;
        kept.push_back(name);
        if kept.len() > KEPT {
            control.call("destroy", json!({"target": kept.pop_front()}))?;
        }
        let next = begun + PERIOD * taken;
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
    }
    for name in kept {
        control.call("destroy", json!({"target": name}))?;
    }
    Ok(u64::from(taken))
}

/// Ends the taking, if any is under way, and waits until nothing of it is left to do.
fn end(taker: &mut Option<Taker>, store: &Blockd) -> Result<u64> {
    let Some(taker) = taker.take() else { return Ok(0) };
    taker.stop.store(true, Ordering::Relaxed);
    let taken = taker.thread.join().map_err(|_| anyhow!("the thread that takes generations panicked"))??;
    store.control()?.call("settle", Value::Null)?;
    Ok(taken)
}
