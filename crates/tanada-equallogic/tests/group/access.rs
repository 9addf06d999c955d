//! Who gets in.

use tanada_driver::{Chap, Driver, DriverErrorKind, Endpoint, Secret};

use crate::world::{OTHER_VM, PAGE, VM, World};

#[tokio::test]
async fn only_the_one_with_the_record_and_the_secret_gets_in() {
    let world = World::new().await;
    let disk = world.create(1, PAGE).await;
    let endpoint = world.attach("tok-1", disk, true).await.unwrap();
    let Endpoint::Iscsi { portals, iqn, lun, initiator, chap } = endpoint.clone() else { panic!("iSCSI") };
    assert_eq!((portals, lun, initiator.as_str()), (vec![world.sim.portal().to_string()], 0, VM));
    let secret = chap.as_ref().unwrap().secret.expose().to_string();
    assert_eq!(secret.len(), 16);
    world.bridges.open(&endpoint, true).await.unwrap().close().await;
    assert_eq!(world.attach("tok-1", disk, true).await.unwrap(), endpoint, "the same answer again");

    let with = |initiator: &str, chap: Option<Chap>| Endpoint::Iscsi {
        portals: vec![world.sim.portal().to_string()],
        iqn: iqn.clone(),
        lun,
        initiator: initiator.into(),
        chap,
    };
    let wrong = chap.clone().map(|chap| Chap { secret: Secret::new("wrong-wrong-wron"), ..chap });
    for refused in [with(OTHER_VM, chap.clone()), with(VM, None), with(VM, wrong)] {
        assert!(world.bridges.open(&refused, true).await.is_err(), "{refused:?}");
    }
    assert!(world.driver.detach("tok-1").await.unwrap().changed);
    assert!(!world.driver.detach("tok-1").await.unwrap().changed);
    assert!(world.bridges.open(&endpoint, true).await.is_err());
}

#[tokio::test]
async fn detaching_removes_exactly_our_record() {
    let world = World::new().await;
    let disk = world.create(1, PAGE).await;
    let foreign = sim_equallogic::array::volume::AccessRecord {
        initiator: Some("iqn.1993-08.org.debian:01:backup".into()),
        ..sim_equallogic::array::volume::AccessRecord::unrestricted()
    };
    let name = world.sim.with_array(|array| {
        let name = array.group.volumes.keys().find(|name| !name.ends_with("management")).unwrap().clone();
        array.create_access(&name, foreign).unwrap();
        name
    });
    let before = world.inventory();
    world.attach_as(VM, "tok-1", disk, true).await.unwrap();
    world.attach_as(OTHER_VM, "tok-2", disk, true).await.unwrap();
    let mut tokens = world.driver.attachments().await.unwrap();
    tokens.sort();
    assert_eq!(tokens, ["tok-1", "tok-2"]);
    assert_eq!(world.driver.destroy(disk).await.unwrap_err().kind, DriverErrorKind::Busy);
    let is_online = || world.sim.with_array(|array| array.group.volumes[&name].is_online());
    // A process that knows nothing of the attachments ends them.
    let again = world.reopened().await;
    assert!(again.detach("tok-1").await.unwrap().changed);
    assert!(is_online());
    assert_eq!(again.attachments().await.unwrap(), ["tok-2"]);
    assert!(again.detach("tok-2").await.unwrap().changed);
    assert_eq!(world.inventory(), before);
    assert!(is_online(), "somebody else may still log in");
}

#[tokio::test]
async fn a_volume_that_nobody_may_use_is_offline() {
    let world = World::new().await;
    let disk = world.create(1, PAGE).await;
    let generation = world.cut(disk, 2).await;
    let online = || {
        world.sim.with_array(|array| {
            let volumes = array.group.volumes.values();
            volumes.map(|one| (one.is_online(), one.snapshots.iter().any(|one| one.online))).collect::<Vec<_>>()
        })
    };
    assert!(online().iter().all(|state| *state == (false, false)), "{:?}", online());
    world.attach("a", disk, true).await.unwrap();
    world.attach_as(OTHER_VM, "b", generation, false).await.unwrap();
    assert!(online().contains(&(true, true)), "{:?}", online());
    assert_eq!(world.driver.destroy(generation).await.unwrap_err().kind, DriverErrorKind::Busy);
    world.driver.detach("b").await.unwrap();
    world.driver.detach("a").await.unwrap();
    assert!(online().iter().all(|state| *state == (false, false)), "{:?}", online());
}

#[tokio::test]
async fn generations_come_and_go_beside_a_disk_in_use() {
    let world = World::new().await;
    let disk = world.create(1, PAGE).await;
    let (first, second) = (world.cut(disk, 2).await, world.cut(disk, 3).await);
    world.attach("disk", disk, true).await.unwrap();
    world.attach_as(OTHER_VM, "one", first, false).await.unwrap();
    world.attach_as(OTHER_VM, "two", second, false).await.unwrap();
    assert_eq!(world.driver.revert(disk, first).await.unwrap_err().kind, DriverErrorKind::Busy);
    world.driver.detach("one").await.unwrap();
    assert!(world.driver.destroy(first).await.unwrap().changed);
    assert_eq!(world.driver.destroy(second).await.unwrap_err().kind, DriverErrorKind::Busy);
    // The disk goes while a generation of it is in use.
    world.driver.detach("disk").await.unwrap();
    assert!(world.driver.destroy(disk).await.unwrap().changed);
    let again = world.reopened().await;
    assert_eq!(again.destroy(second).await.unwrap_err().kind, DriverErrorKind::Busy);
    again.detach("two").await.unwrap();
    assert!(again.destroy(second).await.unwrap().changed);
    assert!(again.scan().await.unwrap().is_empty());
}

#[tokio::test]
async fn hostile_tokens_and_initiators_are_refused() {
    let world = World::new().await;
    let disk = world.create(1, PAGE).await;
    let before = world.inventory();
    for token in ["", "a b", "a\"\rvolume delete x", &"x".repeat(60)] {
        assert_eq!(world.attach(token, disk, true).await.unwrap_err().kind, DriverErrorKind::InvalidArgument);
    }
    for initiator in ["", "*", "iqn.2026-01.org.tanada:a username b", "tanada"] {
        let failure = world.attach_as(initiator, "t", disk, true).await.unwrap_err();
        assert_eq!(failure.kind, DriverErrorKind::InvalidArgument);
    }
    assert_eq!(world.inventory(), before);
}
