//! The superblock: the root of everything a checkpoint made durable.
//!
//! Checkpoint K lies in slot K % 2, in two identical copies. The slot of K+1 is written and synced before anything that
//! K still needs is released (rule J8). The first 32 bytes are for every version of the format, past and future.

use uuid::Uuid;

use crate::error::FormatError;
use crate::field::{Field, check_seal, seal};
use crate::geometry::Geometry;
use crate::node::BLOCK_BYTES;
use crate::pointer::{EPOCH_MAX, POINTER_BYTES, Pointer};
use crate::version::{VERSION_ID_MAX, VERSION_SLOTS_MAX};

const WHAT: &str = "superblock";

/// First bytes of a store.
pub const MAGIC: [u8; 8] = *b"TANADAST";

/// Version of the format that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Features without which a store must not be opened at all.
pub const KNOWN_REQUIRED: u32 = LOST_PLACES;
/// Required feature: map nodes may have lost pointers.
pub const LOST_PLACES: u32 = 1;
/// Features without which a store may be read but not written, none so far.
pub const KNOWN_READABLE: u32 = 0;
/// Features that may be ignored.
pub const KNOWN_OPTIONAL: u32 = KEEP_SPACE;
/// Optional feature: all of the store's space was written when it was made; none of it is handed back to the medium.
pub const KEEP_SPACE: u32 = 1;

/// Largest number of a checkpoint, an incarnation or a journal block.
const COUNTER_MAX: u64 = u64::MAX >> 1;

const F_MAGIC: Field = Field::first("magic", 8);
const F_VERSION: Field = F_MAGIC.then("format_version", 4);
const F_REQUIRED: Field = F_VERSION.then("features_required", 4);
const F_READABLE: Field = F_REQUIRED.then("features_readable", 4);
const F_OPTIONAL: Field = F_READABLE.then("features_optional", 4);
const F_BLOCK_BYTES: Field = F_OPTIONAL.then("block_bytes", 4);
const F_CRC: Field = F_BLOCK_BYTES.then("crc", 4);
const F_STORE: Field = F_CRC.then("store", 16);
const F_CHECKPOINT: Field = F_STORE.then("checkpoint", 8);
const F_INCARNATION: Field = F_CHECKPOINT.then("incarnation", 8);
const F_EPOCH: Field = F_INCARNATION.then("epoch", 8);
const F_NEXT_VERSION: Field = F_EPOCH.then("next_version", 8);
const F_VERSION_SLOTS: Field = F_NEXT_VERSION.then("version_slots", 8);
const F_STORE_BLOCKS: Field = F_VERSION_SLOTS.then("store_blocks", 8);
const F_JOURNAL_BLOCKS: Field = F_STORE_BLOCKS.then("journal_blocks", 8);
const F_JOURNAL_SEQ: Field = F_JOURNAL_BLOCKS.then("journal_seq", 8);
const F_USED_BLOCKS: Field = F_JOURNAL_SEQ.then("used_blocks", 8);
const F_CATALOG: Field = F_USED_BLOCKS.then("catalog", POINTER_BYTES);
const F_SPARE: Field = F_CATALOG.then("spare", BLOCK_BYTES - F_CATALOG.end());

const _: () = assert!(F_CRC.end() == 32, "versions, features and block size stay in the first 32 bytes");
const _: () = assert!(F_SPARE.end() == BLOCK_BYTES);

pub(crate) const FIELDS: &[Field] = &[
    F_MAGIC,
    F_VERSION,
    F_REQUIRED,
    F_READABLE,
    F_OPTIONAL,
    F_BLOCK_BYTES,
    F_CRC,
    F_STORE,
    F_CHECKPOINT,
    F_INCARNATION,
    F_EPOCH,
    F_NEXT_VERSION,
    F_VERSION_SLOTS,
    F_STORE_BLOCKS,
    F_JOURNAL_BLOCKS,
    F_JOURNAL_SEQ,
    F_USED_BLOCKS,
    F_CATALOG,
    F_SPARE,
];

/// What a checkpoint says of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub features_required: u32,
    pub features_readable: u32,
    pub features_optional: u32,
    pub store: Uuid,
    /// Number of the checkpoint, from 1 on. Slot: `checkpoint % 2`.
    pub checkpoint: u64,
    /// Incarnation (rule J4) that wrote the checkpoint; 0 in a fresh store.
    pub incarnation: u64,
    /// The epoch that was running at the cut; from 1 on.
    pub epoch: u64,
    /// Id that the next version gets at the cut; from 1 on, never reused.
    pub next_version: u64,
    /// Slots of the version table that may be in use.
    pub version_slots: u64,
    pub geometry: Geometry,
    /// Number of the first journal block whose records are not in this checkpoint; from 1 on.
    pub journal_seq: u64,
    /// Bits set in all bitmap pages, the pages' own bits left out: data, nodes and the catalog.
    pub used_blocks: u64,
    /// Root of the catalog's tree.
    pub catalog: Pointer,
}

impl Superblock {
    /// A superblock for an empty store.
    pub fn fresh(store: Uuid, geometry: Geometry) -> Superblock {
        Superblock {
            features_required: 0,
            features_readable: 0,
            features_optional: 0,
            store,
            checkpoint: 1,
            incarnation: 0,
            epoch: 1,
            next_version: 1,
            version_slots: 0,
            geometry,
            journal_seq: 1,
            used_blocks: 0,
            catalog: Pointer::NULL,
        }
    }

    /// Slot that this checkpoint is kept in.
    pub fn slot(&self) -> usize {
        (self.checkpoint % 2) as usize
    }

    /// True where this program may write the store: it knows all features that matter for writing.
    pub fn may_write(&self) -> bool {
        self.features_readable & !KNOWN_READABLE == 0
    }

    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        F_MAGIC.put_bytes(&mut bytes, &MAGIC);
        F_VERSION.put(&mut bytes, u64::from(FORMAT_VERSION));
        F_REQUIRED.put(&mut bytes, u64::from(self.features_required));
        F_READABLE.put(&mut bytes, u64::from(self.features_readable));
        F_OPTIONAL.put(&mut bytes, u64::from(self.features_optional));
        F_BLOCK_BYTES.put(&mut bytes, BLOCK_BYTES as u64);
        F_STORE.put_bytes(&mut bytes, self.store.as_bytes());
        F_CHECKPOINT.put(&mut bytes, self.checkpoint);
        F_INCARNATION.put(&mut bytes, self.incarnation);
        F_EPOCH.put(&mut bytes, self.epoch);
        F_NEXT_VERSION.put(&mut bytes, self.next_version);
        F_VERSION_SLOTS.put(&mut bytes, self.version_slots);
        F_STORE_BLOCKS.put(&mut bytes, self.geometry.store_blocks());
        F_JOURNAL_BLOCKS.put(&mut bytes, self.geometry.journal_blocks());
        F_JOURNAL_SEQ.put(&mut bytes, self.journal_seq);
        F_USED_BLOCKS.put(&mut bytes, self.used_blocks);
        F_CATALOG.put_bytes(&mut bytes, &self.catalog.encode());
        seal(&mut bytes, F_CRC);
        bytes
    }

    /// Decodes one copy found in `slot`. Errors: not a store, a version, block size or required feature we do not
    /// know, wrong checksum, values out of bounds.
    pub fn decode(bytes: &[u8], slot: usize) -> Result<Superblock, FormatError> {
        FormatError::check_length(WHAT, bytes, BLOCK_BYTES)?;
        let features_optional = check_head(bytes)?;
        let bounded = |field: Field, most| field.get_most(WHAT, bytes, most);
        let from_one = |field: Field, most| match field.get_most(WHAT, bytes, most)? {
            0 => field.refuse(WHAT, 0, "1 or more"),
            value => Ok(value),
        };
        let superblock = Superblock {
            features_required: F_REQUIRED.get(bytes) as u32,
            features_readable: F_READABLE.get(bytes) as u32,
            features_optional,
            store: F_STORE.get_uuid(bytes),
            checkpoint: from_one(F_CHECKPOINT, COUNTER_MAX)?,
            incarnation: bounded(F_INCARNATION, COUNTER_MAX)?,
            epoch: from_one(F_EPOCH, EPOCH_MAX)?,
            next_version: from_one(F_NEXT_VERSION, VERSION_ID_MAX)?,
            version_slots: bounded(F_VERSION_SLOTS, VERSION_SLOTS_MAX)?,
            geometry: Geometry::new(F_STORE_BLOCKS.get(bytes), F_JOURNAL_BLOCKS.get(bytes))?,
            journal_seq: from_one(F_JOURNAL_SEQ, COUNTER_MAX)?,
            used_blocks: F_USED_BLOCKS.get(bytes),
            catalog: Pointer::decode(&F_CATALOG.get_bytes(bytes))?,
        };
        if superblock.slot() != slot {
            return F_CHECKPOINT.refuse(WHAT, superblock.checkpoint, "an even number in slot 0, an odd one in slot 1");
        }
        F_USED_BLOCKS.get_most(WHAT, bytes, superblock.geometry.allocatable_blocks())?;
        superblock.catalog.check_within(superblock.geometry.store_blocks())?;
        if features_optional & !KNOWN_OPTIONAL == 0 {
            F_SPARE.check_zero(WHAT, bytes)?;
        }
        Ok(superblock)
    }

    /// The first counter of which a store has used up more than half, with its value: such a store can be read, but is not
    /// opened for work. The other half is more than a store can use up while it is open, so that nothing has to look for
    /// the end of the numbers there.
    pub fn used_up(&self) -> Option<(&'static str, u64)> {
        let counters = [
            ("checkpoint", self.checkpoint, COUNTER_MAX),
            ("incarnation", self.incarnation, COUNTER_MAX),
            ("journal_seq", self.journal_seq, COUNTER_MAX),
            ("epoch", self.epoch, EPOCH_MAX),
            ("next_version", self.next_version, VERSION_ID_MAX),
        ];
        let over = counters.into_iter().find(|(_, value, most)| *value > most / 2);
        over.map(|(name, value, _)| (name, value))
    }

    /// The newest of the four copies, as `[slot][copy]`; `None` where none is whole. The caller compares its number
    /// with what the journal knows before serving it (rule J8).
    pub fn newest(copies: &[[Result<Superblock, FormatError>; 2]; 2]) -> Option<&Superblock> {
        copies.iter().flatten().filter_map(|copy| copy.as_ref().ok()).max_by_key(|superblock| superblock.checkpoint)
    }
}

/// Checks what comes before the checksum means anything, then the checksum. Returns the optional features.
fn check_head(bytes: &[u8]) -> Result<u32, FormatError> {
    if F_MAGIC.get_bytes::<8>(bytes) != MAGIC {
        return F_MAGIC.refuse(
            WHAT,
            F_MAGIC.get(bytes),
            "the bytes \"TANADAST\": this is no Tanada store, or it is damaged",
        );
    }
    let version = F_VERSION.get(bytes);
    if version != u64::from(FORMAT_VERSION) {
        return F_VERSION.refuse(WHAT, version, "1");
    }
    if F_BLOCK_BYTES.get(bytes) != BLOCK_BYTES as u64 {
        return F_BLOCK_BYTES.refuse(WHAT, F_BLOCK_BYTES.get(bytes), "0x1000 (4 KiB)");
    }
    check_seal(WHAT, bytes, F_CRC)?;
    let unknown = F_REQUIRED.get(bytes) as u32 & !KNOWN_REQUIRED;
    if unknown != 0 {
        return Err(FormatError::Features { set: "required", unknown, known: KNOWN_REQUIRED });
    }
    Ok(F_OPTIONAL.get(bytes) as u32)
}
