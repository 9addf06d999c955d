//! Volumes: creation, copies, size, state, templates, deletion.

use std::collections::BTreeMap;

use crate::array::blocks::DiskId;
use crate::array::name::{DESCRIPTION_MAX, VOLUME_NAME_MAX, is_legal};
use crate::array::size::Pages;
use crate::array::volume::{AccessRecord, Depletion, Kind, Thin, Volume};
use crate::array::{Array, Outcome, Refused, Severity};

/// Volumes of a group.
const VOLUMES_MAX: usize = 1024;
/// Largest volume: 15 TB.
const VOLUME_MB_MAX: u64 = 15 << 20;

/// A volume to be created.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    pub name: String,
    pub size_mb: u64,
    pub pool: String,
    pub description: String,
    pub alias: Option<String>,
    pub thin: Option<Thin>,
    pub snap_reserve: u64,
    pub snap_warn: u64,
    pub depletion: Depletion,
    pub read_only: bool,
    pub online: bool,
    pub unrestricted: bool,
    pub sector_bytes: u32,
}

impl VolumeSpec {
    /// What the array does when only a name and a size are given.
    pub fn new(name: &str, size_mb: u64) -> VolumeSpec {
        VolumeSpec {
            name: name.into(),
            size_mb,
            pool: "default".into(),
            description: String::new(),
            alias: None,
            thin: None,
            snap_reserve: 100,
            snap_warn: 10,
            depletion: Depletion::DeleteOldest,
            read_only: false,
            online: true,
            unrestricted: false,
            sector_bytes: 512,
        }
    }

    pub fn thin(self) -> VolumeSpec {
        VolumeSpec { thin: Some(Thin::default()), ..self }
    }
}

/// A copy to be made.
#[derive(Clone, Debug)]
pub struct CloneSpec {
    pub name: String,
    pub description: String,
    pub online: bool,
    pub unrestricted: bool,
}

impl Array {
    /// Returns the target name, as do the other ways to a new volume.
    pub fn create_volume(&mut self, spec: VolumeSpec) -> Outcome<String> {
        self.check_new(&spec.name, &spec.description)?;
        let pages = checked_pages(spec.size_mb)?;
        let reserve = spec.thin.map_or(pages, |thin| pages.percent(thin.min_reserve));
        self.need(&spec.pool, reserve.plus(reserve.percent(spec.snap_reserve)))?;
        let (disk, iqn) = self.group.number(&spec.name);
        self.blocks.create(disk, pages)?;
        let volume = Volume {
            alias: spec.alias.unwrap_or_else(|| spec.name.clone()),
            iqn,
            disk,
            size_mb: spec.size_mb,
            pages,
            pool: spec.pool,
            description: spec.description,
            kind: Kind::Standard,
            thin: spec.thin,
            reserve,
            in_use: Pages(0),
            read_only: spec.read_only,
            online: spec.online,
            trouble: None,
            multihost: false,
            access: records(spec.unrestricted),
            snap_reserve: spec.snap_reserve,
            snap_warn: spec.snap_warn,
            depletion: spec.depletion,
            snapshots: Vec::new(),
            sector_bytes: spec.sector_bytes,
            created_ms: self.now_ms,
        };
        Ok(self.add_volume(spec.name, volume))
    }

    /// A full copy; of a template it is a template, of a thin clone it is a thin clone of the same template.
    pub fn clone_volume(&mut self, source: &str, spec: CloneSpec) -> Outcome<String> {
        let from = self.group.volume(source)?.clone();
        self.copy_of(&from, from.disk, from.pages, from.size_mb, spec)
    }

    pub fn clone_snapshot(&mut self, source: &str, snapshot: &str, spec: CloneSpec) -> Outcome<String> {
        let from = self.group.volume(source)?.clone();
        let of = from.snapshot(snapshot).ok_or_else(|| Refused::missing("Snapshot", snapshot))?.clone();
        self.copy_of(&from, of.disk, of.pages, of.size_mb, spec)
    }

    /// A writable volume that shares the template's pages.
    pub fn thin_clone(&mut self, template: &str, spec: CloneSpec) -> Outcome<String> {
        let from = self.group.volume(template)?.clone();
        if from.kind != Kind::Template {
            return Err(Refused(format!("Volume {template} is not a template volume.")));
        }
        let parent =
            Volume { kind: Kind::ThinClone(template.into()), read_only: false, in_use: Pages(0), ..from.clone() };
        self.copy_of(&parent, from.disk, from.pages, from.size_mb, spec)
    }

    fn copy_of(&mut self, from: &Volume, disk: DiskId, pages: Pages, size_mb: u64, spec: CloneSpec) -> Outcome<String> {
        self.check_new(&spec.name, &spec.description)?;
        let least = from.thin.map_or(pages, |thin| pages.percent(thin.min_reserve));
        let reserve = match from.kind {
            Kind::ThinClone(_) => least,
            _ => least.max(from.reserve.min(pages)),
        };
        self.need(&from.pool, reserve.plus(reserve.percent(from.snap_reserve)))?;
        let (new, iqn) = self.group.number(&spec.name);
        self.blocks.copy(&[(disk, new)])?;
        let volume = Volume {
            alias: spec.name.clone(),
            iqn,
            disk: new,
            size_mb,
            pages,
            description: spec.description,
            reserve,
            in_use: Pages(0),
            online: spec.online,
            trouble: None,
            multihost: false,
            access: records(spec.unrestricted),
            snapshots: Vec::new(),
            created_ms: self.now_ms,
            ..from.clone()
        };
        Ok(self.add_volume(spec.name, volume))
    }

    fn check_new(&self, name: &str, description: &str) -> Outcome<()> {
        check_name(name)?;
        check_description(description)?;
        if self.group.volumes.contains_key(name) {
            return Err(Refused(format!("Volume {name} already exists.")));
        }
        match self.group.volumes.len() < VOLUMES_MAX {
            true => Ok(()),
            false => Err(Refused(format!("The group has {VOLUMES_MAX} volumes, which is the limit."))),
        }
    }

    fn add_volume(&mut self, name: String, volume: Volume) -> String {
        let iqn = volume.iqn.clone();
        self.event(Severity::Info, format!("Volume '{name}' successfully created."));
        self.group.volumes.insert(name, volume);
        iqn
    }

    pub fn delete_volume(&mut self, name: &str) -> Outcome<()> {
        let volume = self.group.volume(name)?;
        if volume.is_online() {
            return Err(Refused(format!("Volume {name} must be offline before it can be deleted.")));
        }
        if self.has_thin_clones(name) {
            return Err(Refused(format!("Template volume {name} has thin clones attached and cannot be deleted.")));
        }
        let Some(volume) = self.group.volumes.remove(name) else { return Err(Refused::missing("Volume", name)) };
        self.doomed.push(volume.disk);
        self.doomed.extend(volume.snapshots.iter().map(|snapshot| snapshot.disk));
        self.forget_volume(name);
        self.event(Severity::Info, format!("Volume '{name}' successfully deleted."));
        Ok(())
    }

    fn has_thin_clones(&self, name: &str) -> bool {
        self.group.volumes.values().any(|volume| matches!(&volume.kind, Kind::ThinClone(of) if of == name))
    }

    pub fn rename_volume(&mut self, old: &str, new: &str) -> Outcome<()> {
        self.group.volume(old)?;
        self.check_new(new, "")?;
        if let Some(volume) = self.group.volumes.remove(old) {
            self.group.volumes.insert(new.into(), volume);
        }
        for volume in self.group.volumes.values_mut() {
            if matches!(&volume.kind, Kind::ThinClone(of) if of == old) {
                volume.kind = Kind::ThinClone(new.into());
            }
        }
        self.rename_member(old, new);
        Ok(())
    }

    pub fn set_online(&mut self, name: &str, online: bool) -> Outcome<()> {
        let volume = self.group.volume_mut(name)?;
        if online {
            volume.trouble = None;
        }
        volume.online = online;
        let state = if online { "online" } else { "offline" };
        self.event(Severity::Info, format!("Volume '{name}' was set {state}."));
        Ok(())
    }

    pub fn set_read_only(&mut self, name: &str, read_only: bool) -> Outcome<()> {
        let volume = self.group.volume_mut(name)?;
        if volume.kind == Kind::Template && !read_only {
            return Err(Refused(format!("Template volume {name} must stay read-only.")));
        }
        volume.read_only = read_only;
        Ok(())
    }

    /// Grows a volume; with `snapshot`, after a safety snapshot.
    pub fn grow_volume(&mut self, name: &str, size_mb: u64, snapshot: bool) -> Outcome<()> {
        let volume = self.group.volume(name)?;
        if Pages::from_mb(size_mb) < volume.pages {
            return Err(Refused(format!("Size of volume {name} can only be reduced by shrinking it.")));
        }
        self.resize(name, size_mb, snapshot)
    }

    pub fn shrink_volume(&mut self, name: &str, size_mb: u64, snapshot: bool) -> Outcome<()> {
        let volume = self.group.volume(name)?;
        if volume.is_online() {
            return Err(Refused(format!("Volume {name} must be offline before it can be shrunk.")));
        }
        if Pages::from_mb(size_mb) > volume.pages {
            return Err(Refused(format!("Volume {name} is smaller than that.")));
        }
        self.resize(name, size_mb, snapshot)
    }

    fn resize(&mut self, name: &str, size_mb: u64, snapshot: bool) -> Outcome<()> {
        let pages = checked_pages(size_mb)?;
        let volume = self.group.volume(name)?;
        if volume.kind == Kind::Template {
            return Err(Refused(format!("Template volume {name} cannot be resized.")));
        }
        let reserve = match volume.thin {
            Some(thin) => volume.reserve.max(pages.percent(thin.min_reserve)).min(pages),
            None => pages,
        };
        let more = reserve.minus(volume.reserve);
        self.need(&volume.pool, more.plus(more.percent(volume.snap_reserve)))?;
        let disk = volume.disk;
        if snapshot && volume.snap_reserve > 0 {
            self.create_snapshot(name, "taken before the size was changed")?;
        }
        self.blocks.resize(disk, pages)?;
        let volume = self.group.volume_mut(name)?;
        (volume.pages, volume.size_mb, volume.reserve) = (pages, size_mb, reserve);
        volume.in_use = volume.in_use.min(pages);
        // Existing snapshots survive: their share grows when what it is a share of gets smaller.
        while volume.snap_held() > volume.snap_reserve_pages() {
            volume.snap_reserve += 1;
        }
        Ok(())
    }

    /// The administrator prepares the volume: thin, offline, read-only.
    pub fn convert_to_template(&mut self, name: &str) -> Outcome<()> {
        let volume = self.group.volume_mut(name)?;
        let lacks = match () {
            () if volume.kind != Kind::Standard => "a standard volume",
            () if volume.thin.is_none() => "thin-provisioned",
            () if volume.online => "offline",
            () if !volume.read_only => "read-only",
            () => "",
        };
        if !lacks.is_empty() {
            return Err(Refused(format!("Volume {name} must be {lacks} before it can be converted to a template.")));
        }
        volume.kind = Kind::Template;
        self.forget_volume(name);
        Ok(())
    }

    /// Makes a thin clone a volume of its own, with the pages that it shared.
    pub fn detach_thin_clone(&mut self, name: &str) -> Outcome<()> {
        let volume = self.group.volume_mut(name)?;
        if !matches!(volume.kind, Kind::ThinClone(_)) {
            return Err(Refused(format!("Volume {name} is not a thin clone.")));
        }
        volume.kind = Kind::Standard;
        Ok(())
    }
}

fn records(unrestricted: bool) -> BTreeMap<u32, AccessRecord> {
    unrestricted.then(|| (1, AccessRecord::unrestricted())).into_iter().collect()
}

fn checked_pages(size_mb: u64) -> Outcome<Pages> {
    match size_mb {
        0 => Err(Refused("Volume size must be at least 15MB.".into())),
        1..=VOLUME_MB_MAX => Ok(Pages::from_mb(size_mb)),
        _ => Err(Refused(format!("Volume size {size_mb}MB is larger than 15TB."))),
    }
}

pub(super) fn check_name(name: &str) -> Outcome<()> {
    match is_legal(name, VOLUME_NAME_MAX) {
        true => Ok(()),
        false => Err(Refused(format!(
            "Name {name} is invalid: 1 to {VOLUME_NAME_MAX} letters, digits, periods, hyphens and colons are allowed."
        ))),
    }
}

pub(super) fn check_description(text: &str) -> Outcome<()> {
    match text.len() <= DESCRIPTION_MAX {
        true => Ok(()),
        false => {
            Err(Refused(format!("Description is {} bytes long, at most {DESCRIPTION_MAX} are allowed.", text.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::array::volume::Kind;
    use crate::array::{Array, CloneSpec, VolumeSpec, array};

    fn clone(name: &str) -> CloneSpec {
        CloneSpec { name: name.into(), description: String::new(), online: true, unrestricted: false }
    }

    fn template(array: &mut Array, name: &str) {
        array.create_volume(VolumeSpec::new(name, 150).thin()).expect("a volume");
        assert!(array.convert_to_template(name).is_err(), "online and writable");
        array.set_online(name, false).expect("offline");
        array.set_read_only(name, true).expect("read-only");
        array.convert_to_template(name).expect("a template");
    }

    #[test]
    fn an_online_volume_is_not_deleted() {
        let (mut array, blocks) = array(10_000);
        array.create_volume(VolumeSpec::new("v", 100)).expect("a volume");
        array.create_snapshot("v", "").expect("a snapshot");
        assert!(array.delete_volume("v").is_err());
        array.set_online("v", false).expect("offline");
        array.delete_volume("v").expect("deleted");
        array.tick().expect("measured");
        assert_eq!(blocks.disks(), 0, "its snapshot went with it");
    }

    #[test]
    fn the_pool_is_not_overcommitted() {
        let (mut array, _) = array(300);
        assert!(array.create_volume(VolumeSpec::new("v", 165)).is_err(), "twice 165 MB with its snapshot reserve");
        array.create_volume(VolumeSpec::new("v", 150)).expect("a volume");
        assert_eq!(array.group.free("default").0, 0);
    }

    #[test]
    fn templates_and_their_thin_clones() {
        let (mut array, _) = array(10_000);
        template(&mut array, "t");
        array.thin_clone("t", clone("c")).expect("a thin clone");
        array.tick().expect("measured");
        let volume = &array.group.volumes["c"];
        assert_eq!((volume.in_use.0, volume.reserve.0, volume.read_only), (0, 1, false));
        assert!(array.set_read_only("t", false).is_err());
        assert!(array.grow_volume("t", 300, false).is_err());
        assert!(array.delete_volume("t").is_err(), "a thin clone depends on it");
        array.clone_volume("c", clone("d")).expect("a clone of the thin clone");
        assert_eq!(array.group.volumes["d"].kind, Kind::ThinClone("t".into()));
        for name in ["c", "d"] {
            array.detach_thin_clone(name).expect("detached");
        }
        array.delete_volume("t").expect("deleted");
    }

    #[test]
    fn growing_leaves_a_safety_snapshot_unless_told() {
        let (mut array, _) = array(10_000);
        array.create_volume(VolumeSpec::new("v", 100)).expect("a volume");
        array.grow_volume("v", 200, false).expect("grown");
        assert_eq!((array.group.volumes["v"].pages.0, array.group.volumes["v"].snapshots.len()), (14, 0));
        array.grow_volume("v", 300, true).expect("grown");
        assert_eq!(array.group.volumes["v"].snapshots.len(), 1);
        assert!(array.grow_volume("v", 100, false).is_err(), "that is shrinking");
        assert!(array.shrink_volume("v", 100, false).is_err(), "it is online");
    }

    #[test]
    fn a_clone_is_independent_and_inherits_no_access() {
        let (mut array, _) = array(10_000);
        array.create_volume(VolumeSpec { unrestricted: true, ..VolumeSpec::new("v", 100).thin() }).expect("a volume");
        array.group.volume_mut("v").expect("v").multihost = true;
        array.clone_volume("v", clone("w")).expect("a clone");
        let copy = &array.group.volumes["w"];
        assert!(copy.access.is_empty() && !copy.multihost && copy.thin.is_some());
        array.set_online("v", false).expect("offline");
        array.delete_volume("v").expect("deleted");
    }
}
