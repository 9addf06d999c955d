//! Records with numbers, and the judgement over two disks that hold them.

use anyhow::{Result, bail};

/// A record fills one block, so that no file system or store may tear it.
pub const RECORD_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"tanadaW1";
/// Bytes covered by the checksum: magic, number, filler up to here.
const CHECKED_BYTES: usize = RECORD_BYTES - 4;

/// Record `number`: magic, number (u64 LE), a filler that differs per number, CRC-32C (u32 LE) in the last four bytes.
pub fn encode_record(number: u64, record: &mut [u8]) {
    record[..8].copy_from_slice(MAGIC);
    record[8..16].copy_from_slice(&number.to_le_bytes());
    for (index, byte) in record[16..CHECKED_BYTES].iter_mut().enumerate() {
        *byte = (number as usize).wrapping_mul(31).wrapping_add(index) as u8;
    }
    let checksum = crc32c::crc32c(&record[..CHECKED_BYTES]);
    record[CHECKED_BYTES..RECORD_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// The number in a slot: `None` where nothing was ever written (zeros), an error where the slot is torn.
pub fn decode_record(record: &[u8]) -> Result<Option<u64>> {
    if record.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if &record[..8] != MAGIC {
        bail!("a slot holds neither zeros nor a record");
    }
    let stored = u32::from_le_bytes([record[4092], record[4093], record[4094], record[4095]]);
    if crc32c::crc32c(&record[..CHECKED_BYTES]) != stored {
        bail!("a record's checksum does not match: the slot is torn");
    }
    let mut number = [0; 8];
    number.copy_from_slice(&record[8..16]);
    Ok(Some(u64::from_le_bytes(number)))
}

/// What two rings show. Numbers start at 1; 0 = no record yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderReport {
    pub newest_on_a: u64,
    pub newest_on_b: u64,
    pub records_compared: u64,
}

/// Judges two rings of equal length: every slot whole, every record on B also (or newer) on A, and A at most one ahead.
pub fn judge_order(ring_a: &[u8], ring_b: &[u8]) -> Result<OrderReport> {
    if ring_a.len() != ring_b.len() || ring_a.is_empty() || !ring_a.len().is_multiple_of(RECORD_BYTES) {
        bail!("rings of {} and {} bytes: equal multiples of {RECORD_BYTES} expected", ring_a.len(), ring_b.len());
    }
    let mut report = OrderReport { newest_on_a: 0, newest_on_b: 0, records_compared: 0 };
    for (slot, (a, b)) in ring_a.chunks(RECORD_BYTES).zip(ring_b.chunks(RECORD_BYTES)).enumerate() {
        let a = decode_record(a)?.unwrap_or(0);
        let b = decode_record(b)?.unwrap_or(0);
        if b > a {
            bail!("slot {slot}: B shows record {b}, but A only {a}: the two disks are not of one instant");
        }
        report.newest_on_a = report.newest_on_a.max(a);
        report.newest_on_b = report.newest_on_b.max(b);
        report.records_compared += u64::from(b > 0);
    }
    if report.newest_on_a > report.newest_on_b + 1 {
        bail!("A is at record {}, B only at {}: acknowledged writes to B are missing", report.newest_on_a, report.newest_on_b);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::{RECORD_BYTES, encode_record, judge_order};

    fn ring(numbers: &[u64]) -> Vec<u8> {
        let mut ring = vec![0; numbers.len() * RECORD_BYTES];
        for (slot, number) in ring.chunks_mut(RECORD_BYTES).zip(numbers) {
            if *number > 0 {
                encode_record(*number, slot);
            }
        }
        ring
    }

    #[test]
    fn one_instant_is_accepted() {
        let report = judge_order(&ring(&[5, 2, 3, 4]), &ring(&[5, 2, 3, 4])).unwrap();
        assert_eq!((report.newest_on_a, report.newest_on_b), (5, 5));
        judge_order(&ring(&[5, 6, 3, 4]), &ring(&[5, 2, 3, 4])).expect("A may be one ahead");
        judge_order(&ring(&[0, 1, 0, 0]), &ring(&[0, 0, 0, 0])).expect("nothing on B yet");
    }

    #[test]
    fn two_instants_are_seen() {
        assert!(judge_order(&ring(&[5, 2, 3, 4]), &ring(&[5, 6, 3, 4])).is_err(), "B ahead of A");
        assert!(judge_order(&ring(&[5, 6, 7, 4]), &ring(&[5, 2, 3, 4])).is_err(), "B lost acknowledged writes");
    }

    #[test]
    fn a_torn_record_is_seen() {
        let mut torn = ring(&[5, 2, 3, 4]);
        torn[RECORD_BYTES + 512] ^= 1;
        assert!(judge_order(&torn, &ring(&[5, 2, 3, 4])).is_err());
    }
}
