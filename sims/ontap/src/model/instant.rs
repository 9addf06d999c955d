//! Snapshots of one or several FlexVols at one instant.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::names::check_snapshot;
use crate::model::state::Snapshot;
use crate::model::{Array, timestamp};

/// What a snapshot is called.
#[derive(Debug, Clone, Default)]
pub struct SnapshotWish {
    pub name: String,
    pub comment: String,
    pub expiry_time: Option<String>,
    pub group: Option<Uuid>,
}

impl Array {
    /// What makes a snapshot of a volume impossible now.
    pub fn check_snapshot(&self, volume: Uuid, name: &str) -> ApiResult<()> {
        check_snapshot(name)?;
        let found = self.volume(volume)?;
        let full = found.name.clone();
        if found.state != "online" || self.room(found) == 0 {
            return Err(ApiError::invalid(524479, format!("Volume \"{full}\" is offline or has no space.")));
        }
        if self.snapshot_named(volume, name).is_some() {
            return Err(ApiError::conflict(
                525059,
                format!("Snapshot \"{name}\" of volume \"{full}\" already exists."),
            )
            .at("name"));
        }
        let held = self.state.snapshots.values().filter(|snapshot| snapshot.volume == volume).count();
        if held >= self.options.snapshots_per_volume_max {
            return Err(ApiError::invalid(525062, format!("Volume \"{full}\" has {held} snapshots, the maximum.")));
        }
        if self.options.refuse_snapshot_while_splitting && self.pending_splits(volume).next().is_some() {
            let words = format!("Volume \"{full}\" is fenced: sharing of LUN clones is not complete.");
            return Err(ApiError::invalid(524481, words));
        }
        Ok(())
    }

    /// Snapshots all volumes, or none. `uuids` are the new snapshots', in the same order.
    pub fn snapshot_volumes(&mut self, volumes: &[Uuid], wish: &SnapshotWish, uuids: &[Uuid]) -> ApiResult<()> {
        let mut pairs: Vec<(PathBuf, PathBuf)> = Vec::new();
        let mut snapshots = Vec::new();
        for (volume, uuid) in volumes.iter().zip(uuids) {
            self.check_snapshot(*volume, &wish.name)?;
            let luns = self.state.luns.values().filter(|lun| lun.volume == *volume);
            let mut held = std::collections::BTreeMap::new();
            for lun in luns {
                pairs.push((self.lun_file(*volume, lun.uuid), self.snapshot_file(*volume, *uuid, lun.uuid)));
                let mut facts = lun.facts.clone();
                facts.shared = self.lun_used(lun.uuid);
                held.insert(lun.uuid, facts);
            }
            snapshots.push(Snapshot {
                uuid: *uuid,
                volume: *volume,
                name: wish.name.clone(),
                comment: wish.comment.clone(),
                create_time: timestamp(),
                expiry_time: wish.expiry_time.clone(),
                group: wish.group,
                luns: held,
            });
        }
        let pairs: Vec<(&Path, &Path)> = pairs.iter().map(|(from, to)| (from.as_path(), to.as_path())).collect();
        self.target.copy_at_one_instant(&pairs)?;
        for snapshot in snapshots {
            for (lun, facts) in &snapshot.luns {
                if let Some(lun) = self.state.luns.get_mut(lun) {
                    lun.facts.shared = facts.shared;
                }
            }
            self.note_birth(snapshot.uuid);
            self.state.snapshots.insert(snapshot.uuid, snapshot);
        }
        self.settle()
    }
}
