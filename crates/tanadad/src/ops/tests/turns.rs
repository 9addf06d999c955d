//! Cuts of one machine that are asked for together, and what may not come between.

use tanada_xapi::{Ref, Value};

use super::World;
use crate::context::CallContext;
use crate::ops::allowed;
use crate::ops::machine::turn::turn;

/// Waits until an operation on the machine is marked.
async fn until_begun(world: &World, vm: &Ref) {
    let mut changed = world.test.daemon.db.changed();
    while world.get("VM", vm).map("current_operations").is_empty() {
        changed.changed().await.unwrap();
    }
}

/// What a call that has to wait comes to, with what happens `meanwhile`.
async fn waiting<T>(call: impl Future<Output = T>, meanwhile: impl Future<Output = ()>) -> T {
    let mut call = std::pin::pin!(call);
    tokio::select! {
        _ = &mut call => panic!("it did not wait"),
        () = meanwhile => {}
    }
    call.await
}

fn set_power(world: &World, vm: &Ref, state: &str) {
    world.test.daemon.db.write(|tx| tx.set("VM", vm, "power_state", state)).unwrap();
}

#[tokio::test]
async fn one_cut_waits_for_the_other() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    let ctx = CallContext::internal(&world.test.daemon);
    let held = turn(&ctx, &vm, "snapshot").await.unwrap();
    let volumes = world.driver.ids().len();
    let waits = async {
        until_begun(&world, &vm).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.driver.ids().len(), volumes, "a cut in the middle of another");
        drop(held);
    };
    waiting(world.snapshot(&vm, "second"), waits).await.unwrap();
    assert_eq!(world.driver.ids().len(), volumes + 1);
    // Another machine's turn is its own.
    let other = world.machine(1).await;
    let _held = turn(&ctx, &vm, "snapshot").await.unwrap();
    world.snapshot(&other, "beside").await.unwrap();
}

#[tokio::test]
async fn what_became_impossible_while_it_waited_is_refused() {
    let world = World::new().await;
    let vm = world.machine(1).await;
    set_power(&world, &vm, "Paused");
    let ctx = CallContext::internal(&world.test.daemon);
    let held = turn(&ctx, &vm, "snapshot").await.unwrap();
    let power_goes = async {
        until_begun(&world, &vm).await;
        set_power(&world, &vm, "Halted");
        drop(held);
    };
    let checkpoint = world.call("VM.checkpoint", [Value::from(&vm), Value::from("late")]);
    let refused = waiting(checkpoint, power_goes).await.unwrap_err();
    assert!(refused.is("VM_BAD_POWER_STATE"), "{refused}");
    world.assert_consistent("after a refusal").await;
}

#[tokio::test]
async fn nobody_resets_a_machine_whose_memory_is_under_way() {
    let world = World::new().await;
    let vm = world.machine(0).await;
    set_power(&world, &vm, "Running");
    for (other, refused) in
        [("suspend", true), ("checkpoint", true), ("resume", true), ("resume_on", true), ("snapshot", false)]
    {
        let put = |operation: &str| Value::map([("OpaqueRef:other", operation)]);
        world.test.daemon.db.write(|tx| tx.set("VM", &vm, "current_operations", put(other))).unwrap();
        let reset = allowed::check(&world.get("VM", &vm), "hard_reboot");
        assert_eq!(reset.is_err_and(|error| error.is("OTHER_OPERATION_IN_PROGRESS")), refused, "beside {other}");
        allowed::check(&world.get("VM", &vm), "hard_shutdown").unwrap();
    }
}
