//! How long the storage takes for a cut, known before a guest is frozen for one.
//!
//! Each cut's time is kept; what is expected of the next is the slowest of the last [`KEPT`], for a storage that is slow
//! is slow for a while. Cuts that are made without a freeze count as well, so that a bad hour is forgotten. Before the first cut the storage is
//! asked a question that changes nothing, and its answer's time stands for each of the cut's steps.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Cuts remembered for each storage: with nightly snapshots, a week.
const KEPT: usize = 8;
/// A cut takes about so many round trips for each disk, where it takes any.
const STEPS_PER_DISK: u32 = 4;

/// The times of cuts, by the name of their storage.
#[derive(Default)]
pub struct Pace {
    times: Mutex<HashMap<String, VecDeque<Duration>>>,
}

impl Pace {
    pub fn record(&self, storage: &str, took: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = times.entry(storage.to_owned()).or_default();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(took);
    }

    /// `None` before the first cut.
    pub fn expected(&self, storage: &str) -> Option<Duration> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.get(storage)?.iter().max().copied()
    }
}

/// What to expect of a storage that answers a question within `answer`.
pub fn from_probe(answer: Duration, disks: usize) -> Duration {
    answer * STEPS_PER_DISK * u32::try_from(disks).unwrap_or(u32::MAX / STEPS_PER_DISK).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{KEPT, Pace, from_probe};

    #[test]
    fn the_slowest_of_the_last_cuts_is_expected() {
        let pace = Pace::default();
        assert_eq!(pace.expected("fast"), None);
        for ms in [3, 900, 4] {
            pace.record("fast", Duration::from_millis(ms));
        }
        pace.record("slow", Duration::from_secs(12));
        assert_eq!(pace.expected("fast"), Some(Duration::from_millis(900)));
        assert_eq!(pace.expected("slow"), Some(Duration::from_secs(12)));
        // A bad hour is forgotten.
        for _ in 0..KEPT {
            pace.record("fast", Duration::from_millis(5));
        }
        assert_eq!(pace.expected("fast"), Some(Duration::from_millis(5)));
    }

    #[test]
    fn a_storage_not_known_yet_is_judged_by_its_answers() {
        assert_eq!(from_probe(Duration::from_millis(100), 3), Duration::from_millis(1200));
        assert_eq!(from_probe(Duration::from_millis(100), 0), Duration::from_millis(400));
    }
}
