//! FlexClone volumes: a whole FlexVol over a snapshot of another, and the split from it.

use std::fs;

use sim_target::blocks;
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::instant::SnapshotWish;
use crate::model::names::check_volume;
use crate::model::state::{Lun, Volume, VolumeClone};
use crate::model::{Array, io_error, now_ms, timestamp};

impl Array {
    /// What makes the clone impossible.
    pub fn check_flexclone(&self, svm: &str, name: &str, parent: &str) -> ApiResult<Uuid> {
        check_volume(name)?;
        if self.volume_named(svm, name).is_some() {
            return Err(ApiError::conflict(917526, format!("Volume \"{name}\" already exists.")).at("name"));
        }
        let found = self.volume_named(svm, parent).map(|volume| volume.uuid);
        found.ok_or_else(|| {
            ApiError::missing(524601, format!("Parent volume \"{parent}\" was not found."))
                .at("clone.parent_volume.name")
        })
    }

    /// Makes the clone over `snapshot`, or over one made for it.
    pub fn create_flexclone(
        &mut self,
        svm: &str,
        name: &str,
        parent: &str,
        snapshot: Option<&str>,
        uuid: Uuid,
    ) -> ApiResult<()> {
        let parent = self.check_flexclone(svm, name, parent)?;
        let base = match snapshot {
            Some(name) => self.snapshot_named(parent, name).map(|snapshot| snapshot.uuid).ok_or_else(|| {
                ApiError::missing(542797, format!("Snapshot \"{name}\" was not found."))
                    .at("clone.parent_snapshot.name")
            })?,
            None => {
                let (made, wish) = (Uuid::new_v4(), format!("clone_{name}.{}", now_ms()));
                self.snapshot_volumes(&[parent], &SnapshotWish { name: wish, ..SnapshotWish::default() }, &[made])?;
                made
            }
        };
        fs::create_dir_all(self.volume_dir(uuid)).map_err(io_error("a volume's directory"))?;
        let held = self.snapshot(parent, base)?.luns.clone();
        for (lun, mut facts) in held {
            let copy = Uuid::new_v4();
            blocks::copy(&self.snapshot_file(parent, base, lun), &self.lun_file(uuid, copy))?;
            let base_name = facts.name.rsplit('/').next().unwrap_or_default().to_string();
            facts.name = format!("/vol/{name}/{base_name}");
            facts.shared = blocks::allocated(&self.lun_file(uuid, copy))?;
            let serial = self.next_serial();
            let made = Lun {
                uuid: copy,
                volume: uuid,
                facts,
                serial,
                thin: false,
                enabled: true,
                space_error: false,
                auto_delete: false,
                qos: None,
                create_time: timestamp(),
                created_as_clone: true,
            };
            self.state.luns.insert(copy, made);
        }
        let volume = Volume {
            uuid,
            name: name.to_string(),
            create_time: timestamp(),
            clone: Some(VolumeClone { parent, snapshot: base, split_until: None }),
            ..self.volume(parent)?.clone()
        };
        self.state.volumes.insert(uuid, volume);
        self.settle()
    }

    pub fn split_flexclone(&mut self, uuid: Uuid) -> ApiResult<()> {
        let until = now_ms() + self.options.split_ms;
        let volume = self.state.volumes.get_mut(&uuid).ok_or_else(ApiError::no_entry)?;
        let clone = volume.clone.as_mut().ok_or_else(|| ApiError::invalid(524849, "The volume is no clone."))?;
        clone.split_until.get_or_insert(until);
        self.end_flexclone_splits();
        self.settle()
    }

    /// Clones whose split has ended are clones no more.
    pub fn end_flexclone_splits(&mut self) {
        let now = now_ms();
        for volume in self.state.volumes.values_mut() {
            if volume.clone.as_ref().and_then(|clone| clone.split_until).is_some_and(|until| until <= now) {
                volume.clone = None;
            }
        }
    }
}
