//! Tar as XenServer has it for single disks: members `vdi/00000000`, each followed by its checksum, no `ova.xml`.
//!
//! The first and the last chunk are always there; others that are not mapped are left out, and the counter jumps.

use std::sync::Arc;

use bytes::Bytes;
use tanada_xva::tar::ZERO_BLOCK;

use crate::error::{ImageError, ImageResult};
use crate::limits::RUN_BYTES;
use crate::map::{ClusterMap, State};
use crate::plan::{Piece, Plan};

/// What the members' names begin with.
pub const PREFIX: &str = "vdi";

/// Unit of the map, in bytes.
pub const CHUNK_BYTES: u64 = RUN_BYTES;

/// The image of a disk with this map. Fails for sizes that are no multiple of 512, which importers cannot place.
pub fn plan(map: ClusterMap) -> ImageResult<Plan> {
    if !map.size().is_multiple_of(512) {
        return Err(ImageError::invalid(format!("a disk of {} bytes; tar needs a multiple of 512", map.size())));
    }
    if map.size() > tanada_xva::limits::DISK_BYTES {
        return Err(ImageError::TooLarge { size: map.size(), limit: tanada_xva::limits::DISK_BYTES });
    }
    let map = Arc::new(map);
    let last = map.count().saturating_sub(1);
    let kept = move |map: &ClusterMap, unit: u64| unit == 0 || unit == last || map.state(unit) != State::Absent;
    let end = Bytes::from([ZERO_BLOCK, ZERO_BLOCK].concat());
    let member = |map: &ClusterMap, unit: u64| Piece::Member {
        name: format!("{PREFIX}/{unit:08}"),
        offset: unit * CHUNK_BYTES,
        length: map.length_of(unit),
    };
    let members = (0..map.count()).filter(|unit| kept(&map, *unit)).map(|unit| member(&map, unit).length());
    let length = members.sum::<u64>() + end.len() as u64;
    let kept_of = map.clone();
    let units = (0..map.count()).filter(move |unit| kept(&kept_of, *unit));
    let pieces = units.map(move |unit| member(&map, unit));
    Ok(Plan { length, pieces: Box::new(pieces.chain([Piece::Bytes(end)])) })
}
