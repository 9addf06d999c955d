//! What a machine asks for itself, in its `other_config`, whatever its schedule says.
//!
//! | key | values |
//! |---|---|
//! | `tanada-schedule-skip` | `true`: no scheduled snapshots; a date as `2027-01-15`: none before that day |
//! | `tanada-schedule-type` | `snapshot`, `snapshot_with_quiesce`, `checkpoint` |
//! | `tanada-schedule-keep` | what is kept of it, as `last=3 daily=14 monthly=6` |
//!
//! A value that is not understood counts as missing and is logged: a snapshot too many harms less than one too few.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tanada_schedule::Ladder;

use crate::db::Record;

pub const SKIP: &str = "tanada-schedule-skip";
pub const TYPE: &str = "tanada-schedule-type";
pub const KEEP: &str = "tanada-schedule-keep";
/// On a snapshot: it is never removed by a schedule.
pub const KEEP_SNAPSHOT: &str = "tanada-keep";

/// The types of schedules.
pub const TYPES: [&str; 3] = ["snapshot", "snapshot_with_quiesce", "checkpoint"];

fn odd(vm: &Record, key: &str, value: &str) {
    tracing::warn!(vm = vm.uuid(), key, value, "an exception from the schedule is not understood and has no effect");
}

/// Is the machine left out now?
pub fn is_skipped(vm: &Record, now: Timestamp, zone: &TimeZone) -> bool {
    match vm.entry("other_config", SKIP) {
        None | Some("" | "false") => false,
        Some("true") => true,
        Some(value) => match value.parse::<Date>() {
            Ok(until) => now.to_zoned(zone.clone()).date() < until,
            Err(_) => {
                odd(vm, SKIP, value);
                false
            }
        },
    }
}

/// The type of its snapshots, where it has one of its own.
pub fn own_type(vm: &Record) -> Option<&str> {
    let own = vm.entry("other_config", TYPE)?;
    if !TYPES.contains(&own) {
        odd(vm, TYPE, own);
        return None;
    }
    Some(own)
}

/// What is kept of it, where it says so.
pub fn own_ladder(vm: &Record) -> Option<Ladder> {
    let text = vm.entry("other_config", KEEP)?;
    Ladder::parse(text).inspect_err(|_| odd(vm, KEEP, text)).ok()
}
