//! Ends what a cut left behind: FlexVol snapshots that would not go while clones shared with them, and consistency groups
//! and snapshots of a process that was killed. Only names of this driver in FlexVols of this SR are touched, and of those
//! only this host's, or such as are marked as deleted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tanada_driver::{DriverError, DriverErrorKind, DriverResult};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::Sr;
use crate::error::{ArrayError, ArrayResult, code};
use crate::model::Snapshot;
use crate::names::{self, CUT_PREFIX, DELETED_PREFIX};

/// Sharing completes within seconds or minutes.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// [`Sr::settle`] waits so long.
const SETTLE_WITHIN: Duration = Duration::from_secs(300);

/// Names of what this process is making now; all SRs of a process share it.
static UNDERWAY: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Keeps the reaper away from names for as long as it lives; calls it when the verb that made them was abandoned.
pub(super) struct Underway {
    names: Vec<String>,
    abandoned: Option<Arc<Notify>>,
}

impl Underway {
    pub(super) fn new(names: &[String], reaper: Arc<Notify>) -> Underway {
        UNDERWAY.lock().unwrap_or_else(PoisonError::into_inner).extend(names.iter().cloned());
        Underway { names: names.to_vec(), abandoned: Some(reaper) }
    }

    /// The verb has cleaned up behind itself.
    pub(super) fn end(mut self) {
        self.abandoned = None;
    }

    fn holds(name: &str) -> bool {
        UNDERWAY.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut underway = UNDERWAY.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            underway.remove(name);
        }
        if let Some(reaper) = &self.abandoned {
            reaper.notify_one();
        }
    }
}

/// Reaps at once, and whenever a cut says that it left something, until the SR is closed.
pub async fn reaper(sr: Weak<Sr>, left_over: Arc<Notify>) {
    let mut pause = PAUSES.0;
    loop {
        let left = match sr.upgrade() {
            None => return,
            Some(open) => open.reap().await,
        };
        match left {
            Ok(0) => {
                pause = PAUSES.0;
                left_over.notified().await;
            }
            other => {
                tracing::debug!(?other, "leftovers of cuts are on the array");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

impl Sr {
    /// Deletes the snapshot of a cut, or leaves it to the reaper under a name that says so. One that was `taken` may
    /// take its time to be seen.
    pub(super) async fn end_cut(&self, flexvol: &str, cut: &str, taken: bool) {
        let ended = async {
            let found = match taken {
                true => self.array.snapshots_seen(flexvol, cut).await?,
                false => self.array.snapshots(flexvol, cut).await?,
            };
            for snapshot in found {
                self.end_snapshot(flexvol, &snapshot).await?;
            }
            Ok::<(), ArrayError>(())
        };
        if let Err(error) = ended.await {
            tracing::debug!(%cut, %error, "a snapshot is left to the reaper");
            self.left_over.notify_one();
        }
    }

    /// False where it has to be tried again.
    async fn end_snapshot(&self, flexvol: &str, snapshot: &Snapshot) -> ArrayResult<bool> {
        match self.array.delete_snapshot(flexvol, &snapshot.uuid).await {
            Err(error) if error.is_any(code::SNAPSHOT_LOCKED) || error.is_busy() => {
                self.left_over.notify_one();
                let Some(rest) = snapshot.name.strip_prefix(CUT_PREFIX) else { return Ok(false) };
                let name = format!("{DELETED_PREFIX}{rest}");
                // Somebody else may have ended it meanwhile.
                Ok(!self.array.rename_snapshot(flexvol, &snapshot.uuid, &name).await?)
            }
            other => other.map(|_| true),
        }
    }

    /// Ends all leftovers that can be ended now; returns how many are still there, those of cuts under way included.
    pub async fn reap(&self) -> DriverResult<usize> {
        let mut left = self.reap_groups().await?;
        let mine = format!("{CUT_PREFIX}{}_", self.host);
        for flexvol in self.flexvols().await?.iter().filter(|one| one.state == "online") {
            for snapshot in self.array.snapshots(&flexvol.uuid, "tanada_*").await? {
                let leftover = snapshot.name.starts_with(DELETED_PREFIX) || snapshot.name.starts_with(&mine);
                if leftover && (Underway::holds(&snapshot.name) || !self.end_snapshot(&flexvol.uuid, &snapshot).await?)
                {
                    left += 1;
                }
            }
        }
        Ok(left)
    }

    /// Groups of this host's earlier lives; a FlexVol in one cannot be cut with another.
    pub(super) async fn reap_groups(&self) -> DriverResult<usize> {
        let mine = format!("{}{}_", names::group_prefix(self.sr), self.host);
        let found = match self.array.groups(&format!("{mine}*")).await {
            // Who may not see groups has made none.
            Err(error) if error.is_denied() || error.is_not_found() => return Ok(0),
            other => other?,
        };
        let mut left = 0;
        for group in found.iter().filter(|group| group.name.starts_with(&mine)) {
            if Underway::holds(&group.name) {
                left += 1;
                continue;
            }
            match self.array.delete_group(&group.uuid).await {
                Ok(_) => {}
                Err(error) if error.is_busy() => left += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(left)
    }

    /// Waits until no leftover of a cut is pending.
    pub async fn settle(&self) -> DriverResult<()> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        let mut pause = self.array.pause();
        loop {
            match self.reap().await? {
                0 => return Ok(()),
                left if Instant::now() >= deadline => {
                    let words = format!("{left} snapshots of FlexVols are still shared with clones of theirs");
                    return Err(DriverError::new(DriverErrorKind::Busy, words));
                }
                _ => sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}
