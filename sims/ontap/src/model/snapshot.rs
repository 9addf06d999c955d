//! Snapshots of a FlexVol: found, renamed, deleted, and the volume or one LUN set back to them.

use std::fs;

use sim_target::blocks;
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::lun_clone::CloneSource;
use crate::model::names::check_snapshot;
use crate::model::state::{Lun, Snapshot};
use crate::model::{Array, io_error, timestamp};

/// Who holds a snapshot, as `owners` tells it.
const OWNER_CLONE: &str = "lun_clone";
const OWNER_VOLUME: &str = "vclone";

impl Array {
    pub fn snapshot(&self, volume: Uuid, uuid: Uuid) -> ApiResult<&Snapshot> {
        let found = self.state.snapshots.get(&uuid).filter(|snapshot| snapshot.volume == volume);
        found.ok_or_else(|| {
            ApiError::missing(1638600, format!("There is no snapshot {uuid} in volume {volume}.")).at("uuid")
        })
    }

    pub fn snapshot_named(&self, volume: Uuid, name: &str) -> Option<&Snapshot> {
        self.state.snapshots.values().find(|snapshot| snapshot.volume == volume && snapshot.name == name)
    }

    /// Why a snapshot cannot be deleted now.
    pub fn owners(&self, snapshot: &Snapshot) -> Vec<&'static str> {
        let mut owners = Vec::new();
        if self.pending_splits(snapshot.volume).any(|split| split.snapshot == Some(snapshot.uuid)) {
            owners.push(OWNER_CLONE);
        }
        let is_base = |clone: &crate::model::state::VolumeClone| clone.snapshot == snapshot.uuid;
        if self.state.volumes.values().any(|volume| volume.clone.as_ref().is_some_and(is_base)) {
            owners.push(OWNER_VOLUME);
        }
        owners
    }

    pub fn rename_snapshot(
        &mut self,
        volume: Uuid,
        uuid: Uuid,
        name: Option<&str>,
        comment: Option<&str>,
    ) -> ApiResult<()> {
        self.snapshot(volume, uuid)?;
        if let Some(name) = name {
            check_snapshot(name).map_err(|error| ApiError::invalid(524508, error.message).at("name"))?;
            if self.snapshot_named(volume, name).is_some_and(|other| other.uuid != uuid) {
                return Err(ApiError::conflict(525059, format!("Snapshot \"{name}\" already exists.")).at("name"));
            }
        }
        if let Some(snapshot) = self.state.snapshots.get_mut(&uuid) {
            if let Some(name) = name {
                snapshot.name = name.to_string();
            }
            if let Some(comment) = comment {
                snapshot.comment = comment.to_string();
            }
        }
        self.settle()
    }

    pub fn delete_snapshot(&mut self, volume: Uuid, uuid: Uuid) -> ApiResult<()> {
        let snapshot = self.snapshot(volume, uuid)?;
        if !self.owners(snapshot).is_empty() {
            let words = format!("Snapshot copy \"{}\" of volume {volume} has not expired or is locked.", snapshot.name);
            return Err(ApiError::conflict(1638555, words));
        }
        let files: Vec<_> = snapshot.luns.keys().map(|lun| self.snapshot_file(volume, uuid, *lun)).collect();
        self.state.snapshots.remove(&uuid);
        for group in self.state.groups.values_mut() {
            for snapshot in group.snapshots.values_mut() {
                snapshot.members.retain(|_, member| *member != uuid);
            }
        }
        self.settle()?;
        files.into_iter().try_for_each(|file| fs::remove_file(file).map_err(io_error("a snapshot's file")))
    }

    /// Sets a whole volume back: LUNs made later vanish, newer snapshots too (only with `force`).
    pub fn restore_volume(&mut self, volume: Uuid, uuid: Uuid, force: bool) -> ApiResult<()> {
        let snapshot = self.snapshot(volume, uuid)?.clone();
        let newer: Vec<Uuid> = self
            .state
            .snapshots
            .values()
            .filter(|other| other.volume == volume && other.uuid != uuid && other.create_time > snapshot.create_time)
            .map(|other| other.uuid)
            .collect();
        if !newer.is_empty() && !force {
            return Err(ApiError::conflict(524511, "There are newer snapshots; use restore_to.snapshot.force."));
        }
        for newer in newer {
            self.delete_snapshot(volume, newer)?;
        }
        let later: Vec<Uuid> = self
            .state
            .luns
            .values()
            .filter(|lun| lun.volume == volume && !snapshot.luns.contains_key(&lun.uuid))
            .map(|lun| lun.uuid)
            .collect();
        for lun in later {
            self.delete_lun(lun, true)?;
        }
        for (lun, facts) in &snapshot.luns {
            let held = self.snapshot_file(volume, uuid, *lun);
            let file = self.lun_file(volume, *lun);
            if self.state.luns.contains_key(lun) {
                self.target.at_one_instant(|| blocks::overwrite(&held, &file))??;
            } else {
                blocks::copy(&held, &file)?;
                let serial = self.next_serial();
                self.state.luns.insert(*lun, revived(*lun, volume, serial));
            }
            self.lun_mut(*lun)?.facts = facts.clone();
        }
        self.settle()
    }

    /// Sets one LUN back from a snapshot of its volume.
    pub fn restore_lun(&mut self, volume: Uuid, uuid: Uuid, path: &str) -> ApiResult<()> {
        let base = path.rsplit('/').next().unwrap_or(path);
        let snapshot = self.snapshot(volume, uuid)?;
        let is_it = |name: &str| name.rsplit('/').next() == Some(base);
        let held = snapshot.luns.iter().find(|(_, facts)| is_it(&facts.name)).map(|(lun, _)| *lun);
        let live = self.state.luns.values().find(|lun| lun.volume == volume && is_it(&lun.facts.name));
        match (held, live.map(|lun| lun.uuid)) {
            (Some(held), Some(live)) => self.overwrite_lun(live, &CloneSource::Held(uuid, held)),
            _ => Err(ApiError::missing(
                5374876,
                format!("The LUN \"{path}\" is not in the snapshot or not in the volume."),
            )),
        }
    }
}

fn revived(uuid: Uuid, volume: Uuid, serial: String) -> Lun {
    Lun {
        uuid,
        volume,
        // Replaced at once by what the snapshot holds.
        facts: crate::model::state::LunFacts {
            name: String::new(),
            os_type: String::new(),
            size: 0,
            comment: String::new(),
            reserved: false,
            attributes: std::collections::BTreeMap::new(),
            shared: 0,
            family: uuid,
        },
        serial,
        thin: false,
        enabled: true,
        space_error: false,
        auto_delete: false,
        qos: None,
        create_time: timestamp(),
        created_as_clone: false,
    }
}
