//! Throw-away clones go when they are no longer connected, whatever ended the connection.

use tanada_xapi::{Ref, Value};

use super::{World, reference};
use crate::db::View;
use crate::ops::throw_away::{ATTACHED, MARK};

/// A machine with a snapshot, and another one that reads a throw-away clone of it.
async fn backup(world: &World) -> (Ref, Ref, Ref) {
    let vm = world.machine(1).await;
    let snapshot = world.snapshot(&vm, "nightly").await.unwrap();
    let source = world.vdis(&snapshot)[0].clone();
    let server = world.machine(0).await;
    let clone = throw_away(world, &source).await;
    let vbd = world.vbd(&server, &clone, "autodetect", "RW").await.unwrap();
    world.call("VBD.add_to_other_config", [vbd.as_str(), ATTACHED, "nightly"].map(Value::from)).await.unwrap();
    (server, clone, vbd)
}

async fn throw_away(world: &World, source: &Ref) -> Ref {
    let purpose = Value::map([(MARK, "nightly")]);
    reference(&world.call("VDI.clone", [Value::from(source), purpose]).await.unwrap())
}

fn exists(world: &World, vdi: &Ref) -> bool {
    world.test.daemon.db.read(|state| state.find("VDI", vdi).is_some())
}

/// What the daemon does by itself comes a moment later.
async fn until_gone(world: &World, vdi: &Ref) {
    let mut changed = world.test.daemon.db.changed();
    while exists(world, vdi) {
        changed.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_clone_goes_with_its_device() {
    let world = World::new().await;
    let (_, clone, vbd) = backup(&world).await;
    world.call("VBD.destroy", [Value::from(&vbd)]).await.unwrap();
    assert!(!exists(&world, &clone), "gone when the call has returned");
    world.assert_consistent("after VBD.destroy").await;
}

#[tokio::test]
async fn a_clone_goes_with_its_machine() {
    let world = World::new().await;
    let (server, clone, _) = backup(&world).await;
    world.call("VM.destroy", [Value::from(&server)]).await.unwrap();
    until_gone(&world, &clone).await;
    world.assert_consistent("after VM.destroy").await;
}

#[tokio::test]
async fn what_a_crash_left_unconnected_goes_at_the_next_start_and_nothing_else() {
    let world = World::new().await;
    let (server, connected, _) = backup(&world).await;
    let unconnected = throw_away(&world, &connected).await;
    let plain = world.disk("plain").await;
    assert!(exists(&world, &unconnected), "somebody may be about to connect it");
    let world = world.restart().await;
    until_gone(&world, &unconnected).await;
    assert!(exists(&world, &connected) && exists(&world, &plain));
    world.call("VM.destroy", [Value::from(&server)]).await.unwrap();
    until_gone(&world, &connected).await;
    world.assert_consistent("after a restart").await;
}

#[tokio::test]
async fn snapshots_and_clones_of_a_backup_server_leave_attached_disks_out() {
    let world = World::new().await;
    let (server, connected, _) = backup(&world).await;
    let own = world.disk("own").await;
    world.vbd(&server, &own, "autodetect", "RW").await.unwrap();
    let snapshot = world.snapshot(&server, "of the server").await.unwrap();
    assert_eq!(world.vdis(&snapshot).len(), 1);
    // No copy is a throw-away disk itself.
    let copy = reference(&world.call("VDI.clone", [Value::from(&connected), Value::empty_map()]).await.unwrap());
    assert_eq!(world.get("VDI", &copy).entry("other_config", MARK), None);
    let cut = reference(&world.call("VDI.snapshot", [Value::from(&connected), Value::empty_map()]).await.unwrap());
    assert_eq!(world.get("VDI", &cut).entry("other_config", MARK), None);
}
