//! What the shell decides about an engine before it opens a store.

use tanada_format::version::VERSION_SLOTS_MAX;
use tanada_units::MIB;

use crate::journal::kept::KeptMemory;

/// Sizes and triggers. [`EngineConfig::new`] gives the values meant for production; tests shrink them.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Bytes of the device or file as it is now.
    pub device_bytes: u64,
    /// True where the device is a file that [`tanada_disk::DiskOp::Grow`] may extend.
    pub device_can_grow: bool,
    /// Memory budget in bytes: delta, node cache, bitmap pages, buffers.
    pub memory_bytes: u64,
    /// Bitmap pages kept in memory, with twice 4 KiB each; more only while a checkpoint or a write needs them.
    pub bitmap_pages_max: u64,
    /// Source of hidden volumes' ids and of the incarnation's salt. Take it from the system's random source;
    /// the same seed and the same events give the same actions.
    pub seed: u64,
    /// A checkpoint starts when the delta holds this many entries ...
    pub checkpoint_entries: u64,
    /// ... or the journal is filled to this many per cent ...
    pub checkpoint_journal_percent: u64,
    /// ... or this many microseconds have passed since the last one, and something changed.
    pub checkpoint_micros: u64,
    /// A checkpoint that merges at least this many delta nodes is stretched over half of the time the next one has.
    pub paced_nodes_min: u64,
    /// The store syncs by itself after this many bytes of unsynced data (rule J3) ...
    pub sync_bytes: u64,
    /// ... or this many microseconds after the first unsynced record.
    pub sync_micros: u64,
    /// Blocks kept for checkpoints and deletions (store notes section 6), in bytes.
    pub reserve_bytes: u64,
    /// Versions at most: volumes, generations, and those that are being deleted. No more than the version table holds.
    pub versions_max: u64,
    /// Blocks that one deletion walk frees at most between two checkpoints.
    pub walk_blocks: u64,
    /// Segments of 4 MiB that are filled with zeros ahead of use, for files that are sparse; 0 for none.
    pub prepare_segments: usize,
    /// Scattered blocks that streams of reads meet are brought together, at most so many bytes a second (rule V12);
    /// 0: never. Only what a volume wrote after its last generation can be moved.
    pub relayout_bytes_per_second: u64,
    /// A stream is so many bytes read one after another ...
    pub relayout_stream_bytes: u64,
    /// ... by reads of at least so many blocks.
    pub relayout_read_blocks: u64,
    /// Reads of a stream may overtake each other by so many bytes.
    pub stream_reordered_bytes: u64,
    /// A guest that has read so many bytes one after another ...
    pub ahead_stream_bytes: u64,
    /// ... has what is next read ahead, so many bytes; 0: never.
    pub ahead_bytes: u64,
    /// Memory that outlives the process, for journal blocks that are not written yet (J6b); `None`: writes are
    /// acknowledged when their journal block is written (J6a).
    pub kept: Option<KeptMemory>,
}

impl EngineConfig {
    /// Values for production, for a device of `device_bytes`.
    pub fn new(device_bytes: u64) -> EngineConfig {
        EngineConfig {
            device_bytes,
            device_can_grow: false,
            memory_bytes: 256 * MIB,
            bitmap_pages_max: 24 * MIB / 8300,
            seed: 0,
            checkpoint_entries: 700_000,
            checkpoint_journal_percent: 45,
            checkpoint_micros: 60_000_000,
            paced_nodes_min: 512,
            sync_bytes: 64 * MIB,
            sync_micros: 1_000_000,
            reserve_bytes: 32 * MIB,
            versions_max: VERSION_SLOTS_MAX,
            walk_blocks: 1_000_000,
            prepare_segments: 0,
            relayout_bytes_per_second: 256 * MIB,
            relayout_stream_bytes: MIB,
            relayout_read_blocks: 16,
            stream_reordered_bytes: 2 * MIB,
            ahead_stream_bytes: MIB / 2,
            ahead_bytes: MIB,
            kept: None,
        }
    }
}
