//! A thousand kept generations against none: two stores with the same history of overwriting, one of them with a
//! generation after every few hundred writes.

use anyhow::Result;

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, P99, figure_of};
use crate::bench::fio::{self, ALL};
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
        "kept-flush",
        "kept-randwrite-p99",
        "kept-randread-p99",
    ],
    play,
    full_gib: 20,
    quick_gib: 14,
    quick_seconds: 55,
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
    let mut peers = vec![Peer::tanada(KEPT, &kept, "kept"), Peer::tanada(NONE, &none, "none")];
    for peer in &peers {
        fio::fill(&peer.place(), bytes)?;
    }
    let mut control = kept.control()?;
    let mut writer = Writer::connect(&kept.nbd_socket(), "kept", 32, 1)?;
    for _ in 0..GENERATIONS {
        writer.overwrite(overwrites)?;
        kept.snapshot(&mut control, &volume)?;
    }
    drop(writer);
    Writer::connect(&none.nbd_socket(), "none", 32, 1)?.overwrite(GENERATIONS * overwrites)?;
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
