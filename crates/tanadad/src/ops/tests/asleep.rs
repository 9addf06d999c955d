//! Suspended machines and checkpoints as records and volumes; the memory itself is told from other bytes by one byte.

use tanada_driver::DriverErrorKind;
use tanada_driver::memory::{Fault, MemoryDriver};
use tanada_xapi::{ApiResult, Ref, Value};
use uuid::Uuid;

use super::World;
use crate::db::View;

/// What an image holds at its beginning in these tests.
const MEMORY: u64 = 7;

/// A machine with two disks that sleeps, as a suspend leaves it.
async fn sleeper(world: &World) -> Ref {
    let vm = world.machine(2).await;
    let image = world.disk("Suspend image").await;
    world.driver.write(volume(world, &image), 0, MEMORY);
    let written = world.test.daemon.db.write(|tx| {
        tx.set("VDI", &image, "type", "suspend")?;
        tx.set("VM", &vm, "suspend_VDI", &image)?;
        tx.set("VM", &vm, "power_state", "Suspended")?;
        for vbd in tx.get("VM", &vm)?.refs("VBDs") {
            tx.set("VBD", &vbd, "currently_attached", true)?;
        }
        Ok(())
    });
    written.unwrap();
    vm
}

fn volume(world: &World, vdi: &Ref) -> Uuid {
    Uuid::parse_str(world.get("VDI", vdi).str("location")).unwrap()
}

/// The byte of the image that a machine or checkpoint would go on with.
fn memory(world: &World, vm: &Ref) -> Option<u64> {
    world.driver.read(volume(world, &world.get("VM", vm).reference("suspend_VDI")), 0)
}

fn images(world: &World) -> usize {
    world.all("VDI").iter().filter(|vdi| vdi.str("type") == "suspend").count()
}

async fn checkpoint(world: &World, vm: &Ref) -> ApiResult<Ref> {
    let made = world.call("VM.checkpoint", [Value::from(vm), Value::from("here")]).await;
    made.map(|made| Ref::from(made.as_str().unwrap()))
}

#[tokio::test]
async fn a_sleeping_machine_keeps_its_disks_to_itself() {
    let world = World::new().await;
    let vm = sleeper(&world).await;
    let disk = world.vdis(&vm)[0].clone();
    let params = [Value::from(&vm), Value::from(false), Value::from(false)];
    assert!(world.call("VM.start", params).await.unwrap_err().is("VM_BAD_POWER_STATE"));
    assert!(world.call("VDI.destroy", [Value::from(&disk)]).await.unwrap_err().is("VDI_IN_USE"));
    assert!(world.call("VDI.resize", [Value::from(&disk), Value::from(2 << 20)]).await.unwrap_err().is("VDI_IN_USE"));
    let other = world.vbd(&world.machine(0).await, &disk, "0", "RW").await.unwrap();
    let daemon = &world.test.daemon;
    let refused = crate::storage::attach_vdi(daemon, &disk, &other, true).await.unwrap_err();
    assert!(refused.is("VDI_IN_USE"), "{refused}");
    let (token, _) = crate::storage::attach_vdi(daemon, &disk, &other, false).await.unwrap();
    crate::storage::detach_vdi(daemon, &token).await.unwrap();
    let own = world.get("VM", &vm).refs("VBDs")[0].clone();
    let (token, _) = crate::storage::attach_vdi(daemon, &disk, &own, true).await.unwrap();
    crate::storage::detach_vdi(daemon, &token).await.unwrap();

    // What it goes on with is read by backups and written by nobody.
    let image = world.get("VM", &vm).reference("suspend_VDI");
    let refused = crate::storage::attach_vdi(daemon, &image, &Ref::null(), true).await.unwrap_err();
    assert!(refused.is("VDI_IN_USE"), "{refused}");
    let (token, _) = crate::storage::attach_vdi(daemon, &image, &Ref::null(), false).await.unwrap();
    crate::storage::detach_vdi(daemon, &token).await.unwrap();

    world.call("VM.hard_shutdown", [Value::from(&vm)]).await.unwrap();
    assert_eq!((world.get("VM", &vm).str("power_state"), images(&world)), ("Halted", 0));
    world.assert_consistent("after the power was taken away").await;
}

#[tokio::test]
async fn a_checkpoint_gives_its_memory_again_and_again() {
    let world = World::new().await;
    let vm = sleeper(&world).await;
    let here = checkpoint(&world, &vm).await.unwrap();
    let record = world.get("VM", &here);
    assert_eq!((record.str("power_state"), record.bool("is_a_template")), ("Suspended", true));
    assert_eq!(record.entry("snapshot_info", "consistency"), Some("memory"));
    world.driver.write(volume(&world, &world.get("VM", &vm).reference("suspend_VDI")), 0, 9);
    for round in 0..2 {
        world.call("VM.revert", [Value::from(&here)]).await.unwrap();
        assert_eq!(world.get("VM", &vm).str("power_state"), "Suspended", "round {round}");
        assert_eq!((memory(&world, &vm), memory(&world, &here)), (Some(MEMORY), Some(MEMORY)), "round {round}");
        assert_eq!(images(&world), 2, "round {round}");
        let attached = |vbd: &Ref| world.get("VBD", vbd).bool("currently_attached");
        assert!(world.get("VM", &vm).refs("VBDs").iter().all(attached), "round {round}");
        world.assert_consistent("after a revert").await;
    }
    let plain = world.snapshot(&vm, "disks").await.unwrap();
    world.call("VM.revert", [Value::from(&plain)]).await.unwrap();
    assert_eq!((world.get("VM", &vm).str("power_state"), images(&world)), ("Halted", 1));

    let twin = world.call("VM.clone", [Value::from(&here), Value::from("twin")]).await.unwrap();
    let twin = world.get("VM", &Ref::from(twin.as_str().unwrap()));
    assert_eq!((twin.str("power_state"), twin.reference("suspend_VDI").is_null()), ("Halted", true));
    world.call("VM.hard_shutdown", [Value::from(&here)]).await.unwrap();
    assert_eq!((world.get("VM", &here).str("power_state"), images(&world)), ("Halted", 0));
    world.assert_consistent("at the end").await;
}

#[tokio::test]
async fn without_its_memory_a_machine_that_slept_is_as_after_a_power_cut() {
    let world = World::new().await;
    let vm = sleeper(&world).await;
    let here = checkpoint(&world, &vm).await.unwrap();
    let twin = world.call("VM.clone", [Value::from(&here), Value::from("twin")]).await.unwrap();
    let twin = Ref::from(twin.as_str().unwrap());
    world.call("VM.provision", [Value::from(&twin)]).await.unwrap();
    world.call("VM.hard_shutdown", [Value::from(&vm)]).await.unwrap();
    for machine in [&twin, &vm] {
        let snapshot = world.snapshot(machine, "off").await.unwrap();
        assert_eq!(world.get("VM", &snapshot).entry("snapshot_info", "consistency"), Some("crash"));
    }
    // Nothing is lost where nothing was.
    let other = world.machine(1).await;
    world.call("VM.power_state_reset", [Value::from(&other)]).await.unwrap();
    let snapshot = world.snapshot(&other, "off").await.unwrap();
    assert_eq!(world.get("VM", &snapshot).entry("snapshot_info", "consistency"), Some("shut down"));
}

#[tokio::test]
async fn what_sleeps_comes_along_with_its_sr() {
    let world = World::new().await;
    let vm = sleeper(&world).await;
    let here = checkpoint(&world, &vm).await.unwrap();
    let sr_uuid = world.get("SR", &world.sr).uuid().to_owned();
    let pbd = world.all("PBD")[0].id().clone();
    world.call("PBD.unplug", [Value::from(&pbd)]).await.unwrap();
    let other = World::over_introduced(world.driver.clone(), &sr_uuid).await;
    for sleeping in [&vm, &here] {
        assert_eq!(other.get("VM", sleeping).str("power_state"), "Suspended");
        assert_eq!(memory(&other, sleeping), Some(MEMORY));
    }
    let attached = |vm: &Ref| other.get("VBD", &other.get("VM", vm).refs("VBDs")[0]).bool("currently_attached");
    assert_eq!((attached(&vm), attached(&here)), (true, false));
    other.call("VM.revert", [Value::from(&here)]).await.unwrap();
    assert_eq!(memory(&other, &vm), Some(MEMORY));
    other.assert_consistent("after an introduction").await;
}

/// Lets the `nth` changing call fail; false when there are fewer.
async fn fail_at(driver: MemoryDriver, back: bool, nth: u64, fault: Fault) -> bool {
    let label = format!("revert: {back}, call {nth} fails {fault:?}");
    let world = World::over(driver).await;
    let vm = sleeper(&world).await;
    let here = checkpoint(&world, &vm).await.unwrap();
    world.driver.fail(nth, fault, DriverErrorKind::Io);
    let result = match back {
        true => world.call("VM.revert", [Value::from(&here)]).await.map(drop),
        false => checkpoint(&world, &vm).await.map(drop),
    };
    let struck = !world.driver.fault_is_pending();
    assert!(result.is_ok() || struck, "{label}: {result:?}");
    if !struck {
        return false;
    }
    let world = world.restart().await;
    world.assert_consistent(&label).await;
    assert_eq!(memory(&world, &here), Some(MEMORY), "{label}");
    match world.get("VM", &vm).str("power_state") {
        "Suspended" => assert_eq!(memory(&world, &vm), Some(MEMORY), "{label}"),
        state => assert_eq!((state, images(&world)), ("Halted", 1), "{label}"),
    }
    world.call("VM.revert", [Value::from(&here)]).await.unwrap_or_else(|error| panic!("{label}, repeated: {error}"));
    assert_eq!((memory(&world, &vm), images(&world) >= 2), (Some(MEMORY), true), "{label}");
    world.assert_consistent(&label).await;
    true
}

#[tokio::test]
async fn a_failing_driver_loses_no_checkpoint() {
    for fault in [Fault::Before, Fault::After] {
        for back in [false, true] {
            for driver in [MemoryDriver::default, MemoryDriver::without_revert] {
                let mut nth = 1;
                while fail_at(driver(), back, nth, fault).await {
                    nth += 1;
                }
                assert!(nth > 1, "no call is made");
            }
        }
    }
}
