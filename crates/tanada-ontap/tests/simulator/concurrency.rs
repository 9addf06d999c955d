//! Several callers at once.

use std::sync::Arc;

use tanada_driver::registry::Backend;
use tanada_driver::{AttachRequest, CloneRequest, CreateRequest, CutPair, Driver};
use uuid::Uuid;

use crate::array::{Array, MIB};

/// One machine's life: two disks, attached, cut, cloned, and gone.
async fn life(driver: Arc<dyn Driver>, machine: usize) {
    let first = Uuid::new_v4();
    driver.create(&CreateRequest::new(first, MIB)).await.unwrap();
    let second = Uuid::new_v4();
    driver.create(&CreateRequest { near: Some(first), ..CreateRequest::new(second, MIB) }).await.unwrap();
    // Two machines share an initiator name, as two disks of one machine do.
    let initiator = format!("iqn.2026-01.org.tanada:vm-{}", machine / 2);
    let mut tokens = Vec::new();
    for target in [first, second] {
        let token = Uuid::new_v4().simple().to_string();
        let request = AttachRequest { token: token.clone(), target, writable: true, initiator: initiator.clone() };
        driver.attach(&request).await.unwrap();
        tokens.push(token);
    }
    let group = [first, second].map(|volume| CutPair { volume, generation: Uuid::new_v4() });
    driver.snapshot(&group).await.unwrap();
    let copy = Uuid::new_v4();
    driver.clone_volume(&CloneRequest::new(group[0].generation, copy)).await.unwrap();
    for token in tokens {
        driver.detach(&token).await.unwrap();
    }
    for id in [first, copy, group[0].generation, second, group[1].generation] {
        assert!(driver.destroy(id).await.unwrap().changed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_machines_at_once_leave_nothing() {
    let array = Array::with(|options| options.split_ms = 20);
    let sr = Uuid::new_v4();
    let driver = array.made(sr).await;
    let before = array.sim.census();
    let machines: Vec<_> = (0..6).map(|machine| tokio::spawn(life(driver.clone(), machine))).collect();
    for machine in machines {
        machine.await.unwrap();
    }
    driver.settle().await.unwrap();
    assert_eq!(array.sim.census(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_verb_at_once_from_two_callers_ends_in_one_thing() {
    let array = Array::start();
    let sr = Uuid::new_v4();
    let (one, two) = (array.made(sr).await, array.open(sr).await);
    let request = CreateRequest::new(Uuid::new_v4(), MIB);
    let (a, b) = tokio::join!(one.create(&request), two.create(&request));
    assert_eq!((a.unwrap().0, b.unwrap().0), (MIB, MIB));
    assert_eq!(array.sim.census().luns, 1);
    drop((one, two));
    array.backend().erase(&array.config(sr)).await.unwrap();
    assert_eq!(array.sim.census().volumes, 0);
}
