//! A schedule as XenAPI's VMSS says it: fields in, a [`Policy`] out, and what is wrong with them.
//!
//! | key of `schedule` | values | for | default |
//! |---|---|---|---|
//! | min | 0, 15, 30, 45 | all | 0 |
//! | hour | 0 to 23 | daily, weekly | 0 |
//! | days | comma list of Monday to Sunday | weekly | Monday |
//! | timezone | a name of the IANA database | all | the host's zone |
//! | jitter | seconds over which machines are spread | all | two for each machine, 900 at most |
//! | keep-hourly, keep-daily, keep-weekly, keep-monthly, keep-yearly | 0 to 100000 | all | 0 |
//!
//! The first three are XenServer's, the others ours.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;

use crate::calendar::{Calendar, Days, Frequency, zone};
use crate::retention::{KEPT_MAX, Ladder, kept};
use crate::spread::window_limit_seconds;

/// What a schedule asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub calendar: Calendar,
    pub ladder: Ladder,
    /// Seconds over which its machines are spread, where it says so.
    pub jitter_seconds: Option<i64>,
}

/// A field or key that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} is not accepted; give {accepted}")]
pub struct Wrong {
    /// As XenAPI names it: `retained_snapshots`, `schedule:min`.
    pub field: String,
    pub value: String,
    pub accepted: &'static str,
}

const MINUTES: &str = "0, 15, 30 or 45";
const HOURS: &str = "an hour from 0 to 23";
const DAYS: &str = "a comma list of Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday";
const ZONE: &str = "a time zone of the IANA database, as Europe/Berlin";
const JITTER: &str = "a number of seconds, at most 2700 for hourly and 43200 for other schedules";
const KEEP: &str = "a number from 0 to 100000";
const RETAINED: &str = "a number from 1 to 100000";
const KEYS: &str =
    "min, hour, days, timezone, jitter, keep-hourly, keep-daily, keep-weekly, keep-monthly or keep-yearly";

/// Keys of our own, which stay when the frequency changes.
const KEEP_PREFIX: &str = "keep-";

impl Policy {
    /// `host_zone` is that of schedules which name none.
    pub fn new(
        frequency: Frequency,
        retained_snapshots: i64,
        schedule: &BTreeMap<String, String>,
        host_zone: &TimeZone,
    ) -> Result<Policy, Wrong> {
        let calendar = Calendar {
            frequency,
            minute: 0,
            hour: 0,
            days: Days::parse("Monday").unwrap_or_default(),
            zone: host_zone.clone(),
        };
        let ladder = Ladder::last(retained(retained_snapshots)?);
        let mut policy = Policy { calendar, ladder, jitter_seconds: None };
        schedule.iter().try_for_each(|(key, value)| policy.set(key, value))?;
        Ok(policy)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Wrong> {
        let wrong = |accepted| Wrong { field: format!("schedule:{key}"), value: value.to_owned(), accepted };
        let calendar = &mut self.calendar;
        match key {
            "min" => {
                calendar.minute = number(value).filter(|min| matches!(min, 0 | 15 | 30 | 45)).ok_or(wrong(MINUTES))?
            }
            "hour" => calendar.hour = number(value).filter(|hour| (0..24).contains(hour)).ok_or(wrong(HOURS))?,
            "days" => calendar.days = Days::parse(value).ok_or(wrong(DAYS))?,
            "timezone" => calendar.zone = zone(value).ok_or(wrong(ZONE))?,
            "jitter" => {
                let limit = window_limit_seconds(calendar.frequency);
                let seconds = value.parse().ok().filter(|seconds| (0..=limit).contains(seconds));
                self.jitter_seconds = Some(seconds.ok_or(wrong(JITTER))?);
            }
            _ => {
                let rung = key.strip_prefix(KEEP_PREFIX).filter(|rung| *rung != "last");
                let rung = rung.and_then(|rung| self.ladder.rung(rung)).ok_or(wrong(KEYS))?;
                *rung = kept(value).ok_or(wrong(KEEP))?;
            }
        }
        Ok(())
    }
}

fn number(text: &str) -> Option<i8> {
    text.trim().parse().ok()
}

fn retained(count: i64) -> Result<u32, Wrong> {
    let fits = u32::try_from(count).ok().filter(|count| (1..=KEPT_MAX).contains(count));
    fits.ok_or_else(|| Wrong { field: "retained_snapshots".to_owned(), value: count.to_string(), accepted: RETAINED })
}

/// A schedule's map with XenServer's keys that the frequency needs, and without those that it does not.
pub fn completed(frequency: Frequency, schedule: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut complete = schedule.clone();
    let defaults = [
        ("min", "0", true),
        ("hour", "0", frequency != Frequency::Hourly),
        ("days", "Monday", frequency == Frequency::Weekly),
    ];
    for (key, value, needed) in defaults {
        if needed {
            complete.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        } else {
            complete.remove(key);
        }
    }
    complete
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::tz::TimeZone;

    use super::{Policy, completed};
    use crate::calendar::Frequency;

    fn map(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn policy(frequency: Frequency, retained: i64, schedule: &str) -> Result<Policy, String> {
        Policy::new(frequency, retained, &map(schedule), &TimeZone::UTC).map_err(|wrong| wrong.field)
    }

    #[test]
    fn schedules_are_read() {
        let nightly =
            policy(Frequency::Daily, 7, "hour=2 min=30 timezone=Europe/Berlin keep-monthly=12 jitter=60").unwrap();
        assert_eq!((nightly.calendar.hour, nightly.calendar.minute), (2, 30));
        assert_eq!(nightly.calendar.zone.iana_name(), Some("Europe/Berlin"));
        assert_eq!(nightly.ladder.to_string(), "last=7 monthly=12");
        assert_eq!(nightly.jitter_seconds, Some(60));
        assert_eq!(policy(Frequency::Hourly, 365, "").unwrap().ladder.last, 365);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (7, "min=10", "schedule:min"),
            (7, "hour=24", "schedule:hour"),
            (7, "hour=-1", "schedule:hour"),
            (7, "days=Funday", "schedule:days"),
            (7, "timezone=Mars/Base", "schedule:timezone"),
            (7, "jitter=43201", "schedule:jitter"),
            (7, "keep-daily=many", "schedule:keep-daily"),
            (7, "keep-last=3", "schedule:keep-last"),
            (7, "minute=0", "schedule:minute"),
            (0, "", "retained_snapshots"),
            (100_001, "", "retained_snapshots"),
        ];
        for (retained, schedule, field) in cases {
            assert_eq!(policy(Frequency::Daily, retained, schedule).unwrap_err(), field, "{schedule}");
        }
        assert_eq!(policy(Frequency::Hourly, 7, "jitter=2701").unwrap_err(), "schedule:jitter");
    }

    #[test]
    fn a_frequency_has_its_keys() {
        let full = map("min=15 hour=3 days=Friday timezone=UTC keep-daily=3");
        assert_eq!(completed(Frequency::Weekly, &full), full);
        assert_eq!(completed(Frequency::Daily, &full), map("min=15 hour=3 timezone=UTC keep-daily=3"));
        assert_eq!(completed(Frequency::Hourly, &full), map("min=15 timezone=UTC keep-daily=3"));
        assert_eq!(completed(Frequency::Weekly, &map("")), map("min=0 hour=0 days=Monday"));
    }
}
