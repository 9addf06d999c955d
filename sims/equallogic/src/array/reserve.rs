//! Space: what volumes and snapshots really hold, growth of thin volumes, and what happens when a reserve is full.

use crate::array::size::Pages;
use crate::array::volume::{Depletion, Kind, Thin, Trouble, Volume};
use crate::array::{Array, Outcome, Refused, Severity};

/// A thin volume's reserve grows when less than this share of the reported size is left of it, in percent ...
const GROW_BELOW: u64 = 6;
/// ... by this share of the reported size, in percent.
const GROW_BY: u64 = 10;

impl Array {
    /// Measures all volumes and lets the policies act.
    pub(super) fn account(&mut self) -> Outcome<()> {
        let names: Vec<String> = self.group.volumes.keys().cloned().collect();
        for name in names {
            self.measure(&name)?;
            self.grow(&name);
            self.deplete(&name);
        }
        Ok(())
    }

    fn measure(&mut self, name: &str) -> Outcome<()> {
        let volume = self.group.volume(name)?;
        let in_use = match &volume.kind {
            Kind::ThinClone(template) => {
                let template = self.group.volume(template)?.disk;
                self.blocks.differing(volume.disk, template)?
            }
            _ if volume.thin.is_none() => volume.pages,
            _ => self.blocks.used(volume.disk)?,
        };
        let disks: Vec<_> = volume.snapshots.iter().map(|snapshot| snapshot.disk).chain([volume.disk]).collect();
        let mut held = Vec::new();
        for pair in disks.windows(2) {
            held.push(self.blocks.differing(pair[0], pair[1])?);
        }
        let volume = self.group.volume_mut(name)?;
        volume.in_use = in_use;
        // What was copied to the reserve stays there, even when the volume comes to hold the same again.
        for (snapshot, pages) in volume.snapshots.iter_mut().zip(held) {
            snapshot.held = snapshot.held.max(pages);
        }
        Ok(())
    }

    fn grow(&mut self, name: &str) {
        let Some(volume) = self.group.volumes.get(name) else { return };
        let Some(thin) = volume.thin else { return };
        let target = grown(volume, thin);
        let more = target.minus(volume.reserve);
        let fits = more.plus(more.percent(volume.snap_reserve)) <= self.group.free(&volume.pool);
        let trouble = match volume.in_use > volume.pages.percent(thin.growth_max) {
            true => Some(Trouble::ThinMaxGrowthMet),
            false if volume.in_use > volume.reserve && !fits => Some(Trouble::NoSpaceForAutoGrow),
            false => None,
        };
        let warned = volume.reserve.minus(volume.pages.percent(thin.growth_warn)) > Pages(0);
        let warns = target > volume.pages.percent(thin.growth_warn) && !warned;
        let old = volume.trouble;
        let Some(volume) = self.group.volumes.get_mut(name) else { return };
        if fits {
            volume.reserve = volume.reserve.max(target);
        }
        // Raising a limit brings the volume back by itself; a full snapshot reserve waits for the administrator.
        if old != Some(Trouble::SnapReserveMet) {
            volume.trouble = trouble;
        }
        if warns {
            self.event(Severity::Warning, format!("Volume '{name}' has exceeded its thin provisioning warning level."));
        }
        if let (Some(trouble), None) = (trouble, old) {
            self.event(Severity::Error, format!("Volume '{name}' was set offline: {}.", trouble.words()));
        }
    }

    fn deplete(&mut self, name: &str) {
        let Some(volume) = self.group.volumes.get_mut(name) else { return };
        if volume.snap_held() <= volume.snap_reserve_pages() || volume.trouble.is_some() {
            return;
        }
        if volume.depletion == Depletion::VolumeOffline {
            volume.trouble = Some(Trouble::SnapReserveMet);
            for snapshot in &mut volume.snapshots {
                snapshot.online = false;
            }
            self.event(
                Severity::Error,
                format!("Volume '{name}' and its snapshots were set offline: snap reserve met."),
            );
            return;
        }
        let mut deleted = Vec::new();
        while volume.snap_held() > volume.snap_reserve_pages() && !volume.snapshots.is_empty() {
            deleted.push(volume.snapshots.remove(0));
        }
        for snapshot in deleted {
            self.doomed.push(snapshot.disk);
            self.forget_member(name, &snapshot.name);
            let text = format!("Snapshot '{}' of volume '{name}' was deleted to free snapshot reserve.", snapshot.name);
            self.event(Severity::Warning, text);
        }
    }

    /// Refuses what the pool has no room for.
    pub(super) fn need(&self, pool: &str, pages: Pages) -> Outcome<()> {
        if !self.group.pools.contains_key(pool) {
            return Err(Refused::missing("Pool", pool));
        }
        match pages <= self.group.free(pool) {
            true => Ok(()),
            false => Err(Refused(format!(
                "Not enough free space in pool {pool}: {}MB needed, {}MB free.",
                pages.mb(),
                self.group.free(pool).mb()
            ))),
        }
    }
}

/// The reserve that a thin volume should have for what it holds.
fn grown(volume: &Volume, thin: Thin) -> Pages {
    let most = volume.pages.percent(thin.growth_max).max(volume.pages.percent(thin.min_reserve));
    let mut reserve = volume.reserve.max(volume.pages.percent(thin.min_reserve));
    while reserve < most && reserve.minus(volume.in_use) < volume.pages.percent(GROW_BELOW) {
        reserve = reserve.plus(volume.pages.percent(GROW_BY)).min(most);
    }
    reserve.max(volume.reserve)
}

#[cfg(test)]
mod tests {
    use crate::array::volume::{Depletion, Trouble};
    use crate::array::{VolumeSpec, array};

    /// A thin volume of 100 pages with three snapshots, between which `pages` pages were written each.
    fn written(depletion: Depletion, snap_reserve: u64, pages: u64) -> (crate::array::Array, crate::array::FakeBlocks) {
        let (mut array, blocks) = array(100_000);
        let spec = VolumeSpec { snap_reserve, depletion, online: true, ..VolumeSpec::new("v", 1500).thin() };
        array.create_volume(spec).expect("a volume");
        let disk = array.group.volumes["v"].disk;
        for round in 0..3 {
            array.create_snapshot("v", "").expect("a snapshot");
            blocks.write(disk, round * pages..(round + 1) * pages);
            array.tick().expect("measured");
        }
        (array, blocks)
    }

    #[test]
    fn what_was_overwritten_is_held() {
        let (array, _) = written(Depletion::DeleteOldest, 100, 2);
        let held: Vec<u64> = array.group.volumes["v"].snapshots.iter().map(|snapshot| snapshot.held.0).collect();
        assert_eq!(held, [2, 2, 2]);
    }

    #[test]
    fn the_oldest_go_when_the_reserve_is_full() {
        // The reserve is 10 of 100 pages while little is in use, and half of that is for snapshots.
        let (mut array, _) = written(Depletion::DeleteOldest, 50, 2);
        let snapshots = &array.group.volumes["v"].snapshots;
        assert_eq!(snapshots.len(), 3, "20 pages of reserve after growth, half of that for snapshots: 6 fit");
        array.set_property("v", crate::array::Property::SnapReserve(20)).expect("set");
        array.tick().expect("measured");
        let volume = &array.group.volumes["v"];
        assert_eq!(volume.snapshots.len(), 2, "4 of 4 pages: the oldest went");
        assert!(volume.is_online());
        assert!(array.take_events().iter().any(|event| event.text.contains("deleted to free")));
    }

    #[test]
    fn the_volume_goes_offline_when_it_shall() {
        let (mut array, _) = written(Depletion::VolumeOffline, 50, 6);
        let volume = &array.group.volumes["v"];
        assert_eq!(
            volume.trouble,
            Some(Trouble::SnapReserveMet),
            "18 pages held, 30 reserved, half of that for snapshots"
        );
        assert_eq!(volume.snapshots.len(), 3);
        assert!(array.group.exports().is_empty());
        array.set_property("v", crate::array::Property::SnapReserve(100)).expect("set");
        array.set_online("v", true).expect("online");
        array.tick().expect("measured");
        assert!(array.group.volumes["v"].is_online());
    }

    #[test]
    fn a_thin_volume_grows_ahead_of_its_use_and_stops_at_its_limit() {
        let (mut array, blocks) = array(100_000);
        let spec = VolumeSpec { online: true, ..VolumeSpec::new("v", 1500).thin() };
        array.create_volume(spec).expect("a volume");
        let disk = array.group.volumes["v"].disk;
        blocks.write(disk, 0..5);
        array.tick().expect("measured");
        assert_eq!(array.group.volumes["v"].reserve.0, 20, "5 of 10 pages are free: below 6 % of 100");
        array.set_property("v", crate::array::Property::ThinGrowthMax(40)).expect("set");
        blocks.write(disk, 0..41);
        array.tick().expect("measured");
        assert_eq!(array.group.volumes["v"].trouble, Some(Trouble::ThinMaxGrowthMet));
        array.set_property("v", crate::array::Property::ThinGrowthMax(100)).expect("set");
        array.tick().expect("measured");
        assert!(array.group.volumes["v"].is_online(), "raising the limit brings it back");
    }
}
