//! Snapshots: of one volume, or of several at one instant.
//!
//! ```text
//!   one:     create-now description tanada1,g=<generation> ─▶ rename
//!   several: collection create ─▶ snapcoll create-now description tanada1,c=<cut> ─▶ rename each ─▶ collection delete
//! ```
//! A group names snapshots itself, so each has to be renamed; until then its description says whose it is. An interrupted
//! cut is taken up by the same call (all are there: they are renamed; not all: they are deleted and the cut is done anew),
//! and otherwise removed by `tidy`.

use std::time::Instant;

use tanada_driver::{CutPair, CutReport, DriverError, DriverErrorKind, DriverResult};
use uuid::Uuid;

use crate::array::{VolumePage, created_snapshot};
use crate::driver::Group;
use crate::error::{CliError, sm};
use crate::names;
use crate::volumes::CHANGED;

/// Volumes in a collection.
const GROUP_MAX: usize = 8;

impl Group {
    pub async fn cut(&self, pairs: &[CutPair]) -> DriverResult<CutReport> {
        let begun = Instant::now();
        let mut missing = Vec::new();
        for pair in pairs {
            let Some(ours) = self.disk(pair.volume).await? else { return Err(self.no_source(pair.volume).await?) };
            let generations = self.generations(&ours.page.name).await?;
            if !generations.iter().any(|generation| generation.id == pair.generation) {
                missing.push((*pair, ours.page));
            }
        }
        if missing.is_empty() {
            if pairs.len() > 1 && self.has_collections().await? {
                // All was done but the end.
                self.drop_collection(&names::collection(self.sr, cut_id(pairs))).await?;
            }
            return Ok(CutReport::default());
        }
        if pairs.len() > 1 {
            self.check_group(pairs).await?;
        }
        for (_, page) in &missing {
            self.make_room(page).await?;
        }
        let cut = match (pairs, missing.as_slice()) {
            ([_], [(pair, page)]) => self.cut_one(pair, page).await,
            _ => self.cut_group(pairs, &missing).await,
        };
        cut?;
        let total_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(CutReport { moved: CHANGED, total_us, slowest_write_us: 0, writes_observed: 0 })
    }

    /// Why a volume cannot be cut.
    async fn no_source(&self, id: Uuid) -> DriverResult<DriverError> {
        if self.generation(id).await?.is_none() {
            return Ok(self.missing(id));
        }
        let words = format!("{id} is a generation; a group makes no snapshot of a snapshot");
        Ok(DriverError::new(DriverErrorKind::Unsupported, words).with_sm(sm::SNAPSHOT_OF_SNAPSHOT))
    }

    async fn cut_one(&self, pair: &CutPair, page: &VolumePage) -> DriverResult<()> {
        let told = names::snapshot_description(pair.generation);
        let name = match self.unfinished(&page.name, &told).await? {
            Some(name) => name,
            None => {
                let lines =
                    self.array.on_volume(&page.name, &format!("snapshot create-now description {told}")).await?;
                match created_snapshot(&lines) {
                    Some(name) => name,
                    None => self.unfinished(&page.name, &told).await?.ok_or_else(|| unnamed(&page.name))?,
                }
            }
        };
        self.name_snapshot(page, &name, pair.generation).await
    }

    /// Cuts the generation `id` of a volume once more.
    pub async fn recut(&self, page: &VolumePage, id: Uuid) -> DriverResult<()> {
        self.cut_one(&CutPair { volume: Uuid::nil(), generation: id }, page).await
    }

    /// The snapshot of `volume` with this description that has no name of ours yet.
    async fn unfinished(&self, volume: &str, description: &str) -> DriverResult<Option<String>> {
        for row in self.array.snapshots(volume).await? {
            if names::parse_snapshot(&row.name).is_none() {
                let page = self.array.snapshot(volume, &row.name).await?;
                if page.is_some_and(|page| page.description == description) {
                    return Ok(Some(row.name));
                }
            }
        }
        Ok(None)
    }

    async fn name_snapshot(&self, page: &VolumePage, name: &str, generation: Uuid) -> DriverResult<()> {
        let wanted = names::snapshot(generation, page.size);
        self.array.on_volume(&page.name, &format!("snapshot rename {name} {wanted}")).await?;
        self.hints().generations.insert(generation, page.name.clone());
        Ok(())
    }

    /// Refuses a group that no collection can hold; nothing was done then.
    async fn check_group(&self, pairs: &[CutPair]) -> DriverResult<()> {
        let words = if pairs.len() > GROUP_MAX {
            format!("{} volumes are more than the {GROUP_MAX} that a volume collection holds", pairs.len())
        } else if !self.has_collections().await? {
            String::from("this firmware has no volume collections on its command line")
        } else {
            return Ok(());
        };
        Err(DriverError::new(DriverErrorKind::NotAtomic, words))
    }

    /// Whether the firmware's command line knows volume collections.
    pub async fn has_collections(&self) -> DriverResult<bool> {
        let known = self.hints().collections;
        if let Some(known) = known {
            return Ok(known);
        }
        let known = match self.array.collections().await {
            Ok(_) => true,
            Err(failure @ CliError::Refused { .. }) => {
                tracing::info!(%failure, "no volume collections: disks are cut one by one");
                false
            }
            Err(failure) => return Err(failure.into()),
        };
        self.hints().collections = Some(known);
        Ok(known)
    }

    async fn cut_group(&self, pairs: &[CutPair], missing: &[(CutPair, VolumePage)]) -> DriverResult<()> {
        let cut = cut_id(pairs);
        let (told, collection) = (names::cut_description(cut), names::collection(self.sr, cut));
        let done = self.cut_group_once(pairs, missing, &told, &collection).await;
        if let Err(failure) = &done
            && failure.kind != DriverErrorKind::Unreachable
        {
            let all = self.pages(pairs).await?;
            self.undo(pairs, &all, &told).await?;
            self.drop_collection(&collection).await?;
        }
        done
    }

    async fn cut_group_once(
        &self,
        pairs: &[CutPair],
        missing: &[(CutPair, VolumePage)],
        told: &str,
        collection: &str,
    ) -> DriverResult<()> {
        if !self.adopt(missing, told).await? {
            // Those that have their names are of an earlier instant.
            self.undo(pairs, missing, told).await?;
            let all = self.pages(pairs).await?;
            self.cut_collection(collection, &all, told).await?;
            if !self.adopt(&all, told).await? {
                return Err(unnamed(collection));
            }
        }
        self.drop_collection(collection).await
    }

    async fn cut_collection(&self, collection: &str, all: &[(CutPair, VolumePage)], told: &str) -> DriverResult<()> {
        let volumes: Vec<&str> = all.iter().map(|(_, page)| page.name.as_str()).collect();
        self.drop_collection(collection).await?;
        self.array.run(&format!("volume collection create {collection} volume {}", volumes.join(","))).await?;
        all.iter().for_each(|(_, page)| self.was_cut(&page.name));
        let command = format!("volume collection select {collection} snapcoll create-now description {told}");
        self.array.run(&command).await?;
        Ok(())
    }

    async fn pages(&self, pairs: &[CutPair]) -> DriverResult<Vec<(CutPair, VolumePage)>> {
        let mut all = Vec::with_capacity(pairs.len());
        for pair in pairs {
            all.push((*pair, self.need_disk(pair.volume).await?.page));
        }
        Ok(all)
    }

    /// Names the snapshots of a cut; false, and nothing is done, where one is not there.
    async fn adopt(&self, pairs: &[(CutPair, VolumePage)], told: &str) -> DriverResult<bool> {
        let mut found = Vec::with_capacity(pairs.len());
        for (pair, page) in pairs {
            let Some(name) = self.unfinished(&page.name, told).await? else { return Ok(false) };
            found.push((pair, page, name));
        }
        for (pair, page, name) in found {
            self.name_snapshot(page, &name, pair.generation).await?;
        }
        Ok(true)
    }

    /// Deletes what there is of a cut that is not whole.
    async fn undo(&self, pairs: &[CutPair], pages: &[(CutPair, VolumePage)], told: &str) -> DriverResult<()> {
        for (_, page) in pages {
            while let Some(name) = self.unfinished(&page.name, told).await? {
                self.delete_snapshot(&page.name, &name).await?;
            }
        }
        for pair in pairs {
            let volume = names::volume(self.sr, pair.volume);
            let generations = self.generations(&volume).await?;
            if let Some(early) = generations.iter().find(|generation| generation.id == pair.generation) {
                self.delete_snapshot(&volume, &early.snapshot).await?;
            }
            self.hints().generations.remove(&pair.generation);
        }
        Ok(())
    }

    async fn drop_collection(&self, collection: &str) -> DriverResult<()> {
        match self.array.run(&format!("volume collection delete {collection}")).await {
            Err(failure) if failure.is_missing() => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    /// Deletes the collections that an interrupted cut left.
    pub async fn drop_collections(&self) -> DriverResult<()> {
        if !self.has_collections().await? {
            return Ok(());
        }
        for name in self.array.collections().await? {
            if names::is_collection(self.sr, &name) {
                self.drop_collection(&name).await?;
            }
        }
        Ok(())
    }
}

/// The same generations are the same cut, in whatever order and however often they are asked for.
fn cut_id(pairs: &[CutPair]) -> Uuid {
    Uuid::from_u128(pairs.iter().fold(0, |cut, pair| cut ^ pair.generation.as_u128().rotate_left(1)))
}

fn unnamed(place: &str) -> DriverError {
    let words = format!("{place}: the group made a snapshot and it is not among those that it shows");
    DriverError::new(DriverErrorKind::Io, words)
}
