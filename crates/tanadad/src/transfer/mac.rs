//! MAC addresses from a machine's seed, the way XenServer makes them: the same seed and device give the same address.

use md5::{Digest, Md5};

/// The address of network device number `device` of the machine whose `other_config:mac_seed` is `seed`.
pub fn generated(seed: &str, device: u32) -> String {
    let mut hash = Md5::digest(seed.as_bytes());
    for _ in 0..2 * u64::from(device) {
        hash = Md5::digest(hash);
    }
    let next = Md5::digest(hash);
    // Locally administered, not a group address.
    let first = (hash[0] | 0x02) & 0xFE;
    let bytes = [first, hash[1], hash[2], hash[3], next[1], next[2]];
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::generated;

    #[test]
    fn addresses_are_local_stable_and_differ() {
        let seed = "2f6b4c4e-6f0f-4a51-9d6e-1d2c3b4a5968";
        let all: Vec<String> = (0..7).map(|device| generated(seed, device)).collect();
        assert_eq!(all[3], generated(seed, 3));
        for (at, mac) in all.iter().enumerate() {
            let first = u8::from_str_radix(&mac[..2], 16).unwrap();
            assert_eq!(first & 3, 2, "{mac}");
            assert!(!all[..at].contains(mac) && mac.len() == 17);
        }
        assert_ne!(all[0], generated("another", 0));
    }

    #[test]
    fn device_zero_is_one_round() {
        // md5("a") = 0cc175b9c0f1b6a831c399e269772661
        assert!(generated("a", 0).starts_with("0e:c1:75:b9:"));
    }
}
