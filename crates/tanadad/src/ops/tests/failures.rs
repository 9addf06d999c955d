//! Every changing call to the driver fails once, before or after its effect, with the daemon going on or restarted.

use tanada_driver::DriverErrorKind;
use tanada_driver::memory::{Fault, MemoryDriver};
use tanada_xapi::{ApiResult, Ref, Value};

use super::World;

/// What is done while the driver fails.
#[derive(Debug, Clone, Copy)]
enum Work {
    Snapshot,
    Clone,
    Revert,
    DestroyDisk,
    CreateDisk,
    Resize,
}

const ALL: [Work; 6] = [Work::Snapshot, Work::Clone, Work::Revert, Work::DestroyDisk, Work::CreateDisk, Work::Resize];

struct Scene {
    vm: Ref,
    snapshot: Ref,
    spare: Ref,
}

async fn scene(world: &World) -> Scene {
    let vm = world.machine(3).await;
    for volume in world.volumes(&vm) {
        world.driver.write(volume, 0, 1);
    }
    let snapshot = world.snapshot(&vm, "base").await.unwrap();
    for volume in world.volumes(&vm) {
        world.driver.write(volume, 0, 2);
    }
    Scene { vm, snapshot, spare: world.disk("spare").await }
}

async fn work(world: &World, scene: &Scene, work: Work) -> ApiResult<()> {
    let done = match work {
        Work::Snapshot => world.snapshot(&scene.vm, "again").await.map(Value::from),
        Work::Clone => world.call("VM.clone", [Value::from(&scene.snapshot), Value::from("copy")]).await,
        Work::Revert => world.call("VM.revert", [Value::from(&scene.snapshot)]).await,
        Work::DestroyDisk => world.call("VDI.destroy", [Value::from(&scene.spare)]).await,
        Work::CreateDisk => {
            let record = Value::map([
                ("name_label", Value::from("new")),
                ("name_description", Value::from("")),
                ("SR", Value::from(&world.sr)),
                ("virtual_size", Value::from(4096)),
                ("type", Value::from("user")),
                ("sharable", Value::from(false)),
                ("read_only", Value::from(false)),
                ("other_config", Value::empty_map()),
            ]);
            world.call("VDI.create", [record]).await
        }
        Work::Resize => world.call("VDI.resize", [Value::from(&scene.spare), Value::from(3 << 20)]).await,
    };
    done.map(drop)
}

/// Lets the `nth` changing call of `what` fail; false when `what` makes fewer calls.
async fn fail_at(driver: MemoryDriver, what: Work, nth: u64, fault: Fault, kind: DriverErrorKind) -> bool {
    let label = format!("{what:?}, call {nth} fails {fault:?} with {kind:?}");
    let world = World::over(driver).await;
    let scene = scene(&world).await;
    let machines = world.all("VM").len();
    world.driver.fail(nth, fault, kind);
    let result = work(&world, &scene, what).await;
    let struck = !world.driver.fault_is_pending();
    if let Err(error) = &result {
        assert!(struck, "{label}: {error}");
        assert_eq!(world.all("VM").len(), machines, "{label}");
    }
    let world = world.restart().await;
    world.assert_consistent(&label).await;
    for volume in world.volumes(&scene.snapshot) {
        assert_eq!(world.driver.read(volume, 0), Some(1), "{label}");
    }
    if result.is_err() {
        // What failed can be done again.
        work(&world, &scene, what).await.unwrap_or_else(|error| panic!("{label}, repeated: {error}"));
        world.assert_consistent(&label).await;
    }
    struck
}

#[tokio::test]
async fn a_failing_driver_leaves_neither_orphans_nor_dangling_records() {
    for what in ALL {
        for fault in [Fault::Before, Fault::After] {
            for kind in [DriverErrorKind::Io, DriverErrorKind::Unreachable] {
                let mut nth = 1;
                while fail_at(MemoryDriver::default(), what, nth, fault, kind).await {
                    nth += 1;
                }
                assert!(nth > 1, "{what:?} calls no driver");
            }
        }
    }
}

#[tokio::test]
async fn a_revert_by_clones_fails_as_cleanly() {
    for fault in [Fault::Before, Fault::After] {
        let mut nth = 1;
        while fail_at(MemoryDriver::without_revert(), Work::Revert, nth, fault, DriverErrorKind::Io).await {
            nth += 1;
        }
        assert!(nth > 3);
    }
}

/// The process dies while the driver works: the call is dropped at a point where it waits, the intent is there.
#[tokio::test]
async fn a_daemon_that_dies_in_the_middle_is_made_good_by_the_next() {
    for what in ALL {
        for steps in 1..12 {
            let label = format!("{what:?}, killed after {steps} steps");
            let world = World::new().await;
            let scene = scene(&world).await;
            world.driver.pause_after(steps);
            let paused = world.driver.clone();
            tokio::select! {
                biased;
                _ = work(&world, &scene, what) => {}
                () = paused.paused() => {}
            }
            world.driver.resume();
            let world = world.restart().await;
            world.assert_consistent(&label).await;
            for volume in world.volumes(&scene.snapshot) {
                assert_eq!(world.driver.read(volume, 0), Some(1), "{label}");
            }
            let values: Vec<_> = world.volumes(&scene.vm).iter().map(|volume| world.driver.read(*volume, 0)).collect();
            assert!(values == [Some(1); 3] || values == [Some(2); 3], "{label}: {values:?}");
        }
    }
}
