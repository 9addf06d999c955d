//! From the database to the objects of an archive: which are collected, what is blanked.
//!
//! Every reference that leads out of the archive becomes null and every list of references keeps only exported objects
//! (xapi leaves some foreign references standing; nobody may use them). A snapshot leaves as a plain template: what it
//! knew about its consistency travels in `other_config` under [`CERTIFICATE_PREFIX`], because importers of other makes
//! drop `snapshot_info` of what is no snapshot.
//!
//! An archive of records alone keeps what an archive with disks blanks: snapshots stay snapshots of their machine, power
//! states and places of disks stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tanada_xapi::types::Type;
use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};
use tanada_xva::{Object, Ova, Version};

use crate::db::{Record, View};
use crate::ops::throw_away;

/// Keys of `VM.snapshot_info` appear in the archive's `VM.other_config` with this in front.
pub const CERTIFICATE_PREFIX: &str = "snapshot_info:";

/// An archive's objects and the disks to stream into it, by id.
#[derive(Debug)]
pub struct Packed {
    pub ova: Ova,
    /// Ids in the archive and the VDIs behind them.
    pub disks: BTreeMap<String, Ref>,
}

/// What an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WithDisks,
    Metadata,
}

/// The objects that go into one archive, by their references.
#[derive(Default)]
struct Collected {
    objects: Vec<(&'static str, Arc<Record>)>,
    /// Padded, so that their order as text is their order as numbers.
    ids: BTreeMap<Ref, String>,
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
pub fn pack(view: &impl View, vm: &Ref) -> ApiResult<Packed> {
    let machine = view.get("VM", vm)?;
    let mut collected = Collected::default();
    let disks = collected.machine(view, &machine, &BTreeSet::new());
    disks.iter().try_for_each(|vdi| check_size(vdi))?;
    let ova = collected.ova(Kind::WithDisks);
    let disks = disks.iter().map(|vdi| (collected.ids[vdi.id()].clone(), vdi.id().clone())).collect();
    Ok(Packed { ova, disks })
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
            record: blanked(class, record, &self.ids, kind),
        });
        Ova { version: Version::default(), objects: objects.collect() }
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

fn blanked(class: &str, record: &Record, ids: &BTreeMap<Ref, String>, kind: Kind) -> Map {
    let mut map = record.to_map();
    for field in &record.class().fields {
        if let Some(value) = map.get_mut(field.name) {
            translate(&field.ty, value, ids);
        }
    }
    for field in ["allowed_operations", "current_operations", "blobs"] {
        if let Some(field) = record.class().field(field) {
            map.insert(field.name.to_owned(), field.ty.zero());
        }
    }
    let mut put = |field: &str, value: Value| map.insert(field.to_owned(), value);
    match class {
        "VDI" | "SR" if kind == Kind::Metadata => drop(put("sm_config", Value::empty_map())),
        _ if kind == Kind::Metadata => {}
        "VM" => {
            put("power_state", "Halted".into());
            put("is_a_snapshot", false.into());
            put("snapshot_of", Ref::null().into());
            put("parent", Ref::null().into());
            put("snapshots", Value::empty_set());
            put("children", Value::empty_set());
            put("snapshot_time", DateTime::EPOCH.into());
            put("transportable_snapshot_id", "".into());
            put("snapshot_metadata", "".into());
            put("other_config", with_certificate(record));
        }
        "VBD" | "VIF" => {
            put("currently_attached", false.into());
            if class == "VBD" && !ids.contains_key(&record.reference("VDI")) {
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

/// The memory of a checkpoint does not travel, and without it its disks are as after a power cut.
fn with_certificate(machine: &Record) -> Value {
    let mut other_config = machine.map("other_config").clone();
    for (key, value) in machine.map("snapshot_info") {
        let value = match (key.as_str(), value.as_str()) {
            ("method", Some("memory")) => Value::from("none"),
            (key, Some("memory")) if key == "consistency" || key.ends_with(".level") => Value::from("crash"),
            _ => value.clone(),
        };
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
