//! Blocks whose content follows from a seed and their number, so that any misplaced, stale or torn block is seen.

/// Fills one block (any length that is a multiple of 8 bytes) for `seed` and `block` number.
pub fn fill_block(seed: u64, block: u64, bytes: &mut [u8]) {
    // SplitMix64: full period, cheap, and independent streams per block are good enough for evidence.
    let mut state = seed ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
}

/// True where `bytes` are what [`fill_block`] writes.
pub fn check_block(seed: u64, block: u64, bytes: &[u8]) -> bool {
    let mut expected = vec![0; bytes.len()];
    fill_block(seed, block, &mut expected);
    expected == bytes
}

#[cfg(test)]
mod tests {
    use super::{check_block, fill_block};

    #[test]
    fn place_and_seed_matter() {
        let mut block = vec![0; 4096];
        fill_block(1, 7, &mut block);
        assert!(check_block(1, 7, &block));
        assert!(!check_block(1, 8, &block) && !check_block(2, 7, &block));
        block[4095] ^= 1;
        assert!(!check_block(1, 7, &block));
    }
}
