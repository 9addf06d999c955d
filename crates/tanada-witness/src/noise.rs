/// Content that nothing folds: every word another, nothing to compress, another for each seed, the same for the same.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    // Seeds are small numbers; the generator takes long to leave the neighbourhood of zero, and never leaves zero.
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::noise;
    use std::collections::HashSet;

    #[test]
    fn no_two_words_of_any_seeds_are_alike() {
        let all: Vec<Vec<u8>> = (0..20).map(|seed| noise(8000, seed)).collect();
        let words: HashSet<&[u8]> = all.iter().flat_map(|one| one.chunks(8)).collect();
        assert_eq!(words.len(), 20 * 1000);
        assert_eq!(noise(13, 7), all[7][..13]);
    }
}
