//! What the storage cannot do at its time is done later, not only by the next life of the daemon.

use tanada_driver::memory::Fault;
use tanada_driver::{CreateRequest, Driver, DriverErrorKind};
use tanada_xapi::{Ref, Value};
use uuid::Uuid;

use super::World;
use crate::ops::intents::{self, Plan};
use crate::ops::machine::discard;
use crate::ops::reconcile::end_left;
use crate::storage;
use crate::transfer::marked;

#[tokio::test]
async fn a_snapshot_whose_disks_cannot_go_leaves_them_for_a_minute_only() {
    let world = World::new().await;
    let vm = world.machine(2).await;
    let snapshot = world.snapshot(&vm, "old").await.unwrap();
    world.driver.fail(1, Fault::Before, DriverErrorKind::Io);
    discard::snapshot(&world.test.daemon, &snapshot).await.unwrap();
    assert_eq!(world.driver.ids().len(), 3, "one of two could not be destroyed");
    // Nor at the first attempt after that.
    world.driver.fail(1, Fault::Before, DriverErrorKind::Unreachable);
    end_left(&world.test.daemon).await;
    assert_eq!(world.driver.ids().len(), 3);
    end_left(&world.test.daemon).await;
    assert_eq!(world.driver.ids().len(), 2);
    world.assert_consistent("in the same life").await;
}

#[tokio::test]
async fn what_was_begun_in_vain_is_undone_when_the_storage_is_back() {
    let world = World::new().await;
    let (daemon, volume) = (&world.test.daemon, Uuid::new_v4());
    let intent = Plan::Create { sr: world.sr.to_string(), volumes: vec![volume] }.write(daemon).unwrap();
    world.driver.create(&CreateRequest::new(volume, 1 << 20)).await.unwrap();
    world.driver.fail(1, Fault::Before, DriverErrorKind::Unreachable);
    intents::give_up(daemon, &world.sr, &[volume], &intent).await;
    assert_eq!(world.driver.ids(), [volume]);
    let away = daemon.storage.take_driver(&world.sr).unwrap();
    end_left(daemon).await;
    assert_eq!(world.driver.ids(), [volume]);
    daemon.storage.put_driver(&world.sr, away);
    end_left(daemon).await;
    world.assert_consistent("after the storage was away").await;
}

#[tokio::test]
async fn a_disk_that_could_not_be_detached_is_not_in_use_for_ever() {
    let world = World::new().await;
    let disk = world.disk("one").await;
    let daemon = &world.test.daemon;
    let (token, _) = storage::attach_vdi(daemon, &disk, &Ref::null(), false).await.unwrap();
    world.driver.fail(1, Fault::Before, DriverErrorKind::Unreachable);
    storage::detach_used(daemon, &token).await;
    assert!(storage::is_attached(daemon, &disk));
    storage::end_left(daemon).await;
    assert!(!storage::is_attached(daemon, &disk));
    world.assert_consistent("after a detachment").await;
}

#[tokio::test]
async fn whoever_reads_a_disk_that_goes_is_not_cut_off_and_nobody_comes_after_him() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let snapshot = world.snapshot(&vm, "old").await.unwrap();
    let (daemon, disk) = (&world.test.daemon, world.vdis(&snapshot)[0].clone());
    world.driver.fail(1, Fault::Before, DriverErrorKind::Unreachable);
    discard::snapshot(daemon, &snapshot).await.unwrap();
    let refused = storage::attach_vdi(daemon, &disk, &Ref::null(), false).await.unwrap_err();
    assert!(refused.is("OTHER_OPERATION_IN_PROGRESS"), "{refused}");
    // As if he had come before the end was marked.
    let mark = world.get("VDI", &disk).map("current_operations").clone();
    let marked = |map| daemon.db.write(|tx| tx.set("VDI", &disk, "current_operations", map)).unwrap();
    marked(Value::empty_map());
    let (token, _) = storage::attach_vdi(daemon, &disk, &Ref::null(), false).await.unwrap();
    marked(Value::Map(mark));
    end_left(daemon).await;
    assert!(storage::is_attached(daemon, &disk));
    assert_eq!(world.driver.ids().len(), 2);
    storage::detach_vdi(daemon, &token).await.unwrap();
    end_left(daemon).await;
    world.assert_consistent("when he is gone").await;
}

#[tokio::test]
async fn a_machine_that_did_not_go_on_is_let_go_when_nothing_else_holds_it() {
    let world = World::new().await;
    let (daemon, vm) = (&world.test.daemon, world.machine(0).await);
    let plans = [Plan::Hold { vm: vm.to_string() }, Plan::Memory { vm: vm.to_string() }];
    for plan in plans {
        let intent = plan.write(daemon).unwrap();
        daemon.left.add(&intent);
        let other = Value::map([("OpaqueRef:other", "checkpoint")]);
        daemon.db.write(|tx| tx.set("VM", &vm, "current_operations", other)).unwrap();
        end_left(daemon).await;
        assert_eq!(daemon.db.intents().unwrap().len(), 1, "in the middle of a checkpoint");
        daemon.db.write(|tx| tx.set("VM", &vm, "current_operations", Value::empty_map())).unwrap();
        end_left(daemon).await;
        world.assert_consistent("it has no process to be let go").await;
    }
}

#[tokio::test]
async fn an_import_that_cannot_be_undone_is_undone_later() {
    let world = World::new().await;
    let (daemon, disk) = (&world.test.daemon, world.disk("half an image").await);
    let intent = marked::begin(daemon).unwrap();
    daemon.db.write(|tx| tx.set("VDI", &disk, "other_config", marked::mark(&intent))).unwrap();
    world.driver.fail(1, Fault::Before, DriverErrorKind::Unreachable);
    marked::undo(daemon, &intent).await;
    assert_eq!(world.driver.ids().len(), 1);
    end_left(daemon).await;
    world.assert_consistent("after an import").await;
}
