//! Which snapshots may go. The rules are on the crate's page.

use std::collections::BTreeSet;
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// How many of what are kept; 0 for a rung that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ladder {
    /// The newest snapshots as such.
    pub last: u32,
    /// Periods of which the last snapshot is kept.
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

/// The most that a rung may keep: a bound for typing errors, not for stores.
pub const KEPT_MAX: u32 = 100_000;

/// The names of the rungs with the length of their periods.
const RUNGS: [(&str, Period); 5] = [
    ("hourly", Period::Hour),
    ("daily", Period::Day),
    ("weekly", Period::Week),
    ("monthly", Period::Month),
    ("yearly", Period::Year),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// What is equal for two instants of one period alone.
    fn of(self, at: &Zoned) -> [i32; 3] {
        let year = i32::from(at.year());
        let day = i32::from(at.day_of_year());
        match self {
            // The two hours of one name where clocks go back differ in their offset.
            Period::Hour => [year, day * 24 + i32::from(at.hour()), at.offset().seconds()],
            Period::Day => [year, day, 0],
            Period::Week => {
                let week = at.date().iso_week_date();
                [i32::from(week.year()), i32::from(week.week()), 0]
            }
            Period::Month => [year, i32::from(at.month()), 0],
            Period::Year => [year, 0, 0],
        }
    }
}

impl Ladder {
    /// The last `count` and nothing else.
    pub fn last(count: u32) -> Ladder {
        Ladder { last: count, ..Ladder::default() }
    }

    /// `last=7 daily=30 monthly=12`, separated by spaces or commas. The error is the word that is wrong.
    pub fn parse(text: &str) -> Result<Ladder, String> {
        let mut ladder = Ladder::default();
        let words = text.split([' ', ',']).filter(|word| !word.is_empty());
        for word in words {
            let rung = word.split_once('=').and_then(|(name, count)| Some((ladder.rung(name)?, kept(count)?)));
            match rung {
                Some((rung, count)) => *rung = count,
                None => return Err(word.to_owned()),
            }
        }
        if ladder == Ladder::default() { Err(text.to_owned()) } else { Ok(ladder) }
    }

    /// The rung of that name.
    pub fn rung(&mut self, name: &str) -> Option<&mut u32> {
        match name {
            "last" => Some(&mut self.last),
            "hourly" => Some(&mut self.hourly),
            "daily" => Some(&mut self.daily),
            "weekly" => Some(&mut self.weekly),
            "monthly" => Some(&mut self.monthly),
            "yearly" => Some(&mut self.yearly),
            _ => None,
        }
    }

    fn periods(&self) -> [(Period, u32); 5] {
        let counts = [self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        let mut periods = RUNGS.map(|(_, period)| (period, 0));
        for (slot, count) in periods.iter_mut().zip(counts) {
            slot.1 = count;
        }
        periods
    }

    /// The positions of those of `taken` that no rung keeps, oldest first. `taken` are the slots of one machine's
    /// snapshots, in any order; of two with the same slot the later one in the list is the newer.
    pub fn surplus(&self, zone: &TimeZone, taken: &[Timestamp]) -> Vec<usize> {
        let mut newest_first: Vec<usize> = (0..taken.len()).collect();
        newest_first.sort_by_key(|at| std::cmp::Reverse((taken[*at], *at)));
        let mut seen = self.periods().map(|(period, count)| (period, count, BTreeSet::new()));
        let mut surplus = Vec::new();
        for (age, at) in newest_first.into_iter().enumerate() {
            let local = taken[at].to_zoned(zone.clone());
            let mut kept = age == 0 || age < self.last as usize;
            for (period, count, periods) in &mut seen {
                kept |= periods.len() < *count as usize && periods.insert(period.of(&local));
            }
            if !kept {
                surplus.push(at);
            }
        }
        surplus.reverse();
        surplus
    }
}

/// A number of kept snapshots.
pub fn kept(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|count| *count <= KEPT_MAX)
}

impl fmt::Display for Ladder {
    /// As [`Ladder::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        let names = std::iter::once("last").chain(RUNGS.iter().map(|(name, _)| *name));
        let mut gap = "";
        for (name, count) in names.zip(counts).filter(|(_, count)| *count > 0) {
            write!(f, "{gap}{name}={count}")?;
            gap = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;
    use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

    use super::Ladder;
    use crate::calendar::zone;

    fn kept(ladder: &str, zone_name: &str, taken: &[&str]) -> Vec<String> {
        let taken: Vec<Timestamp> = taken.iter().map(|text| text.parse().unwrap()).collect();
        let surplus = Ladder::parse(ladder).unwrap().surplus(&zone(zone_name).unwrap(), &taken);
        let kept = taken.iter().enumerate().filter(|(at, _)| !surplus.contains(at));
        kept.map(|(_, taken)| taken.to_string()).collect()
    }

    #[test]
    fn the_last_of_each_period_stays() {
        let taken = ["2026-11-20T01:00:00Z", "2026-11-20T13:00:00Z", "2026-11-21T01:00:00Z", "2026-11-21T13:00:00Z"];
        assert_eq!(kept("daily=5", "UTC", &taken), [taken[1], taken[3]]);
        assert_eq!(kept("daily=1", "UTC", &taken), [taken[3]]);
        assert_eq!(kept("last=2", "UTC", &taken), [taken[2], taken[3]]);
        assert_eq!(kept("last=2 daily=2", "UTC", &taken), [taken[1], taken[2], taken[3]]);
        // The day is the local one: half past ten in the evening UTC is the next day in Tokyo.
        assert_eq!(kept("daily=5", "Asia/Tokyo", &["2026-11-20T14:00:00Z", "2026-11-20T22:30:00Z"]).len(), 2);
    }

    #[test]
    fn periods_follow_the_calendar() {
        // 2026-12-28 to 2027-01-03 is one week, of two years and two months.
        let taken = ["2026-12-27T01:00:00Z", "2026-12-30T01:00:00Z", "2027-01-02T01:00:00Z", "2027-01-04T01:00:00Z"];
        assert_eq!(kept("weekly=9", "UTC", &taken), [taken[0], taken[2], taken[3]]);
        assert_eq!(kept("monthly=9", "UTC", &taken), [taken[1], taken[3]]);
        assert_eq!(kept("yearly=9", "UTC", &taken), [taken[1], taken[3]]);
        // Both hours from two to three of the night in which clocks go back.
        let doubled = ["2026-10-25T00:15:00Z", "2026-10-25T01:15:00Z"];
        assert_eq!(kept("hourly=9", "Europe/Berlin", &doubled), doubled);
    }

    #[test]
    fn the_newest_stays_whatever_the_ladder_says() {
        let all: Vec<Timestamp> = (0..5).map(|day| Timestamp::from_second(day * 86_400).unwrap()).collect();
        assert_eq!(Ladder::default().surplus(&TimeZone::UTC, &all), [0, 1, 2, 3]);
        assert_eq!(Ladder::default().surplus(&TimeZone::UTC, &[]), [0; 0]);
    }

    #[test]
    fn ladders_are_read_and_written() {
        for text in ["last=7", "last=7 hourly=24 daily=30 weekly=8 monthly=12 yearly=3"] {
            assert_eq!(Ladder::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Ladder::parse("daily=3,last=1").unwrap().to_string(), "last=1 daily=3");
        for (text, word) in
            [("", ""), ("daily", "daily"), ("last=7 dayly=3", "dayly=3"), ("last=-1", "last=-1"), ("last=0", "last=0")]
        {
            assert_eq!(Ladder::parse(text).unwrap_err(), word, "{text}");
        }
    }

    fn ladders() -> impl Strategy<Value = Ladder> {
        let rung = || prop_oneof![Just(0u32), 1..6u32];
        (rung(), rung(), rung(), rung(), rung(), rung()).prop_map(|(last, hourly, daily, weekly, monthly, yearly)| {
            Ladder { last, hourly, daily, weekly, monthly, yearly }
        })
    }

    proptest! {
        #[test]
        fn asking_after_each_snapshot_leaves_what_asking_once_leaves(
            ladder in ladders(),
            steps in prop::collection::vec(1..4_000_000i64, 1..120),
            berlin in any::<bool>(),
        ) {
            let zone = if berlin { zone("Europe/Berlin").unwrap() } else { TimeZone::UTC };
            let (mut now, mut all, mut held) = (1_760_000_000, Vec::new(), Vec::new());
            for step in steps {
                now += step;
                let taken = Timestamp::from_second(now).unwrap();
                all.push(taken);
                held.push(taken);
                for at in ladder.surplus(&zone, &held).into_iter().rev() {
                    held.remove(at);
                }
            }
            let mut once = all.clone();
            for at in ladder.surplus(&zone, &all).into_iter().rev() {
                once.remove(at);
            }
            assert_eq!(held, once);
            assert_eq!(held.last(), all.last());
        }

        #[test]
        fn a_longer_ladder_never_keeps_less(ladder in ladders(), steps in prop::collection::vec(1..900_000i64, 1..80)) {
            let mut now = 1_760_000_000;
            let taken: Vec<Timestamp> = steps.iter().map(|step| { now += step; Timestamp::from_second(now).unwrap() }).collect();
            let surplus = ladder.surplus(&TimeZone::UTC, &taken);
            for rung in ["last", "hourly", "daily", "weekly", "monthly", "yearly"] {
                let mut longer = ladder;
                *longer.rung(rung).unwrap() += 1;
                let fewer = longer.surplus(&TimeZone::UTC, &taken);
                assert!(fewer.iter().all(|at| surplus.contains(at)), "{rung}: {fewer:?} of {surplus:?}");
            }
        }
    }
}
