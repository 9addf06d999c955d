//! A journal block: 4 KiB, self-contained, never rewritten while it counts (rule J5).
//!
//! Numbers of blocks in the ring are consecutive, incarnations never decrease (J4). Each block says up to which number
//! the journal was known durable when it was written (J3) and which checkpoint was the last durable one (J8).
//! The first block that a new incarnation writes begins with a [`Record::Recovered`].

use uuid::Uuid;

use crate::error::FormatError;
use crate::field::{Field, check_seal, seal};
use crate::node::BLOCK_BYTES;
use crate::record::Record;

const WHAT: &str = "journal block";

/// First bytes of a journal block.
pub const JOURNAL_MAGIC: [u8; 8] = *b"TANADAJB";

const F_MAGIC: Field = Field::first("magic", 8);
const F_CRC: Field = F_MAGIC.then("crc", 4);
const F_COUNT: Field = F_CRC.then("count", 2);
const F_USED: Field = F_COUNT.then("used", 2);
const F_STORE: Field = F_USED.then("store", 16);
const F_INCARNATION: Field = F_STORE.then("incarnation", 8);
const F_SEQ: Field = F_INCARNATION.then("seq", 8);
const F_DURABLE_SEQ: Field = F_SEQ.then("durable_seq", 8);
const F_CHECKPOINT: Field = F_DURABLE_SEQ.then("checkpoint", 8);
const F_RECORDS: Field = F_CHECKPOINT.then("records", BLOCK_BYTES - F_CHECKPOINT.end());

pub(crate) const FIELDS: &[Field] =
    &[F_MAGIC, F_CRC, F_COUNT, F_USED, F_STORE, F_INCARNATION, F_SEQ, F_DURABLE_SEQ, F_CHECKPOINT, F_RECORDS];

/// Bytes for records in a block.
pub const RECORDS_BYTES: usize = F_RECORDS.bytes;

const _: () = assert!(F_RECORDS.at == 64 && F_RECORDS.end() == BLOCK_BYTES);

/// What a journal block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    pub store: Uuid,
    /// Which opening of the store wrote it; from 1 on.
    pub incarnation: u64,
    /// Number in the journal, from 1 on; place in the ring by [`crate::Geometry::journal_block`].
    pub seq: u64,
    /// Blocks up to this number, and the data they name, were durable when this one was written.
    pub durable_seq: u64,
    /// Last checkpoint known durable when this one was written.
    pub checkpoint: u64,
}

/// A decoded block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalBlock {
    pub header: JournalHeader,
    pub records: Vec<Record>,
}

/// Collects records for one block.
#[derive(Debug, Clone, Default)]
pub struct JournalBuilder {
    records: Vec<u8>,
    count: u16,
}

impl JournalBuilder {
    pub fn new() -> JournalBuilder {
        JournalBuilder::default()
    }

    /// Records so far.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes left for records; see [`Record::encoded_bytes`].
    pub fn room(&self) -> usize {
        RECORDS_BYTES - self.records.len()
    }

    /// Adds a record, or returns false where it does not fit any more. No record is larger than an empty block's room.
    #[must_use = "a record that did not fit goes into the next block"]
    pub fn push(&mut self, record: &Record) -> bool {
        let fits = record.encoded_bytes() <= self.room();
        if fits {
            record.encode_into(&mut self.records);
            self.count += 1;
        }
        fits
    }

    /// Forgets all records and keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.count = 0;
    }

    /// The block with the records so far.
    pub fn seal(&self, header: &JournalHeader) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        F_MAGIC.put_bytes(&mut bytes, &JOURNAL_MAGIC);
        F_COUNT.put(&mut bytes, u64::from(self.count));
        F_USED.put(&mut bytes, self.records.len() as u64);
        F_STORE.put_bytes(&mut bytes, header.store.as_bytes());
        F_INCARNATION.put(&mut bytes, header.incarnation);
        F_SEQ.put(&mut bytes, header.seq);
        F_DURABLE_SEQ.put(&mut bytes, header.durable_seq);
        F_CHECKPOINT.put(&mut bytes, header.checkpoint);
        bytes[F_RECORDS.at..F_RECORDS.at + self.records.len()].copy_from_slice(&self.records);
        seal(&mut bytes, F_CRC);
        bytes
    }
}

impl JournalHeader {
    /// Reads the header of a whole block of `store`. Errors: not a journal block, torn, another store's.
    pub fn decode(bytes: &[u8], store: Uuid) -> Result<JournalHeader, FormatError> {
        FormatError::check_length(WHAT, bytes, BLOCK_BYTES)?;
        if F_MAGIC.get_bytes::<8>(bytes) != JOURNAL_MAGIC {
            return F_MAGIC.refuse(WHAT, F_MAGIC.get(bytes), "the bytes \"TANADAJB\"");
        }
        check_seal(WHAT, bytes, F_CRC)?;
        let found = F_STORE.get_uuid(bytes);
        if found != store {
            return Err(FormatError::Foreign { what: WHAT, found, wanted: store });
        }
        let header = JournalHeader {
            store,
            incarnation: F_INCARNATION.get_most(WHAT, bytes, u64::MAX >> 1)?,
            seq: F_SEQ.get_most(WHAT, bytes, u64::MAX >> 1)?,
            durable_seq: F_DURABLE_SEQ.get(bytes),
            checkpoint: F_CHECKPOINT.get_most(WHAT, bytes, u64::MAX >> 1)?,
        };
        if header.seq == 0 {
            return F_SEQ.refuse(WHAT, 0, "1 or more");
        }
        if header.durable_seq >= header.seq {
            return F_DURABLE_SEQ.refuse(WHAT, header.durable_seq, "less than the block's own number");
        }
        Ok(header)
    }
}

impl JournalBlock {
    /// Decodes a block of `store`. Errors: as [`JournalHeader::decode`]; a record that is malformed or runs over the
    /// end; records fewer or more than the header says; bytes behind them; a recovery record elsewhere than in front,
    /// or of another block than the one before.
    pub fn decode(bytes: &[u8], store: Uuid) -> Result<JournalBlock, FormatError> {
        let header = JournalHeader::decode(bytes, store)?;
        let used = F_USED.get_most(WHAT, bytes, RECORDS_BYTES as u64)? as usize;
        let (mut rest, behind) = bytes[F_RECORDS.at..].split_at(used);
        let count = F_COUNT.get(bytes);
        let mut records = Vec::with_capacity(count.min(RECORDS_BYTES as u64 / 8) as usize);
        while !rest.is_empty() {
            let (record, bytes) = Record::decode(rest)?;
            records.push(record);
            rest = &rest[bytes..];
        }
        if records.len() as u64 != count {
            return F_COUNT.refuse(WHAT, count, "the number of its records");
        }
        if *behind != [0; RECORDS_BYTES][..behind.len()] {
            return F_RECORDS.refuse(WHAT, used as u64, "zero bytes behind the last record");
        }
        for (n, record) in records.iter().enumerate() {
            if let Record::Recovered { seq, .. } = record
                && (n > 0 || *seq != header.seq - 1)
            {
                let accepted = "the number before its block's own, in the first record";
                return Err(FormatError::Field { what: "recovery record", field: "seq", value: *seq, accepted });
            }
        }
        Ok(JournalBlock { header, records })
    }
}
