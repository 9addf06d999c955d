//! qcow2: images that are written once, out; images of any writer whose tables come before what they point at, in.
//!
//! ```text
//! header | refcount table | refcount blocks | L1 | L2 tables | data clusters, in the order of the disk
//! ```
//! All numbers are big endian. L1 has the place of each L2 table, an L2 table the place of each of its clusters; a place
//! of 0 is a cluster that is not there: zero, or the backing file's. Bit 63 of an entry says that nobody else uses its
//! cluster (always so here), bit 62 of an L2 entry that the cluster is compressed, bit 0 that it is zero.
//!
//! A delta is an overlay without the name of its backing file, as XenServer's exports are; whoever uses it says what lies
//! below (`qemu-img rebase -u`). Ours have a header extension that names the base by its UUID, so that our own import
//! knows what it reads. Other readers pass over it.

mod header;
mod read;
mod write;

pub use header::Header;
pub use read::Qcow2Reader;
pub use write::{cluster_bytes, plan};

/// The cluster's reference count is exactly one.
const COPIED: u64 = 1 << 63;
/// The L2 entry is of a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros.
const ZERO: u64 = 1;
/// Bits 9 to 55: where a table or a cluster is.
const PLACE: u64 = (1 << 56) - (1 << 9);
