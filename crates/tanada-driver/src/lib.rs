//! The storage behind an SR, as one trait. Capabilities are data; nothing outside asks `if type ==`.
//!
//! Verbs are idempotent and say what changed, so that an operation interrupted by a crash can be repeated. Names are
//! UUIDs chosen by the caller before anything is touched (they are the VDI's `location`). Sizes are bytes.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::PathBuf;

use async_trait::async_trait;
use tokio::sync::broadcast;
use uuid::Uuid;

pub mod bridge;
pub mod control;
pub mod embedded;
mod error;
mod keeper;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod metadata;
mod qsd;
pub mod registry;
mod secret;

pub use error::{DriverError, DriverErrorKind};
pub use secret::Secret;

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
    /// The storage makes a clone by copying in the background: it is usable at once, but takes time and room.
    pub clone_is_copy: bool,
}

/// A volume to be made. Names are for people who look at the storage itself and may be anything, or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateRequest {
    pub volume: Uuid,
    /// Bytes; rounded up to the back end's granularity.
    pub size: u64,
    pub name_label: String,
    /// A volume of the same machine, to be beside this one: what lies together can be cut together. A wish: one that is
    /// not known, or has no room beside it, is no reason to fail.
    pub near: Option<Uuid>,
    /// The machine that the volume is for, where it is known.
    pub vm: Option<Uuid>,
    /// Keys of `sm_config` that the back end declares.
    pub options: BTreeMap<String, String>,
}

impl CreateRequest {
    pub fn new(volume: Uuid, size: u64) -> CreateRequest {
        CreateRequest { volume, size, ..CreateRequest::default() }
    }
}

/// A volume to be made over another one's content; the fields are as in [`CreateRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloneRequest {
    /// A generation or a volume.
    pub source: Uuid,
    pub volume: Uuid,
    pub name_label: String,
    pub near: Option<Uuid>,
    pub vm: Option<Uuid>,
    pub options: BTreeMap<String, String>,
}

impl CloneRequest {
    pub fn new(source: Uuid, volume: Uuid) -> CloneRequest {
        CloneRequest { source, volume, ..CloneRequest::default() }
    }
}

/// The end of a verb: whether anything changed and what it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    pub changed: bool,
    pub bytes_by_host: u64,
    pub bytes_by_storage: u64,
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Moved) {
        self.changed |= other.changed;
        self.bytes_by_host += other.bytes_by_host;
        self.bytes_by_storage += other.bytes_by_storage;
    }
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
    /// Where the storage keeps one.
    pub name_label: Option<String>,
}

/// A line of a scan, without walking anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanEntry {
    pub id: Uuid,
    pub is_generation: bool,
    pub parent: Option<Uuid>,
    pub size: u64,
    /// Where the storage keeps one.
    pub name_label: Option<String>,
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
    Iscsi {
        /// `host:port`, the best first.
        portals: Vec<String>,
        iqn: String,
        lun: u32,
        /// IQN of whoever logs in; the storage lets nobody else in.
        initiator: String,
        chap: Option<Chap>,
    },
}

/// One-way CHAP: the initiator proves itself to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chap {
    pub user: String,
    pub secret: Secret,
}

/// Who attaches what. `token` is chosen by the caller, unguessable, and names the attachment until `detach`.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    pub token: String,
    pub target: Uuid,
    pub writable: bool,
    /// IQN of whoever will log in, for storage that is reached over iSCSI: one for each machine, and one for the host's
    /// own transfers.
    pub initiator: String,
}

/// Longest text that is kept with the volumes, in bytes.
pub const METADATA_BYTES_MAX: u64 = 31 << 20;

pub type DriverResult<T> = Result<T, DriverError>;

/// One attached SR.
#[async_trait]
pub trait Driver: Send + Sync {
    fn capabilities(&self) -> Capabilities;

    /// Makes a thin volume; the size is rounded up to the back end's granularity, the real size is returned.
    async fn create(&self, request: &CreateRequest) -> DriverResult<(u64, Moved)>;
    /// Grows (or, where the back end can, shrinks); returns the real size.
    async fn resize(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)>;
    /// Ends a volume or generation. Unknown ids succeed with `changed: false`.
    async fn destroy(&self, target: Uuid) -> DriverResult<Moved>;
    /// All pairs at one instant, or an error and none of them. [`DriverErrorKind::NotAtomic`] where the storage cannot cut
    /// these volumes together: the caller may then hold the writers and cut one by one.
    async fn snapshot(&self, group: &[CutPair]) -> DriverResult<CutReport>;
    /// A new volume over a generation or volume.
    async fn clone_volume(&self, request: &CloneRequest) -> DriverResult<Moved>;
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
