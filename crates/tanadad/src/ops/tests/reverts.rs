//! A machine of several disks goes back with all of them or none, or is not started until it has.

use tanada_driver::DriverErrorKind;
use tanada_driver::memory::{Fault, MemoryDriver};
use tanada_xapi::{ApiError, Ref, Value};

use super::{World, reference};
use crate::ops::machine::revert::UNFINISHED_KEY;
use crate::ops::reconcile::{end_intents, end_left};
use crate::ops::{allowed, intents};
use crate::storage;

/// A machine of three disks: the snapshot's hold 1, its own 2.
async fn scene(driver: MemoryDriver) -> (World, Ref, Ref) {
    let world = World::over(driver).await;
    let vm = world.machine(3).await;
    fill(&world, &vm, 1);
    let snapshot = world.snapshot(&vm, "base").await.unwrap();
    fill(&world, &vm, 2);
    (world, vm, snapshot)
}

fn fill(world: &World, vm: &Ref, value: u64) {
    world.volumes(vm).into_iter().for_each(|volume| world.driver.write(volume, 0, value));
}

fn values(world: &World, vm: &Ref) -> Vec<u64> {
    world.volumes(vm).into_iter().map(|volume| world.driver.read(volume, 0).unwrap()).collect()
}

fn may_start(world: &World, vm: &Ref) -> Result<(), ApiError> {
    world.test.daemon.db.read(|state| allowed::vm(state, vm, "start"))
}

async fn revert(world: &World, snapshot: &Ref) -> Result<Value, ApiError> {
    world.call("VM.revert", [Value::from(snapshot)]).await
}

/// A revert that stands still after two effects at the storage and is then dropped, as a daemon that dies leaves it.
async fn leave_half_done(world: &World, snapshot: &Ref) {
    world.driver.pause_after(2);
    let paused = world.driver.clone();
    tokio::select! {
        biased;
        _ = revert(world, snapshot) => panic!("not paused"),
        () = paused.paused() => {}
    }
}

#[tokio::test]
async fn where_clones_cost_nothing_all_disks_go_back_or_none() {
    for fault in [Fault::Before, Fault::After] {
        for kind in [DriverErrorKind::Io, DriverErrorKind::Unreachable, DriverErrorKind::Busy] {
            let mut nth = 1;
            loop {
                let label = format!("call {nth} fails {fault:?} with {kind:?}");
                let (world, vm, snapshot) = scene(MemoryDriver::default()).await;
                let disks = world.vdis(&vm);
                world.driver.fail(nth, fault, kind);
                let wanted = if revert(&world, &snapshot).await.is_ok() { [1; 3] } else { [2; 3] };
                let is_over = world.driver.fault_is_pending();
                assert_eq!(values(&world, &vm), wanted, "{label}");
                assert_eq!(world.vdis(&vm), disks, "{label}");
                may_start(&world, &vm).unwrap_or_else(|error| panic!("{label}: {error}"));
                end_left(&world.test.daemon).await;
                world.assert_consistent(&label).await;
                if is_over {
                    break;
                }
                nth += 1;
            }
            assert!(nth > 3, "{nth} calls");
        }
    }
}

#[tokio::test]
async fn without_room_for_clones_disks_go_back_in_place() {
    let (world, vm, snapshot) = scene(MemoryDriver::default()).await;
    let before = world.volumes(&vm);
    world.driver.fail(2, Fault::Before, DriverErrorKind::NoSpace);
    revert(&world, &snapshot).await.unwrap();
    assert_eq!((values(&world, &vm), world.volumes(&vm)), (vec![1; 3], before));
    may_start(&world, &vm).unwrap();
    world.assert_consistent("after a revert in place").await;
}

#[tokio::test]
async fn a_machine_between_two_instants_is_not_started_until_it_has_gone_back() {
    let (world, vm, snapshot) = scene(MemoryDriver::with_copied_clones()).await;
    world.driver.fail(2, Fault::Before, DriverErrorKind::Io);
    revert(&world, &snapshot).await.unwrap_err();
    assert_eq!(values(&world, &vm), [1, 2, 2]);
    let world = world.restart().await;
    let uuid = world.get("VM", &snapshot).uuid().to_owned();
    for method in ["VM.start", "VM.start_on"] {
        let host = world.all("host")[0].id().clone();
        let on = (method == "VM.start_on").then(|| Value::from(host));
        let params = [Value::from(&vm)].into_iter().chain(on).chain([Value::from(false), Value::from(false)]);
        let refused = world.call(method, params).await.unwrap_err();
        assert!(refused.is("OPERATION_NOT_ALLOWED") && refused.to_string().contains(&uuid), "{refused}");
    }
    // A copy of it is no better.
    let copy = world.call("VM.clone", [Value::from(&vm), Value::from("twin")]).await.unwrap();
    assert!(may_start(&world, &reference(&copy)).is_err());
    // Nor is another failure, of which the storage says that nothing was done.
    world.driver.fail(1, Fault::Before, DriverErrorKind::Busy);
    revert(&world, &snapshot).await.unwrap_err();
    assert!(may_start(&world, &vm).is_err());
    revert(&world, &snapshot).await.unwrap();
    assert_eq!(values(&world, &vm), [1; 3]);
    may_start(&world, &vm).unwrap();
    assert_eq!(world.get("VM", &vm).entry("other_config", UNFINISHED_KEY), None);
    world.assert_consistent("after the second attempt").await;
}

#[tokio::test]
async fn a_storage_that_did_nothing_leaves_no_mark() {
    let (world, vm, snapshot) = scene(MemoryDriver::with_copied_clones()).await;
    world.driver.fail(1, Fault::Before, DriverErrorKind::Busy);
    revert(&world, &snapshot).await.unwrap_err();
    assert_eq!(values(&world, &vm), [2; 3]);
    may_start(&world, &vm).unwrap();
}

#[tokio::test]
async fn one_disk_is_of_one_instant_whatever_fails() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let snapshot = world.snapshot(&vm, "base").await.unwrap();
    let before = world.volumes(&vm);
    world.driver.fail(1, Fault::After, DriverErrorKind::Io);
    revert(&world, &snapshot).await.unwrap_err();
    may_start(&world, &vm).unwrap();
    revert(&world, &snapshot).await.unwrap();
    assert_eq!(world.volumes(&vm), before);
}

/// The daemon dies with some disks back in place, and the next one cannot end it at first.
#[tokio::test]
async fn while_a_plan_of_an_earlier_life_waits_its_machine_does() {
    let (world, vm, snapshot) = scene(MemoryDriver::with_copied_clones()).await;
    leave_half_done(&world, &snapshot).await;
    world.driver.fail(1, Fault::Before, DriverErrorKind::Io);
    let world = world.restart().await;
    assert_eq!(values(&world, &vm), [1, 2, 2]);
    assert!(may_start(&world, &vm).is_err());
    end_intents(&world.test.daemon, Some(&world.sr)).await;
    assert_eq!(values(&world, &vm), [1; 3]);
    may_start(&world, &vm).unwrap();
    world.assert_consistent("when the storage is back").await;
}

#[tokio::test]
async fn a_later_revert_takes_the_place_of_one_that_waits() {
    let (world, vm, early) = scene(MemoryDriver::with_copied_clones()).await;
    let late = world.snapshot(&vm, "late").await.unwrap();
    leave_half_done(&world, &early).await;
    world.driver.fail(1, Fault::Before, DriverErrorKind::Io);
    let world = world.restart().await;
    revert(&world, &late).await.unwrap();
    end_intents(&world.test.daemon, None).await;
    assert_eq!(values(&world, &vm), [2; 3], "the earlier plan is gone");
    may_start(&world, &vm).unwrap();
    world.assert_consistent("after the later one").await;
}

/// What is given up after a crash leaves the machine as it was, and does not come over it later.
#[tokio::test]
async fn clones_that_cannot_be_made_after_a_crash_are_given_up() {
    let (world, vm, snapshot) = scene(MemoryDriver::default()).await;
    leave_half_done(&world, &snapshot).await;
    assert!(matches!(intents::Plan::read(&world.test.daemon.db.intents().unwrap()[0]), Some(intents::Plan::Revert(_))));
    world.driver.fail(1, Fault::Before, DriverErrorKind::Io);
    let world = world.restart().await;
    assert_eq!(values(&world, &vm), [2; 3]);
    may_start(&world, &vm).unwrap();
    world.assert_consistent("given up").await;
}

/// Whoever came in the middle would write to a disk that goes.
#[tokio::test]
async fn nobody_attaches_a_disk_on_its_way_back() {
    let (world, vm, snapshot) = scene(MemoryDriver::default()).await;
    let disks = world.vdis(&vm);
    world.driver.pause_after(2);
    let paused = world.driver.clone();
    let work = revert(&world, &snapshot);
    tokio::pin!(work);
    tokio::select! {
        biased;
        _ = &mut work => panic!("not paused"),
        () = paused.paused() => {}
    }
    let daemon = &world.test.daemon;
    for disk in &disks {
        let refused = storage::attach_vdi(daemon, disk, &Ref::null(), true).await.unwrap_err();
        assert!(refused.is("OTHER_OPERATION_IN_PROGRESS"), "{refused}");
    }
    // And one that somebody has does not go.
    let (other, vm, snapshot) = scene(MemoryDriver::default()).await;
    let disk = other.vdis(&vm)[1].clone();
    let (token, _) = storage::attach_vdi(&other.test.daemon, &disk, &Ref::null(), false).await.unwrap();
    assert!(revert(&other, &snapshot).await.unwrap_err().is("VDI_IN_USE"));
    storage::detach_vdi(&other.test.daemon, &token).await.unwrap();
    revert(&other, &snapshot).await.unwrap();
    other.assert_consistent("after a revert").await;
}
