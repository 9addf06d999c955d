//! Superblocks and catalog: where everything else is found.

use std::collections::BTreeMap;

use super::space::Marks;
use super::{CheckError, Findings, ReadAt, name};
use crate::catalog::{REGION_ENTRY_BYTES, REGION_TABLE_PLACE, REGIONS_PER_BLOCK, RegionEntry, VERSIONS_PER_BLOCK};
use crate::error::FormatError;
use crate::geometry::SUPERBLOCK_AT;
use crate::node::{Node, ROOT_LEVEL, span_blocks};
use crate::pointer::Pointer;
use crate::superblock::Superblock;
use crate::version::{VERSION_BYTES, Version, VersionKind, VersionState};

/// The four copies, as `[slot][copy]`.
pub type Copies = [[Result<Superblock, FormatError>; 2]; 2];

/// Entries of the region table, by region.
pub type RegionPages = Vec<RegionEntry>;

/// What the catalog says.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub versions: Vec<Version>,
    pub regions: RegionPages,
}

/// Reads all four copies. Errors where the device cannot be read.
pub fn read_superblocks(source: &dyn ReadAt) -> Result<Copies, String> {
    let read = |slot: usize, copy: usize| -> Result<Result<Superblock, FormatError>, String> {
        Ok(Superblock::decode(&source.read_block(SUPERBLOCK_AT[slot][copy])?, slot))
    };
    Ok([[read(0, 0)?, read(0, 1)?], [read(1, 0)?, read(1, 1)?]])
}

/// The newest whole superblock; says which copies are damaged.
pub(super) fn choose(
    copies: &Copies,
    findings: &mut Findings,
    notes: &mut Vec<String>,
) -> Result<Superblock, CheckError> {
    let Some(newest) = Superblock::newest(copies).cloned() else {
        let error = copies[0][0].clone().err().or(copies[1][0].clone().err());
        let none = FormatError::Length { what: "superblock", found: 0, needed: crate::node::BLOCK_BYTES };
        return Err(CheckError::NoStore(error.unwrap_or(none)));
    };
    for (slot, pair) in copies.iter().enumerate() {
        for (number, copy) in pair.iter().enumerate() {
            match copy {
                // A fresh store has never written its other slot. A crash while a checkpoint ends tears a copy at most.
                Err(error) if newest.checkpoint > 1 || slot == newest.slot() => {
                    notes.push(format!("superblock slot {slot} copy {number} is torn or rotten: {error}"));
                }
                Ok(other) if slot == newest.slot() && *other != newest => {
                    notes.push(format!("superblock slot {slot} copy {number} is of checkpoint {}", other.checkpoint));
                    if other.checkpoint == newest.checkpoint {
                        findings.add(format!("superblock slot {slot}: its copies differ"));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(newest)
}

/// Reads the catalog, without judging it further than its checksums. Errors: the first thing that cannot be read.
pub fn read_catalog(source: &dyn ReadAt, superblock: &Superblock) -> Result<Catalog, String> {
    let mut findings = Findings::default();
    let catalog = check_catalog(source, superblock, &mut Marks::new(&superblock.geometry), &mut findings);
    match findings.list.into_iter().next() {
        None => Ok(catalog),
        Some(finding) => Err(finding),
    }
}

pub(super) fn check_catalog(
    source: &dyn ReadAt,
    superblock: &Superblock,
    marks: &mut Marks,
    findings: &mut Findings,
) -> Catalog {
    let mut catalog = Catalog { versions: Vec::new(), regions: Vec::new() };
    catalog.regions.resize(superblock.geometry.region_count() as usize, RegionEntry::Fresh);
    let mut reader = CatalogReader { source, superblock, marks, findings, catalog: &mut catalog };
    reader.tree(superblock.catalog, ROOT_LEVEL, 0);
    check_versions_agree(superblock, &catalog.versions, findings);
    catalog
}

struct CatalogReader<'a> {
    source: &'a dyn ReadAt,
    superblock: &'a Superblock,
    marks: &'a mut Marks,
    findings: &'a mut Findings,
    catalog: &'a mut Catalog,
}

impl CatalogReader<'_> {
    fn tree(&mut self, pointer: Pointer, level: u8, place: u64) {
        if pointer.is_null() {
            return;
        }
        let at = || format!("catalog node of level {level} at place {place}");
        if let Err(text) = self.marks.mark(pointer.block()) {
            return self.findings.add(format!("{}: {text}", at()));
        }
        let node = match read_node(self.source, pointer, self.superblock) {
            Ok(node) => node,
            Err(text) => return self.findings.add(format!("{}: {text}", at())),
        };
        for (slot, child) in node.pointers.iter().enumerate().filter(|(_, child)| !child.is_null()) {
            let place = place + slot as u64 * span_blocks(level) / 256;
            match level.checked_sub(1) {
                Some(below) => self.tree(*child, below, place),
                None => self.data(*child, place),
            }
        }
    }

    fn data(&mut self, pointer: Pointer, place: u64) {
        if let Err(text) = self.marks.mark(pointer.block()) {
            return self.findings.add(format!("catalog block at place {place}: {text}"));
        }
        let bytes = match read_checked(self.source, pointer, "catalog block") {
            Ok(bytes) => bytes,
            Err(text) => return self.findings.add(format!("catalog block at place {place}: {text}")),
        };
        if place < REGION_TABLE_PLACE {
            self.versions(&bytes, place);
        } else {
            self.regions(&bytes, place - REGION_TABLE_PLACE);
        }
    }

    fn versions(&mut self, bytes: &[u8], block: u64) {
        for (n, record) in bytes.chunks(VERSION_BYTES).enumerate() {
            let slot = block * VERSIONS_PER_BLOCK + n as u64;
            match Version::decode(record, self.superblock.geometry.store_blocks()) {
                Ok(None) => {}
                Ok(Some(version)) if slot < self.superblock.version_slots => self.catalog.versions.push(version),
                Ok(Some(version)) => {
                    let slots = self.superblock.version_slots;
                    self.findings.add(format!("{} in slot {slot}, the superblock knows {slots} slots", name(&version)));
                }
                Err(error) => self.findings.add(format!("version slot {slot}: {error}")),
            }
        }
    }

    fn regions(&mut self, bytes: &[u8], block: u64) {
        for (n, entry) in bytes.chunks(REGION_ENTRY_BYTES).enumerate() {
            let region = block * REGIONS_PER_BLOCK + n as u64;
            match (RegionEntry::decode(entry), self.catalog.regions.get_mut(region as usize)) {
                (Ok(entry), Some(place)) => *place = entry,
                (Ok(RegionEntry::Fresh), None) => {}
                (Ok(_), None) => {
                    self.findings.add(format!("region {region} has an entry and lies outside of the store"))
                }
                (Err(error), _) => self.findings.add(format!("region {region}: {error}")),
            }
        }
    }
}

/// Reads a node and checks it. Errors in words.
pub(super) fn read_node(source: &dyn ReadAt, pointer: Pointer, superblock: &Superblock) -> Result<Node, String> {
    let bytes = source.read_block(pointer.block())?;
    let node = Node::decode(&bytes, pointer.crc(), superblock.geometry.store_blocks());
    node.map_err(|error| format!("block {}: {error}", pointer.block()))
}

/// Reads a block and compares its checksum.
pub(super) fn read_checked(source: &dyn ReadAt, pointer: Pointer, what: &'static str) -> Result<[u8; 4096], String> {
    let bytes = source.read_block(pointer.block())?;
    let computed = crc32c::crc32c(&bytes);
    if computed == pointer.crc() {
        return Ok(bytes);
    }
    let error = FormatError::Checksum { what, stored: pointer.crc(), computed };
    Err(format!("block {}: {error}", pointer.block()))
}

/// Ids, names and parents of versions against each other.
fn check_versions_agree(superblock: &Superblock, versions: &[Version], findings: &mut Findings) {
    let find = |id: u64| versions.iter().find(|version| version.id == id);
    let mut children: BTreeMap<u64, usize> = BTreeMap::new();
    versions.iter().for_each(|version| *children.entry(version.parent).or_default() += 1);
    for (n, version) in versions.iter().enumerate() {
        let what = name(version);
        if version.id >= superblock.next_version {
            findings.add(format!("{what}: the next id is {}", superblock.next_version));
        }
        if version.ended >= superblock.epoch {
            findings
                .add(format!("{what}: ended {} is not before the store's epoch {}", version.ended, superblock.epoch));
        }
        let twin = |other: &&Version| {
            other.id == version.id
                || other.uuid == version.uuid && [other, &version].iter().all(|one| one.state == VersionState::Live)
        };
        if let Some(other) = versions[..n].iter().find(twin) {
            findings.add(format!("{what} and {} share an id or a name", name(other)));
        }
        let children = children.get(&version.id).copied().unwrap_or(0);
        match version.state {
            VersionState::Dying if children > 1 => findings.add(format!("{what} is dying and has {children} children")),
            VersionState::Ghost if children < 2 => {
                findings.add(format!("{what} is a ghost and has {children} children"))
            }
            _ => {}
        }
        if version.parent == 0 {
            continue;
        }
        match find(version.parent) {
            None => findings.add(format!("{what}: its parent {} does not exist", version.parent)),
            Some(parent) if parent.kind == VersionKind::Head => {
                findings.add(format!("{what}: its parent {} is a head, heads have no children", name(parent)));
            }
            Some(parent) if version.kind == VersionKind::Generation && parent.ended >= version.ended => {
                findings.add(format!(
                    "{what} ended {}, its parent {} ended {}",
                    version.ended,
                    name(parent),
                    parent.ended
                ));
            }
            Some(_) => {}
        }
    }
}
