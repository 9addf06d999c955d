//! A dynamic or differencing image of a disk.

use bytes::Bytes;

use super::footer::{Footer, HEADER_AT, Kind};
use super::header::{Header, ParentName, locator};
use super::{ABSENT, BLOCK_BYTES, SECTOR};
use crate::ImageId;
use crate::error::{ImageError, ImageResult};
use crate::limits::VHD_BYTES;
use crate::map::ClusterMap;
use crate::plan::{Piece, Plan, runs};

const LOCATOR_AT: u64 = 1536;
const TABLE_AT: u64 = 2048;
/// A bitmap with every bit set: 4096 sectors.
const BITMAP: [u8; SECTOR as usize] = [0xff; SECTOR as usize];

/// The image that a differencing one is a delta of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub id: ImageId,
    /// A file name without a folder: where readers that follow chains look, beside the image itself.
    pub name: String,
}

/// The image of a disk with this map of 2 MiB units; a differencing one where there is a parent. Blocks are whole: their
/// bitmaps have all bits set, and what the disk does not fill of the last one is zero.
pub fn plan(map: ClusterMap, id: ImageId, parent: Option<Parent>) -> ImageResult<Plan> {
    let size = map.size().next_multiple_of(SECTOR);
    if size > VHD_BYTES {
        return Err(ImageError::TooLarge { size: map.size(), limit: VHD_BYTES });
    }
    let kind = if parent.is_some() { Kind::Differencing } else { Kind::Dynamic };
    let footer = Bytes::copy_from_slice(&Footer { kind, size, header_at: HEADER_AT, id }.encode());
    let place = parent.as_ref().map_or([0; SECTOR as usize], |parent| locator(&parent.name));
    let parent = parent.map(|parent| ParentName { id: parent.id, name: parent.name, locator_at: LOCATOR_AT });
    let header = Header::new(TABLE_AT, map.count(), parent).encode();

    let (table, blocks_end) = table(&map);
    let length = blocks_end + SECTOR;
    let head = [&footer[..], &header, &place, &table].concat();
    let mut next = 0;
    let blocks = std::iter::from_fn(move || {
        let unit = map.next_present(next)?;
        next = unit + 1;
        let data = runs(unit * BLOCK_BYTES, map.length_of(unit), BLOCK_BYTES);
        Some([Piece::Bytes(Bytes::from_static(&BITMAP))].into_iter().chain(data))
    });
    let pieces = [Piece::Bytes(head.into())].into_iter().chain(blocks.flatten()).chain([Piece::Bytes(footer)]);
    Ok(Plan { length, pieces: Box::new(pieces) })
}

/// The table of blocks, and where the last block ends in bytes.
fn table(map: &ClusterMap) -> (Vec<u8>, u64) {
    let bytes = (map.count() * 4).next_multiple_of(SECTOR);
    let mut table = vec![0xff; bytes as usize];
    let mut at = TABLE_AT + bytes;
    for unit in map.present() {
        // Below 2^32 sectors, because the disk is below 2040 GiB.
        let sector = (at / SECTOR) as u32;
        table[unit as usize * 4..][..4].copy_from_slice(&sector.to_be_bytes());
        at += SECTOR + BLOCK_BYTES;
    }
    (table, at)
}

const _: () = assert!(ABSENT == 0xffff_ffff, "the table begins as all ones");
const _: () = assert!((VHD_BYTES / BLOCK_BYTES * (BLOCK_BYTES + SECTOR + 4) + TABLE_AT) / SECTOR < ABSENT as u64);
