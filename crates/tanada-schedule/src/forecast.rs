//! When a store will be full, from how it has grown.
//!
//! The growth is the median of the slopes between all pairs of observations (Theil and Sen): one import or one great
//! deletion does not turn it round. Nothing is foretold from less than [`SPAN_DAYS_MIN`] days.

/// What was in use at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Seconds since 1970 UTC.
    pub at: i64,
    /// Bytes.
    pub used: u64,
}

const DAY_SECONDS: f64 = 86_400.0;
/// Days that observations must span before they say anything.
pub const SPAN_DAYS_MIN: f64 = 2.0;
/// Observations that are kept: one for each of so many days.
pub const OBSERVATIONS_MAX: usize = 30;

/// Bytes that are added on a day; negative for a store that empties. `None`: too little is known.
pub fn growth_per_day(history: &[Observation]) -> Option<f64> {
    let (first, last) = (history.first()?, history.last()?);
    if (last.at - first.at) as f64 / DAY_SECONDS < SPAN_DAYS_MIN {
        return None;
    }
    let mut slopes = Vec::new();
    for (at, from) in history.iter().enumerate() {
        for to in history.get(at + 1..).unwrap_or_default().iter().filter(|to| to.at > from.at) {
            slopes.push((to.used as f64 - from.used as f64) * DAY_SECONDS / (to.at - from.at) as f64);
        }
    }
    slopes.sort_by(f64::total_cmp);
    let middle = slopes.len() / 2;
    match slopes.len() % 2 {
        _ if slopes.is_empty() => None,
        0 => Some((slopes[middle - 1] + slopes[middle]) / 2.0),
        _ => Some(slopes[middle]),
    }
}

/// Days until only `floor` bytes are free; 0.0 when that is so already, `None` when it is not to be seen.
pub fn days_left(free: u64, floor: u64, growth_per_day: Option<f64>) -> Option<f64> {
    if free <= floor {
        return Some(0.0);
    }
    let growth = growth_per_day.filter(|growth| *growth >= 1.0)?;
    Some((free - floor) as f64 / growth)
}

/// Adds what is seen now: an observation of the same day (of UTC) is replaced, the oldest go when there are too many.
pub fn observe(history: &mut Vec<Observation>, now: Observation) {
    let day = |one: &Observation| one.at.div_euclid(86_400);
    // A clock that was set back must not leave observations of the future.
    history.retain(|one| day(one) < day(&now));
    history.push(now);
    let surplus = history.len().saturating_sub(OBSERVATIONS_MAX);
    history.drain(..surplus);
}

/// How urgent the space of a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    #[default]
    Fine,
    /// It will be down to its floor within [`SOON_DAYS`], or is filled to [`HIGH_PERCENT`].
    Soon,
    /// It will be within [`VERY_SOON_DAYS`], or is filled to [`VERY_HIGH_PERCENT`].
    VerySoon,
    /// No more than the floor is free: no new generations.
    Refusing,
}

pub const SOON_DAYS: f64 = 14.0;
pub const VERY_SOON_DAYS: f64 = 3.0;
/// Per cent of the space above the floor.
pub const HIGH_PERCENT: f64 = 85.0;
pub const VERY_HIGH_PERCENT: f64 = 95.0;

/// The level of a store with `physical` bytes. A level that was told before is left only when there is clearly more room
/// than where it begins, so that a store on the edge does not tell it every day.
pub fn level(physical: u64, free: u64, floor: u64, growth_per_day: Option<f64>, before: Level) -> Level {
    let exact = |slack: f64| {
        let usable = physical.saturating_sub(floor).max(1) as f64;
        let filled = 100.0 - free.saturating_sub(floor) as f64 * 100.0 / usable + slack;
        let days = days_left(free, floor, growth_per_day).map_or(f64::INFINITY, |days| days * (1.0 - slack / 10.0));
        if free <= floor + (slack / 100.0 * usable) as u64 {
            Level::Refusing
        } else if filled >= VERY_HIGH_PERCENT || days <= VERY_SOON_DAYS {
            Level::VerySoon
        } else if filled >= HIGH_PERCENT || days <= SOON_DAYS {
            Level::Soon
        } else {
            Level::Fine
        }
    };
    exact(0.0).max(before.min(exact(2.0)))
}

#[cfg(test)]
mod tests {
    use super::{Level, OBSERVATIONS_MAX, Observation, days_left, growth_per_day, level, observe};

    const DAY: i64 = 86_400;

    fn history(used: &[u64]) -> Vec<Observation> {
        used.iter().enumerate().map(|(day, used)| Observation { at: day as i64 * DAY, used: *used }).collect()
    }

    #[test]
    fn growth_is_that_of_ordinary_days() {
        assert_eq!(growth_per_day(&history(&[10, 20, 30, 40])), Some(10.0));
        // One import of a thousand in the middle.
        let steady = growth_per_day(&history(&[0, 10, 20, 1030, 1040, 1050, 1060, 1070, 1080, 1090])).unwrap();
        assert!((9.0..60.0).contains(&steady), "{steady}");
        assert_eq!(growth_per_day(&history(&[10, 20])), None);
        assert_eq!(growth_per_day(&[]), None);
        assert_eq!(growth_per_day(&history(&[40, 30, 20])), Some(-10.0));
    }

    #[test]
    fn days_are_counted_down_to_the_floor() {
        assert_eq!(days_left(1000, 500, Some(100.0)), Some(5.0));
        assert_eq!(days_left(500, 500, None), Some(0.0));
        assert_eq!(days_left(1000, 500, Some(-3.0)), None);
        assert_eq!(days_left(1000, 500, None), None);
    }

    #[test]
    fn one_observation_a_day_and_not_too_many() {
        let mut seen = Vec::new();
        for hour in 0..24 * 60 {
            observe(&mut seen, Observation { at: hour * 3600, used: hour as u64 });
        }
        assert_eq!(seen.len(), OBSERVATIONS_MAX);
        assert_eq!(seen.last().map(|one| one.used), Some(24 * 60 - 1));
        assert_eq!(growth_per_day(&seen), Some(24.0));
        observe(&mut seen, Observation { at: 40 * DAY, used: 1 });
        assert!(seen.iter().all(|one| one.at <= 40 * DAY));
    }

    #[test]
    fn levels_come_once_and_go_only_for_good() {
        let (physical, floor) = (1000, 50);
        let at = |free, before| level(physical, free, floor, None, before);
        assert_eq!(at(900, Level::Fine), Level::Fine);
        assert_eq!(at(190, Level::Fine), Level::Soon);
        assert_eq!(at(200, Level::Soon), Level::Soon);
        assert_eq!(at(200, Level::Fine), Level::Fine);
        assert_eq!(at(250, Level::Soon), Level::Fine);
        assert_eq!(at(90, Level::Soon), Level::VerySoon);
        assert_eq!(at(50, Level::VerySoon), Level::Refusing);
        assert_eq!(at(60, Level::Refusing), Level::Refusing);
        assert_eq!(at(600, Level::Refusing), Level::Fine);
        // Half empty, but growing fast.
        assert_eq!(level(physical, 550, floor, Some(100.0), Level::Fine), Level::Soon);
        assert_eq!(level(physical, 550, floor, Some(250.0), Level::Fine), Level::VerySoon);
    }
}
