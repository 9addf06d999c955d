//! Disks that serve as long as they are connected with a machine, and then go: the writable clones of a generation that a
//! backup server mounts (`xe snapshot-attach mode=clone`).
//!
//! ```text
//!  VDI.clone, driver_params [MARK] ──▶ marked, not connected ──VBD.create──▶ connected ──VBD gone──▶ destroyed
//!                                            │ the daemon starts again, or snapshot-detach             ▲
//!                                            └─────────────────────────────────────────────────────────┘
//! ```
//!
//! The mark is in the record from its first moment on, so a crash leaves no clone that nobody knows. However a disk loses
//! its last VBD (`VBD.destroy`, `VM.destroy`, a revert of the machine), it goes. One that never was connected stays while
//! the daemon lives, for somebody may be about to connect it. No copy of a marked disk, of whatever kind, has the mark.

use std::collections::HashSet;
use std::sync::Arc;

use tanada_xapi::{Map, Ref};

use super::vdi;
use crate::context::Daemon;
use crate::db::{State, View};

/// The key in `VDI.other_config`. The value says what for: the uuid of the snapshot.
pub const MARK: &str = "tanada:throw-away";

/// The key in `VBD.other_config` of what is connected to be read by a backup: the uuid of the snapshot. Snapshots and copies of
/// the machine leave such a disk out.
pub const ATTACHED: &str = "tanada:attached-from";

/// One at a time destroys, so that nobody is told of a failure because another was faster.
#[derive(Debug, Default)]
pub struct Sweeping(tokio::sync::Mutex<()>);

/// Takes away what no copy of a disk or device may have.
pub fn forget_marks(other_config: &mut Map) {
    for key in [MARK, ATTACHED] {
        other_config.remove(key);
    }
}

/// Destroys the disk if it is marked and no longer connected; fine when it is gone already.
pub async fn end(daemon: &Arc<Daemon>, vdi: &Ref) {
    let _alone = daemon.sweeping.0.lock().await;
    let ended = daemon.db.read(|state| is_marked(state, vdi) && !is_connected(state, vdi));
    if ended && let Err(error) = vdi::destroy_disk(daemon, vdi).await {
        tracing::warn!(%vdi, %error, "a throw-away disk could not be destroyed yet");
    }
}

fn is_marked(state: &State, vdi: &Ref) -> bool {
    state.find("VDI", vdi).is_some_and(|vdi| vdi.entry("other_config", MARK).is_some())
}

fn is_connected(state: &State, vdi: &Ref) -> bool {
    state.find("VDI", vdi).is_some_and(|vdi| !state.resolve("VBD", &vdi.refs("VBDs")).is_empty())
}

/// The marked disks: those of `known` that still are, and what changed after generation `seen`.
pub fn marked(state: &State, known: &HashSet<Ref>, seen: u64) -> HashSet<Ref> {
    let changed = state.changed_since("VDI", seen).map(|vdi| vdi.id());
    known.iter().chain(changed).filter(|vdi| is_marked(state, vdi)).cloned().collect()
}

/// Follows the database and destroys marked disks when they are no longer connected. Those that are there already were
/// made by an earlier life of the process, so nobody is about to connect them.
pub fn keep_current(daemon: &Arc<Daemon>) {
    let mut changed = daemon.db.changed();
    let (mut all, mut seen) = daemon.db.read(|state| (marked(state, &HashSet::new(), 0), state.generation()));
    // Those that are to go when they are not connected.
    let mut known = all.clone();
    let daemon = Arc::downgrade(daemon);
    tokio::spawn(async move {
        loop {
            let Some(strong) = daemon.upgrade() else { return };
            let connected: HashSet<Ref>;
            (all, connected, seen) = strong.db.read(|state| {
                let all = marked(state, &all, seen);
                let connected = all.iter().filter(|vdi| is_connected(state, vdi)).cloned().collect();
                (all, connected, state.generation())
            });
            for vdi in known.iter().filter(|vdi| all.contains(*vdi) && !connected.contains(*vdi)) {
                end(&strong, vdi).await;
            }
            known.retain(|vdi| all.contains(vdi));
            known.extend(connected);
            drop(strong);
            if changed.changed().await.is_err() {
                return;
            }
        }
    });
}
