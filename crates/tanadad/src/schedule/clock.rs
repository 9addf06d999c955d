//! The time that schedules go by: the system's, or one that stands still until it is moved.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// The note in which a steered clock's time outlives the daemon.
pub const NOTE: &str = "clock";

/// A source of time, in whole seconds.
#[derive(Debug)]
pub struct Clock {
    /// Seconds since 1970 UTC; `None` for the system's time.
    steered: Option<AtomicI64>,
}

impl Clock {
    /// A steered clock goes on where the last one stood, else it stands at the time of its making.
    pub fn new(steered: bool, kept: Option<String>) -> Clock {
        let kept = kept.and_then(|text| text.parse().ok());
        let begin = || kept.unwrap_or_else(|| Timestamp::now().as_second());
        Clock { steered: steered.then(|| AtomicI64::new(begin())) }
    }

    pub fn now(&self) -> Timestamp {
        let seconds = match &self.steered {
            Some(seconds) => seconds.load(Ordering::Relaxed),
            None => Timestamp::now().as_second(),
        };
        Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    pub fn is_steered(&self) -> bool {
        self.steered.is_some()
    }

    /// Moves a steered clock; the system's goes by itself.
    pub fn set(&self, to: Timestamp) {
        if let Some(seconds) = &self.steered {
            seconds.store(to.as_second(), Ordering::Relaxed);
        }
    }
}
