//! The header of a dynamic or differencing image: where the table is, how long blocks are, who the parent is.

use super::{BLOCK_BYTES, SECTOR, checksum};
use crate::ImageId;
use crate::error::{ImageError, ImageResult};
use crate::forward::{u32_at, u64_at};
use crate::limits::{VHD_BLOCK_BYTES, VHD_BLOCKS};

const BYTES: usize = 1024;
const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION_MAJOR: u32 = 1;
const CHECKSUM: usize = 36;
const NAME: std::ops::Range<usize> = 64..576;
const LOCATOR: usize = 576;

/// Platform code of a locator that is a relative path in UTF-16, little endian.
const RELATIVE_PATH: &[u8; 4] = b"W2ru";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Where the table of blocks is, in bytes.
    pub table_at: u64,
    /// Entries of the table; at least one for each block of the disk.
    pub entries: u64,
    pub block_bytes: u64,
    pub parent: Option<ParentName>,
}

/// The parent as the header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentName {
    pub id: ImageId,
    /// A file name without a folder.
    pub name: String,
    /// Where [`locator`] stands, in bytes; 0 for none.
    pub locator_at: u64,
}

impl Header {
    /// For a disk of so many blocks.
    pub fn new(table_at: u64, blocks: u64, parent: Option<ParentName>) -> Header {
        Header { table_at, entries: blocks, block_bytes: BLOCK_BYTES, parent }
    }

    pub fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, COOKIE);
        put(8, &u64::MAX.to_be_bytes());
        put(16, &self.table_at.to_be_bytes());
        put(24, &(VERSION_MAJOR << 16).to_be_bytes());
        put(28, &(self.entries as u32).to_be_bytes());
        put(32, &(self.block_bytes as u32).to_be_bytes());
        if let Some(parent) = &self.parent {
            put(40, &parent.id);
            let name = parent.name.encode_utf16().flat_map(u16::to_be_bytes).take(NAME.len() - 2).collect::<Vec<u8>>();
            put(NAME.start, &name);
            if parent.locator_at != 0 {
                put(LOCATOR, RELATIVE_PATH);
                put(LOCATOR + 4, &1u32.to_be_bytes());
                put(LOCATOR + 8, &(locator_text(&parent.name).len() as u32).to_be_bytes());
                put(LOCATOR + 16, &parent.locator_at.to_be_bytes());
            }
        }
        let sum = checksum(&bytes, CHECKSUM);
        bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Of a disk of `size` bytes.
    pub fn decode(bytes: &[u8; BYTES], size: u64) -> ImageResult<Header> {
        if !bytes.starts_with(COOKIE) {
            return Err(ImageError::invalid("no VHD header where one has to be"));
        }
        let (recorded, computed) = (u32_at(bytes, CHECKSUM), checksum(bytes, CHECKSUM));
        if recorded != computed {
            let why = format!("its checksum is {recorded:#010x}, computed from its bytes it is {computed:#010x}");
            return Err(ImageError::invalid(format!("a VHD header is damaged: {why}")));
        }
        let version = u32_at(bytes, 24);
        if version >> 16 != VERSION_MAJOR {
            return Err(ImageError::unsupported(format!("VHD header version {version:#010x}; version 1 is accepted")));
        }
        let block_bytes = u64::from(u32_at(bytes, 32));
        if !block_bytes.is_power_of_two() || !(8 * SECTOR..=VHD_BLOCK_BYTES).contains(&block_bytes) {
            let words = format!("a power of two from {} to {VHD_BLOCK_BYTES} is accepted", 8 * SECTOR);
            return Err(ImageError::unsupported(format!("VHD blocks of {block_bytes} bytes; {words}")));
        }
        let entries = u64::from(u32_at(bytes, 28));
        let needed = size.div_ceil(block_bytes);
        if entries < needed || needed > VHD_BLOCKS {
            let words = format!("the disk of {size} bytes has {needed} blocks; {VHD_BLOCKS} at most are accepted");
            return Err(ImageError::invalid(format!("a VHD table of {entries} blocks, {words}")));
        }
        let mut id = ImageId::default();
        id.copy_from_slice(&bytes[40..56]);
        let name = bytes[NAME].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let name = String::from_utf16_lossy(&name.take_while(|unit| *unit != 0).collect::<Vec<u16>>());
        let parent = (id != ImageId::default() || !name.is_empty()).then_some(ParentName { id, name, locator_at: 0 });
        Ok(Header { table_at: u64_at(bytes, 16), entries, block_bytes, parent })
    }
}

/// The sector that a locator points at: the parent beside the image itself.
pub fn locator(name: &str) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    let text = locator_text(name);
    sector[..text.len()].copy_from_slice(&text);
    sector
}

fn locator_text(name: &str) -> Vec<u8> {
    let text = format!(".\\{name}");
    text.encode_utf16().flat_map(u16::to_le_bytes).take(SECTOR as usize).collect()
}
