//! Every call of every verb goes wrong once at the simulated array, before and after its effect. Then the verb is
//! repeated, what it made is deleted, and the array must hold what it held before.

use std::sync::Arc;

use sim_target::faults::{Action, Rule};
use tanada_driver::{AttachRequest, CloneRequest, CreateRequest, CutPair, Driver, DriverResult};
use uuid::Uuid;

use crate::array::{Array, MIB};

/// 262 185 is "invalid value": nothing that the client takes for passing.
fn actions() -> [Action; 4] {
    [Action::FailBefore("262185".into()), Action::FailAfter("262185".into()), Action::DropBefore, Action::DropAfter]
}

const VM: &str = "iqn.2026-01.org.tanada:vm-7";
const CALLS_MAX: u64 = 100;

#[derive(Debug, Clone, Copy)]
enum Verb {
    Create,
    Clone,
    GroupSnapshot,
    Revert,
    Attach,
    Detach,
    Metadata,
}

const VERBS: [Verb; 7] =
    [Verb::Create, Verb::Clone, Verb::GroupSnapshot, Verb::Revert, Verb::Attach, Verb::Detach, Verb::Metadata];

struct Scene {
    driver: Arc<dyn Driver>,
    disks: [Uuid; 2],
    kept: Uuid,
}

impl Scene {
    async fn run(&self, verb: Verb, made: [Uuid; 2]) -> DriverResult<()> {
        let driver = &self.driver;
        let attach =
            AttachRequest { token: String::from("t"), target: self.disks[0], writable: true, initiator: VM.to_owned() };
        match verb {
            Verb::Create => driver.create(&CreateRequest::new(made[0], MIB)).await.map(drop),
            Verb::Clone => driver.clone_volume(&CloneRequest::new(self.kept, made[0])).await.map(drop),
            Verb::GroupSnapshot => {
                let group = [0, 1].map(|at| CutPair { volume: self.disks[at], generation: made[at] });
                driver.snapshot(&group).await.map(drop)
            }
            Verb::Revert => driver.revert(self.disks[1], self.kept).await.map(drop),
            Verb::Attach => driver.attach(&attach).await.map(drop),
            Verb::Detach => driver.detach("t").await.map(drop),
            Verb::Metadata => driver.put_metadata(b"kept").await,
        }
    }

    async fn undo(&self, made: [Uuid; 2]) {
        self.driver.detach("t").await.unwrap();
        for id in made {
            self.driver.destroy(id).await.unwrap();
        }
        self.driver.settle().await.unwrap();
    }
}

/// The number of injection points of one verb.
async fn points(array: &Array, scene: &Scene, verb: Verb) -> u64 {
    let mut points = 0;
    for action in actions() {
        for nth in 0..CALLS_MAX {
            let place = format!("{verb:?}, call {nth}, {action:?}");
            let made = [Uuid::new_v4(), Uuid::new_v4()];
            if matches!(verb, Verb::Detach) {
                scene.run(Verb::Attach, made).await.unwrap();
            }
            let before = array.sim.census();
            array.sim.faults().drain_calls();
            array.sim.faults().add(Rule::nth("", nth, action.clone()));
            let told = scene.run(verb, made).await;
            let reached = array.sim.faults().drain_calls().len() as u64 > nth;
            array.sim.faults().clear();
            if reached {
                points += 1;
                if let Err(error) = scene.run(verb, made).await {
                    panic!("{place}: repeated, it failed: {error}");
                }
            } else {
                assert_eq!(told, Ok(()), "{place}");
            }
            scene.undo(made).await;
            let mut wanted = before;
            if matches!(verb, Verb::Detach) {
                (wanted.maps, wanted.igroups, wanted.credentials) = (0, 0, 0);
            }
            assert_eq!(array.sim.census(), wanted, "{place}");
            assert_eq!(scene.driver.scan().await.unwrap().len(), 3, "{place}");
            if !reached {
                break;
            }
        }
    }
    points
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_at_the_array_nothing_is_left_over() {
    let array = Array::with(|options| options.job_ms = 1);
    let driver = array.made(Uuid::new_v4()).await;
    let disks = [Uuid::new_v4(), Uuid::new_v4()];
    for disk in disks {
        driver.create(&CreateRequest::new(disk, MIB)).await.unwrap();
    }
    let kept = Uuid::new_v4();
    driver.snapshot(&[CutPair { volume: disks[1], generation: kept }]).await.unwrap();
    driver.put_metadata(b"first").await.unwrap();
    let scene = Scene { driver, disks, kept };
    let mut total = 0;
    for verb in VERBS {
        let points = points(&array, &scene, verb).await;
        println!("{verb:?}: {points} injection points");
        assert!(points >= 8, "{verb:?} has {points} injection points only");
        total += points;
    }
    println!("{total} injection points");
    assert!(total >= 250, "{total} injection points only");
}
