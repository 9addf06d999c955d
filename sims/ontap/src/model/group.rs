//! Consistency groups and their snapshots, in one step or in two.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::instant::SnapshotWish;
use crate::model::state::{ConsistencyGroup, GroupSnapshot};
use crate::model::{Array, now_ms, timestamp};

const VOLUMES_MAX: usize = 80;

/// The first half of a two-phase snapshot.
#[derive(Debug, Clone)]
pub struct Started {
    pub group: Uuid,
    pub snapshot: Uuid,
    pub name: String,
    pub comment: String,
    /// Milliseconds since 1970.
    pub until: u64,
}

/// The same without a group: only the XML interface knows it.
#[derive(Debug, Clone)]
pub struct Loose {
    number: u64,
    name: String,
    volumes: Vec<Uuid>,
    until: u64,
}

/// How long a group without a group may stay uncommitted: the interface's "relaxed", the longest.
const LOOSE_MS: u64 = 20_000;

impl Array {
    pub fn group(&self, uuid: Uuid) -> ApiResult<&ConsistencyGroup> {
        self.state.groups.get(&uuid).ok_or_else(|| {
            ApiError::missing(53411842, format!("The consistency group {uuid} was not found.")).at("uuid")
        })
    }

    /// The volumes of a request, which have to be free of other groups.
    pub fn volumes_for_group(&self, svm: &str, names: &[String]) -> ApiResult<Vec<Uuid>> {
        let mut found = Vec::new();
        for name in names {
            let volume = self.volume_named(svm, name).ok_or_else(|| {
                ApiError::missing(53411861, format!("Volume \"{name}\" was not found in SVM \"{svm}\"."))
                    .at("volumes.name")
            })?;
            if self.state.groups.values().any(|group| group.volumes.contains(&volume.uuid)) {
                let words = format!("Volume \"{name}\" is already in a consistency group.");
                return Err(ApiError::conflict(53411865, words).at("volumes.name"));
            }
            found.push(volume.uuid);
        }
        Ok(found)
    }

    pub fn create_group(&mut self, svm: &str, name: &str, names: &[String], uuid: Uuid) -> ApiResult<()> {
        self.svm(svm)?;
        if self.state.groups.values().any(|group| group.svm == svm && group.name == name) {
            return Err(
                ApiError::conflict(53411852, format!("A consistency group \"{name}\" already exists.")).at("name")
            );
        }
        if names.is_empty() || names.len() > VOLUMES_MAX {
            return Err(ApiError::invalid(53411861, format!("1 to {VOLUMES_MAX} volumes are expected.")).at("volumes"));
        }
        let volumes = self.volumes_for_group(svm, names)?;
        let group = ConsistencyGroup { uuid, name: name.into(), svm: svm.into(), volumes, snapshots: BTreeMap::new() };
        self.state.groups.insert(uuid, group);
        self.settle()
    }

    /// Adds and takes out volumes.
    pub fn change_group(&mut self, uuid: Uuid, add: &[String], remove: &[String]) -> ApiResult<()> {
        let svm = self.group(uuid)?.svm.clone();
        let added = self.volumes_for_group(&svm, add)?;
        let removed: Vec<Uuid> =
            remove.iter().filter_map(|name| self.volume_named(&svm, name)).map(|volume| volume.uuid).collect();
        if let Some(group) = self.state.groups.get_mut(&uuid) {
            group.volumes.extend(added);
            group.volumes.retain(|volume| !removed.contains(volume));
        }
        self.settle()
    }

    /// Ends the group; volumes and their snapshots stay.
    pub fn delete_group(&mut self, uuid: Uuid) -> ApiResult<()> {
        self.group(uuid)?;
        self.state.groups.remove(&uuid);
        self.settle()
    }

    fn group_failed(name: &str, error: &ApiError) -> ApiError {
        ApiError::invalid(53411921, format!("Snapshot \"{name}\" of the consistency group failed: {}", error.message))
    }

    /// What makes a snapshot of a group impossible.
    pub fn check_group_snapshot(&self, uuid: Uuid, name: &str) -> ApiResult<()> {
        let group = self.group(uuid)?;
        for volume in &group.volumes {
            self.check_snapshot(*volume, name).map_err(|error| Self::group_failed(name, &error))?;
        }
        Ok(())
    }

    pub fn snapshot_group(&mut self, uuid: Uuid, name: &str, comment: &str, snapshot: Uuid) -> ApiResult<()> {
        self.check_group_snapshot(uuid, name)?;
        let volumes = self.group(uuid)?.volumes.clone();
        let uuids: Vec<Uuid> = volumes.iter().map(|_| Uuid::new_v4()).collect();
        let wish = SnapshotWish { name: name.into(), comment: comment.into(), expiry_time: None, group: Some(uuid) };
        self.snapshot_volumes(&volumes, &wish, &uuids).map_err(|error| Self::group_failed(name, &error))?;
        let made = GroupSnapshot {
            uuid: snapshot,
            name: name.into(),
            comment: comment.into(),
            create_time: timestamp(),
            write_fence: volumes.len() > 1,
            members: volumes.into_iter().zip(uuids).collect(),
        };
        if let Some(group) = self.state.groups.get_mut(&uuid) {
            group.snapshots.insert(snapshot, made);
        }
        self.settle()
    }

    /// First phase. Writes are not really fenced between the phases: the instant is the commit's.
    pub fn start_group_snapshot(
        &mut self,
        group: Uuid,
        name: &str,
        comment: &str,
        seconds: u64,
        snapshot: Uuid,
    ) -> ApiResult<()> {
        self.check_group_snapshot(group, name)?;
        if !(5..=120).contains(&seconds) {
            return Err(ApiError::bad_value("action_timeout", &seconds.to_string()));
        }
        let until = now_ms() + seconds * 1000;
        self.started.push(Started { group, snapshot, name: name.into(), comment: comment.into(), until });
        Ok(())
    }

    /// Snapshots that were started and may still be committed.
    pub fn started_group_snapshots(&self, group: Uuid) -> impl Iterator<Item = &Started> {
        let now = now_ms();
        self.started.iter().filter(move |started| started.group == group && started.until > now)
    }

    /// Second phase: too late is an error.
    pub fn commit_group_snapshot(&mut self, group: Uuid, snapshot: Uuid) -> ApiResult<()> {
        let now = now_ms();
        self.started.retain(|started| started.until > now);
        let at = self.started.iter().position(|started| started.group == group && started.snapshot == snapshot);
        let Some(at) = at else {
            return Err(ApiError::invalid(53411925, "There is no started two-phase snapshot to commit."));
        };
        let started = self.started.remove(at);
        self.snapshot_group(group, &started.name, &started.comment, snapshot)
    }

    /// Deletes a group snapshot with its members.
    pub fn delete_group_snapshot(&mut self, group: Uuid, snapshot: Uuid) -> ApiResult<()> {
        let held = self.group(group)?.snapshots.get(&snapshot).ok_or_else(ApiError::no_entry)?.clone();
        for (volume, member) in &held.members {
            self.delete_snapshot(*volume, *member)?;
        }
        if let Some(group) = self.state.groups.get_mut(&group) {
            group.snapshots.remove(&snapshot);
        }
        self.settle()
    }

    /// Sets all volumes of a group back to one of its snapshots.
    pub fn restore_group(&mut self, group: Uuid, name: &str) -> ApiResult<()> {
        let found = self.group(group)?.snapshots.values().find(|snapshot| snapshot.name == name).cloned();
        let snapshot = found.ok_or_else(ApiError::no_entry)?;
        for (volume, member) in &snapshot.members {
            self.restore_volume(*volume, *member, true)?;
        }
        Ok(())
    }

    /// A group snapshot without a group, as the XML interface has it: first half.
    pub fn start_loose_group(&mut self, svm: &str, name: &str, names: &[String]) -> ApiResult<u64> {
        let mut volumes = Vec::new();
        for volume in names {
            let found = self.volume_named(svm, volume).ok_or_else(|| {
                ApiError::missing(53411861, format!("Volume \"{volume}\" was not found in SVM \"{svm}\"."))
            })?;
            self.check_snapshot(found.uuid, name)?;
            volumes.push(found.uuid);
        }
        let number = now_ms();
        let until = number + LOOSE_MS;
        self.loose.push(Loose { number, name: name.into(), volumes, until });
        Ok(number)
    }

    /// Second half: this is the instant.
    pub fn commit_loose_group(&mut self, number: u64) -> ApiResult<()> {
        let now = now_ms();
        self.loose.retain(|loose| loose.until > now);
        let at = self.loose.iter().position(|loose| loose.number == number);
        let loose = at.map(|at| self.loose.remove(at));
        let loose = loose.ok_or_else(|| ApiError::invalid(53411925, "There is no started group snapshot."))?;
        let uuids: Vec<Uuid> = loose.volumes.iter().map(|_| Uuid::new_v4()).collect();
        let wish = SnapshotWish { name: loose.name, ..SnapshotWish::default() };
        self.snapshot_volumes(&loose.volumes, &wish, &uuids)
    }
}
