//! A volume whose map is larger than the memory for it, on a sparse file, written until checkpoints run.

use anyhow::Result;

use crate::bench::blockd::{Blockd, Space};
use crate::bench::compare::{self, IOPS};
use crate::bench::fio::{self, RANDWRITE};
use crate::bench::peers::{Peer, QemuNbd, RAW, TANADA};
use crate::bench::{Bench, GIB};

use super::Scenario;

pub const SCENARIO: Scenario = Scenario {
    name: "large",
    what: "random writing on a 100 GiB volume, sparse file, map larger than its cache",
    rows: &["randwrite-100g"],
    play,
    full_gib: 22,
    quick_gib: 14,
    quick_seconds: 60,
    is_quick: true,
};

const BYTES: u64 = 100 * GIB;
/// One leaf of the map covers so much: a block in each makes the whole map exist, 400 MiB of it.
const LEAF: u64 = 1 << 20;
/// Random blocks written to Tanada's volume before measuring, so that checkpoints are under way from the first round on.
const WARM_UP: u64 = 500_000;

fn play(bench: &mut Bench) -> Result<()> {
    let dir = bench.dir.clone();
    let mut store = Blockd::create(dir.join("large"), BYTES + 20 * GIB, Space::Sparse)?;
    store.volume("large", BYTES)?;
    let raw = QemuNbd::create(&dir, "large", "raw", BYTES)?;
    let mut peers = vec![Peer::tanada(TANADA, &store, "large"), Peer::qemu_nbd(RAW, raw)];
    for peer in &peers {
        fio::touch_everywhere(&peer.place(), BYTES, LEAF)?;
    }
    eprintln!("bench: large: every leaf of the map exists");
    fio::overwrite(&peers[0].place(), BYTES, WARM_UP * 4096)?;
    let before = store.stat()?["checkpoint"].as_u64();
    let options = bench.options.clone();
    // Long enough for checkpoints to run meanwhile.
    bench.options.seconds = options.seconds.max(if options.quick { 5 } else { 8 });
    bench.options.rounds = if options.quick { options.rounds.min(2) } else { options.rounds };
    let runs = compare::rounds(bench, &RANDWRITE, &mut peers, BYTES, &mut compare::nothing);
    bench.options = options;
    let after = store.stat()?["checkpoint"].as_u64();
    compare::show(bench, "large", &RANDWRITE, &runs, RAW);
    let id = "randwrite-100g";
    bench.report.compared(id, runs.values(TANADA, IOPS), runs.ratios(TANADA, RAW, IOPS));
    if let (Some(before), Some(after)) = (before, after) {
        bench.report.detail(id, "checkpoints_meanwhile", after.saturating_sub(before).into());
    }
    Ok(())
}
