//! Exact clean-up: every request of every verb goes wrong once, in every way, before and after its effect. After each, the
//! verb is repeated until it succeeds, or what it makes is deleted, and the array must hold exactly what it should.
//!
//! The count of injection points is asserted from below, so that a change that stops injecting is seen.

use std::sync::Arc;

use tanada_driver::registry::Backend;
use tanada_driver::{CloneRequest, CreateRequest, CutPair, Driver, DriverResult};
use uuid::Uuid;

use crate::fake::{Fake, State, Trouble};
use crate::verbs::request;

const MIB: u64 = 1 << 20;
const VM: &str = "iqn.2026-01.org.tanada:vm-1";
const WAYS: [Trouble; 5] =
    [Trouble::RefusedBefore, Trouble::RefusedAfter, Trouble::LostAfter, Trouble::DeadBefore, Trouble::DeadAfter];
/// No verb sends as many requests.
const REQUESTS_MAX: u64 = 200;

/// What a verb works on; the array is put back to it for each injection point.
struct Scene {
    fake: Fake,
    sr: Uuid,
    driver: Arc<dyn Driver>,
    disks: [Uuid; 2],
    /// A snapshot of the first disk, of another content.
    kept: Uuid,
    /// What the verb makes.
    made: [Uuid; 2],
}

impl Scene {
    async fn set() -> Scene {
        let fake = Fake::start().await;
        // What a busy array does is a part of every scene.
        fake.state().snapshot_busy_for = 1;
        fake.state().clones_forget_thin = true;
        let sr = Uuid::new_v4();
        fake.backend().create(&fake.config(sr)).await.unwrap();
        let driver = fake.backend().open(&fake.config(sr)).await.unwrap();
        let disks = [Uuid::new_v4(), Uuid::new_v4()];
        for disk in disks {
            driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
        }
        fake.write(disks[0], 1);
        let kept = Uuid::new_v4();
        driver.snapshot(&[CutPair { volume: disks[0], generation: kept }]).await.unwrap();
        fake.write(disks[0], 2);
        fake.write(disks[1], 3);
        Scene { fake, sr, driver, disks, kept, made: [Uuid::new_v4(), Uuid::new_v4()] }
    }

    /// After the trouble: the process that died has been started again.
    async fn restart(&mut self) {
        self.fake.recover();
        self.driver = self.fake.backend().open(&self.fake.config(self.sr)).await.unwrap();
    }

    fn pairs(&self) -> [CutPair; 2] {
        [0, 1].map(|at| CutPair { volume: self.disks[at], generation: self.made[at] })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verb {
    Create,
    Clone,
    Snapshot,
    GroupSnapshot,
    /// The disks lie in different FlexVols.
    SpreadSnapshot,
    Revert,
    Resize,
    Attach,
    Detach,
    Destroy,
    MakeSr,
    EraseSr,
}

const VERBS: [Verb; 12] = [
    Verb::Create,
    Verb::Clone,
    Verb::Snapshot,
    Verb::GroupSnapshot,
    Verb::SpreadSnapshot,
    Verb::Revert,
    Verb::Resize,
    Verb::Attach,
    Verb::Detach,
    Verb::Destroy,
    Verb::MakeSr,
    Verb::EraseSr,
];

/// Where something goes wrong, how, and what the caller does then.
#[derive(Debug, Clone, Copy)]
struct Point {
    verb: Verb,
    nth: u64,
    way: Trouble,
    repeat: bool,
}

impl Verb {
    async fn prepare(self, scene: &Scene) {
        match self {
            Verb::Detach => drop(scene.driver.attach(&request("t", scene.disks[0], true, VM)).await.unwrap()),
            Verb::Destroy => drop(scene.driver.create(&CreateRequest::new(scene.made[0], MIB)).await.unwrap()),
            Verb::SpreadSnapshot => scene.fake.move_to_second_flexvol(scene.sr, scene.disks[1]),
            Verb::EraseSr => {
                let config = scene.fake.config(scene.made[0]);
                scene.fake.backend().create(&config).await.unwrap();
                let other = scene.fake.backend().open(&config).await.unwrap();
                other.create(&CreateRequest::new(scene.made[1], MIB)).await.unwrap();
            }
            _ => {}
        }
    }

    async fn run(self, scene: &Scene) -> DriverResult<()> {
        let driver = &scene.driver;
        match self {
            Verb::Create => driver.create(&CreateRequest::new(scene.made[0], MIB)).await.map(drop),
            Verb::Clone => driver.clone_volume(&CloneRequest::new(scene.disks[0], scene.made[0])).await.map(drop),
            Verb::Snapshot => driver.snapshot(&scene.pairs()[..1]).await.map(drop),
            Verb::GroupSnapshot | Verb::SpreadSnapshot => driver.snapshot(&scene.pairs()).await.map(drop),
            Verb::Revert => driver.revert(scene.disks[0], scene.kept).await.map(drop),
            Verb::Resize => driver.resize(scene.disks[0], 2 * MIB).await.map(drop),
            Verb::Attach => driver.attach(&request("t", scene.disks[0], true, VM)).await.map(drop),
            Verb::Detach => driver.detach("t").await.map(drop),
            Verb::Destroy => driver.destroy(scene.made[0]).await.map(drop),
            Verb::MakeSr => scene.fake.backend().create(&scene.fake.config(scene.made[0])).await,
            Verb::EraseSr => scene.fake.backend().erase(&scene.fake.config(scene.made[0])).await,
        }
    }

    /// What a caller does that gives up.
    async fn undo(self, scene: &Scene) {
        match self {
            Verb::Create | Verb::Clone | Verb::Snapshot | Verb::GroupSnapshot | Verb::SpreadSnapshot => {
                for id in scene.made {
                    scene.driver.destroy(id).await.unwrap();
                }
            }
            Verb::Attach => drop(scene.driver.detach("t").await.unwrap()),
            // These have no way back: they are repeated.
            Verb::Revert | Verb::Resize | Verb::Detach | Verb::Destroy | Verb::EraseSr => {
                self.run(scene).await.unwrap();
            }
            Verb::MakeSr => scene.fake.backend().erase(&scene.fake.config(scene.made[0])).await.unwrap(),
        }
    }

    /// Contents that the disks have when the verb is done.
    fn check(self, scene: &Scene, place: &Point) {
        let content = |id| scene.fake.content(id);
        let expected = match self {
            Verb::Revert => Some(1),
            _ => Some(2),
        };
        assert_eq!(content(scene.disks[0]), expected, "{place:?}");
        assert_eq!(content(scene.disks[1]), Some(3), "{place:?}");
        assert_eq!(content(scene.kept), Some(1), "{place:?}");
        match self {
            Verb::Create => assert_eq!(content(scene.made[0]), Some(0), "{place:?}"),
            Verb::Clone | Verb::Snapshot => assert_eq!(content(scene.made[0]), Some(2), "{place:?}"),
            Verb::GroupSnapshot | Verb::SpreadSnapshot => {
                assert_eq!(scene.made.map(content), [Some(2), Some(3)], "{place:?}")
            }
            _ => {}
        }
    }
}

/// The array as it should be, after the verb and after its undoing.
async fn expectations(scene: &Scene, before: &State, verb: Verb) -> (Vec<String>, Vec<String>) {
    let mut all = Vec::new();
    for undone in [false, true] {
        *scene.fake.state() = before.clone();
        verb.run(scene).await.unwrap();
        if undone {
            verb.undo(scene).await;
        }
        scene.driver.settle().await.unwrap();
        all.push(scene.fake.objects());
    }
    let undone = all.pop().unwrap();
    (all.pop().unwrap(), undone)
}

/// One injection point: request `nth` of `verb` goes wrong in `way`; then the verb is repeated, or undone. False where
/// the verb has no such request.
async fn inject(scene: &mut Scene, point: &Point, expected: &(Vec<String>, Vec<String>)) -> bool {
    let Point { verb, nth, way, repeat } = *point;
    scene.fake.trouble(nth, way);
    let told = verb.run(scene).await;
    let dead = matches!(way, Trouble::DeadBefore | Trouble::DeadAfter);
    if scene.fake.recover() {
        assert_eq!(told, Ok(()), "{point:?}");
        return false;
    }
    if dead {
        scene.restart().await;
    }
    if repeat {
        if let Err(error) = verb.run(scene).await {
            panic!("{point:?}: repeated, it failed: {error}");
        }
        verb.check(scene, point);
    } else {
        verb.undo(scene).await;
    }
    scene.driver.settle().await.unwrap();
    let wanted = if repeat { &expected.0 } else { &expected.1 };
    assert_eq!(&scene.fake.objects(), wanted, "{point:?}");
    true
}

async fn all_points(verb: Verb) -> u64 {
    let mut scene = Scene::set().await;
    verb.prepare(&scene).await;
    let before = scene.fake.state().clone();
    let expected = expectations(&scene, &before, verb).await;
    let mut points = 0;
    for way in WAYS {
        for repeat in [true, false] {
            for nth in 1..REQUESTS_MAX {
                *scene.fake.state() = before.clone();
                if !inject(&mut scene, &Point { verb, nth, way, repeat }, &expected).await {
                    break;
                }
                points += 1;
            }
        }
    }
    points
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_nothing_is_left_over() {
    let verbs = VERBS.map(|verb| (verb, tokio::spawn(all_points(verb))));
    let mut total = 0;
    for (verb, points) in verbs {
        let points = points.await.unwrap_or_else(|error| panic!("{verb:?}: {error}"));
        println!("{verb:?}: {points} injection points");
        assert!(points >= 10, "{verb:?} has {points} injection points only");
        total += points;
    }
    println!("{total} injection points");
    assert!(total >= 1000, "{total} injection points only");
}
