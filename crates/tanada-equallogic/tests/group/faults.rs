//! Each command of each verb fails once: before it took effect and after, with an error, with the session's end, in the
//! middle of its answer. Then the verb is either repeated or given up and its work destroyed. In the end the group holds
//! what it held before, by name.

use std::future::Future;
use std::sync::Arc;

use sim_target::faults::{Action, Rule};
use tanada_driver::{CloneRequest, CreateRequest, CutPair, Driver, DriverErrorKind, DriverResult};
use uuid::Uuid;

use crate::world::{PAGE, VM, World, id};

/// What a verb works on; ids are new for each injection.
#[derive(Clone, Copy)]
struct Ids {
    disk: Uuid,
    other: Uuid,
    third: Uuid,
    /// Of the first two.
    generation: Uuid,
    others: Uuid,
}

impl Ids {
    fn new(round: u128) -> Ids {
        let id = |number| id(1000 + round * 10 + number);
        Ids { disk: id(0), other: id(1), third: id(2), generation: id(3), others: id(4) }
    }

    fn all(&self) -> [Uuid; 5] {
        [self.other, self.third, self.generation, self.others, self.disk]
    }

    fn token(&self) -> String {
        self.other.simple().to_string()
    }
}

fn actions() -> [Action; 5] {
    [
        Action::FailBefore("Internal error.".into()),
        Action::FailAfter("Internal error.".into()),
        Action::DropBefore,
        Action::DropAfter,
        Action::Other("cut-midway".into()),
    ]
}

/// Runs `verb` with a fault at each of its commands; answers the number of injections.
async fn inject<S, V>(name: &str, setup: impl Fn(Arc<World>, Ids) -> S, verb: impl Fn(Arc<World>, Ids) -> V) -> usize
where
    S: Future<Output = DriverResult<()>>,
    V: Future<Output = DriverResult<()>>,
{
    let world = Arc::new(World::new().await);
    let mut round = 0;
    let mut injections = 0;
    let commands = {
        let ids = Ids::new(round);
        setup(world.clone(), ids).await.unwrap();
        world.sim.faults().drain_calls();
        verb(world.clone(), ids).await.unwrap();
        let commands = world.sim.faults().drain_calls();
        clean(&world, ids).await;
        commands
    };
    let before = world.inventory();
    for (at, command) in commands.iter().enumerate() {
        for action in actions() {
            for repeats in [true, false] {
                round += 1;
                let ids = Ids::new(round);
                let what = format!("{name}: {action:?} at {at} {command:?}, repeats: {repeats}");
                setup(world.clone(), ids).await.unwrap_or_else(|failure| panic!("{what}: {failure}"));
                world.sim.faults().add(Rule::nth("", at as u64, action.clone()));
                let first = verb(world.clone(), ids).await;
                world.sim.faults().clear();
                if let Err(failure) = &first
                    && repeats
                {
                    let again = verb(world.clone(), ids).await;
                    assert!(again.is_ok(), "{what}: {failure}; again: {again:?}");
                }
                clean(&world, ids).await;
                assert_eq!(world.inventory(), before, "{what}: {first:?}");
                injections += 1;
            }
        }
    }
    println!("{name}: {injections} injections at {} commands", commands.len());
    injections
}

/// What a caller does that gives up: ends everything that may have been made, in an order that is always allowed.
async fn clean(world: &World, ids: Ids) {
    world.driver.detach(&ids.token()).await.unwrap();
    for target in ids.all() {
        world.driver.destroy(target).await.unwrap();
    }
}

async fn with_disk(world: Arc<World>, ids: Ids) -> DriverResult<()> {
    world.driver.create(&CreateRequest::new(ids.disk, PAGE)).await.map(|_| ())
}

async fn cut(world: Arc<World>, ids: Ids) -> DriverResult<()> {
    let pair = CutPair { volume: ids.disk, generation: ids.generation };
    world.driver.snapshot(&[pair]).await.map(|_| ())
}

async fn with_generation(world: Arc<World>, ids: Ids) -> DriverResult<()> {
    with_disk(world.clone(), ids).await?;
    cut(world, ids).await
}

async fn clone(world: Arc<World>, source: Uuid, volume: Uuid) -> DriverResult<()> {
    world.driver.clone_volume(&CloneRequest::new(source, volume)).await?;
    let found = world.driver.stat(volume).await?;
    assert_eq!((found.size, found.parent), (PAGE, Some(source)));
    Ok(())
}

#[tokio::test]
async fn volumes_are_made_and_ended_cleanly() {
    let create = inject("create", async |_: Arc<World>, _: Ids| Ok(()), with_disk).await;
    let resize = inject("resize", with_disk, async |world: Arc<World>, ids: Ids| {
        let (size, _) = world.driver.resize(ids.disk, 3 * PAGE).await?;
        assert_eq!(size, 3 * PAGE);
        Ok(())
    });
    let destroy = inject("destroy", with_disk, async |world: Arc<World>, ids: Ids| {
        world.driver.destroy(ids.disk).await.map(|_| ())
    });
    let husk = inject("destroy, generations kept", with_generation, async |world: Arc<World>, ids: Ids| {
        world.driver.destroy(ids.disk).await?;
        assert!(world.driver.stat(ids.generation).await?.is_generation);
        Ok(())
    });
    assert!(create + resize.await + destroy.await + husk.await > 100);
}

#[tokio::test]
async fn generations_are_made_and_ended_cleanly() {
    inject("snapshot", with_disk, cut).await;
    inject("destroy a generation", with_generation, async |world: Arc<World>, ids: Ids| {
        world.driver.destroy(ids.generation).await.map(|_| ())
    })
    .await;
    let without_disk = async |world: Arc<World>, ids: Ids| {
        with_generation(world.clone(), ids).await?;
        world.driver.destroy(ids.disk).await.map(|_| ())
    };
    inject("destroy the last generation", without_disk, async |world: Arc<World>, ids: Ids| {
        world.driver.destroy(ids.generation).await.map(|_| ())
    })
    .await;
}

#[tokio::test]
async fn reverts_leave_nothing_and_keep_the_generation() {
    inject("revert", with_generation, async |world: Arc<World>, ids: Ids| {
        world.driver.revert(ids.disk, ids.generation).await?;
        assert!(world.driver.stat(ids.generation).await?.is_generation);
        assert_eq!(world.driver.stat(ids.disk).await?.parent, Some(ids.generation));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn groups_are_cut_whole_or_not_at_all() {
    let two = async |world: Arc<World>, ids: Ids| {
        for volume in [ids.disk, ids.other] {
            world.driver.create(&CreateRequest::new(volume, PAGE)).await?;
        }
        Ok(())
    };
    inject("snapshot of a group", two, async |world: Arc<World>, ids: Ids| {
        let pairs = [(ids.disk, ids.generation), (ids.other, ids.others)];
        let pairs = pairs.map(|(volume, generation)| CutPair { volume, generation });
        world.driver.snapshot(&pairs).await?;
        for pair in &pairs {
            assert!(world.driver.stat(pair.generation).await?.is_generation);
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn clones_and_their_templates_are_made_and_ended_cleanly() {
    inject("clone a disk", with_disk, async |world: Arc<World>, ids: Ids| clone(world, ids.disk, ids.other).await)
        .await;
    let first = async |world: Arc<World>, ids: Ids| clone(world, ids.generation, ids.other).await;
    inject("first instance", with_generation, first).await;
    let with_instance = async |world: Arc<World>, ids: Ids| {
        with_generation(world.clone(), ids).await?;
        clone(world, ids.generation, ids.other).await
    };
    inject("second instance", with_instance, async |world: Arc<World>, ids: Ids| {
        clone(world, ids.generation, ids.third).await
    })
    .await;
    inject("destroy the last instance", with_instance, async |world: Arc<World>, ids: Ids| {
        world.driver.destroy(ids.other).await.map(|_| ())
    })
    .await;
}

#[tokio::test]
async fn attachments_are_made_and_ended_cleanly() {
    let attach = async |world: Arc<World>, ids: Ids| world.attach(&ids.token(), ids.disk, true).await.map(|_| ());
    inject("attach", with_disk, attach).await;
    inject("attach a generation", with_generation, async |world: Arc<World>, ids: Ids| {
        world.attach(&ids.token(), ids.generation, false).await.map(|_| ())
    })
    .await;
    let attached = async |world: Arc<World>, ids: Ids| {
        with_disk(world.clone(), ids).await?;
        attach(world, ids).await
    };
    inject("detach", attached, async |world: Arc<World>, ids: Ids| world.driver.detach(&ids.token()).await.map(|_| ()))
        .await;
}

#[tokio::test]
async fn a_group_that_is_away_for_a_moment_is_waited_for() {
    let world = World::new().await;
    world.sim.faults().add(Rule { times: Some(3), ..Rule::always("session", Action::Other("full".into())) });
    let again = world.reopened().await;
    again.create(&CreateRequest::new(id(1), PAGE)).await.unwrap();
    world.sim.faults().add(Rule::always("volume select", Action::DropBefore));
    let failure = again.create(&CreateRequest::new(id(2), PAGE)).await.unwrap_err();
    assert_eq!((failure.kind, failure.sm), (DriverErrorKind::Unreachable, Some(176)));
    world.sim.faults().clear();
    world.sim.faults().add(Rule::once("volume create", Action::Other("event-storm".into())));
    again.create(&CreateRequest::new(id(2), PAGE)).await.unwrap();
    assert!(world.sim.sessions() <= 4, "two for each driver: {}", world.sim.sessions());
    world.attach_as(VM, "t", id(2), true).await.unwrap();
    world.driver.detach("t").await.unwrap();
}
