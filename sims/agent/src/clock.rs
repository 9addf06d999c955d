//! The guest's clock: real time, scaled, plus what was added by hand.

use std::time::{Duration, Instant};

/// Never waits longer than this for a clock that somebody may move.
const STEP: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    rate: f64,
    added_ms: u64,
}

impl Clock {
    /// `rate`: guest seconds in a real second; anything that is no positive number stands still.
    pub fn new(rate: f64) -> Clock {
        let rate = if rate.is_finite() && rate > 0.0 { rate } else { 0.0 };
        Clock { started: Instant::now(), rate, added_ms: 0 }
    }

    /// Milliseconds since the guest started.
    pub fn now_ms(&self) -> u64 {
        // Truncation is meant: milliseconds are the unit, and a guest does not live for half a billion years.
        let passed = self.started.elapsed().as_secs_f64() * 1000.0 * self.rate;
        (passed as u64).saturating_add(self.added_ms)
    }

    pub fn advance(&mut self, by: Duration) {
        self.added_ms = self.added_ms.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
    }

    /// How long to sleep before looking again whether `until_ms` has come.
    pub fn pause_until(&self, until_ms: u64) -> Duration {
        if self.rate == 0.0 {
            return STEP;
        }
        let left_s = until_ms.saturating_sub(self.now_ms()) as f64 / 1000.0 / self.rate;
        Duration::try_from_secs_f64(left_s).unwrap_or(STEP).clamp(Duration::from_micros(50), STEP)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Clock;

    #[test]
    fn a_clock_without_a_rate_moves_by_hand_alone() {
        let mut clock = Clock::new(0.0);
        assert_eq!(clock.now_ms(), 0);
        clock.advance(Duration::from_secs(10));
        assert_eq!(clock.now_ms(), 10_000);
        assert_eq!(Clock::new(f64::NAN).now_ms(), 0);
    }
}
