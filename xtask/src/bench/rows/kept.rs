//! A thousand kept generations against none: two stores with the same history of overwriting, one of them with a
//! generation after every few hundred writes.

use anyhow::Result;

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, MB_PER_S, P99, figure_of};
use crate::bench::fio::{self, ALL, SEQREAD};
use crate::bench::nbd::Writer;
use crate::bench::peers::Peer;
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "kept",
    what: "1,000 generations kept, against own values with none",
    rows: &[
        "kept-randwrite",
        "kept-randread",
        "kept-seqwrite",
        "kept-seqread",
        "kept-seqread-still",
        "kept-flush",
        "kept-randwrite-p99",
        "kept-randread-p99",
    ],
    play,
    full_gib: 20,
    quick_gib: 14,
    quick_seconds: 62,
    is_quick: true,
};

const KEPT: &str = "tanada, 1,000 generations";
const NONE: &str = "tanada, 0 generations";
const GENERATIONS: u64 = 1000;

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = bench.size(2 * GIB, GIB);
    let overwrites = bench.size(1000, 250);
    let dir = bench.dir.clone();
    let mut kept = Blockd::create(dir.join("kept"), bench.size(14 * GIB, 6 * GIB), Space::Written)?;
    let mut none = Blockd::create(dir.join("none"), bytes * 5 / 2, Space::Written)?;
    let volume = kept.volume("kept", bytes)?;
    none.volume("none", bytes)?;
    for place in [kept.place("kept"), none.place("none")] {
        fio::fill(&place, bytes)?;
    }
    let mut control = kept.control()?;
    let mut writer = Writer::connect(&kept.nbd_socket(), "kept", 32, 1)?;
    for _ in 0..GENERATIONS {
        writer.overwrite(overwrites)?;
        kept.snapshot(&mut control, &volume)?;
    }
    drop((writer, control));
    Writer::connect(&none.nbd_socket(), "none", 32, 1)?.overwrite(GENERATIONS * overwrites)?;
    if bench.wants("kept-seqread-still") {
        still(bench, &mut kept, &mut none, bytes)?;
    }
    let mut peers = peers(&kept, &none);
    for workload in ALL {
        let row = format!("kept-{}", workload.id);
        let row_p99 = format!("{row}-p99");
        let ids: Vec<&'static str> = SCENARIO.rows.iter().copied().filter(|id| *id == row || *id == row_p99).collect();
        if !ids.iter().any(|id| bench.wants(id)) {
            continue;
        }
        let runs = compare::rounds(bench, workload, &mut peers, bytes, &mut compare::nothing);
        compare::show(bench, "kept", workload, &runs, NONE);
        for id in ids {
            let figure = if id.ends_with("-p99") { P99 } else { figure_of(workload).0 };
            bench.report.compared(id, runs.values(KEPT, figure), runs.ratios(KEPT, NONE, figure));
            bench.report.detail(id, "overwrites_between", overwrites.into());
        }
    }
    Ok(())
}

fn peers(kept: &Blockd, none: &Blockd) -> Vec<Peer> {
    vec![Peer::tanada(KEPT, kept, "kept"), Peer::tanada(NONE, none, "none")]
}

/// Sequential reading of both as they are. Otherwise the reading itself lays the one without generations out anew, and
/// not the other: re-layout moves only what is younger than the last generation.
fn still(bench: &mut Bench, kept: &mut Blockd, none: &mut Blockd, bytes: u64) -> Result<()> {
    const ID: &str = "kept-seqread-still";
    for store in [&mut *kept, &mut *none] {
        store.restart_with(&["--relayout", "0"])?;
    }
    let runs = compare::rounds(bench, &SEQREAD, &mut peers(kept, none), bytes, &mut compare::nothing);
    compare::show(bench, ID, &SEQREAD, &runs, NONE);
    bench.report.compared(ID, runs.values(KEPT, MB_PER_S), runs.ratios(KEPT, NONE, MB_PER_S));
    for store in [kept, none] {
        store.restart_with(&[])?;
    }
    Ok(())
}
