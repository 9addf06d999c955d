//! Evidence written by a guest and judged from outside: known patterns, and records whose order on two disks proves
//! that a snapshot of both is one instant.
//!
//! ## Ordered records
//! A writer stores record `n` on disk A, waits until A says it is durable, then stores the same record on disk B, and
//! goes on with `n + 1`. At every instant A therefore holds each record that B holds. A snapshot of the two disks that
//! were cut at different moments (A first) can show a record on B that A lacks: [`judge_order`] looks for exactly that.
//! Records are 4 KiB, kept in a ring of slots (`n mod slots`), each carrying its number and a CRC-32C.
//!
//! ## Acknowledged transactions
//! Clients of a database tell the outcome of each transaction to the outside; [`ledger`] judges a copy by that.
//!
//! ## A steady load
//! [`pace`] measures what a guest feels.
//!
//! ## Content
//! [`noise`] fills what is compared afterwards.
//!
//! The programs run inside guests, so they are built statically and depend on next to nothing.

pub mod ledger;
mod noise;
mod order;
pub mod pace;
mod pattern;

pub use noise::noise;
pub use order::{OrderReport, RECORD_BYTES, decode_record, encode_record, judge_order};
pub use pattern::{check_block, fill_block};
