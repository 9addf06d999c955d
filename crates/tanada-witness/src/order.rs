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

/// Judges two rings of equal length. Every slot must be whole; each ring must hold the last records without a gap (a gap
/// is an acknowledged write that was lost); B must not show what A lacks, and A may be at most one record ahead.
pub fn judge_order(ring_a: &[u8], ring_b: &[u8]) -> Result<OrderReport> {
    if ring_a.len() != ring_b.len() || ring_a.is_empty() || !ring_a.len().is_multiple_of(RECORD_BYTES) {
        bail!("rings of {} and {} bytes: equal multiples of {RECORD_BYTES} expected", ring_a.len(), ring_b.len());
    }
    let newest_on_a = judge_ring("A", ring_a)?;
    let newest_on_b = judge_ring("B", ring_b)?;
    if newest_on_b > newest_on_a {
        bail!("B shows record {newest_on_b}, A only {newest_on_a}: the two disks are not of one instant");
    }
    if newest_on_a > newest_on_b + 1 {
        bail!("A is at record {newest_on_a}, B only at {newest_on_b}: acknowledged writes to B are missing");
    }
    let records_compared = newest_on_b.min((ring_b.len() / RECORD_BYTES) as u64);
    Ok(OrderReport { newest_on_a, newest_on_b, records_compared })
}

/// The newest record of a ring, after checking that each slot holds the newest record that belongs there.
fn judge_ring(name: &str, ring: &[u8]) -> Result<u64> {
    let slots = (ring.len() / RECORD_BYTES) as u64;
    let mut found = Vec::new();
    for record in ring.chunks(RECORD_BYTES) {
        found.push(decode_record(record)?.unwrap_or(0));
    }
    let newest = found.iter().copied().max().unwrap_or(0);
    for (slot, number) in (0..).zip(found) {
        // The largest number up to `newest` that belongs into the slot; 0 where the ring has not come round yet.
        let expected = newest.saturating_sub((newest + slots - slot) % slots);
        if number != expected {
            bail!(
                "{name}, slot {slot}: record {number} where {expected} belongs (newest is {newest}): a write is missing"
            );
        }
    }
    Ok(newest)
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
        let report = judge_order(&ring(&[4, 5, 2, 3]), &ring(&[4, 5, 2, 3])).unwrap();
        assert_eq!((report.newest_on_a, report.newest_on_b, report.records_compared), (5, 5, 4));
        judge_order(&ring(&[4, 5, 6, 3]), &ring(&[4, 5, 2, 3])).expect("A may be one ahead");
        judge_order(&ring(&[0, 1, 0, 0]), &ring(&[0, 0, 0, 0])).expect("nothing on B yet");
    }

    #[test]
    fn two_instants_are_seen() {
        assert!(judge_order(&ring(&[4, 5, 2, 3]), &ring(&[4, 5, 6, 3])).is_err(), "B ahead of A");
        assert!(judge_order(&ring(&[4, 5, 6, 7]), &ring(&[4, 5, 2, 3])).is_err(), "B lost acknowledged writes");
    }

    #[test]
    fn a_lost_write_is_seen() {
        assert!(judge_order(&ring(&[4, 1, 2, 3]), &ring(&[4, 1, 2, 3])).is_ok());
        assert!(judge_order(&ring(&[8, 5, 2, 7]), &ring(&[8, 5, 6, 7])).is_err(), "record 6 of A reverted");
        assert!(judge_order(&ring(&[8, 5, 6, 7]), &ring(&[8, 5, 2, 7])).is_err(), "record 6 of B reverted");
    }

    #[test]
    fn a_torn_record_is_seen() {
        let mut torn = ring(&[4, 5, 2, 3]);
        torn[RECORD_BYTES + 512] ^= 1;
        assert!(judge_order(&torn, &ring(&[4, 5, 2, 3])).is_err());
    }
}
