//! Making, finding, opening and erasing SRs.

use sim_equallogic::{Options, start};
use tanada_driver::bridge::Bridges;
use tanada_driver::registry::Backend;
use tanada_driver::{CloneRequest, Driver, DriverErrorKind};
use tanada_equallogic::EqualBackend;

use crate::world::{PAGE, World, config, id, inventory};

#[tokio::test]
async fn without_a_pool_the_choices_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path().join("group"));
    options.pools.push((String::from("fast"), 30_000));
    let sim = start(options).unwrap();
    let backend = EqualBackend::new(Bridges::new(dir.path().join("bridges")));
    let failure = backend.create(&config(&sim, &[("storagepool", "")])).await.unwrap_err();
    assert_eq!((failure.kind, failure.sm), (DriverErrorKind::InvalidArgument, Some(163)));
    let xml = failure.detail.unwrap();
    assert!(xml.contains("<Name>default</Name>") && xml.contains("<Name>fast</Name>"), "{xml}");
    let failure = backend.create(&config(&sim, &[("storagepool", "slow")])).await.unwrap_err();
    assert_eq!(failure.sm, Some(172));
    assert!(inventory(&sim).is_empty());
}

#[tokio::test]
async fn wrong_keys_accounts_and_places_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let sim = start(Options::new(dir.path().join("group"))).unwrap();
    let backend = EqualBackend::new(Bridges::new(dir.path().join("bridges")));
    let other = format!("SHA256:{}", "A".repeat(43));
    let failure = backend.create(&config(&sim, &[("hostkey", &other)])).await.unwrap_err();
    assert_eq!(failure.sm, Some(164));
    assert!(failure.message.contains(sim.fingerprint()), "{failure}");
    let nowhere = dir.path().join("known_hosts");
    let keys = [("hostkey", ""), ("knownhosts", nowhere.to_str().unwrap())];
    let failure = backend.create(&config(&sim, &keys)).await.unwrap_err();
    assert!(failure.message.contains("none for it in"), "{failure}");
    let failure = backend.create(&config(&sim, &[("password", "hush-hush")])).await.unwrap_err();
    assert_eq!(failure.sm, Some(164));
    assert!(!format!("{failure:?}").contains("hush-hush"));
    let failure = backend.open(&config(&sim, &[])).await.err().unwrap();
    assert_eq!(failure.kind, DriverErrorKind::NotFound);
    assert!(inventory(&sim).is_empty());
}

#[tokio::test]
async fn an_sr_is_found_again_and_erased_without_a_trace() {
    let world = World::new().await;
    world.sim.with_array(|array| array.create_chap_user("somebody", "somebodys-secret".into())).unwrap();
    let found = world.backend.probe(&world.config.device_config).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].sr, found[0].name_label.as_str()), (world.config.sr, "array one"));

    let disk = world.create(1, PAGE).await;
    let generation = world.cut(disk, 2).await;
    world.driver.clone_volume(&CloneRequest::new(generation, id(3))).await.unwrap();
    world.attach("left-attached", disk, true).await.unwrap();
    world.driver.put_metadata(b"names").await.unwrap();

    let again = world.reopened().await;
    assert_eq!(again.metadata().await.unwrap().as_deref(), Some(&b"names"[..]));
    let mut ids: Vec<_> = again.scan().await.unwrap().into_iter().map(|entry| entry.id).collect();
    ids.sort();
    assert_eq!(ids, [disk, generation, id(3)]);
    assert_eq!(again.attachments().await.unwrap(), ["left-attached"]);
    drop(again);

    world.backend.erase(&world.config).await.unwrap();
    assert_eq!(world.inventory().into_iter().collect::<Vec<_>>(), ["account somebody"]);
    assert!(world.backend.probe(&world.config.device_config).await.unwrap().is_empty());
    world.backend.erase(&world.config).await.unwrap();
}

#[tokio::test]
async fn metadata_is_replaced_and_missing_metadata_is_none() {
    let world = World::new().await;
    assert_eq!(world.driver.metadata().await.unwrap(), None);
    world.driver.put_metadata(b"first").await.unwrap();
    let long = vec![7; 3 << 20];
    world.driver.put_metadata(&long).await.unwrap();
    assert_eq!(world.driver.metadata().await.unwrap().as_deref(), Some(long.as_slice()));
    assert!(world.driver.attachments().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_generation_that_somebody_renamed_is_left_alone() {
    let world = World::new().await;
    let disk = world.create(1, PAGE).await;
    world.cut(disk, 2).await;
    world.sim.with_array(|array| {
        for volume in array.group.volumes.values_mut() {
            volume.snapshots.iter_mut().for_each(|snapshot| snapshot.name = String::from("before-the-upgrade"));
        }
    });
    let before = world.inventory();
    let again = world.reopened().await;
    again.settle().await.unwrap();
    assert!(!again.destroy(id(2)).await.unwrap().changed);
    assert_eq!(world.inventory(), before);
}
