//! Bodies of the messages of storage objects and machines, and the work at start and end of the daemon.
//!
//! | module | holds |
//! |---|---|
//! | [`sr`], [`pbd`] | making, attaching, scanning and ending SRs |
//! | [`vdi`], [`vdi_copy`], [`vbd`] | disks and their places in machines |
//! | [`cbt`] | which blocks changed; snapshots without their data |
//! | [`machine`] | records of machines: create, snapshot, clone, revert, provision, destroy |
//! | [`vif`], [`network`] | network devices |
//! | [`allowed`] | which operation is allowed when, as a table |
//! | `follow` | looking at the database whenever it has changed |
//! | [`intents`], [`reconcile`] | what survives a crash, and what is done about it |
//! | `secrets` | passwords of back ends, kept out of records |
//! | [`metadata`] | the records that an SR carries with it |
//! | [`throw_away`] | disks that go when they are no longer connected |
//! | [`startup`] | objects that are always there |
//!
//! Each module offers `handlers()`; they are gathered here.

use std::sync::Arc;

use crate::context::{Daemon, Handlers};

pub mod allowed;
pub mod cbt;
mod follow;
pub mod intents;
pub mod machine;
pub mod metadata;
pub mod network;
pub mod pbd;
pub mod power;
pub mod reconcile;
pub mod records;
mod secrets;
pub mod sr;
pub mod startup;
pub mod throw_away;
pub mod vbd;
pub mod vdi;
pub mod vdi_copy;
pub mod vif;

/// The handlers of every module; a later entry takes the place of an earlier one.
pub fn handlers() -> Handlers {
    let mut all = Handlers::new();
    all.extend(sr::handlers());
    all.extend(pbd::handlers());
    all.extend(vdi::handlers());
    all.extend(vdi_copy::handlers());
    all.extend(cbt::handlers());
    all.extend(vbd::handlers());
    all.extend(vif::handlers());
    all.extend(network::handlers());
    all.extend(machine::handlers());
    all.extend(power::handlers());
    all.extend(allowed::handlers());
    all.extend(crate::schedule::handlers());
    all
}

/// Attaches storage, reconciles it with the database and ends or undoes what was under way. The API is not open yet.
pub async fn start(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    startup::objects(daemon)?;
    crate::storage::load_attachments(daemon)?;
    cbt::load(daemon)?;
    reconcile::clear_marks(daemon)?;
    pbd::reopen(daemon).await;
    reconcile::end_intents(daemon, None).await;
    reconcile::compare(daemon).await;
    cbt::keep_current(daemon);
    allowed::keep_current(daemon);
    metadata::keep_current(daemon);
    throw_away::keep_current(daemon);
    Ok(())
}

/// Once it is known which machines run: ends what an earlier life of the process left with them.
pub async fn after_machines(daemon: &Arc<Daemon>) {
    reconcile::let_guests_go(daemon).await;
    crate::storage::end_leftovers(daemon).await;
}

/// Before the end of the process; the API is closed already. Storage goes on by itself.
pub async fn stop(_daemon: &Arc<Daemon>) {}

#[cfg(test)]
mod tests;
