//! The member that follows each chunk.
//!
//! `.xxhash` (XXH64, seed 0, 16 upper-case digits) is read by XenServer and XCP-ng since 8.1 (2019) and costs a tenth
//! of the processor time; it is what we write unless asked. `.checksum` (SHA-1, 40 lower-case digits) is read by every
//! release, so it is the choice for sending a machine to an older host. Both are compared as text.

use sha1::{Digest, Sha1};
use xxhash_rust::xxh64::xxh64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumKind {
    #[default]
    Xxh64,
    Sha1,
}

impl ChecksumKind {
    pub const ALL: [ChecksumKind; 2] = [ChecksumKind::Xxh64, ChecksumKind::Sha1];

    /// What is appended to the chunk's member name.
    pub fn suffix(self) -> &'static str {
        match self {
            ChecksumKind::Xxh64 => ".xxhash",
            ChecksumKind::Sha1 => ".checksum",
        }
    }

    /// Length of the member in bytes.
    pub fn text_length(self) -> usize {
        match self {
            ChecksumKind::Xxh64 => 16,
            ChecksumKind::Sha1 => 40,
        }
    }

    /// The member's content for these bytes.
    pub fn of(self, bytes: &[u8]) -> String {
        match self {
            ChecksumKind::Xxh64 => format!("{:016X}", xxh64(bytes, 0)),
            ChecksumKind::Sha1 => Sha1::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ChecksumKind;
    use crate::limits::CHUNK_BYTES;

    #[test]
    fn known_values() {
        let zeros = vec![0; CHUNK_BYTES];
        for (kind, bytes, text) in [
            (ChecksumKind::Xxh64, &b""[..], "EF46DB3751D8E999"),
            (ChecksumKind::Xxh64, b"abc", "44BC2CF5AD770999"),
            (ChecksumKind::Xxh64, &zeros, "87D2A1B6E1163EF1"),
            (ChecksumKind::Sha1, b"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (ChecksumKind::Sha1, &zeros, "3b71f43ff30f4b15b5cd85dd9e95ebc7e84eb5a3"),
        ] {
            assert_eq!(kind.of(bytes), text);
            assert_eq!(text.len(), kind.text_length());
        }
    }
}
