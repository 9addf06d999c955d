//! The footer: what the image is. It ends the file, and begins it as well where the image is not a fixed one.

use super::checksum;
use crate::ImageId;
use crate::error::{ImageError, ImageResult};
use crate::forward::{u32_at, u64_at};
use crate::limits::VHD_BYTES;

const BYTES: usize = 512;
const COOKIE: &[u8; 8] = b"conectix";
const VERSION_MAJOR: u32 = 1;
const CHECKSUM: usize = 64;

/// Readers that distrust a creator compute the size from the geometry, which is smaller; QEMU takes the exact size from a
/// few names only. Of these this one is the hypervisor's, and promises no table of its own behind ours.
const CREATOR: &[u8; 4] = b"CTXS";

/// Where a footer copy tells that the header is.
pub const HEADER_AT: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    pub kind: Kind,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the header is; all ones in a fixed image.
    pub header_at: u64,
    pub id: ImageId,
}

impl Footer {
    pub fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, COOKIE);
        // Bit 1 is always set.
        put(8, &2u32.to_be_bytes());
        put(12, &(VERSION_MAJOR << 16).to_be_bytes());
        put(16, &self.header_at.to_be_bytes());
        put(28, CREATOR);
        put(32, &(1u32 << 16).to_be_bytes());
        put(40, &self.size.to_be_bytes());
        put(48, &self.size.to_be_bytes());
        let (cylinders, heads, sectors) = geometry(self.size);
        put(56, &cylinders.to_be_bytes());
        put(58, &[heads, sectors]);
        let kind = match self.kind {
            Kind::Fixed => 2u32,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        put(60, &kind.to_be_bytes());
        put(68, &self.id);
        let sum = checksum(&bytes, CHECKSUM);
        bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; BYTES]) -> ImageResult<Footer> {
        if !Footer::is_one(bytes) {
            return Err(ImageError::invalid("no VHD footer where one has to be"));
        }
        let (recorded, computed) = (u32_at(bytes, CHECKSUM), checksum(bytes, CHECKSUM));
        if recorded != computed {
            let why = format!("its checksum is {recorded:#010x}, computed from its bytes it is {computed:#010x}");
            return Err(ImageError::invalid(format!("a VHD footer is damaged: {why}")));
        }
        let version = u32_at(bytes, 12);
        if version >> 16 != VERSION_MAJOR {
            return Err(ImageError::unsupported(format!("VHD version {version:#010x}; version 1 is accepted")));
        }
        let kind = match u32_at(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => {
                let words = "2 (fixed), 3 (dynamic) and 4 (differencing) are accepted";
                return Err(ImageError::unsupported(format!("VHD of type {other}; {words}")));
            }
        };
        let size = u64_at(bytes, 48);
        if size > VHD_BYTES && kind != Kind::Fixed {
            return Err(ImageError::TooLarge { size, limit: VHD_BYTES });
        }
        if !size.is_multiple_of(512) {
            return Err(ImageError::invalid(format!("a VHD of {size} bytes; a multiple of 512 is accepted")));
        }
        let mut id = ImageId::default();
        id.copy_from_slice(&bytes[68..84]);
        Ok(Footer { kind, size, header_at: u64_at(bytes, 16), id })
    }

    /// Does it begin as a footer does?
    pub fn is_one(bytes: &[u8; BYTES]) -> bool {
        bytes.starts_with(COOKIE)
    }
}

/// Cylinders, heads and sectors of a track that a BIOS of old would see; their product is at most the size.
fn geometry(size: u64) -> (u16, u8, u8) {
    let total = size.div_ceil(512).min(65535 * 16 * 255);
    let (sectors, heads, tracks) = if total >= 65535 * 16 * 63 {
        (255, 16, total / 255)
    } else {
        let tracks = total / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads * 1024 && heads <= 16 {
            (17, heads, tracks)
        } else if total / 31 < 16 * 1024 {
            (31, 16, total / 31)
        } else {
            (63, 16, total / 63)
        }
    };
    // 65535 cylinders, 16 heads and 255 sectors at most: each fits.
    ((tracks / heads) as u16, heads as u8, sectors as u8)
}

#[cfg(test)]
mod tests {
    use super::{Footer, HEADER_AT, Kind, geometry};
    use crate::limits::VHD_BYTES;

    fn footer(size: u64) -> Footer {
        Footer { kind: Kind::Dynamic, size, header_at: HEADER_AT, id: *b"0123456789abcdef" }
    }

    #[test]
    fn both_ways_and_every_flipped_bit_is_refused() {
        let bytes = footer(10 << 30).encode();
        assert_eq!(Footer::decode(&bytes).unwrap(), footer(10 << 30));
        for bit in 0..512 * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&bad).is_err(), "bit {bit}");
        }
        assert!(Footer::decode(&footer(VHD_BYTES).encode()).is_ok());
        assert!(Footer::decode(&footer(VHD_BYTES + 512).encode()).is_err());
        assert!(Footer::decode(&footer(511).encode()).is_err());
    }

    #[test]
    fn geometries_are_those_of_the_format() {
        for (size, expected) in [
            (64 << 20, (963, 8, 17)),
            (1 << 30, (2080, 16, 63)),
            (4 << 30, (8322, 16, 63)),
            (10 << 30, (20805, 16, 63)),
            (40 << 30, (20560, 16, 255)),
            (136_899_993_600, (65535, 16, 255)),
            (VHD_BYTES, (65535, 16, 255)),
        ] {
            assert_eq!(geometry(size), expected, "{size}");
        }
    }
}
