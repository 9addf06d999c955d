//! Scenarios: each prepares servers in a certain state, measures, and fills some rows of the table.

mod aged;
mod fragmented;
mod fresh;
mod large;
mod plain;

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
}

pub const SCENARIOS: &[Scenario] =
    &[plain::SCENARIO, fresh::SCENARIO, fragmented::SCENARIO, aged::SCENARIO, large::SCENARIO];
