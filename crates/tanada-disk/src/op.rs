//! What a store asks of its device.

use crate::buf::Buf;

/// One operation on the device. Offsets and lengths are in bytes and multiples of 4 KiB.
#[derive(Debug, Clone)]
pub enum DiskOp {
    /// Reads `length` bytes at `at`; ends with [`DiskResult`] `Ok(Some(buf))` of exactly that length.
    Read { at: u64, length: u32 },
    /// Writes the parts one after another from `at` on. Each part is a whole number of blocks, 4 KiB aligned in memory.
    Write { at: u64, parts: Vec<Buf> },
    /// Makes every write that completed before this was issued durable (fdatasync).
    Sync,
    /// Hands space back to the medium (hole punch or discard). Failing is harmless.
    Punch { at: u64, length: u64 },
    /// Extends the device to `length` bytes, if it is a file. The new space reads as zeros.
    Grow { length: u64 },
}

/// Why an operation failed. The errno travels to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device error, errno {errno}")]
pub struct DiskError {
    /// Linux errno, for instance 5 (EIO) or 28 (ENOSPC).
    pub errno: i32,
}

impl DiskError {
    pub const EIO: DiskError = DiskError { errno: 5 };
    pub const ENOSPC: DiskError = DiskError { errno: 28 };
}

/// How an operation ended; `Some` for reads only.
pub type DiskResult = Result<Option<Buf>, DiskError>;
