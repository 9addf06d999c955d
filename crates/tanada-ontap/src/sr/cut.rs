//! Snapshots: every disk of a group at one instant.
//!
//! ```text
//!  one disk          LUN clone                                             (one call, one instant)
//!  one FlexVol       wait for pending sharing ─▶ FlexVol snapshot ─┐
//!  several FlexVols  temporary group ─▶ group snapshot ────────────┤
//!                                    LUN clone per disk out of it ◀┘ ─▶ identities ─▶ snapshot deleted
//! ```
//! The instant is the FlexVol snapshot; what follows has no hurry. If anything fails, all that was made is deleted again.
//! The FlexVol snapshot may not go at once (clones still share with it): it is renamed and the reaper ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use tanada_driver::{CutPair, CutReport, DriverError, DriverErrorKind, DriverResult};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Sr;
use super::reap::Underway;
use super::volume::{exists, moved};
use crate::error::{ArrayError, ArrayResult, code};
use crate::model::Lun;
use crate::names::{self, Attachment, Identity, Kind, lun_path};

/// A guest may be frozen while the cut waits for clones that are not complete; freezes last some ten seconds.
const CUT_WITHIN: Duration = Duration::from_secs(8);
const CUT_PAUSE: Duration = Duration::from_millis(200);

/// One disk of a group: where it is, and what it becomes.
struct Part {
    lun: Lun,
    pair: CutPair,
}

impl Sr {
    pub async fn snapshot(&self, group: &[CutPair]) -> DriverResult<CutReport> {
        let started = Instant::now();
        let Some(parts) = self.parts(group).await? else { return Ok(CutReport::default()) };
        let made = match parts.as_slice() {
            [part] => self.clone_part(part, None).await,
            _ => self.cut_together(&parts).await,
        };
        if let Err(error) = made {
            self.undo(&parts).await;
            return Err(error);
        }
        let total_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        // What a write in flight waited for is known to the array alone.
        Ok(CutReport { moved: moved(true), total_us, ..CutReport::default() })
    }

    /// What there is to cut; `None` where all of it was done before.
    async fn parts(&self, group: &[CutPair]) -> DriverResult<Option<Vec<Part>>> {
        let ids: Vec<Uuid> = group.iter().flat_map(|pair| [pair.volume, pair.generation]).collect();
        let found = self.find(&ids).await?;
        let is_done = |pair: &CutPair| {
            let wanted = self.identity(pair.generation, Kind::Generation, Some(pair.volume));
            found.get(&pair.generation).is_some_and(|lun| Identity::of(lun) == Some(wanted))
        };
        if group.iter().all(is_done) {
            for lun in group.iter().filter_map(|pair| found.get(&pair.generation)) {
                if let Some(identity) = Identity::of(lun) {
                    let label = lun.attribute("tanada.name").unwrap_or_default().to_owned();
                    self.finish(lun.clone(), &identity, &label).await?;
                }
            }
            return Ok(None);
        }
        let mut parts = Vec::new();
        for pair in group {
            let lun = found.get(&pair.volume).filter(|lun| Identity::of(lun).is_some());
            parts.push(Part { lun: lun.cloned().ok_or_else(|| self.no_disk(pair.volume))?, pair: *pair });
        }
        for pair in group {
            let Some(lun) = found.get(&pair.generation) else { continue };
            // Of another instant than the one to come: it belongs to an attempt that did not end.
            match is_done(pair) && Attachment::all_of(lun).is_empty() {
                true => drop(self.delete_unmapped(lun).await?),
                false if Identity::of(lun).is_some() => {
                    return Err(exists(pair.generation, &format!("no snapshot of {}", pair.volume)));
                }
                false => self.drop_unfinished(lun, pair.volume).await?,
            }
        }
        Ok(Some(parts))
    }

    async fn clone_part(&self, part: &Part, cut: Option<&str>) -> DriverResult<()> {
        let flexvol = part.lun.flexvol();
        let source = match cut {
            Some(cut) => format!("/vol/{flexvol}/.snapshot/{cut}/{}", part.lun.base()),
            None => part.lun.name.clone(),
        };
        let path = lun_path(flexvol, &part.pair.generation.to_string());
        let (made, _) = self.array.clone_lun(&source, &path, !self.config.thin).await?;
        let identity = self.identity(part.pair.generation, Kind::Generation, Some(part.pair.volume));
        self.finish(made, &identity, part.lun.attribute("tanada.name").unwrap_or_default()).await.map(drop)
    }

    async fn cut_together(&self, parts: &[Part]) -> DriverResult<()> {
        let _one_at_a_time = self.cutting.lock().await;
        let operation = super::operation();
        let cut = names::cut(&self.host, &operation);
        let group = names::group(self.sr, &self.host, &operation);
        let underway = Underway::new(&[cut.clone(), group.clone()], self.left_over());
        let flexvols: BTreeMap<&str, &str> =
            parts.iter().map(|part| (part.lun.flexvol(), part.lun.location.volume.uuid.as_str())).collect();
        let done = async {
            match flexvols.iter().next() {
                Some((_, uuid)) if flexvols.len() == 1 => self.cut_flexvol(uuid, &cut).await?,
                _ => {
                    let taken = self.cut_flexvols(&flexvols, &cut, &group).await;
                    self.end_group(&group).await;
                    taken?;
                }
            }
            // A guest may be frozen until all are there. Each is waited for: one that is dropped half-way could still take
            // effect after the undoing.
            let clones = join_all(parts.iter().map(|part| self.clone_part(part, Some(&cut)))).await;
            clones.into_iter().collect::<DriverResult<()>>()
        };
        let done = done.await;
        for uuid in flexvols.values() {
            self.end_cut(uuid, &cut, done.is_ok()).await;
        }
        underway.end();
        done
    }

    /// A FlexVol refuses a snapshot while clones in it are not complete; which number it gives then is not documented, so
    /// any refusal is taken for that as long as there are such clones.
    async fn cut_flexvol(&self, flexvol: &str, cut: &str) -> DriverResult<()> {
        let deadline = Instant::now() + CUT_WITHIN;
        while self.array.pending_splits(flexvol).await? > 0 && Instant::now() < deadline {
            sleep(CUT_PAUSE).await;
        }
        loop {
            let refused = match self.array.create_snapshot(flexvol, cut).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let passing = refused.is_busy() || self.array.pending_splits(flexvol).await? > 0;
            if !passing || Instant::now() >= deadline {
                return Err(DriverError::from(refused));
            }
            sleep(CUT_PAUSE).await;
        }
    }

    /// A consistency group is made for the cut alone. A FlexVol is in one group at most: where an administrator has put
    /// one of ours into another, or the account may not make groups, the cut cannot be at one instant.
    async fn cut_flexvols(&self, flexvols: &BTreeMap<&str, &str>, cut: &str, name: &str) -> DriverResult<()> {
        self.reap_groups().await?;
        let members: Vec<String> = flexvols.keys().map(|name| (*name).to_owned()).collect();
        let group = match self.free_group(name, &members).await {
            Ok(group) => group,
            Err(error) if not_groupable(&error) => {
                let words = format!("the disks lie in {} FlexVols that cannot be cut together: {error}", members.len());
                return Err(DriverError::new(DriverErrorKind::NotAtomic, words));
            }
            Err(error) => return Err(error.into()),
        };
        let deadline = Instant::now() + CUT_WITHIN;
        let taken = loop {
            match self.array.snapshot_group(&group, cut).await {
                Err(error) if !self.any_pending(flexvols).await? || Instant::now() >= deadline => break Err(error),
                Err(_) => sleep(CUT_PAUSE).await,
                Ok(()) => break Ok(()),
            }
        };
        Ok(taken?)
    }

    /// Whether or not the cut was taken, nothing of it stays; what does not go now is left to the reaper.
    async fn end_group(&self, name: &str) {
        let ended = async {
            for group in self.array.groups(name).await?.iter().filter(|group| group.name == name) {
                self.array.delete_group(&group.uuid).await?;
            }
            Ok::<(), ArrayError>(())
        };
        if let Err(error) = ended.await {
            tracing::debug!(group = %name, %error, "a consistency group is left to the reaper");
            self.left_over.notify_one();
        }
    }

    /// Another host's cut may hold a FlexVol for a moment.
    async fn free_group(&self, name: &str, members: &[String]) -> ArrayResult<String> {
        let deadline = Instant::now() + CUT_WITHIN;
        loop {
            match self.array.create_group(name, members).await {
                Err(error) if error.is(code::GROUP_TAKEN) => {
                    let others = self.array.groups(&format!("{}*", names::group_prefix(self.sr))).await?;
                    if others.is_empty() || Instant::now() >= deadline {
                        return Err(error);
                    }
                    sleep(CUT_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn any_pending(&self, flexvols: &BTreeMap<&str, &str>) -> ArrayResult<bool> {
        for uuid in flexvols.values() {
            if self.array.pending_splits(uuid).await? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes back what a failed cut made. What cannot be reached now is left to whoever repeats or deletes.
    async fn undo(&self, parts: &[Part]) {
        let names: Vec<String> = parts.iter().map(|part| part.pair.generation.to_string()).collect();
        let made = match self.array.luns_named(&self.pattern(), &names).await {
            Ok(made) => made,
            Err(error) => return tracing::warn!(%error, "what a failed snapshot left cannot be seen"),
        };
        let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        for lun in made.iter().filter(|lun| wanted.contains(lun.base()) && self.owns_flexvol(lun.flexvol())) {
            if let Err(error) = self.array.delete_lun(&lun.uuid).await {
                tracing::warn!(lun = %lun.name, %error, "what a failed snapshot left cannot be deleted now");
            }
        }
    }
}

/// Groups are not possible here, as opposed to: did not work now.
fn not_groupable(error: &ArrayError) -> bool {
    error.is(code::GROUP_TAKEN) || error.is_denied() || error.is_not_found() || error.is(code::NOT_SUPPORTED)
}
