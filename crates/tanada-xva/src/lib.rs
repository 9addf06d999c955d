//! XVA, the archive in which XenServer and XCP-ng carry a whole virtual machine: both ways, as a stream.
//!
//! ```text
//! [gzip | zstd] tar:  ova.xml                     what the machine is: version block and objects with their records
//!                     Ref:3/00000000              first MiB of the first disk
//!                     Ref:3/00000000.xxhash       its checksum
//!                     Ref:3/00000007 ...          counters jump over chunks that are all zero
//!                     Ref:4/00000000 ...          disks follow each other in the byte order of their ids
//!                     two zero blocks
//! ```
//!
//! Nothing here knows a socket or a runtime: everything works over [`std::io::Read`] and [`std::io::Write`] on whatever
//! thread the caller provides, holds at most one chunk (1 MiB) at a time and treats what it reads as hostile.
//!
//! | module | |
//! |---|---|
//! | [`tar`] | the 512-byte headers, strictly |
//! | [`ova`] | `ova.xml` and the records in it |
//! | [`writer`] | an archive from records and disk contents |
//! | [`reader`] | records and disk contents from an archive |
//! | [`metadata`] | archives of records alone |
//! | [`generations`] | the machine's snapshots behind it, an addition of ours |
//! | [`delta`] | what differs in a chunk |
//! | [`checksum`] | the two checksum members |
//! | [`compress`] | the layer around the tar stream, detected by content |
//! | [`limits`] | every bound, in one place |

pub mod checksum;
pub mod compress;
pub mod delta;
mod error;
pub mod generations;
pub mod limits;
pub mod metadata;
pub mod ova;
pub mod reader;
pub mod tar;
pub mod writer;

pub use checksum::ChecksumKind;
pub use compress::Compression;
pub use delta::Delta;
pub use error::{XvaError, XvaResult};
pub use generations::{DeltaPlan, Generations};
pub use ova::{Object, Ova, Version};
pub use reader::{ArchiveReader, DiskEvent, Verify};
pub use writer::{ArchiveWriter, NextChunk, is_zero};

/// One disk of an archive: its id in `ova.xml` and its virtual size in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    pub id: String,
    pub size: u64,
}
