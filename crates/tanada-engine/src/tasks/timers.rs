//! Moments that tasks wait for. The engine reads no clock: a moment has come when a turn is told so.

use std::collections::BTreeMap;
use std::task::{Poll, Waker};

use crate::state::{Handle, Phase, State};

/// Tasks that wait, by moment in microseconds of the shell's clock.
type Waiting = BTreeMap<u64, Vec<Waker>>;

#[derive(Default)]
pub struct Timers {
    moments: Waiting,
    /// These end early where nobody may rest.
    pauses: Waiting,
}

fn due(waiting: &mut Waiting, now: u64) -> Waiting {
    let later = waiting.split_off(&(now + 1));
    std::mem::replace(waiting, later)
}

impl State {
    /// A checkpoint does not rest: somebody waits for it, or it is over.
    fn may_not_rest(&self) -> bool {
        self.checkpoint.urgent || self.phase != Phase::Serving
    }

    /// Wakes the tasks whose moment has come.
    pub fn ring_timers(&mut self) {
        let until = if self.may_not_rest() { u64::MAX - 1 } else { self.now };
        let pauses = due(&mut self.timers.pauses, until);
        let moments = due(&mut self.timers.moments, self.now);
        pauses.into_values().chain(moments.into_values()).flatten().for_each(Waker::wake);
    }

    /// When the next task is to be woken.
    pub fn next_timer(&self) -> Option<u64> {
        let pause =
            self.timers.pauses.first_key_value().map(|(at, _)| if self.may_not_rest() { self.now } else { *at });
        let moment = self.timers.moments.first_key_value().map(|(at, _)| *at);
        pause.into_iter().chain(moment).min()
    }
}

impl Handle {
    /// Waits until the clock shows `at`.
    pub async fn wait_until(&self, at: u64) {
        std::future::poll_fn(|context| {
            self.with(|state| {
                if state.now >= at {
                    return Poll::Ready(());
                }
                state.timers.moments.entry(at).or_default().push(context.waker().clone());
                Poll::Pending
            })
        })
        .await;
    }

    /// Sleeps until the clock shows `at`, or somebody waits for the checkpoint.
    pub async fn sleep_until(&self, at: u64) {
        std::future::poll_fn(|context| {
            self.with(|state| {
                if state.now >= at || state.may_not_rest() {
                    return Poll::Ready(());
                }
                state.timers.pauses.entry(at).or_default().push(context.waker().clone());
                Poll::Pending
            })
        })
        .await;
    }
}
