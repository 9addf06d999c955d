//! Scenarios: each prepares servers in a certain state, measures, and fills some rows of the table.

mod aged;
mod chains;
mod churn;
mod curves;
mod deletion;
mod export;
mod fragmented;
mod fresh;
mod kept;
mod large;
pub mod mapped;
mod pause;
mod plain;
mod snapshots;

use anyhow::Result;

use super::Bench;

pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    pub rows: &'static [&'static str],
    pub play: fn(&mut Bench) -> Result<()>,
    /// Room needed at most, and how long a quick run lets it go on.
    pub full_gib: u64,
    pub quick_gib: u64,
    pub quick_seconds: u64,
    /// Part of a quick run that names no rows.
    pub is_quick: bool,
}

/// In the order of a run. Those that a quick run can least do without, and the short ones, come first.
pub const SCENARIOS: &[Scenario] = &[
    plain::SCENARIO,
    fresh::SCENARIO,
    fragmented::SCENARIO,
    aged::SCENARIO,
    pause::SCENARIO,
    snapshots::SCENARIO,
    deletion::SCENARIO,
    mapped::SCENARIO,
    large::SCENARIO,
    kept::SCENARIO,
    churn::SCENARIO,
    curves::SCENARIO,
    chains::SCENARIO,
    export::SCENARIO,
];
