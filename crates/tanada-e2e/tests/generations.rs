//! A machine with all of its snapshots through a file: every state comes back, and takes the room of its changes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use tanada_e2e::Scratch;
use tanada_witness::noise;

const MIB: usize = 1 << 20;
const KIB: usize = 1 << 10;

/// What the first disk holds, and what changes on it from one night to the next.
const FIRST_BYTES: usize = 20 * MIB;
const CHANGED_BYTES: usize = 64 * KIB;

/// A machine with two disks and a snapshot for each night, on an SR of its own; another SR is empty.
struct World {
    scratch: Scratch,
    vm: String,
    snapshots: Vec<String>,
    /// What the first disk held at each snapshot, and now.
    states: Vec<Vec<u8>>,
    other: String,
}

fn world(nights: usize) -> World {
    let scratch = Scratch::start();
    let sr = |name: &str| {
        let location = format!("device-config:location={}", scratch.path(&format!("{name}.store")).display());
        let sr =
            scratch.xe_ok(["sr-create", "type=tanada", &format!("name-label={name}"), &location, "physical-size=1GiB"]);
        // Small stores have little to spare.
        scratch.xe_ok(["sr-param-set", &format!("uuid={sr}"), "other-config:tanada-snapshot-floor=0"]);
        sr
    };
    let (from, other) = (sr("from"), sr("other"));
    let vm = scratch.xe_ok(["vm-create", "name-label=db1"]);
    let mut state = vec![0; 2 * FIRST_BYTES];
    state[..FIRST_BYTES].copy_from_slice(&noise(FIRST_BYTES, 1));
    let mut disks = Vec::new();
    for (device, image) in [("0", &state), ("1", &noise(MIB + 4096, 2))] {
        let vdi = scratch.xe_ok([
            "vdi-create",
            &format!("sr-uuid={from}"),
            &format!("name-label=disk{device}"),
            "type=user",
            &format!("virtual-size={}", image.len()),
        ]);
        fs::write(scratch.path("image"), image).unwrap();
        import(&scratch, &vdi, &scratch.path("image"), "raw");
        let vbd = [format!("vm-uuid={vm}"), format!("vdi-uuid={vdi}"), format!("device={device}")];
        scratch.xe_ok(["vbd-create", &vbd[0], &vbd[1], &vbd[2], "type=Disk", "mode=RW", "bootable=false"]);
        disks.push(vdi);
    }
    let mut world = World { scratch, vm, snapshots: Vec::new(), states: Vec::new(), other };
    for night in 0..nights {
        let name = format!("new-name-label=night {night}");
        world.snapshots.push(world.scratch.xe_ok(["vm-snapshot", "vm=db1", &name]));
        world.states.push(state.clone());
        // Every third change falls on what was empty; the last one empties a place.
        let empties = night + 1 == nights;
        let at = if night % 3 == 2 && !empties { FIRST_BYTES + night * MIB / 4 } else { night * 5 * CHANGED_BYTES };
        let change = if empties { vec![0; CHANGED_BYTES] } else { noise(CHANGED_BYTES, 100 + night as u64) };
        state[at..at + CHANGED_BYTES].copy_from_slice(&change);
        let file = world.scratch.path("change.qcow2");
        let size = (2 * FIRST_BYTES).to_string();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &file.display().to_string(), &size]);
        fs::write(world.scratch.path("change"), &change).unwrap();
        let source = world.scratch.path("change").display().to_string();
        let write = match empties {
            true => format!("write -z {at} {CHANGED_BYTES}"),
            false => format!("write -s {source} {at} {CHANGED_BYTES}"),
        };
        run("qemu-io", &["-f", "qcow2", "-c", &write, &file.display().to_string()]);
        import(&world.scratch, &disks[0], &file, "qcow2");
    }
    world.states.push(state);
    world
}

fn run(program: &str, args: &[&str]) {
    let ran = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn import(scratch: &Scratch, vdi: &str, file: &Path, format: &str) {
    let words = [format!("uuid={vdi}"), format!("filename={}", file.display()), format!("format={format}")];
    let delta = if format == "raw" { "delta=auto" } else { "delta=true" };
    scratch.xe_ok(["vdi-import", &words[0], &words[1], &words[2], delta]);
}

impl World {
    fn export(&self, name: &str, more: &[&str]) -> Vec<u8> {
        let file = self.scratch.path(name);
        let words = [format!("uuid={}", self.vm), format!("filename={}", file.display())];
        self.scratch.xe_ok(["vm-export", &words[0], &words[1], "include-snapshots=true"].iter().chain(more));
        fs::read(file).unwrap()
    }

    fn import(&self, archive: &[u8], more: &[&str]) -> Result<String, String> {
        let file = self.scratch.path("import.xva");
        fs::write(&file, archive).unwrap();
        let words = [format!("filename={}", file.display()), format!("sr-uuid={}", self.other)];
        let ran = self.scratch.xe(["vm-import", &words[0], &words[1]].iter().chain(more));
        if ran.status == 0 { Ok(ran.out.trim().to_owned()) } else { Err(ran.err) }
    }

    fn content(&self, vm: &str) -> Vec<u8> {
        let file = self.scratch.path("content");
        let words = [format!("uuid={}", self.scratch.disk(vm, 0)), format!("filename={}", file.display())];
        self.scratch.xe_ok(["vdi-export", &words[0], &words[1], "format=raw"]);
        let content = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        content
    }

    /// The snapshots of a machine in their order, found by their names.
    fn snapshots_of(&self, vm: &str) -> Vec<String> {
        let find = |night: usize| {
            let words = [format!("snapshot-of={vm}"), format!("name-label=night {night}")];
            self.scratch.xe_ok(["snapshot-list", &words[0], &words[1], "--minimal"])
        };
        (0..self.snapshots.len()).map(find).collect()
    }

    /// Bytes of an SR that are in use, once its deletions are over.
    fn used(&self, name: &str) -> usize {
        let sr = self.scratch.xe_ok(["sr-list", &format!("name-label={name}"), "--minimal"]);
        self.scratch.xe_ok(["sr-update", &format!("uuid={sr}")]);
        let words = [format!("uuid={sr}"), "param-name=physical-utilisation".to_owned()];
        self.scratch.xe_ok(["sr-param-get", &words[0], &words[1]]).parse().unwrap()
    }

    /// Every object that an import may make.
    fn objects(&self) -> Vec<String> {
        ["vm", "template", "snapshot", "vdi", "vbd", "vif", "network"]
            .map(|class| self.scratch.xe_ok([&format!("{class}-list"), "--minimal"]))
            .to_vec()
    }

    /// Begins an import and stays in the middle of the snapshots.
    fn half_import(&mut self, archive: &[u8]) -> UnixStream {
        let known = self.scratch.xe_ok(["vdi-list", "--minimal"]).split(',').count();
        let mut stream = UnixStream::connect(self.scratch.socket()).unwrap();
        // root without a password, which the local socket takes.
        let head = format!(
            "PUT /import?sr_uuid={} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cm9vdDo=\r\nContent-Length: {}\r\n\r\n",
            self.other,
            archive.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&archive[..archive.len() - 8 * KIB]).unwrap();
        self.scratch.eventually("the import makes older disks", |scratch| {
            // Beside the machine's two the first one's newest state, and older ones.
            let now = scratch.xe_ok(["vdi-list", "--minimal"]).split(',').count();
            if now >= known + 5 { Ok(()) } else { Err(format!("{now} disks, {known} before")) }
        });
        stream
    }
}

fn members(file: &Path) -> Vec<String> {
    let listed = Command::new("tar").arg("-tf").arg(file).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn thirty_nights_come_back_in_the_room_of_their_changes() {
    const NIGHTS: usize = 30;
    let world = world(NIGHTS);
    let archive = world.export("all.xva", &[]);
    let changes = NIGHTS * CHANGED_BYTES;
    let members = members(&world.scratch.path("all.xva"));
    let border = members.iter().position(|name| name == "generations.xml").unwrap();
    assert_eq!(members[0], "ova.xml");
    assert!(members[1..border].iter().all(|name| !name.contains(".delta")));
    assert!(members[border + 1..].iter().all(|name| name.contains(".delta")));
    // One chunk for each change, with its checksum.
    assert_eq!(members.len() - border - 1, 2 * NIGHTS);
    let plain = world.scratch.path("plain.xva").display().to_string();
    world.scratch.xe_ok(["vm-export", &format!("uuid={}", world.vm), &format!("filename={plain}")]);
    let alone = self::members(Path::new(&plain));
    assert_eq!(members[..border], alone, "whoever knows XVA alone finds the machine as ever");
    // Their changes and their records.
    let more = archive.len() - fs::metadata(&plain).unwrap().len() as usize;
    assert!(more < changes + 2 * MIB, "{more} bytes for {NIGHTS} nights, of which {changes} changed");

    let empty = world.used("other");
    let vm = world.import(&archive, &[]).unwrap();
    let (took, takes) = (world.used("other") - empty, world.used("from") - empty);
    println!(
        "{NIGHTS} nights: {} bytes of archive, {more} of them for snapshots, {took} bytes on the SR, {takes} where they come from",
        archive.len()
    );
    assert!(took < FIRST_BYTES + MIB + changes + 4 * MIB, "{took} bytes, of which {changes} changed");
    assert!(took < takes + 2 * MIB, "{took} bytes, {takes} where they come from");
    let snapshots = world.snapshots_of(&vm);
    for (night, snapshot) in snapshots.iter().enumerate().filter(|(night, _)| [0, 1, 2, 17, 29].contains(night)) {
        assert!(world.content(snapshot) == world.states[night], "night {night}");
    }
    assert!(world.content(&vm) == world.states[NIGHTS]);
    let vdi = world.scratch.disk(&snapshots[3], 0);
    let of = world.scratch.xe_ok(["vdi-param-get", &format!("uuid={vdi}"), "param-name=snapshot-of"]);
    assert_eq!(of, world.scratch.disk(&vm, 0));
    // What was taken out of a snapshot's way is not in its way: it is a snapshot like any other.
    world.scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={}", snapshots[7])]);
    assert!(world.content(&vm) == world.states[7]);
    world.scratch.xe_ok(["snapshot-uninstall", &format!("snapshot-uuid={}", snapshots[8]), "force=true"]);
    assert!(world.content(&snapshots[9]) == world.states[9]);
    // Once more, as themselves.
    let refusal = world.import(&archive, &["restore=true"]).unwrap_err();
    assert!(refusal.contains("not newer") || refusal.contains("NOT_NEWER"), "{refusal}");
}

#[test]
fn a_lost_machine_is_restored_with_its_snapshots() {
    let world = world(3);
    let archive = world.export("all.xva", &["compress=zstd"]);
    let times =
        |world: &World| world.scratch.xe_ok(["snapshot-list", "params=uuid,name-label,snapshot-time,snapshot-info"]);
    let known = times(&world);
    for snapshot in &world.snapshots {
        world.scratch.xe_ok(["snapshot-uninstall", &format!("snapshot-uuid={snapshot}"), "force=true"]);
    }
    world.scratch.xe_ok(["vm-uninstall", &format!("uuid={}", world.vm), "force=true"]);
    assert_eq!(world.import(&archive, &["restore=true"]).unwrap(), world.vm);
    assert_eq!(times(&world), known);
    assert_eq!(world.snapshots_of(&world.vm), world.snapshots);
    for (snapshot, state) in world.snapshots.iter().zip(&world.states) {
        assert!(world.content(snapshot) == *state);
    }
    let parent = world.scratch.xe_ok(["vm-param-get", &format!("uuid={}", world.vm), "param-name=parent"]);
    assert_eq!(parent, world.snapshots[2]);
}

#[test]
fn what_is_damaged_cancelled_or_killed_leaves_nothing() {
    let mut world = world(4);
    let archive = world.export("all.xva", &[]);
    let (before, used) = (world.objects(), world.used("other"));
    let begin = archive.windows(15).position(|window| window == b"generations.xml").unwrap();
    // In the records, at the first change, in the last one, before the end.
    for at in [begin + 5000, begin + (archive.len() - begin) / 2, archive.len() - 3 * KIB, archive.len() - 700] {
        let cut = world.import(&archive[..at], &[]).unwrap_err();
        assert!(cut.contains("prematurely"), "cut at {at}: {cut}");
        assert_eq!(world.objects(), before, "cut at {at}");
        let mut flipped = archive.clone();
        flipped[at] ^= 0x10;
        let refusal = world.import(&flipped, &[]).unwrap_err();
        assert!(refusal.contains("could not be imported"), "flipped at {at}: {refusal}");
        assert_eq!(world.objects(), before, "flipped at {at}");
    }

    let stream = world.half_import(&archive);
    let task = world.scratch.xe_ok(["task-list", "status=pending", "name-label=import", "--minimal"]);
    world.scratch.xe_ok(["task-cancel", &format!("uuid={task}")]);
    world.scratch.eventually("the task ends", |scratch| {
        let status = scratch.xe_ok(["task-param-get", &format!("uuid={task}"), "param-name=status"]);
        if status == "cancelled" { Ok(()) } else { Err(status) }
    });
    drop(stream);
    assert_eq!(world.objects(), before, "cancelled");

    let stream = world.half_import(&archive);
    world.scratch.kill_daemon();
    drop(stream);
    world.scratch.start_daemon();
    assert_eq!(world.objects(), before, "killed");
    let now = world.used("other");
    assert!(now < used + MIB, "{now} bytes, {used} before");
    assert!(world.import(&archive, &[]).is_ok());
}

#[test]
fn snapshots_on_their_way_out_are_held() {
    let mut world = world(2);
    let mut stream = UnixStream::connect(world.scratch.socket()).unwrap();
    let head = format!(
        "GET /export?uuid={}&export_snapshots=true HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cm9vdDo=\r\n\r\n",
        world.vm
    );
    stream.write_all(head.as_bytes()).unwrap();
    let task = world.scratch.eventually("the export begins", |scratch| {
        let task = scratch.xe_ok(["task-list", "status=pending", "name-label=export", "--minimal"]);
        if task.is_empty() { Err(task) } else { Ok(task) }
    });
    let destroy = ["snapshot-destroy".to_owned(), format!("uuid={}", world.snapshots[0])];
    let refusal = world.scratch.xe_fails(&destroy);
    assert!(refusal.contains("export"), "{refusal}");
    world.scratch.xe_ok(["task-cancel", &format!("uuid={task}")]);
    world.scratch.eventually("the snapshot is free", |scratch| {
        let ran = scratch.xe(&destroy);
        if ran.status == 0 { Ok(()) } else { Err(ran.err) }
    });
    let mut archive = Vec::new();
    stream.read_to_end(&mut archive).unwrap();
    let start = archive.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(world.import(&archive[start..], &[]).unwrap_err().contains("prematurely"));
}
