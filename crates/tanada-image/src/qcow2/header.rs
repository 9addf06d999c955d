//! The header and its extensions.

use super::PLACE;
use crate::ImageId;
use crate::error::{ImageError, ImageResult};
use crate::forward::{u32_at, u64_at};
use crate::guess;
use crate::limits::{QCOW2_HEADER_BYTES, QCOW2_L1_ENTRIES};

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Bytes of the header of version 2, and of what everybody has of version 3.
const BYTES_V2: u64 = 72;
const BYTES_V3: u64 = 104;
/// Our extension ("TnDa"): the UUID of the disk that the image is a delta of.
const DELTA_OF: u32 = 0x546e_4461;

/// Incompatible features that do not matter to whoever reads once: the refcounts may be behind, and how clusters are
/// compressed is said.
const DIRTY: u64 = 1 << 0;
const COMPRESSION_TYPE: u64 = 1 << 3;
const REFUSED: [(u64, &str); 3] = [
    (1 << 1, "it is marked as corrupt"),
    (1 << 2, "its data is in another file"),
    (1 << 4, "it has extended L2 entries"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Deflate,
    Zstd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    pub l1_at: u64,
    pub l1_entries: u64,
    pub refcounts_at: u64,
    pub refcount_clusters: u64,
    pub has_backing_file: bool,
    pub delta_of: Option<ImageId>,
    pub compression: Compression,
}

impl Header {
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / 8
    }

    /// The header's cluster. 16-bit refcounts.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.cluster_bytes() as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(4, &3u32.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(self.l1_entries as u32).to_be_bytes());
        put(40, &self.l1_at.to_be_bytes());
        put(48, &self.refcounts_at.to_be_bytes());
        put(56, &(self.refcount_clusters as u32).to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &(BYTES_V3 as u32).to_be_bytes());
        if let Some(id) = &self.delta_of {
            put(104, &DELTA_OF.to_be_bytes());
            put(108, &(id.len() as u32).to_be_bytes());
            put(112, id);
        }
        // Eight zeros behind it end the extensions.
        bytes
    }

    /// From the first bytes of an image, of which `rest` answers more: as many as it is asked for, from the start on.
    pub fn read(mut start: impl FnMut(u64) -> ImageResult<Vec<u8>>) -> ImageResult<Header> {
        let bytes = start(BYTES_V2)?;
        if !bytes.starts_with(MAGIC) {
            let what = guess::named(&bytes).map(|what| format!("; it is {what}")).unwrap_or_default();
            return Err(ImageError::invalid(format!("it does not begin as a qcow2 image does{what}")));
        }
        let version = u32_at(&bytes, 4);
        if !matches!(version, 2 | 3) {
            return Err(ImageError::unsupported(format!("qcow2 version {version}; 2 and 3 are accepted")));
        }
        let cluster_bits = u32_at(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            let words = "512 bytes to 2 MiB are accepted";
            return Err(ImageError::invalid(format!("clusters of 2^{cluster_bits} bytes; {words}")));
        }
        if u32_at(&bytes, 32) != 0 {
            return Err(ImageError::unsupported("it is encrypted"));
        }
        let mut header = Header {
            cluster_bits,
            size: u64_at(&bytes, 24),
            l1_at: u64_at(&bytes, 40),
            l1_entries: u64::from(u32_at(&bytes, 36)),
            refcounts_at: u64_at(&bytes, 48),
            refcount_clusters: u64::from(u32_at(&bytes, 56)),
            has_backing_file: u64_at(&bytes, 8) != 0,
            delta_of: None,
            compression: Compression::Deflate,
        };
        let mut length = BYTES_V2;
        if version == 3 {
            length = u64::from(u32_at(&start(BYTES_V3)?, 100));
            if !(BYTES_V3..=QCOW2_HEADER_BYTES.min(header.cluster_bytes())).contains(&length) {
                return Err(ImageError::invalid(format!("a qcow2 header of {length} bytes")));
            }
            header.features(&start(length)?)?;
        }
        let most = QCOW2_HEADER_BYTES.min(header.cluster_bytes());
        header.extensions(&start(most)?, length as usize);
        header.check()?;
        Ok(header)
    }

    fn features(&mut self, bytes: &[u8]) -> ImageResult<()> {
        let incompatible = u64_at(bytes, 72);
        if let Some((_, why)) = REFUSED.iter().find(|(bit, _)| incompatible & bit != 0) {
            return Err(ImageError::unsupported(*why));
        }
        let unknown = incompatible & !(DIRTY | COMPRESSION_TYPE);
        if unknown != 0 {
            return Err(ImageError::unsupported(format!("it has features that are not known, {unknown:#x}")));
        }
        let compression = if incompatible & COMPRESSION_TYPE == 0 { 0 } else { bytes.get(104).copied().unwrap_or(0) };
        self.compression = match compression {
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            other => {
                return Err(ImageError::unsupported(format!("compression {other}; deflate and zstd are accepted")));
            }
        };
        Ok(())
    }

    /// Looks for ours. What is not well formed is nothing that we need.
    fn extensions(&mut self, bytes: &[u8], mut at: usize) {
        while let Some(head) = bytes.get(at..at + 8) {
            let (kind, length) = (u32_at(head, 0), u32_at(head, 4) as usize);
            if kind == 0 {
                return;
            }
            let Some(content) = bytes.get(at + 8..).and_then(|rest| rest.get(..length)) else { return };
            if kind == DELTA_OF {
                self.delta_of = content.try_into().ok();
            }
            at += 8 + length.next_multiple_of(8);
        }
    }

    fn check(&self) -> ImageResult<()> {
        if !self.size.is_multiple_of(512) {
            return Err(ImageError::invalid(format!(
                "a qcow2 image of {} bytes; a multiple of 512 is accepted",
                self.size
            )));
        }
        let needed = self.size.div_ceil(self.cluster_bytes() * self.l2_entries());
        if needed > QCOW2_L1_ENTRIES || self.l1_entries < needed {
            let words =
                format!("the disk of {} bytes needs {needed}, {QCOW2_L1_ENTRIES} at most are accepted", self.size);
            return Err(ImageError::invalid(format!("a qcow2 table of {} entries; {words}", self.l1_entries)));
        }
        let aligned = self.l1_at & (self.cluster_bytes() - 1) == 0 && self.l1_at & !PLACE == 0 && self.l1_at != 0;
        if needed > 0 && !aligned {
            return Err(ImageError::invalid(format!("the first table is said to be at {}", self.l1_at)));
        }
        Ok(())
    }
}
