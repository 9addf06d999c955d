//! The slots of a schedule.

use jiff::civil::{Date, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frequency {
    Hourly,
    Daily,
    Weekly,
}

impl Frequency {
    /// The words of XenAPI.
    pub fn parse(text: &str) -> Option<Frequency> {
        match text {
            "hourly" => Some(Frequency::Hourly),
            "daily" => Some(Frequency::Daily),
            "weekly" => Some(Frequency::Weekly),
            _ => None,
        }
    }
}

/// Days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Days(u8);

/// As XenAPI writes them, from Monday.
pub const DAY_NAMES: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Days {
    pub const ALL: Days = Days(0x7f);

    /// A comma list of English names, in any case. `None` for another word, or for no day at all.
    pub fn parse(text: &str) -> Option<Days> {
        let mut days = Days::default();
        for word in text.split(',').map(str::trim) {
            let day = DAY_NAMES.iter().position(|name| name.eq_ignore_ascii_case(word))?;
            days.0 |= 1 << day;
        }
        Some(days)
    }

    fn contains(self, day: Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }
}

/// When a schedule runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Calendar {
    pub frequency: Frequency,
    /// 0 to 59.
    pub minute: i8,
    /// 0 to 23, of local time; without meaning for hourly schedules.
    pub hour: i8,
    /// Of meaning for weekly schedules alone.
    pub days: Days,
    pub zone: TimeZone,
}

/// Offsets from UTC are multiples of this wherever schedules run, so hourly slots lie on its multiples in UTC.
const QUARTER_SECONDS: i64 = 15 * 60;
/// Further than this from one hourly slot to the next is no zone: a gap of a whole day, and some.
const QUARTERS_MAX: i64 = 4 * 26;
/// Days looked at for the slot beside an instant: a week, and one that a zone may have left out.
const DAYS_MAX: i32 = 9;
/// Missed slots are counted up to here.
const COUNT_MAX: u64 = 10_000;

/// The zone of that name in the database that the program brings along; `None` for an unknown one.
pub fn zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

/// The zone of this host; UTC where it does not tell.
pub fn host_zone() -> TimeZone {
    TimeZone::try_system().unwrap_or(TimeZone::UTC)
}

impl Calendar {
    /// The first slot after `instant`; `None` at the end of time.
    pub fn next_after(&self, instant: Timestamp) -> Option<Timestamp> {
        if self.frequency == Frequency::Hourly {
            let first = instant.as_second().div_euclid(QUARTER_SECONDS) + 1;
            return (first..first + QUARTERS_MAX).find_map(|quarter| self.hourly_slot(quarter));
        }
        let today = instant.to_zoned(self.zone.clone()).date();
        (-1..=DAYS_MAX)
            .filter_map(|days| self.slot_of(today.checked_add(days.days()).ok()?))
            .find(|slot| *slot > instant)
    }

    /// The last slot not after `instant`.
    pub fn latest(&self, instant: Timestamp) -> Option<Timestamp> {
        if self.frequency == Frequency::Hourly {
            let last = instant.as_second().div_euclid(QUARTER_SECONDS);
            return (last - QUARTERS_MAX..=last).rev().find_map(|quarter| self.hourly_slot(quarter));
        }
        let today = instant.to_zoned(self.zone.clone()).date();
        let back = (-1..=DAYS_MAX).filter_map(|days| self.slot_of(today.checked_sub(days.days()).ok()?));
        back.into_iter().find(|slot| *slot <= instant)
    }

    /// Slots after `from` and not after `until`, counted up to some thousands.
    pub fn count(&self, from: Timestamp, until: Timestamp) -> u64 {
        let (mut at, mut count) = (from, 0);
        while count < COUNT_MAX {
            match self.next_after(at) {
                Some(slot) if slot <= until => (at, count) = (slot, count + 1),
                _ => break,
            }
        }
        count
    }

    fn hourly_slot(&self, quarter: i64) -> Option<Timestamp> {
        let instant = Timestamp::from_second(quarter.checked_mul(QUARTER_SECONDS)?).ok()?;
        let local = instant.to_zoned(self.zone.clone());
        (local.minute() == self.minute).then_some(instant)
    }

    /// The slot that belongs to a day, where it has one.
    fn slot_of(&self, day: Date) -> Option<Timestamp> {
        if self.frequency == Frequency::Weekly && !self.days.contains(day.weekday()) {
            return None;
        }
        let local = day.at(self.hour, self.minute, 0, 0);
        match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local).ok(),
            AmbiguousOffset::Gap { before, .. } => {
                // As if the clocks had not jumped: that lies after the jump, which is the last one before it.
                let beyond = before.to_timestamp(local).ok()?;
                let search = beyond.checked_add(SignedDuration::from_secs(1)).ok()?;
                self.zone.preceding(search).next().map(|jump| jump.timestamp())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Calendar, Days, Frequency, zone};

    fn calendar(frequency: Frequency, at: (i8, i8), days: &str, zone_name: &str) -> Calendar {
        let days = Days::parse(days).unwrap();
        Calendar { frequency, hour: at.0, minute: at.1, days, zone: zone(zone_name).unwrap() }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The slots after `from`, as the next one of each, each of them looked back at as well.
    fn check(calendar: &Calendar, from: &str, slots: &[&str]) {
        let mut instant = at(from);
        for slot in slots {
            let next = calendar.next_after(instant).unwrap();
            assert_eq!(next, at(slot), "after {instant}");
            let just_before = Timestamp::from_second(next.as_second() - 1).unwrap();
            assert_eq!(calendar.latest(next), Some(next));
            assert!(calendar.latest(just_before).unwrap() < next);
            assert_eq!(calendar.next_after(just_before), Some(next));
            instant = next;
        }
        let from = at(from);
        assert_eq!(calendar.count(from, instant), slots.len() as u64);
    }

    #[test]
    fn daily_runs_once_a_day_across_both_changes() {
        let nightly = calendar(Frequency::Daily, (2, 30), "Monday", "Europe/Berlin");
        // 2:30 does not exist on 2026-03-29: it runs when the clocks jump from 2 to 3, at 1:00 UTC.
        check(
            &nightly,
            "2026-03-27T12:00:00Z",
            &["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        );
        // 2:30 comes twice on 2026-10-25: the first time counts.
        check(
            &nightly,
            "2026-10-23T12:00:00Z",
            &["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        let midnight = calendar(Frequency::Daily, (0, 0), "Monday", "America/Santiago");
        // Chile skips midnight itself.
        check(&midnight, "2026-09-05T12:00:00Z", &["2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"]);
    }

    #[test]
    fn hourly_runs_in_every_hour_that_passes() {
        let hourly = calendar(Frequency::Hourly, (0, 15), "Monday", "Europe/Berlin");
        check(
            &hourly,
            "2026-03-29T00:00:00Z",
            &["2026-03-29T00:15:00Z", "2026-03-29T01:15:00Z", "2026-03-29T02:15:00Z"],
        );
        for (day, next, slots) in
            [("2026-03-29", "2026-03-30", 23), ("2026-10-25", "2026-10-26", 25), ("2026-07-01", "2026-07-02", 24)]
        {
            let midnight = |day: &str| {
                let day: jiff::civil::Date = day.parse().unwrap();
                day.to_zoned(hourly.zone.clone()).unwrap().timestamp()
            };
            assert_eq!(hourly.count(midnight(day), midnight(next)), slots, "{day}");
        }
        // A zone off by a quarter of an hour.
        let nepal = calendar(Frequency::Hourly, (0, 30), "Monday", "Asia/Kathmandu");
        check(&nepal, "2026-01-01T00:00:00Z", &["2026-01-01T00:45:00Z", "2026-01-01T01:45:00Z"]);
    }

    #[test]
    fn weekly_runs_on_its_days() {
        let weekly = calendar(Frequency::Weekly, (22, 0), "saturday,Wednesday", "UTC");
        check(
            &weekly,
            "2026-11-23T00:00:00Z",
            &["2026-11-25T22:00:00Z", "2026-11-28T22:00:00Z", "2026-12-02T22:00:00Z"],
        );
        let sunday = calendar(Frequency::Weekly, (2, 30), "Sunday", "Europe/Berlin");
        check(&sunday, "2026-03-23T00:00:00Z", &["2026-03-29T01:00:00Z", "2026-04-05T00:30:00Z"]);
    }

    #[test]
    fn a_day_that_a_zone_left_out_is_no_hole() {
        let apia = calendar(Frequency::Daily, (3, 0), "Monday", "Pacific/Apia");
        check(&apia, "2011-12-29T00:00:00Z", &["2011-12-29T13:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T13:00:00Z"]);
    }

    #[test]
    fn words() {
        assert_eq!(Days::parse("Monday,Sunday").map(|days| days.0), Some(0b100_0001));
        for wrong in ["", "Monday,", "Mon", "Monday Sunday"] {
            assert_eq!(Days::parse(wrong), None, "{wrong}");
        }
        assert!(zone("Europe/Berlin").is_some() && zone("Mars/Base").is_none());
        assert_eq!(Frequency::parse("yearly"), None);
    }
}
