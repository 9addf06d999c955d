//! What an archive may ask of us at most. An archive comes from anywhere; each number is far above what XenServer,
//! XCP-ng and Xen Orchestra write and far below what would hurt the host.

/// Length of a full disk chunk in bytes; every known writer uses it, no reader accepts more.
pub const CHUNK_BYTES: usize = 1 << 20;

/// `ova.xml` in bytes. A machine with its disks, networks and snapshots takes some 100 KiB.
pub const OVA_XML_BYTES: u64 = 16 << 20;

/// XML elements in `ova.xml`.
pub const OVA_ELEMENTS: usize = 400_000;

/// Nesting of values in `ova.xml`; a record of maps of sets needs seven.
pub const OVA_DEPTH: usize = 32;

/// Objects in `ova.xml`, of any class.
pub const OBJECTS: usize = 4096;

/// Disks in one archive. A machine has at most 255 block devices.
pub const DISKS: usize = 255;

/// Virtual size of one disk in bytes: what eight counter digits of 1 MiB chunks can address (about 95 TiB).
pub const DISK_BYTES: u64 = 99_999_999 * CHUNK_BYTES as u64;

/// Members that carry no disk bytes (keep-alive fillers), for each disk. One is sent every five seconds of scanning.
pub const KEEP_ALIVES: u64 = 100_000;

/// Bytes read after the end of the tar stream to reach the end of the compressed stream (tar pads to 10 KiB).
pub const TRAILER_BYTES: u64 = 1 << 20;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(crate::tar::BLOCK));
const _: () = assert!(OVA_XML_BYTES < 1 << 33, "a tar size field holds eleven octal digits");
