//! SR type `netapp`: disks as LUNs of a NetApp ONTAP array (9.10.1 and later), over its REST interface.
//!
//! ```text
//!  backend, driver   the faces that the control plane knows
//!        │
//!       sr           what a verb means: placement, cuts, attachments, leftovers
//!        │
//!      array         calls with types, idempotent
//!        │
//!      rest          retries, jobs, pages
//!        │
//!   http ── tls      one connection, one deadline; whom to trust
//! ```
//! `names` says what things are called on the array, `model` what its records look like, `error` what its numbers mean.
//! An administrator's view is in docs/drivers.md.

mod array;
mod backend;
mod config;
mod driver;
mod error;
mod http;
mod model;
mod names;
mod query;
mod rest;
mod sr;
mod tls;

pub use backend::{FACTS, OntapBackend};
pub use driver::OntapDriver;
pub use rest::Patience;
