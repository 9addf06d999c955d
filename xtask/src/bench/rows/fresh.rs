//! Space that was never written: what a new sparse file costs, and what the rows on written space do not show.

use anyhow::Result;

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, figure_of};
use crate::bench::fio::{FLUSH, RANDWRITE};
use crate::bench::peers::{Peer, QemuNbd, RAW, TANADA};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "fresh",
    what: "sparse files, never written before",
    rows: &["fresh-randwrite", "fresh-flush"],
    play,
    full_gib: 16,
    quick_gib: 6,
    quick_seconds: 40,
    is_quick: false,
};

fn play(bench: &mut Bench) -> Result<()> {
    let bytes = 16 * GIB;
    let dir = bench.dir.clone();
    for (workload, id) in [(&FLUSH, "fresh-flush"), (&RANDWRITE, "fresh-randwrite")] {
        if !bench.wants(id) {
            continue;
        }
        let mut store = Blockd::create(dir.join(id), 4 * bytes, Space::Sparse)?;
        store.volume(id, bytes)?;
        let raw = QemuNbd::create(&dir, id, "raw", bytes)?;
        let mut peers = vec![Peer::tanada(TANADA, &store, id), Peer::qemu_nbd(RAW, raw)];
        let runs = compare::rounds(bench, workload, &mut peers, bytes, &mut compare::nothing);
        compare::show(bench, "fresh", workload, &runs, RAW);
        let (figure, _) = figure_of(workload);
        bench.report.compared(id, runs.values(TANADA, figure), runs.ratios(TANADA, RAW, figure));
    }
    Ok(())
}
