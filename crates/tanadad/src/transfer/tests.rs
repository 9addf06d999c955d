//! A machine's records through an archive's text into another database.

use std::collections::BTreeMap;

use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};
use tanada_xva::Ova;

use super::marked::{MARK, mark};
use super::pack::{CERTIFICATE_PREFIX, pack};
use super::unpack::{Manner, Unpacked};
use crate::db::{Db, Record, View};

struct World {
    db: Db,
    sr: Ref,
    vm: Ref,
}

fn text_map<const N: usize>(pairs: [(&str, &str); N]) -> Value {
    Value::map(pairs)
}

/// A snapshot with two disks on one SR, an empty CD drive and a network device.
fn world() -> World {
    let db = Db::in_memory().unwrap();
    let (sr, vm) = db
        .write(|tx| {
            let sr = tx.create(
                "SR",
                [("name_label", "fast".into()), ("content_type", "user".into()), ("type", "tanada".into())],
            )?;
            let network =
                tx.create("network", [("name_label", "Host internal".into()), ("bridge", "xenapi".into())])?;
            let metrics = tx.create("VM_metrics", [("VCPUs_number", Value::Int(2))])?;
            let source = tx.create("VM", [("name_label", Value::from("db1"))])?;
            let vm = tx.create(
                "VM",
                [
                    ("name_label", "nightly & 1".into()),
                    ("is_a_template", true.into()),
                    ("is_a_snapshot", true.into()),
                    ("snapshot_of", source.into()),
                    ("snapshot_time", DateTime::now().into()),
                    ("snapshot_info", text_map([("disk-snapshot-type", "quiesced"), ("cut_us", "41")])),
                    ("snapshot_metadata", "<value/>".into()),
                    ("other_config", text_map([("mac_seed", "seed-1"), ("note", "kept")])),
                    ("memory_static_max", Value::Int(256 << 20)),
                    ("HVM_shadow_multiplier", Value::Float(1.0)),
                    ("metrics", metrics.into()),
                    ("VCPUs_max", Value::Int(2)),
                    ("actions_after_crash", "restart".into()),
                ],
            )?;
            for (device, size) in [("0", 4096), ("1", 3 << 20)] {
                let name = format!("disk {device}");
                let vdi = tx.create(
                    "VDI",
                    [
                        ("name_label", Value::from(name)),
                        ("SR", (&sr).into()),
                        ("virtual_size", Value::Int(size)),
                        ("type", "user".into()),
                        ("is_a_snapshot", true.into()),
                        ("other_config", text_map([("role", "data")])),
                        ("tags", Value::set(["gold"])),
                    ],
                )?;
                tx.create(
                    "VBD",
                    [
                        ("VM", (&vm).into()),
                        ("VDI", vdi.into()),
                        ("userdevice", device.into()),
                        ("type", "Disk".into()),
                        ("mode", "RW".into()),
                        ("bootable", (device == "0").into()),
                        ("device", "vda".into()),
                    ],
                )?;
            }
            tx.create(
                "VBD",
                [("VM", (&vm).into()), ("userdevice", "3".into()), ("type", "CD".into()), ("empty", true.into())],
            )?;
            tx.create(
                "VIF",
                [
                    ("VM", (&vm).into()),
                    ("network", network.into()),
                    ("device", "0".into()),
                    ("MAC", "02:00:00:00:00:01".into()),
                ],
            )?;
            Ok((sr, vm))
        })
        .unwrap();
    World { db, sr, vm }
}

impl World {
    fn archive(&self) -> (Ova, BTreeMap<String, Ref>) {
        let packed = self.db.read(|state| pack(state, &self.vm)).unwrap();
        (Ova::from_xml(packed.ova.to_xml().as_bytes()).unwrap(), packed.disks)
    }

    /// What the import does after it has filled the disks.
    fn take_in(&self, unpacked: &Unpacked) -> ApiResult<Vec<Ref>> {
        self.db.write(|tx| {
            let mut disks = BTreeMap::new();
            for disk in &unpacked.disks {
                let fields = disk.request(&self.sr, "intent").fields;
                let vdi = tx.create("VDI", fields.into_iter().chain([("SR", Value::from(&self.sr))]))?;
                disks.insert(disk.id.clone(), vdi);
            }
            super::marked::complete(tx, disks.values(), "intent")?;
            unpacked.create(tx, &disks, &Ref::from("OpaqueRef:task"))
        })
    }

    fn get(&self, class: &str, id: &Ref) -> std::sync::Arc<Record> {
        self.db.read(|state| state.get(class, id)).unwrap()
    }

    fn all(&self, class: &str, ids: &[Ref]) -> Vec<std::sync::Arc<Record>> {
        self.db.read(|state| state.resolve(class, ids))
    }
}

#[test]
fn an_archive_names_nothing_outside_of_it() {
    let world = world();
    let (ova, disks) = world.archive();
    assert_eq!(disks.len(), 2);
    assert_eq!(ova.disks().unwrap().iter().map(|plan| plan.size).collect::<Vec<_>>(), [4096, 3 << 20]);
    assert_eq!(ova.of_class("SR").count(), 1);
    assert_eq!(ova.of_class("host").count(), 0);
    let foreign = ova.to_xml().replace("OpaqueRef:NULL", "");
    assert!(!foreign.contains("OpaqueRef:"), "{foreign}");
    let vm = ova.of_class("VM").next().unwrap();
    assert_eq!((vm.text("power_state"), vm.flag("is_a_template"), vm.flag("is_a_snapshot")), ("Halted", true, false));
    assert_eq!(vm.text_map("other_config")[&format!("{CERTIFICATE_PREFIX}disk-snapshot-type")], "quiesced");
    // What importers of XenServer refuse to do without.
    for field in ["memory_dynamic_min", "VCPUs_params", "PV_bootloader", "domarch", "recommendations", "parent"] {
        assert!(vm.record.contains_key(field), "{field}");
    }
}

#[test]
fn a_copy_gets_a_new_identity() {
    let from = world();
    let (ova, _) = from.archive();
    let to = world();
    let unpacked = Unpacked::read(&ova, Manner::default()).unwrap();
    let made = to.take_in(&unpacked).unwrap();
    let vm = to.get("VM", &made[0]);
    assert_eq!(vm.str("name_label"), "nightly & 1");
    assert_ne!(vm.uuid(), from.get("VM", &from.vm).uuid());
    assert!(vm.bool("is_a_template") && !vm.bool("is_a_snapshot"));
    assert_eq!(vm.int("memory_static_max"), 256 << 20);
    assert_eq!(vm.str("actions_after_crash"), "restart");
    assert_eq!(vm.entry("other_config", "note"), Some("kept"));
    assert_eq!(vm.entry("other_config", "import_task"), Some("OpaqueRef:task"));
    assert_ne!(vm.entry("other_config", "mac_seed"), Some("seed-1"));
    assert_eq!(to.get("VM_metrics", &vm.reference("metrics")).int("VCPUs_number"), 0);
    let vbds = to.all("VBD", &vm.refs("VBDs"));
    assert_eq!(vbds.iter().map(|vbd| vbd.str("userdevice").to_owned()).collect::<Vec<_>>(), ["0", "1", "3"]);
    assert_eq!(vbds.iter().map(|vbd| vbd.bool("empty")).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(vbds[0].str("device"), "");
    let vdi = to.get("VDI", &vbds[1].reference("VDI"));
    assert_eq!((vdi.str("name_label"), vdi.entry("other_config", "role")), ("disk 1", Some("data")));
    assert_eq!((vdi.entry("other_config", MARK), vdi.strings("tags")), (None, vec!["gold".to_owned()]));
    assert!(!vdi.bool("is_a_snapshot"));
    let vif = &to.all("VIF", &vm.refs("VIFs"))[0];
    assert_ne!(vif.str("MAC"), "02:00:00:00:00:01");
    assert_eq!(to.get("network", &vif.reference("network")).str("name_label"), "Host internal");
}

#[test]
fn a_restored_machine_keeps_its_identity_and_replaces_what_is_older() {
    let world = world();
    let uuid = world.get("VM", &world.vm).uuid().to_owned();
    let (ova, _) = world.archive();
    let manner = Manner { restore: true, force: false };
    let unpacked = Unpacked::read(&ova, manner).unwrap();
    let error = world.take_in(&unpacked).unwrap_err();
    assert!(error.is("VM_TO_IMPORT_IS_NOT_NEWER_VERSION"), "{error}");
    let forced = Unpacked::read(&ova, Manner { force: true, ..manner }).unwrap();
    let made = world.take_in(&forced).unwrap();
    let vm = world.get("VM", &made[0]);
    assert_eq!((vm.uuid(), vm.int("version")), (uuid.as_str(), 1));
    assert_eq!(world.all("VIF", &vm.refs("VIFs"))[0].str("MAC"), "02:00:00:00:00:01");
    assert!(world.db.read(|state| state.find("VM", &world.vm)).is_none());
    // Running machines are not replaced, force or not.
    world.db.write(|tx| tx.set("VM", &made[0], "power_state", "Running")).unwrap();
    assert!(world.take_in(&forced).unwrap_err().is("VM_BAD_POWER_STATE"));
}

/// The archive with fields of one object changed.
fn changed(ova: &Ova, class: &str, fields: &[(&str, Value)]) -> Ova {
    let mut ova = ova.clone();
    let object = ova.objects.iter_mut().find(|object| object.class == class).unwrap();
    object.record.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Map>());
    ova
}

#[test]
fn records_of_other_makes_are_read_and_wrong_ones_named() {
    let (ova, _) = world().archive();
    let read = |class: &str, fields: &[(&str, Value)]| Unpacked::read(&changed(&ova, class, fields), Manner::default());
    let future = [
        ("from_the_future", "x".into()),
        ("power_state", "halted".into()),
        ("allowed_operations", Value::set(["levitate"])),
    ];
    assert!(read("VM", &future).is_ok());
    assert!(read("VBD", &[("type", "disk".into()), ("VDI", "OpaqueRef:of-elsewhere".into())]).is_ok());
    let refused: [(&str, &str, Value, ApiError); 3] = [
        ("VM", "memory_static_max", "much".into(), ApiError::import_error("")),
        ("VDI", "type", "cbt_metadata".into(), ApiError::vdi_incompatible_type("", "")),
        ("VBD", "VDI", "Ref:9999".into(), ApiError::import_error_failed_to_find_object("")),
    ];
    for (class, field, value, expected) in refused {
        let error = read(class, &[(field, value)]).unwrap_err();
        assert_eq!(error.code, expected.code, "{error}");
    }
    let empty = Ova { objects: Vec::new(), ..ova.clone() };
    assert!(Unpacked::read(&empty, Manner::default()).unwrap_err().is("IMPORT_ERROR"));
}

#[test]
fn sizes_that_no_importer_can_place_are_refused() {
    let world = world();
    let vdi = world.db.read(|state| state.all("VDI")[0].id().clone());
    world.db.write(|tx| tx.set("VDI", &vdi, "virtual_size", Value::Int(513))).unwrap();
    assert!(world.db.read(|state| pack(state, &world.vm)).unwrap_err().is("VDI_INCOMPATIBLE_TYPE"));
    assert_eq!(mark("i"), Value::map([(MARK, "i")]));
}
