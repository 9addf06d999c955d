//! What snapshots say about themselves, what policies do, and disks on several SRs.

use std::sync::Arc;

use tanada_driver::memory::{Fault, MemoryDriver};
use tanada_driver::{CreateRequest, Driver, DriverErrorKind};
use tanada_quiesce::{Cause, Certificate, Level};
use tanada_xapi::{Ref, Value};
use uuid::Uuid;

use super::World;
use crate::ops::machine::certify;
use crate::ops::records::strings;
use crate::vmm::records;

fn certificate(world: &World, snapshot: &Ref) -> Certificate {
    Certificate::from_map(&strings(world.get("VM", snapshot).map("snapshot_info"))).unwrap()
}

/// Running by its record alone: nobody in it can be asked.
fn pretend_to_run(world: &World, vm: &Ref) {
    world.test.daemon.db.write(|tx| tx.set("VM", vm, "power_state", "Running")).unwrap();
}

fn set_policy(world: &World, vm: &Ref, key: &str, value: &str) {
    world.test.daemon.db.write(|tx| tx.put_entry("VM", vm, "other_config", key, value)).unwrap();
}

fn messages(world: &World, name: &str) -> Vec<String> {
    let all = world.all("message").into_iter().filter(|message| message.str("name") == name);
    all.map(|message| message.str("body").to_owned()).collect()
}

#[tokio::test]
async fn a_machine_that_is_shut_down_says_so() {
    let world = World::new().await;
    let vm = world.machine(2).await;
    let snapshot = world.snapshot(&vm, "cold").await.unwrap();
    let certificate = certificate(&world, &snapshot);
    assert_eq!((certificate.level, certificate.downgrade), (Level::ShutDown, None));
    assert_eq!(certificate.disks.len(), 2);
    let sr = world.get("SR", &world.sr).uuid().to_owned();
    assert!(certificate.disks.values().all(|disk| disk.sr == sr && disk.level == Level::ShutDown));
    assert_eq!(messages(&world, "VM_SNAPSHOT_NOT_QUIESCED"), Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_that_cannot_be_asked_is_told_of_unless_the_policy_is_not_to_ask() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    pretend_to_run(&world, &vm);
    let found = certificate(&world, &world.snapshot(&vm, "first").await.unwrap());
    assert_eq!((found.level, found.downgrade.unwrap().cause), (Level::Crash, Some(Cause::NotRunning)));
    let told = messages(&world, "VM_SNAPSHOT_NOT_QUIESCED");
    assert!(told[0].contains("only crash-consistent: the machine has no process on this host"), "{told:?}");
    assert!(told[0].contains("stop the services of the guest"), "{told:?}");
    set_policy(&world, &vm, "tanada-quiesce", "skip");
    let found = certificate(&world, &world.snapshot(&vm, "second").await.unwrap());
    assert_eq!((found.level, found.downgrade.unwrap().cause), (Level::Crash, Some(Cause::Skipped)));
    assert_eq!(messages(&world, "VM_SNAPSHOT_NOT_QUIESCED").len(), 1);
}

#[tokio::test]
async fn whoever_insists_gets_a_quiesced_snapshot_or_none() {
    let world = World::new().await;
    let vm = world.machine(2).await;
    pretend_to_run(&world, &vm);
    let (machines, disks) = (world.all("VM").len(), world.all("VDI").len());
    let insisted = world.call("VM.snapshot_with_quiesce", [Value::from(&vm), Value::from("q")]).await;
    assert!(insisted.unwrap_err().is("VM_SNAPSHOT_WITH_QUIESCE_FAILED"));
    set_policy(&world, &vm, "tanada-quiesce", "force");
    assert!(world.snapshot(&vm, "q").await.unwrap_err().is("VM_SNAPSHOT_WITH_QUIESCE_FAILED"));
    assert_eq!((world.all("VM").len(), world.all("VDI").len()), (machines, disks));
    world.assert_consistent("after refusals").await;
}

#[tokio::test]
async fn a_policy_that_nobody_understands_is_an_error() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    for (key, value) in [("tanada-quiesce", "always"), ("tanada-freeze-seconds", "0"), ("tanada-hooks", "yes")] {
        set_policy(&world, &vm, key, value);
        let error = world.snapshot(&vm, "x").await.unwrap_err();
        assert!(error.is("INVALID_VALUE") && error.to_string().contains(key), "{error}");
        world.test.daemon.db.write(|tx| tx.remove_entry("VM", &vm, "other_config", key)).unwrap();
    }
    world.snapshot(&vm, "x").await.unwrap();
    world.assert_consistent("after refusals").await;
}

#[tokio::test]
async fn a_machine_that_was_switched_off_is_not_called_shut_down_and_neither_are_its_copies() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let cause = |snapshot: &Ref| {
        let found = certificate(&world, snapshot);
        (found.level, found.downgrade.and_then(|downgrade| downgrade.cause))
    };
    pretend_to_run(&world, &vm);
    let running = world.snapshot(&vm, "running").await.unwrap();
    // Its power was cut before it could shut down.
    world.test.daemon.db.write(|tx| records::note_stop(tx, &vm, false)).unwrap();
    world.test.daemon.db.write(|tx| records::halted(tx, &vm)).unwrap();
    set_policy(&world, &vm, "tanada-quiesce", "force");
    assert_eq!(cause(&world.snapshot(&vm, "off").await.unwrap()), (Level::Crash, Some(Cause::SwitchedOff)));
    assert_eq!(messages(&world, "VM_SNAPSHOT_NOT_QUIESCED").len(), 1, "the one of the running machine");
    // An instance of a crash-consistent snapshot is worth as much until its guest has shut itself down.
    let instance = world.call("VM.clone", [Value::from(&running), Value::from("copy")]).await.unwrap();
    let instance = Ref::from(instance.as_str().unwrap());
    world.call("VM.provision", [Value::from(&instance)]).await.unwrap();
    assert_eq!(cause(&world.snapshot(&instance, "copied").await.unwrap()), (Level::Crash, Some(Cause::SwitchedOff)));
    world.test.daemon.db.write(|tx| records::note_stop(tx, &instance, true)).unwrap();
    assert_eq!(cause(&world.snapshot(&instance, "clean").await.unwrap()), (Level::ShutDown, None));
}

#[tokio::test]
async fn a_machine_that_went_back_is_worth_what_its_snapshot_is() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let level = |snapshot: Ref| certificate(&world, &snapshot).level;
    let clean = world.snapshot(&vm, "clean").await.unwrap();
    pretend_to_run(&world, &vm);
    let running = world.snapshot(&vm, "running").await.unwrap();
    world.call("VM.revert", [Value::from(&running)]).await.unwrap();
    assert_eq!(level(world.snapshot(&vm, "back").await.unwrap()), Level::Crash);
    world.call("VM.revert", [Value::from(&clean)]).await.unwrap();
    assert_eq!(level(world.snapshot(&vm, "far back").await.unwrap()), Level::ShutDown);
    // As the snapshot of a guest that was frozen says; neither more nor less.
    for frozen in [Level::FileSystem, Level::Application] {
        world.test.daemon.db.write(|tx| certify::note_worth(tx, &running, frozen)).unwrap();
        world.call("VM.revert", [Value::from(&running)]).await.unwrap();
        let snapshot = world.snapshot(&vm, "at rest").await.unwrap();
        let found = certificate(&world, &snapshot);
        assert_eq!((found.level, found.downgrade, found.notes), (frozen, None, Vec::new()));
        let disk = found.disks.values().next().unwrap();
        assert_eq!(disk.level, frozen);
    }
}

/// An SR beside the world's, over a driver of its own, with a disk of the machine.
async fn second_sr(world: &World, vm: &Ref) -> (MemoryDriver, Ref) {
    let (driver, volume) = (MemoryDriver::default(), Uuid::new_v4());
    driver.create(&CreateRequest::new(volume, 1 << 20)).await.unwrap();
    let daemon = &world.test.daemon;
    let sr = daemon.db.write(|tx| {
        let fields = world.get("SR", &world.sr).to_map();
        let kept = ["type", "content_type", "name_label"].map(|key| (key, fields[key].clone()));
        tx.create("SR", kept)
    });
    let sr = sr.unwrap();
    daemon.storage.put_driver(&sr, Arc::new(driver.clone()));
    let fields = [
        ("SR", Value::from(&sr)),
        ("name_label", Value::from("log")),
        ("virtual_size", Value::from(1 << 20)),
        ("location", Value::from(volume.to_string())),
        ("type", Value::from("user")),
        ("managed", Value::from(true)),
    ];
    let vdi = daemon.db.write(|tx| tx.create("VDI", fields)).unwrap();
    world.vbd(vm, &vdi, "autodetect", "RW").await.unwrap();
    (driver, sr)
}

#[tokio::test]
async fn disks_on_several_srs_are_cut_together_or_not_at_all() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let (other, sr) = second_sr(&world, &vm).await;
    let snapshot = world.snapshot(&vm, "both").await.unwrap();
    let certificate = certificate(&world, &snapshot);
    let srs: Vec<&str> = certificate.disks.values().map(|disk| disk.sr.as_str()).collect();
    assert_eq!(srs, [world.get("SR", &world.sr).uuid(), world.get("SR", &sr).uuid()]);
    assert_eq!((world.driver.ids().len(), other.ids().len()), (2, 2));
    // The second of two fails: the first is undone.
    other.fail(1, Fault::Before, DriverErrorKind::Io);
    world.snapshot(&vm, "half").await.unwrap_err();
    assert_eq!((world.driver.ids().len(), other.ids().len()), (2, 2));
    assert_eq!(world.test.daemon.db.intents().unwrap(), []);
    let halves = world.all("VM").into_iter().filter(|vm| vm.str("name_label") == "half").count();
    assert_eq!(halves, 0);
}
