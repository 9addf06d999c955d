//! What an image may ask of us at most. An image comes from anywhere; each number is far above what the writers we know
//! produce and far below what would hurt the host.

/// Longest range of a disk in one piece or event, in bytes.
pub const RUN_BYTES: u64 = 1 << 20;

/// Virtual size of a VHD in bytes, 2040 GiB: its block addresses are 32-bit sector numbers, and every writer stops here.
pub const VHD_BYTES: u64 = 2040 << 30;

/// Blocks of a VHD: 2040 GiB of 2 MiB blocks with some room for writers that round up; 8 bytes each while it is read.
pub const VHD_BLOCKS: u64 = 1 << 21;

/// Longest block of a VHD in bytes. Everybody writes 2 MiB.
pub const VHD_BLOCK_BYTES: u64 = 64 << 20;

/// Bytes between the footer's copy and the header, and between the header and the table of blocks.
pub const VHD_GAP_BYTES: u64 = 1 << 20;

/// Clusters of a qcow2 image that we write: one bit or two each while it is written. Larger disks get larger clusters.
pub const QCOW2_CLUSTERS: u64 = 1 << 27;

/// Entries of a qcow2 image's first table: 32 MiB of it, as QEMU has it.
pub const QCOW2_L1_ENTRIES: u64 = 4 << 20;

/// Runs of clusters that are known and have not come yet, 32 bytes each: the fragmentation that a stream may have.
pub const QCOW2_RUNS: usize = 2 << 20;

/// Bytes of a qcow2 header with its extensions that are looked at.
pub const QCOW2_HEADER_BYTES: u64 = 4096;
