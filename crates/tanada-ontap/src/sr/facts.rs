//! What there is, from the array alone.

use std::collections::BTreeSet;

use tanada_driver::{DriverResult, ScanEntry, SpaceFacts, VolumeFacts};
use uuid::Uuid;

use super::Sr;
use crate::model::Lun;
use crate::names::{Identity, Kind, METADATA_LUN};

impl Sr {
    /// The array counts blocks that copies share in each of them. So the space of a disk that has no copies is its own,
    /// and of one that has (or is one), nothing is certain to come back when it goes.
    pub async fn stat(&self, id: Uuid) -> DriverResult<VolumeFacts> {
        let (lun, identity) = self.disk(id).await?;
        let shares = identity.parent.is_some() || self.array.has_copies(&self.pattern(), id).await?;
        let used = lun.space.used;
        let label = lun.attribute("tanada.name").map(str::to_owned);
        Ok(VolumeFacts {
            id,
            is_generation: identity.kind == Kind::Generation,
            parent: identity.parent,
            size: lun.space.size,
            mapped: used,
            exclusive: if shares { 0 } else { used },
            shared: if shares { used } else { 0 },
            name_label: label,
        })
    }

    /// `physical` is what the SR has and could have now. Room is the aggregate's, which others use too; where the account cannot see it, the FlexVols'.
    pub async fn space(&self) -> DriverResult<SpaceFacts> {
        let flexvols = self.flexvols().await?;
        let used: u64 = flexvols.iter().map(|one| one.space.used).sum();
        let aggregate = flexvols.iter().find_map(|one| one.aggregates.first()).map(|one| one.name.clone());
        let room = match aggregate.or_else(|| self.config.aggregate.clone()) {
            Some(name) => self.array.aggregate_space(&name).await?.map(|space| space.available),
            None => None,
        };
        let free = room.unwrap_or_else(|| flexvols.iter().map(|one| one.space.available).sum());
        let luns = self.luns().await?;
        let disks = luns.iter().filter(|lun| Identity::of(lun).is_some_and(|is| is.kind == Kind::Volume));
        Ok(SpaceFacts {
            physical: used.saturating_add(free),
            used,
            free,
            virtual_size: disks.map(|lun| lun.space.size).sum(),
            ..SpaceFacts::default()
        })
    }

    /// Finished disks. What else is in the FlexVols is reported in the log and left alone.
    pub async fn scan(&self) -> DriverResult<Vec<ScanEntry>> {
        let luns = self.luns().await?;
        let known: Vec<(&Lun, Identity)> = luns.iter().filter_map(|lun| Some((lun, Identity::of(lun)?))).collect();
        let ids: BTreeSet<Uuid> = known.iter().map(|(_, is)| is.vdi).collect();
        for stray in luns.iter().filter(|lun| lun.base() != METADATA_LUN && Identity::of(lun).is_none()) {
            tracing::warn!(lun = %stray.name, "a LUN in this SR's FlexVol is no disk of it, or a copy that did not end");
        }
        let entry = |(lun, is): &(&Lun, Identity)| ScanEntry {
            id: is.vdi,
            is_generation: is.kind == Kind::Generation,
            parent: is.parent.filter(|parent| ids.contains(parent)),
            size: lun.space.size,
            name_label: lun.attribute("tanada.name").map(str::to_owned),
        };
        Ok(known.iter().map(entry).collect())
    }
}
