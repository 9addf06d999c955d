//! LUNs: made, changed, deleted; their attributes.

use std::collections::BTreeMap;
use std::fs;

use sim_target::blocks;
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::names::split_lun;
use crate::model::state::{Lun, LunFacts, Volume};
use crate::model::{Array, io_error, timestamp};

const SIZE_MIN: u64 = 4096;
/// 128 TiB
const SIZE_MAX: u64 = 128 << 40;
const COMMENT_MAX: usize = 254;
/// Name and value of an attribute together.
const ATTRIBUTE_MAX: usize = 4092;
/// Characters of a serial number.
const SERIAL_LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+";

pub const OS_TYPES: &[&str] = &[
    "aix",
    "hpux",
    "hyper_v",
    "linux",
    "netware",
    "openvms",
    "solaris",
    "solaris_efi",
    "vmware",
    "windows",
    "windows_2008",
    "windows_gpt",
    "xen",
];

/// What a new LUN is to be.
#[derive(Debug, Clone, Default)]
pub struct NewLun {
    pub svm: String,
    /// `/vol/<volume>/<base>`
    pub path: String,
    pub os_type: String,
    pub size: u64,
    pub comment: String,
    pub reserved: bool,
    pub thin: bool,
    pub attributes: BTreeMap<String, String>,
    pub qos: Option<String>,
}

/// What is to become different. Attributes have calls of their own.
#[derive(Debug, Clone, Default)]
pub struct LunChange {
    pub path: Option<String>,
    pub size: Option<u64>,
    pub comment: Option<String>,
    pub enabled: Option<bool>,
    pub reserved: Option<bool>,
    pub thin: Option<bool>,
    pub qos: Option<String>,
    pub auto_delete: Option<bool>,
}

pub fn check_comment(comment: &str) -> ApiResult<()> {
    if comment.len() > COMMENT_MAX {
        return Err(
            ApiError::invalid(5374884, format!("The comment is longer than {COMMENT_MAX} characters.")).at("comment")
        );
    }
    Ok(())
}

pub fn check_attribute(name: &str, value: &str) -> ApiResult<()> {
    if name.is_empty() || value.is_empty() {
        return Err(ApiError::invalid(5374928, "An attribute needs a name and a value.").at("attributes"));
    }
    if name.len() + value.len() > ATTRIBUTE_MAX {
        let words = format!("The attribute \"{name}\" has more than {ATTRIBUTE_MAX} bytes.");
        return Err(ApiError::invalid(5374929, words).at("attributes"));
    }
    Ok(())
}

impl Array {
    pub fn lun(&self, uuid: Uuid) -> ApiResult<&Lun> {
        self.state.luns.get(&uuid).ok_or_else(|| {
            ApiError::missing(5374875, format!("The specified LUN \"{uuid}\" was not found.")).at("uuid")
        })
    }

    pub fn lun_mut(&mut self, uuid: Uuid) -> ApiResult<&mut Lun> {
        self.state.luns.get_mut(&uuid).ok_or_else(|| {
            ApiError::missing(5374875, format!("The specified LUN \"{uuid}\" was not found.")).at("uuid")
        })
    }

    pub fn svm_of_lun(&self, lun: &Lun) -> String {
        self.state.volumes.get(&lun.volume).map(|volume| volume.svm.clone()).unwrap_or_default()
    }

    pub fn lun_named(&self, svm: &str, path: &str) -> Option<&Lun> {
        self.state.luns.values().find(|lun| lun.facts.name == path && self.svm_of_lun(lun) == svm)
    }

    /// The volume of a LUN path, fit for a new LUN of that name.
    pub(super) fn place_for(&self, svm: &str, path: &str) -> ApiResult<&Volume> {
        let (name, _) = split_lun(path)?;
        let volume = self.volume_named(svm, name).ok_or_else(|| {
            ApiError::missing(917927, format!("Volume \"{name}\" does not exist in SVM \"{svm}\"."))
                .at("location.volume.name")
        })?;
        if volume.is_svm_root {
            return Err(ApiError::invalid(5374237, "LUNs cannot be created on an SVM's root volume.").at("name"));
        }
        if volume.state != "online" {
            return Err(ApiError::invalid(5374866, format!("Volume \"{name}\" is {}.", volume.state)));
        }
        if self.lun_named(svm, path).is_some() {
            return Err(ApiError::conflict(5374242, format!("The LUN \"{path}\" already exists.")).at("name"));
        }
        if self.luns_in(volume.uuid) >= self.options.luns_per_volume_max {
            let words = format!("Volume \"{name}\" holds {} LUNs, the maximum.", self.options.luns_per_volume_max);
            return Err(ApiError::invalid(5440509, words));
        }
        Ok(volume)
    }

    pub fn luns_in(&self, volume: Uuid) -> usize {
        self.state.luns.values().filter(|lun| lun.volume == volume).count()
    }

    /// The size that the array makes of a wish.
    pub fn rounded_size(&self, size: u64) -> ApiResult<u64> {
        if size < SIZE_MIN {
            return Err(
                ApiError::invalid(5374124, format!("The LUN size {size} is below {SIZE_MIN} bytes.")).at("space.size")
            );
        }
        let rounded = size.next_multiple_of(self.options.lun_rounding.max(512));
        if rounded > SIZE_MAX {
            return Err(
                ApiError::invalid(5374125, format!("The LUN size {size} is above {SIZE_MAX} bytes.")).at("space.size")
            );
        }
        Ok(rounded)
    }

    pub fn next_serial(&mut self) -> String {
        self.state.last_serial += 1;
        // Twelve characters: eight from the cluster, so that arrays differ, and four that count.
        let cluster = self.state.cluster.uuid.as_u128();
        let count = u128::from(self.state.last_serial);
        (0..12)
            .map(|place| {
                let (number, place) = if place < 8 { (cluster, place) } else { (count, 11 - place) };
                char::from(SERIAL_LETTERS[(number >> (6 * place) & 63) as usize])
            })
            .collect()
    }

    pub fn create_lun(&mut self, new: &NewLun, uuid: Uuid) -> ApiResult<()> {
        let size = self.check_new_lun(new)?;
        let volume = self.place_for(&new.svm, &new.path)?.uuid;
        blocks::create(&self.lun_file(volume, uuid), size)?;
        let facts = LunFacts {
            name: new.path.clone(),
            os_type: new.os_type.clone(),
            size,
            comment: new.comment.clone(),
            reserved: new.reserved,
            attributes: new.attributes.clone(),
            shared: 0,
            family: uuid,
        };
        let serial = self.next_serial();
        let lun = Lun {
            uuid,
            volume,
            facts,
            serial,
            thin: new.thin,
            enabled: true,
            space_error: false,
            auto_delete: false,
            qos: new.qos.clone(),
            create_time: timestamp(),
            created_as_clone: false,
        };
        self.state.luns.insert(uuid, lun);
        self.note_birth(uuid);
        self.settle()
    }

    /// What makes the creation impossible; otherwise the size that it will have.
    pub fn check_new_lun(&self, new: &NewLun) -> ApiResult<u64> {
        let volume = self.place_for(&new.svm, &new.path)?;
        if !OS_TYPES.contains(&new.os_type.as_str()) {
            return Err(ApiError::bad_value("os_type", &new.os_type));
        }
        let size = self.rounded_size(new.size)?;
        check_comment(&new.comment)?;
        for (name, value) in &new.attributes {
            check_attribute(name, value)?;
        }
        if new.reserved && size > self.room(volume) {
            let words = format!("Volume \"{}\" has no room to reserve {size} bytes.", volume.name);
            return Err(ApiError::invalid(5440509, words).at("space.size"));
        }
        Ok(size)
    }

    pub fn change_lun(&mut self, uuid: Uuid, change: &LunChange) -> ApiResult<()> {
        let lun = self.lun(uuid)?;
        if let Some(path) = change.path.as_ref().filter(|path| **path != lun.facts.name) {
            self.check_rename(lun, path)?;
        }
        let mut grown = None;
        // A request that repeats the size beside something else is none to resize.
        let is_alone = change.path.is_none();
        if let Some(size) = change.size {
            let rounded = self.rounded_size(size)?;
            match rounded.cmp(&lun.facts.size) {
                std::cmp::Ordering::Less => {
                    return Err(
                        ApiError::invalid(5374892, "Reducing the size of a LUN is not supported.").at("space.size")
                    );
                }
                std::cmp::Ordering::Equal if is_alone => {
                    let words = "New LUN size is the same as the old LUN size.";
                    return Err(ApiError::invalid(1254226, words).at("space.size"));
                }
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => grown = Some(rounded),
            }
        }
        if let Some(comment) = &change.comment {
            check_comment(comment)?;
        }
        if let Some(size) = grown {
            blocks::resize(&self.lun_file(lun.volume, uuid), size)?;
        }
        let lun = self.lun_mut(uuid)?;
        if let Some(size) = grown {
            lun.facts.size = size;
        }
        if let Some(path) = &change.path {
            lun.facts.name.clone_from(path);
        }
        if let Some(comment) = &change.comment {
            lun.facts.comment.clone_from(comment);
        }
        if let Some(enabled) = change.enabled {
            lun.enabled = enabled;
            lun.space_error &= !enabled;
        }
        lun.facts.reserved = change.reserved.unwrap_or(lun.facts.reserved);
        lun.thin = change.thin.unwrap_or(lun.thin);
        lun.auto_delete = change.auto_delete.unwrap_or(lun.auto_delete);
        if let Some(qos) = &change.qos {
            lun.qos = Some(qos.clone()).filter(|name| !name.is_empty());
        }
        self.settle()
    }

    fn check_rename(&self, lun: &Lun, path: &str) -> ApiResult<()> {
        let svm = self.svm_of_lun(lun);
        let (volume, _) = split_lun(path)?;
        let (own, _) = split_lun(&lun.facts.name)?;
        if volume != own {
            return Err(ApiError::invalid(3, "moving a LUN to another volume is not simulated").at("name"));
        }
        if self.lun_named(&svm, path).is_some() {
            return Err(ApiError::conflict(1254196, format!("The LUN \"{path}\" already exists.")).at("name"));
        }
        Ok(())
    }

    pub fn delete_lun(&mut self, uuid: Uuid, while_mapped: bool) -> ApiResult<()> {
        let lun = self.lun(uuid)?;
        if !while_mapped && self.state.maps.iter().any(|map| map.lun == uuid) {
            let words =
                format!("The LUN \"{}\" is mapped. Use the allow_delete_while_mapped query parameter.", lun.facts.name);
            return Err(ApiError::conflict(1254197, words));
        }
        let file = self.lun_file(lun.volume, uuid);
        self.state.maps.retain(|map| map.lun != uuid);
        self.state.luns.remove(&uuid);
        self.settle()?;
        fs::remove_file(file).map_err(io_error("a LUN's file"))
    }

    pub fn add_attribute(&mut self, lun: Uuid, name: &str, value: &str) -> ApiResult<()> {
        check_attribute(name, value)?;
        let attributes = &mut self.lun_mut(lun)?.facts.attributes;
        if attributes.contains_key(name) {
            return Err(ApiError::conflict(5374930, format!("The attribute \"{name}\" already exists.")).at("name"));
        }
        attributes.insert(name.to_string(), value.to_string());
        self.settle()
    }

    /// Changes an attribute, or ends it where there is no new value.
    pub fn change_attribute(&mut self, lun: Uuid, name: &str, value: Option<&str>) -> ApiResult<()> {
        if let Some(value) = value {
            check_attribute(name, value)?;
        }
        let attributes = &mut self.lun_mut(lun)?.facts.attributes;
        if !attributes.contains_key(name) {
            return Err(ApiError::missing(5374931, format!("The attribute \"{name}\" does not exist.")).at("name"));
        }
        match value {
            Some(value) => attributes.insert(name.to_string(), value.to_string()),
            None => attributes.remove(name),
        };
        self.settle()
    }
}
