//! The device under a store, as a handful of operations small enough to fake.
//!
//! ```text
//!   engine (decides)  --DiskOp-->  a shell: io_uring, memory, recording, faulty
//!                     <--result--
//! ```
//!
//! The engine never touches a file. It hands out [`DiskOp`]s and is told how each one ended; who carries them out, in
//! what order they land and whether they survive a power cut is the shell's business. That is what lets recovery be
//! tested by replaying every legal order of recorded operations.
//!
//! Contract of a device:
//! 1. Offsets and lengths of reads and writes are multiples of 4 KiB.
//! 2. Operations in flight together may land in any order, in whole or in part (512-byte tears).
//! 3. A completed `Sync` makes every write that had *completed when the sync was issued* durable. Nothing else does.
//! 4. A failed `Sync` is final: what is durable afterwards is unknown.
//! 5. After `Punch` a range reads as zeros or as anything else; the engine never relies on it.

mod buf;
mod op;

pub use buf::{Buf, BufMut, BufPool};
pub use op::{DiskError, DiskOp, DiskResult};
