//! Following the database: what one part keeps true whatever the others write.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::context::Daemon;

/// A call writes several times; one look after it is enough.
const PAUSE: Duration = Duration::from_millis(2);

/// One look at what changed after a generation; answers the generation looked at.
pub type Round = fn(Arc<Daemon>, u64) -> BoxFuture<'static, u64>;

/// Has `round` look at once, and whenever the database has changed, for as long as the daemon lives.
pub fn follow(daemon: &Arc<Daemon>, round: Round) {
    let mut changed = daemon.db.changed();
    let daemon = Arc::downgrade(daemon);
    tokio::spawn(async move {
        let mut seen = 0;
        loop {
            match daemon.upgrade() {
                Some(daemon) => seen = round(daemon, seen).await,
                None => return,
            }
            if changed.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
}
