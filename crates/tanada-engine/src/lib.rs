//! The store's engine: a synchronous state machine, event in, actions out.
//!
//! ```text
//!   engine      the face: turns                       guest   requests that change blocks, flushes (W1, J6, J9)
//!   state       all state; device ops, failures       data    admission, placement, merging, recording (J1)
//!   syncs       journal, syncs (J6, J9)               space   reserve, holes passed down
//!   releases    dropped blocks on their way back (B1-B3)
//!   exec        tasks: straight code over events       read    look-up, reading again, read-modify-write, extents, holes
//!   guest_read  guests' reads, without a task (B3, W4)  relayout scattered blocks brought together (V12)
//!   open        recovery (J1-J4, J8)                   control volumes and generations (W6)
//!   checkpoint  merge, catalog, superblock (J8, B1-B4) stat    figures
//!   walker      deletion in the background (V6, V7)    ahead  map nodes read ahead for these two
//!   scrub       verifying everything in the background; timers: moments that tasks wait for
//!   --- without I/O ---
//!   delta, versions, cut, tree/{merge,walk,diff,count}, alloc, catalog, journal, kept, locks, cache
//! ```
//! Rule names (J1, V2, B3 ...) are those of `docs/store-rules.md`.

mod ahead;
mod alloc;
pub mod api;
mod bitmaps;
mod blocks;
mod cache;
mod catalog;
mod checkpoint;
mod config;
mod control;
mod cut;
mod data;
mod delta;
mod engine;
mod exec;
mod failure;
mod guest;
mod guest_read;
mod holes;
mod journal;
mod kept;
mod locks;
#[cfg(test)]
mod model;
mod open;
mod pair;
mod read;
mod region;
mod relayout;
mod releases;
mod scrub;
mod space;
mod stat;
mod state;
mod syncs;
#[cfg(test)]
mod testing;
mod timers;
mod tree;
mod versions;
mod walker;

pub use api::{
    Action, Alert, Control, ExportId, Extent, ExtentKind, Failure, IoId, OpenReport, Reply, Request, RequestId,
    Segment, StoreStat, VolumeInfo, VolumeKind, VolumeState, VolumeUsage,
};
pub use config::EngineConfig;
pub use engine::Engine;
pub use kept::{COPIES as KEPT_COPIES, KeptBlock, KeptMemory, KeptPlaces};
pub use scrub::{DAMAGE_MAX, DamagedPart, ScrubDamage, ScrubMark, ScrubState, ScrubStatus};
