//! Volume collections, and their snapshot collections: the snapshots of all members at one instant.

use crate::array::group::{Collection, MemberSnapshot, SnapCollection};
use crate::array::volume::Kind;
use crate::array::volumes::{check_description, check_name};
use crate::array::{Array, Outcome, Refused};

/// Volumes of a collection.
const MEMBERS_MAX: usize = 8;
/// Collections of a group.
const COLLECTIONS_MAX: usize = 100;

impl Array {
    pub fn create_collection(&mut self, name: &str, volumes: &[String], description: &str) -> Outcome<()> {
        check_name(name)?;
        check_description(description)?;
        if self.group.collections.contains_key(name) {
            return Err(Refused(format!("Volume collection {name} already exists.")));
        }
        if self.group.collections.len() >= COLLECTIONS_MAX {
            return Err(Refused(format!("The group has {COLLECTIONS_MAX} volume collections, which is the limit.")));
        }
        self.check_members(volumes)?;
        let collection =
            Collection { description: description.into(), volumes: volumes.to_vec(), snapshots: Vec::new() };
        self.group.collections.insert(name.into(), collection);
        Ok(())
    }

    fn check_members(&self, volumes: &[String]) -> Outcome<()> {
        if volumes.len() > MEMBERS_MAX {
            return Err(Refused(format!("A volume collection holds at most {MEMBERS_MAX} volumes.")));
        }
        for (at, name) in volumes.iter().enumerate() {
            if self.group.volume(name)?.kind == Kind::Template {
                return Err(Refused(format!("Volume {name} is a template volume.")));
            }
            if volumes[..at].contains(name) {
                return Err(Refused(format!("Volume {name} is already in the collection.")));
            }
        }
        Ok(())
    }

    pub fn add_to_collection(&mut self, name: &str, volumes: &[String]) -> Outcome<()> {
        let mut all = self.group.collection_mut(name)?.volumes.clone();
        all.extend(volumes.iter().cloned());
        self.check_members(&all)?;
        self.group.collection_mut(name)?.volumes = all;
        Ok(())
    }

    pub fn remove_from_collection(&mut self, name: &str, volumes: &[String]) -> Outcome<()> {
        let collection = self.group.collection_mut(name)?;
        if let Some(stranger) = volumes.iter().find(|volume| !collection.volumes.contains(volume)) {
            return Err(Refused(format!("Volume {stranger} is not in the collection.")));
        }
        collection.volumes.retain(|volume| !volumes.contains(volume));
        Ok(())
    }

    /// Its snapshots stay, as ordinary snapshots of their volumes.
    pub fn delete_collection(&mut self, name: &str) -> Outcome<()> {
        self.group.collection_mut(name)?;
        self.group.collections.remove(name);
        Ok(())
    }

    /// Returns the new snapshot collection.
    pub fn snapshot_collection(&mut self, name: &str, description: &str) -> Outcome<SnapCollection> {
        let volumes = self.group.collection_mut(name)?.volumes.clone();
        if volumes.is_empty() {
            return Err(Refused(format!("Volume collection {name} has no volumes.")));
        }
        let snapshots = self.create_snapshots(&volumes, description)?;
        self.group.serial += 1;
        let pairs = volumes.into_iter().zip(snapshots);
        let made = SnapCollection {
            name: format!("{name}-{}.{}", self.now_ms / 1000, self.group.serial),
            description: description.into(),
            created_ms: self.now_ms,
            members: pairs.map(|(volume, snapshot)| MemberSnapshot { volume, snapshot }).collect(),
        };
        self.group.collection_mut(name)?.snapshots.push(made.clone());
        Ok(made)
    }

    /// Deletes the snapshots of a snapshot collection with it.
    pub fn delete_snapshot_collection(&mut self, name: &str, snapshots: &str) -> Outcome<()> {
        let found = self.group.collection_mut(name)?.snapshots.iter().find(|one| one.name == snapshots).cloned();
        let found = found.ok_or_else(|| Refused::missing("Snapshot collection", snapshots))?;
        for member in &found.members {
            self.delete_snapshot(&member.volume, &member.snapshot)?;
        }
        self.group.collection_mut(name)?.snapshots.retain(|one| one.name != snapshots);
        Ok(())
    }

    pub(super) fn forget_volume(&mut self, volume: &str) {
        for collection in self.group.collections.values_mut() {
            collection.volumes.retain(|name| name != volume);
            collection.snapshots.iter_mut().for_each(|one| one.members.retain(|member| member.volume != volume));
            collection.snapshots.retain(|one| !one.members.is_empty());
        }
    }

    pub(super) fn forget_member(&mut self, volume: &str, snapshot: &str) {
        for collection in self.group.collections.values_mut() {
            for one in &mut collection.snapshots {
                one.members.retain(|member| member.volume != volume || member.snapshot != snapshot);
            }
            collection.snapshots.retain(|one| !one.members.is_empty());
        }
    }

    pub(super) fn rename_member(&mut self, old: &str, new: &str) {
        for collection in self.group.collections.values_mut() {
            collection.volumes.iter_mut().filter(|name| *name == old).for_each(|name| *name = new.into());
            let members = collection.snapshots.iter_mut().flat_map(|one| &mut one.members);
            members.filter(|member| member.volume == old).for_each(|member| member.volume = new.into());
        }
    }

    pub(super) fn rename_member_snapshot(&mut self, volume: &str, old: &str, new: &str) {
        let all =
            self.group.collections.values_mut().flat_map(|one| &mut one.snapshots).flat_map(|one| &mut one.members);
        let found = all.filter(|member| member.volume == volume && member.snapshot == old);
        found.for_each(|member| member.snapshot = new.into());
    }
}

#[cfg(test)]
mod tests {
    use crate::array::{VolumeSpec, array};

    #[test]
    fn a_collection_is_cut_at_one_instant() {
        let (mut array, blocks) = array(100_000);
        let names: Vec<String> = (0..3).map(|at| format!("v{at}")).collect();
        for name in &names {
            array.create_volume(VolumeSpec::new(name, 100)).expect("a volume");
        }
        array.create_collection("c", &names, "").expect("a collection");
        let cut = array.snapshot_collection("c", "").expect("a snapshot collection");
        assert_eq!(blocks.copies(), [3], "one copy of three disks, not three copies");
        array.rename_snapshot("v1", &cut.members[1].snapshot, "mine").expect("renamed");
        array.rename_volume("v2", "w").expect("renamed");
        let kept = &array.group.collections["c"];
        assert_eq!(kept.snapshots[0].members[1].snapshot, "mine");
        assert_eq!((kept.volumes[2].as_str(), kept.snapshots[0].members[2].volume.as_str()), ("w", "w"));
        array.delete_snapshot_collection("c", &cut.name).expect("deleted");
        assert!(array.group.volumes.values().all(|volume| volume.snapshots.is_empty()));
    }

    #[test]
    fn one_member_that_cannot_be_cut_stops_all() {
        let (mut array, blocks) = array(100_000);
        array.create_volume(VolumeSpec::new("a", 100)).expect("a volume");
        array.create_volume(VolumeSpec { snap_reserve: 0, ..VolumeSpec::new("b", 100) }).expect("a volume");
        array.create_collection("c", &["a".into(), "b".into()], "").expect("a collection");
        assert!(array.snapshot_collection("c", "").is_err());
        assert!(array.group.volumes["a"].snapshots.is_empty() && blocks.copies().is_empty());
    }
}
