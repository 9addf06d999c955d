//! Every verb, and every verb twice.

use std::sync::Arc;

use serde_json::Value;
use tanada_driver::registry::Backend;
use tanada_driver::{AttachRequest, CloneRequest, CreateRequest, CutPair, Driver, DriverErrorKind, Endpoint};
use uuid::Uuid;

use crate::fake::{Fake, Trouble};

const MIB: u64 = 1 << 20;
const VM: &str = "iqn.2026-01.org.tanada:vm-1";

pub async fn opened(fake: &Fake, sr: Uuid) -> Arc<dyn Driver> {
    let config = fake.config(sr);
    fake.backend().create(&config).await.unwrap();
    fake.backend().open(&config).await.unwrap()
}

pub fn pair(volume: Uuid) -> CutPair {
    CutPair { volume, generation: Uuid::new_v4() }
}

pub fn request(token: &str, target: Uuid, writable: bool, initiator: &str) -> AttachRequest {
    AttachRequest { token: token.into(), target, writable, initiator: initiator.into() }
}

#[tokio::test]
async fn disks_come_grow_and_go() {
    let fake = Fake::start().await;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let before = fake.objects();
    let id = Uuid::new_v4();
    let wanted = CreateRequest { name_label: "röot \"disk\"".into(), ..CreateRequest::new(id, 3 * MIB + 1) };
    assert_eq!(driver.create(&wanted).await.unwrap().0, 4 * MIB);
    assert!(!driver.create(&wanted).await.unwrap().1.changed, "made twice");
    let other = driver.create(&CreateRequest::new(id, 900 * MIB)).await.unwrap_err();
    assert_eq!(other.kind, DriverErrorKind::Exists);
    assert_eq!(driver.resize(id, 8 * MIB).await.unwrap().0, 8 * MIB);
    assert!(!driver.resize(id, 8 * MIB).await.unwrap().1.changed);
    assert_eq!(driver.resize(Uuid::new_v4(), MIB).await.unwrap_err().kind, DriverErrorKind::NotFound);
    let scan = driver.scan().await.unwrap();
    assert_eq!(scan.len(), 1);
    assert_eq!((scan[0].id, scan[0].size, scan[0].is_generation), (id, 8 * MIB, false));
    assert_eq!(scan[0].name_label.as_deref(), Some("röot \"disk\""));
    assert_eq!(driver.space().await.unwrap().virtual_size, 8 * MIB);
    assert!(driver.destroy(id).await.unwrap().changed);
    assert!(!driver.destroy(id).await.unwrap().changed);
    assert_eq!(fake.objects(), before);
}

#[tokio::test]
async fn a_snapshot_is_one_clone_and_keeps_what_it_saw() {
    let fake = Fake::start().await;
    fake.state().clones_forget_thin = true;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let disk = Uuid::new_v4();
    driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    fake.write(disk, 7);
    let cut = pair(disk);
    let report = driver.snapshot(&[cut]).await.unwrap();
    assert_eq!((report.moved.changed, report.moved.bytes_by_host), (true, 0));
    assert!(!driver.snapshot(&[cut]).await.unwrap().moved.changed);
    fake.write(disk, 8);
    assert_eq!(fake.content(cut.generation), Some(7));
    let lun = fake.lun(cut.generation).unwrap();
    assert_eq!(lun["space"]["scsi_thin_provisioning_support_enabled"], true);
    let facts = driver.stat(cut.generation).await.unwrap();
    assert!(facts.is_generation);
    assert_eq!(facts.parent, Some(disk));

    assert!(driver.revert(disk, cut.generation).await.unwrap().changed);
    assert_eq!(fake.content(disk), Some(7));
    assert!(!driver.stat(disk).await.unwrap().is_generation);
    let copy = CloneRequest { name_label: "copy".into(), ..CloneRequest::new(cut.generation, Uuid::new_v4()) };
    assert!(driver.clone_volume(&copy).await.unwrap().changed);
    assert!(!driver.clone_volume(&copy).await.unwrap().changed);
    assert_eq!(fake.content(copy.volume), Some(7));
    // In any order, while copies live.
    for id in [cut.generation, disk, copy.volume] {
        assert!(driver.destroy(id).await.unwrap().changed);
    }
    assert_eq!(driver.scan().await.unwrap(), vec![]);
}

#[tokio::test]
async fn disks_of_a_machine_lie_together_and_are_cut_together() {
    let fake = Fake::start().await;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let first = Uuid::new_v4();
    driver.create(&CreateRequest::new(first, MIB)).await.unwrap();
    let mut disks = vec![first];
    for _ in 0..3 {
        let id = Uuid::new_v4();
        driver.create(&CreateRequest { near: Some(first), ..CreateRequest::new(id, MIB) }).await.unwrap();
        disks.push(id);
    }
    let group: Vec<CutPair> = disks.iter().map(|disk| pair(*disk)).collect();
    fake.state().log.clear();
    driver.snapshot(&group).await.unwrap();
    let calls = fake.state().log.clone();
    println!("{} requests for a snapshot of {} disks", calls.len(), group.len());
    let posts = |end: &str| calls.iter().filter(|call| call.starts_with("POST") && call.ends_with(end)).count();
    assert_eq!((posts("/snapshots"), posts("/luns")), (1, 4), "{calls:?}");
    assert_eq!(fake.state().collections["/snapshots"].len(), 0);
}

#[tokio::test]
async fn disks_in_several_flexvols_are_cut_by_a_group_that_does_not_stay() {
    let fake = Fake::start().await;
    let sr = Uuid::new_v4();
    let driver = opened(&fake, sr).await;
    let disks = [Uuid::new_v4(), Uuid::new_v4()];
    for disk in disks {
        driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    }
    fake.move_to_second_flexvol(sr, disks[1]);
    fake.write(disks[0], 1);
    fake.write(disks[1], 2);
    let group = disks.map(pair);
    driver.snapshot(&group).await.unwrap();
    assert_eq!(group.map(|pair| fake.content(pair.generation)), [Some(1), Some(2)]);
    assert_eq!(fake.state().collections["/application/consistency-groups"].len(), 0);
    assert_eq!(fake.state().collections["/snapshots"].len(), 0);

    // An administrator's own group around one of the FlexVols.
    let name = format!("tanada_{}_fv2", sr.simple());
    let admins = serde_json::json!({"name": "admins", "uuid": Uuid::new_v4().to_string(), "volumes": [{"name": name}]});
    fake.state().collections.get_mut("/application/consistency-groups").unwrap().push(admins);
    let before = fake.objects();
    let error = driver.snapshot(&disks.map(pair)).await.unwrap_err();
    assert_eq!(error.kind, DriverErrorKind::NotAtomic, "{error}");
    assert_eq!(fake.objects(), before);
}

#[tokio::test]
async fn a_snapshot_that_does_not_go_is_left_to_the_reaper() {
    let fake = Fake::start().await;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let disks = [Uuid::new_v4(), Uuid::new_v4()];
    for disk in disks {
        driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    }
    fake.state().snapshot_busy_for = 3;
    driver.snapshot(&disks.map(pair)).await.unwrap();
    let left = fake.state().collections["/snapshots"].clone();
    assert_eq!(left.len(), 1);
    assert!(left[0]["name"].as_str().unwrap().starts_with("tanada_del_"), "{left:?}");
    driver.settle().await.unwrap();
    assert_eq!(fake.state().collections["/snapshots"].len(), 0);
}

/// Another host's cut may be under way, and administrators take snapshots of their own.
#[tokio::test]
async fn the_reaper_touches_its_own_leftovers_only() {
    let fake = Fake::start().await;
    let sr = Uuid::new_v4();
    drop(opened(&fake, sr).await);
    let flexvol = fake.state().collections["/storage/volumes"][0]["uuid"].clone();
    let of_host = |initiator: &str| {
        let mut config = fake.config(sr);
        config.initiator = initiator.into();
        config
    };
    // What a host that was killed leaves: its tag is in the name of what it made.
    let driver = fake.backend().open(&of_host("iqn.x:a")).await.unwrap();
    let disks = [Uuid::new_v4(), Uuid::new_v4()];
    for disk in disks {
        driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    }
    fake.state().log.clear();
    fake.trouble_at("POST", "/snapshots", Trouble::DeadAfter);
    driver.snapshot(&disks.map(pair)).await.unwrap_err();
    drop(driver);
    fake.recover();
    let names = || -> Vec<String> {
        let state = fake.state();
        let all = state.collections["/snapshots"].iter();
        all.map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let left = names();
    assert!(left.len() == 1 && left[0].starts_with("tanada_cut_"), "{left:?} after {:?}", fake.state().log);
    for name in ["nightly", "tanada_backup", "tanada_del_x_y"] {
        let record =
            serde_json::json!({"name": name, "uuid": Uuid::new_v4().to_string(), "volume": flexvol, "luns": []});
        fake.state().collections.get_mut("/snapshots").unwrap().push(record);
    }
    let other = fake.backend().open(&of_host("iqn.x:b")).await.unwrap();
    other.settle().await.unwrap();
    assert_eq!(names(), [left[0].as_str(), "nightly", "tanada_backup"]);
    let same = fake.backend().open(&of_host("iqn.x:a")).await.unwrap();
    same.settle().await.unwrap();
    assert_eq!(names(), ["nightly", "tanada_backup"]);
}

#[tokio::test]
async fn an_initiator_sees_what_is_attached_and_nothing_stays_behind() {
    let fake = Fake::start().await;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let disks = [Uuid::new_v4(), Uuid::new_v4()];
    for disk in disks {
        driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    }
    let before = fake.objects();
    let first = driver.attach(&request("t0", disks[0], true, VM)).await.unwrap();
    assert_eq!(driver.attach(&request("t0", disks[0], true, VM)).await.unwrap(), first);
    let Endpoint::Iscsi { portals, iqn, lun, initiator, chap } = first else { panic!("{first:?}") };
    // The LUN's own node comes first.
    assert_eq!(portals, ["192.0.2.2:3260", "192.0.2.1:3260"]);
    assert_eq!((iqn.as_str(), lun, initiator.as_str()), ("iqn.1992-08.com.netapp:sn.1:vs.1", 0, VM));
    let chap = chap.unwrap();
    assert_eq!(chap.secret.expose().len(), 16);
    let Endpoint::Iscsi { lun, chap: again, .. } = driver.attach(&request("t1", disks[1], false, VM)).await.unwrap()
    else {
        panic!("no iSCSI")
    };
    assert_eq!((lun, again), (1, Some(chap.clone())), "one initiator has one secret");
    let other = driver.attach(&request("t2", disks[1], false, "iqn.2026-01.org.tanada:vm-2")).await.unwrap();
    let Endpoint::Iscsi { chap: others, .. } = other else { panic!("no iSCSI") };
    assert_ne!(others.unwrap().secret, chap.secret);

    let second_writer = driver.attach(&request("t3", disks[0], true, "iqn.2026-01.org.tanada:vm-2")).await.unwrap_err();
    assert_eq!(second_writer.kind, DriverErrorKind::Busy);
    assert_eq!(driver.destroy(disks[0]).await.unwrap_err().kind, DriverErrorKind::Busy);
    let mut tokens = driver.attachments().await.unwrap();
    tokens.sort();
    assert_eq!(tokens, ["t0", "t1", "t2"]);
    for token in ["t0", "t2", "t1"] {
        assert!(driver.detach(token).await.unwrap().changed);
        assert!(!driver.detach(token).await.unwrap().changed);
    }
    assert_eq!(fake.objects(), before);
}

#[tokio::test]
async fn snapshots_of_attached_disks_are_not_attached_and_never_written() {
    let fake = Fake::start().await;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let disk = Uuid::new_v4();
    driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    driver.attach(&request("t", disk, true, VM)).await.unwrap();
    let cut = pair(disk);
    driver.snapshot(&[cut]).await.unwrap();
    assert_eq!(driver.attachments().await.unwrap(), ["t"]);
    let error = driver.attach(&request("w", cut.generation, true, VM)).await.unwrap_err();
    assert_eq!(error.kind, DriverErrorKind::InvalidArgument);
    assert_eq!(driver.revert(disk, cut.generation).await.unwrap_err().kind, DriverErrorKind::Busy);
    assert!(driver.destroy(cut.generation).await.unwrap().changed);
    driver.detach("t").await.unwrap();
}

#[tokio::test]
async fn an_sr_is_found_again_and_only_what_is_ours_is_erased() {
    let fake = Fake::start().await;
    let empty = fake.objects();
    let (sr, other) = (Uuid::new_v4(), Uuid::new_v4());
    let driver = opened(&fake, sr).await;
    let untouched = opened(&fake, other).await;
    let disk = Uuid::new_v4();
    driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    untouched.create(&CreateRequest::new(Uuid::new_v4(), MIB)).await.unwrap();
    let config = fake.config(sr);
    let mut found = fake.backend().probe(&config.device_config).await.unwrap();
    found.retain(|found| found.sr == sr);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name_label, "fast");
    let again = fake.backend().open(&config).await.unwrap();
    assert_eq!(again.scan().await.unwrap().len(), 1);
    assert_eq!(again.stat(disk).await.unwrap().size, MIB);
    let absent = fake.backend().open(&fake.config(Uuid::new_v4())).await;
    assert_eq!(absent.err().map(|error| error.kind), Some(DriverErrorKind::NotFound));

    let mut foreign = fake.lun(disk).unwrap();
    let name = foreign["name"].as_str().unwrap().replace(&disk.to_string(), "oracle_data");
    foreign["name"] = Value::from(name);
    foreign["uuid"] = Value::from("foreign");
    fake.state().collections.get_mut("/storage/luns").unwrap().push(foreign);
    let error = fake.backend().erase(&config).await.unwrap_err();
    assert_eq!(error.kind, DriverErrorKind::Busy);
    assert!(error.message.contains("oracle_data"), "{error}");
    assert_eq!(again.scan().await.unwrap().len(), 1, "a foreign LUN is no disk of the SR");
    fake.state().collections.get_mut("/storage/luns").unwrap().retain(|lun| lun["uuid"] != "foreign");
    fake.backend().erase(&config).await.unwrap();
    fake.backend().erase(&config).await.unwrap();
    assert_eq!(untouched.scan().await.unwrap().len(), 1);
    fake.backend().erase(&fake.config(other)).await.unwrap();
    assert_eq!(fake.objects(), empty);
}

#[tokio::test]
async fn room_that_gets_scarce_is_told_once_and_so_is_room_again() {
    let fake = Fake::start().await;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let used = |used: u64, free: u64| {
        let mut state = fake.state();
        state.collections.get_mut("/storage/volumes").unwrap()[0]["space"]["used"] = Value::from(used);
        state.collections.get_mut("/storage/aggregates").unwrap()[0]["space"]["block_storage"]["available"] =
            free.into();
    };
    let mut alerts = driver.alerts();
    for (usage, free, told) in [(10, 90, None), (95, 5, Some("NearlyFull")), (96, 4, None), (50, 50, Some("RoomAgain"))]
    {
        used(usage, free);
        let space = driver.space().await.unwrap();
        assert_eq!((space.used, space.free, space.physical), (usage, free, usage + free));
        let alert = alerts.try_recv().ok().map(|alert| format!("{alert:?}"));
        assert_eq!(alert.as_deref().and_then(|alert| alert.split_whitespace().next()), told);
    }
}

/// Fills a FlexVol with LUNs that only count.
fn crowd(fake: &Fake, flexvol: &str, luns: usize) {
    let mut state = fake.state();
    let all = state.collections.entry("/storage/luns").or_default();
    for _ in 0..luns {
        let (uuid, base) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let location = serde_json::json!({"logical_unit": base, "volume": {"name": flexvol}});
        all.push(serde_json::json!({"uuid": uuid, "name": format!("/vol/{flexvol}/{base}"), "location": location}));
    }
}

#[tokio::test]
async fn an_sr_grows_by_flexvols_and_says_when_it_may_not() {
    let fake = Fake::start().await;
    let sr = Uuid::new_v4();
    let mut config = fake.config(sr);
    config.device_config.insert("FlexVols".into(), "2".into());
    fake.backend().create(&config).await.unwrap();
    let driver = fake.backend().open(&config).await.unwrap();
    let flexvol = |number: u32| format!("tanada_{}_fv{number}", sr.simple());
    let made = async |near: Option<Uuid>| {
        let id = Uuid::new_v4();
        let done = driver.create(&CreateRequest { near, ..CreateRequest::new(id, MIB) }).await;
        done.map(|_| (id, fake.lun(id).unwrap()["name"].as_str().unwrap().split('/').nth(2).unwrap().to_owned()))
    };
    let (first, place) = made(None).await.unwrap();
    assert_eq!(place, flexvol(1));
    crowd(&fake, &flexvol(1), 100);
    assert_eq!(made(None).await.unwrap().1, flexvol(2), "another one before the first is crowded");
    assert_eq!(made(Some(first)).await.unwrap().1, flexvol(1), "beside the machine's other disk");
    crowd(&fake, &flexvol(1), 300);
    assert_eq!(made(Some(first)).await.unwrap().1, flexvol(2), "no room beside it is no reason to fail");
    crowd(&fake, &flexvol(2), 400);
    let error = made(None).await.unwrap_err();
    assert_eq!((error.kind, error.sm), (DriverErrorKind::NoSpace, Some(127)), "{error}");
    // What needs no new place goes on.
    driver.snapshot(&[pair(first)]).await.unwrap();
}

/// A caller that is cancelled, unlike one that dies, leaves a reaper that runs.
#[tokio::test]
async fn a_cut_that_is_abandoned_is_reaped() {
    let fake = Fake::start().await;
    let driver = opened(&fake, Uuid::new_v4()).await;
    let disks = [Uuid::new_v4(), Uuid::new_v4()];
    for disk in disks {
        driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    }
    fake.trouble_at("POST", "/snapshots", Trouble::Stuck);
    let stuck = fake.state().stuck.clone();
    let group = disks.map(pair);
    tokio::select! {
        told = driver.snapshot(&group) => panic!("not stuck: {told:?}"),
        () = stuck.notified() => {}
    }
    assert_eq!(fake.state().collections["/snapshots"].len(), 1);
    while !fake.state().collections["/snapshots"].is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
