//! Snapshots of single volumes: taken, renamed, set online, restored, deleted.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::array::blocks::DiskId;
use crate::array::name::{SNAPSHOT_NAME_MAX, is_legal};
use crate::array::size::Pages;
use crate::array::volume::{Kind, Snapshot, Volume};
use crate::array::volumes::check_description;
use crate::array::{Array, Outcome, Refused, Severity};

/// Snapshots of a volume.
const SNAPSHOTS_MAX: usize = 512;

impl Array {
    /// Returns the name that the array gave.
    pub fn create_snapshot(&mut self, volume: &str, description: &str) -> Outcome<String> {
        let names = self.create_snapshots(&[volume.to_string()], description)?;
        Ok(names.into_iter().next().unwrap_or_default())
    }

    /// Snapshots of several volumes at one instant: all or none.
    pub(super) fn create_snapshots(&mut self, volumes: &[String], description: &str) -> Outcome<Vec<String>> {
        check_description(description)?;
        for name in volumes {
            check_can_snapshot(name, self.group.volume(name)?)?;
        }
        let mut taken: Vec<(String, Snapshot)> = Vec::new();
        let mut pairs: Vec<(DiskId, DiskId)> = Vec::new();
        for name in volumes {
            let auto = self.automatic_name(name);
            let (disk, iqn) = self.group.number(name);
            let volume = self.group.volume(name)?;
            pairs.push((volume.disk, disk));
            let snapshot = Snapshot {
                name: auto,
                iqn,
                disk,
                size_mb: volume.size_mb,
                pages: volume.pages,
                description: description.into(),
                read_only: false,
                online: false,
                created_ms: self.now_ms,
                held: Pages(0),
            };
            taken.push((name.clone(), snapshot));
        }
        self.blocks.copy(&pairs)?;
        let mut names = Vec::new();
        for (volume, snapshot) in taken {
            self.event(Severity::Info, format!("Snapshot '{}' of volume '{volume}' was created.", snapshot.name));
            names.push(snapshot.name.clone());
            self.group.volume_mut(&volume)?.snapshots.push(snapshot);
        }
        Ok(names)
    }

    /// `VOLUME-YYYY-MM-DD-HH:MM:SS.x.y`; the last number makes it unique.
    fn automatic_name(&self, volume: &str) -> String {
        let at =
            i64::try_from(self.now_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
        let text = at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d-%H:%M:%S").to_string();
        format!("{volume}-{text}.{}.{}", self.now_ms % 1000, self.group.serial + 1)
    }

    fn snapshot_mut(&mut self, volume: &str, name: &str) -> Outcome<&mut Snapshot> {
        let found = self.group.volume_mut(volume)?.snapshots.iter_mut().find(|snapshot| snapshot.name == name);
        found.ok_or_else(|| Refused::missing("Snapshot", name))
    }

    pub fn rename_snapshot(&mut self, volume: &str, old: &str, new: &str) -> Outcome<()> {
        self.snapshot_mut(volume, old)?;
        if !is_legal(new, SNAPSHOT_NAME_MAX) {
            return Err(Refused(format!(
                "Name {new} is invalid: 1 to {SNAPSHOT_NAME_MAX} letters, digits, periods, hyphens and colons are allowed."
            )));
        }
        if self.group.volume(volume)?.snapshot(new).is_some() {
            return Err(Refused(format!("Snapshot {new} already exists.")));
        }
        self.snapshot_mut(volume, old)?.name = new.into();
        self.rename_member_snapshot(volume, old, new);
        Ok(())
    }

    pub fn set_snapshot_online(&mut self, volume: &str, name: &str, online: bool) -> Outcome<()> {
        self.snapshot_mut(volume, name)?.online = online;
        Ok(())
    }

    pub fn set_snapshot_read_only(&mut self, volume: &str, name: &str, read_only: bool) -> Outcome<()> {
        self.snapshot_mut(volume, name)?.read_only = read_only;
        Ok(())
    }

    pub fn describe_snapshot(&mut self, volume: &str, name: &str, text: &str) -> Outcome<()> {
        check_description(text)?;
        self.snapshot_mut(volume, name)?.description = text.into();
        Ok(())
    }

    pub fn delete_snapshot(&mut self, volume: &str, name: &str) -> Outcome<()> {
        if self.snapshot_mut(volume, name)?.online {
            return Err(Refused(format!("Snapshot {name} must be offline before it can be deleted.")));
        }
        let snapshots = &mut self.group.volume_mut(volume)?.snapshots;
        if let Some(at) = snapshots.iter().position(|snapshot| snapshot.name == name) {
            let gone = snapshots.remove(at);
            // What it held is still needed by the next older one.
            if let Some(older) = at.checked_sub(1).and_then(|at| snapshots.get_mut(at)) {
                older.held = older.held.max(gone.held);
            }
            self.doomed.push(gone.disk);
        }
        self.forget_member(volume, name);
        Ok(())
    }

    /// Puts a snapshot's contents back into its volume. What was there becomes a snapshot of its own.
    pub fn restore_snapshot(&mut self, volume: &str, name: &str) -> Outcome<()> {
        let from = self.snapshot_mut(volume, name)?.clone();
        let now = self.group.volume(volume)?;
        check_can_snapshot(volume, now)?;
        if now.is_online() {
            return Err(Refused(format!("Volume {volume} must be offline before it can be restored.")));
        }
        if from.online {
            return Err(Refused(format!("Snapshot {name} must be offline before it can be restored.")));
        }
        let auto = self.automatic_name(volume);
        let (disk, iqn) = self.group.number(volume);
        self.blocks.copy(&[(from.disk, disk)])?;
        let now_ms = self.now_ms;
        let volume = self.group.volume_mut(volume)?;
        let before = Snapshot {
            name: auto,
            iqn,
            disk: volume.disk,
            size_mb: volume.size_mb,
            pages: volume.pages,
            description: format!("taken before {name} was restored"),
            read_only: false,
            online: false,
            created_ms: now_ms,
            held: Pages(0),
        };
        volume.snapshots.push(before);
        (volume.disk, volume.size_mb, volume.pages) = (disk, from.size_mb, from.pages);
        volume.in_use = Pages(0);
        if volume.thin.is_none() {
            volume.reserve = volume.pages;
        }
        self.event(Severity::Info, format!("Snapshot '{name}' was restored."));
        Ok(())
    }
}

fn check_can_snapshot(name: &str, volume: &Volume) -> Outcome<()> {
    match () {
        () if volume.kind == Kind::Template => Err(Refused(format!("Volume {name} is a template volume."))),
        () if volume.snap_reserve == 0 => Err(Refused(format!("Volume {name} has no snapshot reserve."))),
        () if volume.snapshots.len() >= SNAPSHOTS_MAX => {
            Err(Refused(format!("Volume {name} has {SNAPSHOTS_MAX} snapshots, which is the limit.")))
        }
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::array::{VolumeSpec, array};

    #[test]
    fn a_snapshot_is_named_by_volume_and_time_and_born_offline() {
        let (mut array, _) = array(10_000);
        array.now_ms = 86_400_123;
        array.create_volume(VolumeSpec::new("v", 100)).expect("a volume");
        let name = array.create_snapshot("v", "note").expect("a snapshot");
        assert_eq!(name, "v-1970-01-02-00:00:00.123.2");
        assert!(!array.group.volumes["v"].snapshots[0].online);
        assert_ne!(array.create_snapshot("v", "").expect("another"), name);
    }

    #[test]
    fn restoring_keeps_what_was_there_before() {
        let (mut array, blocks) = array(10_000);
        array.create_volume(VolumeSpec::new("v", 150)).expect("a volume");
        blocks.write(array.group.volumes["v"].disk, 0..1);
        let name = array.create_snapshot("v", "").expect("a snapshot");
        blocks.write(array.group.volumes["v"].disk, 0..2);
        assert!(array.restore_snapshot("v", &name).is_err(), "online");
        array.set_online("v", false).expect("offline");
        array.restore_snapshot("v", &name).expect("restored");
        let volume = &array.group.volumes["v"];
        assert!(blocks.same(volume.disk, volume.snapshots[0].disk));
        assert!(!blocks.same(volume.disk, volume.snapshots[1].disk));
        assert_eq!(volume.snapshots.len(), 2);
    }

    #[test]
    fn without_a_reserve_there_are_no_snapshots() {
        let (mut array, _) = array(10_000);
        array.create_volume(VolumeSpec { snap_reserve: 0, ..VolumeSpec::new("v", 100) }).expect("a volume");
        assert!(array.create_snapshot("v", "").is_err());
    }
}
