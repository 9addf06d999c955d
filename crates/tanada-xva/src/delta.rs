//! What differs in one MiB of a disk, as the content of a member `<id>/<8 digits>.delta`.
//!
//! ```text
//!   0            32           64
//!   ┌────────────┬────────────┬──────────────┬──────────────┬──
//!   │ changed    │ zero       │ block        │ block        │ ...
//!   └────────────┴────────────┴──────────────┴──────────────┴──
//! ```
//! Both bitmaps have a bit for each of the 256 blocks of 4 KiB, block 0 in the lowest bit of the first byte. A changed
//! block that is not zero follows with its bytes, in order; the last one of a disk may be shorter. Blocks that are not
//! marked as changed are as they are in the disk that this one is told by.

use std::ops::Range;

use crate::error::{XvaError, XvaResult};
use crate::limits::CHUNK_BYTES;
use crate::writer::is_zero;

/// What is compared and left out, in bytes.
pub const BLOCK_BYTES: usize = 4096;
/// What follows the counter in a member's name.
pub const SUFFIX: &str = ".delta";

const BLOCKS: usize = CHUNK_BYTES / BLOCK_BYTES;
const MAP_BYTES: usize = BLOCKS / 8;
const HEAD_BYTES: usize = 2 * MAP_BYTES;

/// The longest member.
pub const BYTES_MAX: u64 = (HEAD_BYTES + CHUNK_BYTES) as u64;

/// A part of a chunk, in blocks' places: what it holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// In bytes from the start of the chunk.
    Data {
        at: usize,
        bytes: Vec<u8>,
    },
    Zeros {
        at: usize,
        length: usize,
    },
}

/// Collects what differs in a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    changed: [u8; MAP_BYTES],
    zero: [u8; MAP_BYTES],
    blocks: Vec<u8>,
    next: usize,
}

impl Delta {
    /// The block at this place (its number in the chunk) holds these bytes now. Blocks come in order.
    pub fn put(&mut self, block: usize, bytes: &[u8]) -> XvaResult<()> {
        if block < self.next || block >= BLOCKS || bytes.is_empty() || bytes.len() > BLOCK_BYTES {
            let why = format!("block {block} with {} bytes where block {} was due", bytes.len(), self.next);
            return Err(XvaError::Unwritable(why));
        }
        self.next = block + 1;
        set(&mut self.changed, block);
        match is_zero(bytes) {
            true => set(&mut self.zero, block),
            false => self.blocks.extend_from_slice(bytes),
        }
        Ok(())
    }

    /// Does nothing differ?
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }

    pub fn encode(&self) -> Vec<u8> {
        [&self.changed[..], &self.zero, &self.blocks].concat()
    }
}

/// What a member says of a chunk of `length` bytes; the error is the reason.
pub fn decode(bytes: &[u8], length: usize) -> Result<Vec<Run>, String> {
    let short = || "it is shorter than its bitmaps".to_owned();
    let (changed, rest) = bytes.split_at_checked(MAP_BYTES).ok_or_else(short)?;
    let (zero, mut rest) = rest.split_at_checked(MAP_BYTES).ok_or_else(short)?;
    let blocks = length.div_ceil(BLOCK_BYTES);
    if let Some(beyond) = (blocks..BLOCKS).find(|block| is_set(changed, *block)) {
        return Err(format!("block {beyond} lies past the end of its disk"));
    }
    if let Some(both) = (0..BLOCKS).find(|block| is_set(zero, *block) && !is_set(changed, *block)) {
        return Err(format!("block {both} is zero and has not changed"));
    }
    let mut runs = Vec::new();
    for block in (0..blocks).filter(|block| is_set(changed, *block)) {
        let Range { start, end } = block * BLOCK_BYTES..length.min((block + 1) * BLOCK_BYTES);
        if is_set(zero, block) {
            put_zeros(&mut runs, start, end - start);
            continue;
        }
        let (content, left) =
            rest.split_at_checked(end - start).ok_or_else(|| format!("block {block} is not there as a whole"))?;
        put_data(&mut runs, start, content);
        rest = left;
    }
    match (rest.len(), runs.is_empty()) {
        (0, false) => Ok(runs),
        (0, true) => Err("nothing differs in it".into()),
        (left, _) => Err(format!("{left} bytes follow its last block")),
    }
}

fn put_data(runs: &mut Vec<Run>, start: usize, content: &[u8]) {
    match runs.last_mut() {
        Some(Run::Data { at, bytes }) if *at + bytes.len() == start => bytes.extend_from_slice(content),
        _ => runs.push(Run::Data { at: start, bytes: content.to_vec() }),
    }
}

fn put_zeros(runs: &mut Vec<Run>, start: usize, more: usize) {
    match runs.last_mut() {
        Some(Run::Zeros { at, length }) if *at + *length == start => *length += more,
        _ => runs.push(Run::Zeros { at: start, length: more }),
    }
}

fn set(map: &mut [u8; MAP_BYTES], block: usize) {
    map[block / 8] |= 1 << (block % 8);
}

fn is_set(map: &[u8], block: usize) -> bool {
    map.get(block / 8).is_some_and(|byte| byte & (1 << (block % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, Delta, Run, decode};
    use crate::limits::CHUNK_BYTES;

    #[test]
    fn what_differs_both_ways() {
        let mut delta = Delta::default();
        assert!(delta.is_empty());
        for (block, byte, length) in [(0, 1, 4096), (1, 2, 4096), (3, 0, 4096), (4, 0, 4096), (255, 3, 512)] {
            delta.put(block, &vec![byte; length]).unwrap();
        }
        let bytes = delta.encode();
        assert_eq!(bytes.len(), 64 + 2 * 4096 + 512);
        let last = 255 * BLOCK_BYTES;
        let runs = [
            Run::Data { at: 0, bytes: [vec![1; 4096], vec![2; 4096]].concat() },
            Run::Zeros { at: 3 * BLOCK_BYTES, length: 2 * BLOCK_BYTES },
            Run::Data { at: last, bytes: vec![3; 512] },
        ];
        assert_eq!(decode(&bytes, last + 512).unwrap(), runs);
        assert!(delta.put(255, &[1]).is_err() && delta.put(256, &[1]).is_err());
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let mut delta = Delta::default();
        delta.put(7, &[1; 4096]).unwrap();
        let bytes = delta.encode();
        let refusal = |bytes: &[u8], length: usize| decode(bytes, length).unwrap_err();
        assert!(refusal(&bytes[..63], CHUNK_BYTES).contains("bitmaps"));
        assert!(refusal(&bytes[..bytes.len() - 1], CHUNK_BYTES).contains("not there as a whole"));
        assert!(refusal(&[&bytes[..], &[0]].concat(), CHUNK_BYTES).contains("1 bytes follow"));
        assert!(refusal(&bytes, 7 * BLOCK_BYTES).contains("past the end"));
        assert!(refusal(&[0; 64], CHUNK_BYTES).contains("nothing differs"));
        let mut zero_only = [0; 64];
        zero_only[32] = 1;
        assert!(refusal(&zero_only, CHUNK_BYTES).contains("has not changed"));
    }
}
