//! Clones of LUNs inside a FlexVol, and overwriting a LUN in place.

use std::path::PathBuf;

use sim_target::blocks;
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::model::state::{Lun, LunFacts, Split};
use crate::model::{Array, now_ms, timestamp};

/// Where the data come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloneSource {
    Live(Uuid),
    /// A LUN in a FlexVol snapshot: snapshot and the uuid of the LUN at that time.
    Held(Uuid, Uuid),
}

/// What a clone is given beside its source's facts.
#[derive(Debug, Clone, Default)]
pub struct CloneWish {
    pub reserved: Option<bool>,
    pub thin: bool,
    pub comment: Option<String>,
    pub qos: Option<String>,
}

struct Found {
    facts: LunFacts,
    volume: Uuid,
    file: PathBuf,
}

impl Array {
    /// Resolves `clone.source` of a request.
    pub fn clone_source(&self, svm: &str, name: Option<&str>, uuid: Option<&str>) -> ApiResult<CloneSource> {
        let unknown = |what: &str| {
            ApiError::missing(5374876, format!("The source LUN \"{what}\" was not found.")).at("clone.source")
        };
        let by_name = name.map(|name| self.source_named(svm, name).ok_or_else(|| unknown(name))).transpose()?;
        let by_uuid = uuid
            .map(|text| {
                let uuid = Uuid::parse_str(text).map_err(|_| ApiError::bad_value("clone.source.uuid", text))?;
                self.state.luns.get(&uuid).map(|lun| CloneSource::Live(lun.uuid)).ok_or_else(|| unknown(text))
            })
            .transpose()?;
        match (by_name, by_uuid) {
            (Some(CloneSource::Held(..)), Some(_)) => {
                Err(ApiError::invalid(5374899, "A LUN in a snapshot is named by path, not by uuid.")
                    .at("clone.source.uuid"))
            }
            (Some(one), Some(other)) if one != other => {
                Err(ApiError::invalid(5374874, "The name and the uuid of the source are not of one LUN.")
                    .at("clone.source"))
            }
            (Some(found), _) | (None, Some(found)) => Ok(found),
            (None, None) => Err(ApiError::required("clone.source.name")),
        }
    }

    fn source_named(&self, svm: &str, path: &str) -> Option<CloneSource> {
        let words: Vec<&str> = path.strip_prefix("/vol/")?.split('/').collect();
        match words.as_slice() {
            [volume, ".snapshot", snapshot, base] => {
                let volume = self.volume_named(svm, volume)?;
                let snapshot = self.snapshot_named(volume.uuid, snapshot)?;
                let is_it = |facts: &LunFacts| facts.name.rsplit('/').next() == Some(*base);
                let (lun, _) = snapshot.luns.iter().find(|(_, facts)| is_it(facts))?;
                Some(CloneSource::Held(snapshot.uuid, *lun))
            }
            _ => self.lun_named(svm, path).map(|lun| CloneSource::Live(lun.uuid)),
        }
    }

    fn find(&self, source: &CloneSource) -> ApiResult<Found> {
        match source {
            CloneSource::Live(uuid) => {
                let lun = self.lun(*uuid)?;
                Ok(Found { facts: lun.facts.clone(), volume: lun.volume, file: self.lun_file(lun.volume, *uuid) })
            }
            CloneSource::Held(snapshot, lun) => {
                let held = self.state.snapshots.get(snapshot).ok_or_else(ApiError::no_entry)?;
                let facts = held.luns.get(lun).ok_or_else(ApiError::no_entry)?.clone();
                Ok(Found { facts, volume: held.volume, file: self.snapshot_file(held.volume, *snapshot, *lun) })
            }
        }
    }

    /// The size of a source, for requests that repeat it.
    pub fn source_size(&self, source: &CloneSource) -> ApiResult<u64> {
        self.find(source).map(|found| found.facts.size)
    }

    /// What makes a clone impossible.
    pub fn check_clone(&self, svm: &str, path: &str, source: &CloneSource) -> ApiResult<()> {
        let taken = |error: ApiError| match error.code.as_str() {
            "5374242" => {
                ApiError::conflict(1260136, format!("The clone destination \"{path}\" already exists.")).at("name")
            }
            _ => error,
        };
        let volume = self.place_for(svm, path).map_err(taken)?.uuid;
        if self.find(source)?.volume != volume {
            return Err(ApiError::invalid(1260121, "Cannot perform LUN clone across volumes.").at("name"));
        }
        Ok(())
    }

    /// Makes a LUN that shares its blocks with the source.
    pub fn clone_lun(
        &mut self,
        svm: &str,
        path: &str,
        source: &CloneSource,
        wish: &CloneWish,
        uuid: Uuid,
    ) -> ApiResult<()> {
        self.check_clone(svm, path, source)?;
        let found = self.find(source)?;
        let file = self.lun_file(found.volume, uuid);
        match source {
            CloneSource::Live(_) => self.target.copy_at_one_instant(&[(&found.file, &file)])?,
            // Nobody writes to a snapshot.
            CloneSource::Held(..) => blocks::copy(&found.file, &file)?,
        };
        let shared = self.share(source, &found)?;
        let mut facts = found.facts;
        facts.name = path.to_string();
        facts.shared = shared;
        facts.reserved = wish.reserved.unwrap_or(facts.reserved);
        facts.comment = wish.comment.clone().unwrap_or(facts.comment);
        let serial = self.next_serial();
        let lun = Lun {
            uuid,
            volume: found.volume,
            facts,
            serial,
            // Not inherited: off unless asked for.
            thin: wish.thin,
            enabled: true,
            space_error: false,
            auto_delete: false,
            qos: wish.qos.clone(),
            create_time: timestamp(),
            created_as_clone: true,
        };
        self.state.luns.insert(uuid, lun);
        self.note_birth(uuid);
        self.begin_split(found.volume, source, shared);
        self.settle()
    }

    /// Gives a LUN the data (and the size) of another one in its FlexVol. It stays itself: uuid, serial number, maps.
    pub fn overwrite_lun(&mut self, destination: Uuid, source: &CloneSource) -> ApiResult<()> {
        let lun = self.lun(destination)?;
        let volume = lun.volume;
        let found = self.find(source)?;
        if found.volume != volume {
            return Err(ApiError::invalid(1260121, "Cannot perform LUN clone across volumes.").at("clone.source"));
        }
        if found.facts.os_type != lun.facts.os_type {
            return Err(ApiError::invalid(5374942, "The LUNs differ in os_type.").at("clone.source"));
        }
        let file = self.lun_file(volume, destination);
        if *source != CloneSource::Live(destination) {
            self.target.at_one_instant(|| blocks::overwrite(&found.file, &file))??;
        }
        let shared = self.share(source, &found)?;
        let facts = &mut self.lun_mut(destination)?.facts;
        facts.size = found.facts.size;
        facts.shared = shared;
        facts.family = found.facts.family;
        self.begin_split(volume, source, shared);
        self.settle()
    }

    /// Notes that everything a source holds now is shared. Returns how much that is.
    fn share(&mut self, source: &CloneSource, found: &Found) -> ApiResult<u64> {
        let shared = blocks::allocated(&found.file)?;
        let facts = match source {
            CloneSource::Live(uuid) => self.state.luns.get_mut(uuid).map(|lun| &mut lun.facts),
            CloneSource::Held(snapshot, lun) => {
                self.state.snapshots.get_mut(snapshot).and_then(|snapshot| snapshot.luns.get_mut(lun))
            }
        };
        if let Some(facts) = facts {
            facts.shared = shared;
        }
        Ok(shared)
    }

    fn begin_split(&mut self, volume: Uuid, source: &CloneSource, bytes: u64) {
        if self.options.split_ms == 0 {
            return;
        }
        let snapshot = match source {
            CloneSource::Live(_) => None,
            CloneSource::Held(snapshot, _) => Some(*snapshot),
        };
        self.state.splits.push(Split { volume, snapshot, bytes, until: now_ms() + self.options.split_ms });
    }

    /// Sharing that is under way in a volume.
    pub fn pending_splits(&self, volume: Uuid) -> impl Iterator<Item = &Split> {
        let now = now_ms();
        self.state.splits.iter().filter(move |split| split.volume == volume && split.until > now)
    }

    pub fn forget_ended_splits(&mut self) {
        let now = now_ms();
        self.state.splits.retain(|split| split.until > now);
    }
}
