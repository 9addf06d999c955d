//! A machine's records through an archive's text into another database.

use std::collections::{BTreeMap, BTreeSet};

use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};
use tanada_xva::{Generations, Ova};

use super::known::find_disks;
use super::marked::{MARK, mark};
use super::pack::{Along, CERTIFICATE_PREFIX, pack, pack_metadata};
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
                        ("location", format!("place {device}").into()),
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
        let packed = self.db.read(|state| pack(state, &self.vm, &Along::default())).unwrap();
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
fn what_a_snapshot_knew_of_its_consistency_comes_back() {
    let from = world();
    let known = from.get("VM", &from.vm).map("snapshot_info").clone();
    assert!(!known.is_empty());
    let (ova, _) = from.archive();
    // Importers of other makes drop the field and keep `other_config`.
    let mut stripped = ova.clone();
    for object in stripped.objects.iter_mut().filter(|object| object.class == "VM") {
        object.record.insert("snapshot_info".into(), Value::empty_map());
    }
    for ova in [ova, stripped] {
        let to = world();
        let made = to.take_in(&Unpacked::read(&ova, Manner::default()).unwrap()).unwrap();
        let vm = to.get("VM", &made[0]);
        assert_eq!(vm.map("snapshot_info"), &known);
        let left: Vec<&String> =
            vm.map("other_config").keys().filter(|key| key.starts_with(CERTIFICATE_PREFIX)).collect();
        assert!(left.is_empty(), "{left:?}");
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
    let manner = Manner { restore: true, ..Manner::default() };
    let unpacked = Unpacked::read(&ova, manner).unwrap();
    let error = world.take_in(&unpacked).unwrap_err();
    assert!(error.is("VM_TO_IMPORT_IS_NOT_NEWER_VERSION"), "{error}");
    let forced = Unpacked::read(&ova, Manner { force: true, ..manner }).unwrap();
    let made = world.take_in(&forced).unwrap();
    let vm = world.get("VM", &made[0]);
    assert_eq!((vm.uuid(), vm.int("version")), (uuid.as_str(), 1));
    assert_eq!(world.all("VIF", &vm.refs("VIFs"))[0].str("MAC"), "02:00:00:00:00:01");
    assert_eq!(made, std::slice::from_ref(&world.vm), "under the same reference, which its snapshots know");
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
    assert!(world.db.read(|state| pack(state, &world.vm, &Along::default())).unwrap_err().is("VDI_INCOMPATIBLE_TYPE"));
    assert_eq!(mark("i"), Value::map([(MARK, "i")]));
}

/// The machine of a [`world`] with its snapshot, as records alone.
fn records(world: &World) -> Ova {
    let source = world.get("VM", &world.vm).reference("snapshot_of");
    let machines = [source, world.vm.clone()];
    let ova = world.db.read(|state| pack_metadata(state, &machines, &BTreeSet::new())).unwrap();
    let archive = tanada_xva::metadata::write(&ova, 0).unwrap();
    tanada_xva::metadata::read(&archive[..]).unwrap()
}

fn take_records(world: &World, ova: &Ova, manner: Manner, mapped: &[(&str, &str)]) -> ApiResult<Vec<Ref>> {
    let unpacked = Unpacked::read(ova, Manner { metadata: true, ..manner }).unwrap();
    let mapped = mapped.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect();
    world.db.write(|tx| {
        let disks = find_disks(tx, &unpacked.known, &mapped, manner.force)?;
        unpacked.create(tx, &disks, &Ref::from("OpaqueRef:task"))
    })
}

/// Takes a machine and its snapshot out of the database, and leaves the disks.
fn lose_the_machines(world: &World) {
    world
        .db
        .write(|tx| {
            for vm in tx.all("VM") {
                crate::ops::machine::create::remove_record(tx, vm.id())?;
            }
            Ok(())
        })
        .unwrap();
}

fn by_name(world: &World, name: &str) -> std::sync::Arc<Record> {
    world.db.read(|state| state.by_name("VM", name).remove(0))
}

#[test]
fn lost_machines_come_back_over_their_disks_with_their_snapshots() {
    let world = world();
    let old = (by_name(&world, "db1"), by_name(&world, "nightly & 1"));
    let disks = world.db.read(|state| state.all("VDI").len());
    let ova = records(&world);
    assert!(!ova.to_xml().replace("OpaqueRef:NULL", "").contains("OpaqueRef:"));
    lose_the_machines(&world);
    let restore = Manner { restore: true, ..Manner::default() };
    let made = take_records(&world, &ova, restore, &[]).unwrap();
    let (vm, snapshot) = (by_name(&world, "db1"), by_name(&world, "nightly & 1"));
    assert_eq!(made, [vm.id().clone()], "snapshots are not told beside their machine");
    assert_eq!((vm.uuid(), snapshot.uuid()), (old.0.uuid(), old.1.uuid()));
    assert!(snapshot.bool("is_a_snapshot") && snapshot.reference("snapshot_of") == *vm.id());
    assert_eq!(vm.refs("snapshots"), [snapshot.id().clone()]);
    assert_eq!(snapshot.datetime("snapshot_time"), old.1.datetime("snapshot_time"));
    assert_eq!(snapshot.entry("snapshot_info", "disk-snapshot-type"), Some("quiesced"));
    assert_eq!(snapshot.str("snapshot_metadata"), "<value/>");
    let found = world.all("VBD", &snapshot.refs("VBDs")).iter().filter(|vbd| !vbd.bool("empty")).count();
    assert_eq!((found, world.db.read(|state| state.all("VDI").len())), (2, disks), "disks are found, not made");
    // Once more: neither is newer than what is there.
    let again = take_records(&world, &ova, restore, &[]).unwrap_err();
    assert!(again.is("VM_TO_IMPORT_IS_NOT_NEWER_VERSION"), "{again}");
    // By force, but not over what runs: that stays as it is.
    world.db.write(|tx| tx.set("VM", vm.id(), "power_state", "Running")).unwrap();
    take_records(&world, &ova, Manner { force: true, ..restore }, &[]).unwrap();
    let kept = by_name(&world, "db1");
    assert_eq!((kept.id(), kept.str("power_state"), kept.int("version")), (vm.id(), "Running", 1));
    let snapshot = by_name(&world, "nightly & 1");
    assert_eq!((snapshot.reference("snapshot_of"), snapshot.int("version")), (vm.id().clone(), 1));
}

#[test]
fn copies_of_records_share_one_new_seed() {
    let world = world();
    let source = world.get("VM", &world.vm).reference("snapshot_of");
    world.db.write(|tx| tx.put_entry("VM", &source, "other_config", "mac_seed", "seed-1")).unwrap();
    let ova = records(&world);
    let made = take_records(&world, &ova, Manner::default(), &[]).unwrap();
    let vm = world.get("VM", &made[0]);
    let snapshot = world.get("VM", &vm.refs("snapshots")[0]);
    let seed = vm.entry("other_config", "mac_seed").unwrap();
    assert!(seed != "seed-1" && snapshot.entry("other_config", "mac_seed") == Some(seed));
    assert_eq!(snapshot.str("snapshot_metadata"), "", "a revert must not bring the old identity back");
    // Machines that never had one do not share one.
    for vm in world.db.read(|state| state.all("VM")) {
        world.db.write(|tx| tx.remove_entry("VM", vm.id(), "other_config", "mac_seed")).unwrap();
    }
    let made = take_records(&world, &records(&world), Manner::default(), &[]).unwrap();
    let vm = world.get("VM", &made[0]);
    let snapshot = world.get("VM", &vm.refs("snapshots")[0]);
    assert_ne!(vm.entry("other_config", "mac_seed"), snapshot.entry("other_config", "mac_seed"));
}

#[test]
fn disks_that_are_not_here_are_named_or_mapped() {
    let world = world();
    let vdis = world.db.read(|state| state.all("VDI"));
    let ova = records(&world);
    lose_the_machines(&world);
    let gone = vdis[1].clone();
    world.db.write(|tx| tx.destroy("VDI", gone.id())).unwrap();
    let missing = take_records(&world, &ova, Manner::default(), &[]).unwrap_err();
    assert_eq!(missing.code, "VDI_LOCATION_MISSING");
    assert_eq!(missing.params, [world.sr.to_string(), gone.str("location").to_owned()]);
    let mapped = [(gone.uuid(), vdis[0].uuid())];
    let made = take_records(&world, &ova, Manner::default(), &mapped).unwrap();
    assert_eq!(made.len(), 1);
    let wrong = [(gone.uuid(), "nonsense")];
    assert!(take_records(&world, &ova, Manner::default(), &wrong).unwrap_err().is("UUID_INVALID"));
    let forced = take_records(&world, &ova, Manner { force: true, ..Manner::default() }, &[]).unwrap();
    let snapshot = world.get("VM", &world.get("VM", &forced[0]).refs("snapshots")[0]);
    assert_eq!(world.all("VBD", &snapshot.refs("VBDs")).iter().filter(|vbd| !vbd.bool("empty")).count(), 1);
    world.db.write(|tx| tx.destroy("SR", &world.sr)).unwrap();
    let elsewhere = take_records(&world, &ova, Manner::default(), &[]).unwrap_err();
    assert!(elsewhere.is("VDI_CONTENT_ID_MISSING"), "{elsewhere}");
}

#[test]
fn a_suspended_machine_stays_so_only_with_its_image() {
    let world = world();
    let source = world.get("VM", &world.vm).reference("snapshot_of");
    let image = world
        .db
        .write(|tx| {
            let fields = [("SR", (&world.sr).into()), ("type", "suspend".into()), ("location", "image".into())];
            let image = tx.create("VDI", fields)?;
            tx.set("VM", &source, "suspend_VDI", &image)?;
            tx.set("VM", &source, "power_state", "Suspended")?;
            Ok(image)
        })
        .unwrap();
    let ova = records(&world);
    lose_the_machines(&world);
    let restore = Manner { restore: true, ..Manner::default() };
    take_records(&world, &ova, restore, &[]).unwrap();
    let vm = by_name(&world, "db1");
    assert_eq!((vm.str("power_state"), vm.reference("suspend_VDI")), ("Suspended", image.clone()));
    lose_the_machines(&world);
    world.db.write(|tx| tx.destroy("VDI", &image)).unwrap();
    take_records(&world, &ova, Manner { force: true, ..restore }, &[]).unwrap();
    assert_eq!(by_name(&world, "db1").str("power_state"), "Halted");
}

#[test]
fn what_a_backup_has_attached_stays_here() {
    let world = world();
    world
        .db
        .write(|tx| {
            for vbd in tx.all("VBD").iter().filter(|vbd| vbd.str("userdevice") == "1") {
                tx.put_entry("VBD", vbd.id(), "other_config", crate::ops::throw_away::ATTACHED, "of-another")?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(world.archive().1.len(), 1);
}

/// The machine of a [`world`] asleep, with an image.
fn put_to_sleep(world: &World) -> Ref {
    let source = world.get("VM", &world.vm).reference("snapshot_of");
    let made = world.db.write(|tx| {
        let fields = [("SR", (&world.sr).into()), ("type", "suspend".into()), ("virtual_size", Value::Int(4 << 20))];
        let image = tx.create("VDI", fields)?;
        tx.set("VM", &source, "suspend_VDI", &image)?;
        tx.set("VM", &source, "power_state", "Suspended")?;
        let fields = [("VM", (&source).into()), ("device", "0".into()), ("MAC", "02:00:00:00:00:07".into())];
        tx.create("VIF", fields.into_iter().chain([("currently_attached", true.into())]))?;
        Ok(())
    });
    made.unwrap();
    source
}

#[test]
fn memory_travels_when_it_is_asked_for_and_is_used_once() {
    let from = world();
    let vm = put_to_sleep(&from);
    let archive =
        |memory: bool| from.db.read(|state| pack(state, &vm, &Along { memory, ..Along::default() })).unwrap().ova;
    let without = archive(false);
    let machine = without.of_class("VM").next().unwrap();
    assert_eq!((machine.text("power_state"), machine.text("suspend_VDI")), ("Halted", Ref::null().as_str()));
    assert_eq!(machine.text_map("other_config")["tanada-last-stop"], "hard");
    assert!(without.disks().unwrap().is_empty() && !without.of_class("VIF").next().unwrap().flag("currently_attached"));
    let with = archive(true);
    assert_eq!(with.disks().unwrap().len(), 1);
    assert!(with.of_class("VIF").next().unwrap().flag("currently_attached"));

    let to = world();
    for (power, mac) in [("Suspended", true), ("Halted", false)] {
        // The second time its address is in use here.
        let vm = to.get("VM", &to.take_in(&Unpacked::read(&with, Manner::default()).unwrap()).unwrap()[0]);
        assert_eq!((vm.str("power_state"), !vm.reference("suspend_VDI").is_null()), (power, mac));
        let vif = &to.all("VIF", &vm.refs("VIFs"))[0];
        assert_eq!((vif.str("MAC") == "02:00:00:00:00:07", vif.bool("currently_attached")), (mac, mac));
        assert_eq!(vm.entry("other_config", "tanada-last-stop"), (!mac).then_some("hard"));
    }
    let restored = Unpacked::read(&with, Manner { restore: true, ..Manner::default() }).unwrap();
    let vm = to.get("VM", &to.take_in(&restored).unwrap()[0]);
    assert_eq!(vm.str("power_state"), "Suspended", "a restored one is the machine itself");
}

#[test]
fn the_memory_of_a_checkpoint_does_not_travel_by_itself() {
    let world = world();
    world.db.write(|tx| tx.set("VM", &world.vm, "power_state", "Suspended")).unwrap();
    let error = world.db.read(|state| pack(state, &world.vm, &Along { memory: true, ..Along::default() })).unwrap_err();
    assert!(error.is("VALUE_NOT_SUPPORTED"), "{error}");
    assert!(world.db.read(|state| pack(state, &world.vm, &Along::default())).is_ok());
}

/// The machine of a [`world`] with its snapshot behind it, through their texts.
fn with_snapshot(world: &World) -> (Ova, Generations) {
    let machine = world.get("VM", &world.vm).reference("snapshot_of");
    let along = Along { snapshots: vec![world.vm.clone()], ..Along::default() };
    let packed = world.db.read(|state| pack(state, &machine, &along)).unwrap();
    let ova = Ova::from_xml(packed.ova.to_xml().as_bytes()).unwrap();
    let generations = packed.generations.unwrap();
    let read = Generations::from_xml(generations.to_xml().as_bytes(), &ova).unwrap();
    assert!(read.disks == generations.disks && read.objects.len() == generations.objects.len());
    (ova, read)
}

#[test]
fn snapshots_behind_their_machine_are_its_own() {
    let world = world();
    let (ova, generations) = with_snapshot(&world);
    assert_eq!((ova.of_class("VM").count(), ova.disks().unwrap().len()), (1, 0), "the machine stands by itself");
    assert!(!ova.of_class("VM").next().unwrap().flag("is_a_snapshot"));
    assert!(generations.disks.len() == 2 && generations.disks.iter().all(|disk| disk.base.is_none()));
    let snapshot = generations.objects.iter().find(|object| object.class == "VM").unwrap();
    assert!(snapshot.flag("is_a_snapshot") && ova.find(snapshot.text("snapshot_of")).is_some());
    assert_eq!(snapshot.text_map("snapshot_info")["disk-snapshot-type"], "quiesced");
    let manner = Manner { restore: true, ..Manner::default() };
    assert_eq!(Unpacked::with_generations(&ova, &generations, manner).unwrap().older.len(), 2);

    let refused = |fields: &[(&str, Value)]| {
        let mut generations = generations.clone();
        let snapshot = generations.objects.iter_mut().find(|object| object.class == "VM").unwrap();
        snapshot.record.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Map>());
        let unpacked = Unpacked::with_generations(&ova, &generations, manner);
        unpacked.and_then(|unpacked| world.db.read(|state| unpacked.check(state))).unwrap_err().to_string()
    };
    assert!(refused(&[("snapshot_of", "Ref:9999".into())]).contains("no snapshot of the machine"));
    assert!(refused(&[("is_a_snapshot", false.into())]).contains("no snapshot of the machine"));
    let machine = ova.of_class("VM").next().unwrap();
    assert!(refused(&[("uuid", machine.text("uuid").into())]).contains("two machines have the uuid"));
    let other = world.db.write(|tx| tx.create("VM", [("name_label", Value::from("web"))])).unwrap();
    let other = world.get("VM", &other).uuid().to_owned();
    // The machine itself is here already, so it would be refused for its version: the snapshot's uuid comes first.
    world.db.write(|tx| tx.set("VM", &world.get("VM", &world.vm).reference("snapshot_of"), "version", -1)).unwrap();
    assert!(refused(&[("uuid", other.into())]).contains("a snapshot has the uuid of the machine web"));
}
