//! Disks of an archive that have to be made.

use std::collections::BTreeMap;

use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};
use tanada_xva::{Object, Ova};

use super::error::xva_error;
use super::fields::{text, typed};
use super::marked::MARK;
use crate::ops::{throw_away, vdi};

/// A disk that has to be made before the machine can be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewDisk {
    /// Its id in the archive.
    pub id: String,
    pub virtual_size: u64,
    pub name_label: String,
    pub name_description: String,
    pub kind: String,
    pub sharable: bool,
    pub other_config: BTreeMap<String, String>,
    pub tags: Vec<String>,
}

/// The disks of the machine, their records sound.
pub fn new_disks(ova: &Ova) -> ApiResult<Vec<NewDisk>> {
    let disks = ova.disks().map_err(xva_error)?;
    let disks = disks.iter().filter_map(|plan| Some((plan, ova.find(&plan.id)?)));
    disks.map(|(plan, object)| Ok(new_disk(&plan.id, plan.size, &typed_vdi(object)?))).collect()
}

impl NewDisk {
    /// What is asked of the storage; `import` marks the disk until the import is complete.
    pub fn request(&self, sr: &Ref, import: &str) -> vdi::NewDisk {
        let mut other_config = self.other_config.clone();
        other_config.insert(MARK.to_owned(), import.to_owned());
        vdi::NewDisk::new(sr, self.virtual_size, &self.name_label, &self.name_description)
            .with("type", self.kind.as_str())
            .with("sharable", self.sharable)
            .with("other_config", Value::map(other_config))
            .with("tags", Value::set(self.tags.clone()))
    }
}

/// What is known of a disk from its record.
pub fn new_disk(id: &str, virtual_size: u64, record: &Map) -> NewDisk {
    let mut other_config = record.get("other_config").and_then(Value::as_map).cloned().unwrap_or_default();
    throw_away::forget_marks(&mut other_config);
    let tags = record.get("tags").and_then(Value::as_set).unwrap_or_default();
    NewDisk {
        id: id.to_owned(),
        virtual_size,
        name_label: text(record, "name_label").to_owned(),
        name_description: text(record, "name_description").to_owned(),
        kind: Some(text(record, "type")).filter(|kind| !kind.is_empty()).unwrap_or("user").to_owned(),
        sharable: record.get("sharable").and_then(Value::as_bool).unwrap_or(false),
        other_config: other_config
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())))
            .collect(),
        tags: tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect(),
    }
}

/// The record of a disk that can be made.
pub fn typed_vdi(object: &Object) -> ApiResult<Map> {
    let record = typed(object)?;
    if text(&record, "type") == "cbt_metadata" {
        return Err(ApiError::vdi_incompatible_type(&object.id, "cbt_metadata"));
    }
    Ok(record)
}
