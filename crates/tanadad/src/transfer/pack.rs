//! From the database to the objects of an archive: which are collected, what is blanked.
//!
//! Every reference that leads out of the archive becomes null and every list of references keeps only exported objects
//! (xapi leaves some foreign references standing; nobody may use them). A snapshot leaves as a plain template: what it
//! knew about its consistency travels in `other_config` under [`CERTIFICATE_PREFIX`], because importers of other makes
//! drop `snapshot_info` of what is no snapshot.
//!
//! A suspended machine leaves as a halted one unless its memory is to travel: then its image is one disk more, and its
//! devices are those that it will look for when it goes on.
//!
//! Snapshots that leave together with their machine stay snapshots: their records stand in a document of their own behind
//! the machine's disks ([`tanada_xva::generations`]), and each of their disks is told by the next newer one of the same
//! disk.
//!
//! An archive of records alone keeps what an archive with disks blanks: snapshots stay snapshots of their machine, power
//! states and places of disks stay as they are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tanada_xapi::types::Type;
use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};
use tanada_xva::{DeltaPlan, Generations, Object, Ova, Version};

use crate::db::{Record, View};
use crate::ops::throw_away;
use crate::vmm::records::{LAST_STOP_HARD, LAST_STOP_KEY};

/// Keys of `VM.snapshot_info` appear in the archive's `VM.other_config` with this in front.
pub const CERTIFICATE_PREFIX: &str = "snapshot_info:";

/// An archive's objects and the disks to stream into it, by id.
#[derive(Debug)]
pub struct Packed {
    pub ova: Ova,
    /// Ids in the archive and the VDIs behind them.
    pub disks: BTreeMap<String, Ref>,
    /// The machine's snapshots, where there are some and they are to come along; their disks are among `disks`.
    pub generations: Option<Generations>,
}

/// What leaves beside a halted machine.
#[derive(Debug, Clone, Default)]
pub struct Along {
    /// The memory of suspended machines and checkpoints.
    pub memory: bool,
    /// Snapshots of the machine.
    pub snapshots: Vec<Ref>,
}

/// What an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WithDisks,
    /// A snapshot behind its machine.
    Generation,
    Metadata,
}

/// The objects that go into one archive, by their references.
#[derive(Default)]
struct Collected {
    objects: Vec<(&'static str, Arc<Record>)>,
    /// Padded, so that their order as text is their order as numbers.
    ids: BTreeMap<Ref, String>,
    /// Machines whose memory travels.
    asleep: BTreeSet<Ref>,
}

impl Collected {
    fn add(&mut self, class: &'static str, record: Arc<Record>) {
        // An SR with two disks comes along once.
        if !self.ids.contains_key(record.id()) {
            self.ids.insert(record.id().clone(), format!("Ref:{:04}", self.objects.len()));
            self.objects.push((class, record));
        }
    }
}

/// The machine, snapshot or template with everything that a full export carries.
///
/// # Errors
/// `VDI_INCOMPATIBLE_TYPE` for a size that no importer can place; `VALUE_NOT_SUPPORTED` for the memory of a checkpoint,
/// which means nothing in the template that it becomes.
pub fn pack(view: &impl View, vm: &Ref, along: &Along) -> ApiResult<Packed> {
    let machine = view.get("VM", vm)?;
    if along.memory && machine.bool("is_a_template") && machine.str("power_state") == "Suspended" {
        let words =
            "the memory of a checkpoint means nothing without its machine: export the machine with its snapshots";
        return Err(ApiError::value_not_supported("preserve_power_state", "true", words));
    }
    let mut collected = Collected::default();
    let mut disks = collected.machine(view, &machine, &BTreeSet::new());
    let newest: Vec<Ref> = disks.iter().map(|vdi| vdi.id().clone()).collect();
    if along.memory {
        disks.extend(collected.memory(view, &machine));
    }
    let ova = collected.ova(Kind::WithDisks);
    let mut generations = None;
    if !along.snapshots.is_empty() {
        let (documents, older) = collected.generations(view, &machine, along, &newest)?;
        disks.extend(older);
        generations = Some(documents);
    }
    disks.iter().try_for_each(|vdi| check_size(vdi))?;
    let disks = disks.iter().map(|vdi| (collected.ids[vdi.id()].clone(), vdi.id().clone())).collect();
    Ok(Packed { ova, disks, generations })
}

/// Machines as records alone, without the `excluded` classes of devices.
pub fn pack_metadata(view: &impl View, machines: &[Ref], excluded: &BTreeSet<String>) -> ApiResult<Ova> {
    let mut collected = Collected::default();
    for vm in machines {
        let machine = view.get("VM", vm)?;
        collected.machine(view, &machine, excluded);
        if let Some(image) = view.find("VDI", &machine.reference("suspend_VDI")) {
            collected.disk(view, image);
        }
    }
    Ok(collected.ova(Kind::Metadata))
}

impl Collected {
    /// Answers the disks, without media.
    fn machine(&mut self, view: &impl View, machine: &Arc<Record>, excluded: &BTreeSet<String>) -> Vec<Arc<Record>> {
        let mut disks = Vec::new();
        self.add("VM", machine.clone());
        for (class, field) in [("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")] {
            if let Some(record) = view.find(class, &machine.reference(field)) {
                self.add(class, record);
            }
        }
        let devices = |class: &'static str, field: &str| match excluded.contains(&class.to_lowercase()) {
            true => Vec::new(),
            false => view.resolve(class, &machine.refs(field)),
        };
        for vbd in devices("VBD", "VBDs") {
            if vbd.entry("other_config", throw_away::ATTACHED).is_some() {
                continue;
            }
            self.add("VBD", vbd.clone());
            let Some(vdi) = view.find("VDI", &vbd.reference("VDI")) else { continue };
            let library = view.find("SR", &vdi.reference("SR")).is_some_and(|sr| sr.str("content_type") == "iso");
            if vbd.str("type") == "CD" && !library {
                continue;
            }
            if vbd.str("type") != "CD" && !library {
                disks.push(vdi.clone());
            }
            self.disk(view, vdi);
        }
        for vif in devices("VIF", "VIFs") {
            let network = view.find("network", &vif.reference("network"));
            self.add("VIF", vif);
            if let Some(network) = network {
                self.add("network", network);
            }
        }
        disks
    }

    /// Takes snapshots along, behind what was collected so far. Answers their disks, too. `newest`: the machine's own.
    fn generations(
        &mut self,
        view: &impl View,
        machine: &Record,
        along: &Along,
        newest: &[Ref],
    ) -> ApiResult<(Generations, Vec<Arc<Record>>)> {
        let before = self.objects.len();
        let mut snapshots = along.snapshots.iter().map(|id| view.get("VM", id)).collect::<ApiResult<Vec<_>>>()?;
        let by_id: BTreeMap<Ref, Arc<Record>> = snapshots.iter().map(|vm| (vm.id().clone(), vm.clone())).collect();
        // Times have whole seconds; of one second, a snapshot comes after the one that it goes on from.
        let depth = |vm: &Record| {
            let parent = |vm: &&Record| by_id.get(&vm.reference("parent")).map(Arc::as_ref);
            std::iter::successors(Some(vm), parent).take(by_id.len()).count()
        };
        snapshots.sort_by_cached_key(|vm| Reverse((vm.datetime("snapshot_time").unix(), depth(vm))));
        let mut families: Vec<(Ref, Vec<Arc<Record>>)> = Vec::new();
        let mut images = Vec::new();
        for snapshot in &snapshots {
            for vdi in self.machine(view, snapshot, &BTreeSet::new()) {
                let origin = vdi.reference("snapshot_of");
                // Where the disk itself is not known any more, the state stands for itself.
                let origin = if origin.is_null() { vdi.id().clone() } else { origin };
                match families.iter_mut().find(|(known, _)| *known == origin) {
                    Some((_, states)) => states.push(vdi),
                    None => families.push((origin, vec![vdi])),
                }
            }
            if along.memory {
                images.extend(self.memory(view, snapshot));
            }
        }
        let (mut plans, mut disks) = (Vec::new(), Vec::new());
        for (origin, states) in families {
            let mut base = newest.contains(&origin).then(|| self.ids[&origin].clone());
            for state in states {
                let plan = self.told_by(&state, base);
                base = Some(plan.id.clone());
                plans.push(plan);
                disks.push(state);
            }
        }
        for image in images {
            plans.push(self.told_by(&image, None));
            disks.push(image);
        }
        let objects = self.ova(Kind::Generation).objects.split_off(before);
        let parent = self.ids.get(&machine.reference("parent")).cloned().unwrap_or_default();
        Ok((Generations { objects, parent, disks: plans }, disks))
    }

    fn told_by(&self, vdi: &Record, base: Option<String>) -> DeltaPlan {
        DeltaPlan { id: self.ids[vdi.id()].clone(), size: u64::try_from(vdi.int("virtual_size")).unwrap_or(0), base }
    }

    /// Takes the memory of a suspended machine along.
    fn memory(&mut self, view: &impl View, machine: &Record) -> Option<Arc<Record>> {
        let asleep = machine.str("power_state") == "Suspended";
        let image = view.find("VDI", &machine.reference("suspend_VDI")).filter(|_| asleep)?;
        self.disk(view, image.clone());
        self.asleep.insert(machine.id().clone());
        Some(image)
    }

    fn disk(&mut self, view: &impl View, vdi: Arc<Record>) {
        let sr = view.find("SR", &vdi.reference("SR"));
        self.add("VDI", vdi);
        if let Some(sr) = sr {
            self.add("SR", sr);
        }
    }

    fn ova(&self, kind: Kind) -> Ova {
        let objects = self.objects.iter().map(|(class, record)| Object {
            class: (*class).to_owned(),
            id: self.ids[record.id()].clone(),
            record: self.blanked(class, record, kind),
        });
        Ova { version: Version::default(), objects: objects.collect() }
    }

    fn blanked(&self, class: &str, record: &Record, kind: Kind) -> Map {
        let mut map = record.to_map();
        for field in &record.class().fields {
            if let Some(value) = map.get_mut(field.name) {
                translate(&field.ty, value, &self.ids);
            }
        }
        for field in ["allowed_operations", "current_operations", "blobs"] {
            if let Some(field) = record.class().field(field) {
                map.insert(field.name.to_owned(), field.ty.zero());
            }
        }
        let mut put = |field: &str, value: Value| map.insert(field.to_owned(), value);
        match class {
            "VDI" | "SR" if kind != Kind::WithDisks => drop(put("sm_config", Value::empty_map())),
            "VM" if kind == Kind::Generation && !self.asleep.contains(record.id()) => {
                put("power_state", "Halted".into());
                put("suspend_VDI", Ref::null().into());
                put("snapshot_info", Value::Map(without_memory(record.map("snapshot_info"))));
            }
            _ if kind != Kind::WithDisks => {}
            "VM" => {
                if !self.asleep.contains(record.id()) {
                    put("power_state", "Halted".into());
                    put("suspend_VDI", Ref::null().into());
                }
                put("is_a_snapshot", false.into());
                put("snapshot_of", Ref::null().into());
                put("parent", Ref::null().into());
                put("snapshots", Value::empty_set());
                put("children", Value::empty_set());
                put("snapshot_time", DateTime::EPOCH.into());
                put("transportable_snapshot_id", "".into());
                put("snapshot_metadata", "".into());
                put("other_config", with_certificate(record, self.asleep.contains(record.id())));
            }
            "VBD" | "VIF" => {
                if !self.asleep.contains(&record.reference("VM")) {
                    put("currently_attached", false.into());
                }
                if class == "VBD" && !self.ids.contains_key(&record.reference("VDI")) {
                    put("empty", true.into());
                }
            }
            "VDI" => {
                put("is_a_snapshot", false.into());
                put("snapshot_time", DateTime::EPOCH.into());
                put("read_only", false.into());
                put("sm_config", Value::empty_map());
            }
            "SR" => {
                put("sm_config", Value::empty_map());
            }
            _ => {}
        }
        map
    }
}

/// Sizes that no importer can place are refused before a byte is sent.
fn check_size(vdi: &Record) -> ApiResult<()> {
    let size = vdi.int("virtual_size");
    if size > 0 && size % 512 == 0 {
        return Ok(());
    }
    Err(ApiError::vdi_incompatible_type(vdi.id(), format!("its size of {size} bytes is not a multiple of 512")))
}

/// A certificate without its memory: the disks are as after a power cut then.
pub fn without_memory(info: &Map) -> Map {
    let value = |key: &str, value: &Value| match (key, value.as_str()) {
        ("method", Some("memory")) => Value::from("none"),
        (key, Some("memory")) if key == "consistency" || key.ends_with(".level") => Value::from("crash"),
        _ => value.clone(),
    };
    info.iter().map(|(key, old)| (key.clone(), value(key, old))).collect()
}

/// Of a machine that sleeps here and leaves without its memory, what it had not written yet is lost.
fn with_certificate(machine: &Record, has_memory: bool) -> Value {
    let mut other_config = machine.map("other_config").clone();
    if machine.str("power_state") == "Suspended" && !has_memory {
        other_config.insert(LAST_STOP_KEY.to_owned(), LAST_STOP_HARD.into());
    }
    for (key, value) in without_memory(machine.map("snapshot_info")) {
        other_config.insert(format!("{CERTIFICATE_PREFIX}{key}"), value);
    }
    Value::Map(other_config)
}

/// Puts ids of the archive in place of references.
fn translate(ty: &Type, value: &mut Value, ids: &BTreeMap<Ref, String>) {
    let id_of = |value: &Value| ids.get(value.as_str()?).cloned();
    match (ty, value) {
        (Type::Ref(_), value) => *value = id_of(value).map_or(Ref::null().into(), Value::from),
        (Type::Set(item), Value::Set(items)) if matches!(**item, Type::Ref(_)) => {
            *items = items.iter().filter_map(|item| id_of(item).map(Value::from)).collect();
        }
        (Type::Map(key, item), Value::Map(map)) => {
            if matches!(**key, Type::Ref(_)) {
                let known = |(key, value): (String, Value)| Some((ids.get(key.as_str())?.clone(), value));
                *map = std::mem::take(map).into_iter().filter_map(known).collect();
            }
            map.values_mut().for_each(|value| translate(item, value, ids));
        }
        _ => {}
    }
}
