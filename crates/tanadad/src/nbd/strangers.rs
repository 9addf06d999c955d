//! Clients that have not shown yet that they may come in.
//!
//! Anybody can connect, and need not hurry. So strangers have places of their own, which clients inside an export do not
//! share, and little time. When their places are full, whoever waits longest makes room: a client that knows what it wants is
//! through in a fraction of a second, and one that only holds a place is the first to lose it.
//!
//! ```text
//!   connected ──▶ stranger ──(a session that may, by the name of an export)──▶ client ──▶ inside
//!                    └── out of time, or the longest there when the next one comes: closed
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// Strangers at a time.
pub const STRANGERS_MAX: usize = 64;
/// From the connection to the name of an export that may be opened. What follows (attaching the disk) may take longer.
pub const PROOF_LIMIT: Duration = Duration::from_secs(30);

/// All connections: strangers by the order in which they came, and the places of clients.
pub struct Door {
    waiting: Mutex<Waiting>,
    places: Arc<Semaphore>,
    proof_limit: Duration,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    by_number: BTreeMap<u64, Arc<Notify>>,
}

/// One connection, until it ends.
pub struct Stranger {
    door: Arc<Door>,
    number: u64,
    sent_away: Arc<Notify>,
    until: Instant,
    place: OnceLock<OwnedSemaphorePermit>,
}

impl Door {
    /// With places for so many clients, each of whom has so long to show a session.
    pub fn new(clients_max: usize, proof_limit: Duration) -> Arc<Door> {
        Arc::new(Door { waiting: Mutex::default(), places: Arc::new(Semaphore::new(clients_max)), proof_limit })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Waiting) -> T) -> T {
        f(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new connection. Where there are too many the oldest is sent away.
    pub fn come(self: &Arc<Door>) -> Stranger {
        let sent_away = Arc::new(Notify::new());
        let number = self.with(|waiting| {
            if waiting.by_number.len() >= STRANGERS_MAX
                && let Some((_, oldest)) = waiting.by_number.pop_first()
            {
                oldest.notify_one();
            }
            waiting.next += 1;
            waiting.by_number.insert(waiting.next, sent_away.clone());
            waiting.next
        });
        let until = Instant::now() + self.proof_limit;
        Stranger { door: self.clone(), number, sent_away, until, place: OnceLock::new() }
    }
}

impl Stranger {
    /// Its session may do what it asks for: from here on it has a client's place. False where there is none.
    pub fn is_known(&self) -> bool {
        if self.place.get().is_some() {
            return true;
        }
        let Ok(place) = self.door.places.clone().try_acquire_owned() else { return false };
        // Only the connection's own task comes here, so there is none yet.
        let _ = self.place.set(place);
        self.door.with(|waiting| waiting.by_number.remove(&self.number));
        true
    }

    /// Returns, with the reason, when the connection is to be closed; never once it is known.
    pub async fn sent_away(&self) -> &'static str {
        let why = tokio::select! {
            () = self.sent_away.notified() => "others came while it had not shown a session",
            () = sleep_until(self.until) => "it did not show a session in time",
        };
        match self.place.get() {
            None => why,
            Some(_) => std::future::pending().await,
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.door.with(|waiting| waiting.by_number.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::{Door, PROOF_LIMIT, STRANGERS_MAX};

    #[tokio::test]
    async fn who_waits_longest_makes_room_and_who_is_known_stays() {
        let door = Door::new(1, PROOF_LIMIT);
        let known = door.come();
        assert!(known.is_known() && known.is_known());
        let strangers: Vec<_> = (0..STRANGERS_MAX).map(|_| door.come()).collect();
        assert!(strangers[0].sent_away().now_or_never().is_none(), "there is room");
        let late = door.come();
        assert!(strangers[0].sent_away().await.contains("others came"));
        assert!(strangers[1].sent_away().now_or_never().is_none());
        assert!(!late.is_known(), "the one place is taken");
        drop(known);
        assert!(late.is_known());
        drop(strangers);
        assert_eq!(door.with(|waiting| waiting.by_number.len()), 0);
    }

    #[tokio::test]
    async fn time_is_short_for_strangers_alone() {
        let door = Door::new(1, Duration::ZERO);
        let (known, stranger) = (door.come(), door.come());
        assert!(known.is_known());
        assert!(stranger.sent_away().await.contains("in time"));
        assert!(known.sent_away().now_or_never().is_none());
    }
}
