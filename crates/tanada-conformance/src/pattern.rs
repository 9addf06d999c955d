//! Contents that say what they are: each block tells its seed and its place.

use tanada_units::BLOCK_BYTES;

/// Bytes of a block of `seed` at block number `number`. Never all zeros.
pub fn block(seed: u64, number: u64) -> Vec<u8> {
    let mut word = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
    while (bytes.len() as u64) < BLOCK_BYTES {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(seed | 1);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Blocks from `first` on, `count` of them.
pub fn blocks(seed: u64, first: u64, count: u64) -> Vec<u8> {
    (first..first + count).flat_map(|number| block(seed, number)).collect()
}
