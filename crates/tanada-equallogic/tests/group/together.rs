//! Several disks, several callers, and callers that die.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sim_target::faults::{Action, Rule};
use tanada_driver::{CloneRequest, CreateRequest, CutPair, Driver};
use tanada_nbd::client::Client;
use uuid::Uuid;

use crate::world::{PAGE, World, id};

const DISKS: usize = 3;

/// Writes 1, 2, 3 ... to the disks in turn, each after the last was acknowledged, until told to stop.
async fn write_in_turn(clients: Vec<Client>, stop: Arc<AtomicBool>) -> u64 {
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let at = usize::try_from(number).unwrap() % DISKS;
        clients[at].write_at(0, Bytes::from(number.to_le_bytes().repeat(64))).await.unwrap();
    }
    number
}

async fn number_in(world: &World, generation: Uuid) -> u64 {
    let token = generation.simple().to_string();
    let endpoint = world.attach(&token, generation, false).await.unwrap();
    let bridge = world.bridges.open(&endpoint, false).await.unwrap();
    let client = bridge.connect().await.unwrap();
    let bytes = client.read_at(0, 512).await.unwrap();
    drop(client);
    bridge.close().await;
    world.driver.detach(&token).await.unwrap();
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_written_are_cut_at_one_instant() {
    let world = World::new().await;
    let (mut bridges, mut clients, mut disks) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..DISKS {
        let disk = world.create(number as u128 + 1, PAGE).await;
        let endpoint = world.attach(&format!("disk-{number}"), disk, true).await.unwrap();
        let bridge = world.bridges.open(&endpoint, true).await.unwrap();
        clients.push(bridge.connect().await.unwrap());
        bridges.push(bridge);
        disks.push(disk);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_in_turn(clients, stop.clone()));
    let cut = |round: u128| -> Vec<CutPair> {
        let pair = |(at, volume): (usize, &Uuid)| CutPair { volume: *volume, generation: id(round * 10 + at as u128) };
        disks.iter().enumerate().map(pair).collect()
    };
    for round in 10..14 {
        world.driver.snapshot(&cut(round)).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    for bridge in bridges {
        bridge.close().await;
    }
    let mut before = 0;
    for round in 10..14 {
        let mut numbers = Vec::new();
        for pair in cut(round) {
            numbers.push(number_in(&world, pair.generation).await);
        }
        let last = *numbers.iter().max().unwrap();
        assert!(last > before && last <= written, "round {round}: {last} after {before}, of {written}");
        for (at, number) in numbers.iter().enumerate() {
            // The youngest number up to `last` that belongs on this disk.
            let expected = (0..DISKS as u64).map(|back| last.saturating_sub(back)).find(|one| *one % 3 == at as u64);
            assert_eq!(Some(*number), expected, "round {round}: {numbers:?}");
        }
        before = last;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_do_not_get_into_each_others_way() {
    let world = Arc::new(World::new().await);
    let before = world.inventory();
    let callers = (0..6u128).map(|caller| {
        let world = world.clone();
        tokio::spawn(async move {
            let id = |number| id(1 + caller * 10 + number);
            let driver = &world.driver;
            driver.create(&CreateRequest::new(id(0), PAGE)).await.unwrap();
            world.write(id(0), 0, caller as u8 + 1).await;
            driver.snapshot(&[CutPair { volume: id(0), generation: id(1) }]).await.unwrap();
            driver.clone_volume(&CloneRequest::new(id(1), id(2))).await.unwrap();
            driver.clone_volume(&CloneRequest::new(id(0), id(3))).await.unwrap();
            assert_eq!(world.read(id(2), 0).await, caller as u8 + 1);
            assert_eq!(driver.stat(id(3)).await.unwrap().parent, Some(id(0)));
            for gone in [id(0), id(1), id(2), id(3)] {
                assert!(driver.destroy(gone).await.unwrap().changed);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(world.inventory(), before);
    assert!(world.sim.sessions() <= 2, "{} sessions", world.sim.sessions());
}

/// The caller's process dies after each command of a verb; the next one, which knows nothing, ends what it left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_process_ends_what_a_dead_one_left() {
    let world = Arc::new(World::new().await);
    let before = world.inventory();
    let mut round: u128 = 0;
    for verb in ["group snapshot", "instance", "revert"] {
        for at in 0.. {
            round += 1;
            let base = round * 100;
            let number = move |number: u128| id(base + number);
            let (disk, other) = (number(0), number(1));
            world.driver.create(&CreateRequest::new(disk, PAGE)).await.unwrap();
            world.driver.create(&CreateRequest::new(other, PAGE)).await.unwrap();
            world.driver.snapshot(&[CutPair { volume: disk, generation: number(2) }]).await.unwrap();
            world.sim.faults().drain_calls();
            world.sim.faults().add(Rule::nth("", at, Action::Other("hang".into())));
            let (first, faults) = (world.clone(), world.sim.faults().clone());
            let pair = |volume, generation| CutPair { volume, generation };
            let dying = tokio::spawn(async move {
                match verb {
                    "group snapshot" => {
                        let pairs = [pair(disk, number(3)), pair(other, number(4))];
                        first.driver.snapshot(&pairs).await.map(|_| ())
                    }
                    "instance" => first.driver.clone_volume(&CloneRequest::new(number(2), number(5))).await.map(|_| ()),
                    _ => first.driver.revert(disk, number(2)).await.map(|_| ()),
                }
            });
            let mut seen = 0;
            while !dying.is_finished() && seen <= at {
                tokio::time::sleep(Duration::from_millis(1)).await;
                seen += faults.drain_calls().len() as u64;
            }
            let survived = dying.is_finished();
            dying.abort();
            let _ = dying.await;
            world.sim.faults().clear();
            // What the group was told last it does to the end, before anything else.
            let next = world.reopened().await;
            for target in [number(5), number(3), number(4), number(2), disk, other] {
                next.destroy(target).await.unwrap_or_else(|failure| panic!("{verb} at {at}: {failure}"));
            }
            next.settle().await.unwrap();
            assert_eq!(world.inventory(), before, "{verb} at {at}");
            if survived {
                assert!(at > 5, "{verb} has more than {at} commands");
                break;
            }
        }
    }
}
