//! Disks and machines in and out of the daemon by HTTP.
//!
//! ```text
//!  request ──▶ checks, attach ──▶ headers ──▶ stream, progress on the task ──▶ detach ──▶ task: success | failure
//!               │ error: a status and a text          │ error: the connection is aborted, the task says why
//! ```
//!
//! Whether a transfer succeeded is known **from its task alone**: headers leave before the data. What an import made is
//! destroyed when it fails; an intent written before the first disk is made sees to it when the process dies. What was
//! read from disks or written to them is in the task, too, also of a transfer that broke off.

pub(crate) mod attached;
mod differing;
pub(crate) mod disk;
pub(crate) mod error;
mod export;
mod fields;
mod image;
mod import;
mod known;
pub(crate) mod mac;
pub(crate) mod marked;
mod metadata;
mod new_disk;
mod pack;
pub(crate) mod rate;
mod raw;
mod replay;
mod routes;
mod stream;
#[cfg(test)]
mod tests;
mod unpack;

use crate::context::Handlers;

pub use marked::{undo_again, undo_leftovers};
pub use routes::routes;

/// Messages about transfers. What the table declares and nobody gives a body (`VM.import` by URL) answers that it is
/// not implemented.
pub fn handlers() -> Handlers {
    Handlers::new()
}
