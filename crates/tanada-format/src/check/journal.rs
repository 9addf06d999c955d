//! What a recovery would replay.

use super::{Findings, ReadAt};
use crate::error::FormatError;
use crate::journal::{JournalBlock, JournalHeader};
use crate::node::BLOCK_BYTES;
use crate::record::Record;
use crate::superblock::Superblock;

/// A journal block that counts, with the records of it that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedBlock {
    pub header: JournalHeader,
    pub records: Vec<Record>,
}

/// The journal behind a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalScan {
    pub blocks: Vec<ScannedBlock>,
    /// Number of the first block that does not count.
    pub end_seq: u64,
    /// Why that one does not.
    pub end_reason: String,
    /// Blocks up to here were known durable: their data is not in doubt.
    pub durable_seq: u64,
    /// Newest checkpoint that the journal knows.
    pub newest_checkpoint: u64,
    /// Data blocks whose checksums decided where the journal ends.
    pub verified_blocks: u64,
}

impl JournalScan {
    pub fn records(&self) -> usize {
        self.blocks.iter().map(|block| block.records.len()).sum()
    }
}

/// Reads the ring from the checkpoint's first block on. Errors where the device cannot be read.
pub fn scan(source: &dyn ReadAt, superblock: &Superblock, findings: &mut Findings) -> Result<JournalScan, String> {
    let mut scan = JournalScan {
        blocks: Vec::new(),
        end_seq: superblock.journal_seq,
        end_reason: "the ring is full".to_owned(),
        durable_seq: superblock.journal_seq - 1,
        newest_checkpoint: superblock.checkpoint,
        verified_blocks: 0,
    };
    let mut incarnation = superblock.incarnation;
    for seq in superblock.journal_seq..superblock.journal_seq + superblock.geometry.journal_blocks() {
        let bytes = source.read_block(superblock.geometry.journal_block(seq))?;
        match accept(&bytes, superblock, seq, incarnation) {
            Ok(block) => {
                incarnation = block.header.incarnation;
                scan.take(block);
            }
            Err(why) => {
                if is_whole(&bytes, superblock, seq, incarnation) {
                    findings.add(format!("journal block {seq} is whole, but its records make no sense: {why}"));
                }
                scan.end_reason = why;
                break;
            }
        }
    }
    look_past_the_end(source, superblock, &mut scan, incarnation, findings)?;
    if scan.newest_checkpoint > superblock.checkpoint {
        findings.add(format!(
            "the journal knows checkpoint {}, the best superblock is {}: the newest superblock is damaged (J8)",
            scan.newest_checkpoint, superblock.checkpoint
        ));
    }
    verify_tail(source, superblock, &mut scan)?;
    Ok(scan)
}

/// The block with number `seq`, if it continues the journal of `incarnation` (rules J4, J5).
fn accept(bytes: &[u8], superblock: &Superblock, seq: u64, incarnation: u64) -> Result<JournalBlock, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(format!("block {seq} of the journal was never written"));
    }
    let block = JournalBlock::decode(bytes, superblock.store).map_err(|error| error.to_string())?;
    let header = &block.header;
    if header.seq != seq {
        return Err(format!("block {seq} of the journal holds number {}", header.seq));
    }
    if header.incarnation < incarnation {
        return Err(format!("incarnation {} after {incarnation}: a former life's block", header.incarnation));
    }
    let recovered = matches!(block.records.first(), Some(Record::Recovered { .. }));
    if header.incarnation > incarnation && !recovered {
        return Err(format!("incarnation {} does not begin with a recovery record", header.incarnation));
    }
    Ok(block)
}

/// Whether a block that does not decode continues the journal all the same: nobody tears it so that its checksum holds.
fn is_whole(bytes: &[u8], superblock: &Superblock, seq: u64, incarnation: u64) -> bool {
    let header = JournalHeader::decode(bytes, superblock.store);
    header.is_ok_and(|header| header.seq == seq && header.incarnation >= incarnation)
        && JournalBlock::decode(bytes, superblock.store).is_err()
}

impl JournalScan {
    /// Whether nothing of the block can be torn: it was synced, or a later life has verified it.
    fn is_certain(&self, block: &ScannedBlock) -> bool {
        let newest = self.blocks.last().map_or(0, |block| block.header.incarnation);
        block.header.seq <= self.durable_seq || block.header.incarnation < newest
    }

    fn take(&mut self, block: JournalBlock) {
        let JournalBlock { header, records } = block;
        if let Some(Record::Recovered { records: counted, .. }) = records.first()
            && let Some(last) = self.blocks.last_mut()
        {
            last.records.truncate(usize::try_from(*counted).unwrap_or(usize::MAX));
        }
        self.durable_seq = self.durable_seq.max(header.durable_seq);
        self.newest_checkpoint = self.newest_checkpoint.max(header.checkpoint);
        self.end_seq = header.seq + 1;
        self.blocks.push(ScannedBlock { header, records });
    }
}

/// Before a tail is believed to be torn: blocks further on that say it was durable (rule J3).
fn look_past_the_end(
    source: &dyn ReadAt,
    superblock: &Superblock,
    scan: &mut JournalScan,
    incarnation: u64,
    findings: &mut Findings,
) -> Result<(), String> {
    let mut durable = scan.durable_seq;
    for seq in scan.end_seq..superblock.journal_seq + superblock.geometry.journal_blocks() {
        let place = superblock.geometry.journal_block(seq);
        let bytes = source.read_block(place)?;
        let Ok(header) = JournalHeader::decode(&bytes, superblock.store) else { continue };
        // Whether it counts or not: whoever wrote it knew of that checkpoint.
        scan.newest_checkpoint = scan.newest_checkpoint.max(header.checkpoint);
        // A block counts at its own place, be it of a later round of the ring: then a newer superblock once stood.
        let at_home = header.seq >= seq && superblock.geometry.journal_block(header.seq) == place;
        if at_home && header.incarnation >= incarnation {
            durable = durable.max(header.durable_seq);
        }
    }
    if durable >= scan.end_seq {
        findings.add(format!(
            "journal block {} is broken ({}), but blocks up to {durable} were durable (J3)",
            scan.end_seq, scan.end_reason
        ));
    }
    Ok(())
}

/// Compares the data of records whose durability is certain: what recovery does not look at. No block that the journal
/// names is reused before the checkpoint that takes its records out, so that all of it must be there.
pub(super) fn check_data(source: &dyn ReadAt, scan: &JournalScan, findings: &mut Findings) {
    for scanned in scan.blocks.iter().filter(|block| scan.is_certain(block)) {
        for record in &scanned.records {
            let Record::Map { head, place, block, crcs } = record else { continue };
            for (n, crc) in (0..).zip(crcs) {
                let text = |why: String| {
                    let (seq, offset) = (scanned.header.seq, (place + n) * BLOCK_BYTES as u64);
                    format!("journal block {seq}, head {head}, offset {offset}: block {}: {why}", block + n)
                };
                match source.read_block(block + n).map(|bytes| crc32c::crc32c(&bytes)) {
                    Ok(computed) if computed == *crc => {}
                    Ok(computed) => {
                        let error = FormatError::Checksum { what: "data", stored: *crc, computed };
                        findings.add(text(error.to_string()));
                    }
                    Err(why) => findings.add(text(why)),
                }
            }
        }
    }
}

/// Above the durable mark, the first record whose data does not match its checksums ends the journal (J2).
fn verify_tail(source: &dyn ReadAt, superblock: &Superblock, scan: &mut JournalScan) -> Result<(), String> {
    for at in 0..scan.blocks.len() {
        if scan.is_certain(&scan.blocks[at]) {
            continue;
        }
        for n in 0..scan.blocks[at].records.len() {
            let Record::Map { block, crcs, .. } = &scan.blocks[at].records[n] else { continue };
            let mut bytes = vec![0; crcs.len() * BLOCK_BYTES];
            // A store that grew in this very journal has blocks behind the superblock's end; a device that is too short
            // for them has no data there.
            let read = source.read_at(block * BLOCK_BYTES as u64, &mut bytes);
            let inside = read.is_ok();
            if block + crcs.len() as u64 <= superblock.geometry.store_blocks() {
                read?;
            }
            scan.verified_blocks += crcs.len() as u64;
            let whole = bytes.chunks(BLOCK_BYTES).zip(crcs).all(|(bytes, crc)| crc32c::crc32c(bytes) == *crc);
            if !inside || !whole {
                let seq = scan.blocks[at].header.seq;
                scan.end_reason = format!("data of record {n} of block {seq} is torn");
                scan.end_seq = seq + 1;
                scan.blocks[at].records.truncate(n);
                scan.blocks.truncate(at + 1);
                return Ok(());
            }
        }
    }
    Ok(())
}
