//! Taking a volume back to one of its generations, in place: name, target and access records stay.
//!
//! The group keeps what was there before as a snapshot that nobody asked for. To know it afterwards, the number of foreign
//! snapshots (an administrator's own) is written into the description first; when it was 0, all foreign ones are from the
//! restore. Otherwise only those that appeared during an uninterrupted revert are deleted.

use std::collections::BTreeSet;

use tanada_driver::{DriverError, DriverErrorKind, DriverResult, Moved};
use uuid::Uuid;

use crate::driver::{Group, Ours};
use crate::names::{self, Description};
use crate::volumes::CHANGED;

impl Group {
    pub async fn revert(&self, volume: Uuid, generation: Uuid) -> DriverResult<Moved> {
        let mut ours = self.need_disk(volume).await?;
        let generations = self.generations(&ours.page.name).await?;
        let Some(to) = generations.iter().find(|found| found.id == generation) else {
            if self.generation(generation).await?.is_none() {
                return Err(self.missing(generation));
            }
            let words = format!("generation {generation} is of another volume than {volume}: clone it instead");
            return Err(DriverError::new(DriverErrorKind::Unsupported, words));
        };
        self.refuse_attached(&ours.page.name).await?;
        self.close_generation(to).await?;
        self.take_offline(&ours.page).await?;
        let foreign = self.foreign(&ours.page.name).await?;
        if ours.told.reverting.is_none() {
            ours.told.reverting = Some(u32::try_from(foreign.len()).unwrap_or(u32::MAX));
            self.describe(&ours.page.name, &ours.told).await?;
        }
        // What is restored over counts like any other write, and the group keeps what was there before.
        self.make_room(&ours.page).await?;
        self.was_cut(&ours.page.name);
        self.array.on_snapshot(&ours.page.name, &to.snapshot, "restore").await?;
        if !self.generations(&ours.page.name).await?.iter().any(|found| found.id == generation) {
            // A firmware that uses the snapshot up: the volume holds the same, so a new one is the same generation.
            let page = self.need_disk(volume).await?.page;
            self.recut(&page, generation).await?;
        }
        ours.told.parent = Some(generation);
        self.end_revert(&ours, Some(&foreign)).await?;
        Ok(CHANGED)
    }

    /// Deletes what the restore left and takes the mark from the description.
    pub async fn end_revert(&self, ours: &Ours, before: Option<&BTreeSet<String>>) -> DriverResult<()> {
        let volume = &ours.page.name;
        let all_are_its = ours.told.reverting == Some(0);
        for name in self.foreign(volume).await? {
            let is_new = before.is_some_and(|before| !before.contains(&name));
            if all_are_its || is_new {
                self.delete_snapshot(volume, &name).await?;
            }
        }
        self.describe(volume, &Description { reverting: None, ..ours.told.clone() }).await?;
        // The restore may have left the volume online.
        match self.page(volume).await? {
            Some(page) if !ours.page.online || before.is_some() => self.take_offline(&page).await,
            _ => Ok(()),
        }
    }

    async fn foreign(&self, volume: &str) -> DriverResult<BTreeSet<String>> {
        let rows = self.array.snapshots(volume).await?.into_iter();
        Ok(rows.map(|row| row.name).filter(|name| names::parse_snapshot(name).is_none()).collect())
    }
}
