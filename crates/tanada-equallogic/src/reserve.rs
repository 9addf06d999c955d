//! Room for what generations hold.
//!
//! A group keeps overwritten pages of a volume in its snapshot reserve. When that is full, it deletes the oldest snapshots
//! and tells nobody, or takes the volume offline under its guest. Neither may happen, so the reserve never gets full:
//!
//! *Between two cuts a page is kept at most once, so the snapshots of a volume can grow by no more than the volume's own
//! space until the next cut, and n snapshots never hold more than n times that space.* Before each cut the reserve is
//! therefore raised until at least the volume's space is free in it. If the pool has not enough room for it, the snapshot
//! is refused (`NoSpace`, 167), nothing that exists is touched and the guest goes on.
//!
//! A volume begins without a reserve, which would be room of the pool that nobody uses, unless the configuration says
//! otherwise. What deleted snapshots held is given back to the pool.
//!
//! A group measures from time to time, so what it shows may be a little old ([`LAG`]). Each cut that is younger counts as
//! if all of the volume had been overwritten since; and a while after a cut the rule is applied once more, to numbers that
//! are complete by then.
//!
//! What the rule cannot know is watched by [`Group::patrol`]: a thin volume whose space grows after its cut, snapshots by
//! an administrator's schedule, a reserve that was lowered by hand. The reserve is raised again; where that fails an alert
//! says so while there is still room. A generation that is gone without our doing is reported, once.
//!
//! As the last defence the depletion policy is `delete-oldest`, unless the SR or the disk says `volume-offline`: losing the
//! oldest backup is bad, stopping the machine that is backed up is worse, and the loss is not silent.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tanada_driver::{Alert, DriverError, DriverErrorKind, DriverResult};

use crate::array::{Reserve, VolumePage};
use crate::driver::Group;
use crate::error::sm;
use crate::names::{Description, Kind, Role};
use crate::options::SNAP_RESERVE_MAX;
use crate::size::PAGE_BYTES;

/// How old the numbers of a group may be.
pub const LAG: Duration = Duration::from_secs(30);

/// Percent of the volume's space that the reserve must have, to make a snapshot beside `existing` ones of which `young` are
/// not fully measured yet.
fn percent_for(reserve: &Reserve, existing: u64, young: u64) -> u64 {
    if reserve.volume == 0 {
        return reserve.percent;
    }
    // The group rounds a reserve to whole pages, and some firmware shows sizes with two decimals only.
    let margin = if reserve.used() > 0 { PAGE_BYTES + reserve.used() / 64 } else { 0 };
    let volume = u128::from(reserve.volume);
    let shown = u128::from(reserve.used()) + u128::from(margin) + (1 + u128::from(young)) * volume;
    let most = (1 + u128::from(existing)) * volume;
    let percent = (shown.min(most) * 100).div_ceil(volume);
    u64::try_from(percent).unwrap_or(u64::MAX)
}

impl Group {
    /// Makes sure that a snapshot of this volume, and all that exist, survive until the next one.
    pub async fn make_room(&self, page: &VolumePage) -> DriverResult<()> {
        let young = self.young_cuts(&page.name);
        let wanted = percent_for(&page.reserve, page.snapshots.into(), young).max(self.options.disks.reserve_percent);
        if wanted <= page.reserve.percent {
            return Ok(());
        }
        if wanted > SNAP_RESERVE_MAX {
            let words = format!(
                "volume {} would need a snapshot reserve of {wanted} % and a group gives at most {SNAP_RESERVE_MAX} %: delete generations",
                page.name
            );
            return Err(DriverError::new(DriverErrorKind::NoSpace, words).with_sm(sm::VOLUME_OUT_OF_SPACE));
        }
        match self.array.on_volume(&page.name, &format!("snap-reserve {wanted}%")).await {
            Err(failure) if failure.is_no_space() => {
                let words = format!(
                    "the pool has no room to raise the snapshot reserve of {} from {} to {wanted} %, without which a generation could be lost: {failure}",
                    page.name, page.reserve.percent
                );
                Err(DriverError::new(DriverErrorKind::NoSpace, words).with_sm(sm::VOLUME_OUT_OF_SPACE))
            }
            other => Ok(other.map(|_| ())?),
        }
    }

    /// The reserve of a volume without snapshots: a group gives each new one 100 %, a clone that of its source.
    pub async fn start_reserve(&self, page: &VolumePage, percent: u64) -> DriverResult<()> {
        if page.snapshots == 0 && page.reserve.percent != percent {
            self.array.on_volume(&page.name, &format!("snap-reserve {percent}%")).await?;
        }
        Ok(())
    }

    /// Lowers the reserve of a volume after a deletion, with twice the room that a cut asks for: what is shown may be old,
    /// and too little would cost what is kept. One that cannot be lowered is no reason to fail, the next deletion tries.
    pub async fn give_room_back(&self, volume: &str) -> DriverResult<()> {
        let count = self.array.snapshots(volume).await?.len() as u64;
        let Some(page) = self.page(volume).await? else { return Ok(()) };
        let young = self.young_cuts(volume) + 1;
        let base = self.options.disks.reserve_percent;
        let wanted = match count {
            0 => base,
            _ => percent_for(&page.reserve, count, young).max(base),
        };
        let worth_it = count == 0 || wanted + 50 <= page.reserve.percent;
        if wanted < page.reserve.percent && worth_it {
            let lowered = self.array.on_volume(volume, &format!("snap-reserve {wanted}%")).await;
            if let Err(failure) = lowered {
                tracing::info!(volume, %failure, "the snapshot reserve stays as it is");
            }
        }
        Ok(())
    }

    /// Remembers a cut, and has the rule applied again when it is fully measured.
    pub fn was_cut(&self, volume: &str) {
        self.hints().cuts.entry(volume.to_string()).or_default().push(Instant::now());
        self.cut_done.notify_one();
    }

    fn young_cuts(&self, volume: &str) -> u64 {
        let mut hints = self.hints();
        hints.cuts.retain(|_, cuts| {
            // Twice as long: the one look that follows a cut has to know of it.
            cuts.retain(|cut| cut.elapsed() < LAG * 2);
            !cuts.is_empty()
        });
        let known =
            hints.cuts.get(volume).map_or(0, |cuts| cuts.iter().filter(|cut| cut.elapsed() < LAG).count() as u64);
        // One more that an earlier process may have made.
        known + u64::from(self.opened.elapsed() < LAG)
    }

    /// Looks at the snapshot space of all disks and raises it where less than half of what the last cut left is free.
    /// Reports generations that went by themselves.
    pub async fn patrol(&self) -> DriverResult<()> {
        let _gate = self.gate.lock().await;
        let known = self.hints().generations.clone();
        let mut present = BTreeSet::new();
        for (row, role) in self.rows().await? {
            if role != Role::Disk || (row.snapshots == 0 && !known.values().any(|volume| *volume == row.name)) {
                continue;
            }
            present.extend(self.generations(&row.name).await?.into_iter().map(|generation| generation.id));
            let Some(page) = self.page(&row.name).await? else { continue };
            let is_disk = Description::parse(&page.description).is_some_and(|told| told.kind == Kind::Disk);
            let was_cut = self.hints().cuts.contains_key(&row.name);
            if is_disk && page.snapshots > 0 && (was_cut || page.reserve.available < page.reserve.volume / 2) {
                self.raise(&page).await?;
            }
        }
        for (generation, volume) in known.into_iter().filter(|(generation, _)| !present.contains(generation)) {
            self.hints().generations.remove(&generation);
            let message = format!("generation {generation} of volume {volume} is gone from the group: not by us");
            let _ = self.alerts.send(Alert::Damage { volume: generation, offset: 0, message });
        }
        Ok(())
    }

    async fn raise(&self, page: &VolumePage) -> DriverResult<()> {
        match self.make_room(page).await {
            Err(failure) if failure.kind == DriverErrorKind::NoSpace => {
                if !self.hints().warned.insert(page.name.clone()) {
                    return Ok(());
                }
                tracing::warn!(volume = page.name, %failure, "the snapshot reserve nears its end");
                let (free, physical) = (page.reserve.available, page.reserve.used() + page.reserve.available);
                let _ = self.alerts.send(Alert::NearlyFull { free, physical });
                Ok(())
            }
            Ok(()) if self.hints().warned.remove(&page.name) => {
                let _ = self.alerts.send(Alert::RoomAgain { free: page.reserve.volume });
                Ok(())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::percent_for;
    use crate::array::Reserve;

    const MB: u64 = 1 << 20;

    #[test]
    fn an_unused_reserve_of_a_whole_volume_is_enough() {
        let reserve = Reserve { percent: 100, volume: 105 * MB, available: 105 * MB, deletes_oldest: true };
        assert_eq!(percent_for(&reserve, 0, 0), 100);
        assert_eq!(percent_for(&reserve, 3, 0), 100);
        assert_eq!(percent_for(&reserve, 3, 1), 200, "one that is not measured");
        assert_eq!(percent_for(&reserve, 1, 9), 200, "two snapshots never hold more");
        let half = Reserve { available: 52 * MB, ..reserve };
        assert!((149..=166).contains(&percent_for(&half, 1, 0)), "{}", percent_for(&half, 1, 0));
        assert_eq!(percent_for(&Reserve { volume: 0, ..reserve }, 1, 1), 100);
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_enough(percent in 1u64..2000, volume in 1u64..10_000, free in 0u64..100, count in 0u64..9) {
            let volume = volume * MB;
            let total = volume / 100 * percent;
            let reserve = Reserve { percent, volume, available: total / 100 * free, deletes_oldest: true };
            let raised = u128::from(volume) * u128::from(percent_for(&reserve, count, 0)) / 100;
            let all = u128::from(volume) * u128::from(count + 1);
            prop_assert!(raised >= all.min(u128::from(reserve.used()) + u128::from(volume)));
        }
    }
}
