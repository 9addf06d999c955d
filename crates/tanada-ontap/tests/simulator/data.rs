//! What a guest would see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sim_target::faults::{Action, Rule};
use tanada_driver::registry::Backend;
use tanada_driver::{CloneRequest, CreateRequest, CutPair, Driver, DriverErrorKind, Endpoint, Secret};
use uuid::Uuid;

use crate::array::{Array, MIB, attachment};

async fn disk(driver: &Arc<dyn Driver>, size: u64, near: Option<Uuid>) -> Uuid {
    let id = Uuid::new_v4();
    driver.create(&CreateRequest { near, ..CreateRequest::new(id, size) }).await.unwrap();
    id
}

fn pair(volume: Uuid) -> CutPair {
    CutPair { volume, generation: Uuid::new_v4() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_clones_and_reverts_hold_the_bytes_they_should() {
    let array = Array::start();
    let before = array.sim.census();
    let sr = Uuid::new_v4();
    let driver = array.made(sr).await;
    let volume = disk(&driver, 16 * MIB, None).await;
    array.write(&driver, volume, MIB, &[1; 8192]).await;
    let cut = pair(volume);
    let facts = driver.stat(volume).await.unwrap();
    assert!(facts.mapped >= 8192 && facts.exclusive == facts.mapped, "{facts:?}");
    let report = driver.snapshot(&[cut]).await.unwrap();
    assert_eq!(report.moved.bytes_by_host, 0);
    let facts = driver.stat(volume).await.unwrap();
    assert_eq!((facts.exclusive, facts.shared), (0, facts.mapped));
    array.write(&driver, volume, MIB, &[2; 4096]).await;
    assert_eq!(array.read(&driver, cut.generation, MIB, 8192).await, [1; 8192]);
    let copy = Uuid::new_v4();
    assert_eq!(driver.clone_volume(&CloneRequest::new(cut.generation, copy)).await.unwrap().bytes_by_host, 0);
    array.write(&driver, copy, 0, &[3; 512]).await;
    assert_eq!(array.read(&driver, copy, MIB, 4096).await, [1; 4096]);
    assert_eq!(array.read(&driver, cut.generation, 0, 512).await, [0; 512]);
    assert_eq!(array.read(&driver, volume, MIB, 4096).await, [2; 4096]);

    assert_eq!(driver.resize(volume, 24 * MIB).await.unwrap().0, 24 * MIB);
    array.write(&driver, volume, 20 * MIB, &[4; 512]).await;
    driver.revert(volume, cut.generation).await.unwrap();
    assert_eq!(array.read(&driver, volume, MIB, 8192).await, [1; 8192]);
    driver.destroy(volume).await.unwrap();
    assert_eq!(array.read(&driver, copy, MIB, 4096).await, [1; 4096]);
    driver.destroy(cut.generation).await.unwrap();
    assert_eq!(array.read(&driver, copy, MIB, 4096).await, [1; 4096]);
    driver.destroy(copy).await.unwrap();
    drop(driver);
    array.backend().erase(&array.config(sr)).await.unwrap();
    assert_eq!(array.sim.census(), before);
}

/// A writer puts one number after the other on all disks, in order: any cut must find them within one of each other,
/// the first disk never behind the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_cut_at_one_instant_while_it_is_written() {
    cut_under_writers(["1", "1", "1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_one_whose_disks_lie_in_three_flexvols() {
    cut_under_writers(["1", "2", "3"]).await;
}

async fn cut_under_writers(flexvols: [&str; 3]) {
    let array = Array::start();
    let driver = array.made(Uuid::new_v4()).await;
    let disks = flexvols.map(|_| Uuid::new_v4());
    for (volume, flexvol) in disks.into_iter().zip(flexvols) {
        let options = BTreeMap::from([(String::from("vmhint"), flexvol.to_owned())]);
        driver.create(&CreateRequest { options, ..CreateRequest::new(volume, 4 * MIB) }).await.unwrap();
    }
    let made: BTreeSet<&str> = flexvols.into_iter().collect();
    assert_eq!(array.sim.census().volumes, made.len());
    let mut clients = Vec::new();
    let mut open = Vec::new();
    for target in disks {
        let request = attachment(target, true);
        let bridge = array.bridges().open(&driver.attach(&request).await.unwrap(), true).await.unwrap();
        clients.push(bridge.connect().await.unwrap());
        open.push((bridge, request.token));
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut number = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                for client in &clients {
                    let sector = number.to_le_bytes().repeat(64);
                    client.write_at(0, Bytes::from(sector)).await.unwrap();
                }
            }
            number
        }
    });
    let mut cuts = Vec::new();
    for _ in 0..4 {
        let group = disks.map(pair);
        driver.snapshot(&group).await.unwrap();
        cuts.push(group);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = writer.await.unwrap();
    for (bridge, token) in open {
        bridge.close().await;
        driver.detach(&token).await.unwrap();
    }
    let mut last = 0;
    for group in cuts {
        let mut seen = Vec::new();
        for pair in group {
            let bytes = array.read(&driver, pair.generation, 0, 512).await;
            seen.push(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
        }
        assert!(seen[0] >= seen[1] && seen[1] >= seen[2] && seen[0] - seen[2] <= 1, "not one instant: {seen:?}");
        assert!(seen[0] >= last && seen[0] <= written, "{seen:?} after {last}, of {written}");
        last = seen[0];
    }
    assert!(last > 0, "nothing was written before the last cut");
    driver.settle().await.unwrap();
    let census = array.sim.census();
    assert_eq!((census.snapshots, census.groups), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_logs_in_without_the_secret_and_nobody_sees_anothers_disk() {
    let array = Array::start();
    let driver = array.made(Uuid::new_v4()).await;
    let volume = disk(&driver, 4 * MIB, None).await;
    let request = attachment(volume, true);
    let Endpoint::Iscsi { portals, iqn, lun, initiator, chap } = driver.attach(&request).await.unwrap() else {
        panic!("no iSCSI")
    };
    let mut chap = chap.unwrap();
    let with = |initiator: &str, chap| Endpoint::Iscsi {
        portals: portals.clone(),
        iqn: iqn.clone(),
        lun,
        initiator: initiator.to_owned(),
        chap,
    };
    array.bridges().open(&with(&initiator, Some(chap.clone())), true).await.unwrap().close().await;
    let stranger = "iqn.2026-01.org.tanada:vm-stranger";
    assert!(array.bridges().open(&with(stranger, Some(chap.clone())), true).await.is_err());
    assert!(array.bridges().open(&with(&initiator, None), true).await.is_err());
    chap.secret = Secret::new("notTheSecret1234");
    assert!(array.bridges().open(&with(&initiator, Some(chap)), true).await.is_err());
    driver.detach(&request.token).await.unwrap();
    let census = array.sim.census();
    assert_eq!((census.maps, census.igroups, census.credentials), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_found_again_after_both_sides_were_switched_off() {
    let array = Array::start();
    let sr = Uuid::new_v4();
    let driver = array.made(sr).await;
    let volume = disk(&driver, 4 * MIB, None).await;
    array.write(&driver, volume, 0, &[9; 512]).await;
    let cut = pair(volume);
    driver.snapshot(&[cut]).await.unwrap();
    assert_eq!(driver.metadata().await.unwrap(), None);
    driver.put_metadata(b"machines and names").await.unwrap();
    driver.put_metadata(b"newer machines and names").await.unwrap();
    let mut listed = driver.scan().await.unwrap();
    drop(driver);

    let array = array.restarted();
    let found = array.backend().probe(&array.config(sr).device_config).await.unwrap();
    assert_eq!(found.iter().map(|found| (found.sr, found.name_label.as_str())).collect::<Vec<_>>(), [(sr, "filer")]);
    let driver = array.open(sr).await;
    let mut again = driver.scan().await.unwrap();
    listed.sort_by_key(|entry| entry.id);
    again.sort_by_key(|entry| entry.id);
    assert_eq!(again, listed);
    assert_eq!(driver.metadata().await.unwrap().as_deref(), Some(b"newer machines and names".as_slice()));
    assert_eq!(array.read(&driver, cut.generation, 0, 512).await, [9; 512]);
    assert_eq!(driver.attachments().await.unwrap(), Vec::<String>::new());
    assert_eq!(driver.stat(volume).await.unwrap().size, 4 * MIB);
    assert!(driver.space().await.unwrap().free > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_of_the_svm_alone_and_an_older_release_do() {
    let array = Array::with(|options| options.version = [9, 10, 1]);
    let sr = Uuid::new_v4();
    let mut config = array.config(sr);
    config.device_config.insert("username".into(), "vsadmin".into());
    config.device_config.remove("svm");
    array.backend().create(&config).await.unwrap();
    let driver = array.backend().open(&config).await.unwrap();
    let volume = disk(&driver, 4 * MIB, None).await;
    driver.snapshot(&[pair(volume)]).await.unwrap();
    assert_eq!(driver.scan().await.unwrap().len(), 2);
    assert!(driver.space().await.unwrap().free > 0);

    let old = Array::with(|options| options.version = [9, 9, 1]);
    assert_eq!(old.backend().create(&old.config(sr)).await.unwrap_err().sm, Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_array_is_waited_for() {
    let array = Array::with(|options| {
        options.split_ms = 300;
        options.lun_jobs = true;
        options.job_ms = 50;
    });
    let driver = array.made(Uuid::new_v4()).await;
    let first = disk(&driver, 4 * MIB, None).await;
    let disks = [first, disk(&driver, 4 * MIB, Some(first)).await];
    for number in 1..=3 {
        array.write(&driver, first, 0, &[number; 512]).await;
        let group = disks.map(pair);
        driver.snapshot(&group).await.unwrap();
        assert_eq!(array.read(&driver, group[0].generation, 0, 512).await, [number; 512]);
    }
    driver.settle().await.unwrap();
    assert_eq!(array.sim.census().snapshots, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_the_array_rounds_up_are_told() {
    let array = Array::with(|options| options.lun_rounding = 8_225_280);
    let driver = array.made(Uuid::new_v4()).await;
    let id = Uuid::new_v4();
    let request = CreateRequest::new(id, 10 * MIB);
    let (size, _) = driver.create(&request).await.unwrap();
    assert!(size > 10 * MIB && size.is_multiple_of(8_225_280), "{size}");
    assert_eq!(driver.create(&request).await.unwrap().0, size);
    assert_eq!(driver.stat(id).await.unwrap().size, size);
    assert_eq!(driver.resize(id, 10 * MIB).await.unwrap().0, size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_flexvol_fails_one_call_and_not_the_sr() {
    let array = Array::with(|options| options.luns_per_volume_max = 3);
    let driver = array.made(Uuid::new_v4()).await;
    let volume = disk(&driver, 4 * MIB, None).await;
    driver.snapshot(&[pair(volume)]).await.unwrap();
    driver.snapshot(&[pair(volume)]).await.unwrap();
    let before = array.sim.census();
    let error = driver.snapshot(&[pair(volume)]).await.unwrap_err();
    assert_eq!(error.kind, DriverErrorKind::NoSpace, "{error:?}");
    assert_eq!(array.sim.census(), before);
    assert_eq!(driver.scan().await.unwrap().len(), 3);
    // What is full is one FlexVol; the SR has others.
    let options = BTreeMap::from([(String::from("vmhint"), String::from("2"))]);
    driver.create(&CreateRequest { options, ..CreateRequest::new(Uuid::new_v4(), MIB) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thick_flexvols_grow_before_their_disks_do() {
    let array = Array::start();
    let sr = Uuid::new_v4();
    let mut config = array.config(sr);
    config.device_config.insert("allocation".into(), "thick".into());
    config.device_config.insert("asis".into(), "true".into());
    array.backend().create(&config).await.unwrap();
    let driver = array.backend().open(&config).await.unwrap();
    let before = driver.space().await.unwrap();
    let volume = disk(&driver, 8 << 30, None).await;
    assert_eq!(driver.resize(volume, 16 << 30).await.unwrap().0, 16 << 30);
    driver.snapshot(&[pair(volume)]).await.unwrap();
    assert!(driver.space().await.unwrap().free < before.free, "nothing was set aside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_space_is_said_as_such_and_nothing_stays() {
    let array = Array::start();
    let driver = array.made(Uuid::new_v4()).await;
    let disks = [disk(&driver, MIB, None).await, disk(&driver, MIB, None).await];
    let before = array.sim.census();
    for call in ["POST /api/storage/luns", "/snapshots"] {
        array.sim.faults().add(Rule::always(call, Action::NoSpace));
        let error = driver.snapshot(&disks.map(pair)).await.unwrap_err();
        assert_eq!(error.kind, DriverErrorKind::NoSpace, "{call}: {error:?}");
        array.sim.faults().clear();
        driver.settle().await.unwrap();
        assert_eq!(array.sim.census(), before, "{call}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_fail_or_vanish_or_drag_leave_nothing() {
    let array = Array::with(|options| {
        options.lun_jobs = true;
        options.job_ms = 5;
    });
    let driver = array.made(Uuid::new_v4()).await;
    let disks = [disk(&driver, MIB, None).await, disk(&driver, MIB, None).await];
    let before = array.sim.census();
    for trouble in ["job_fail:262185", "job_fail_after:262185", "job_vanish", "job_slow:200"] {
        for nth in 0..4 {
            let place = format!("{trouble}, change {nth}");
            array.sim.faults().add(Rule::nth("POST /api/storage", nth, Action::Other(trouble.into())));
            let group = disks.map(pair);
            let told = driver.snapshot(&group).await;
            array.sim.faults().clear();
            match told {
                Ok(report) => assert!(report.moved.changed, "{place}"),
                Err(_) => {
                    driver.settle().await.unwrap();
                    assert_eq!(array.sim.census(), before, "{place}");
                    driver.snapshot(&group).await.unwrap_or_else(|error| panic!("{place}: {error}"));
                }
            }
            for pair in group {
                assert!(driver.destroy(pair.generation).await.unwrap().changed, "{place}");
            }
            driver.settle().await.unwrap();
            assert_eq!(array.sim.census(), before, "{place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_portal_that_is_down_is_gone_round() {
    let array = Array::start();
    let driver = array.made(Uuid::new_v4()).await;
    let volume = disk(&driver, MIB, None).await;
    array.write(&driver, volume, 0, &[5; 512]).await;
    let portals = array.sim.portals("svm1");
    assert!(portals.len() > 1);
    for down in portals {
        array.sim.set_portal(down, false).unwrap();
        let request = attachment(volume, false);
        let Endpoint::Iscsi { portals, .. } = driver.attach(&request).await.unwrap() else { panic!("no iSCSI") };
        assert!(!portals.is_empty() && !portals.contains(&down.to_string()), "{portals:?} with {down} down");
        driver.detach(&request.token).await.unwrap();
        assert_eq!(array.read(&driver, volume, 0, 512).await, [5; 512]);
        array.sim.set_portal(down, true).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_seen_late_and_devices_that_are_busy_are_waited_for() {
    let array = Array::with(|options| options.lag_ms = 400);
    let driver = array.made(Uuid::new_v4()).await;
    let disks = [disk(&driver, MIB, None).await, disk(&driver, MIB, None).await];
    let before = array.sim.census();
    array.sim.faults().add(Rule::once("POST /api/storage/luns", Action::Other("device_busy".into())));
    let group = disks.map(pair);
    driver.snapshot(&group).await.unwrap();
    let copy = Uuid::new_v4();
    driver.clone_volume(&CloneRequest::new(group[0].generation, copy)).await.unwrap();
    assert_eq!(driver.scan().await.unwrap().len(), 5);
    array.sim.faults().add(Rule::once("DELETE /api/storage/luns", Action::Other("device_busy".into())));
    for id in [copy, group[0].generation, group[1].generation] {
        assert!(driver.destroy(id).await.unwrap().changed);
    }
    // Without asking the reaper.
    assert_eq!(array.sim.census(), before);
}
