//! The database: every XenAPI object in memory, kept in SQLite.
//!
//! Invariants
//! 1. An object holds every field of its class, each of its declared type, at all times.
//! 2. A write happens as a whole or not at all: memory changes only after SQLite has made the change durable
//!    (WAL, `synchronous=FULL`); on an error neither changes. There is one writer at a time; readers never wait for a disk.
//! 3. The "many" side of a relation (`VM.VBDs`) is derived from the "one" side (`VBD.VM`), see [`relations`]. It is
//!    neither set by hand nor stored. A reference may dangle after its target is gone, as XenAPI allows.
//! 4. Every write that changes something moves the generation by one and stamps the objects that it changed;
//!    [`Db::changed`] wakes those who wait for it. Deletions are remembered for [`DELETIONS_KEPT`] objects.
//! 5. Sessions and tasks live in memory alone.
//! 6. The values of secrets are sealed on disk, see [`vault`].
//! 7. Intents are written in the transaction of the state change that they belong to, and outlive a crash.
//! 8. Notes are texts of the daemon's own under names that parts choose (`schedule/<uuid>`): as durable as objects and in
//!    the same transactions, but no objects, and no change that anybody is woken for.
//! 9. What is done at every change does not look at whole classes: what changed, and who names an object, is in an [`index`].
//!
//! ```text
//! let sr = daemon.db.read(|s| s.by_uuid("SR", uuid).map(|r| r.id().clone()))?;
//! let vdi = daemon.db.write(|tx| {
//!     let vdi = tx.create("VDI", [("name_label", "disk".into()), ("SR", Value::from(&sr)), ("virtual_size", size.into())])?;
//!     tx.put_intent("vdi-create", json!({ "vdi": vdi.as_str() }))?;
//!     Ok(vdi)
//! })?;
//! let size = daemon.db.read(|s| Ok(s.get("VDI", &vdi)?.int("virtual_size")))?;
//! ```

mod index;
mod record;
mod relations;
mod sqlite;
mod state;
mod tx;
mod vault;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use tanada_xapi::{ApiError, ApiResult};
use tokio::sync::watch;

pub use record::Record;
pub use sqlite::Intent;
pub use state::{DELETIONS_KEPT, Deletion, State, View};
pub use tx::Tx;

use sqlite::Sqlite;

/// Classes whose objects end with the process.
const RUNTIME_CLASSES: [&str; 3] = ["session", "task", "event"];

pub struct Db {
    state: RwLock<State>,
    writer: Mutex<Sqlite>,
    generation: watch::Sender<u64>,
}

impl Db {
    /// Opens or creates the database file, brings its schema up to date and loads every object.
    pub fn open(path: &Path) -> anyhow::Result<Db> {
        Db::load(Sqlite::open(path)?)
    }

    /// A database that is gone with the value; for tests.
    pub fn in_memory() -> anyhow::Result<Db> {
        Db::load(Sqlite::in_memory()?)
    }

    fn load(sqlite: Sqlite) -> anyhow::Result<Db> {
        let state = State::from_records(sqlite.load_objects()?, sqlite.load_notes()?);
        let (generation, _) = watch::channel(state.generation());
        Ok(Db { state: RwLock::new(state), writer: Mutex::new(sqlite), generation })
    }

    /// Looks at the state; short, no waiting inside.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state: all that `change` does through the transaction, or nothing when it returns an error.
    ///
    /// Waits for the disk when something durable changes. `change` must not call [`Db::read`] or [`Db::write`].
    pub fn write<T>(&self, change: impl FnOnce(&mut Tx<'_>) -> ApiResult<T>) -> ApiResult<T> {
        blocking(|| self.write_here(change))
    }

    fn write_here<T>(&self, change: impl FnOnce(&mut Tx<'_>) -> ApiResult<T>) -> ApiResult<T> {
        let mut sqlite = self.lock_writer();
        let base = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut tx = Tx::new(&base);
        let result = change(&mut tx)?;
        let changes = tx.into_changes();
        drop(base);
        if changes.is_empty() {
            return Ok(result);
        }
        sqlite.commit(&changes).map_err(|e| {
            tracing::error!(error = %e, "the database could not be written");
            ApiError::internal(format!("the database could not be written: {e}"))
        })?;
        // Only the writer changes the state, and we are the writer: nothing moved since `base` was read.
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.apply(changes) {
            self.generation.send_replace(state.generation());
        }
        Ok(result)
    }

    /// What was under way when the process ended, oldest first.
    pub fn intents(&self) -> anyhow::Result<Vec<Intent>> {
        Ok(self.lock_writer().intents()?)
    }

    /// The generation, as a value to wait on.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn lock_writer(&self) -> MutexGuard<'_, Sqlite> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the other tasks of this worker thread go on elsewhere while we wait for the disk.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests;
