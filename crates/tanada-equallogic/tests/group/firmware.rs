//! Groups that can less, or speak differently.

use sim_equallogic::array::{Account, AccountKind, Settings};
use sim_target::faults::{Action, Rule};
use tanada_driver::registry::Backend;
use tanada_driver::{CloneRequest, CreateRequest, CutPair, Driver, DriverErrorKind};
use tanada_equallogic::EqualBackend;

use crate::world::{PAGE, World, config, id};

fn unknown(command: &str) -> Rule {
    Rule::always(command, Action::FailBefore("Bad command".into()))
}

#[tokio::test]
async fn without_collections_a_group_of_disks_is_refused_and_nothing_done() {
    let world = World::new().await;
    world.sim.faults().add(unknown("volume collection"));
    let driver = world.reopened().await;
    assert!(!driver.capabilities().group_snapshot);
    let pairs = [1, 2].map(|number| CutPair { volume: id(number), generation: id(number + 2) });
    for pair in &pairs {
        driver.create(&CreateRequest::new(pair.volume, PAGE)).await.unwrap();
    }
    let before = world.inventory();
    assert_eq!(driver.snapshot(&pairs).await.unwrap_err().kind, DriverErrorKind::NotAtomic);
    assert_eq!(world.inventory(), before);
    for pair in &pairs {
        assert!(driver.snapshot(&[*pair]).await.unwrap().moved.changed, "one by one it can");
    }
    driver.settle().await.unwrap();
}

#[tokio::test]
async fn without_templates_instances_are_copies() {
    let world = World::new().await;
    world.sim.faults().add(unknown("convert-to"));
    let disk = world.create(1, PAGE).await;
    world.write(disk, 0, 7).await;
    let generation = world.cut(disk, 2).await;
    let moved = world.driver.clone_volume(&CloneRequest::new(generation, id(3))).await.unwrap();
    assert!(moved.changed && moved.bytes_by_host == 0);
    assert_eq!(world.read(id(3), 0).await, 7);
    assert!(!world.inventory().iter().any(|name| name.contains("-t")), "{:?}", world.inventory());
}

#[tokio::test]
async fn settings_that_are_not_known_are_done_without() {
    let world = World::new().await;
    for setting in ["reprintBadInput", "idlelogout", "displayinMB"] {
        world.sim.faults().add(unknown(setting));
    }
    world.sim.faults().drain_calls();
    let driver = world.reopened().await;
    let calls = world.sim.faults().drain_calls();
    for setting in ["reprintBadInput", "idlelogout", "displayinMB"] {
        assert!(calls.iter().any(|call| call.contains(setting)), "{setting} in {calls:?}");
    }
    driver.create(&CreateRequest::new(id(1), 3 * PAGE)).await.unwrap();
    assert_eq!(driver.stat(id(1)).await.unwrap().size, 3 * PAGE);
}

#[tokio::test]
async fn another_script_with_the_same_account_does_no_harm() {
    let world = World::new().await;
    let disk = world.create(1, 1 << 30).await;
    world.sim.with_array(|array| {
        // Paging, events, questions, rounded sizes, two columns: all back as they come from the factory.
        array.group.accounts.get_mut("grpadmin").unwrap().settings = Settings::default();
    });
    let driver = world.reopened().await;
    world.sim.with_array(|array| array.group.accounts.get_mut("grpadmin").unwrap().settings.events = true);
    for number in 2..6 {
        driver.create(&CreateRequest::new(id(number), PAGE)).await.unwrap();
    }
    assert_eq!(driver.stat(disk).await.unwrap().size, 69 * PAGE);
    assert_eq!(driver.scan().await.unwrap().len(), 5);
    for number in 2..6 {
        assert!(driver.destroy(id(number)).await.unwrap().changed);
    }
}

#[tokio::test]
async fn old_algorithms_are_spoken_only_when_allowed() {
    let allowed = [("sshalgorithms", "diffie-hellman-group14-sha1,aes128-cbc,aes256-cbc,hmac-sha1")];
    let world = World::on(|options| options.legacy_ssh = true, &allowed).await;
    world.create(1, PAGE).await;
    let backend = EqualBackend::new(world.bridges.clone());
    let failure = backend.probe(&config(&world.sim, &[]).device_config).await.unwrap_err();
    assert_eq!(failure.sm, Some(164), "{failure}");
    assert!(failure.message.contains("sshalgorithms"), "{failure}");
    let failure = backend.probe(&config(&world.sim, &[("sshalgorithms", "rot13")]).device_config).await.unwrap_err();
    assert!(failure.message.contains("rot13"), "{failure}");
}

#[tokio::test]
async fn an_account_that_may_only_look_is_told_so() {
    let world = World::new().await;
    world.sim.with_array(|array| {
        let account = Account { password: "looker".into(), kind: AccountKind::ReadOnly, settings: Settings::default() };
        array.group.accounts.insert("looker".into(), account);
    });
    let config = config(&world.sim, &[("username", "looker"), ("password", "looker")]);
    let found = world.backend.probe(&config.device_config).await.unwrap();
    assert_eq!(found.len(), 1);
    let driver = world.backend.open(&config).await.unwrap();
    let failure = driver.create(&CreateRequest::new(id(1), PAGE)).await.unwrap_err();
    assert_eq!(failure.sm, Some(169), "{failure}");
}
