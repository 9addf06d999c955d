//! The storage behind an SR, as one trait. Capabilities are data; nothing outside asks `if type ==`.
//!
//! Verbs are idempotent and say what changed, so that an operation interrupted by a crash can be repeated. Names are
//! UUIDs chosen by the caller before anything is touched (they are the VDI's `location`). Sizes are bytes.

use std::path::PathBuf;

use async_trait::async_trait;
use tokio::sync::broadcast;
use uuid::Uuid;

pub mod control;
pub mod embedded;
mod keeper;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod metadata;
pub mod registry;

/// Something about the storage that an administrator must see.
pub use tanada_blockd_api::Event as Alert;

/// What a back end can do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub thin: bool,
    /// Snapshots, clones and reverts move no byte through the host.
    pub offloaded: bool,
    /// Several disks can be cut at one instant.
    pub group_snapshot: bool,
    /// Time of snapshot and clone does not depend on the size.
    pub constant_time: bool,
    pub revert_in_place: bool,
    pub exact_difference: bool,
    pub resize_online: bool,
    pub shared: bool,
}

/// The end of a verb: whether anything changed and what it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    pub changed: bool,
    pub bytes_by_host: u64,
    pub bytes_by_storage: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CutReport {
    pub moved: Moved,
    pub total_us: u64,
    /// Upper bound of the write pause that a guest could see; 0 where nobody wrote.
    pub slowest_write_us: u64,
    pub writes_observed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutPair {
    pub volume: Uuid,
    pub generation: Uuid,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFacts {
    pub id: Uuid,
    /// True for generations (immutable).
    pub is_generation: bool,
    pub parent: Option<Uuid>,
    pub size: u64,
    pub mapped: u64,
    pub exclusive: u64,
    pub shared: u64,
}

/// A line of a scan, without walking anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanEntry {
    pub id: Uuid,
    pub is_generation: bool,
    pub parent: Option<Uuid>,
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceFacts {
    /// Bytes managed, in use, and still free for new data.
    pub physical: u64,
    pub used: u64,
    pub free: u64,
    /// Sum of the sizes of all volumes.
    pub virtual_size: u64,
    /// Free, but kept so that deleting is always possible.
    pub reserved: u64,
    /// Dropped, free as soon as the storage has settled.
    pub unreleased: u64,
    /// Held only by what was deleted but has several descendants.
    pub ghost_held: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    /// False: reads as zeros now.
    pub data: bool,
}

/// How a hypervisor reaches an attached volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    NbdUnix {
        socket: PathBuf,
        export: String,
    },
    /// Secrets travel beside, never inside.
    Iscsi {
        portal: String,
        iqn: String,
        lun: u32,
        chap_user: Option<String>,
    },
}

/// Who attaches what. `token` is chosen by the caller, unguessable, and names the attachment until `detach`.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    pub token: String,
    pub target: Uuid,
    pub writable: bool,
}

/// One error for all drivers: a kind to match on, words that name the thing, and the numbers that XenAPI shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DriverError {
    pub kind: DriverErrorKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverErrorKind {
    NotFound,
    Exists,
    Busy,
    NoSpace,
    Unsupported,
    InvalidArgument,
    /// The storage cannot be reached now; the verb may or may not have taken effect: repeat it.
    Unreachable,
    Io,
}

/// Longest text that is kept with the volumes, in bytes.
pub const METADATA_BYTES_MAX: u64 = 31 << 20;

pub type DriverResult<T> = Result<T, DriverError>;

/// One attached SR.
#[async_trait]
pub trait Driver: Send + Sync {
    fn capabilities(&self) -> Capabilities;

    /// Makes a thin volume; `size` is rounded up to the back end's granularity, the real size is returned.
    async fn create(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)>;
    /// Grows (or, where the back end can, shrinks); returns the real size.
    async fn resize(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)>;
    /// Ends a volume or generation. Unknown ids succeed with `changed: false`.
    async fn destroy(&self, target: Uuid) -> DriverResult<Moved>;
    /// All pairs at one instant, or an error and none of them.
    async fn snapshot(&self, group: &[CutPair]) -> DriverResult<CutReport>;
    /// A new volume over a generation or volume.
    async fn clone_volume(&self, source: Uuid, volume: Uuid) -> DriverResult<Moved>;
    async fn revert(&self, volume: Uuid, generation: Uuid) -> DriverResult<Moved>;
    /// All changed extents from one to the other, in order of offset.
    async fn difference(&self, from: Uuid, to: Uuid) -> DriverResult<Vec<Extent>>;
    async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint>;
    /// Unknown tokens succeed with `changed: false`.
    async fn detach(&self, token: &str) -> DriverResult<Moved>;
    /// Tokens attached now.
    async fn attachments(&self) -> DriverResult<Vec<String>>;
    async fn stat(&self, target: Uuid) -> DriverResult<VolumeFacts>;
    async fn space(&self) -> DriverResult<SpaceFacts>;
    async fn scan(&self) -> DriverResult<Vec<ScanEntry>>;
    /// Returns when no deletion is pending any more, so that `space` tells the end state.
    async fn settle(&self) -> DriverResult<()>;
    /// Keeps `text` with the volumes, durably and in place of what was kept before: whoever attaches the storage later
    /// finds it. At most [`METADATA_BYTES_MAX`].
    async fn put_metadata(&self, text: &[u8]) -> DriverResult<()>;
    /// What [`Driver::put_metadata`] kept last; `None` where nothing was kept.
    async fn metadata(&self) -> DriverResult<Option<Vec<u8>>>;
    /// Alerts from now on.
    fn alerts(&self) -> broadcast::Receiver<Alert>;
}
