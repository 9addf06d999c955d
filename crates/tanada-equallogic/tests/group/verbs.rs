//! What the verbs do to volumes and their content.

use sim_equallogic::array::volume::Kind;
use tanada_driver::{Alert, CloneRequest, CreateRequest, CutPair, Driver, DriverErrorKind};

use crate::world::{MB, PAGE, World, id};

#[tokio::test]
async fn volumes_have_the_size_that_is_told() {
    let world = World::new().await;
    let (size, moved) = world.driver.create(&CreateRequest::new(id(1), 1 << 30)).await.unwrap();
    assert_eq!((size, moved.changed), (69 * PAGE, true));
    assert_eq!(world.device_bytes(id(1)).await, size);
    let (size, moved) = world.driver.create(&CreateRequest::new(id(1), 1 << 30)).await.unwrap();
    assert_eq!((size, moved.changed), (69 * PAGE, false));
    let failure = world.driver.create(&CreateRequest::new(id(1), 2 << 30)).await.unwrap_err();
    assert_eq!(failure.kind, DriverErrorKind::Exists);

    let (size, moved) = world.driver.resize(id(1), (1 << 30) + 100 * MB).await.unwrap();
    assert_eq!((size, moved.changed), (75 * PAGE, true));
    assert_eq!(world.device_bytes(id(1)).await, size);
    assert!(!world.driver.resize(id(1), size).await.unwrap().1.changed);
    assert_eq!(world.driver.resize(id(1), PAGE).await.unwrap_err().kind, DriverErrorKind::Unsupported);
    assert_eq!(world.driver.stat(id(1)).await.unwrap().size, size);
    assert!(!world.inventory().iter().any(|name| name.starts_with("snapshot")), "no safety snapshot");

    assert!(world.driver.destroy(id(1)).await.unwrap().changed);
    assert!(!world.driver.destroy(id(1)).await.unwrap().changed);
    assert!(world.driver.scan().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_generation_keeps_what_was_there_and_a_revert_brings_it_back() {
    let world = World::new().await;
    let disk = world.create(1, 4 * PAGE).await;
    world.write(disk, 3, 1).await;
    let first = world.cut(disk, 2).await;
    world.write(disk, 3, 2).await;
    let second = world.cut(disk, 3).await;
    world.write(disk, 3, 3).await;
    assert_eq!((world.read(first, 3).await, world.read(second, 3).await, world.read(disk, 3).await), (1, 2, 3));
    let refused = world.attach("t", first, true).await.unwrap_err();
    assert_eq!(refused.kind, DriverErrorKind::InvalidArgument);

    let before = world.inventory();
    let moved = world.driver.revert(disk, first).await.unwrap();
    assert!(moved.changed && moved.bytes_by_host == 0);
    assert_eq!(world.inventory(), before, "no snapshot that nobody asked for");
    assert_eq!((world.read(disk, 3).await, world.read(second, 3).await), (1, 2));
    let entry = world.driver.scan().await.unwrap().into_iter().find(|entry| entry.id == disk).unwrap();
    assert_eq!(entry.parent, Some(first));

    let failure = world.driver.snapshot(&[CutPair { volume: first, generation: id(9) }]).await.unwrap_err();
    assert_eq!(failure.sm, Some(168));
    let again = world.driver.snapshot(&[CutPair { volume: disk, generation: first }]).await.unwrap();
    assert!(!again.moved.changed);
}

#[tokio::test]
async fn generations_outlive_their_disk_and_go_in_any_order() {
    let world = World::new().await;
    let before = world.inventory();
    let disk = world.create(1, 2 * PAGE).await;
    world.write(disk, 0, 1).await;
    let (first, second) = (world.cut(disk, 2).await, world.cut(disk, 3).await);
    assert!(world.driver.destroy(disk).await.unwrap().changed);
    let ids: Vec<_> = world.driver.scan().await.unwrap().into_iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [first, second]);
    assert_eq!(world.read(second, 0).await, 1);
    assert_eq!(world.driver.stat(disk).await.unwrap_err().kind, DriverErrorKind::NotFound);
    assert!(!world.driver.destroy(disk).await.unwrap().changed);
    assert!(world.driver.destroy(second).await.unwrap().changed);
    assert_eq!(world.read(first, 0).await, 1);
    assert!(world.driver.destroy(first).await.unwrap().changed);
    assert_eq!(world.inventory(), before);
}

#[tokio::test]
async fn the_first_instance_makes_a_template_and_the_last_one_takes_it_along() {
    let world = World::new().await;
    let before = world.inventory();
    let disk = world.create(1, 2 * PAGE).await;
    world.write(disk, 0, 7).await;
    let generation = world.cut(disk, 2).await;
    world.sim.measure();
    let clone = async |number| world.driver.clone_volume(&CloneRequest::new(generation, id(number))).await.unwrap();
    let first = clone(3).await;
    assert!(first.changed && first.bytes_by_host == 0 && first.bytes_by_storage > 0, "{first:?}");
    assert!(!clone(3).await.changed);
    let second = clone(4).await;
    assert_eq!((second.changed, second.bytes_by_host, second.bytes_by_storage), (true, 0, 0));
    let kinds = |wanted: fn(&Kind) -> bool| {
        world.sim.with_array(|array| array.group.volumes.values().filter(|one| wanted(&one.kind)).count())
    };
    assert_eq!(kinds(|kind| *kind == Kind::Template), 1);
    assert_eq!(kinds(|kind| matches!(kind, Kind::ThinClone(_))), 2);

    world.write(id(3), 0, 8).await;
    assert_eq!((world.read(id(4), 0).await, world.read(generation, 0).await, world.read(id(3), 0).await), (7, 7, 8));
    // A generation of an instance, and an instance of that.
    let child = world.cut(id(3), 5).await;
    world.driver.clone_volume(&CloneRequest::new(child, id(6))).await.unwrap();
    assert_eq!(world.read(id(6), 0).await, 8);

    for gone in [disk, generation, id(3), child, id(4)] {
        assert!(world.driver.destroy(gone).await.unwrap().changed, "{gone}");
    }
    assert_eq!(world.read(id(6), 0).await, 8);
    world.driver.destroy(id(6)).await.unwrap();
    assert_eq!(world.inventory(), before);
}

#[tokio::test]
async fn clones_of_disks_are_independent() {
    let world = World::with(&[("clones", "full")]).await;
    let disk = world.create(1, 2 * PAGE).await;
    world.write(disk, 0, 7).await;
    let generation = world.cut(disk, 2).await;
    world.sim.measure();
    for (source, number) in [(disk, 3), (generation, 4)] {
        let moved = world.driver.clone_volume(&CloneRequest::new(source, id(number))).await.unwrap();
        assert!(moved.bytes_by_host == 0 && moved.bytes_by_storage > 0, "{moved:?}");
    }
    assert!(!world.inventory().iter().any(|name| name.contains("-t")), "no template");
    world.driver.destroy(generation).await.unwrap();
    world.driver.destroy(disk).await.unwrap();
    assert_eq!((world.read(id(3), 0).await, world.read(id(4), 0).await), (7, 7));
    assert_eq!(
        world.driver.clone_volume(&CloneRequest::new(id(99), id(5))).await.unwrap_err().kind,
        DriverErrorKind::NotFound
    );
}

#[tokio::test]
async fn several_disks_are_cut_together_or_not_at_all() {
    let world = World::new().await;
    let disks = [world.create(1, PAGE).await, world.create(2, PAGE).await, world.create(3, PAGE).await];
    let pairs: Vec<CutPair> =
        disks.iter().zip(10..).map(|(volume, number)| CutPair { volume: *volume, generation: id(number) }).collect();
    assert!(world.driver.capabilities().group_snapshot);
    assert!(world.driver.snapshot(&pairs).await.unwrap().moved.changed);
    assert!(!world.driver.snapshot(&pairs).await.unwrap().moved.changed);
    assert!(!world.inventory().iter().any(|name| name.starts_with("collection")));
    assert_eq!(world.driver.scan().await.unwrap().len(), 6);

    let mut many = Vec::new();
    for number in 20..29 {
        many.push(CutPair { volume: world.create(number, PAGE).await, generation: id(number + 20) });
    }
    let before = world.inventory();
    let failure = world.driver.snapshot(&many).await.unwrap_err();
    assert_eq!(failure.kind, DriverErrorKind::NotAtomic);
    assert_eq!(world.inventory(), before);
}

#[tokio::test]
async fn the_reserve_grows_before_it_can_be_exhausted() {
    let world = World::new().await;
    let disk = world.create(1, 4 * PAGE).await;
    let mut generations = Vec::new();
    for round in 0..5 {
        for page in 0..4 {
            world.write(disk, page * 15, round).await;
        }
        world.sim.measure();
        generations.push(world.cut(disk, 100 + u128::from(round)).await);
    }
    for page in 0..4 {
        world.write(disk, page * 15, 99).await;
    }
    world.sim.measure();
    for (round, generation) in generations.iter().enumerate() {
        assert_eq!(usize::from(world.read(*generation, 0).await), round, "no generation is lost");
    }
    let reserve = || world.sim.with_array(|array| array.group.reserved("default").bytes());
    let full = reserve();
    for generation in generations {
        world.driver.destroy(generation).await.unwrap();
    }
    assert!(reserve() + 15 * PAGE <= full, "{} of {full} bytes are still set aside", reserve());
}

#[tokio::test]
async fn a_pool_without_room_for_the_reserve_refuses_the_snapshot() {
    let world = World::new().await;
    let disk = world.create(1, 8 * PAGE).await;
    for page in 0..8 {
        world.write(disk, page * 15, 1).await;
    }
    world.sim.measure();
    let kept = world.cut(disk, 2).await;
    for page in 0..8 {
        world.write(disk, page * 15, 2).await;
    }
    world.sim.measure();
    world.sim.with_array(|array| {
        let reserved = array.group.reserved("default");
        array.group.pools.get_mut("default").unwrap().capacity = reserved;
    });
    let before = world.inventory();
    let failure = world.driver.snapshot(&[CutPair { volume: disk, generation: id(3) }]).await.unwrap_err();
    assert_eq!((failure.kind, failure.sm), (DriverErrorKind::NoSpace, Some(167)), "{failure}");
    assert_eq!(world.inventory(), before);
    assert_eq!((world.read(kept, 0).await, world.read(disk, 0).await), (1, 2));
}

#[tokio::test]
async fn a_generation_that_goes_by_itself_is_reported() {
    let world = World::new().await;
    let disk = world.create(1, PAGE).await;
    let generation = world.cut(disk, 2).await;
    let mut alerts = world.driver.alerts();
    world.driver.scan().await.unwrap();
    world.driver.patrol().await.unwrap();
    assert!(alerts.try_recv().is_err());
    world.sim.with_array(|array| {
        for volume in array.group.volumes.values_mut() {
            volume.snapshots.clear();
        }
    });
    world.driver.patrol().await.unwrap();
    let Ok(Alert::Damage { volume, message, .. }) = alerts.try_recv() else { panic!("an alert") };
    assert!(volume == generation && message.contains("gone"), "{message}");
}
