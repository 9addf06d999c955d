//! When snapshots are due and which of them may go. Pure: no I/O, no state, and the clock is passed in.
//!
//! # The rules
//!
//! **Slots.** A [`Calendar`] names the instants at which a schedule runs, its *slots*:
//!
//! | frequency | a slot is | where clocks go forward | where clocks go back |
//! |---|---|---|---|
//! | hourly | every instant whose local time shows the minute | the hour that is skipped has none: 23 that day | the doubled hour has two: 25 that day |
//! | daily, weekly | the hour and minute on each (named) day | a time that is skipped: the instant at which the clocks jump | a time that comes twice: the first |
//!
//! So an hourly schedule leaves no hour unprotected and a daily one runs once on every day, whatever clocks do.
//!
//! **Due.** A machine is due for the last slot that has passed and that it has not handled. Slots before that one which
//! were not handled either (the host was down, the machine busy) are *missed*: they are counted and told, never made up
//! for. What is due is decided for each machine alone ([`Member::verdict`]).
//!
//! **Spread.** A machine runs a little after its slot: a share of the schedule's window that follows from the names of both
//! ([`spread`]), the same each time. However many are due, so many run at once as the caller allows ([`pick`]), the
//! longest due first.
//!
//! **Busy.** A machine under another operation waits, without a failure. **Failure.** A failed run is repeated after
//! 1, 5 and 15 minutes, and given up after that or when the next slot comes ([`retry_after_seconds`]).
//!
//! **Retention.** A [`Ladder`] has rungs: the last snapshots as such, and for each of hour, day, week (from Monday), month
//! and year a number of periods of which the last snapshot is kept. Periods are of local time, and of the *slot*, not of
//! the moment at which the snapshot was at last taken. What any rung keeps stays; the newest stays always. Only periods
//! that have a snapshot count: while nothing is taken nothing goes. What is kept does not depend on how often this is
//! asked: going through it after every snapshot leaves what going through it once at the end leaves.
//!
//! **Space.** [`forecast`] tells from a history of observations when a store will have no more than its floor.
//!
//! Not here: what a snapshot is, who holds the records, and any waiting.

pub mod calendar;
pub mod forecast;
pub mod plan;
pub mod policy;
pub mod retention;
pub mod spread;

pub use calendar::{Calendar, Frequency};
pub use plan::{Attempt, Member, Verdict, pick, retry_after_seconds};
pub use policy::{Policy, Wrong};
pub use retention::Ladder;
