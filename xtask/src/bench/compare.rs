//! Peers side by side: in each round everybody runs the workload once, in shuffled order; ratios are per round.

use anyhow::Result;

use super::Bench;
use super::fio::{self, Figures, Workload};
use super::peers::Peer;
use super::report::PeerRow;
use super::stats::median;

/// What each peer did in each round; `None` where it failed.
#[derive(Debug)]
pub struct Runs {
    names: Vec<String>,
    figures: Vec<Vec<Option<Figures>>>,
}

pub type Figure = fn(&Figures) -> f64;

pub const IOPS: Figure = |figures| figures.iops;
pub const MB_PER_S: Figure = |figures| figures.mb_per_s;
pub const P50: Figure = |figures| figures.p50_us;
pub const P99: Figure = |figures| figures.p99_us;
pub const CPU: Figure = |figures| figures.cpu_us;

/// The figure that is compared, and its unit.
pub fn figure_of(workload: &Workload) -> (Figure, &'static str) {
    if workload.is_sequential() { (MB_PER_S, "MB/s") } else { (IOPS, "IOPS") }
}

impl Runs {
    fn of(&self, name: &str) -> &[Option<Figures>] {
        let at = self.names.iter().position(|known| known == name);
        at.and_then(|at| self.figures.get(at)).map_or(&[], Vec::as_slice)
    }

    pub fn values(&self, name: &str, figure: Figure) -> Vec<f64> {
        self.of(name).iter().flatten().map(figure).filter(|value| value.is_finite()).collect()
    }

    /// One peer's figure divided by another's, round by round, where both have one.
    pub fn ratios(&self, name: &str, reference: &str, figure: Figure) -> Vec<f64> {
        let pairs = self.of(name).iter().zip(self.of(reference));
        let ratios = pairs.filter_map(|(own, other)| Some(figure(own.as_ref()?) / figure(other.as_ref()?)));
        ratios.filter(|ratio| ratio.is_finite()).collect()
    }
}

/// What happens before a peer's turn in a round, not measured.
pub type Before<'a> = &'a mut dyn FnMut(&mut Peer) -> Result<()>;

/// All rounds of one workload over the first `bytes` of each peer. A peer that fails loses that turn and is named in the
/// notes. Past the scenario's time, rounds are left out, but never the first two, and past that
/// of a quick run never the first.
pub fn rounds(bench: &mut Bench, workload: &Workload, peers: &mut [Peer], bytes: u64, before: Before<'_>) -> Runs {
    let mut runs =
        Runs { names: peers.iter().map(|peer| peer.name.clone()).collect(), figures: vec![Vec::new(); peers.len()] };
    for round in 0..bench.options.rounds {
        if (round >= 2 && bench.is_late()) || (round >= 1 && bench.is_over()) {
            bench.report.note(format!("{}: {round} rounds, then its time was over", workload.name));
            break;
        }
        let mut order: Vec<usize> = (0..peers.len()).collect();
        bench.random.shuffle(&mut order);
        for at in order {
            let peer = &mut peers[at];
            let seldom = peer.is_context && round >= if bench.options.quick { 1 } else { 2 };
            let result = if seldom { None } else { Some(turn(bench, workload, peer, bytes, before)) };
            runs.figures[at].push(match result {
                None => None,
                Some(Ok(figures)) => Some(figures),
                Some(Err(error)) => {
                    bench.report.note(format!("{}, {}: {error:#}", peers[at].name, workload.name));
                    None
                }
            });
        }
    }
    runs
}

fn turn(bench: &Bench, workload: &Workload, peer: &mut Peer, bytes: u64, before: Before<'_>) -> Result<Figures> {
    before(peer)?;
    fio::run(workload, &peer.place(), bytes, bench.options.seconds, peer.pid())
}

/// Nothing happens before a turn.
pub fn nothing(_: &mut Peer) -> Result<()> {
    Ok(())
}

/// Puts all peers' figures beside each other into the report; `group` says where they were taken, ratios are to `reference`.
pub fn show(bench: &mut Bench, group: &str, workload: &Workload, runs: &Runs, reference: &str) {
    let (figure, unit) = figure_of(workload);
    for name in &runs.names {
        let ratios = runs.ratios(name, reference, figure);
        bench.report.peer(PeerRow {
            group: group.into(),
            workload: workload.name.into(),
            peer: name.clone(),
            unit,
            values: runs.values(name, figure),
            ratio: (!ratios.is_empty()).then(|| median(&ratios)),
            p50_us: median(&runs.values(name, P50)),
            p99_us: median(&runs.values(name, P99)),
            cpu_us: median(&runs.values(name, CPU)),
        });
    }
}
