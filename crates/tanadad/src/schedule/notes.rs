//! What schedules remember: one note for each schedule and one for each machine that has one.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::db::{Tx, View};

/// Before the uuid of a schedule, and of a machine.
pub const SCHEDULE: &str = "schedule/";
pub const MACHINE: &str = "schedule-vm/";

/// Times are seconds since 1970 UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleNote {
    /// Slots before this are none of its business: it was made, enabled or changed then.
    pub since: i64,
    /// The slot that is being handled, and how it went so far.
    pub slot: i64,
    pub taken: u64,
    pub failed: u64,
    /// The slot before which missed ones were told of.
    pub missed_told: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineNote {
    /// The uuid of the schedule that this is about.
    pub schedule: String,
    /// Slots up to here are handled.
    pub handled: i64,
    /// The failed run that is to be repeated.
    pub attempt: Option<AttemptNote>,
    /// The snapshot that is being taken.
    pub taking: Option<Taking>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptNote {
    pub slot: i64,
    pub failures: u32,
    pub again_at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taking {
    pub slot: i64,
    pub name: String,
}

fn read<T: DeserializeOwned>(view: &impl View, name: &str) -> Option<T> {
    let text = view.note(name)?;
    serde_json::from_str(&text).inspect_err(|error| tracing::warn!(name, %error, "a note was not understood")).ok()
}

fn write(tx: &mut Tx<'_>, name: &str, note: &impl Serialize) {
    match serde_json::to_string(note) {
        Ok(text) => tx.put_note(name, text),
        Err(error) => tracing::error!(name, %error, "a note could not be written"),
    }
}

pub fn of_schedule(view: &impl View, uuid: &str) -> ScheduleNote {
    read(view, &format!("{SCHEDULE}{uuid}")).unwrap_or_default()
}

pub fn put_schedule(tx: &mut Tx<'_>, uuid: &str, note: &ScheduleNote) {
    write(tx, &format!("{SCHEDULE}{uuid}"), note);
}

pub fn of_machine(view: &impl View, uuid: &str) -> Option<MachineNote> {
    read(view, &format!("{MACHINE}{uuid}"))
}

pub fn put_machine(tx: &mut Tx<'_>, uuid: &str, note: &MachineNote) {
    write(tx, &format!("{MACHINE}{uuid}"), note);
}

/// From seconds since 1970 UTC.
pub fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
