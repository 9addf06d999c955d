//! Disks and machines through files: what comes back is what was there, what is damaged leaves nothing behind.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use tanada_e2e::{Scratch, tanada};
use tanada_witness::noise;

const MIB: usize = 1 << 20;

/// A store and a halted machine with two disks that hold `images`.
struct World {
    scratch: Scratch,
    sr: String,
    vm: String,
    images: [Vec<u8>; 2],
}

fn world() -> World {
    let scratch = Scratch::start();
    let location = format!("device-config:location={}", scratch.path("fast.store").display());
    let sr = scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, "physical-size=1GiB"]);
    let vm = scratch.xe_ok(["vm-create", "name-label=db1"]);
    // A hole in the middle, a last chunk that is not whole, an end that is not empty.
    let mut first = vec![0; 21 * MIB + 4096];
    first[..3 * MIB].copy_from_slice(&noise(3 * MIB, 1));
    first[9 * MIB + 512..10 * MIB].copy_from_slice(&noise(MIB - 512, 2));
    first[21 * MIB..].copy_from_slice(&noise(4096, 3));
    let images = [first, [vec![0; 2 * MIB], noise(2 * MIB, 4)].concat()];
    for (device, image) in images.iter().enumerate() {
        let (name, size) = (format!("name-label=disk{device}"), format!("virtual-size={}", image.len()));
        let vdi = scratch.xe_ok(["vdi-create", &format!("sr-uuid={sr}"), &name, &size, "type=user"]);
        let file = scratch.path("image");
        fs::write(&file, image).unwrap();
        scratch.xe_ok(["vdi-import", &format!("uuid={vdi}"), &format!("filename={}", file.display()), "format=raw"]);
        let vbd = [format!("vm-uuid={vm}"), format!("vdi-uuid={vdi}"), format!("device={device}")];
        scratch.xe_ok(["vbd-create", &vbd[0], &vbd[1], &vbd[2], "type=Disk", "mode=RW", "bootable=false"]);
    }
    World { scratch, sr, vm, images }
}

impl World {
    /// Exports to a new file of this name.
    fn export(&self, command: &str, uuid: &str, name: &str, compression: &str) -> Vec<u8> {
        let file = self.scratch.path(name);
        let filename = format!("filename={}", file.display());
        let by_uuid =
            if command.starts_with("template") { format!("template-uuid={uuid}") } else { format!("uuid={uuid}") };
        let mut words = vec![command.to_owned(), by_uuid, filename];
        words.extend((!compression.is_empty()).then(|| format!("compress={compression}")));
        self.scratch.xe_ok(words);
        fs::read(file).unwrap()
    }

    fn import(&self, archive: &[u8]) -> Result<String, String> {
        let file = self.scratch.path("import.xva");
        fs::write(&file, archive).unwrap();
        let ran =
            self.scratch.xe(["vm-import", &format!("filename={}", file.display()), &format!("sr-uuid={}", self.sr)]);
        if ran.status == 0 { Ok(ran.out.trim().to_owned()) } else { Err(ran.err) }
    }

    /// The contents of a machine's disks, by position.
    fn disks(&self, vm: &str) -> Vec<Vec<u8>> {
        vec![self.disk_at(vm, 0), self.disk_at(vm, 1)]
    }

    fn disk_at(&self, vm: &str, device: usize) -> Vec<u8> {
        let vdi = self.scratch.disk(vm, device);
        let file = self.scratch.path(&format!("{vdi}.raw"));
        let to = format!("filename={}", file.display());
        self.scratch.xe_ok(["vdi-export", &format!("uuid={vdi}"), &to, "format=raw"]);
        let content = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        content
    }

    /// The uuids of a machine's disks, by position.
    fn disks_of(&self, vm: &str) -> Vec<String> {
        vec![self.scratch.disk(vm, 0), self.scratch.disk(vm, 1)]
    }

    /// Every object that an import may make.
    fn objects(&self) -> Vec<String> {
        ["vm", "template", "vdi", "vbd", "vif", "network"]
            .map(|class| self.scratch.xe_ok([&format!("{class}-list"), "--minimal"]))
            .to_vec()
    }

    /// Begins an import and stays in the middle of it: the disks are made, the archive is not over.
    fn half_import(&mut self, archive: &[u8]) -> UnixStream {
        let before = self.objects();
        let mut stream = UnixStream::connect(self.scratch.socket()).unwrap();
        let sr = self.sr.clone();
        // root without a password, which the local socket takes.
        let head = format!(
            "PUT /import?sr_uuid={sr} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cm9vdDo=\r\nContent-Length: {}\r\n\r\n",
            archive.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&archive[..archive.len() / 2]).unwrap();
        let vdis = before[2].clone();
        self.scratch.eventually("the import makes its disks", |scratch| {
            let now = scratch.xe_ok(["vdi-list", "--minimal"]);
            if now.split(',').count() == vdis.split(',').count() + 2 { Ok(()) } else { Err(now) }
        });
        stream
    }
}

impl World {
    /// A transfer in a task of the server's own, which stays after it: what was received, and what the task says was
    /// moved by the host and by the storage.
    fn told(&mut self, method: &str, path: &str, body: &[u8]) -> (Vec<u8>, [String; 2]) {
        let mut stream = UnixStream::connect(self.scratch.socket()).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cm9vdDo=\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        let start = received.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let label = path[1..].split('?').next().unwrap();
        let task = self.scratch.eventually("the task ends", |scratch| {
            let ended = scratch.xe_ok(["task-list", &format!("name-label={label}"), "status=success", "--minimal"]);
            if ended.is_empty() { Err(ended) } else { Ok(ended) }
        });
        let moved = ["bytes_moved_by_host", "bytes_moved_by_storage"].map(|key| {
            let (uuid, key) = (format!("uuid={task}"), format!("param-key={key}"));
            self.scratch.xe_ok(["task-param-get", &uuid, "param-name=other-config", &key])
        });
        (received.split_off(start), moved)
    }
}

/// Whole chunks are read and written, as soon as anything is in them.
#[test]
fn tasks_tell_what_was_read_from_disks_and_written_to_them() {
    let mut world = world();
    let first = 4 * MIB + 4096;
    let (both, first) = ([(first + 2 * MIB).to_string(), "0".to_owned()], [first.to_string(), "0".to_owned()]);
    let (vm, sr) = (world.vm.clone(), world.sr.clone());
    let (archive, moved) = world.told("GET", &format!("/export?uuid={vm}"), b"");
    assert_eq!(moved, both, "export");
    let (_, moved) = world.told("PUT", &format!("/import?sr_uuid={sr}"), &archive);
    assert_eq!(moved, both, "import");
    let vdi = world.scratch.disk(&vm, 0);
    let (image, moved) = world.told("GET", &format!("/export_raw_vdi?vdi={vdi}"), b"");
    assert!(image == world.images[0]);
    assert_eq!(moved, first, "raw export");
    let (_, moved) = world.told("PUT", &format!("/import_raw_vdi?sr_uuid={sr}"), &image);
    assert_eq!(moved, first, "raw import");
}

/// Six MiB and a bit of data: the first chunk goes at once, every other one waits for its turn.
#[test]
fn a_bound_holds_in_both_directions_and_for_all_transfers_of_an_sr() {
    let world = world();
    let (exported, imported) = (world.scratch.path("slow.xva"), format!("sr-uuid={}", world.sr));
    let filename = format!("filename={}", exported.display());
    let bound_s = |chunks: usize, mib_per_second: usize| (chunks - 1) as f64 / mib_per_second as f64;
    let timed = |args: &[&str]| {
        let start = Instant::now();
        world.scratch.xe_ok(args);
        start.elapsed().as_secs_f64()
    };
    let machine = format!("uuid={}", world.vm);
    let took = timed(&["vm-export", &machine, &filename, "rate=8MiB"]);
    assert!(took >= bound_s(6, 8), "export: {took} s");
    let took = timed(&["vm-import", &filename, &imported, "rate=8MiB"]);
    assert!(took >= bound_s(6, 8), "import: {took} s");
    world.scratch.xe_ok(["sr-param-set", &format!("uuid={}", world.sr), "other-config:tanada-transfer-rate=8388608"]);
    fs::remove_file(&exported).unwrap();
    let took = timed(&["vm-export", &machine, &filename]);
    assert!(took >= bound_s(6, 8), "export from an SR with a bound: {took} s");
    let disk = world.disks_of(&world.vm)[1].clone();
    let took = timed(&["vdi-copy", &format!("uuid={disk}"), &imported]);
    assert!(took >= bound_s(2, 8), "copy on an SR with a bound: {took} s");
    let refusal = world.scratch.xe_fails(["vm-export", &machine, "filename=/dev/null/x", "rate=fast"]);
    assert!(refusal.contains("is not a size"), "{refusal}");
}

/// The machine is lost, its disks are not: the records bring it back, with its snapshot.
#[test]
fn records_alone_bring_a_lost_machine_back_over_its_disks() {
    let world = world();
    let snapshot = world.scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=nightly"]);
    let (before, disks) = (world.objects(), world.disks_of(&world.vm));
    let file = world.scratch.path("records.xva");
    let filename = format!("filename={}", file.display());
    world.scratch.xe_ok(["vm-export", "metadata=true", "--all", &filename]);
    let listed = Command::new("tar").arg("-tf").arg(&file).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "ova.xml\n");
    for uuid in [&snapshot, &world.vm] {
        // Both leave their disks alone.
        let destroy = if *uuid == snapshot { "snapshot-destroy" } else { "vm-destroy" };
        world.scratch.xe_ok([destroy, &format!("uuid={uuid}")]);
    }
    let dry = world.scratch.xe_ok(["vm-import", "metadata=true", "dry-run=true", "restore=true", &filename]);
    assert_eq!((dry.len(), world.scratch.xe_ok(["vm-list", "name-label=db1", "--minimal"])), (36, String::new()));
    let restored = world.scratch.xe_ok(["vm-import", "metadata=true", "restore=true", &filename]);
    assert_eq!(restored, world.vm);
    assert_eq!(world.disks_of(&world.vm), disks);
    assert_eq!(world.objects()[2..], before[2..]);
    let of = world.scratch.xe_ok(["snapshot-list", "params=snapshot-of", "--minimal"]);
    assert_eq!(of, world.vm);
    assert!(world.disks(&world.vm) == world.images);
    world.scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={snapshot}")]);

    let again = world.scratch.xe_fails(["vm-import", "metadata=true", "restore=true", &filename]);
    assert!(again.contains("not newer") || again.contains("VM_TO_IMPORT_IS_NOT_NEWER_VERSION"), "{again}");
    let whole = world.export("vm-export", &world.vm, "whole.xva", "");
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let refusal = world.scratch.xe_fails(["vm-import", "metadata=true", &filename]);
    assert!(refusal.contains("records alone"), "{refusal}");
}

#[test]
fn archives_of_every_form_come_back_and_others_can_read_them() {
    let world = world();
    for (compression, program) in [("", "tar"), ("gzip", "gzip"), ("zstd", "zstd")] {
        let archive = world.export("vm-export", &world.vm, &format!("{program}.xva"), compression);
        let vm = world.import(&archive).unwrap();
        assert!(world.disks(&vm) == world.images, "{program}");
        let arguments = if compression.is_empty() { "-t" } else { "-tq" };
        let input = fs::File::open(world.scratch.path(&format!("{program}.xva"))).unwrap();
        let status = Command::new(program).arg(arguments).stdin(input).stdout(Stdio::null()).status();
        assert!(status.unwrap().success(), "{program}");
    }
}

/// Archives that tanada-xva's tests know in detail; here they become machines.
#[test]
fn archives_of_other_writers_become_machines() {
    let world = world();
    let mut expected = vec![0; 10 * MIB];
    let alone = [0, 1, 127, 128, 4095, 4096, 4097, 8191, 18431, 18432, 18560];
    for sector in alone.into_iter().chain(12288..12304) {
        let line = format!("sector {sector:08}\n");
        expected[sector * 512..][..512].copy_from_slice(line.repeat(32).as_bytes());
    }
    for name in ["xo.xva", "xva-img.xva"] {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tanada-xva/tests/archive/fixtures");
        let vm = world.import(&fs::read(format!("{fixtures}/{name}.zst")).unwrap()).unwrap();
        let of =
            |field: &str| world.scratch.xe_ok(["vm-param-get", &format!("uuid={vm}"), &format!("param-name={field}")]);
        assert_eq!((of("name-label"), of("VCPUs-max")), ("from Xen Orchestra".into(), "1".into()), "{name}");
        assert_eq!(of("memory-static-max"), (64 * MIB).to_string(), "{name}");
        let vbds = [format!("vm-uuid={vm}"), "params=userdevice".into(), "--minimal".into()];
        assert_eq!(world.scratch.xe_ok([&["vbd-list".to_owned()], &vbds[..]].concat()), "1", "{name}");
        assert!(world.disk_at(&vm, 1) == expected, "{name}");
    }
}

/// A pipe says neither how much there is nor, before its end, that it is over.
#[test]
fn archives_come_through_pipes() {
    let world = world();
    let import = |archive: &[u8], more: &[&str]| {
        let file = world.scratch.path("piped");
        fs::write(&file, archive).unwrap();
        let mut cat = Command::new("cat").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
        let output = Command::new(tanada())
            .args(["xe", "vm-import", "filename=/dev/stdin", &format!("sr-uuid={}", world.sr)])
            .args(more)
            .env("TANADA_SOCKET", world.scratch.socket())
            .stdin(cat.stdout.take().unwrap())
            .output()
            .unwrap();
        assert!(cat.wait().unwrap().success());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for compression in ["", "gzip", "zstd"] {
        let archive = world.export("vm-export", &world.vm, &format!("{compression}.xva"), compression);
        assert!(world.disks(&import(&archive, &[])) == world.images, "{compression}");
    }
    let file = world.scratch.path("records");
    let by_uuid = format!("uuid={}", world.vm);
    let exported = Command::new(tanada())
        .args(["xe", "vm-export", &by_uuid, "metadata=true", "filename=/dev/stdout"])
        .env("TANADA_SOCKET", world.scratch.socket())
        .stdout(fs::File::create(&file).unwrap())
        .status();
    assert!(exported.unwrap().success());
    let disks = world.disks_of(&world.vm);
    world.scratch.xe_ok(["vm-destroy", &by_uuid]);
    assert_eq!(import(&fs::read(&file).unwrap(), &["metadata=true", "restore=true"]), world.vm);
    assert_eq!(world.disks_of(&world.vm), disks);
}

#[test]
fn a_snapshot_comes_back_as_a_template_with_its_own_disks() {
    let world = world();
    let snapshot = world.scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=nightly"]);
    // The machine goes on after the snapshot.
    let vdi = world.scratch.disk(&world.vm, 1);
    let file = world.scratch.path("later");
    fs::write(&file, noise(4 * MIB, 9)).unwrap();
    world.scratch.xe_ok(["vdi-import", &format!("uuid={vdi}"), &format!("filename={}", file.display()), "format=raw"]);

    let archive = world.export("template-export", &snapshot, "nightly.xva", "zstd");
    let template = world.import(&archive).unwrap();
    let param = |name: &str| {
        world.scratch.xe_ok(["template-param-get", &format!("uuid={template}"), &format!("param-name={name}")])
    };
    assert_eq!((param("is-a-template"), param("is-a-snapshot")), ("true".into(), "false".into()));
    assert!(param("snapshot-info").contains("disk-snapshot-type: crash_consistent"), "{}", param("snapshot-info"));
    assert!(world.disks(&template) == world.images);
    assert!(world.disks(&world.vm)[1] == noise(4 * MIB, 9));
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let world = world();
    for compression in ["", "zstd"] {
        let archive = world.export("vm-export", &world.vm, &format!("whole{compression}.xva"), compression);
        let before = world.objects();
        // In ova.xml, in the first disk, at its end, in the second disk, before the end.
        for part in [1, 30, 55, 80, 99] {
            let at = archive.len() * part / 100;
            let cut = world.import(&archive[..at]).unwrap_err();
            assert!(cut.contains("the end of the file was reached prematurely"), "cut at {at}: {cut}");
            assert_eq!(world.objects(), before, "cut at {at}");
            let mut flipped = archive.clone();
            flipped[at] ^= 0x10;
            let refusal = world.import(&flipped).unwrap_err();
            assert!(refusal.contains("could not be imported"), "flipped at {at}: {refusal}");
            assert_eq!(world.objects(), before, "flipped at {at}");
        }
        assert!(world.import(b"neither tar nor gzip nor zstd").is_err());
        // Nothing is left attached: the originals can be written to, which a reader would prevent.
        assert!(world.disks(&world.vm) == world.images);
    }
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let mut world = world();
    let archive = world.export("vm-export", &world.vm, "db1.xva", "");
    let before = world.objects();
    let mut stream = world.half_import(&archive);
    let task = world.scratch.xe_ok(["task-list", "status=pending", "name-label=import", "--minimal"]);
    world.scratch.xe_ok(["task-cancel", &format!("uuid={task}")]);
    let mut said = String::new();
    // The connection ends without an end of the body, or is reset over what was sent and not read.
    drop(stream.read_to_string(&mut said));
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    world.scratch.eventually("the task ends", |scratch| {
        let status = scratch.xe_ok(["task-param-get", &format!("uuid={task}"), "param-name=status"]);
        if status == "cancelled" { Ok(()) } else { Err(status) }
    });
    assert_eq!(world.objects(), before);
    assert!(world.import(&archive).is_ok());
}

#[test]
fn an_export_to_a_client_that_stopped_reading_can_be_cancelled() {
    let mut world = world();
    let mut stream = UnixStream::connect(world.scratch.socket()).unwrap();
    let head = format!("GET /export?uuid={} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cm9vdDo=\r\n\r\n", world.vm);
    stream.write_all(head.as_bytes()).unwrap();
    let task = world.scratch.eventually("the export begins", |scratch| {
        let task = scratch.xe_ok(["task-list", "status=pending", "name-label=export", "--minimal"]);
        if task.is_empty() { Err(task) } else { Ok(task) }
    });
    world.scratch.xe_ok(["task-cancel", &format!("uuid={task}")]);
    world.scratch.eventually("the task ends", |scratch| {
        let status = scratch.xe_ok(["task-param-get", &format!("uuid={task}"), "param-name=status"]);
        if status == "cancelled" { Ok(()) } else { Err(status) }
    });
    // Its disks are free again, while the connection is still there.
    assert!(world.disks(&world.vm) == world.images);
    let mut archive = Vec::new();
    stream.read_to_end(&mut archive).unwrap();
    let start = archive.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let refusal = world.import(&archive[start..]).unwrap_err();
    assert!(refusal.contains("prematurely"), "{refusal}");
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let mut world = world();
    let archive = world.export("vm-export", &world.vm, "db1.xva", "");
    let before = world.objects();
    drop(world.half_import(&archive));
    world.scratch.eventually("the import ends", |scratch| {
        let pending = scratch.xe_ok(["task-list", "status=pending", "name-label=import", "--minimal"]);
        if pending.is_empty() { Ok(()) } else { Err(pending) }
    });
    assert_eq!(world.objects(), before);
}

#[test]
fn an_import_that_a_crash_broke_off_leaves_nothing() {
    let mut world = world();
    let archive = world.export("vm-export", &world.vm, "db1.xva", "");
    let before = world.objects();
    let stream = world.half_import(&archive);
    world.scratch.kill_daemon();
    drop(stream);
    world.scratch.start_daemon();
    assert_eq!(world.objects(), before);
    let vm = world.import(&archive).unwrap();
    assert!(world.disks(&vm) == world.images);
}
