//! Whether the journal's records make sense on top of the checkpoint's versions, as a recovery will find out.
//!
//! Each record must name versions that exist, live, and are of the right kind; new ones need a new id and a new name; an
//! epoch ends once. What the records map is looked at elsewhere ([`super::space`]).

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{Findings, JournalScan};
use crate::geometry::Geometry;
use crate::node::BLOCK_BYTES;
use crate::record::{Member, Record};
use crate::superblock::Superblock;
use crate::version::{Version, VersionKind, VersionState};

#[derive(Clone, Copy)]
struct Entry {
    kind: VersionKind,
    is_live: bool,
    uuid: Uuid,
    /// Bytes.
    size: u64,
}

struct Replay {
    versions: BTreeMap<u64, Entry>,
    names: BTreeSet<Uuid>,
    epoch: u64,
    geometry: Geometry,
}

/// Applies the records that count; returns the geometry that they lead to, for a store that has grown since.
pub(super) fn check_records(
    superblock: &Superblock,
    versions: &[Version],
    journal: &JournalScan,
    findings: &mut Findings,
) -> Geometry {
    let mut replay = Replay {
        versions: BTreeMap::new(),
        names: BTreeSet::new(),
        epoch: superblock.epoch,
        geometry: superblock.geometry,
    };
    for version in versions {
        let is_live = version.state == VersionState::Live;
        replay
            .versions
            .insert(version.id, Entry { kind: version.kind, is_live, uuid: version.uuid, size: version.size });
        if is_live {
            replay.names.insert(version.uuid);
        }
    }
    for block in &journal.blocks {
        let befores = std::iter::once(None).chain(block.records.iter().map(Some));
        for (record, before) in block.records.iter().zip(befores) {
            if let Err(why) = replay.apply(record, before) {
                findings.add(format!("journal block {} contradicts the store: {why}", block.header.seq));
            }
        }
    }
    replay.geometry
}

impl Replay {
    fn live(&self, id: u64, kind: VersionKind) -> Result<Entry, String> {
        let entry = self.versions.get(&id).filter(|entry| entry.is_live && entry.kind == kind);
        entry.copied().ok_or_else(|| format!("version {id} is no live {}", format!("{kind:?}").to_lowercase()))
    }

    fn add(&mut self, id: u64, kind: VersionKind, uuid: Uuid, size: u64) -> Result<(), String> {
        if !self.names.insert(uuid) {
            return Err(format!("there is a version of the name {uuid} already"));
        }
        match self.versions.insert(id, Entry { kind, is_live: true, uuid, size }) {
            Some(_) => Err(format!("version {id} exists already")),
            None => Ok(()),
        }
    }

    fn destroy(&mut self, id: u64) -> Result<(), String> {
        let entry = self.versions.get_mut(&id).filter(|entry| entry.is_live);
        let entry = entry.ok_or_else(|| format!("version {id} is not there, or destroyed already"))?;
        entry.is_live = false;
        self.names.remove(&entry.uuid);
        Ok(())
    }

    /// `before` is the record in front of it in its block.
    fn apply(&mut self, record: &Record, before: Option<&Record>) -> Result<(), String> {
        match record {
            Record::Map { head, place, crcs, .. } => {
                let size = self.live(*head, VersionKind::Head)?.size;
                let end = (place + crcs.len() as u64) * BLOCK_BYTES as u64;
                if end > size {
                    return Err(format!("head {head} of {size} bytes is mapped up to {end}"));
                }
                Ok(())
            }
            Record::Unmap { head, .. } => self.live(*head, VersionKind::Head).map(drop),
            Record::Resize { head, size } => {
                let entry = self.live(*head, VersionKind::Head)?;
                self.versions.insert(*head, Entry { size: *size, ..entry });
                if *size < entry.size && !unmaps(before, *head, *size, entry.size) {
                    return Err(format!("head {head} shrinks to {size} bytes, and what is cut off stays mapped"));
                }
                Ok(())
            }
            Record::Snapshot { first_id, ended, members, .. } => self.snapshot(*first_id, *ended, members),
            Record::Create { head, uuid, size } => self.add(*head, VersionKind::Head, *uuid, *size),
            Record::Clone { head, generation, uuid } => {
                let size = self.live(*generation, VersionKind::Generation)?.size;
                self.add(*head, VersionKind::Head, *uuid, size)
            }
            Record::Revert { head, generation, old_head } => {
                let old = self.live(*old_head, VersionKind::Head)?;
                self.destroy(*old_head)?;
                let size = self.live(*generation, VersionKind::Generation)?.size;
                self.add(*head, VersionKind::Head, old.uuid, size)
            }
            Record::Destroy { version } => self.destroy(*version),
            Record::Grow { store_blocks } => self.grow(*store_blocks),
            Record::Recovered { .. } => Ok(()),
        }
    }

    fn snapshot(&mut self, first_id: u64, ended: u64, members: &[Member]) -> Result<(), String> {
        if ended != self.epoch {
            return Err(format!("a snapshot ends epoch {ended}, running is {}", self.epoch));
        }
        self.epoch += 1;
        let mut heads = BTreeSet::new();
        for (id, member) in (first_id..).zip(members) {
            let size = self.live(member.head, VersionKind::Head)?.size;
            if !heads.insert(member.head) {
                return Err(format!("head {} is cut twice by one record", member.head));
            }
            self.add(id, VersionKind::Generation, member.uuid, size)?;
        }
        Ok(())
    }

    fn grow(&mut self, store_blocks: u64) -> Result<(), String> {
        let old = self.geometry;
        if store_blocks <= old.store_blocks() {
            // A checkpoint keeps the size as it is at its end: the store may have grown once and again since its cut.
            return Ok(());
        }
        self.geometry = Geometry::new(store_blocks, old.journal_blocks()).map_err(|error| error.to_string())?;
        Ok(())
    }
}

/// True where the record unmaps the bytes from `size` to `old` of `head`.
fn unmaps(record: Option<&Record>, head: u64, size: u64, old: u64) -> bool {
    let block = BLOCK_BYTES as u64;
    matches!(record, Some(Record::Unmap { head: of, place, blocks })
        if *of == head && *place <= size / block && place + blocks >= old / block)
}
