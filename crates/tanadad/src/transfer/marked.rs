//! Disks that an import has made and not completed.
//!
//! An import writes an intent, and each disk it makes carries that intent's id in its `other_config` from the
//! transaction on that makes its record. Completing takes marks and intent away together; undoing destroys every disk
//! that carries the mark. So after a crash at any point exactly the disks of unfinished imports are known.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tanada_xapi::{ApiResult, Ref, Value};

use crate::context::Daemon;
use crate::db::{Intent, Record, Tx, View};
use crate::ops::{intents, vdi};

/// Kind of the intents that stand for imports under way.
const KIND: &str = "import";

/// The key in `other_config`.
pub const MARK: &str = "tanada:import";

/// Answers the intent of a new import.
pub fn begin(daemon: &Daemon) -> ApiResult<String> {
    daemon.db.write(|tx| tx.put_intent(KIND, json!({})))
}

/// `other_config` of a disk that has no other entries.
pub fn mark(intent: &str) -> Value {
    Value::map(BTreeMap::from([(MARK, intent)]))
}

/// From now on the disks stay.
pub fn complete<'a>(tx: &mut Tx<'_>, disks: impl IntoIterator<Item = &'a Ref>, intent: &str) -> ApiResult<()> {
    for vdi in disks {
        tx.remove_entry("VDI", vdi, "other_config", MARK)?;
    }
    tx.clear_intent(intent);
    Ok(())
}

/// Destroys what the import has made. What cannot be destroyed now is later.
pub async fn undo(daemon: &Arc<Daemon>, intent: &str) {
    let ours = |vdi: &Arc<Record>| vdi.entry("other_config", MARK) == Some(intent);
    let disks: Vec<Arc<Record>> = daemon.db.read(|state| state.all("VDI").into_iter().filter(ours).collect());
    let mut whole = true;
    for disk in disks {
        if let Err(error) = vdi::destroy_disk(daemon, disk.id()).await {
            let uuid = disk.uuid();
            tracing::warn!(vdi = uuid, %error, "a disk of a failed import could not be destroyed yet");
            whole = false;
        }
    }
    if !whole {
        daemon.left.add(intent);
    } else if let Err(error) = intents::clear(daemon, intent) {
        tracing::warn!(%error, "the intent of a failed import could not be struck off");
    }
}

/// [`undo`] again, where the intent is an import's; false where it is not.
pub async fn undo_again(daemon: &Arc<Daemon>, intent: &Intent) -> bool {
    if intent.kind == KIND {
        undo(daemon, &intent.id).await;
    }
    intent.kind == KIND
}

/// Destroys what imports of an earlier life of the process have left. Storage is attached, attachments of that life
/// have ended.
pub async fn undo_leftovers(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    for intent in daemon.db.intents()?.into_iter().filter(|intent| intent.kind == KIND) {
        tracing::info!(
            intent = intent.id,
            "an import was broken off by the end of the process; its disks are destroyed"
        );
        undo(daemon, &intent.id).await;
    }
    Ok(())
}
