//! Scrubs from the shell's side: what is kept from one process to the next, and when one is due.
//!
//! ```text
//!   start of the process: the last one was running --> it goes on from the mark that was saved
//!   while one runs: every ten seconds asked how it stands, saved
//!   "every so many days": due when the last one ended, or was first thought of, that long ago
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tanada_blockd_api::{Answer, ScrubReport, ScrubState};
use tanada_engine as engine;
use tanada_engine::{Control, Failure, Reply, Request, ScrubMark, ScrubStatus};
use tanada_units::BLOCK_BYTES;
use uuid::Uuid;

use super::commands::CommandPending;
use super::{Pending, Shell};
use crate::control::Ticket;
use crate::report::{self, Reporter, Saved, Waiting};
use crate::translate;

/// While a scrub runs, this much of it is done again after a crash at most, in microseconds of the shell's clock.
const SAVE_EVERY_US: u64 = 10_000_000;
/// How often it is looked whether one is due.
const DUE_EVERY_US: u64 = 60_000_000;

/// When scrubs begin by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// After the last one; `None` for never.
    pub(crate) every: Option<Duration>,
    /// Bytes per second.
    pub(crate) rate: u64,
}

/// The shell's book of scrubs.
pub(crate) struct Scrubs {
    store: Uuid,
    path: PathBuf,
    report: ScrubReport,
    schedule: Schedule,
    reporter: Reporter,
    /// When to look again, in microseconds of the shell's clock.
    look_at: Option<u64>,
}

impl Scrubs {
    /// An empty book, kept in `state_dir`.
    pub(crate) fn new(state_dir: &Path, schedule: Schedule) -> io::Result<Scrubs> {
        let path = report::path(state_dir);
        let reporter = Reporter::start(path.clone())?;
        Ok(Scrubs { store: Uuid::nil(), path, report: ScrubReport::default(), schedule, reporter, look_at: None })
    }

    /// Takes over what was saved of this store. A book that cannot be read must not keep the store closed.
    fn load(&mut self, store: Uuid) {
        self.store = store;
        match report::load(&self.path, store) {
            Ok(report) => self.report = report.unwrap_or_default(),
            Err(error) => tracing::error!("how the last scrub stood is lost: {error:#}"),
        }
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.look_at
    }

    fn save(&self, waiting: Option<Waiting>) {
        self.reporter.save(Saved { store: self.store, report: self.report.clone() }, waiting);
    }

    /// True where the schedule asks for a scrub now.
    fn is_due(&self, unix: u64) -> bool {
        let Some(every) = self.schedule.every else { return false };
        let since = self.report.ended_at.unwrap_or(unix);
        self.report.state != ScrubState::Running && unix >= since.saturating_add(every.as_secs())
    }

    /// Takes over what the engine says.
    fn update(&mut self, status: ScrubStatus, unix: u64) {
        let was_running = self.report.state == ScrubState::Running;
        let state = match status.state {
            // It knows of none since it was opened: what was saved stands.
            engine::ScrubState::Idle => return,
            engine::ScrubState::Running => ScrubState::Running,
            engine::ScrubState::Stopped => ScrubState::Stopped,
            engine::ScrubState::Finished => ScrubState::Finished,
        };
        let has_ended = was_running && state != ScrubState::Running;
        self.report = ScrubReport {
            state,
            rate: status.rate,
            bytes_done: status.bytes_done,
            bytes_total: status.bytes_total,
            bytes_per_second: status.bytes_per_second,
            seconds_left: status.seconds_left,
            started_at: self.report.started_at,
            ended_at: if has_ended { Some(unix) } else { self.report.ended_at },
            damaged: status.mark.damaged,
            damage: status.damage.into_iter().map(translate::damage).collect(),
            place: status.mark.place,
            finished_before: self.report.finished_before,
        };
    }

    /// What to start: the one that did not end, or a new one.
    fn begin(&mut self, rate: u64, anew: bool, unix: u64) -> Control {
        let goes_on = matches!(self.report.state, ScrubState::Running | ScrubState::Stopped) && !anew;
        if !goes_on {
            let last = self.report.ended_at.filter(|_| self.report.state == ScrubState::Finished);
            let finished_before = last.or(self.report.finished_before);
            self.report = ScrubReport { started_at: Some(unix), finished_before, ..ScrubReport::default() };
        }
        self.report.state = ScrubState::Running;
        self.report.rate = rate;
        self.report.ended_at = None;
        let from = ScrubMark {
            place: self.report.place,
            blocks: self.report.bytes_done / BLOCK_BYTES,
            damaged: self.report.damaged,
        };
        let damage = self.report.damage.iter().cloned().map(translate::known_damage).collect();
        Control::ScrubStart { rate, from, damage }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Shell {
    /// Takes up what the process before left unfinished.
    pub(super) fn resume_scrub(&mut self, store: Uuid) {
        self.scrubs.load(store);
        if self.scrubs.report.state == ScrubState::Running {
            let control = self.scrubs.begin(self.scrubs.report.rate, false, unix_seconds());
            self.ask(Pending::ScrubLook, Request::Control(control));
        } else if self.scrubs.schedule.every.is_some() && self.scrubs.report.ended_at.is_none() {
            // Never scrubbed: the time runs from now on.
            self.scrubs.report.ended_at = Some(unix_seconds());
            self.scrubs.save(None);
        }
        self.plan_scrub_look();
    }

    fn plan_scrub_look(&mut self) {
        self.scrubs.look_at = match self.scrubs.report.state {
            ScrubState::Running => Some(self.now + SAVE_EVERY_US),
            _ if self.scrubs.schedule.every.is_some() => Some(self.now + DUE_EVERY_US),
            _ => None,
        };
    }

    /// Looks how it stands, or whether one is due.
    pub(super) fn look_at_scrub(&mut self) {
        if self.scrubs.look_at.is_none_or(|at| at > self.now) {
            return;
        }
        let unix = unix_seconds();
        let control = if self.scrubs.is_due(unix) {
            tracing::info!("a scrub is due");
            self.scrubs.begin(self.scrubs.schedule.rate, false, unix)
        } else if self.scrubs.report.state == ScrubState::Running {
            Control::ScrubStatus
        } else {
            return self.plan_scrub_look();
        };
        self.ask(Pending::ScrubLook, Request::Control(control));
        self.plan_scrub_look();
    }

    pub(super) fn scrub_start(&mut self, ticket: Ticket, rate: u64, anew: bool) {
        let before = self.scrubs.report.clone();
        let control = if before.state == ScrubState::Running {
            // The engine says whether that is what runs.
            Control::ScrubStart { rate, from: ScrubMark::default(), damage: Vec::new() }
        } else {
            self.scrubs.begin(rate, anew, unix_seconds())
        };
        let pending = CommandPending::ScrubStart { ticket, before: Box::new(before) };
        self.ask(Pending::Command(pending), Request::Control(control));
    }

    /// The engine has taken, or refused, a start that a client asked for.
    pub(super) fn scrub_started(&mut self, ticket: Ticket, before: ScrubReport, result: Result<bool, Failure>) {
        match result {
            Ok(changed) => {
                self.scrubs.save(Some((ticket, Answer::Changed { changed })));
            }
            Err(failure) => {
                self.scrubs.report = before;
                ticket.answer(Err(translate::failure(failure)));
            }
        }
        self.plan_scrub_look();
    }

    /// A scrub was stopped, or none was running: how it stands is asked for, and told once it is saved.
    pub(super) fn scrub_stopped(&mut self, ticket: Ticket, changed: bool) {
        let pending = CommandPending::ScrubStopped { ticket, changed };
        self.ask(Pending::Command(pending), Request::Control(Control::ScrubStatus));
    }

    /// How it stands, for the file; who waits is answered when that is written.
    pub(super) fn scrub_seen(&mut self, status: ScrubStatus, waiting: Option<Waiting>) {
        self.scrubs.update(status, unix_seconds());
        self.scrubs.save(waiting);
        self.plan_scrub_look();
    }

    /// How it stands, for who asked.
    pub(super) fn scrub_asked(&mut self, status: ScrubStatus, ticket: Ticket) {
        self.scrubs.update(status, unix_seconds());
        ticket.answer(Ok(Answer::Scrub(Box::new(self.scrubs.report.clone()))));
    }

    /// The answer to a look of our own.
    pub(super) fn scrub_looked(&mut self, result: Result<Reply, Failure>) {
        match result {
            Ok(Reply::Scrub(status)) => self.scrub_seen(*status, None),
            Ok(_) => self.scrubs.save(None),
            Err(failure) => tracing::error!(%failure, "the scrub does not start"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Control, Schedule, ScrubMark, ScrubReport, ScrubState, ScrubStatus, Scrubs, engine};
    use std::time::Duration;

    fn scrubs(report: ScrubReport, every: Option<u64>) -> Scrubs {
        let schedule = Schedule { every: every.map(Duration::from_secs), rate: 4096 };
        let book = Scrubs::new(&std::env::temp_dir(), schedule).unwrap();
        Scrubs { report, ..book }
    }

    #[test]
    fn one_is_due_when_the_last_ended_long_ago() {
        let ended = ScrubReport { state: ScrubState::Finished, ended_at: Some(1000), ..ScrubReport::default() };
        assert!(scrubs(ended.clone(), Some(500)).is_due(1500));
        assert!(!scrubs(ended.clone(), Some(500)).is_due(1499));
        assert!(!scrubs(ended.clone(), None).is_due(1_000_000));
        let running = ScrubReport { state: ScrubState::Running, ..ended };
        assert!(!scrubs(running, Some(500)).is_due(1_000_000));
    }

    #[test]
    fn an_unfinished_one_goes_on_and_a_finished_one_is_followed_by_a_new_one() {
        let stopped =
            ScrubReport { state: ScrubState::Stopped, place: 9, bytes_done: 8192, damaged: 1, ..Default::default() };
        let Control::ScrubStart { from, .. } = scrubs(stopped.clone(), None).begin(4096, false, 50) else { panic!() };
        assert_eq!(from, ScrubMark { place: 9, blocks: 2, damaged: 1 });
        let Control::ScrubStart { from, .. } = scrubs(stopped, None).begin(4096, true, 50) else { panic!() };
        assert_eq!(from, ScrubMark::default());
        let finished =
            ScrubReport { state: ScrubState::Finished, place: 9, ended_at: Some(40), ..ScrubReport::default() };
        let mut scrubs = scrubs(finished, None);
        let Control::ScrubStart { from, .. } = scrubs.begin(4096, false, 50) else { panic!() };
        assert_eq!((from, scrubs.report.finished_before), (ScrubMark::default(), Some(40)));
        scrubs.update(ScrubStatus { state: engine::ScrubState::Finished, ..ScrubStatus::default() }, 60);
        assert_eq!((scrubs.report.started_at, scrubs.report.ended_at), (Some(50), Some(60)));
    }
}
