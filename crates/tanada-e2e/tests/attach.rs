//! A generation at a backup server: connected by one command, gone by another, and nothing left whatever happens between.

use tanada_e2e::Scratch;

/// A machine with two disks and a snapshot of it, and a second machine without disks.
struct World {
    scratch: Scratch,
    snapshot: String,
    server: String,
}

fn world() -> World {
    let scratch = Scratch::start();
    let location = format!("device-config:location={}", scratch.path("fast.store").display());
    let sr = scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, "physical-size=1GiB"]);
    scratch.xe_ok(["vm-create", "name-label=db1"]);
    for device in ["0", "1"] {
        let device = format!("device={device}");
        scratch.xe_ok(["vm-disk-add", "vm=db1", "disk-size=16MiB", &device, &format!("sr-uuid={sr}")]);
    }
    let snapshot = scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=nightly"]);
    let server = scratch.xe_ok(["vm-create", "name-label=backup"]);
    World { scratch, snapshot, server }
}

impl World {
    fn attach(&self, mode: &str) -> Vec<String> {
        let [snapshot, vm] = [format!("snapshot-uuid={}", self.snapshot), format!("vm-uuid={}", self.server)];
        let vbds = self.scratch.xe_ok(["snapshot-attach", &snapshot, &vm, &format!("mode={mode}"), "--minimal"]);
        vbds.split(',').map(str::to_owned).collect()
    }

    fn detach(&self) -> String {
        self.scratch.xe_ok(["snapshot-detach", &format!("snapshot-uuid={}", self.snapshot)])
    }

    fn list(&self, class: &str) -> Vec<String> {
        let list = self.scratch.xe_ok([&format!("{class}-list"), "--minimal"]);
        let mut uuids: Vec<String> = list.split(',').filter(|uuid| !uuid.is_empty()).map(str::to_owned).collect();
        uuids.sort();
        uuids
    }

    fn objects(&self) -> [Vec<String>; 2] {
        ["vdi", "vbd"].map(|class| self.list(class))
    }

    fn of_vbd(&self, vbd: &str, field: &str) -> String {
        self.scratch.xe_ok(["vbd-param-get", &format!("uuid={vbd}"), &format!("param-name={field}")])
    }
}

#[test]
fn disks_are_connected_in_both_modes_and_nothing_stays() {
    let world = world();
    let before = world.objects();
    let vbds = world.attach("ro");
    assert_eq!(vbds.len(), 2);
    for vbd in &vbds {
        let vdi = world.of_vbd(vbd, "vdi-uuid");
        assert_eq!((world.of_vbd(vbd, "mode"), before[0].contains(&vdi)), ("RO".into(), true), "the generation itself");
    }
    let twice = ["snapshot-attach", &format!("uuid={}", world.snapshot), &format!("vm-uuid={}", world.server)];
    let refusal = world.scratch.xe_fails(twice);
    assert!(refusal.contains("attached to this VM already"), "{refusal}");
    assert_eq!(world.detach(), "2 disks detached");
    assert_eq!(world.objects(), before);

    let vbds = world.attach("clone");
    for vbd in &vbds {
        let vdi = world.of_vbd(vbd, "vdi-uuid");
        assert_eq!((world.of_vbd(vbd, "mode"), before[0].contains(&vdi)), ("RW".into(), false), "a clone");
    }
    assert_eq!(world.detach(), "2 disks detached");
    assert_eq!(world.objects(), before);
    assert_eq!(world.detach(), format!("Nothing of snapshot {} is attached", world.snapshot));
}

#[test]
fn what_a_crash_or_the_loss_of_the_server_leaves_goes_too() {
    let mut world = world();
    let before = world.objects();
    // The command was killed between a clone and its connection.
    let half = |world: &World| {
        let purpose = format!("driver-params:tanada:throw-away={}", world.snapshot);
        world.scratch.xe_ok(["vdi-clone", &format!("uuid={}", before[0][0]), &purpose])
    };
    half(&world);
    assert_eq!(world.objects()[0].len(), before[0].len() + 1);
    world.detach();
    assert_eq!(world.objects(), before);
    half(&world);
    world.attach("clone");
    world.scratch.kill_daemon();
    world.scratch.start_daemon();
    let clones = world.scratch.eventually("the clone that nobody connected goes", |scratch| {
        let vdis = scratch.xe_ok(["vdi-list", "--minimal"]);
        if vdis.split(',').count() == before[0].len() + 2 { Ok(vdis) } else { Err(vdis) }
    });
    assert!(before[0].iter().all(|vdi| clones.contains(vdi)), "{clones}");
    // The server goes, and with it what was attached to it, but no generation.
    world.scratch.xe_ok(["vm-uninstall", "vm=backup", "force=true"]);
    world.scratch.eventually("the clones go with the server", |scratch| {
        let vdis = scratch.xe_ok(["vdi-list", "--minimal"]);
        if vdis.split(',').count() == before[0].len() { Ok(()) } else { Err(vdis) }
    });
    assert_eq!(world.objects(), before);
}

#[test]
fn a_snapshot_that_is_gone_can_still_be_detached() {
    let world = world();
    let before = world.objects();
    world.attach("clone");
    world.scratch.xe_ok(["snapshot-uninstall", &format!("uuid={}", world.snapshot), "force=true"]);
    assert_eq!(world.detach(), "2 disks detached");
    assert_eq!(world.objects()[0].len(), before[0].len() - 2, "the machine's own disks are left");
}

/// By hand, with the mark that makes a disk a machine's own, which a client may set wherever it likes.
#[test]
fn a_generation_that_was_attached_by_hand_outlives_the_backup_server() {
    let world = world();
    let before = world.objects();
    let generation = world.scratch.disk(&world.snapshot, 0);
    let [vm, vdi] = [format!("vm-uuid={}", world.server), format!("vdi-uuid={generation}")];
    let writable = world.scratch.xe_fails(["vbd-create", &vm, &vdi, "device=autodetect", "mode=RW"]);
    assert!(writable.contains(&generation), "{writable}");
    let vbd = world.scratch.xe_ok(["vbd-create", &vm, &vdi, "device=autodetect", "mode=RO"]);
    world.scratch.xe_ok(["vbd-param-set", &format!("uuid={vbd}"), "other-config:owner=true"]);
    world.scratch.xe_ok(["vm-uninstall", "vm=backup", "force=true"]);
    assert_eq!(world.objects(), before);
    // And it is whole: an instance of the snapshot can be made.
    world.scratch.xe_ok(["vm-install", "template=nightly", "new-name-label=again"]);
}
