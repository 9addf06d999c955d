//! Large stores from nothing: volumes of any size, fully mapped, with real maps, bitmaps and catalog, and data blocks
//! that are holes. A TiB takes 4 GiB of file and some seconds; zeros have one checksum, so everything verifies.
//!
//! Blocks are given out in one row, bitmap pages left out:
//! ```text
//!   | data of volume 0 | data of volume 1 | ... | blocks changed in generations | map nodes in order of place | catalog |
//! ```
//! All versions of a leaf lie side by side, as a checkpoint writes them.

use std::collections::BTreeMap;
use std::io;

use tanada_format::catalog::{REGIONS_PER_BLOCK, region_place, version_place};
use tanada_format::geometry::{PAGE_COPIES, REGION_BLOCKS};
use tanada_format::node::span_blocks;
use tanada_format::version::VERSION_BYTES;
use tanada_format::{
    BLOCK_BYTES, BitmapPage, FANOUT, FormatOptions, Geometry, LEVELS, Node, Pointer, ROOT_LEVEL, RegionEntry, Version,
    VersionKind, VersionState, crc32c, format_image,
};
use tanada_units::Uuid;

use crate::rng::Rng;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Bytes written at once.
const WRITE_BYTES: usize = 4 << 20;

/// A volume of a made-up store, mapped from end to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthVolume {
    pub uuid: Uuid,
    /// Bytes, a multiple of 1 MiB.
    pub size: u64,
    /// Generations kept.
    pub generations: u64,
    /// Blocks that differ from one generation to the next, each in a leaf of its own, at random.
    pub changes: u64,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthOptions {
    pub store: Uuid,
    pub device_bytes: u64,
    pub journal_bytes: Option<u64>,
    pub volumes: Vec<SynthVolume>,
    pub seed: u64,
}

/// Where the store is written: offset in bytes, content.
pub trait Sink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Name of generation `n` (from 1 on, oldest first) of a volume.
pub fn generation_uuid(volume: Uuid, n: u64) -> Uuid {
    Uuid::from_u128(volume.as_u128() ^ u128::from(n) << 64)
}

/// Writes a store. What is not written must read as zeros. Returns the bytes mapped.
/// Errors: the sink's, and where the device is too small.
pub fn synthesize(options: &SynthOptions, sink: &mut dyn Sink) -> io::Result<u64> {
    let format = FormatOptions {
        store: options.store,
        device_bytes: options.device_bytes,
        journal_bytes: options.journal_bytes,
    };
    let image = format_image(&format).map_err(io::Error::other)?;
    for range in image.zero {
        let zeros = vec![0; WRITE_BYTES];
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(WRITE_BYTES as u64);
            sink.write(at, &zeros[..length as usize])?;
            at += length;
        }
    }
    let geometry = image.superblock.geometry;
    let mut row = Row { geometry, next: 0 };
    let firsts: Vec<u64> = options.volumes.iter().map(|volume| row.take(volume.size / BLOCK)).collect();
    let changed = options.volumes.iter().map(|volume| volume.generations * volume.changes).sum();
    let mut changed = Row { geometry, next: row.take(changed) };
    let mut rng = Rng::new(options.seed);
    let zero_crc = crc32c(&[0; BLOCK_BYTES]);
    let mut versions = Vec::new();
    let mut epoch = 1;
    for (volume, first) in options.volumes.iter().zip(firsts) {
        let mut changes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for n in 1..=volume.generations {
            for _ in 0..volume.changes {
                let of_leaf = changes.entry(rng.below(volume.size >> 20)).or_default();
                if of_leaf.last() != Some(&n) {
                    of_leaf.push(n);
                }
            }
        }
        let mut trees = Trees {
            geometry,
            first,
            blocks: volume.size / BLOCK,
            changes,
            zero_crc,
            changed: &mut changed,
            nodes: Nodes { row: &mut row, pending: Vec::new(), start: 0, sink: &mut *sink },
            seed: options.seed,
        };
        let roots = trees.build(ROOT_LEVEL, 0)?;
        trees.nodes.flush()?;
        versions.extend(versions_of(volume, versions.len() as u64 + 1, &roots));
        epoch = epoch.max(volume.generations + 1);
    }
    let leaked = changed.next..options.volumes.iter().map(|v| v.size / BLOCK + v.generations * v.changes).sum();
    let mut superblock = image.superblock;
    superblock.epoch = epoch;
    superblock.next_version = versions.len() as u64 + 1;
    superblock.version_slots = versions.len() as u64;
    let mut catalog = CatalogWriter { row: &mut row, versions: &versions, unused: leaked, sink: &mut *sink };
    superblock.used_blocks = catalog.write(&mut superblock.catalog)?;
    if row.next > geometry.allocatable_blocks() {
        return Err(io::Error::other(format!(
            "{} blocks are needed, the device has room for {}",
            row.next,
            geometry.allocatable_blocks()
        )));
    }
    for at in tanada_format::geometry::SUPERBLOCK_AT[superblock.slot()] {
        sink.write(at * BLOCK, &superblock.encode())?;
    }
    Ok(options.volumes.iter().map(|volume| volume.size).sum())
}

/// Versions of one volume, oldest first; ids from `first_id` on. `roots` are (version, tree) where it changed.
fn versions_of(volume: &SynthVolume, first_id: u64, roots: &[(u64, Pointer)]) -> Vec<Version> {
    let mut made = Vec::new();
    for n in 0..=volume.generations {
        let is_head = n == volume.generations;
        let at = roots.partition_point(|(version, _)| *version <= n);
        made.push(Version {
            id: first_id + n,
            parent: if n == 0 { 0 } else { first_id + n - 1 },
            uuid: if is_head { volume.uuid } else { generation_uuid(volume.uuid, n + 1) },
            ended: if is_head { 0 } else { n + 1 },
            size: volume.size,
            tree: at.checked_sub(1).map_or(Pointer::NULL, |at| roots[at].1),
            cursor: 0,
            instance: 0,
            kind: if is_head { VersionKind::Head } else { VersionKind::Generation },
            state: VersionState::Live,
            hidden: false,
        });
    }
    made
}

/// Allocatable blocks in a row.
struct Row {
    geometry: Geometry,
    next: u64,
}

impl Row {
    /// Takes `count` blocks; returns the number of the first in the row.
    fn take(&mut self, count: u64) -> u64 {
        let first = self.next;
        self.next += count;
        first
    }
}

/// Block number of the `n`th allocatable block.
fn block_at(geometry: &Geometry, n: u64) -> u64 {
    let in_region = REGION_BLOCKS - PAGE_COPIES;
    geometry.region_start(n / in_region) + PAGE_COPIES + n % in_region
}

/// Collects nodes that follow one another.
struct Nodes<'a> {
    row: &'a mut Row,
    pending: Vec<u8>,
    start: u64,
    sink: &'a mut dyn Sink,
}

impl Nodes<'_> {
    fn push(&mut self, node: &Node, birth: u64) -> io::Result<Pointer> {
        let n = self.row.take(1);
        let block = block_at(&self.row.geometry, n);
        let follows = self.start * BLOCK + self.pending.len() as u64 == block * BLOCK;
        if !follows || self.pending.len() >= WRITE_BYTES {
            self.flush()?;
            self.start = block;
        }
        let bytes = node.encode();
        self.pending.extend_from_slice(&bytes);
        Ok(Pointer::new(block, birth, crc32c(&bytes)))
    }

    fn flush(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() { Ok(()) } else { self.sink.write(self.start * BLOCK, &pending) }
    }
}

/// All versions' trees of one volume.
struct Trees<'a> {
    geometry: Geometry,
    first: u64,
    blocks: u64,
    /// By leaf: the versions that changed a block in it.
    changes: BTreeMap<u64, Vec<u64>>,
    zero_crc: u32,
    changed: &'a mut Row,
    nodes: Nodes<'a>,
    seed: u64,
}

impl Trees<'_> {
    /// Pointers to the node of `level` at place `start`, with the versions from which on they stand.
    fn build(&mut self, level: u8, start: u64) -> io::Result<Vec<(u64, Pointer)>> {
        if start >= self.blocks {
            return Ok(Vec::new());
        }
        if level == 0 {
            return self.leaf(start);
        }
        let step = span_blocks(level - 1);
        let mut changes: BTreeMap<u64, Vec<(usize, Pointer)>> = BTreeMap::new();
        for slot in 0..FANOUT {
            for (version, pointer) in self.build(level - 1, start + slot as u64 * step)? {
                changes.entry(version).or_default().push((slot, pointer));
            }
        }
        let mut node = Node::EMPTY;
        let mut made = Vec::new();
        for (version, slots) in changes {
            slots.into_iter().for_each(|(slot, pointer)| node.pointers[slot] = pointer);
            made.push((version, self.nodes.push(&node, version + 1)?));
        }
        Ok(made)
    }

    fn leaf(&mut self, start: u64) -> io::Result<Vec<(u64, Pointer)>> {
        let mut node = Node::EMPTY;
        for (slot, pointer) in node.pointers.iter_mut().enumerate() {
            let n = self.first + start + slot as u64;
            *pointer = Pointer::new(block_at(&self.geometry, n), 1, self.zero_crc);
        }
        let mut made = vec![(0, self.nodes.push(&node, 1)?)];
        for version in self.changes.get(&(start >> 8)).cloned().unwrap_or_default() {
            let slot = (start ^ version.wrapping_mul(0x9e37_79b9) ^ self.seed) as usize % FANOUT;
            let block = block_at(&self.geometry, self.changed.take(1));
            node.pointers[slot] = Pointer::new(block, version + 1, self.zero_crc);
            made.push((version, self.nodes.push(&node, version + 1)?));
        }
        Ok(made)
    }
}

/// Version table, region table, bitmaps and the nodes above the tables.
struct CatalogWriter<'a> {
    row: &'a mut Row,
    versions: &'a [Version],
    /// Part of the row that nothing came to refer to.
    unused: std::ops::Range<u64>,
    sink: &'a mut dyn Sink,
}

impl CatalogWriter<'_> {
    /// Writes it all; returns the number of blocks in use.
    fn write(&mut self, root: &mut Pointer) -> io::Result<u64> {
        let geometry = self.row.geometry;
        let regions_used = |blocks: u64| blocks.div_ceil(REGION_BLOCKS - PAGE_COPIES);
        let version_blocks = (self.versions.len() as u64).div_ceil((BLOCK_BYTES / VERSION_BYTES) as u64);
        // One region more than now: the catalog's own blocks may reach into the next.
        let region_blocks = (regions_used(self.row.next) + 1).min(geometry.region_count()).div_ceil(REGIONS_PER_BLOCK);
        let (first_region_place, _) = region_place(0);
        let places: Vec<u64> =
            (0..version_blocks).chain(first_region_place..first_region_place + region_blocks).collect();
        let mut blocks: BTreeMap<(u8, u64), u64> = BTreeMap::new();
        for place in &places {
            for level in 0..=LEVELS {
                blocks
                    .entry((level, place >> (8 * u32::from(level))))
                    .or_insert_with(|| block_at(&geometry, self.row.take(1)));
            }
        }
        let used = self.row.next - (self.unused.end - self.unused.start);
        let entries = self.bitmaps(&geometry)?;
        let mut nodes: BTreeMap<(u8, u64), Node> = BTreeMap::new();
        for place in places {
            let bytes =
                if place < first_region_place { self.version_block(place) } else { region_block(place, &entries) };
            let block = blocks[&(0, place)];
            self.sink.write(block * BLOCK, &bytes)?;
            let node = nodes.entry((1, place >> 8)).or_insert(Node::EMPTY);
            node.pointers[(place & 0xff) as usize] = Pointer::new(block, 1, crc32c(&bytes));
        }
        for level in 1..=LEVELS {
            let of_level: Vec<u64> = nodes.range((level, 0)..=(level, u64::MAX)).map(|((_, at), _)| *at).collect();
            for at in of_level {
                let bytes = nodes[&(level, at)].encode();
                let block = blocks[&(level, at)];
                self.sink.write(block * BLOCK, &bytes)?;
                let pointer = Pointer::new(block, 1, crc32c(&bytes));
                if level == LEVELS {
                    *root = pointer;
                } else {
                    let above = nodes.entry((level + 1, at >> 8)).or_insert(Node::EMPTY);
                    above.pointers[(at & 0xff) as usize] = pointer;
                }
            }
        }
        Ok(used)
    }

    fn version_block(&self, place: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_BYTES];
        for (slot, version) in self.versions.iter().enumerate() {
            let (of, at) = version_place(slot as u64);
            if of == place {
                bytes[at..at + VERSION_BYTES].copy_from_slice(&version.encode());
            }
        }
        bytes
    }

    fn bitmaps(&mut self, geometry: &Geometry) -> io::Result<Vec<RegionEntry>> {
        let in_region = REGION_BLOCKS - PAGE_COPIES;
        let mut entries = Vec::new();
        for region in 0..self.row.next.div_ceil(in_region) {
            let mut page = BitmapPage::fresh();
            let first = region * in_region;
            for n in first..(first + in_region).min(self.row.next) {
                if !self.unused.contains(&n) {
                    page.set(PAGE_COPIES + n - first);
                }
            }
            entries.push(page.entry(0));
            self.sink.write(geometry.page_block(region, 0) * BLOCK, &page.encode())?;
        }
        Ok(entries)
    }
}

fn region_block(place: u64, entries: &[RegionEntry]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    for (region, entry) in entries.iter().enumerate() {
        let (of, at) = region_place(region as u64);
        if of == place {
            let entry = entry.encode();
            bytes[at..at + entry.len()].copy_from_slice(&entry);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;

    use tanada_format::BLOCK_BYTES;
    use tanada_format::check::{CheckOptions, ReadAt, check};
    use tanada_units::Uuid;

    use super::{Sink, SynthOptions, SynthVolume, synthesize};

    #[derive(Default)]
    struct Memory(BTreeMap<u64, Vec<u8>>);

    impl Sink for Memory {
        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            for (at, block) in (offset / BLOCK_BYTES as u64..).zip(bytes.chunks(BLOCK_BYTES)) {
                self.0.insert(at, block.to_vec());
            }
            Ok(())
        }
    }

    impl ReadAt for Memory {
        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
            for (at, to) in (offset / BLOCK_BYTES as u64..).zip(bytes.chunks_mut(BLOCK_BYTES)) {
                match self.0.get(&at) {
                    Some(from) => to.copy_from_slice(from),
                    None => to.fill(0),
                }
            }
            Ok(())
        }
    }

    #[test]
    fn what_is_made_up_is_a_clean_store() {
        let volume =
            |n: u128, size, generations, changes| SynthVolume { uuid: Uuid::from_u128(n), size, generations, changes };
        let options = SynthOptions {
            store: Uuid::from_u128(9),
            device_bytes: 3 << 30,
            journal_bytes: Some(1 << 20),
            volumes: vec![volume(1, 1 << 30, 0, 0), volume(2, 300 << 20, 30, 20)],
            seed: 7,
        };
        let mut memory = Memory::default();
        let mapped = synthesize(&options, &mut memory).expect("it fits");
        assert_eq!(mapped, (1 << 30) + (300 << 20));
        let report = check(&memory, CheckOptions { data: true }).expect("a store");
        assert_eq!(report.findings, Vec::<String>::new());
        assert_eq!(report.versions.len(), 32);
    }
}
