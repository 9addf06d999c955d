//! What a group snapshot cost those who were writing: the writes that overlapped it are watched until they end.

use tanada_blockd_api::{Answer, CutReport};
use tanada_engine::ExportId;

use crate::control::Ticket;

/// Writes that began before the end of the cut are waited for at most this long before the answer goes out, in
/// microseconds. Only a stalled device or a full store takes longer; their age is counted then.
pub(crate) const WAIT_US_MAX: u64 = 100_000;

/// One snapshot command under way.
pub(crate) struct CutWatch {
    /// The exports open on the group's volumes.
    exports: Vec<ExportId>,
    started: u64,
    ended: Option<Ended>,
    slowest_write_us: u64,
    writes_observed: u64,
}

struct Ended {
    at: u64,
    changed: bool,
    ticket: Ticket,
    /// Start of each write that overlapped the cut and has not ended.
    under_way: Vec<u64>,
}

impl CutWatch {
    pub(crate) fn exports(&self) -> &[ExportId] {
        &self.exports
    }

    pub(crate) fn start(now: u64, exports: Vec<ExportId>) -> CutWatch {
        CutWatch { exports, started: now, ended: None, slowest_write_us: 0, writes_observed: 0 }
    }

    /// A write on `export` that began at `started` has ended. True where the answer is due.
    pub(crate) fn write_ended(&mut self, export: ExportId, started: u64, now: u64) -> bool {
        if !self.exports.contains(&export) {
            return false;
        }
        if let Some(ended) = &mut self.ended {
            let Some(at) = ended.under_way.iter().position(|begun| *begun == started) else { return false };
            ended.under_way.swap_remove(at);
        }
        self.slowest_write_us = self.slowest_write_us.max(now.saturating_sub(started));
        self.writes_observed += 1;
        self.ended.as_ref().is_some_and(|ended| ended.under_way.is_empty())
    }

    /// The snapshot is durable; `under_way` are the starts of the writes on the group that have not ended.
    /// True where the answer is due.
    pub(crate) fn cut_ended(&mut self, now: u64, changed: bool, ticket: Ticket, under_way: Vec<u64>) -> bool {
        let is_due = under_way.is_empty();
        self.ended = Some(Ended { at: now, changed, ticket, under_way });
        is_due
    }

    /// When to answer at the latest, in microseconds of the shell's clock.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.ended.as_ref().map(|ended| ended.at + WAIT_US_MAX)
    }

    pub(crate) fn answer(mut self, now: u64) {
        let Some(ended) = self.ended.take() else { return };
        for started in &ended.under_way {
            self.slowest_write_us = self.slowest_write_us.max(now.saturating_sub(*started));
            self.writes_observed += 1;
        }
        ended.ticket.answer(Ok(Answer::Cut(CutReport {
            changed: ended.changed,
            total_us: ended.at.saturating_sub(self.started),
            slowest_write_us: self.slowest_write_us,
            writes_observed: self.writes_observed,
        })));
    }
}
