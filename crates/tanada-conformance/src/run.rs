//! Plays the cases one after the other. Each begins with an SR that is empty, and has to leave it so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tanada_driver::bridge::Bridges;
use tanada_driver::registry::{Backend, SrConfig};
use tanada_units::{GIB, MIB};
use tokio::time::timeout;

use crate::cases::{CASES, Case};
use crate::report::{CaseReport, Report, Verdict};
use crate::scratch::Scratch;

/// What is tested: an SR that holds nothing. It is opened and closed, never made nor erased here.
#[derive(Clone)]
pub struct Subject {
    pub backend: Arc<dyn Backend>,
    pub config: SrConfig,
    pub bridges: Bridges,
}

/// How much is asked of the storage.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Bytes of an ordinary disk.
    pub disk: u64,
    /// Bytes of a thin disk that nobody fills.
    pub large: u64,
    /// Group snapshots under writers.
    pub cuts: usize,
    /// Orders of deletion tried, of 24.
    pub orders: usize,
    /// Verbs abandoned on their way.
    pub interruptions: usize,
    /// Disks worked on at the same time.
    pub side_by_side: usize,
    /// A case that takes longer failed.
    pub patience: Duration,
}

impl Scale {
    /// For tests: seconds on a simulator.
    pub const SMALL: Scale = Scale {
        disk: 45 * MIB,
        large: 15 * GIB,
        cuts: 5,
        orders: 4,
        interruptions: 6,
        side_by_side: 4,
        patience: Duration::from_secs(300),
    };
    /// For an array of one's own.
    pub const FULL: Scale = Scale {
        disk: 240 * MIB,
        large: 300 * GIB,
        cuts: 30,
        orders: 24,
        interruptions: 30,
        side_by_side: 8,
        patience: Duration::from_secs(3600),
    };
}

/// Names of the cases and what each asks.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    CASES.iter().map(|case| (case.name, case.what))
}

/// Plays all cases, or those called `only`. `told` hears of each when it has ended.
///
/// # Errors
/// Only where the SR cannot be opened, or is not empty: it may be somebody's. Whatever a case finds is in the report.
pub async fn run(
    subject: &Subject,
    scale: Scale,
    only: &[String],
    told: &(dyn Fn(&CaseReport) + Sync),
) -> Result<Report> {
    let scratch = Scratch::open(subject, scale).await?;
    let mut cases = Vec::new();
    for case in CASES.iter().filter(|case| only.is_empty() || only.iter().any(|name| name == case.name)) {
        let begun = Instant::now();
        let verdict = play(&scratch, case, scale.patience).await;
        let report = CaseReport { name: case.name, what: case.what, verdict, took: begun.elapsed() };
        told(&report);
        cases.push(report);
    }
    let capabilities = scratch.driver().capabilities();
    Ok(Report { storage: subject.backend.facts().name, capabilities, cases })
}

async fn play(scratch: &Scratch, case: &Case, patience: Duration) -> Verdict {
    let played = timeout(patience, (case.play)(scratch)).await;
    let played = played.unwrap_or_else(|_| Err(anyhow::anyhow!("not over after {} s", patience.as_secs())));
    let cleaned = timeout(patience, scratch.clean()).await;
    let cleaned = cleaned.unwrap_or_else(|_| Err(anyhow::anyhow!("not over after {} s", patience.as_secs())));
    match (played, cleaned.context("cleaning up")) {
        (Ok(verdict), Ok(())) => verdict,
        (Err(error), Ok(())) | (Ok(_), Err(error)) => Verdict::Failed(format!("{error:#}")),
        (Err(error), Err(after)) => Verdict::Failed(format!("{error:#}; and then {after:#}")),
    }
}
