//! FlexVols: made, changed, deleted.

use std::collections::BTreeMap;
use std::fs;

use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::names::check_volume;
use crate::model::state::{Autosize, Volume};
use crate::model::{Array, io_error, timestamp};

const SIZE_MIN: u64 = 20 << 20;
/// 300 TiB
const SIZE_MAX: u64 = 300 << 40;
const COMMENT_MAX: usize = 1023;
const RESERVE_MAX: u64 = 90;

/// What a new FlexVol is to be. Absent things take ONTAP's defaults, which are not a SAN's best.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    pub svm: String,
    pub name: String,
    pub aggregates: Vec<String>,
    pub change: VolumeChange,
}

/// Settings of a volume that are to become others.
#[derive(Debug, Clone, Default)]
pub struct VolumeChange {
    pub name: Option<String>,
    pub size: Option<u64>,
    pub state: Option<String>,
    pub comment: Option<String>,
    pub guarantee: Option<String>,
    pub snapshot_policy: Option<String>,
    pub snapshot_directory: Option<bool>,
    pub reserve_percent: Option<u64>,
    pub fractional_reserve: Option<u64>,
    pub autosize_mode: Option<String>,
    pub autosize_maximum: Option<u64>,
    pub autosize_minimum: Option<u64>,
    pub grow_threshold: Option<u64>,
    pub shrink_threshold: Option<u64>,
    pub efficiency: BTreeMap<String, String>,
    pub tiering: Option<String>,
    pub qos: Option<String>,
}

/// A range for a word.
fn one_of(field: &str, value: &str, allowed: &[&str]) -> ApiResult<()> {
    if allowed.contains(&value) { Ok(()) } else { Err(ApiError::bad_value(field, value)) }
}

impl VolumeChange {
    /// What can be judged without the array.
    pub fn check(&self) -> ApiResult<()> {
        if let Some(name) = &self.name {
            check_volume(name)?;
        }
        if let Some(size) = self.size {
            if size < SIZE_MIN {
                return Err(ApiError::invalid(
                    917534,
                    format!("Size {size} is below the minimum of {SIZE_MIN} bytes."),
                )
                .at("size"));
            }
            if size > SIZE_MAX {
                return Err(ApiError::bad_value("size", &size.to_string()));
            }
        }
        if self.comment.as_ref().is_some_and(|comment| comment.len() > COMMENT_MAX) {
            return Err(ApiError::bad_value("comment", "longer than 1023 characters"));
        }
        if let Some(percent) = self.reserve_percent.filter(|percent| *percent > RESERVE_MAX) {
            let words = format!("The snapshot reserve of {percent} percent is above {RESERVE_MAX}.");
            return Err(ApiError::invalid(917835, words).at("space.snapshot.reserve_percent"));
        }
        if let Some(percent) = self.fractional_reserve.filter(|percent| ![0, 100].contains(percent)) {
            return Err(ApiError::bad_value("space.fractional_reserve", &percent.to_string()));
        }
        for (field, value, allowed) in [
            ("state", &self.state, &["online", "offline", "restricted"][..]),
            ("guarantee.type", &self.guarantee, &["none", "volume"]),
            ("autosize.mode", &self.autosize_mode, &["off", "grow", "grow_shrink"]),
        ] {
            if let Some(value) = value {
                one_of(field, value, allowed)?;
            }
        }
        for (key, value) in &self.efficiency {
            let allowed: &[&str] = match key.as_str() {
                "compaction" => &["none", "inline"],
                "state" => &["enabled", "disabled"],
                _ => &["none", "background", "inline", "both"],
            };
            one_of(&format!("efficiency.{key}"), value, allowed)?;
        }
        Ok(())
    }
}

impl Array {
    pub fn volume(&self, uuid: Uuid) -> ApiResult<&Volume> {
        self.state
            .volumes
            .get(&uuid)
            .ok_or_else(|| ApiError::missing(4, format!("entry doesn't exist: there is no volume {uuid}")).at("uuid"))
    }

    pub fn volume_named(&self, svm: &str, name: &str) -> Option<&Volume> {
        self.state.volumes.values().find(|volume| volume.svm == svm && volume.name == name)
    }

    pub fn create_volume(&mut self, new: &NewVolume, uuid: Uuid) -> ApiResult<()> {
        self.check_new_volume(new)?;
        let change = &new.change;
        let [aggregate] = new.aggregates.as_slice() else {
            return Err(ApiError::invalid(918242, "Exactly one aggregate is needed for a flexvol.").at("aggregates"));
        };
        let guarantee = change.guarantee.clone().unwrap_or_else(|| "volume".into());
        let size = change.size.unwrap_or(SIZE_MIN);
        if guarantee == "volume" && size > self.aggregate_space(aggregate).available {
            let words = format!("Aggregate \"{aggregate}\" has no room for {size} bytes.");
            return Err(ApiError::invalid(917536, words).at("size"));
        }
        let autosize = Autosize {
            mode: "off".into(),
            maximum: size + size / 5,
            minimum: size,
            grow_threshold: 85,
            shrink_threshold: 50,
        };
        let volume = Volume {
            uuid,
            name: new.name.clone(),
            svm: new.svm.clone(),
            aggregate: aggregate.clone(),
            size,
            state: "online".into(),
            comment: String::new(),
            fractional_reserve: if guarantee == "volume" { 100 } else { 0 },
            guarantee,
            snapshot_policy: "default".into(),
            snapshot_directory: true,
            reserve_percent: 5,
            autosize,
            efficiency: ["dedupe", "compression", "compaction", "cross_volume_dedupe"]
                .iter()
                .map(|key| ((*key).to_string(), "none".to_string()))
                .collect(),
            tiering: "none".into(),
            qos: None,
            create_time: timestamp(),
            is_svm_root: false,
            clone: None,
        };
        fs::create_dir_all(self.volume_dir(uuid)).map_err(io_error("a volume's directory"))?;
        self.state.volumes.insert(uuid, volume);
        self.apply(uuid, change);
        self.settle()
    }

    /// What makes the creation of a volume impossible.
    pub fn check_new_volume(&self, new: &NewVolume) -> ApiResult<()> {
        check_volume(&new.name)?;
        new.change.check()?;
        self.svm(&new.svm)?;
        for name in &new.aggregates {
            if !self.state.aggregates.iter().any(|aggregate| aggregate.name == *name) {
                let words = format!("Aggregate \"{name}\" does not exist.");
                return Err(ApiError::missing(917508, words).at("aggregates.name"));
            }
        }
        self.check_policy(&new.change)?;
        if self.volume_named(&new.svm, &new.name).is_some() {
            let words = format!("Volume \"{}\" in SVM \"{}\" already exists.", new.name, new.svm);
            return Err(ApiError::conflict(917526, words).at("name"));
        }
        if self.state.volumes.len() >= self.options.volumes_max {
            return Err(ApiError::invalid(7, format!("there are {} volumes already", self.state.volumes.len())));
        }
        Ok(())
    }

    fn check_policy(&self, change: &VolumeChange) -> ApiResult<()> {
        match &change.snapshot_policy {
            Some(name) if !["none", "default", "default-1weekly"].contains(&name.as_str()) => {
                let words = format!("Snapshot policy \"{name}\" does not exist.");
                Err(ApiError::missing(917551, words).at("snapshot_policy.name"))
            }
            _ => Ok(()),
        }
    }

    fn apply(&mut self, uuid: Uuid, change: &VolumeChange) {
        let Some(volume) = self.state.volumes.get_mut(&uuid) else { return };
        fn set<T: Clone>(slot: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                slot.clone_from(value);
            }
        }
        set(&mut volume.name, &change.name);
        set(&mut volume.size, &change.size);
        set(&mut volume.state, &change.state);
        set(&mut volume.comment, &change.comment);
        set(&mut volume.guarantee, &change.guarantee);
        set(&mut volume.snapshot_policy, &change.snapshot_policy);
        set(&mut volume.snapshot_directory, &change.snapshot_directory);
        set(&mut volume.reserve_percent, &change.reserve_percent);
        set(&mut volume.fractional_reserve, &change.fractional_reserve);
        set(&mut volume.autosize.mode, &change.autosize_mode);
        set(&mut volume.autosize.maximum, &change.autosize_maximum);
        set(&mut volume.autosize.minimum, &change.autosize_minimum);
        set(&mut volume.autosize.grow_threshold, &change.grow_threshold);
        set(&mut volume.autosize.shrink_threshold, &change.shrink_threshold);
        set(&mut volume.tiering, &change.tiering);
        volume.efficiency.extend(change.efficiency.clone());
        if let Some(qos) = &change.qos {
            volume.qos = Some(qos.clone()).filter(|name| !name.is_empty() && name != "none");
        }
    }

    pub fn change_volume(&mut self, uuid: Uuid, change: &VolumeChange) -> ApiResult<()> {
        change.check()?;
        self.check_policy(change)?;
        let volume = self.volume(uuid)?;
        if let Some(name) = change.name.as_ref().filter(|name| **name != volume.name) {
            if volume.is_svm_root {
                return Err(ApiError::invalid(917531, "The root volume cannot be renamed."));
            }
            if self.volume_named(&volume.svm, name).is_some() {
                return Err(ApiError::conflict(917526, format!("Volume \"{name}\" already exists.")).at("name"));
            }
        }
        let used = self.volume_space(volume).used;
        if let Some(size) = change.size.filter(|size| *size < used) {
            let words = format!("The volume holds {used} bytes; it cannot shrink to {size}.");
            return Err(ApiError::invalid(917534, words).at("size"));
        }
        self.apply(uuid, change);
        if let Some(name) = &change.name {
            for lun in self.state.luns.values_mut().filter(|lun| lun.volume == uuid) {
                if let Some((_, base)) = lun.facts.name.rsplit_once('/') {
                    lun.facts.name = format!("/vol/{name}/{base}");
                }
            }
        }
        self.settle()
    }

    /// Ends a volume with all LUNs and snapshots in it, maps or not.
    pub fn delete_volume(&mut self, uuid: Uuid) -> ApiResult<()> {
        let volume = self.volume(uuid)?;
        if volume.is_svm_root {
            return Err(ApiError::invalid(917531, "The root volume of an SVM cannot be deleted."));
        }
        if self.state.volumes.values().any(|other| other.clone.as_ref().is_some_and(|clone| clone.parent == uuid)) {
            return Err(ApiError::conflict(524615, format!("Volume \"{}\" has clones.", volume.name)));
        }
        let gone: Vec<Uuid> = self.state.luns.values().filter(|lun| lun.volume == uuid).map(|lun| lun.uuid).collect();
        self.state.maps.retain(|map| !gone.contains(&map.lun));
        self.state.luns.retain(|lun, _| !gone.contains(lun));
        self.state.snapshots.retain(|_, snapshot| snapshot.volume != uuid);
        self.state.splits.retain(|split| split.volume != uuid);
        self.state.volumes.remove(&uuid);
        for group in self.state.groups.values_mut() {
            group.volumes.retain(|volume| *volume != uuid);
        }
        // First out of sight, then the files.
        self.settle()?;
        fs::remove_dir_all(self.volume_dir(uuid)).map_err(io_error("a volume's directory"))
    }
}
