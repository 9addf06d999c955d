//! What there is and how much room it takes, from the array alone.

use tanada_driver::{DriverError, DriverErrorKind, DriverResult, ScanEntry, SpaceFacts, VolumeFacts};
use uuid::Uuid;

use crate::driver::Group;
use crate::error::sm;
use crate::names::{self, Description, Kind, Role};

impl Group {
    /// For a generation the array knows no numbers of its own: what all snapshots of its volume hold together is told for
    /// the only one; where there are several, each counts as shared with the others.
    pub async fn stat(&self, target: Uuid) -> DriverResult<VolumeFacts> {
        if let Some(ours) = self.disk(target).await? {
            let mapped = ours.page.in_use;
            return Ok(VolumeFacts {
                id: target,
                is_generation: false,
                parent: ours.told.parent,
                size: ours.page.size,
                mapped,
                exclusive: mapped,
                shared: 0,
                name_label: None,
            });
        }
        let generation = self.generation(target).await?.ok_or_else(|| self.missing(target))?;
        let page = self.page(&generation.volume).await?.ok_or_else(|| self.missing(target))?;
        let told = Description::parse(&page.description);
        let held = page.reserve.used();
        let alone = page.snapshots == 1;
        Ok(VolumeFacts {
            id: target,
            is_generation: true,
            parent: told.map(|told| told.id),
            size: generation.size,
            mapped: page.in_use,
            exclusive: if alone { held } else { 0 },
            shared: page.in_use.saturating_sub(if alone { held } else { 0 }),
            name_label: None,
        })
    }

    /// The pool is shared with whatever else lies in it; `virtual_size` counts what is ours.
    pub async fn space(&self) -> DriverResult<SpaceFacts> {
        let pool = &self.options.pool;
        let space = self.array.pool_space(pool).await?.ok_or_else(|| {
            let words = format!("there is no pool {pool:?} on the group");
            DriverError::new(DriverErrorKind::NotFound, words).with_sm(sm::POOL)
        })?;
        let mut facts = SpaceFacts {
            physical: space.capacity,
            free: space.free,
            used: space.capacity.saturating_sub(space.free),
            ..SpaceFacts::default()
        };
        for (row, role) in self.rows().await? {
            if role == Role::Disk {
                facts.virtual_size = facts.virtual_size.saturating_add(row.size);
            }
        }
        Ok(facts)
    }

    /// Disks and generations; husks, templates and the management volume are not shown. A disk whose description was
    /// damaged by hand is left out and told of, never guessed at.
    pub async fn scan(&self) -> DriverResult<Vec<ScanEntry>> {
        let mut found = Vec::new();
        for (row, role) in self.rows().await? {
            if role != Role::Disk {
                continue;
            }
            let Some(page) = self.page(&row.name).await? else { continue };
            let told = Description::parse(&page.description)
                .filter(|told| names::volume(self.sr, told.id) == row.name && told.kind != Kind::Sr);
            let Some(told) = told else {
                tracing::warn!(volume = row.name, description = page.description, "a volume's description is not ours");
                continue;
            };
            if told.kind == Kind::Disk {
                found.push(ScanEntry {
                    id: told.id,
                    is_generation: false,
                    parent: told.parent,
                    size: page.size,
                    name_label: None,
                });
            }
            if row.snapshots == 0 {
                continue;
            }
            for generation in self.generations(&row.name).await? {
                found.push(ScanEntry {
                    id: generation.id,
                    is_generation: true,
                    parent: Some(told.id),
                    size: generation.size,
                    name_label: None,
                });
            }
        }
        Ok(found)
    }
}
