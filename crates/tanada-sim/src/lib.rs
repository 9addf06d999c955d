//! The proof machinery of the store: an engine on a device that may do anything a device may, driven by a random history
//! of clients, against a naive model. A seed is a run; the same seed is the same run.
//!
//! ```text
//!   traffic, scripts ──requests──▶ engine ──operations──▶ device (may lose, tear, reorder)
//!        │                           │
//!        ▼                           ▼
//!      model  ◀──compares──  answers, and what is read back after each crash
//! ```
//! Uses the engine's public interface only. See [`history`] for what counts as one instant.

mod changes;
mod content;
mod counters;
mod crossings;
mod device;
mod figures;
mod floods;
mod history;
mod image;
mod kept;
mod kinds;
mod model;
mod reads;
mod replay;
mod rng;
mod rot;
mod run;
mod scripts;
mod scrubs;
pub mod synth;
mod traffic;
mod verify;
mod world;

pub use counters::Counters;
pub use device::{Faults, Lie};
pub use kinds::Kind;
pub use replay::{Replayed, replay};
pub use rot::{Rotted, rot, rot_superblocks};
pub use run::{Broken, Options, Report, run};
pub use scrubs::{Scrubbed, scrub_rot};
