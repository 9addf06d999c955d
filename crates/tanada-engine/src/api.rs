//! What goes into the engine and what comes out. Plain data: no sockets, no rings, no clocks.
//!
//! The shell's loop, once per turn:
//! ```text
//!   engine.submit(now, id, request)      for every request that arrived
//!   engine.complete(now, io, result)     for every device operation that ended
//!   engine.turn(now)                     once: batches writes, journals, starts a sync, moves background work on
//!   while let Some(action) = engine.next_action() { carry it out }
//!   sleep until something arrives or engine.deadline()
//! ```
//! `now` is microseconds of a monotonic clock of the shell's choosing.

use std::fmt;

use tanada_disk::{Buf, DiskOp};
use uuid::Uuid;

use crate::background::scrub::{ScrubDamage, ScrubMark, ScrubStatus};
use crate::journal::kept::KeptBlock;

/// Names a request; chosen by the shell, echoed in the reply, never interpreted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names a device operation; chosen by the engine, echoed by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// A volume or generation held open for I/O. Numbers are not reused while the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportId(pub u32);

/// Everything a client may ask. Offsets and lengths are bytes; guests may use any 512-byte (indeed any byte) alignment.
#[derive(Debug, Clone)]
pub enum Request {
    /// Answered by [`Reply::Data`] covering exactly the range.
    Read {
        export: ExportId,
        offset: u64,
        length: u32,
    },
    /// `data` need be neither aligned nor whole blocks; whole aligned blocks take the fast path without a copy.
    /// Acknowledged when its journal record has left the process (rule J6); with `fua` when it is durable.
    Write {
        export: ExportId,
        offset: u64,
        data: Buf,
        fua: bool,
    },
    /// The range reads as zeros afterwards. Whole blocks are unmapped unless `keep_allocated`.
    WriteZeroes {
        export: ExportId,
        offset: u64,
        length: u64,
        fua: bool,
        keep_allocated: bool,
    },
    /// Whole blocks in the range are unmapped (and read as zeros); parts of blocks are left alone.
    Discard {
        export: ExportId,
        offset: u64,
        length: u64,
        fua: bool,
    },
    /// Everything acknowledged on this volume, by any client, is durable when this is answered.
    Flush {
        export: ExportId,
    },
    /// Mapped and unmapped extents from `offset`, at most `extents_max`; may stop before the end of the range but
    /// answers at least one extent. With `since`, the extents tell changed from unchanged against that generation.
    Extents {
        export: ExportId,
        offset: u64,
        length: u64,
        extents_max: u32,
        since: Option<Uuid>,
    },
    Control(Control),
}

/// Operations on volumes and generations. All are idempotent where they can be: repeating one that took effect
/// succeeds and says so. All are answered when they are durable (rule W6).
#[derive(Debug, Clone)]
pub enum Control {
    /// Opens a volume, or a generation (always read-only). Answered by [`Reply::Opened`].
    Open {
        id: Uuid,
        writable: bool,
    },
    Close {
        export: ExportId,
    },
    /// `size` in bytes, rounded up to 4 KiB. `EEXIST` where `id` names something of another size or kind.
    CreateVolume {
        id: Uuid,
        size: u64,
    },
    /// Ends a volume's head, or a generation, in any order. Space comes back by bounded background work.
    /// `EBUSY` while it is open. Unknown ids succeed with `changed: false`.
    Destroy {
        id: Uuid,
    },
    /// New size in bytes, rounded up to 4 KiB. Shrinking discards the tail.
    Resize {
        id: Uuid,
        size: u64,
    },
    /// All `(volume, generation)` pairs are cut at one instant: one event, one journal record. At most 128 pairs.
    Snapshot {
        group: Vec<(Uuid, Uuid)>,
    },
    /// A new volume over a generation, or over a volume (which takes a hidden generation first). O(1).
    Clone {
        source: Uuid,
        volume: Uuid,
    },
    /// The volume's content becomes that of the generation (of its own family). O(1). `EBUSY` while open for writing.
    Revert {
        volume: Uuid,
        generation: Uuid,
    },
    /// Exact changed extents from `from` to `to`, starting at `offset`, at most `extents_max`.
    /// Answered by [`Reply::Extents`]; ask again from the end of the last extent.
    Difference {
        from: Uuid,
        to: Uuid,
        offset: u64,
        extents_max: u32,
    },
    /// Counts what a volume or generation uses. `exclusive` may take a walk; it is cached.
    Stat {
        id: Uuid,
    },
    /// All volumes and generations without walking anything.
    List,
    /// Whole-store figures.
    StoreStat,
    /// Writes a checkpoint and answers when it is durable.
    Checkpoint,
    /// Answers when no deletion, walk or release is pending.
    Settle,
    /// Extends the store to `size` bytes (the shell has grown the device, or the file may grow).
    GrowStore {
        size: u64,
    },
    /// Verifies everything in the background, reading at most `rate` bytes per second, a quarter of that while guests
    /// ask for anything. From the beginning, or from the mark and with the damage of one that ended before its end.
    /// Answered at once; `EBUSY` while one runs at another rate. Ends with [`Alert::ScrubFinished`].
    ScrubStart {
        rate: u64,
        from: ScrubMark,
        damage: Vec<ScrubDamage>,
    },
    /// Ends a scrub before its end; it can be taken up again from its mark.
    ScrubStop,
    /// How the scrub stands that runs, or the last one since the store was opened.
    ScrubStatus,
}

/// A part of a reply to a read.
#[derive(Debug, Clone)]
pub enum Segment {
    Data(Buf),
    /// So many bytes of zeros, without memory behind them.
    Zeros(u32),
}

/// What an extent of a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub kind: ExtentKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Mapped (or, in a difference, changed and now mapped).
    Data,
    /// Unmapped: reads as zeros (or, in a difference, changed to unmapped).
    Hole,
    /// In a difference: the same in both.
    Same,
}

/// How a volume or generation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    pub id: Uuid,
    pub kind: VolumeKind,
    /// The generation this continues from (for a generation: the one before it), if it is live and known by name.
    pub parent: Option<Uuid>,
    pub size: u64,
    pub state: VolumeState,
    /// Clients holding it open.
    pub open_count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    Volume,
    Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    Live,
    /// Destroyed, its space still being given back; `done` of `total` bytes of its size are walked.
    Dying {
        done: u64,
        total: u64,
    },
    /// Destroyed but shared by several children: kept, unseen, until one child is left.
    Ghost,
}

/// Space of one volume or generation, in bytes; exact as of the last checkpoint plus what changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeUsage {
    /// Size that clients see.
    pub size: u64,
    /// Data reachable from it.
    pub mapped: u64,
    /// Data and map blocks that would come back if only this were destroyed.
    pub exclusive: u64,
    /// Data reachable from it and from others.
    pub shared: u64,
}

/// Figures of the whole store, in bytes unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreStat {
    pub store: Uuid,
    pub incarnation: u64,
    pub checkpoint: u64,
    /// Size of the file or device that is managed.
    pub physical: u64,
    /// In use: data, maps, catalog, journal, superblocks, blocks awaiting release.
    pub used: u64,
    /// Allocatable for new data now.
    pub free: u64,
    /// Free but kept for checkpoints and deletions.
    pub reserved: u64,
    /// Dropped, waiting for a checkpoint to release them.
    pub unreleased: u64,
    /// Sum of the sizes of all volumes (not generations).
    pub virtual_size: u64,
    /// Held only by destroyed generations with several children.
    pub ghost_held: u64,
    pub volumes: u32,
    pub generations: u32,
    pub dying: u32,
    pub journal_used: u64,
    pub journal_size: u64,
    /// Entries in the map delta since the last checkpoint, both eras.
    pub delta_entries: u64,
    /// Blocks per device data write since the store was opened, times 100 (speed notes 5.4).
    pub blocks_per_write_x100: u64,
    /// Scattered data brought together since the store was opened (rule V12).
    pub moved: u64,
    /// Reads of guests that were answered from what had been read ahead, since the store was opened.
    pub read_ahead: u64,
    /// The error that made the store read-only, if any (rule J10).
    pub failed: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Reply {
    /// Writes, discards, flushes, closes.
    Done,
    Data(Vec<Segment>),
    Extents(Vec<Extent>),
    Opened {
        export: ExportId,
        size: u64,
        writable: bool,
        kind: VolumeKind,
    },
    /// `changed` is false where the state asked for was there already.
    Changed {
        changed: bool,
    },
    /// A snapshot: whether it was made now, and the store's time of the cut (the `now` of that turn).
    Cut {
        changed: bool,
        at: u64,
    },
    Usage {
        info: VolumeInfo,
        usage: VolumeUsage,
    },
    List(Vec<VolumeInfo>),
    Store(Box<StoreStat>),
    Scrub(Box<ScrubStatus>),
}

/// Why a request failed: what the guest is told (an errno) and what an administrator is told (words).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Linux errno.
    pub errno: i32,
    /// Names the thing, the value and what would be accepted.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (errno {})", self.message, self.errno)
    }
}

impl std::error::Error for Failure {}

/// What the shell is to do.
#[derive(Debug)]
pub enum Action {
    /// Carry out `op` and report its end with `complete(now, io, …)`. Operations may run and end in any order.
    Disk { io: IoId, op: DiskOp },
    /// Copy a journal block's image into memory that outlives the process, at once: what is acknowledged by later
    /// actions relies on it (rule J6b). Asked for only where [`crate::EngineConfig::kept`] says that there is such
    /// memory.
    Keep(KeptBlock),
    /// Answer a request.
    Reply { request: RequestId, result: Result<Reply, Failure> },
    /// The store is open (or failed to open: it then accepts no requests).
    Opened(Result<OpenReport, Failure>),
    /// Something an administrator must see: damage found, store read-only, 80 % full.
    Alert(Alert),
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenReport {
    pub store: Uuid,
    pub incarnation: u64,
    pub checkpoint: u64,
    pub records_replayed: u64,
    pub blocks_verified: u64,
    /// Journal blocks that came from memory that outlived the process before.
    pub kept_blocks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alert {
    /// A block of `volume` (or generation) at `offset` does not match its checksum, or a map node that leads there; the
    /// nil UUID where it is the store's own.
    Damage { volume: Uuid, offset: u64, message: String },
    /// The store takes no more writes until it is restarted.
    ReadOnly { message: String },
    /// Space: bytes free for new data and bytes managed.
    NearlyFull { free: u64, physical: u64 },
    /// Writers wait for space or get ENOSPC.
    Full,
    /// There is room again.
    RoomAgain { free: u64 },
    /// Everything was verified.
    ScrubFinished(Box<ScrubStatus>),
}
