//! From the objects of an archive to the database: what is kept, what is made new, what stands already.
//!
//! | | a copy (default) | restored (`restore=true`) |
//! |---|---|---|
//! | uuids of VM, VBD, VIF | new | kept |
//! | uuids of VDIs | new | new |
//! | MAC addresses, `mac_seed` | new | kept |
//! | `VM.version` | 0 | the archive's + 1 |
//! | a machine with the same uuid | stays | replaced under its reference, so that its snapshots stay its own; it has to be halted and of a lower version (not with `force`); its disks stay |
//!
//! From an archive of records alone, snapshots become snapshots again, tied to the machine that came with them, and disks
//! are found, not made ([`super::metadata`]). There `force` leaves out machines that cannot be replaced because they are
//! not halted. The same is true of snapshots that stand behind their machine in an archive with disks
//! ([`tanada_xva::generations`]), whose disks are made ([`super::replay`]).
//!
//! A suspended machine stays suspended where its memory image came along (or was found) and it is restored. A copy does
//! only where no network card here has an address of the archive's: what goes on in the middle of an instruction keeps
//! its addresses, and the same machine must not be in one network twice. Otherwise it is halted.
//!
//! Networks are found by name, then by bridge. References to ids without an object are null; fields and classes that we
//! do not know are left out. Nothing is created before every record was read and found sound.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};
use tanada_xva::{Generations, Object, Ova};
use uuid::Uuid;

use super::fields::{int, kept, text, typed};
use super::known::{KnownDisk, known_disks};
use super::mac::generated;
use super::new_disk::{NewDisk, new_disks};
use super::pack::{CERTIFICATE_PREFIX, without_memory};
use super::replay::{OlderDisk, older_disks};
use crate::db::{Record, Tx, View};
use crate::ops::throw_away;
use crate::vmm::records::{LAST_STOP_HARD, LAST_STOP_KEY};

/// How an archive is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manner {
    /// Keep uuids and MAC addresses.
    pub restore: bool,
    /// Take damaged chunks, overwrite newer machines, keep the marks of default templates.
    pub force: bool,
    /// Records alone: disks are here already, snapshots come along.
    pub metadata: bool,
}

/// An archive whose records are all sound.
#[derive(Debug, Default)]
pub struct Unpacked {
    manner: Manner,
    machines: Vec<(String, Map)>,
    /// Those of them that are snapshots here, by their ids.
    snapshots: BTreeSet<String>,
    vbds: Vec<Map>,
    vifs: Vec<Map>,
    networks: BTreeMap<String, Map>,
    /// CDs by their id: the place of their VDI in an ISO library.
    isos: BTreeMap<String, String>,
    /// To be made; none for an archive of records alone.
    pub disks: Vec<NewDisk>,
    /// To be made after those, in this order.
    pub older: Vec<OlderDisk>,
    /// To be found, in an archive of records alone.
    pub known: Vec<KnownDisk>,
}

impl Unpacked {
    pub fn read(ova: &Ova, manner: Manner) -> ApiResult<Unpacked> {
        let (all, flagged) = (ova, |vm: &&Object| manner.metadata && vm.flag("is_a_snapshot"));
        let snapshots = all.of_class("VM").filter(flagged).map(|vm| vm.id.clone()).collect();
        let (disks, known) = match manner.metadata {
            true => (Vec::new(), known_disks(ova)),
            false => (new_disks(ova)?, Vec::new()),
        };
        let rest = Unpacked { manner, snapshots, disks, known, ..Unpacked::default() };
        Unpacked::records(all, rest)
    }

    /// A machine with the snapshots that stand behind it.
    pub fn with_generations(ova: &Ova, generations: &Generations, manner: Manner) -> ApiResult<Unpacked> {
        let of_machine = |snapshot: &Object| {
            let of = snapshot.text("snapshot_of");
            match ova.of_class("VM").any(|vm| vm.id == of) && snapshot.flag("is_a_snapshot") {
                true => Ok(snapshot.id.clone()),
                false => Err(ApiError::import_error(format!("VM {} is no snapshot of the machine", snapshot.id))),
            }
        };
        let snapshots = generations.objects.iter().filter(|object| object.class == "VM");
        let snapshots = snapshots.map(of_machine).collect::<ApiResult<BTreeSet<String>>>()?;
        let older = older_disks(generations)?;
        let mut all = ova.clone();
        for machine in all.objects.iter_mut().filter(|object| object.class == "VM") {
            machine.record.insert("parent".into(), generations.parent.as_str().into());
        }
        all.objects.extend(generations.objects.iter().cloned());
        let rest = Unpacked { manner, snapshots, disks: new_disks(ova)?, older, ..Unpacked::default() };
        Unpacked::records(&all, rest)
    }

    /// Everything but disks.
    fn records(ova: &Ova, rest: Unpacked) -> ApiResult<Unpacked> {
        let typed = |class: &'static str| ova.of_class(class).map(|object| Ok((object.id.clone(), typed(object)?)));
        let machines = typed("VM").collect::<ApiResult<Vec<_>>>()?;
        if machines.is_empty() {
            return Err(ApiError::import_error("the archive holds no VM"));
        }
        let mut uuids = HashSet::new();
        let mut uuids = machines.iter().map(|(_, record)| text(record, "uuid")).filter(|uuid| !uuids.insert(*uuid));
        if let Some(twice) = uuids.find(|uuid| !uuid.is_empty()) {
            return Err(ApiError::import_error(format!("two machines have the uuid {twice}")));
        }
        let networks = typed("network").collect::<ApiResult<BTreeMap<_, _>>>()?;
        let vifs = typed("VIF").collect::<ApiResult<Vec<_>>>()?;
        let vbds = typed("VBD").collect::<ApiResult<Vec<_>>>()?;
        let ids: HashSet<&str> = ova.objects.iter().map(|object| object.id.as_str()).collect();
        for (_, vbd) in &vbds {
            let vdi = text(vbd, "VDI");
            // An id of the archive must be there; anything else is null or foreign.
            if text(vbd, "type") == "Disk" && vdi.starts_with("Ref:") && !ids.contains(vdi) {
                return Err(ApiError::import_error_failed_to_find_object(vdi));
            }
        }
        let library = |vdi: &&Object| ova.find(vdi.text("SR")).is_some_and(|sr| sr.text("content_type") == "iso");
        let isos = ova.of_class("VDI").filter(library);
        let isos = isos.map(|vdi| (vdi.id.clone(), vdi.text("location").to_owned())).collect();
        let bare = |pairs: Vec<(String, Map)>| pairs.into_iter().map(|(_, record)| record).collect();
        Ok(Unpacked { machines, vbds: bare(vbds), vifs: bare(vifs), networks, isos, ..rest })
    }

    /// Ids of the disks that hold memory.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        let disks = self.disks.iter().chain(self.older.iter().map(|older| &older.disk));
        disks.filter(|disk| disk.kind == "suspend").map(|disk| disk.id.as_str())
    }

    /// What stands in the way of restoring; nothing does for a copy.
    pub fn check(&self, view: &impl View) -> ApiResult<()> {
        if !self.manner.restore {
            return Ok(());
        }
        let ours: BTreeSet<&str> = self.machines.iter().map(|(_, record)| text(record, "uuid")).collect();
        for (id, record) in self.machines.iter().filter(|(_, record)| self.stays(view, record).is_none()) {
            let existing = view.find_by_uuid("VM", text(record, "uuid"));
            if let Some(vm) = &existing {
                let snapshot = self.snapshots.contains(id);
                if snapshot && !vm.bool("is_a_snapshot") {
                    let words = format!("a snapshot has the uuid of the machine {} here", vm.str("name_label"));
                    return Err(ApiError::import_error(words));
                }
                // A checkpoint sleeps and never runs.
                let at_rest = snapshot;
                if vm.str("power_state") != "Halted" && !at_rest {
                    return Err(ApiError::vm_bad_power_state(vm.id(), "halted", vm.str("power_state").to_lowercase()));
                }
                let (old, new) = (vm.int("version"), int(record, "version"));
                if new <= old && !self.manner.force {
                    return Err(ApiError::vm_to_import_is_not_newer_version(vm.id(), old, new));
                }
            }
            let seed = record.get("other_config").and_then(|map| map.get("mac_seed")).and_then(Value::as_str);
            if let Some(seed) = seed {
                let clash = view.all("VM").into_iter().any(|vm| {
                    vm.entry("other_config", "mac_seed") == Some(seed)
                        && !vm.bool("is_a_snapshot")
                        && !ours.contains(vm.uuid())
                });
                if clash {
                    return Err(ApiError::duplicate_mac_seed(seed));
                }
            }
        }
        Ok(())
    }

    /// The machine here that is left as it is, and the archive's left out.
    fn stays(&self, view: &impl View, record: &Map) -> Option<Ref> {
        if !(self.manner.metadata && self.manner.restore && self.manner.force) {
            return None;
        }
        let existing = view.find_by_uuid("VM", text(record, "uuid"))?;
        (existing.str("power_state") != "Halted").then(|| existing.id().clone())
    }

    /// Makes the machines over disks that are complete, and answers them: snapshots only where there is nothing else.
    pub fn create(&self, tx: &mut Tx<'_>, disks: &BTreeMap<String, Ref>, task: &Ref) -> ApiResult<Vec<Ref>> {
        self.check(tx)?;
        let none = BTreeMap::new();
        let images = if self.goes_on(tx) { disks } else { &none };
        let (mut made, mut stay, mut seeds) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (id, record) in &self.machines {
            match self.stays(tx, record) {
                Some(vm) => drop(stay.insert(id.clone(), vm)),
                None => drop(made.insert(id.clone(), self.machine(tx, (id, record), images, &mut seeds, task)?)),
            }
        }
        self.tie(tx, &made, &stay)?;
        let networks = self.used_networks(tx)?;
        let fallback = Ref::null();
        for vbd in &self.vbds {
            if let Some(vm) = made.get(text(vbd, "VM")) {
                self.vbd(tx, vbd, vm, disks)?;
            }
        }
        for vif in &self.vifs {
            if let Some(vm) = made.get(text(vif, "VM")) {
                let network = networks.get(text(vif, "network")).unwrap_or(&fallback);
                self.vif(tx, vif, vm, network)?;
            }
        }
        let (snapshots, machines): (Vec<_>, Vec<_>) = self
            .machines
            .iter()
            .filter(|(id, _)| made.contains_key(id))
            .partition(|(id, _)| self.snapshots.contains(id));
        let told = if machines.is_empty() { snapshots } else { machines };
        Ok(told.iter().map(|(id, _)| made[id].clone()).collect())
    }

    /// May a suspended machine go on here? Asked before any of them is made.
    fn goes_on(&self, view: &impl View) -> bool {
        if self.manner.restore || self.manner.metadata {
            return self.manner.restore;
        }
        let known: HashSet<String> = view.all("VIF").iter().map(|vif| vif.str("MAC").to_ascii_lowercase()).collect();
        !self.vifs.iter().any(|vif| known.contains(&text(vif, "MAC").to_ascii_lowercase()))
    }

    /// Snapshots to their machines, machines to the snapshots that they go on from.
    fn tie(&self, tx: &mut Tx<'_>, made: &BTreeMap<String, Ref>, stay: &BTreeMap<String, Ref>) -> ApiResult<()> {
        if !self.manner.metadata && self.snapshots.is_empty() {
            return Ok(());
        }
        let here = |id: &str| made.get(id).or_else(|| stay.get(id));
        for (id, record) in &self.machines {
            let Some(vm) = made.get(id) else { continue };
            let fields: &[&str] = if self.snapshots.contains(id) { &["snapshot_of", "parent"] } else { &["parent"] };
            for field in fields {
                if let Some(other) = here(text(record, field)) {
                    tx.set("VM", vm, field, other)?;
                }
            }
        }
        Ok(())
    }

    /// `images` has the memory that machines may go on with; `seeds` the new seeds by the old ones: a snapshot has that of
    /// its machine.
    fn machine(
        &self,
        tx: &mut Tx<'_>,
        (id, record): (&str, &Map),
        images: &BTreeMap<String, Ref>,
        seeds: &mut BTreeMap<String, String>,
        task: &Ref,
    ) -> ApiResult<Ref> {
        let mut fields = kept("VM", record);
        let Manner { restore, force, .. } = self.manner;
        let mut vm = Ref::random();
        if restore {
            vm = self.replace(tx, text(record, "uuid"))?.unwrap_or(vm);
            fields.insert("uuid".into(), record.get("uuid").cloned().unwrap_or(Value::from("")));
        }
        let snapshot = self.snapshots.contains(id);
        let asleep = text(record, "power_state") == "Suspended";
        let image = images.get(text(record, "suspend_VDI")).filter(|_| asleep);
        let mut put = |field: &str, value: Value| fields.insert(field.to_owned(), value);
        put("power_state", if image.is_some() { "Suspended" } else { "Halted" }.into());
        if let Some(image) = image {
            put("suspend_VDI", image.into());
        }
        put("is_a_snapshot", snapshot.into());
        if !snapshot {
            put("snapshot_time", DateTime::EPOCH.into());
            put("transportable_snapshot_id", "".into());
        }
        // It would bring the old machine's identity back at a revert.
        if !snapshot || !restore {
            put("snapshot_metadata", "".into());
        }
        put("is_control_domain", false.into());
        put("domid", (-1).into());
        put("last_booted_record", "".into());
        put("version", Value::Int(if restore { int(record, "version").saturating_add(1) } else { 0 }));
        let mut other_config = record.get("other_config").and_then(Value::as_map).cloned().unwrap_or_default();
        if !force {
            put("is_default_template", false.into());
            other_config.remove("default_template");
        }
        if !restore || !other_config.contains_key("mac_seed") {
            let old = other_config.get("mac_seed").and_then(Value::as_str).unwrap_or_default().to_owned();
            let fresh = || Uuid::new_v4().to_string();
            let seed = if old.is_empty() { fresh() } else { seeds.entry(old).or_insert_with(fresh).clone() };
            other_config.insert("mac_seed".into(), seed.into());
        }
        other_config.remove("grant_api_access");
        let known = certificate(record, &mut other_config);
        let known = if asleep && image.is_none() { without_memory(&known) } else { known };
        if asleep && image.is_none() {
            other_config.insert(LAST_STOP_KEY.into(), LAST_STOP_HARD.into());
        }
        put("snapshot_info", Value::Map(known));
        other_config.insert("import_task".into(), task.into());
        put("other_config", Value::Map(other_config));
        if !record.get("is_a_template").and_then(Value::as_bool).unwrap_or(false) {
            put("generation_id", fresh_generation_id().into());
        }
        let metrics = [
            ("memory_actual", Value::Int(0)),
            ("VCPUs_number", Value::Int(int(record, "VCPUs_at_startup"))),
            ("last_updated", DateTime::now().into()),
            ("install_time", DateTime::now().into()),
        ];
        put("metrics", tx.create("VM_metrics", metrics)?.into());
        tx.create_as("VM", vm, fields)
    }

    /// Takes the machine that is restored over out of the database, and answers its reference. Its disks stay where they
    /// are.
    fn replace(&self, tx: &mut Tx<'_>, uuid: &str) -> ApiResult<Option<Ref>> {
        let Some(old) = tx.find_by_uuid("VM", uuid) else { return Ok(None) };
        for (class, field) in [("VBD", "VBDs"), ("VIF", "VIFs"), ("console", "consoles")] {
            for id in old.refs(field).iter().filter(|id| tx.find(class, id).is_some()).cloned().collect::<Vec<_>>() {
                tx.destroy(class, &id)?;
            }
        }
        for (class, field) in [("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")] {
            let id = old.reference(field);
            if tx.find(class, &id).is_some() {
                tx.destroy(class, &id)?;
            }
        }
        tx.destroy("VM", old.id())?;
        Ok(Some(old.id().clone()))
    }

    fn vbd(&self, tx: &mut Tx<'_>, record: &Map, vm: &Ref, disks: &BTreeMap<String, Ref>) -> ApiResult<()> {
        let vdi = disks.get(text(record, "VDI")).cloned();
        let vdi = vdi.or_else(|| self.iso(tx, text(record, "VDI")));
        if vdi.is_none() && text(record, "type") == "Disk" {
            return match self.stays_attached(tx, record, vm)? {
                true => Err(ApiError::import_error_attached_disks_not_found()),
                false => Ok(()),
            };
        }
        let mut fields = kept("VBD", record);
        if let Some(Value::Map(config)) = fields.get_mut("other_config") {
            throw_away::forget_marks(config);
        }
        self.keep_uuid(tx, "VBD", record, &mut fields);
        fields.insert("VM".into(), vm.into());
        fields.insert("empty".into(), vdi.is_none().into());
        fields.insert("VDI".into(), vdi.unwrap_or_default().into());
        fields.insert("device".into(), "".into());
        fields.insert("currently_attached".into(), self.stays_attached(tx, record, vm)?.into());
        tx.create("VBD", fields).map(drop)
    }

    /// The image of this name in an ISO library here.
    fn iso(&self, view: &impl View, id: &str) -> Option<Ref> {
        let location = self.isos.get(id)?;
        let library = |vdi: &Record| {
            view.find("SR", &vdi.reference("SR"))
                .is_some_and(|sr| sr.str("content_type") == "iso" && sr.str("type") != "udev")
        };
        view.all("VDI")
            .into_iter()
            .find(|vdi| vdi.str("location") == location && library(vdi))
            .map(|vdi| vdi.id().clone())
    }

    fn vif(&self, tx: &mut Tx<'_>, record: &Map, vm: &Ref, network: &Ref) -> ApiResult<()> {
        let mut fields = kept("VIF", record);
        self.keep_uuid(tx, "VIF", record, &mut fields);
        fields.insert("VM".into(), vm.into());
        fields.insert("network".into(), network.into());
        fields.insert("currently_attached".into(), self.stays_attached(tx, record, vm)?.into());
        let vm = tx.get("VM", vm)?;
        if !self.manner.restore && vm.str("power_state") != "Suspended" {
            let seed = vm.entry("other_config", "mac_seed").unwrap_or_default();
            let device = text(record, "device").parse().unwrap_or(0);
            fields.insert("MAC".into(), generated(seed, device).into());
            fields.insert("MAC_autogenerated".into(), true.into());
        }
        tx.create("VIF", fields).map(drop)
    }

    /// Devices of a suspended machine are those that it will find when it goes on.
    fn stays_attached(&self, view: &impl View, record: &Map, vm: &Ref) -> ApiResult<bool> {
        let suspended = view.get("VM", vm)?.str("power_state") == "Suspended";
        Ok(suspended && record.get("currently_attached").and_then(Value::as_bool).unwrap_or(false))
    }

    fn keep_uuid(&self, view: &impl View, class: &str, record: &Map, fields: &mut Map) {
        let uuid = text(record, "uuid");
        if self.manner.restore && view.find_by_uuid(class, uuid).is_none() {
            fields.insert("uuid".into(), uuid.into());
        }
    }

    /// Finds or makes the networks that some VIF is on.
    fn used_networks(&self, tx: &mut Tx<'_>) -> ApiResult<BTreeMap<String, Ref>> {
        let used: BTreeSet<&str> = self.vifs.iter().map(|vif| text(vif, "network")).collect();
        let mut found = BTreeMap::new();
        for (id, record) in self.networks.iter().filter(|(id, _)| used.contains(id.as_str())) {
            let (name, bridge) = (text(record, "name_label"), text(record, "bridge"));
            let by_name = tx.by_name("network", name).into_iter().next();
            let known = by_name.or_else(|| tx.all("network").into_iter().find(|known| known.str("bridge") == bridge));
            let network = match known {
                Some(known) => known.id().clone(),
                None => {
                    let mut fields = kept("network", record);
                    fields.remove("bridge");
                    tx.create("network", fields)?
                }
            };
            found.insert(id.clone(), network);
        }
        Ok(found)
    }
}

/// The `snapshot_info` of a machine: the archive's, or what it carried of it in `other_config` past importers that drop the
/// field. It leaves `other_config` either way, or machines made from this one would carry it on.
fn certificate(record: &Map, other_config: &mut Map) -> Map {
    let own = record.get("snapshot_info").and_then(Value::as_map).cloned().unwrap_or_default();
    let (carried, rest): (Map, Map) =
        std::mem::take(other_config).into_iter().partition(|(key, _)| key.starts_with(CERTIFICATE_PREFIX));
    *other_config = rest;
    if !own.is_empty() {
        return own;
    }
    carried.into_iter().map(|(key, value)| (key[CERTIFICATE_PREFIX.len()..].to_owned(), value)).collect()
}

fn fresh_generation_id() -> String {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    format!("{}:{}", high as i64, low as i64)
}
