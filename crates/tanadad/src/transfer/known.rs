//! Disks that an archive of records alone speaks of, and the disks here that they are.

use std::collections::BTreeMap;

use tanada_xapi::{ApiError, ApiResult, Ref};
use tanada_xva::{Object, Ova};

use crate::db::View;

/// A disk that an archive of records alone speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDisk {
    /// Its id in the archive.
    pub id: String,
    pub uuid: String,
    pub location: String,
    /// `SCSIid` in its `sm_config`; empty where it has none.
    pub scsi_id: String,
    pub sr_uuid: String,
}

/// Every disk that is not on an ISO library.
pub fn known_disks(ova: &Ova) -> Vec<KnownDisk> {
    let srs: BTreeMap<&str, &Object> = ova.of_class("SR").map(|sr| (sr.id.as_str(), sr)).collect();
    let known = |vdi: &Object| {
        let sr = srs.get(vdi.text("SR"));
        let library = sr.is_some_and(|sr| sr.text("content_type") == "iso");
        (!library).then(|| KnownDisk {
            id: vdi.id.clone(),
            uuid: vdi.text("uuid").to_owned(),
            location: vdi.text("location").to_owned(),
            scsi_id: vdi.text_map("sm_config").remove("SCSIid").unwrap_or_default(),
            sr_uuid: sr.map(|sr| sr.text("uuid").to_owned()).unwrap_or_default(),
        })
    };
    ova.of_class("VDI").filter_map(known).collect()
}

/// The disk here that each of them is, by their ids in the archive: the one that the caller `mapped` to (by uuid or SCSI
/// id), that of the same SCSI id, the one at the same place of the same SR, or the one of its uuid there: a revert gives a disk
/// another place. With `force` what is not here is left out.
pub fn find_disks(
    view: &impl View,
    known: &[KnownDisk],
    mapped: &BTreeMap<String, String>,
    force: bool,
) -> ApiResult<BTreeMap<String, Ref>> {
    let here = Here::read(view);
    let mut found = BTreeMap::new();
    for disk in known {
        let to = mapped.get(&disk.uuid).or_else(|| mapped.get(&disk.scsi_id).filter(|_| !disk.scsi_id.is_empty()));
        let vdi = match to {
            Some(to) => {
                let vdi = view.find_by_uuid("VDI", to).map(|vdi| vdi.id().clone());
                let vdi = vdi.or_else(|| here.by_scsi_id.get(to.as_str()).cloned());
                Some(vdi.ok_or_else(|| ApiError::uuid_invalid("VDI", to))?)
            }
            None => here.of(disk),
        };
        match vdi {
            Some(vdi) => drop(found.insert(disk.id.clone(), vdi)),
            None if force => {}
            None => return Err(missing(view, disk)),
        }
    }
    Ok(found)
}

fn missing(view: &impl View, disk: &KnownDisk) -> ApiError {
    match view.find_by_uuid("SR", &disk.sr_uuid) {
        Some(sr) => ApiError::vdi_location_missing(sr.id(), &disk.location),
        None => ApiError::vdi_content_id_missing(),
    }
}

/// Disks here by what they can be found by.
struct Here {
    by_scsi_id: BTreeMap<String, Ref>,
    /// By uuid of the SR and place in it.
    by_place: BTreeMap<(String, String), Ref>,
    by_uuid: BTreeMap<(String, String), Ref>,
}

impl Here {
    fn read(view: &impl View) -> Here {
        let srs: BTreeMap<Ref, String> =
            view.all("SR").iter().map(|sr| (sr.id().clone(), sr.uuid().to_owned())).collect();
        let (mut by_scsi_id, mut by_place, mut by_uuid) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for vdi in view.all("VDI") {
            if let Some(id) = vdi.entry("sm_config", "SCSIid") {
                by_scsi_id.insert(id.to_owned(), vdi.id().clone());
            }
            if let Some(sr) = srs.get(&vdi.reference("SR")) {
                by_place.insert((sr.clone(), vdi.str("location").to_owned()), vdi.id().clone());
                by_uuid.insert((sr.clone(), vdi.uuid().to_owned()), vdi.id().clone());
            }
        }
        Here { by_scsi_id, by_place, by_uuid }
    }

    fn of(&self, disk: &KnownDisk) -> Option<Ref> {
        let by_scsi_id = self.by_scsi_id.get(&disk.scsi_id).filter(|_| !disk.scsi_id.is_empty());
        let by_place = || self.by_place.get(&(disk.sr_uuid.clone(), disk.location.clone()));
        let by_uuid = || self.by_uuid.get(&(disk.sr_uuid.clone(), disk.uuid.clone()));
        by_scsi_id.or_else(by_place).or_else(by_uuid).cloned()
    }
}
