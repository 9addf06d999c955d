//! Schedules on real stores, by a clock that the test moves.

use std::fs;

use tanada_e2e::Scratch;
use tanada_witness::noise;

/// A store and a machine with one disk; uuids of both and of the disk.
fn world(scratch: &Scratch, store: &str, disk: &str) -> (String, String, String) {
    let location = format!("device-config:location={}", scratch.path("fast.store").display());
    let sr =
        scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, &format!("physical-size={store}")]);
    let vm = scratch.xe_ok(["vm-create", "name-label=db1"]);
    scratch.xe_ok(["vm-disk-add", "vm=db1", &format!("disk-size={disk}"), "device=0", &format!("sr-uuid={sr}")]);
    let vdi = scratch.xe_ok(["vdi-list", &format!("sr-uuid={sr}"), "--minimal"]);
    (sr, vm, vdi)
}

fn scheduled(scratch: &Scratch, vm: &str, more: &[&str]) -> String {
    let usual = ["vmss-create", "name-label=policy", "type=snapshot", "schedule:timezone=UTC"];
    let schedule = scratch.xe_ok(usual.iter().chain(more));
    scratch.xe_ok(["vm-param-set", &format!("uuid={vm}"), &format!("snapshot-schedule={schedule}")]);
    schedule
}

fn snapshots(scratch: &Scratch) -> usize {
    scratch
        .xe_ok(["snapshot-list", "is-vmss-snapshot=true", "--minimal"])
        .split(',')
        .filter(|one| !one.is_empty())
        .count()
}

/// Eighteen days of hours, a death of the daemon among them, then most of it thrown away.
#[test]
fn four_hundred_generations_are_kept_and_let_go() {
    let mut scratch = Scratch::start_steered();
    let (sr, vm, _) = world(&scratch, "1GiB", "16MiB");
    scratch.clock("at 2026-06-01T00:00:00Z");
    let schedule = scheduled(&scratch, &vm, &["frequency=hourly", "retained-snapshots=400"]);
    assert_eq!(scratch.clock("through 2026-06-11T00:00:00Z"), "taken=240 failed=0 removed=0 missed=0 waiting=0");
    scratch.kill_daemon();
    scratch.start_daemon();
    assert_eq!(scratch.clock("through 2026-06-18T12:00:00Z"), "taken=180 failed=0 removed=20 missed=0 waiting=0");
    assert_eq!(snapshots(&scratch), 400);
    scratch.xe_ok(["vmss-param-set", &format!("uuid={schedule}"), "retained-snapshots=3", "schedule:keep-daily=5"]);
    assert_eq!(scratch.clock("at 2026-06-18T12:30:00Z"), "taken=0 failed=0 removed=393 missed=0 waiting=0");
    assert_eq!(snapshots(&scratch), 7);
    assert_eq!(scratch.xe_ok(["vdi-list", &format!("sr-uuid={sr}"), "--minimal"]).split(',').count(), 8);
    assert_eq!(scratch.xe_ok(["vmss-snapshot-now", &format!("uuid={schedule}")]), "1 of 1 snapshots taken");
}

/// A disk that changes by 12 MiB a day in a store of 256 MiB: foretold, refused, written on, and freed.
#[test]
fn a_store_that_fills_is_foretold_and_keeps_room_for_writes() {
    let mut scratch = Scratch::start_steered();
    let (sr, vm, vdi) = world(&scratch, "256MiB", "12MiB");
    scratch.clock("at 2026-06-01T12:00:00Z");
    let by_uuid = format!("uuid={sr}");
    scratch.xe_ok(["sr-param-set", &by_uuid, "other-config:tanada-snapshot-floor=20%"]);
    let schedule = scheduled(&scratch, &vm, &["frequency=daily", "schedule:hour=13", "retained-snapshots=100"]);
    let file = scratch.path("content.raw");
    let write = |scratch: &Scratch, day: usize| {
        fs::write(&file, noise(12 << 20, day as u64)).expect("the content");
        let file = format!("filename={}", file.display());
        scratch.xe_ok(["vdi-import", &format!("uuid={vdi}"), "format=raw", &file]);
    };
    let bodies = |scratch: &Scratch, name: &str| {
        scratch.xe_ok(["message-list", &format!("name={name}"), "params=body", "--minimal"])
    };
    let mut taken = 0;
    let refused_on = (1..30).find(|day| {
        write(&scratch, *day);
        let tally = scratch.clock(&format!("at 2026-06-{:02}T14:00:00Z", day + 1));
        taken += usize::from(tally.starts_with("taken=1"));
        if *day == 6 {
            let left = scratch.xe_ok(["sr-param-get", &by_uuid, "param-name=sm-config", "param-key=tanada:days-left"]);
            let left: f64 = left.parse().expect("a number of days");
            assert!((2.0..20.0).contains(&left), "{left} days are left on day {day}");
            let said = bodies(&scratch, "STORAGE_FILLS");
            assert!(said.contains("as it grows"), "{said}");
        }
        tally.starts_with("taken=0 failed=1")
    });
    let refused_on = refused_on.expect("a store of 256 MiB took a month of 12 MiB a day");
    assert_eq!(snapshots(&scratch), taken);
    assert!((8..20).contains(&refused_on), "refused on day {refused_on}");
    // Some room may have come back since; not as much as this.
    scratch.xe_ok(["sr-param-set", &by_uuid, "other-config:tanada-snapshot-floor=35%"]);
    let said = scratch.xe_fails(["vm-snapshot", "vm=db1", "new-name-label=by-hand"]);
    assert!(said.contains("There is insufficient space: fast has"), "{said}");
    assert!(bodies(&scratch, "STORAGE_REFUSES_SNAPSHOTS").contains("no snapshots are taken"));
    // Machines write on: what has been cut is all written once more.
    write(&scratch, 100);
    scratch.xe_ok(["sr-param-set", &by_uuid, "other-config:tanada-snapshot-floor=20%"]);
    scratch.xe_ok(["vmss-param-set", &format!("uuid={schedule}"), "retained-snapshots=2"]);
    // Half a minute later, before what failed is tried again.
    let freed = scratch.clock(&format!("at 2026-06-{:02}T14:00:30Z", refused_on + 1));
    assert!(freed.contains(&format!("removed={}", taken - 2)), "{freed}");
    scratch.eventually("room comes back", |scratch| {
        let ran = scratch.xe(["vm-snapshot", "vm=db1", "new-name-label=by-hand"]);
        if ran.status == 0 { Ok(()) } else { Err(ran.err) }
    });
    let next = scratch.clock(&format!("at 2026-06-{:02}T14:00:00Z", refused_on + 2));
    assert!(next.starts_with("taken=1 failed=0 removed=1"), "{next}");
    assert_ne!(bodies(&scratch, "STORAGE_HAS_ROOM"), "");
}
