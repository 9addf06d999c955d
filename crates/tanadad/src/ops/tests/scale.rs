//! What a single change costs does not grow with the number of machines and kept generations. Records that are looked at are
//! counted, so this fails on a fast machine as well as on a slow one.

use std::sync::Arc;

use tanada_driver::memory::MemoryDriver;
use tanada_xapi::{DateTime, Ref, Value};
use uuid::Uuid;

use crate::context::Handlers;
use crate::db::{Tx, View};
use crate::ops::cbt::{self, METADATA_TYPE};
use crate::ops::{allowed, throw_away, vdi};
use crate::testing::TestDaemon;

const MACHINES: usize = 10;

/// Machines with a disk each, and snapshots of them.
struct Many {
    test: TestDaemon,
    sr: Ref,
    vms: Vec<Ref>,
    disks: Vec<Ref>,
}

fn many(generations: usize) -> Many {
    let test = TestDaemon::new(Handlers::new());
    let db = &test.daemon.db;
    let sr = db.write(|tx| tx.create("SR", [("type", Value::from("memory"))])).unwrap();
    test.daemon.storage.put_driver(&sr, Arc::new(MemoryDriver::default()));
    let (mut vms, mut disks) = (Vec::new(), Vec::new());
    for _ in 0..MACHINES {
        let (vm, disk) = db.write(|tx| machine(tx, &sr, None)).unwrap();
        let kept = db.write(|tx| (0..generations).try_for_each(|_| machine(tx, &sr, Some((&vm, &disk))).map(drop)));
        kept.unwrap();
        vms.push(vm);
        disks.push(disk);
    }
    Many { test, sr, vms, disks }
}

fn machine(tx: &mut Tx<'_>, sr: &Ref, of: Option<(&Ref, &Ref)>) -> tanada_xapi::ApiResult<(Ref, Ref)> {
    let volume = Uuid::new_v4().to_string();
    let null = (&Ref::null(), &Ref::null());
    let (of_vm, of_disk) = of.unwrap_or(null);
    let snapshot = Value::from(of.is_some());
    let vm = tx.create("VM", [("is_a_snapshot", snapshot.clone()), ("snapshot_of", Value::from(of_vm))])?;
    let disk = tx.create(
        "VDI",
        [
            ("uuid", Value::from(volume.as_str())),
            ("location", Value::from(volume)),
            ("SR", Value::from(sr)),
            ("managed", Value::from(true)),
            ("is_a_snapshot", snapshot),
            ("snapshot_of", Value::from(of_disk)),
            ("snapshot_time", Value::from(DateTime::from_unix(1_000))),
        ],
    )?;
    tx.create("VBD", [("VM", Value::from(&vm)), ("VDI", Value::from(&disk)), ("type", Value::from("Disk"))])?;
    Ok((vm, disk))
}

impl Many {
    fn visited(&self) -> usize {
        self.test.daemon.db.read(|state| state.visited())
    }

    fn generation(&self) -> u64 {
        self.test.daemon.db.read(|state| state.generation())
    }

    /// What `change` looks at.
    fn costs(&self, change: impl FnOnce(&mut Tx<'_>)) -> usize {
        let before = self.visited();
        self.test
            .daemon
            .db
            .write(|tx| {
                change(tx);
                Ok(())
            })
            .unwrap();
        self.visited() - before
    }

    /// A snapshot of the first disk whose data is destroyed waits for a later one.
    fn with_a_log(&self) {
        let daemon = &self.test.daemon;
        let (snapshot, sr) = daemon.db.read(|state| {
            let snapshot = state.having("VDI", "snapshot_of", self.disks[0].as_str())[0].clone();
            (snapshot, Uuid::parse_str(state.get("SR", &self.sr).unwrap().uuid()).unwrap())
        });
        daemon.db.write(|tx| tx.set("VDI", snapshot.id(), "type", METADATA_TYPE)).unwrap();
        cbt::keep_for_test(daemon, sr, &snapshot);
    }
}

/// Costs of: keeping allowed operations, logs of changed blocks and marked disks current after a machine, and a disk, has changed;
/// a new snapshot's records; the end of a disk's.
async fn costs(generations: usize) -> [usize; 5] {
    let many = many(generations);
    let daemon = many.test.daemon.clone();
    many.with_a_log();
    let seen = allowed::refresh(&daemon, 0);
    let seen = allowed::refresh(&daemon, seen);
    let other = &many.disks[1];
    let change = daemon.db.write(|tx| {
        tx.set("VM", &many.vms[1], "name_label", "renamed")?;
        tx.set("VDI", other, "name_label", "renamed")
    });
    change.unwrap();
    let at = many.visited();
    assert_eq!(allowed::refresh(&daemon, seen), many.generation());
    let refreshed = many.visited() - at;
    let at = many.visited();
    cbt::settle_changed(&daemon, seen).await;
    let settled = many.visited() - at;
    let at = many.visited();
    let marked = daemon.db.read(|state| throw_away::marked(state, &[other.clone()].into(), seen));
    assert_eq!(marked.len(), 0);
    let looked_for_marks = many.visited() - at;
    let made = many.costs(|tx| drop(machine(tx, &many.sr, Some((&many.vms[2], &many.disks[2]))).unwrap()));
    let removed = many.costs(|tx| vdi::remove_record(tx, &many.disks[3]).unwrap());
    [refreshed, settled, looked_for_marks, made, removed]
}

#[tokio::test]
async fn what_a_change_costs_does_not_grow_with_what_is_kept() {
    let (few, many) = (costs(3).await, costs(100).await);
    for (few, many) in few.iter().zip(&many) {
        assert!(*many <= few + 2, "records looked at: with 3 generations {few}, with 100 {many}");
    }
    assert!(few.iter().all(|few| *few < 40), "{few:?}");
}
