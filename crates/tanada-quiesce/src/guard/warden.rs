//! The daemon's part of a freeze, as a task of its own: whoever asked may go, the guest is thawed and the debt paid.
//!
//! ```text
//!  freezing ── frozen ──▶ holding ── asked, or nobody is left who could ──▶ thawing ── the guest says so ──▶ paid
//!     │                    │   │                                              │  │                           ▲
//!     │                    │   └── the guard says: thawed at the deadline ────┼──┼── (confirmed) ────────────┤
//!     │                    │ dead, or hangs: ended for certain                │  │ not confirmed             │
//!     │                    ▼                                                  │  ▼                           │
//!     │                  alone: the window is kept from here ─────────────────┤ the guard asks on ───────────┤
//!     │                                                        dead, or hangs │  │ dead, or hangs            │
//!     │ not frozen: the guard asks on                                         ▼  ▼                           │
//!     └─────────────────────────────────────────────────────────▶ thawed, and asked on, from here ───────────┘
//! ```
//! The agent's port comes back with the task's end, when no guard is left who could use it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tanada_qemu::agent::GuestAgent;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::client::{Ended, Guard, Ledger, Limits, NotFrozen};
use super::thawing::{self, FLAG_LIMIT};
use super::{Answer, Ask, Said, Thawed, Why};

/// On top of every limit that a guard keeps itself: a guard that is alive and over it is not to be waited for.
const GRACE: Duration = Duration::from_secs(10);

/// A guest that answered its freeze. Dropping it thaws.
#[must_use = "a frozen guest is to be thawed"]
pub struct Frozen {
    pub count: u64,
    pub asked: Duration,
    /// Dropped or used: the guest is to be thawed.
    wish: oneshot::Sender<()>,
    ended: oneshot::Receiver<Ended>,
}

impl Frozen {
    /// Thaws and tells what was seen. Where the guest does not confirm it is asked on in the background.
    pub async fn thaw(self) -> Ended {
        // A task that has thawed already does not listen.
        let _ = self.wish.send(());
        self.ended.await.unwrap_or_else(|_| {
            let answer = Answer::Unanswered("the daemon is ending".into());
            let (why, after_us, lasted_us) = (Why::Abandoned, 0, 0);
            let thawed = Thawed { why, after_us, lasted_us, flag: None, answer, confirmed: false };
            Ended { thawed, guard_failed: Some("the daemon is ending".into()) }
        })
    }
}

pub(super) async fn freeze(guard: Guard, ledger: Arc<dyn Ledger>) -> Result<Frozen, NotFrozen> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(watch(guard, ledger, tell));
    told.await.unwrap_or_else(|_| Err(NotFrozen::Guard("the daemon is ending".into())))
}

/// The whole of it. Whoever does not listen any more is no reason to stop, so nobody looks whether words arrive.
async fn watch(mut guard: Guard, ledger: Arc<dyn Ledger>, tell: oneshot::Sender<Result<Frozen, NotFrozen>>) {
    let Limits { freeze, window, thaw } = guard.limits;
    guard.ask(&Ask::Freeze { limit: millis(freeze), window: millis(window), thaw: millis(thaw) }).await;
    match guard.hear(Some(freeze + GRACE)).await {
        Ok(Said::Frozen { count, asked_us }) => {
            let (wish, wished) = oneshot::channel();
            let (end, ended) = oneshot::channel();
            let since = Instant::now();
            let _ = tell.send(Ok(Frozen { count, asked: Duration::from_micros(asked_us), wish, ended }));
            hold(guard, ledger, since, wished, end).await;
        }
        Ok(Said::NotFrozen { failure, words }) => {
            let _ = tell.send(Err(NotFrozen::Guest(failure, words)));
            see_through(guard, ledger).await;
        }
        other => {
            let words =
                other.map_or_else(|words| words, |said| format!("the guard said {said:?} when it was to freeze"));
            let _ = tell.send(Err(NotFrozen::Guard(words)));
            guard.end().await;
            thaw_on(&guard, ledger).await;
        }
    }
}

/// The guest is frozen since `since`. Ends when it is not.
async fn hold(
    mut guard: Guard,
    ledger: Arc<dyn Ledger>,
    since: Instant,
    mut wished: oneshot::Receiver<()>,
    end: oneshot::Sender<Ended>,
) {
    let Limits { window, thaw, .. } = guard.limits;
    let mut asked = None;
    let heard = tokio::select! {
        heard = guard.hear(Some(window + GRACE)) => heard,
        wish = &mut wished => {
            asked = Some((why(wish), since.elapsed()));
            guard.ask(&Ask::Thaw).await;
            guard.hear(Some(FLAG_LIMIT * 2 + thaw + GRACE)).await
        }
    };
    let words = match heard {
        Ok(Said::Thawed(thawed)) => {
            let confirmed = thawed.confirmed;
            if confirmed {
                ledger.paid();
            }
            let _ = end.send(Ended { thawed, guard_failed: None });
            if confirmed {
                // It has nothing left to do, however it ends.
                guard.ended_well().await;
            } else {
                see_through(guard, ledger).await;
            }
            return;
        }
        Ok(other) => format!("the guard said {other:?} when it was to thaw"),
        Err(words) => words,
    };
    tracing::warn!(words, "the guard of a frozen guest does not do its part");
    guard.end().await;
    let (why, after) = match asked {
        Some(asked) => asked,
        None => tokio::select! {
            wish = wished => (why(wish), since.elapsed()),
            () = sleep(window.saturating_sub(since.elapsed())) => (Why::Deadline, since.elapsed()),
        },
    };
    let thawed = thaw_once(&guard, why, since, after).await;
    let confirmed = thawed.confirmed;
    if confirmed {
        ledger.paid();
    }
    let _ = end.send(Ended { thawed, guard_failed: Some(words) });
    if !confirmed {
        thaw_on(&guard, ledger).await;
    }
}

fn why(wish: Result<(), oneshot::error::RecvError>) -> Why {
    if wish.is_ok() { Why::Asked } else { Why::Abandoned }
}

/// One attempt without the guard, which was asked for `after` the freeze.
async fn thaw_once(guard: &Guard, why: Why, since: Instant, after: Duration) -> Thawed {
    let agent = GuestAgent::new(guard.lent.socket());
    let flag = match why {
        Why::Asked => agent.is_frozen(FLAG_LIMIT).await.ok(),
        Why::Deadline | Why::Abandoned => None,
    };
    let (answer, confirmed) = thawing::once(&agent, guard.limits.thaw).await;
    let (after_us, lasted_us) = (micros(after), micros(since.elapsed()));
    Thawed { why, after_us, lasted_us, flag, answer, confirmed }
}

/// The guard has told what it saw and asks on; it ends when the guest is thawed or its machine is gone.
async fn see_through(mut guard: Guard, ledger: Arc<dyn Ledger>) {
    while guard.hear(None).await.is_ok() {}
    if guard.ended_well().await {
        ledger.paid();
    } else {
        tracing::warn!("the guard of a frozen guest died or hangs; thawing");
        thaw_on(&guard, ledger).await;
    }
}

/// Nobody else asks: until the guest is thawed, or its machine is gone.
async fn thaw_on(guard: &Guard, ledger: Arc<dyn Ledger>) {
    thawing::until_thawed(&GuestAgent::new(guard.lent.socket()), guard.limits.thaw).await;
    ledger.paid();
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
