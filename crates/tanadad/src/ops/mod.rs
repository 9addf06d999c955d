//! Bodies of the messages of storage objects and machines, and the work at start and end of the daemon.
//!
//! Each module offers `handlers()`; they are gathered here.

use std::sync::Arc;

use crate::context::{Daemon, Handlers};

/// The handlers of every module; a later entry takes the place of an earlier one.
pub fn handlers() -> Handlers {
    Handlers::new()
}

/// Attaches storage, reconciles it with the database and ends or undoes what was under way. The API is not open yet.
pub async fn start(_daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    Ok(())
}

/// Before the end of the process; the API is closed already.
pub async fn stop(_daemon: &Arc<Daemon>) {}
