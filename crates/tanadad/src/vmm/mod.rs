//! Running machines: one QEMU each.

use std::sync::Arc;

use crate::context::Daemon;

/// Re-attaches to machines that run already. Storage is attached, the API is not open yet.
pub async fn start(_daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    Ok(())
}

/// Before the end of the process: lets go of the machines, which run on.
pub async fn stop(_daemon: &Arc<Daemon>) {}
