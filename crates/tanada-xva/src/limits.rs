//! What an archive may ask of us at most. An archive comes from anywhere; each number is far above what XenServer,
//! XCP-ng and Xen Orchestra write and far below what would hurt the host.

/// Length of a full disk chunk in bytes; every known writer uses it, no reader accepts more.
pub const CHUNK_BYTES: usize = 1 << 20;

/// What `ova.xml` may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OvaBounds {
    pub xml_bytes: u64,
    /// XML elements.
    pub elements: usize,
    /// Objects of any class.
    pub objects: usize,
}

/// In an archive with disks: one machine takes some 100 KiB.
pub const OVA: OvaBounds = OvaBounds { xml_bytes: 16 << 20, elements: 400_000, objects: 4096 };

/// In an archive of records alone, which may hold many machines and all of their snapshots; each takes some 20 KiB and ten
/// objects.
pub const METADATA: OvaBounds = OvaBounds { xml_bytes: 96 << 20, elements: 3_000_000, objects: 50_000 };

/// In `generations.xml`: the snapshots of one machine, which may be a thousand.
pub const GENERATIONS: OvaBounds = METADATA;

/// Disks of older states in one archive: a thousand snapshots of a machine with sixteen disks.
pub const GENERATION_DISKS: usize = 16_384;

/// Nesting of values in `ova.xml`; a record of maps of sets needs seven.
pub const OVA_DEPTH: usize = 32;

/// Disks in one archive. A machine has at most 255 block devices.
pub const DISKS: usize = 255;

/// Virtual size of one disk in bytes: what eight counter digits of 1 MiB chunks can address (about 95 TiB).
pub const DISK_BYTES: u64 = 99_999_999 * CHUNK_BYTES as u64;

/// Members that carry no disk bytes (keep-alive fillers), for each disk. One is sent every five seconds of scanning.
pub const KEEP_ALIVES: u64 = 100_000;

/// Bytes read after the end of the tar stream to reach the end of the compressed stream (tar pads to 10 KiB).
pub const TRAILER_BYTES: u64 = 1 << 20;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(crate::tar::BLOCK));
const _: () =
    assert!(OVA.xml_bytes < 1 << 33 && METADATA.xml_bytes < 1 << 33, "a tar size field holds eleven octal digits");
