//! The record of a version: a head (what a volume reads and writes) or a generation (what a snapshot kept).

use uuid::Uuid;

use crate::error::FormatError;
use crate::field::Field;
use crate::node::{BLOCK_BYTES, TREE_BLOCKS};
use crate::pointer::{EPOCH_MAX, POINTER_BYTES, Pointer};

const WHAT: &str = "version record";

/// Bytes of a version record.
pub const VERSION_BYTES: usize = 256;

/// Largest version id: what six bytes of a journal record hold.
pub const VERSION_ID_MAX: u64 = (1 << 48) - 1;

/// Records the version table can hold.
pub const VERSION_SLOTS_MAX: u64 = 1 << 20;

/// Largest volume: what a tree maps, 4 PiB.
pub const VOLUME_BYTES_MAX: u64 = TREE_BLOCKS * BLOCK_BYTES as u64;

const F_ID: Field = Field::first("id", 8);
const F_PARENT: Field = F_ID.then("parent", 8);
const F_UUID: Field = F_PARENT.then("uuid", 16);
const F_ENDED: Field = F_UUID.then("ended", 8);
const F_SIZE: Field = F_ENDED.then("size", 8);
const F_TREE: Field = F_SIZE.then("tree", POINTER_BYTES);
const F_CURSOR: Field = F_TREE.then("cursor", 8);
const F_INSTANCE: Field = F_CURSOR.then("instance", 8);
const F_KIND: Field = F_INSTANCE.then("kind", 1);
const F_STATE: Field = F_KIND.then("state", 1);
const F_FLAGS: Field = F_STATE.then("flags", 2);
const F_SPARE: Field = F_FLAGS.then("spare", VERSION_BYTES - F_FLAGS.end());

pub(crate) const FIELDS: &[Field] =
    &[F_ID, F_PARENT, F_UUID, F_ENDED, F_SIZE, F_TREE, F_CURSOR, F_INSTANCE, F_KIND, F_STATE, F_FLAGS, F_SPARE];

const FLAG_HIDDEN: u64 = 1;

const _: () = assert!(F_SPARE.end() == VERSION_BYTES && BLOCK_BYTES.is_multiple_of(VERSION_BYTES));

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VersionKind {
    /// What a volume reads and writes; has no children.
    Head,
    /// Immutable.
    Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VersionState {
    Live,
    /// Destroyed; a walk gives its blocks back, from the cursor on.
    Dying,
    /// Destroyed, kept because several children share it.
    Ghost,
}

/// A version as a checkpoint keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// From 1 on, never reused.
    pub id: u64,
    /// Id of the generation this continues from; 0 for none.
    pub parent: u64,
    pub uuid: Uuid,
    /// S(v): the epoch that ended when a generation was taken; 0 for a head.
    pub ended: u64,
    /// Bytes that clients see, a multiple of 4 KiB.
    pub size: u64,
    /// Root of the map (level 4); null where nothing is mapped.
    pub tree: Pointer,
    /// Rule V6: places before this block number are walked. 0 unless dying.
    pub cursor: u64,
    /// Moves when the head under a volume is replaced (rule V9).
    pub instance: u64,
    pub kind: VersionKind,
    pub state: VersionState,
    /// Made by the store for itself; not listed.
    pub hidden: bool,
}

impl Version {
    pub fn encode(&self) -> [u8; VERSION_BYTES] {
        let mut bytes = [0; VERSION_BYTES];
        F_ID.put(&mut bytes, self.id);
        F_PARENT.put(&mut bytes, self.parent);
        F_UUID.put_bytes(&mut bytes, self.uuid.as_bytes());
        F_ENDED.put(&mut bytes, self.ended);
        F_SIZE.put(&mut bytes, self.size);
        F_TREE.put_bytes(&mut bytes, &self.tree.encode());
        F_CURSOR.put(&mut bytes, self.cursor);
        F_INSTANCE.put(&mut bytes, self.instance);
        F_KIND.put(&mut bytes, self.kind as u64 + 1);
        F_STATE.put(&mut bytes, self.state as u64);
        F_FLAGS.put(&mut bytes, if self.hidden { FLAG_HIDDEN } else { 0 });
        bytes
    }

    /// `None` for a free slot, which is all zeros. Errors: values out of bounds or in contradiction.
    pub fn decode(bytes: &[u8], store_blocks: u64) -> Result<Option<Version>, FormatError> {
        FormatError::check_length(WHAT, bytes, VERSION_BYTES)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bounded = |field: Field, most| field.get_most(WHAT, bytes, most);
        let kind = match F_KIND.get(bytes) {
            1 => VersionKind::Head,
            2 => VersionKind::Generation,
            other => return F_KIND.refuse(WHAT, other, "1 (head) or 2 (generation)"),
        };
        let state = match F_STATE.get(bytes) {
            0 => VersionState::Live,
            1 => VersionState::Dying,
            2 => VersionState::Ghost,
            other => return F_STATE.refuse(WHAT, other, "0 (live), 1 (dying) or 2 (ghost)"),
        };
        F_SPARE.check_zero(WHAT, bytes)?;
        let version = Version {
            id: bounded(F_ID, VERSION_ID_MAX)?,
            parent: bounded(F_PARENT, VERSION_ID_MAX)?,
            uuid: F_UUID.get_uuid(bytes),
            ended: bounded(F_ENDED, EPOCH_MAX)?,
            size: bounded(F_SIZE, VOLUME_BYTES_MAX)?,
            tree: Pointer::decode(&F_TREE.get_bytes(bytes))?,
            cursor: bounded(F_CURSOR, TREE_BLOCKS)?,
            instance: F_INSTANCE.get(bytes),
            kind,
            state,
            hidden: bounded(F_FLAGS, FLAG_HIDDEN)? & FLAG_HIDDEN != 0,
        };
        version.tree.check_within(store_blocks)?;
        version.check().map(|()| Some(version))
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.id == 0 {
            return F_ID.refuse(WHAT, 0, "1 or more");
        }
        if self.parent == self.id {
            return F_PARENT.refuse(WHAT, self.parent, "the id of another version, or 0 for none");
        }
        if !self.size.is_multiple_of(BLOCK_BYTES as u64) {
            return F_SIZE.refuse(WHAT, self.size, "a multiple of 0x1000 (4 KiB)");
        }
        if (self.kind == VersionKind::Head) != (self.ended == 0) {
            return F_ENDED.refuse(WHAT, self.ended, "0 for a head, 1 or more for a generation");
        }
        if self.kind == VersionKind::Head && self.state == VersionState::Ghost {
            return F_STATE.refuse(WHAT, 2, "0 (live) or 1 (dying) for a head");
        }
        if self.cursor != 0 && self.state != VersionState::Dying {
            return F_CURSOR.refuse(WHAT, self.cursor, "0 unless the version is dying");
        }
        Ok(())
    }
}
