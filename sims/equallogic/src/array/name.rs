//! Names that users choose, and the iSCSI and SCSI names that the array derives.

/// Longest volume or collection name, in bytes.
pub const VOLUME_NAME_MAX: usize = 63;
/// Longest snapshot name, in bytes.
pub const SNAPSHOT_NAME_MAX: usize = 128;
/// Longest description, in bytes of UTF-8.
pub const DESCRIPTION_MAX: usize = 127;

/// Whether a name is made of letters, digits, `.`, `-` and `:` and is not longer than `max` bytes.
pub fn is_legal(name: &str, max: usize) -> bool {
    !name.is_empty()
        && name.len() <= max
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':'))
}

/// The target name of volume or snapshot number `serial` of the group with this identity. The name's part stays as it
/// was at creation; iSCSI wants it in lower case and not longer than 223 bytes.
pub fn iqn(group_ident: u64, serial: u64, name: &str) -> String {
    let ident = group_ident & 0xf_ffff_ffff;
    // The serial sits in the middle so that neighbours differ where people look; the rest is as dull as on the array.
    let unique = (0x00fu64 << 52) | (serial << 16) | (ident & 0xffff);
    let mut text =
        format!("iqn.2001-05.com.equallogic:0-8a0906-{ident:09x}-{unique:016x}-{}", name.to_ascii_lowercase());
    text.truncate(223);
    text
}

/// The NAA-6 identifier (32 hex digits) that belongs to a target name. The four groups of hex digits are shifted until
/// each has an even length, then each is reversed byte by byte.
pub fn naa(iqn: &str) -> Option<String> {
    let (_, tail) = iqn.split_once("equallogic:")?;
    let mut groups: Vec<String> = tail.splitn(5, '-').take(4).map(str::to_string).collect();
    if groups.iter().map(String::len).ne([1, 6, 9, 16]) || !tail.is_ascii() {
        return None;
    }
    for at in (1..groups.len()).rev() {
        if groups[at].len() % 2 == 1 {
            let (borrowed, rest) = groups[at - 1].split_at(1);
            let (borrowed, rest) = (borrowed.to_string(), rest.to_string());
            groups[at].push_str(&borrowed);
            groups[at - 1] = rest;
        }
    }
    let reversed = |group: &String| -> String {
        let bytes: Vec<&str> = (0..group.len() / 2).map(|at| &group[2 * at..2 * at + 2]).collect();
        bytes.into_iter().rev().collect()
    };
    Some(groups.iter().map(reversed).collect())
}

#[cfg(test)]
mod tests {
    use super::{iqn, is_legal, naa};

    #[test]
    fn the_published_example_gives_its_identifier() {
        let name = "iqn.2001-05.com.equallogic:0-8a0906-1a2b3c40d-00f0000001c5e9aa-disk7";
        assert_eq!(naa(name).as_deref(), Some("6090a0d8403c2b1aaae9c5010000f000"));
    }

    #[test]
    fn target_names_have_the_four_groups_and_differ() {
        let (one, two) = (iqn(0x1a2b3c40d, 1, "Disk-7"), iqn(0x1a2b3c40d, 2, "Disk-7"));
        assert_ne!(one, two);
        assert!(one.ends_with("-disk-7"), "{one}");
        assert_eq!(naa(&one).map(|text| text.len()), Some(32));
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "disk7", "a.b-c:d"] {
            assert!(is_legal(good, 63), "{good}");
        }
        for bad in ["", "a_b", "a b", "ä", &"x".repeat(64)] {
            assert!(!is_legal(bad, 63), "{bad}");
        }
    }
}
