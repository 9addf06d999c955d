//! What to do with each machine now, and with how many of them at once.
//!
//! ```text
//!                         ┌──────────── busy ───────────┐
//!   sleeping ──slot──▶ due ──▶ running ──▶ done: the slot is handled ──▶ sleeping
//!                         ▲        └─▶ failed ──▶ retrying ─┐   └─ third failure: given up, handled
//!                         └──────────── time has come ──────┘
//! ```
//! A slot that comes while an older one is due, busy or retrying takes its place; the older one counts as missed.

use jiff::{SignedDuration, Timestamp};

use crate::calendar::Calendar;

/// A machine of a schedule, as it stands.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    pub calendar: &'a Calendar,
    /// Slots up to here are handled: done, given up, or before the machine was given the schedule.
    pub handled: Timestamp,
    /// Seconds after the slot at which this machine runs.
    pub offset_seconds: i64,
    /// The failed run that is to be repeated.
    pub attempt: Option<Attempt>,
    /// Under another operation, or already running.
    pub busy: bool,
}

/// A run that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub slot: Timestamp,
    pub failures: u32,
    pub again_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do before `until` (`None`: never).
    Sleep { until: Option<Timestamp> },
    /// Due since `since`, for this slot; so many before it were missed.
    Run { slot: Timestamp, since: Timestamp, missed: u64 },
    /// The same, but it has to wait for what goes on with the machine.
    Wait { slot: Timestamp },
}

/// Seconds to wait before what failed so often is tried again; `None`: it is given up.
pub const fn retry_after_seconds(failures: u32) -> Option<i64> {
    match failures {
        0 => Some(0),
        1 => Some(60),
        2 => Some(5 * 60),
        3 => Some(15 * 60),
        _ => None,
    }
}

impl Member<'_> {
    pub fn verdict(&self, now: Timestamp) -> Verdict {
        let offset = SignedDuration::from_secs(self.offset_seconds);
        let shown = now.checked_sub(offset).unwrap_or(Timestamp::MIN);
        let due = self.calendar.latest(shown).filter(|slot| *slot > self.handled);
        let Some(slot) = due else {
            // The next slot is found from the later of both: time may have been set back.
            let next = self.calendar.next_after(self.handled.max(shown));
            return Verdict::Sleep { until: next.and_then(|slot| slot.checked_add(offset).ok()) };
        };
        if self.busy {
            return Verdict::Wait { slot };
        }
        let mut since = slot.checked_add(offset).unwrap_or(slot);
        if let Some(attempt) = self.attempt.filter(|attempt| attempt.slot == slot) {
            if now < attempt.again_at {
                let next = self.calendar.next_after(slot).and_then(|next| next.checked_add(offset).ok());
                let until = next.map_or(attempt.again_at, |next| next.min(attempt.again_at));
                return Verdict::Sleep { until: Some(until) };
            }
            since = attempt.again_at;
        }
        let missed = self.calendar.count(self.handled, slot).saturating_sub(1);
        Verdict::Run { slot, since, missed }
    }
}

/// Which of those that are due begin, the longest due first, so that no more than `at_once` run; by their position.
pub fn pick(due: &[Timestamp], running: usize, at_once: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..due.len()).collect();
    order.sort_by_key(|at| (due[*at], *at));
    order.truncate(at_once.saturating_sub(running));
    order
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;
    use proptest::prelude::{any, prop, proptest};

    use super::{Attempt, Member, Verdict, pick, retry_after_seconds};
    use crate::calendar::{Calendar, Days, Frequency};

    const HOUR: i64 = 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn hourly() -> Calendar {
        Calendar { frequency: Frequency::Hourly, minute: 0, hour: 0, days: Days::ALL, zone: TimeZone::UTC }
    }

    fn member(calendar: &Calendar, handled: i64, offset_seconds: i64) -> Member<'_> {
        Member { calendar, handled: at(handled), offset_seconds, attempt: None, busy: false }
    }

    #[test]
    fn a_slot_is_due_from_its_offset_on() {
        let calendar = hourly();
        let one = member(&calendar, 0, 90);
        assert_eq!(one.verdict(at(HOUR + 89)), Verdict::Sleep { until: Some(at(HOUR + 90)) });
        assert_eq!(one.verdict(at(HOUR + 90)), Verdict::Run { slot: at(HOUR), since: at(HOUR + 90), missed: 0 });
        assert_eq!(
            member(&calendar, HOUR, 90).verdict(at(HOUR + 90)),
            Verdict::Sleep { until: Some(at(2 * HOUR + 90)) }
        );
    }

    #[test]
    fn after_downtime_it_runs_once_and_says_what_was_missed() {
        let calendar = hourly();
        let verdict = member(&calendar, 0, 0).verdict(at(10 * HOUR + 5));
        assert_eq!(verdict, Verdict::Run { slot: at(10 * HOUR), since: at(10 * HOUR), missed: 9 });
    }

    #[test]
    fn a_busy_machine_waits_and_the_next_slot_takes_over() {
        let calendar = hourly();
        let mut one = member(&calendar, 0, 0);
        one.busy = true;
        assert_eq!(one.verdict(at(HOUR)), Verdict::Wait { slot: at(HOUR) });
        assert_eq!(one.verdict(at(2 * HOUR)), Verdict::Wait { slot: at(2 * HOUR) });
        one.busy = false;
        assert_eq!(one.verdict(at(2 * HOUR)), Verdict::Run { slot: at(2 * HOUR), since: at(2 * HOUR), missed: 1 });
    }

    #[test]
    fn what_failed_is_tried_again_in_its_time() {
        let calendar = hourly();
        let mut one = member(&calendar, 0, 0);
        one.attempt = Some(Attempt { slot: at(HOUR), failures: 1, again_at: at(HOUR + 60) });
        assert_eq!(one.verdict(at(HOUR + 59)), Verdict::Sleep { until: Some(at(HOUR + 60)) });
        assert_eq!(one.verdict(at(HOUR + 60)), Verdict::Run { slot: at(HOUR), since: at(HOUR + 60), missed: 0 });
        // A failure of an older slot delays nothing.
        one.attempt = Some(Attempt { slot: at(HOUR), failures: 3, again_at: at(2 * HOUR + 300) });
        assert_eq!(one.verdict(at(HOUR + 300)), Verdict::Sleep { until: Some(at(2 * HOUR)) });
        assert_eq!(one.verdict(at(2 * HOUR)), Verdict::Run { slot: at(2 * HOUR), since: at(2 * HOUR), missed: 1 });
        assert_eq!(
            (retry_after_seconds(1), retry_after_seconds(3), retry_after_seconds(4)),
            (Some(60), Some(900), None)
        );
    }

    #[test]
    fn a_clock_that_is_set_back_repeats_nothing() {
        let calendar = hourly();
        assert_eq!(member(&calendar, 5 * HOUR, 0).verdict(at(3 * HOUR)), Verdict::Sleep { until: Some(at(6 * HOUR)) });
    }

    #[test]
    fn the_longest_due_begin_first_and_never_too_many() {
        let due = [at(5), at(1), at(3), at(1)];
        assert_eq!(pick(&due, 0, 3), [1, 3, 2]);
        assert_eq!(pick(&due, 2, 3), [1]);
        assert_eq!(pick(&due, 4, 3), [0; 0]);
    }

    proptest! {
        /// Whatever the gaps between looks are: each look that finds something handles all that passed, once.
        #[test]
        fn every_slot_is_run_or_missed_exactly_once(
            looks in prop::collection::vec((1..20_000i64, any::<bool>()), 1..60),
            offset in 0..2_000i64,
        ) {
            let calendar = hourly();
            let mut one = member(&calendar, 0, offset);
            let (mut now, mut run, mut missed_all) = (0, 0, 0);
            for (step, busy) in looks {
                now += step;
                one.busy = busy;
                if let Verdict::Run { slot, missed, .. } = one.verdict(at(now)) {
                    assert!(!busy && slot > one.handled);
                    one.handled = slot;
                    (run, missed_all) = (run + 1, missed_all + missed);
                }
            }
            assert_eq!(run + missed_all, calendar.count(at(0), one.handled));
        }
    }
}
