//! The catalog in memory: the hidden tree that holds the version table and the region table.
//!
//! It is small (a MiB per some thousand versions or TiB), so all of it stays here and every checkpoint rewrites what
//! changed. Only here does the map chase its own tail: a new place for a catalog block changes a bitmap, which changes
//! a region's entry, which changes a catalog block. [`Catalog::save`] repeats until no further block of the region
//! table becomes dirty; the set only grows and all new places come from one segment, so two or three rounds do.

use std::collections::{BTreeMap, BTreeSet};

use tanada_format::catalog::{REGION_TABLE_PLACE, REGIONS_PER_BLOCK, region_place, version_place};
use tanada_format::{BLOCK_BYTES, LEVELS, Node, Pointer, ROOT_LEVEL, Version, crc32c};

use crate::failure::{ENOSPC, Failure};
use crate::space::alloc::{Allocator, Stream};

type Block = [u8; BLOCK_BYTES];

/// Level of the tables' own blocks in [`Catalog`]'s bookkeeping: below the leaves.
const TABLE: u8 = u8::MAX;

#[derive(Default)]
pub struct Catalog {
    root: Pointer,
    /// Nodes by level and by the number of the node within its level.
    nodes: BTreeMap<(u8, u64), Node>,
    /// Blocks of the version table by place.
    tables: BTreeMap<u64, Box<Block>>,
    /// Blocks of the device that all of it takes.
    blocks: u64,
}

/// What a saved catalog consists of.
pub struct Saved {
    pub root: Pointer,
    /// Block number and content, in the order of block numbers.
    pub writes: Vec<(u64, Box<Block>)>,
    /// Places that nothing names any more once the checkpoint is durable.
    pub freed: Vec<u64>,
}

impl Catalog {
    pub fn set_root(&mut self, root: Pointer) {
        self.root = root;
    }

    /// Takes over a node read at open.
    pub fn load_node(&mut self, level: u8, index: u64, node: Node) {
        self.blocks += 1;
        if level == 0 {
            self.blocks += node.pointers.iter().filter(|pointer| !pointer.is_null()).count() as u64;
        }
        self.nodes.insert((level, index), node);
    }

    /// Takes over a block of the version table read at open.
    pub fn load_versions(&mut self, place: u64, bytes: Box<Block>) {
        self.tables.insert(place, bytes);
    }

    /// The places of all of it: a save may leave any of them.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        let pointers = self.nodes.values().flat_map(|node| &node.pointers).chain([&self.root]);
        pointers.filter(|pointer| !pointer.is_null()).map(|pointer| pointer.block())
    }

    /// Blocks a save may need besides what is freed: everything once.
    pub fn reserve_blocks(&self, regions: u64) -> u64 {
        self.blocks + regions.div_ceil(REGIONS_PER_BLOCK) + u64::from(LEVELS) * 2 + 8
    }

    fn pointer(&self, level: u8, index: u64) -> Pointer {
        if level == ROOT_LEVEL {
            return self.root;
        }
        let parent = if level == TABLE { 0 } else { level + 1 };
        let slot = (index & 0xff) as usize;
        self.nodes.get(&(parent, index >> 8)).map_or(Pointer::NULL, |node| node.pointers[slot])
    }

    fn set_pointer(&mut self, level: u8, index: u64, pointer: Pointer) {
        if level == ROOT_LEVEL {
            self.root = pointer;
            return;
        }
        let parent = if level == TABLE { 0 } else { level + 1 };
        let node = self.nodes.entry((parent, index >> 8)).or_insert(Node::EMPTY);
        node.pointers[(index & 0xff) as usize] = pointer;
    }

    /// Saves `versions` (slot and record) and all dirty regions of `allocator`. New pointers are born in `epoch`.
    /// Errors where no block is free, or bitmaps that came from the device contradict the catalog.
    pub fn save(
        &mut self,
        versions: &[(u64, Version)],
        epoch: u64,
        allocator: &mut Allocator,
    ) -> Result<Saved, Failure> {
        let mut dirty: BTreeSet<u64> = self.update_tables(versions);
        let mut saved = Saved { root: Pointer::NULL, writes: Vec::new(), freed: Vec::new() };
        let mut placed: BTreeMap<(u8, u64), u64> = BTreeMap::new();
        loop {
            dirty.extend(allocator.changed_regions().map(|region| region_place(region).0));
            let before = placed.len();
            for place in &dirty {
                self.place_path(*place, &mut placed, &mut saved.freed, allocator)?;
            }
            if placed.len() == before {
                break;
            }
        }
        for page in allocator.save() {
            saved.writes.push((page.block, Box::new(page.bytes)));
        }
        for place in &dirty {
            let bytes = self.table_block(*place, allocator);
            let block = placed[&(TABLE, *place)];
            self.set_pointer(TABLE, *place, Pointer::new(block, epoch, crc32c(&bytes[..])));
            saved.writes.push((block, bytes));
        }
        for level in 0..LEVELS {
            for ((_, index), block) in placed.range((level, 0)..=(level, u64::MAX)) {
                let bytes = Box::new(self.nodes[&(level, *index)].encode());
                self.set_pointer(level, *index, Pointer::new(*block, epoch, crc32c(&bytes[..])));
                saved.writes.push((*block, bytes));
            }
        }
        saved.writes.sort_by_key(|(block, _)| *block);
        saved.root = self.root;
        Ok(saved)
    }

    /// Writes the records into the tables' blocks; returns the places that changed.
    fn update_tables(&mut self, versions: &[(u64, Version)]) -> BTreeSet<u64> {
        let mut fresh: BTreeMap<u64, Box<Block>> =
            self.tables.keys().map(|place| (*place, Box::new([0; BLOCK_BYTES]))).collect();
        for (slot, version) in versions {
            let (place, at) = version_place(*slot);
            let block = fresh.entry(place).or_insert_with(|| Box::new([0; BLOCK_BYTES]));
            let record = version.encode();
            block[at..at + record.len()].copy_from_slice(&record);
        }
        let changed = fresh
            .iter()
            .filter(|(place, block)| self.tables.get(place) != Some(block))
            .map(|(place, _)| *place)
            .collect();
        self.tables = fresh;
        changed
    }

    /// Gives the table block at `place` and all nodes above it new blocks, those that have none yet.
    fn place_path(
        &mut self,
        place: u64,
        placed: &mut BTreeMap<(u8, u64), u64>,
        freed: &mut Vec<u64>,
        allocator: &mut Allocator,
    ) -> Result<(), Failure> {
        let above = (0..LEVELS).map(|level| (level, place >> (8 * (u32::from(level) + 1))));
        for (level, index) in std::iter::once((TABLE, place)).chain(above) {
            if placed.contains_key(&(level, index)) {
                break; // and with it everything above
            }
            let Some((block, _)) = allocator.allocate(Stream::Map, 1) else {
                return Err(Failure::new(ENOSPC, "no block is free for the catalog: the reserve was too small"));
            };
            allocator.adopt(block);
            placed.insert((level, index), block);
            let old = self.pointer(level, index);
            if old.is_null() {
                self.blocks += 1;
            } else {
                allocator.disown(old.block())?;
                freed.push(old.block());
            }
        }
        Ok(())
    }

    fn table_block(&self, place: u64, allocator: &Allocator) -> Box<Block> {
        if place < REGION_TABLE_PLACE {
            return self.tables[&place].clone();
        }
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let first = (place - REGION_TABLE_PLACE) * REGIONS_PER_BLOCK;
        for region in first..first + REGIONS_PER_BLOCK {
            let entry = allocator.entry(region).encode();
            let at = region_place(region).1;
            bytes[at..at + entry.len()].copy_from_slice(&entry);
        }
        bytes
    }
}
