//! Changed blocks over snapshots that come, lose their data and go.

use std::time::{Duration, Instant};

use tanada_driver::DriverErrorKind;
use tanada_driver::memory::Fault;
use tanada_xapi::{ApiResult, Ref, Value};
use uuid::Uuid;

use super::{World, reference};
use crate::ops::allowed;

/// 4 KiB blocks of the SR in memory in 64 KiB.
const IN_ONE: u64 = 16;

impl World {
    /// A disk of 1 MiB whose snapshots may lose their data.
    async fn tracked(&self) -> Ref {
        let disk = self.disk("tracked").await;
        self.call("VDI.enable_cbt", [Value::from(&disk)]).await.unwrap();
        disk
    }

    fn volume(&self, vdi: &Ref) -> Uuid {
        Uuid::parse_str(self.get("VDI", vdi).str("location")).unwrap()
    }

    /// Writes into so many a 64 KiB piece of the disk.
    fn touch(&self, disk: &Ref, piece: u64, value: u64) {
        self.driver.write(self.volume(disk), piece * IN_ONE + 3, value);
    }

    async fn cut(&self, disk: &Ref) -> Ref {
        reference(&self.call("VDI.snapshot", [Value::from(disk), Value::empty_map()]).await.unwrap())
    }

    async fn on(&self, message: &str, vdi: &Ref) -> ApiResult<Value> {
        self.call(message, [Value::from(vdi)]).await
    }

    /// The pieces that differ, by the bitmap.
    async fn changed(&self, from: &Ref, to: &Ref) -> ApiResult<Vec<usize>> {
        use base64::Engine;
        let answer = self.call("VDI.list_changed_blocks", [Value::from(from), Value::from(to)]).await?;
        let bits = base64::engine::general_purpose::STANDARD.decode(answer.as_str().unwrap()).unwrap();
        Ok((0..bits.len() * 8).filter(|n| bits[n / 8] & 0x80 >> (n % 8) != 0).collect())
    }

    /// Waits until so many volumes are left.
    async fn volumes_left(&self, count: usize) {
        let start = Instant::now();
        while self.driver.ids().len() != count {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?} instead of {count}", self.driver.ids());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_snapshot_without_data_still_tells_what_changed_since() {
    let world = World::new().await;
    let disk = world.tracked().await;
    world.touch(&disk, 0, 1);
    let monday = world.cut(&disk).await;
    assert!(world.get("VDI", &monday).bool("cbt_enabled"));
    world.on("VDI.data_destroy", &monday).await.unwrap();
    world.on("VDI.data_destroy", &monday).await.unwrap();
    let record = world.get("VDI", &monday);
    assert_eq!((record.str("type"), record.int("physical_utilisation")), ("cbt_metadata", 0));
    // Nothing to compare with later: the volume is there until the next snapshot.
    world.volumes_left(2).await;
    world.touch(&disk, 2, 1);
    assert_eq!(world.changed(&monday, &disk).await.unwrap(), [2]);
    let tuesday = world.cut(&disk).await;
    world.volumes_left(2).await;
    world.touch(&disk, 5, 1);
    assert_eq!(world.changed(&monday, &tuesday).await.unwrap(), [2]);
    let wednesday = world.cut(&disk).await;
    assert_eq!(world.changed(&monday, &wednesday).await.unwrap(), [2, 5]);
    assert_eq!(world.changed(&tuesday, &wednesday).await.unwrap(), [5]);
    // Both ends without data: the logs lead from one to the other, exactly.
    world.on("VDI.data_destroy", &tuesday).await.unwrap();
    world.volumes_left(2).await;
    assert_eq!(world.changed(&monday, &tuesday).await.unwrap(), [2]);
    assert_eq!(world.changed(&monday, &wednesday).await.unwrap(), [2, 5]);
    assert_eq!(world.changed(&tuesday, &wednesday).await.unwrap(), [5]);
}

#[tokio::test]
async fn a_snapshot_of_a_failed_night_may_go() {
    let world = World::new().await;
    let disk = world.tracked().await;
    let monday = world.cut(&disk).await;
    world.on("VDI.data_destroy", &monday).await.unwrap();
    world.touch(&disk, 1, 1);
    let failed = world.cut(&disk).await;
    world.volumes_left(2).await;
    world.on("VDI.destroy", &failed).await.unwrap();
    // Its record is gone, its place in time is not.
    assert!(world.all("VDI").iter().all(|vdi| *vdi.id() != failed));
    assert_eq!(world.driver.ids().len(), 2);
    world.call("SR.scan", [Value::from(&world.sr)]).await.unwrap();
    assert_eq!(world.all("VDI").len(), 2, "what a log needs gets no record");
    world.touch(&disk, 7, 1);
    let wednesday = world.cut(&disk).await;
    world.volumes_left(2).await;
    assert_eq!(world.changed(&monday, &wednesday).await.unwrap(), [1, 7]);
    world.on("VDI.destroy", &monday).await.unwrap();
    world.on("VDI.destroy", &wednesday).await.unwrap();
    world.volumes_left(1).await;
    world.assert_consistent("at the end").await;
}

#[tokio::test]
async fn logs_outlive_the_daemon() {
    let world = World::new().await;
    let disk = world.tracked().await;
    let monday = world.cut(&disk).await;
    world.on("VDI.data_destroy", &monday).await.unwrap();
    let world = world.restart().await;
    assert!(!world.get("VDI", &monday).bool("missing"));
    world.touch(&disk, 3, 1);
    let tuesday = world.cut(&disk).await;
    world.volumes_left(2).await;
    let world = world.restart().await;
    world.call("SR.scan", [Value::from(&world.sr)]).await.unwrap();
    assert!(!world.get("VDI", &monday).bool("missing"));
    assert_eq!(world.changed(&monday, &tuesday).await.unwrap(), [3]);
    // Without its log it says that it does not know.
    std::fs::remove_dir_all(world.test.daemon.config.state_dir.join("cbt")).unwrap();
    let world = world.restart().await;
    let error = world.changed(&monday, &tuesday).await.unwrap_err();
    assert!(error.is("SR_BACKEND_FAILURE_460"), "{error:?}");
    world.on("VDI.destroy", &monday).await.unwrap();
}

#[tokio::test]
async fn refusals_are_the_documented_ones() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let disk = world.vdis(&vm)[0].clone();
    let code = |result: ApiResult<Value>| result.unwrap_err().code;
    let untracked = world.cut(&disk).await;
    assert_eq!(code(world.on("VDI.data_destroy", &untracked).await), "VDI_NO_CBT_METADATA");
    assert_eq!(code(world.on("VDI.data_destroy", &disk).await), "OPERATION_NOT_ALLOWED");
    assert_eq!(code(world.on("VDI.enable_cbt", &untracked).await), "OPERATION_NOT_ALLOWED");
    for message in ["VDI.enable_cbt", "VDI.enable_cbt", "VDI.disable_cbt", "VDI.disable_cbt", "VDI.enable_cbt"] {
        world.on(message, &disk).await.unwrap();
    }
    let copy = reference(&world.call("VDI.clone", [Value::from(&disk), Value::empty_map()]).await.unwrap());
    assert!(!world.get("VDI", &copy).bool("cbt_enabled"), "a clone is not tracked");
    let used = world.snapshot(&vm, "of the machine").await.unwrap();
    assert_eq!(code(world.on("VDI.data_destroy", &world.vdis(&used)[0]).await), "VDI_IN_USE");

    let snapshot = world.cut(&disk).await;
    world.on("VDI.data_destroy", &snapshot).await.unwrap();
    for (message, extra) in
        [("VDI.clone", vec![Value::empty_map()]), ("VDI.snapshot", vec![Value::empty_map()]), ("VDI.revert", vec![])]
    {
        let params = [Value::from(&snapshot)].into_iter().chain(extra);
        assert_eq!(code(world.call(message, params).await), "VDI_INCOMPATIBLE_TYPE", "{message}");
    }
    for (from, to) in [(&disk, &disk), (&snapshot, &snapshot)] {
        assert_eq!(world.changed(from, to).await.unwrap_err().code, "SR_BACKEND_FAILURE_460");
    }
    allowed::refresh(&world.test.daemon, 0);
    let mut operations = world.get("VDI", &snapshot).strings("allowed_operations");
    operations.sort();
    assert_eq!(operations, ["data_destroy", "destroy", "forget", "list_changed_blocks", "update"]);
    let tracked = world.get("VDI", &world.cut(&disk).await);
    allowed::refresh(&world.test.daemon, 0);
    let operations = world.get("VDI", tracked.id()).strings("allowed_operations");
    assert!(operations.iter().any(|operation| operation == "data_destroy"), "{operations:?}");
}

#[tokio::test]
async fn a_grown_disk_has_the_bits_of_the_larger_one() {
    let world = World::new().await;
    let disk = world.tracked().await;
    let small = world.cut(&disk).await;
    world.call("VDI.resize", [Value::from(&disk), Value::from(2 << 20)]).await.unwrap();
    world.touch(&disk, 31, 1);
    let large = world.cut(&disk).await;
    let answer = world.call("VDI.list_changed_blocks", [Value::from(&small), Value::from(&large)]).await.unwrap();
    // 32 bits, the last one set.
    assert_eq!(answer.as_str(), Some("AAAAAQ=="));
}

/// Monday's data is destroyed, something is written, Tuesday comes; from wherever that stopped before.
async fn nights(world: &World, disk: &Ref, monday: &Ref) -> ApiResult<Ref> {
    world.on("VDI.data_destroy", monday).await?;
    world.touch(disk, 2, 1);
    let there = world.all("VDI").into_iter().find(|vdi| vdi.bool("is_a_snapshot") && vdi.id() != monday);
    match there {
        Some(tuesday) => Ok(tuesday.id().clone()),
        None => world.call("VDI.snapshot", [Value::from(disk), Value::empty_map()]).await.map(|vdi| reference(&vdi)),
    }
}

async fn assert_nothing_is_lost(world: &World, disk: &Ref, monday: &Ref, label: &str) {
    let tuesday = nights(world, disk, monday).await.unwrap_or_else(|error| panic!("{label}: {error}"));
    // Whatever failed before is done again when something changes.
    world.call("VDI.set_name_label", [Value::from(disk), Value::from(label)]).await.unwrap();
    world.volumes_left(2).await;
    assert_eq!(world.changed(monday, &tuesday).await.unwrap(), [2], "{label}");
    world.call("SR.scan", [Value::from(&world.sr)]).await.unwrap();
    assert_eq!(world.all("VDI").len(), 3, "{label}");
    assert!(world.all("VDI").iter().all(|vdi| !vdi.bool("missing")), "{label}");
}

#[tokio::test]
async fn no_change_is_lost_where_the_storage_fails() {
    for fault in [Fault::Before, Fault::After] {
        for nth in 1..6 {
            let label = format!("call {nth} fails {fault:?}");
            let world = World::new().await;
            let disk = world.tracked().await;
            let monday = world.cut(&disk).await;
            world.driver.fail(nth, fault, DriverErrorKind::Unreachable);
            // Whether it fails depends on what struck: a step of this, or of what follows in the background.
            let _ = nights(&world, &disk, &monday).await;
            assert_nothing_is_lost(&world, &disk, &monday, &label).await;
        }
    }
}

#[tokio::test]
async fn no_change_is_lost_where_the_daemon_dies() {
    for steps in 1..8 {
        let label = format!("killed after {steps} steps");
        let world = World::new().await;
        let disk = world.tracked().await;
        let monday = world.cut(&disk).await;
        world.driver.pause_after(steps);
        let paused = world.driver.clone();
        tokio::select! {
            biased;
            _ = nights(&world, &disk, &monday) => {}
            () = paused.paused() => {}
        }
        world.driver.resume();
        let world = world.restart().await;
        assert_nothing_is_lost(&world, &disk, &monday, &label).await;
    }
}
