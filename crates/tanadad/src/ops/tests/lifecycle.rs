use std::sync::Arc;

use tanada_driver::memory::MemoryDriver;
use tanada_xapi::Value;

use super::World;
use crate::db::Record;

fn macs(world: &World, vm: &Record) -> Vec<String> {
    vm.refs("VIFs").iter().map(|vif| world.get("VIF", vif).str("MAC").to_owned()).collect()
}

#[tokio::test]
async fn a_snapshot_is_a_template_of_that_instant() {
    let world = World::new().await;
    let vm = world.machine(2).await;
    for volume in world.volumes(&vm) {
        world.driver.write(volume, 0, 7);
    }
    let snapshot = world.snapshot(&vm, "nightly").await.unwrap();
    for volume in world.volumes(&vm) {
        world.driver.write(volume, 0, 8);
    }
    for volume in world.volumes(&snapshot) {
        assert_eq!(world.driver.read(volume, 0), Some(7));
    }
    let (machine, record) = (world.get("VM", &vm), world.get("VM", &snapshot));
    assert!(record.bool("is_a_template") && record.bool("is_a_snapshot"));
    assert_eq!(record.reference("snapshot_of"), vm);
    assert_eq!(machine.reference("parent"), snapshot);
    assert_eq!(machine.strings("snapshots"), [snapshot.as_str()]);
    assert_eq!(macs(&world, &record), macs(&world, &machine));
    assert_eq!(record.entry("snapshot_info", "disk-snapshot-type"), Some("crash_consistent"));
    assert_eq!(record.entry("snapshot_info", "power-state-at-snapshot"), Some("Halted"));
    assert_eq!(record.entry("snapshot_info", "bytes_moved_by_host"), Some("0"));
    assert_eq!(record.entry("other_config", "mac_seed"), machine.entry("other_config", "mac_seed"));
    for vdi in world.vdis(&snapshot) {
        let vdi = world.get("VDI", &vdi);
        assert!(vdi.bool("is_a_snapshot") && vdi.uuid() == vdi.str("location"));
    }
    world.assert_consistent("after a snapshot").await;
}

#[tokio::test]
async fn an_instance_of_a_snapshot_is_a_machine_of_its_own() {
    let world = World::new().await;
    let vm = world.machine(2).await;
    world.driver.write(world.volumes(&vm)[1], 3, 33);
    let snapshot = world.snapshot(&vm, "nightly").await.unwrap();
    let cloned = world.call("VM.clone", [Value::from(&snapshot), Value::from("restored")]).await.unwrap();
    let instance = super::reference(&cloned);
    assert!(world.get("VM", &instance).bool("is_a_template"));
    world.call("VM.provision", [Value::from(&instance)]).await.unwrap();
    let (source, record) = (world.get("VM", &vm), world.get("VM", &instance));
    assert!(!record.bool("is_a_template") && !record.bool("is_a_snapshot"));
    assert!(record.reference("snapshot_of").is_null() && record.reference("parent").is_null());
    assert_ne!(record.uuid(), source.uuid());
    assert_ne!(record.str("generation_id"), source.str("generation_id"));
    assert_ne!(record.entry("other_config", "mac_seed"), source.entry("other_config", "mac_seed"));
    assert_ne!(macs(&world, &record), macs(&world, &source));
    assert_eq!(record.entry("other_config", "base_template_name"), Some("Other install media"));
    let volumes = world.volumes(&instance);
    assert_eq!(world.driver.read(volumes[1], 3), Some(33));
    world.driver.write(volumes[1], 3, 44);
    assert_eq!(world.driver.read(world.volumes(&snapshot)[1], 3), Some(33));
    world.assert_consistent("after an instance").await;
}

async fn revert_brings_back(driver: MemoryDriver, ids_stay: bool) {
    let world = World::over(driver).await;
    let vm = world.machine(2).await;
    let before = world.vdis(&vm);
    world.driver.write(world.volumes(&vm)[0], 1, 11);
    let early = world.snapshot(&vm, "early").await.unwrap();
    world.driver.write(world.volumes(&vm)[0], 1, 12);
    let late = world.snapshot(&vm, "late").await.unwrap();
    world.call("VM.set_name_label", [Value::from(&vm), Value::from("renamed")]).await.unwrap();
    world.call("VM.revert", [Value::from(&early)]).await.unwrap();
    assert_eq!(world.driver.read(world.volumes(&vm)[0], 1), Some(11));
    assert_eq!(world.driver.read(world.volumes(&late)[0], 1), Some(12));
    let record = world.get("VM", &vm);
    assert_eq!(record.str("name_label"), "db1");
    assert_eq!(record.reference("parent"), early);
    assert_eq!(world.vdis(&vm) == before, ids_stay);
    assert_eq!(record.refs("VIFs").len(), 1);
    world.assert_consistent("after a revert").await;
    // And forward again.
    world.call("VM.revert", [Value::from(&late)]).await.unwrap();
    assert_eq!(world.driver.read(world.volumes(&vm)[0], 1), Some(12));
    world.assert_consistent("after a second revert").await;
}

#[tokio::test]
async fn revert_in_place_keeps_the_disks() {
    revert_brings_back(MemoryDriver::default(), true).await;
}

#[tokio::test]
async fn revert_without_the_storages_help_makes_new_disks() {
    revert_brings_back(MemoryDriver::without_revert(), false).await;
}

#[tokio::test]
async fn a_destroyed_machine_comes_back_from_its_snapshot() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let uuid = world.get("VM", &vm).uuid().to_owned();
    world.driver.write(world.volumes(&vm)[0], 0, 5);
    let snapshot = world.snapshot(&vm, "kept").await.unwrap();
    let disks = world.vdis(&vm);
    world.call("VM.destroy", [Value::from(&vm)]).await.unwrap();
    for disk in disks {
        world.call("VDI.destroy", [Value::from(disk)]).await.unwrap();
    }
    world.call("VM.revert", [Value::from(&snapshot)]).await.unwrap();
    let back = world.get("VM", &vm);
    assert_eq!((back.uuid(), back.str("name_label")), (uuid.as_str(), "db1"));
    assert_eq!(back.refs("snapshots"), [snapshot]);
    assert_eq!(world.driver.read(world.volumes(&vm)[0], 0), Some(5));
    world.assert_consistent("after a revival").await;
}

#[tokio::test]
async fn snapshots_go_in_any_order_and_take_nothing_along() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let mut snapshots = Vec::new();
    for number in 0..5 {
        world.driver.write(world.volumes(&vm)[0], 0, number);
        snapshots.push(world.snapshot(&vm, &format!("s{number}")).await.unwrap());
    }
    for at in [2usize, 0, 4] {
        let disks = world.vdis(&snapshots[at]);
        world.call("VM.destroy", [Value::from(&snapshots[at])]).await.unwrap();
        for disk in disks {
            world.call("VDI.destroy", [Value::from(disk)]).await.unwrap();
        }
    }
    for at in [1usize, 3] {
        assert_eq!(world.driver.read(world.volumes(&snapshots[at])[0], 0), Some(at as u64));
    }
    assert_eq!(world.get("VM", &vm).reference("parent"), snapshots[3]);
    assert_eq!(world.get("VM", &snapshots[3]).reference("parent"), snapshots[1]);
    world.assert_consistent("after deletions").await;
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_with_the_right_words() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let snapshot = world.snapshot(&vm, "s").await.unwrap();
    let template = world.all("VM").into_iter().find(|vm| vm.bool("is_default_template")).unwrap();
    let error = |result: tanada_xapi::ApiResult<Value>| result.unwrap_err().to_list();
    let start = [Value::from(&snapshot), Value::from(false), Value::from(false)];
    assert_eq!(error(world.call("VM.start", start).await), ["VM_IS_SNAPSHOT", snapshot.as_str(), "start"]);
    assert_eq!(error(world.call("VM.revert", [Value::from(&vm)]).await), ["REVERT_ONLY_ALLOWED_ON_SNAPSHOT"]);
    assert_eq!(error(world.call("VM.provision", [Value::from(&vm)]).await), ["PROVISION_ONLY_ALLOWED_ON_TEMPLATE"]);
    let destroyed = world.call("VM.destroy", [Value::from(template.id())]).await;
    assert_eq!(error(destroyed), ["VM_CANNOT_DELETE_DEFAULT_TEMPLATE", template.id().as_str()]);
    let quiesced = world.call("VM.snapshot_with_quiesce", [Value::from(&vm), Value::from("q")]).await;
    assert_eq!(error(quiesced), ["VM_BAD_POWER_STATE", vm.as_str(), "running", "halted"]);
    let frozen = world.vdis(&snapshot)[0].clone();
    let other = world.machine(0).await;
    assert_eq!(error(world.vbd(&other, &frozen, "0", "RW").await.map(Value::from)), ["VDI_READONLY", frozen.as_str()]);
    world.vbd(&other, &frozen, "xvdd", "RO").await.unwrap();
    let taken = world.vbd(&other, &frozen, "hdd", "RO").await.map(Value::from);
    assert_eq!(error(taken), ["DEVICE_ALREADY_EXISTS", "hdd"]);
    let resized = world.call("VDI.resize", [Value::from(&frozen), Value::from(1 << 30)]).await;
    assert_eq!(error(resized), ["VDI_READONLY", frozen.as_str()]);
    world.assert_consistent("after refusals").await;
}

#[tokio::test]
async fn sizes_and_space_are_shown() {
    let world = World::new().await;
    let vdi = world.disk("data").await;
    let volume = uuid::Uuid::parse_str(world.get("VDI", &vdi).str("location")).unwrap();
    world.driver.write(volume, 0, 1);
    world.call("VDI.resize", [Value::from(&vdi), Value::from(2 << 20)]).await.unwrap();
    world.call("VDI.update", [Value::from(&vdi)]).await.unwrap();
    let record = world.get("VDI", &vdi);
    assert_eq!((record.int("virtual_size"), record.int("physical_utilisation")), (2 << 20, 4096));
    assert_eq!(record.entry("sm_config", "tanada:exclusive"), Some("4096"));
    assert_eq!(record.entry("sm_config", "tanada:shared"), Some("0"));
    let shrunk = world.call("VDI.resize", [Value::from(&vdi), Value::from(1 << 20)]).await.unwrap_err();
    assert!(shrunk.is("SR_BACKEND_FAILURE_79"), "{shrunk}");
    let sr = world.get("SR", &world.sr);
    assert_eq!((sr.int("virtual_allocation"), sr.int("physical_size")), (2 << 20, 1 << 40));
}

#[tokio::test]
async fn an_sr_can_be_forgotten_and_introduced_again() {
    let world = World::new().await;
    let vdi = world.disk("data").await;
    let (uuid, sr_uuid) = (world.get("VDI", &vdi).uuid().to_owned(), world.get("SR", &world.sr).uuid().to_owned());
    let pbd = world.all("PBD")[0].id().clone();
    let host = world.all("host")[0].id().clone();
    assert!(world.call("SR.forget", [Value::from(&world.sr)]).await.unwrap_err().is("SR_HAS_PBD"));
    world.call("PBD.unplug", [Value::from(&pbd)]).await.unwrap();
    let refused = world.call("VDI.snapshot", [Value::from(&vdi), Value::empty_map()]).await.unwrap_err();
    assert!(refused.is("SR_HAS_NO_PBDS"), "{refused}");
    assert!(world.call("SR.destroy", [Value::from(&world.sr)]).await.unwrap_err().is("SR_NOT_EMPTY"));
    world.call("SR.forget", [Value::from(&world.sr)]).await.unwrap();
    assert!(world.all("VDI").is_empty() && world.all("PBD").is_empty());
    let params = [sr_uuid.as_str(), "again", "", "memory", "user"].map(Value::from);
    let params = params.into_iter().chain([Value::from(false), Value::empty_map()]);
    let sr = super::reference(&world.call("SR.introduce", params).await.unwrap());
    let config = Value::map([("location", "memory")]);
    let pbd = Value::map([("host", Value::from(host)), ("SR", Value::from(&sr)), ("device_config", config)]);
    let pbd = world.call("PBD.create", [pbd]).await.unwrap();
    world.call("PBD.plug", [pbd]).await.unwrap();
    let vdis: Vec<Arc<Record>> = world.all("VDI");
    assert_eq!(vdis.iter().map(|vdi| vdi.uuid()).collect::<Vec<_>>(), [uuid]);
}

#[tokio::test]
async fn an_sr_brings_its_machines_along() {
    let world = World::new().await;
    let vm = world.machine(2).await;
    world.driver.write(world.volumes(&vm)[1], 0, 9);
    let snapshot = world.snapshot(&vm, "nightly").await.unwrap();
    let (before, kept) = (world.get("VM", &vm), world.get("VM", &snapshot));
    let addresses = macs(&world, &before);
    let sr_uuid = world.get("SR", &world.sr).uuid().to_owned();
    let pbd = world.all("PBD")[0].id().clone();
    world.call("PBD.unplug", [Value::from(&pbd)]).await.unwrap();
    // Another host, which has never heard of any of this.
    let other = World::over_introduced(world.driver.clone(), &sr_uuid).await;
    let back = other.get("VM", &vm);
    assert_eq!((back.uuid(), back.str("name_label")), (before.uuid(), "db1"));
    assert_eq!((back.str("power_state"), back.refs("snapshots")), ("Halted", vec![snapshot.clone()]));
    assert_eq!(macs(&other, &back), addresses);
    let snapshot_back = other.get("VM", &snapshot);
    assert!(snapshot_back.bool("is_a_template") && snapshot_back.bool("is_a_snapshot"));
    assert_eq!(snapshot_back.map("snapshot_info"), kept.map("snapshot_info"));
    other.driver.write(other.volumes(&vm)[1], 0, 10);
    other.call("VM.revert", [Value::from(&snapshot)]).await.unwrap();
    assert_eq!(other.driver.read(other.volumes(&vm)[1], 0), Some(9));
    other.assert_consistent("after an introduction").await;
}

#[tokio::test]
async fn changed_blocks_are_those_that_changed() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let one = world.snapshot(&vm, "one").await.unwrap();
    world.driver.write(world.volumes(&vm)[0], 17, 1);
    let two = world.snapshot(&vm, "two").await.unwrap();
    let params = [Value::from(&world.vdis(&one)[0]), Value::from(&world.vdis(&two)[0])];
    let bitmap = world.call("VDI.list_changed_blocks", params).await.unwrap();
    // Block 17 of 4 KiB lies in the second of sixteen 64 KiB pieces.
    assert_eq!(bitmap.as_str(), Some("QAA="));
}

#[tokio::test]
async fn allowed_operations_follow_the_state() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    super::ops::allowed::refresh(&world.test.daemon, 0);
    let allowed = world.get("VM", &vm).strings("allowed_operations");
    assert!(allowed.iter().any(|op| op == "start") && !allowed.iter().any(|op| op == "clean_shutdown"), "{allowed:?}");
    let snapshot = world.snapshot(&vm, "s").await.unwrap();
    super::ops::allowed::refresh(&world.test.daemon, 0);
    let mut allowed = world.get("VM", &snapshot).strings("allowed_operations");
    allowed.sort();
    assert_eq!(allowed, ["clone", "copy", "destroy", "export", "metadata_export", "revert"]);
}
