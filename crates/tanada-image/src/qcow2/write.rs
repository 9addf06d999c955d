//! A whole image in one pass: everything is laid out before the first byte, every cluster has one user.

use std::sync::Arc;

use bytes::Bytes;

use super::header::{Compression, Header};
use super::{COPIED, ZERO};
use crate::ImageId;
use crate::error::{ImageError, ImageResult};
use crate::limits::{QCOW2_CLUSTERS, QCOW2_L1_ENTRIES, RUN_BYTES};
use crate::map::{ClusterMap, State};
use crate::plan::{Piece, Plan};

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BITS_MAX: u32 = 21;

/// Bytes of a cluster for a disk of this size: 64 KiB up to 8 TiB, more where the map would become too large.
pub fn cluster_bytes(size: u64) -> u64 {
    let fits = |bits: &u32| size >> bits <= QCOW2_CLUSTERS;
    1 << (CLUSTER_BITS..CLUSTER_BITS_MAX).find(fits).unwrap_or(CLUSTER_BITS_MAX)
}

/// Where everything is, in clusters from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    cluster: u64,
    refcount_blocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
    end: u64,
}

impl Layout {
    fn of(map: &ClusterMap) -> Layout {
        let cluster = map.unit();
        let l1_clusters = (l1_entries(map) * 8).div_ceil(cluster).max(1);
        let tables = l2_tables(map).count() as u64;
        let fixed = 1 + l1_clusters + tables + map.count_of(State::Data);
        // Refcounts count the clusters that they are in as well.
        let (mut blocks, mut table) = (1, 1);
        loop {
            let end = fixed + blocks + table;
            let needed_blocks = end.div_ceil(cluster / 2);
            let needed_table = (needed_blocks * 8).div_ceil(cluster);
            if needed_blocks <= blocks && needed_table <= table {
                break;
            }
            (blocks, table) = (blocks.max(needed_blocks), table.max(needed_table));
        }
        let l1 = 1 + table + blocks;
        let l2 = l1 + l1_clusters;
        let data = l2 + tables;
        Layout { cluster, refcount_blocks: 1 + table, l1, l2, data, end: fixed + blocks + table }
    }
}

/// The image of a disk with this map, whose units are clusters. With `delta_of`, what the map leaves out is that disk's;
/// without, it is zero.
pub fn plan(map: ClusterMap, delta_of: Option<ImageId>) -> ImageResult<Plan> {
    if l1_entries(&map) > QCOW2_L1_ENTRIES {
        let limit = QCOW2_L1_ENTRIES * map.unit() * (map.unit() / 8);
        return Err(ImageError::TooLarge { size: map.size(), limit });
    }
    let map = Arc::new(map);
    let layout = Layout::of(&map);
    let header = Header {
        cluster_bits: layout.cluster.trailing_zeros(),
        size: map.size().next_multiple_of(512),
        l1_at: layout.l1 * layout.cluster,
        l1_entries: l1_entries(&map),
        refcounts_at: layout.cluster,
        refcount_clusters: layout.refcount_blocks - 1,
        has_backing_file: false,
        delta_of,
        compression: Compression::Deflate,
    };
    let head = [Piece::Bytes(header.encode().into()), refcount_table(&layout)];
    let refcounts = (0..layout.l1 - layout.refcount_blocks).map(move |block| refcount_block(&layout, block));
    let tables = [l1_table(&map, &layout)].into_iter().chain(all_l2_tables(map.clone(), layout));
    let pieces = head.into_iter().chain(refcounts).chain(tables).chain(data(map));
    Ok(Plan { length: layout.end * layout.cluster, pieces: Box::new(pieces) })
}

fn l1_entries(map: &ClusterMap) -> u64 {
    map.count().div_ceil(map.unit() / 8).max(1)
}

/// Indices of the L2 tables that have anything in them.
fn l2_tables(map: &ClusterMap) -> impl Iterator<Item = u64> + '_ {
    let per_table = map.unit() / 8;
    let mut last = None;
    map.present().map(move |unit| unit / per_table).filter(move |table| last.replace(*table) != Some(*table))
}

fn refcount_table(layout: &Layout) -> Piece {
    let blocks = layout.refcount_blocks..layout.l1;
    let entries = blocks.flat_map(|block| (block * layout.cluster).to_be_bytes());
    padded(entries.collect(), (layout.refcount_blocks - 1) * layout.cluster)
}

/// One for each cluster of the file.
fn refcount_block(layout: &Layout, block: u64) -> Piece {
    let per_block = layout.cluster / 2;
    let used = layout.end.saturating_sub(block * per_block).min(per_block);
    padded([0, 1].repeat(used as usize), layout.cluster)
}

fn l1_table(map: &ClusterMap, layout: &Layout) -> Piece {
    let mut table = vec![0; ((layout.l2 - layout.l1) * layout.cluster) as usize];
    for (index, place) in l2_tables(map).zip(layout.l2..) {
        let entry = (place * layout.cluster) | COPIED;
        table[index as usize * 8..][..8].copy_from_slice(&entry.to_be_bytes());
    }
    Piece::Bytes(table.into())
}

fn all_l2_tables(map: Arc<ClusterMap>, layout: Layout) -> impl Iterator<Item = Piece> {
    let per_table = layout.cluster / 8;
    let (mut table, mut place) = (0, layout.data);
    std::iter::from_fn(move || {
        table = map.next_present(table * per_table)? / per_table;
        let units = table * per_table..((table + 1) * per_table).min(map.count());
        table += 1;
        let entries = units.flat_map(|unit| {
            let entry = match map.state(unit) {
                State::Absent => 0,
                State::Zero => ZERO,
                State::Data => {
                    place += 1;
                    ((place - 1) * layout.cluster) | COPIED
                }
            };
            entry.to_be_bytes()
        });
        Some(padded(entries.collect(), layout.cluster))
    })
}

/// The clusters with data, neighbours together.
fn data(map: Arc<ClusterMap>) -> impl Iterator<Item = Piece> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let mut first = map.next_present(next)?;
        while map.state(first) != State::Data {
            first = map.next_present(first + 1)?;
        }
        let most = (RUN_BYTES / map.unit()).max(1);
        let last = (first + 1..map.count().min(first + most)).find(|unit| map.state(*unit) != State::Data);
        next = last.unwrap_or(map.count().min(first + most));
        let offset = first * map.unit();
        let (stored, length) = ((next - first) * map.unit(), (next * map.unit()).min(map.size()) - offset);
        Some(crate::plan::runs(offset, length, stored))
    })
    .flatten()
}

fn padded(mut bytes: Vec<u8>, length: u64) -> Piece {
    bytes.resize(length as usize, 0);
    Piece::Bytes(Bytes::from(bytes))
}
