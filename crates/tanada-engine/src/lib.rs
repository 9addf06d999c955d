//! The store's engine: a synchronous state machine, event in, actions out. This page is the whole design in ten
//! minutes.
//!
//! # What it keeps
//! A store holds *volumes*, which guests write, and *generations*, which nobody writes any more. Each is a tree of
//! map nodes with 256 pointers, five levels high, however small it is. A pointer tells a block of the device, that
//! block's checksum, and its *birth*: the epoch in which it came to be there.
//!
//! ```text
//!   volume ──▶ root ──▶ node ──▶ node ──▶ node ──▶ leaf ──▶ 4 KiB of data
//!            level 4                              level 0     (a leaf maps 1 MiB)
//! ```
//! Nothing in use is written over. A write goes to a free block, and a checkpoint writes the nodes above it anew. So
//! an old root goes on meaning what it meant, and that is all a generation is. Snapshot, clone and revert are one
//! small record each; no tree is read or copied.
//!
//! There is one epoch for the whole store, and a snapshot of a group of volumes ends it. S(v) is the epoch that ended
//! when v was taken. What a version maps with a birth after S(parent) is not its parent's. This comparison, made
//! while walking a tree beside its child's, tells what a deletion may free and what a backup must copy. There are no
//! reference counts; a deletion costs what differs ([`versions`], [`map::tree`]).
//!
//! # A write's way
//! ```text
//!   submit ─▶ busy blocks ─▶ admission ─▶ allocate ─▶ data write ─▶ record ─────▶ out of the process ─▶ answer
//!             (W1)           space, delta,             device        applied to    (J6)
//!                            journal room                            the delta (J1, V1)
//! ```
//! Writes never read the map. What changed since the last checkpoint is in the *delta*, a sparse trie shared by
//! reference count: a snapshot clones its root ([`map::delta`]). All that arrives in one turn is placed together, so
//! that writes of many guests become few device writes ([`guest::data`]). The record says "these places are in those
//! blocks, with these checksums". It is appended when the data has arrived ([`journal::pair`] tells the one exception
//! and why it is safe). The answer is given when the record is where the death of this process cannot reach it: in
//! memory that outlives it, or on the device ([`journal`]). A flush waits until the record is on the device and then
//! for one sync, shared by all who wait ([`journal::syncs`]).
//!
//! # A read's way
//! Delta, frozen delta (while a checkpoint runs), tree: three steps, with no generation or a thousand. Leaves come
//! from a cache within the memory budget ([`map::cache`]). What was read is verified against the pointer's checksum.
//! A mismatch is looked up again, read again, and then an error that names volume and offset ([`guest::read`], W4).
//! What random overwriting has scattered and somebody reads in sequence is written together again, as far as no
//! generation shares it ([`background::relayout`], V12).
//! For a guest that reads in order, what comes next is read before it asks ([`guest::read_ahead`], W7).
//!
//! # The checkpoint
//! The journal is a ring. Now and then the delta is frozen (the *cut*) and merged into the trees, leaf by leaf, while
//! guests go on into a new delta. Then catalog and bitmaps, a sync, the superblock into the older of two slots,
//! another sync. Only then the journal's start moves, and the blocks that fell out wait for their last readers before
//! they are free ([`versions::cut`], [`map::tree::merge`], [`background::checkpoint`], [`space::releases`]). Until
//! the second sync the former checkpoint stands, with everything it needs.
//!
//! # After a crash
//! Newest superblock, catalog, and the journal's records in order up to the first whose data is not there: the store
//! is as it was at one instant, which contains everything flushed; and everything acknowledged, where only the
//! process died. Recovery fills the delta and reads no leaf ([`open`]).
//!
//! # Deletion
//! A version that dies is walked beside its only child, in order of place, with a cursor that is saved together with
//! what was freed. A version with several children waits as a *ghost* until one is left ([`background::walker`],
//! V4-V8).
//!
//! # When something fails
//! A failed sync or journal write is final: the store only reads until it is opened again, and recovers then from what
//! the medium holds. A failed data write is an error for its guest, and its blocks stay out of use. A medium without
//! room is waited for (J10). Data that does not verify is an error for whoever reads it, and a map node that cannot be
//! read costs what it mapped and nothing else ([`map::tree::merge`], M1). A scrub finds both before somebody needs them
//! ([`background::scrub`]). There is one copy of everything: nothing repairs, writing over heals.
//!
//! # What runs it
//! ```text
//!   the shell ── submit, complete, turn ──▶ engine ──▶ state ──▶ Action::{Disk, Keep, Reply, ...} ──▶ the shell
//! ```
//! No socket, no file, no clock, no thread: the same calls give the same actions, and a run of the simulation can be
//! told by its seed. Guests' requests are state machines. Work of many steps (opening, checkpoint, walks, control
//! operations, cold reads) is straight code in tasks over the same events ([`tasks::exec`]); a task never keeps the
//! state borrowed across an await, so between two awaits it is as alone as an event.
//!
//! # The rooms
//! | room | what is there |
//! |---|---|
//! | [`api`], [`engine`], [`config`] | the face |
//! | [`state`], [`tasks`] | all state and how it meets the device; the executor |
//! | [`guest`] | reads, reading ahead, writes, discards, flushes, extents; busy blocks; the brake (W rules) |
//! | [`journal`] | the ring, what outlives the process, syncs (J rules) |
//! | [`map`] | delta, node cache, trees and the pure functions over them, catalog |
//! | [`versions`] | the version tree, and the cut that a checkpoint keeps (V rules) |
//! | [`space`] | allocator, bitmap pages, releases, reserve, written space ahead (B rules) |
//! | [`background`] | checkpoint, deletion walk, re-layout, scrub; which of them may overlap with what |
//! | [`open`], [`control`], [`stat`] | recovery; volumes and generations; figures |
//!
//! Names like J1 or V2 are rules of `docs/store-rules.md`: each is one sentence that must hold, and what breaks
//! without it. The bytes on the device are in `docs/format.md`.

#![allow(rustdoc::private_intra_doc_links, reason = "the page is for those who read the source")]

pub mod api;
mod background;
mod config;
mod control;
mod engine;
mod failure;
mod guest;
mod journal;
mod map;
#[cfg(test)]
mod model;
mod open;
mod space;
mod stat;
mod state;
mod tasks;
#[cfg(test)]
mod testing;
mod versions;

pub use api::{
    Action, Alert, Control, ExportId, Extent, ExtentKind, Failure, IoId, OpenReport, Reply, Request, RequestId,
    Segment, StoreStat, VolumeInfo, VolumeKind, VolumeState, VolumeUsage,
};
pub use background::scrub::{DAMAGE_MAX, DamagedPart, ScrubDamage, ScrubMark, ScrubState, ScrubStatus};
pub use config::EngineConfig;
pub use engine::Engine;
pub use journal::kept::{COPIES as KEPT_COPIES, KeptBlock, KeptMemory, KeptPlaces};
