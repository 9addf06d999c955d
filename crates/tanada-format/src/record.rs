//! What a journal block holds: records, back to back, each starting with its kind.
//!
//! ```text
//!   map        1 | blocks-1 | head 6 | place 6 | block 6 | crc 4 x blocks      24 bytes for one block, 4 more for each
//!   unmap      2 | 0        | head 6 | place 6 | blocks 6                      20
//!   snapshot   3 | count    | first id 6 | epoch 8 | flags 1 | 0 x 7 | (head 8, uuid 16) x count      24 + 24 each
//!   create     4 | 0        | head 6 | size 8 | uuid 16                        32
//!   clone      5 | 0        | head 6 | generation 6 | 0 0 | uuid 16            32
//!   revert     6 | 0        | new head 6 | generation 6 | old head 6           20
//!   destroy    7 | 0        | version 6                                        8
//!   resize     8 | 0        | head 6 | size 8                                  16
//!   grow       9 | 0        | 0 x 6 | store blocks 8                           16
//!   recovered 10 | 0        | records 6 | seq 8                                16
//! ```
//! Records name versions by their ids, which are never reused. No record carries a birth: it follows from the epoch at
//! its place in the journal, which moves by one at each snapshot record (rule V1).

use uuid::Uuid;

use crate::error::FormatError;
use crate::journal::RECORDS_BYTES;
use crate::node::{BLOCK_BYTES, TREE_BLOCKS};
use crate::pointer::{BLOCK_MAX, EPOCH_MAX};
use crate::version::{VERSION_ID_MAX, VOLUME_BYTES_MAX};

const WHAT: &str = "journal record";

/// Blocks that one map record covers at most.
pub const MAP_BLOCKS_MAX: usize = 256;

/// Volumes that one snapshot record cuts at most.
pub const GROUP_MAX: usize = 128;

const MAP_HEAD: usize = 20;
const SNAPSHOT_HEAD: usize = 24;
const MEMBER: usize = 24;

const _: () = assert!(MAP_HEAD + 4 * MAP_BLOCKS_MAX <= RECORDS_BYTES);
const _: () = assert!(SNAPSHOT_HEAD + MEMBER * GROUP_MAX <= RECORDS_BYTES);

/// One volume of a group snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The head that is cut.
    pub head: u64,
    /// Name of its new generation.
    pub uuid: Uuid,
}

/// Something that happened to the store, in the order of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Places `place`, `place + 1` ... of `head` are at device blocks `block`, `block + 1` ..., with these checksums.
    Map { head: u64, place: u64, block: u64, crcs: Vec<u32> },
    /// `blocks` places from `place` on read as zeros.
    Unmap { head: u64, place: u64, blocks: u64 },
    /// The epoch `ended` is over; member n's generation gets the id `first_id + n`.
    Snapshot { first_id: u64, ended: u64, hidden: bool, members: Vec<Member> },
    /// A new empty volume of `size` bytes.
    Create { head: u64, size: u64, uuid: Uuid },
    /// A new volume over a generation, of its size.
    Clone { head: u64, generation: u64, uuid: Uuid },
    /// Under the volume of `old_head`, a new head continues from `generation`; the old one is dying.
    Revert { head: u64, generation: u64, old_head: u64 },
    /// The version is destroyed.
    Destroy { version: u64 },
    /// The head has a new size in bytes. What a smaller one cuts off is unmapped by records of its own.
    Resize { head: u64, size: u64 },
    /// The store manages so many blocks from now on.
    Grow { store_blocks: u64 },
    /// Rule J4: of all blocks before this one, those up to `seq` count, and of block `seq` the first `records` records.
    Recovered { seq: u64, records: u64 },
}

impl Record {
    /// Bytes it takes in a block.
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Record::Map { crcs, .. } => MAP_HEAD + 4 * crcs.len(),
            Record::Snapshot { members, .. } => SNAPSHOT_HEAD + MEMBER * members.len(),
            Record::Create { .. } | Record::Clone { .. } => 32,
            Record::Unmap { .. } | Record::Revert { .. } => 20,
            Record::Resize { .. } | Record::Grow { .. } | Record::Recovered { .. } => 16,
            Record::Destroy { .. } => 8,
        }
    }

    /// Appends the record. Panics on numbers that do not fit: mistakes of the caller.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        match self {
            Record::Map { head, place, block, crcs } => {
                assert!((1..=MAP_BLOCKS_MAX).contains(&crcs.len()), "a map record of {} blocks", crcs.len());
                begin(bytes, 1, (crcs.len() - 1) as u8, *head);
                put(bytes, *place, 6);
                put(bytes, *block, 6);
                crcs.iter().for_each(|crc| bytes.extend_from_slice(&crc.to_le_bytes()));
            }
            Record::Unmap { head, place, blocks } => {
                begin(bytes, 2, 0, *head);
                put(bytes, *place, 6);
                put(bytes, *blocks, 6);
            }
            Record::Snapshot { first_id, ended, hidden, members } => {
                assert!((1..=GROUP_MAX).contains(&members.len()), "a snapshot record of {} volumes", members.len());
                begin(bytes, 3, members.len() as u8, *first_id);
                put(bytes, *ended, 8);
                put(bytes, u64::from(*hidden), 8);
                for member in members {
                    put(bytes, member.head, 8);
                    bytes.extend_from_slice(member.uuid.as_bytes());
                }
            }
            Record::Create { head, size, uuid } => {
                begin(bytes, 4, 0, *head);
                put(bytes, *size, 8);
                bytes.extend_from_slice(uuid.as_bytes());
            }
            Record::Clone { head, generation, uuid } => {
                begin(bytes, 5, 0, *head);
                put(bytes, *generation, 8);
                bytes.extend_from_slice(uuid.as_bytes());
            }
            Record::Revert { head, generation, old_head } => {
                begin(bytes, 6, 0, *head);
                put(bytes, *generation, 6);
                put(bytes, *old_head, 6);
            }
            Record::Destroy { version } => begin(bytes, 7, 0, *version),
            Record::Resize { head, size } => {
                begin(bytes, 8, 0, *head);
                put(bytes, *size, 8);
            }
            Record::Grow { store_blocks } => {
                begin(bytes, 9, 0, 0);
                put(bytes, *store_blocks, 8);
            }
            Record::Recovered { seq, records } => {
                begin(bytes, 10, 0, *records);
                put(bytes, *seq, 8);
            }
        }
        debug_assert_eq!(bytes.len() - start, self.encoded_bytes());
    }

    /// Decodes the record that `bytes` starts with; also returns its length.
    pub fn decode(bytes: &[u8]) -> Result<(Record, usize), FormatError> {
        let mut reader = Reader { rest: bytes };
        let (kind, small, first) = (reader.take(1)?, reader.take(1)?, reader.take(6)?);
        let record = match kind {
            1 => reader.map(first, small as usize + 1)?,
            2 => {
                let (place, blocks) = (reader.most("place", 6, TREE_BLOCKS - 1)?, reader.take(6)?);
                from_one_to("blocks", blocks, TREE_BLOCKS - place)?;
                Record::Unmap { head: id("head", first)?, place, blocks }
            }
            3 => reader.snapshot(first, small as usize)?,
            4 => Record::Create { head: id("head", first)?, size: reader.size()?, uuid: reader.uuid()? },
            5 => Record::Clone {
                head: id("head", first)?,
                generation: id("generation", reader.take(8)?)?,
                uuid: reader.uuid()?,
            },
            6 => Record::Revert {
                head: id("head", first)?,
                generation: id("generation", reader.take(6)?)?,
                old_head: id("old_head", reader.take(6)?)?,
            },
            7 => Record::Destroy { version: id("version", first)? },
            8 => Record::Resize { head: id("head", first)?, size: reader.size()? },
            9 => Record::Grow { store_blocks: reader.most("store_blocks", 8, BLOCK_MAX + 1)? },
            10 => Record::Recovered { seq: reader.most("seq", 8, u64::MAX >> 1)?, records: first },
            other => return refuse("kind", other, "1 to 10"),
        };
        if small != 0 && !matches!(kind, 1 | 3) {
            return refuse("second byte", small, "0");
        }
        Ok((record, bytes.len() - reader.rest.len()))
    }
}

fn begin(bytes: &mut Vec<u8>, kind: u8, small: u8, first: u64) {
    bytes.extend_from_slice(&[kind, small]);
    put(bytes, first, 6);
}

fn put(bytes: &mut Vec<u8>, value: u64, length: usize) {
    assert!(length == 8 || value >> (8 * length) == 0, "{value} does not fit {length} bytes of a journal record");
    bytes.extend_from_slice(&value.to_le_bytes()[..length]);
}

fn refuse<T>(field: &'static str, value: u64, accepted: &'static str) -> Result<T, FormatError> {
    Err(FormatError::Field { what: WHAT, field, value, accepted })
}

fn from_one_to(field: &'static str, value: u64, most: u64) -> Result<u64, FormatError> {
    match value {
        0 => refuse(field, 0, "1 or more"),
        value if value > most => Err(FormatError::TooLarge { what: WHAT, field, value, most }),
        value => Ok(value),
    }
}

fn id(field: &'static str, value: u64) -> Result<u64, FormatError> {
    from_one_to(field, value, VERSION_ID_MAX)
}

/// What is left of a record.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn bytes(&mut self, length: usize) -> Result<&[u8], FormatError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return Err(FormatError::Length { what: WHAT, found: self.rest.len(), needed: length });
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn take(&mut self, length: usize) -> Result<u64, FormatError> {
        let mut wide = [0; 8];
        wide[..length].copy_from_slice(self.bytes(length)?);
        Ok(u64::from_le_bytes(wide))
    }

    fn most(&mut self, field: &'static str, length: usize, most: u64) -> Result<u64, FormatError> {
        let value = self.take(length)?;
        if value <= most { Ok(value) } else { Err(FormatError::TooLarge { what: WHAT, field, value, most }) }
    }

    fn uuid(&mut self) -> Result<Uuid, FormatError> {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(self.bytes(16)?);
        Ok(Uuid::from_bytes(bytes))
    }

    fn size(&mut self) -> Result<u64, FormatError> {
        let size = self.most("size", 8, VOLUME_BYTES_MAX)?;
        if size.is_multiple_of(BLOCK_BYTES as u64) {
            Ok(size)
        } else {
            refuse("size", size, "a multiple of 0x1000 (4 KiB)")
        }
    }

    fn map(&mut self, head: u64, count: usize) -> Result<Record, FormatError> {
        let place = self.most("place", 6, TREE_BLOCKS - count as u64)?;
        let block = from_one_to("block", self.take(6)?, BLOCK_MAX + 1 - count as u64)?;
        let crcs = self.bytes(4 * count)?.as_chunks::<4>().0.iter().map(|crc| u32::from_le_bytes(*crc)).collect();
        Ok(Record::Map { head: id("head", head)?, place, block, crcs })
    }

    fn snapshot(&mut self, first_id: u64, count: usize) -> Result<Record, FormatError> {
        from_one_to("count", count as u64, GROUP_MAX as u64)?;
        from_one_to("first_id", first_id, VERSION_ID_MAX - count as u64)?;
        let ended = from_one_to("ended", self.take(8)?, EPOCH_MAX - 1)?;
        let hidden = self.most("flags", 8, 1)? == 1;
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            members.push(Member { head: id("head", self.take(8)?)?, uuid: self.uuid()? });
        }
        Ok(Record::Snapshot { first_id, ended, hidden, members })
    }
}
