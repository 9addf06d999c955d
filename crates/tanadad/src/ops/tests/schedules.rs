//! Schedules over an SR in memory, by a clock that is moved by hand.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tanada_driver::DriverErrorKind;
use tanada_driver::memory::Fault;
use tanada_xapi::{DateTime, Ref, Value};

use super::{World, reference};
use crate::db::Record;
use crate::ops::throw_away::ATTACHED;
use crate::schedule::engine::{self, Engine};
use crate::schedule::look::look;
use crate::schedule::notes::{self, Taking};
use crate::schedule::prune::surplus;
use crate::schedule::run::message_of;
use crate::schedule::space;
use crate::schedule::steer::Tally;

/// Time and an engine that goes by it.
async fn to(world: &World, time: &str, through: bool) -> Tally {
    let mut engine = Engine::new(&world.test.daemon);
    engine.steer(time.parse().unwrap(), through).await
}

async fn at(world: &World, time: &str) -> Tally {
    to(world, time, false).await
}

async fn schedule(world: &World, frequency: &str, retained: i64, keys: &str) -> Ref {
    let keys = keys.split_whitespace().filter_map(|word| word.split_once('='));
    let record = Value::map([
        ("name_label", Value::from("nightly")),
        ("name_description", Value::from("")),
        ("enabled", Value::from(true)),
        ("type", Value::from("snapshot")),
        ("retained_snapshots", Value::from(retained)),
        ("frequency", Value::from(frequency)),
        ("schedule", Value::map(keys)),
    ]);
    reference(&world.call("VMSS.create", [record]).await.unwrap())
}

/// A machine with a disk under the schedule.
async fn member(world: &World, schedule: &Ref) -> Ref {
    let vm = world.machine(1).await;
    world.call("VM.set_snapshot_schedule", [Value::from(&vm), Value::from(schedule)]).await.unwrap();
    vm
}

async fn exception(world: &World, vm: &Ref, key: &str, value: &str) {
    let params = [Value::from(vm), Value::from(key), Value::from(value)];
    world.call("VM.add_to_other_config", params).await.unwrap();
}

/// A machine's snapshots, oldest first.
fn snapshots(world: &World, vm: &Ref) -> Vec<Arc<Record>> {
    let mut all = world.all("VM");
    all.retain(|one| one.reference("snapshot_of") == *vm && one.bool("is_a_snapshot"));
    all
}

fn slots(world: &World, vm: &Ref) -> Vec<String> {
    let slot = |one: &Arc<Record>| one.entry("snapshot_info", "schedule-slot").unwrap_or("none").to_owned();
    snapshots(world, vm).iter().map(slot).collect()
}

fn told(world: &World, name: &str) -> Vec<String> {
    let all = world.all("message");
    all.iter().filter(|one| one.str("name") == name).map(|one| one.str("body").to_owned()).collect()
}

fn mark(world: &World, class: &str, object: &Ref, operation: Option<&str>) {
    let changed = world.test.daemon.db.write(|tx| match operation {
        Some(operation) => tx.put_entry(class, object, "current_operations", "OpaqueRef:other", operation),
        None => tx.remove_entry(class, object, "current_operations", "OpaqueRef:other"),
    });
    changed.unwrap();
}

#[tokio::test]
async fn nights_are_taken_marked_and_kept_by_the_ladder() {
    let world = World::new().await;
    at(&world, "2026-03-20T12:00:00Z").await;
    let nightly = schedule(&world, "daily", 2, "hour=2 min=30 timezone=Europe/Berlin keep-weekly=2").await;
    let vm = member(&world, &nightly).await;
    let by_hand = world.snapshot(&vm, "by hand").await.unwrap();
    let tally = to(&world, "2026-03-31T12:00:00Z", true).await;
    assert_eq!(tally, Tally { taken: 11, removed: 8, ..Tally::default() });
    // The last two, and the last of each of two weeks: that of the night without half past two is a Sunday's.
    let kept = ["none", "20260329T01:00:00Z", "20260330T00:30:00Z", "20260331T00:30:00Z"];
    assert_eq!(slots(&world, &vm), kept);
    let all = snapshots(&world, &vm);
    assert_eq!(all[0].id(), &by_hand);
    assert_eq!(all[1].str("name_label"), "nightly 2026-03-29T03:00+02:00");
    assert_eq!(all[1].datetime("snapshot_time"), DateTime::parse("20260329T01:00:00Z").unwrap());
    assert_eq!(all[1].entry("snapshot_info", "schedule"), Some(world.get("VMSS", &nightly).uuid()));
    assert!(all[1].bool("is_vmss_snapshot") && !all[0].bool("is_vmss_snapshot"));
    let run = world.get("VMSS", &nightly).datetime("last_run_time");
    assert_eq!(run, DateTime::parse("20260331T00:30:00Z").unwrap());
    assert_eq!(told(&world, "VMSS_SNAPSHOT_SUCCEEDED").len(), 11);
    world.assert_consistent("after nights").await;
}

#[tokio::test]
async fn after_downtime_it_runs_once_and_tells() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let hourly = schedule(&world, "hourly", 7, "timezone=UTC").await;
    let vm = member(&world, &hourly).await;
    assert_eq!(at(&world, "2026-06-01T12:59:59Z").await, Tally::default());
    let world = world.restart().await;
    let tally = at(&world, "2026-06-03T08:20:00Z").await;
    assert_eq!(tally, Tally { taken: 1, missed: 43, ..Tally::default() });
    assert_eq!(slots(&world, &vm), ["20260603T08:00:00Z"]);
    let missed = told(&world, "VMSS_SNAPSHOT_MISSED_EVENT");
    assert!(missed.len() == 1 && missed[0].starts_with("43 runs before 2026-06-03T08:00:00Z"), "{missed:?}");
    // What passed before a schedule was enabled or changed is not missed.
    world.call("VMSS.set_enabled", [Value::from(&hourly), Value::from(false)]).await.unwrap();
    assert_eq!(at(&world, "2026-06-05T08:20:00Z").await, Tally::default());
    world.call("VMSS.set_enabled", [Value::from(&hourly), Value::from(true)]).await.unwrap();
    assert_eq!(at(&world, "2026-06-05T08:30:00Z").await, Tally::default());
    assert_eq!(at(&world, "2026-06-05T09:00:00Z").await, Tally { taken: 1, ..Tally::default() });
}

#[tokio::test]
async fn a_machine_under_export_waits_and_a_snapshot_in_use_stays() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let hourly = schedule(&world, "hourly", 1, "timezone=UTC").await;
    let vm = member(&world, &hourly).await;
    assert_eq!(at(&world, "2026-06-01T13:00:00Z").await.taken, 1);
    let first = snapshots(&world, &vm)[0].id().clone();
    mark(&world, "VM", &first, Some("export"));
    mark(&world, "VM", &vm, Some("export"));
    assert_eq!(at(&world, "2026-06-01T14:00:00Z").await, Tally { waiting: 1, ..Tally::default() });
    mark(&world, "VM", &vm, None);
    assert_eq!(at(&world, "2026-06-01T14:10:00Z").await, Tally { taken: 1, ..Tally::default() });
    assert_eq!(snapshots(&world, &vm).len(), 2);
    mark(&world, "VM", &first, None);
    assert_eq!(at(&world, "2026-06-01T14:11:00Z").await, Tally { removed: 1, ..Tally::default() });
    assert_eq!(slots(&world, &vm), ["20260601T14:00:00Z"]);
    assert_eq!(told(&world, "VMSS_SNAPSHOT_FAILED"), [""; 0]);
    // The same for one that a backup server has, also while that is not running.
    let backup = world.machine(0).await;
    let vdi = world.vdis(snapshots(&world, &vm)[0].id())[0].clone();
    let vbd = world.vbd(&backup, &vdi, "autodetect", "RO").await.unwrap();
    let params = [Value::from(&vbd), Value::from(ATTACHED), Value::from("a snapshot")];
    world.call("VBD.add_to_other_config", params).await.unwrap();
    assert_eq!(at(&world, "2026-06-01T15:00:00Z").await, Tally { taken: 1, ..Tally::default() });
    assert_eq!(snapshots(&world, &vm).len(), 2);
    world.call("VBD.destroy", [Value::from(&vbd)]).await.unwrap();
    assert_eq!(at(&world, "2026-06-01T15:01:00Z").await, Tally { removed: 1, ..Tally::default() });
    world.assert_consistent("after an export").await;
}

#[tokio::test]
async fn one_that_fails_is_tried_again_and_stops_no_other() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let hourly = schedule(&world, "hourly", 7, "timezone=UTC jitter=0").await;
    let (one, other) = (member(&world, &hourly).await, member(&world, &hourly).await);
    world.driver.fail(1, Fault::Before, DriverErrorKind::Unreachable);
    let tally = to(&world, "2026-06-01T13:30:00Z", true).await;
    assert_eq!(tally, Tally { taken: 2, failed: 1, ..Tally::default() });
    assert_eq!(told(&world, "VMSS_SNAPSHOT_FAILED"), [""; 0]);
    assert_eq!(told(&world, "VMSS_SNAPSHOT_SUCCEEDED"), ["2 snapshots for 2026-06-01T13:00:00Z"]);
    // What cannot succeed is told at once; the other goes on.
    let params = [Value::from(&one), Value::from("snapshot"), Value::from("no snapshots, please")];
    world.call("VM.add_to_blocked_operations", params).await.unwrap();
    let tally = to(&world, "2026-06-01T14:30:00Z", true).await;
    assert_eq!(tally, Tally { taken: 1, failed: 1, ..Tally::default() });
    let failed = told(&world, "VMSS_SNAPSHOT_FAILED");
    assert!(failed.len() == 1 && failed[0].contains("tried once: OPERATION_BLOCKED"), "{failed:?}");
    assert_eq!((snapshots(&world, &one).len(), snapshots(&world, &other).len()), (1, 2));
    // It is not tried for ever: the next slot is another matter.
    assert_eq!(at(&world, "2026-06-01T14:59:00Z").await, Tally::default());
}

#[tokio::test]
async fn a_daemon_that_dies_in_the_middle_goes_on_with_the_rest() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let daily = schedule(&world, "daily", 7, "hour=13 timezone=UTC jitter=0").await;
    let mut vms = Vec::new();
    for _ in 0..3 {
        vms.push(member(&world, &daily).await);
    }
    // One is done, one was taken and not marked, one was not begun.
    let name = "nightly 2026-06-01T13:00+00:00";
    world.snapshot(&vms[1], name).await.unwrap();
    let slot = 1_780_318_800;
    let (uuids, schedule) = (
        vms.iter().map(|vm| world.get("VM", vm).uuid().to_owned()).collect::<Vec<_>>(),
        world.get("VMSS", &daily).uuid().to_owned(),
    );
    let noted = world.test.daemon.db.write(|tx| {
        let mut note = notes::of_machine(tx, &uuids[1]).unwrap();
        note.taking = Some(Taking { slot, name: name.to_owned() });
        notes::put_machine(tx, &uuids[1], &note);
        let note = notes::MachineNote { schedule, handled: slot, ..Default::default() };
        notes::put_machine(tx, &uuids[0], &note);
        Ok(())
    });
    noted.unwrap();
    let world = world.restart().await;
    assert_eq!(at(&world, "2026-06-01T13:05:00Z").await, Tally { taken: 2, ..Tally::default() });
    let counts: Vec<usize> = vms.iter().map(|vm| snapshots(&world, vm).len()).collect();
    assert_eq!(counts, [0, 1, 1]);
    assert!(snapshots(&world, &vms[1])[0].bool("is_vmss_snapshot"));
    world.assert_consistent("after a death").await;
}

/// A machine whose snapshot of 13 o'clock was taken by a daemon that died before it could mark it.
async fn taken_and_not_marked(world: &World, schedule: &Ref) -> Ref {
    let vm = member(world, schedule).await;
    let name = "nightly 2026-06-01T13:00+00:00";
    world.snapshot(&vm, name).await.unwrap();
    let uuid = world.get("VM", &vm).uuid().to_owned();
    let noted = world.test.daemon.db.write(|tx| {
        let mut note = notes::of_machine(tx, &uuid).unwrap();
        note.taking = Some(Taking { slot: 1_780_318_800, name: name.to_owned() });
        notes::put_machine(tx, &uuid, &note);
        Ok(())
    });
    noted.unwrap();
    vm
}

#[tokio::test]
async fn what_an_earlier_life_took_is_marked_whatever_becomes_of_its_machine() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let daily = schedule(&world, "daily", 7, "hour=13 timezone=UTC jitter=0").await;
    let other = schedule(&world, "daily", 7, "hour=3 timezone=UTC jitter=0").await;
    let mut vms = Vec::new();
    for _ in 0..5 {
        vms.push(taken_and_not_marked(&world, &daily).await);
    }
    exception(&world, &vms[0], "tanada-schedule-skip", "true").await;
    let to = |vm: &Ref, schedule: Ref| [Value::from(vm), Value::from(schedule)];
    world.call("VM.set_snapshot_schedule", to(&vms[1], other)).await.unwrap();
    world.call("VM.set_snapshot_schedule", to(&vms[2], Ref::null())).await.unwrap();
    // The notes of one are of a time to come: it begins anew.
    let uuid = world.get("VM", &vms[3]).uuid().to_owned();
    let ahead = world.test.daemon.db.write(|tx| {
        let note = notes::of_machine(tx, &uuid).unwrap();
        notes::put_machine(tx, &uuid, &notes::MachineNote { handled: 1_790_000_000, ..note });
        Ok(())
    });
    ahead.unwrap();
    at(&world, "2026-06-01T13:05:00Z").await;
    for (number, vm) in vms.iter().enumerate() {
        let first = snapshots(&world, vm)[0].clone();
        assert!(first.bool("is_vmss_snapshot"), "machine {number}");
        assert_eq!(first.entry("snapshot_info", "schedule-slot"), Some("20260601T13:00:00Z"), "machine {number}");
        assert_eq!(
            first.entry("snapshot_info", "schedule"),
            Some(world.get("VMSS", &daily).uuid()),
            "machine {number}"
        );
    }
    let taken: usize = vms.iter().map(|vm| snapshots(&world, vm).len()).sum();
    assert_eq!(taken, vms.len(), "none is taken twice");
}

#[tokio::test]
async fn who_asks_in_between_changes_nothing_about_what_is_to_be_repeated() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let daily = schedule(&world, "daily", 7, "hour=13 timezone=UTC jitter=0").await;
    let vm = member(&world, &daily).await;
    let uuid = world.get("VM", &vm).uuid().to_owned();
    let note = |world: &World| world.test.daemon.db.read(|state| notes::of_machine(state, &uuid)).unwrap();
    for (time, failures) in [("2026-06-01T13:00:00Z", 1), ("2026-06-01T13:01:00Z", 2)] {
        world.driver.fail(1, Fault::Before, DriverErrorKind::Io);
        assert_eq!(at(&world, time).await, Tally { failed: 1, ..Tally::default() });
        assert_eq!(note(&world).attempt.unwrap().failures, failures);
        let before = note(&world);
        world.driver.fail(1, Fault::Before, DriverErrorKind::Io);
        let words = world.call("VMSS.snapshot_now", [Value::from(&daily)]).await.unwrap();
        assert!(words.as_str().unwrap().starts_with("0 of 1 snapshots taken"), "{words:?}");
        assert_eq!(note(&world), before);
        // What cannot succeed is no reason to give up the slot.
        let params = [Value::from(&vm), Value::from("snapshot"), Value::from("not now")];
        world.call("VM.add_to_blocked_operations", params).await.unwrap();
        world.call("VMSS.snapshot_now", [Value::from(&daily)]).await.unwrap();
        let params = [Value::from(&vm), Value::from("snapshot")];
        world.call("VM.remove_from_blocked_operations", params).await.unwrap();
        assert_eq!(note(&world), before);
    }
    assert_eq!(at(&world, "2026-06-01T13:06:00Z").await, Tally { taken: 1, ..Tally::default() });
    assert_eq!(slots(&world, &vm), ["20260601T13:00:00Z"]);
}

#[tokio::test]
async fn machines_have_exceptions_of_their_own() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let daily = schedule(&world, "daily", 3, "hour=13 timezone=UTC").await;
    let (left_out, later, few) =
        (member(&world, &daily).await, member(&world, &daily).await, member(&world, &daily).await);
    exception(&world, &left_out, "tanada-schedule-skip", "true").await;
    exception(&world, &later, "tanada-schedule-skip", "2026-06-05").await;
    exception(&world, &few, "tanada-schedule-keep", "last=1").await;
    to(&world, "2026-06-06T20:00:00Z", true).await;
    assert_eq!(slots(&world, &left_out), [""; 0]);
    assert_eq!(slots(&world, &later), ["20260605T13:00:00Z", "20260606T13:00:00Z"]);
    assert_eq!(slots(&world, &few), ["20260606T13:00:00Z"]);
    assert_eq!(told(&world, "VMSS_SNAPSHOT_MISSED_EVENT"), [""; 0]);
    // A snapshot that is to be kept neither goes nor counts.
    let kept = snapshots(&world, &few)[0].id().clone();
    exception(&world, &kept, "tanada-keep", "true").await;
    to(&world, "2026-06-08T20:00:00Z", true).await;
    assert_eq!(slots(&world, &few), ["20260606T13:00:00Z", "20260608T13:00:00Z"]);
}

#[tokio::test]
async fn values_are_checked_as_xenserver_does() {
    let world = World::new().await;
    let daily = schedule(&world, "daily", 365, "hour=3").await;
    let keys = |world: &World| format!("{:?}", world.get("VMSS", &daily).map("schedule"));
    assert!(keys(&world).contains("min"), "{}", keys(&world));
    let add = |key: &str, value: &str| [Value::from(&daily), Value::from(key), Value::from(value)];
    for (key, value, code) in [
        ("min", "0", "MAP_DUPLICATE_KEY"),
        ("days", "Funday", "INVALID_VALUE"),
        ("timezone", "Mars/Base", "INVALID_VALUE"),
        ("colour", "red", "INVALID_VALUE"),
    ] {
        let error = world.call("VMSS.add_to_schedule", add(key, value)).await.unwrap_err();
        assert_eq!(error.code, code, "{key}");
    }
    let set = |method: &'static str, value: Value| world.call(method, [Value::from(&daily), value]);
    let error = set("VMSS.set_retained_snapshots", Value::from(0)).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.params[0].as_str()), ("INVALID_VALUE", "retained_snapshots"));
    set("VMSS.set_frequency", Value::from("weekly")).await.unwrap();
    assert_eq!(world.get("VMSS", &daily).entry("schedule", "days"), Some("Monday"));
    set("VMSS.set_frequency", Value::from("hourly")).await.unwrap();
    assert_eq!(world.get("VMSS", &daily).entry("schedule", "hour"), None);
    let vm = member(&world, &daily).await;
    assert_eq!(world.call("VMSS.destroy", [Value::from(&daily)]).await.unwrap_err().code, "VMSS_HAS_VM");
    let template = world.all("VM").into_iter().find(|vm| vm.bool("is_default_template")).unwrap();
    let params = [Value::from(template.id()), Value::from(&daily)];
    assert_eq!(world.call("VM.set_snapshot_schedule", params).await.unwrap_err().code, "VM_IS_TEMPLATE");
    let words = world.call("VMSS.snapshot_now", [Value::from(&daily)]).await.unwrap();
    assert_eq!(words.as_str(), Some("1 of 1 snapshots taken"));
    assert!(snapshots(&world, &vm)[0].bool("is_vmss_snapshot"));
    world.call("VM.set_snapshot_schedule", [Value::from(&vm), Value::from(Ref::null())]).await.unwrap();
    world.call("VMSS.destroy", [Value::from(&daily)]).await.unwrap();
}

#[tokio::test]
async fn room_for_guests_is_kept_and_told() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let daily = schedule(&world, "daily", 7, "hour=13 timezone=UTC").await;
    let vm = member(&world, &daily).await;
    world.driver.write(world.volumes(&vm)[0], 0, 1);
    let params = [Value::from(&world.sr), Value::from(space::FLOOR_KEY), Value::from("1024TiB")];
    world.call("SR.add_to_other_config", params).await.unwrap();
    let error = world.snapshot(&vm, "no room").await.unwrap_err();
    assert!(error.is("SR_BACKEND_FAILURE_44") && error.params[1].starts_with("There is insufficient space"), "{error}");
    to(&world, "2026-06-01T14:00:00Z", true).await;
    assert_eq!(snapshots(&world, &vm).len(), 0);
    assert_eq!(told(&world, "STORAGE_REFUSES_SNAPSHOTS").len(), 1);
    assert!(told(&world, "VMSS_SNAPSHOT_FAILED")[0].contains("SR_BACKEND_FAILURE_44"));
    let params = [Value::from(&world.sr), Value::from(space::FLOOR_KEY)];
    world.call("SR.remove_from_other_config", params).await.unwrap();
    to(&world, "2026-06-02T14:00:00Z", true).await;
    assert_eq!(snapshots(&world, &vm).len(), 1);
    assert_eq!(told(&world, "STORAGE_HAS_ROOM").len(), 1);
    world.assert_consistent("after a lack of room").await;
}

#[tokio::test]
async fn the_engine_wakes_by_itself() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let daemon = &world.test.daemon;
    engine::start(daemon, None);
    let hourly = schedule(&world, "hourly", 7, "timezone=UTC").await;
    let vm = member(&world, &hourly).await;
    let mut changed = daemon.db.changed();
    daemon.schedules.clock.set("2026-06-01T13:00:00Z".parse().unwrap());
    daemon.schedules.changed.notify_one();
    let marked = async {
        while !slots(&world, &vm).contains(&"20260601T13:00:00Z".to_owned()) {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), marked).await.expect("the run that is due");
}

#[tokio::test]
async fn the_type_is_what_the_machine_can_have() {
    let world = World::new().await;
    let daily = schedule(&world, "daily", 7, "").await;
    world.call("VMSS.set_type", [Value::from(&daily), Value::from("checkpoint")]).await.unwrap();
    let vm = member(&world, &daily).await;
    let now = |state: &str| {
        world.test.daemon.db.write(|tx| tx.set("VM", &vm, "power_state", state)).unwrap();
        message_of(&world.get("VM", &vm), &world.get("VMSS", &daily))
    };
    assert_eq!(now("Halted"), "VM.snapshot");
    assert_eq!(now("Suspended"), "VM.checkpoint");
    assert_eq!(now("Running"), "VM.checkpoint");
    exception(&world, &vm, "tanada-schedule-type", "snapshot_with_quiesce").await;
    assert_eq!(now("Running"), "VM.snapshot_with_quiesce");
    assert_eq!(now("Suspended"), "VM.snapshot");
    exception(&world, &vm, "tanada-schedule-skip", "sometimes").await;
    world.call("VM.remove_from_other_config", [Value::from(&vm), Value::from("tanada-schedule-type")]).await.unwrap();
    exception(&world, &vm, "tanada-schedule-type", "hope").await;
    assert_eq!(now("Running"), "VM.checkpoint", "what is not understood has no effect");
}

#[tokio::test]
async fn whoever_changes_what_is_kept_takes_nobodys_turn_away() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let nightly = schedule(&world, "daily", 7, "hour=2 timezone=UTC jitter=3600").await;
    let vm = member(&world, &nightly).await;
    let due = at(&world, "2026-06-02T02:00:00Z").await.taken;
    world.call("VMSS.set_enabled", [Value::from(&nightly), Value::from(true)]).await.unwrap();
    let keys = [("hour", "2"), ("timezone", "UTC"), ("jitter", "3600"), ("keep-weekly", "4")];
    world.call("VMSS.set_schedule", [Value::from(&nightly), Value::map(keys)]).await.unwrap();
    let later = at(&world, "2026-06-02T03:00:00Z").await.taken;
    assert_eq!((due + later, slots(&world, &vm).len()), (1, 1));
    // Another hour is another schedule: that of today has passed.
    world.call("VMSS.remove_from_schedule", [Value::from(&nightly), Value::from("hour")]).await.unwrap();
    assert_eq!(at(&world, "2026-06-02T12:00:00Z").await.taken, 0);
    assert_eq!(at(&world, "2026-06-03T03:00:00Z").await.taken, 1);
}

#[tokio::test]
async fn a_clock_that_was_years_ahead_stops_no_schedule_for_years() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let nightly = schedule(&world, "daily", 1, "hour=2 timezone=UTC").await;
    let vm = member(&world, &nightly).await;
    assert_eq!(at(&world, "2036-06-02T03:00:00Z").await.taken, 1);
    let later = schedule(&world, "daily", 7, "hour=2 timezone=UTC").await;
    let other = member(&world, &later).await;
    // Put right: what is noted for 2036 is not waited for.
    assert_eq!(at(&world, "2026-06-02T12:00:00Z").await.taken, 0);
    let tally = to(&world, "2026-06-04T12:00:00Z", true).await;
    assert_eq!((tally.taken, slots(&world, &other).len()), (4, 2));
    // Nor is the snapshot of 2036 the one that is kept for all that come.
    assert_eq!(slots(&world, &vm), ["20360602T02:00:00Z", "20260604T02:00:00Z"]);
    // A mistake of hours repeats nothing.
    assert_eq!(at(&world, "2026-06-04T01:00:00Z").await.taken, 0);
    assert_eq!(to(&world, "2026-06-04T12:00:00Z", true).await.taken, 0);
}

#[tokio::test]
async fn a_host_that_starts_in_the_past_forgets_nothing() {
    let world = World::new().await;
    at(&world, "2026-06-01T12:00:00Z").await;
    let nightly = schedule(&world, "daily", 1, "hour=2 timezone=UTC").await;
    let vm = member(&world, &nightly).await;
    assert_eq!(to(&world, "2026-06-03T12:00:00Z", true).await.taken, 2);
    let now = |text: &str| text.parse().unwrap();
    let found = world.test.daemon.db.read(|state| look(state, now("2000-01-01T00:00:00Z"), &HashSet::new()));
    assert_eq!((found.ahead, found.due), (vec![vm.clone()], Vec::new()));
    world.call("VMSS.set_retained_snapshots", [Value::from(&nightly), Value::from(7)]).await.unwrap();
    assert_eq!(to(&world, "2026-06-05T12:00:00Z", true).await.taken, 2);
    world.call("VMSS.set_retained_snapshots", [Value::from(&nightly), Value::from(1)]).await.unwrap();
    let surplus = |time: &str| world.test.daemon.db.read(|state| surplus(state, &vm, now(time))).len();
    assert_eq!((surplus("2000-01-01T00:00:00Z"), surplus("2026-06-05T12:00:00Z")), (0, 2));
}
