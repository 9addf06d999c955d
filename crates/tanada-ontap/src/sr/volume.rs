//! Disks: made, grown, cloned, put back, deleted.

use tanada_driver::{CloneRequest, CreateRequest, DriverError, DriverErrorKind, DriverResult, Moved};
use tanada_units::MIB;
use uuid::Uuid;

use super::Sr;
use crate::array::LunSpec;
use crate::error::code;
use crate::model::Lun;
use crate::names::{Attachment, Identity, Kind, lun_path};

/// The largest LUN of all releases since 9.12.1P2.
const SIZE_MAX: u64 = 140_737_488_355_328;
/// Older releases round up to a geometry; what was asked for and what is there differ by less than this.
const ROUNDED_BY_MAX: u64 = 256 * MIB;

/// Whole MiB.
fn rounded(size: u64) -> DriverResult<u64> {
    if size == 0 || size > SIZE_MAX {
        let words = format!("a disk of {size} bytes cannot be made; 1 to {SIZE_MAX} are possible");
        return Err(DriverError::new(DriverErrorKind::InvalidArgument, words));
    }
    Ok(size.div_ceil(MIB) * MIB)
}

pub(super) fn moved(changed: bool) -> Moved {
    Moved { changed, ..Moved::default() }
}

pub(super) fn exists(id: Uuid, what: &str) -> DriverError {
    DriverError::new(DriverErrorKind::Exists, format!("LUN {id} exists and is {what}"))
}

impl Sr {
    pub async fn create(&self, request: &CreateRequest) -> DriverResult<(u64, Moved)> {
        let size = rounded(request.size)?;
        let identity = self.identity(request.volume, Kind::Volume, None);
        if let Some(found) = self.find(&[request.volume]).await?.remove(&request.volume) {
            let same = Identity::of(&found) == Some(identity) && found.space.size >= size;
            if !same || found.space.size - size > ROUNDED_BY_MAX {
                return Err(exists(request.volume, &format!("not an empty disk of {size} bytes")));
            }
            let found = self.finish(found, &identity, &request.name_label).await?;
            return Ok((found.space.size, moved(false)));
        }
        let flexvol = self.place(request, size).await?;
        let mut attributes = identity.attributes();
        if !request.name_label.is_empty() {
            attributes.push(("tanada.name", request.name_label.chars().take(500).collect()));
        }
        let spec = LunSpec {
            path: lun_path(&flexvol, &request.volume.to_string()),
            size,
            reserved: !self.config.thin,
            comment: identity.comment(),
            attributes,
        };
        let (made, _) = self.array.create_lun(&spec).await?;
        let made = self.finish(made, &identity, &request.name_label).await?;
        Ok((made.space.size, moved(true)))
    }

    pub async fn resize(&self, id: Uuid, size: u64) -> DriverResult<(u64, Moved)> {
        let size = rounded(size)?;
        let (lun, identity) = self.disk(id).await?;
        if identity.kind == Kind::Generation {
            let words = format!("{id} is a snapshot; its size does not change");
            return Err(DriverError::new(DriverErrorKind::InvalidArgument, words));
        }
        let has = lun.space.size;
        if size < has && has - size > ROUNDED_BY_MAX {
            let words = format!("disk {id} has {has} bytes and cannot shrink to {size}: this array only grows LUNs");
            return Err(DriverError::new(DriverErrorKind::Unsupported, words));
        }
        if size <= has {
            return Ok((has, moved(false)));
        }
        if !self.config.thin {
            let flexvols = self.flexvols().await?;
            self.make_room(flexvols.iter().find(|one| one.name == lun.flexvol()), size - has).await?;
        }
        self.array.resize_lun(&lun.uuid, size).await?;
        let lun = self.array.must(self.array.lun_by_uuid(&lun.uuid).await?, &lun.name)?;
        Ok((lun.space.size, moved(true)))
    }

    /// Deletes every LUN of this name in the SR's FlexVols, finished or not.
    pub async fn destroy(&self, id: Uuid) -> DriverResult<Moved> {
        let mut changed = false;
        for lun in self.array.luns_named(&self.pattern(), &[id.to_string()]).await? {
            if !self.owns_flexvol(lun.flexvol()) || lun.base() != id.to_string() {
                continue;
            }
            if let Some(used) = Attachment::all_of(&lun).first() {
                let words = format!("disk {id} is attached by {}", used.initiator);
                return Err(DriverError::new(DriverErrorKind::Busy, words));
            }
            changed |= self.delete_unmapped(&lun).await?;
        }
        Ok(moved(changed))
    }

    /// Maps that nobody stands for, but only ours, are taken away first.
    pub(super) async fn delete_unmapped(&self, lun: &Lun) -> DriverResult<bool> {
        match self.array.delete_lun(&lun.uuid).await {
            Err(error) if error.is(code::LUN_MAPPED) => {
                self.drop_stray_maps(lun).await?;
                Ok(self.array.delete_lun(&lun.uuid).await?)
            }
            other => Ok(other?),
        }
    }

    pub async fn clone_volume(&self, request: &CloneRequest) -> DriverResult<Moved> {
        let (source, _) = self.disk(request.source).await?;
        let identity = self.identity(request.volume, Kind::Volume, Some(request.source));
        match self.find(&[request.volume]).await?.remove(&request.volume) {
            Some(found) if Identity::of(&found) == Some(identity) => {
                self.finish(found, &identity, &request.name_label).await?;
                return Ok(moved(false));
            }
            Some(found) if Identity::of(&found).is_some() => {
                return Err(exists(request.volume, &format!("no clone of {}", request.source)));
            }
            Some(unfinished) => self.drop_unfinished(&unfinished, request.source).await?,
            None => {}
        }
        let path = lun_path(source.flexvol(), &request.volume.to_string());
        let (made, _) = self.array.clone_lun(&source.name, &path, !self.config.thin).await?;
        self.finish(made, &identity, &request.name_label).await?;
        Ok(moved(true))
    }

    /// Deletes what an earlier attempt to copy `source` left. Anything else of this name stays.
    pub(super) async fn drop_unfinished(&self, lun: &Lun, source: Uuid) -> DriverResult<()> {
        if Identity::of(lun).is_none() && Identity::inherited(lun).is_none_or(|of| of.vdi == source) {
            return self.delete_unmapped(lun).await.map(drop);
        }
        let words = format!("LUN {} is in the way, and is no unfinished copy of {source}", lun.name);
        Err(DriverError::new(DriverErrorKind::Exists, words))
    }

    /// The volume keeps its serial number and maps; its blocks and size become the generation's. Until its identity is
    /// written again it may bear the generation's: repeating the verb ends that.
    pub async fn revert(&self, volume: Uuid, generation: Uuid) -> DriverResult<Moved> {
        let (source, source_is) = self.disk(generation).await?;
        let lun = self.find(&[volume]).await?.remove(&volume).ok_or_else(|| self.no_disk(volume))?;
        let half_done = Identity::inherited(&lun).is_some_and(|of| of.vdi == generation);
        let is_volume = half_done || Identity::of(&lun).is_some_and(|is| is.kind == Kind::Volume);
        if source_is.kind != Kind::Generation || !is_volume {
            let words = format!("{volume} cannot be put back to {generation}: a disk and a snapshot are needed");
            return Err(DriverError::new(DriverErrorKind::InvalidArgument, words));
        }
        if source.flexvol() != lun.flexvol() {
            let words = format!("{volume} and {generation} lie in different FlexVols; clone the snapshot instead");
            return Err(DriverError::new(DriverErrorKind::Unsupported, words));
        }
        if let Some(writer) = Attachment::all_of(&lun).iter().find(|one| one.writable) {
            let words = format!("disk {volume} is attached for writing by {}", writer.initiator);
            return Err(DriverError::new(DriverErrorKind::Busy, words));
        }
        self.array.overwrite_lun(&lun.uuid, &source.uuid).await?;
        let again = self.array.must(self.array.lun_by_uuid(&lun.uuid).await?, &lun.name)?;
        // Whether comment and attributes follow the blocks is not said anywhere; both ways end here.
        let label = lun.attribute("tanada.name").unwrap_or_default().to_owned();
        let identity = self.identity(volume, Kind::Volume, Some(generation));
        self.finish(again, &identity, &label).await?;
        Ok(moved(true))
    }
}

#[cfg(test)]
mod tests {
    use super::{SIZE_MAX, rounded};
    use tanada_units::MIB;

    #[test]
    fn sizes_are_whole_mebibytes_within_the_arrays_limits() {
        assert_eq!(rounded(1).unwrap(), MIB);
        assert_eq!(rounded(MIB).unwrap(), MIB);
        assert_eq!(rounded(SIZE_MAX).unwrap(), SIZE_MAX);
        assert!(rounded(0).is_err());
        assert!(rounded(SIZE_MAX + 1).unwrap_err().message.contains("140737488355328"));
    }
}
