//! When to let a machine go on that stopped because a disk failed.
//!
//! QEMU keeps the failed requests and repeats them at `cont`. While the disk's server is away, or QEMU has not found it
//! again (its attempts are up to 16 s apart), each `cont` ends in the next stop; so it is repeated, at a pace that loads
//! nobody, for ever: a guest that waits is safe. After [`ALARM_AFTER`] somebody should be told, once.
//!
//! A pure function of the times passed in; it owns no timer and sends nothing.

use std::time::{Duration, Instant};

/// Pause between two attempts.
pub const RETRY: Duration = Duration::from_secs(3);
/// A full disk stays full longer than a server stays away.
pub const RETRY_NO_SPACE: Duration = Duration::from_secs(10);
/// Running this long after a `cont` means that the fault is over.
pub const STABLE_AFTER: Duration = Duration::from_secs(30);
/// An outage this long is worth an alarm.
pub const ALARM_AFTER: Duration = Duration::from_secs(300);

/// What to do about a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Send `cont` at this time.
    pub cont_at: Instant,
    /// True once in an outage.
    pub alarm: bool,
}

/// The outage of one machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResumePolicy {
    outage: Option<Outage>,
}

#[derive(Debug, Clone, Copy)]
struct Outage {
    began: Instant,
    last_stop: Instant,
    alarmed: bool,
}

impl ResumePolicy {
    /// The machine stopped with an I/O error at `now`.
    pub fn stopped(&mut self, now: Instant, no_space: bool) -> Decision {
        let fresh = Outage { began: now, last_stop: now, alarmed: false };
        let known = self.outage.filter(|outage| now.duration_since(outage.last_stop) < STABLE_AFTER);
        let mut outage = known.unwrap_or(fresh);
        let alarm = !outage.alarmed && now.duration_since(outage.began) >= ALARM_AFTER;
        outage.alarmed |= alarm;
        outage.last_stop = now;
        self.outage = Some(outage);
        let pause = match (known, no_space) {
            (_, true) => RETRY_NO_SPACE,
            // The first attempt comes at once: most outages are over before the stop is noticed.
            (None, false) => Duration::ZERO,
            (Some(_), false) => RETRY,
        };
        Decision { cont_at: now + pause, alarm }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{ALARM_AFTER, RETRY, RETRY_NO_SPACE, ResumePolicy, STABLE_AFTER};

    #[test]
    fn the_first_attempt_is_at_once_and_the_next_at_a_pace() {
        let mut policy = ResumePolicy::default();
        let start = Instant::now();
        assert_eq!(policy.stopped(start, false).cont_at, start);
        let again = start + Duration::from_millis(50);
        assert_eq!(policy.stopped(again, false).cont_at, again + RETRY);
        let later = again + STABLE_AFTER;
        assert_eq!(policy.stopped(later, false).cont_at, later, "a new outage starts afresh");
    }

    #[test]
    fn a_full_store_is_not_hammered() {
        let start = Instant::now();
        assert_eq!(ResumePolicy::default().stopped(start, true).cont_at, start + RETRY_NO_SPACE);
    }

    #[test]
    fn an_outage_alarms_once() {
        let mut policy = ResumePolicy::default();
        let start = Instant::now();
        let mut alarms = Vec::new();
        for step in 0..200 {
            let now = start + RETRY * step;
            if policy.stopped(now, false).alarm {
                alarms.push(now.duration_since(start));
            }
        }
        assert_eq!(alarms.len(), 1);
        assert!(alarms[0] >= ALARM_AFTER && alarms[0] < ALARM_AFTER + RETRY);
    }
}
