//! A guest that sleeps and goes back: suspend, resume, checkpoint, revert, with a real machine, `xe` and kills.
//!
//! In the guest a program counts, in its memory and on its disk. It never starts again in these tests: whatever is done
//! to the machine, the count goes on from where the memory says, and the disk agrees with it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tanada_blockd_api::Command as Verb;
use tanada_e2e::store::Door;
use tanada_e2e::{Scratch, guest, tanada};

const MIB: usize = 1 << 20;

const DATA_BYTES: u64 = 16 << 20;

/// Kills in each operation; the environment may ask for more.
const KILLS: u32 = 3;

struct World {
    scratch: Scratch,
    sr: String,
    vm: String,
}

/// What the counting program knows, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counts {
    boot: String,
    memory: u64,
    disk: u64,
}

impl World {
    /// A running machine in which the program counts.
    fn new() -> World {
        let scratch = guest::host();
        let sr = guest::store(&scratch, "fast");
        let data = guest::ext4_image(&scratch.path("data.raw"), DATA_BYTES);
        let vm = guest::start(&scratch, "db1", &[(&sr, &guest::root_image()), (&sr, &data)]);
        let mut world = World { scratch, sr, vm };
        world.guest("mkdir -p /run/d && mount -t ext4 /dev/vdb /run/d");
        world.guest(
            "(n=0; while :; do n=$((n+1)); echo $n >/run/count.new; mv /run/count.new /run/count; \
             echo $n >/run/d/new; sync; mv /run/d/new /run/d/count; sleep 0.05; done) >/dev/null 2>&1 </dev/null & \
             until [ -s /run/d/count ]; do sleep 0.1; done",
        );
        world
    }

    fn on(&self, command: &str) -> String {
        self.scratch.xe_ok([command, &format!("uuid={}", self.vm)])
    }

    fn power_state(&self) -> String {
        self.parameter(&self.vm, "power-state")
    }

    fn parameter(&self, vm: &str, name: &str) -> String {
        self.scratch.xe_ok(["vm-param-get", &format!("uuid={vm}"), &format!("param-name={name}")])
    }

    /// Runs a command in the guest, as soon as its agent answers.
    fn guest(&mut self, command: &str) -> String {
        guest::run(&mut self.scratch, &self.vm, command)
    }

    fn counts(&mut self) -> Counts {
        let said = self.guest("cat /run/count /run/d/count /proc/sys/kernel/random/boot_id");
        let mut words = said.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{said}"));
        let (memory, disk) = (number(), number());
        Counts { boot: words.next().unwrap_or_default().to_owned(), memory, disk }
    }

    /// The same boot, the count gone on from `since` (or from `most` at the latest), the disk in step with the memory.
    fn assert_goes_on(&mut self, what: &str, since: &Counts) -> Counts {
        let now = self.counts();
        assert_eq!(now.boot, since.boot, "{what}: the guest was booted");
        assert!(now.memory >= since.memory, "{what}: {now:?} after {since:?}");
        // Between the two reads the program may have counted on.
        assert!(now.memory.abs_diff(now.disk) <= 3, "{what}: memory and disk are not of one instant: {now:?}");
        // A program that stands still is waited for until the agent's time is over.
        self.guest(&format!("until [ $(cat /run/count) -gt {} ]; do sleep 0.05; done", now.memory));
        assert_eq!(self.guest("dmesg | grep -ciE 'i/o error|ext4-fs error' || true"), "0", "{what}");
        now
    }

    fn sleeps_and_goes_on(&mut self, what: &str) {
        let before = self.counts();
        self.on("vm-suspend");
        self.on("vm-resume");
        self.assert_goes_on(what, &before);
    }

    /// QEMU processes of the machine.
    fn processes(&self) -> usize {
        let entries = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.starts_with(b"/usr/bin/qemu") && contains(line, self.vm.as_bytes())).count()
    }

    /// Disks that hold memory.
    fn images(&self) -> Vec<String> {
        let listed = self.scratch.xe_ok(["vdi-list", "type=Suspend", "params=uuid", "--minimal"]);
        listed.split(',').filter(|uuid| !uuid.is_empty()).map(str::to_owned).collect()
    }

    /// Starts a command that will not come to its end.
    fn begin(&self, command: &str, args: &[&str]) -> Child {
        let mut xe = Command::new(tanada());
        xe.arg("xe").arg(command).args(args).env("TANADA_SOCKET", self.scratch.socket());
        xe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting xe")
    }

    /// Kills the daemon `after` the command was begun, and waits for the next life.
    fn kill_during(&mut self, after: Duration, command: &str, args: &[&str]) {
        let mut xe = self.begin(command, args);
        sleep(after);
        self.scratch.kill_daemon();
        let _ = xe.wait();
        self.scratch.start_daemon();
    }

    /// A machine that was killed in the middle of something runs, or sleeps; then it is woken.
    fn assert_one_of_both(&mut self, what: &str) {
        let state = self.power_state();
        let processes = self.processes();
        match state.as_str() {
            "running" => assert_eq!(processes, 1, "{what}"),
            "suspended" => {
                assert_eq!(processes, 0, "{what}");
                self.on("vm-resume");
            }
            other => panic!("{what}: the machine is {other}, with {processes} processes"),
        }
    }

    /// The first bytes of a disk.
    fn beginning(&self, vdi: &str, length: usize) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.scratch.socket()).expect("the daemon's socket");
        // root without a password, which the local socket takes.
        let head = "HTTP/1.0\r\nAuthorization: Basic cm9vdDo=\r\n\r\n";
        write!(stream, "GET /export_raw_vdi?vdi={vdi}&format=raw {head}").expect("the request");
        let mut all = Vec::new();
        let mut part = vec![0; MIB];
        let body = loop {
            let end = all.windows(4).take(4096).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
            if let Some(body) = end.filter(|body| all.len() >= body + length) {
                break body;
            }
            let read = stream.read(&mut part).expect("the disk");
            assert!(read > 0, "the disk ended early: {}", String::from_utf8_lossy(&all[..all.len().min(300)]));
            all.extend_from_slice(&part[..read]);
        };
        all[body..body + length].to_vec()
    }

    /// Writes over the beginning of a disk, past the daemon, which lets nobody write a sleeping machine's memory.
    fn overwrite(&mut self, vdi: &str, bytes: &[u8]) {
        let file = self.scratch.path("bytes");
        fs::write(&file, bytes).expect("a file");
        let import = [format!("uuid={vdi}"), format!("filename={}", file.display())];
        let refused = self.scratch.xe_fails(["vdi-import", &import[0], &import[1], "format=raw"]);
        assert!(refused.contains("in use"), "{refused}");
        let sr = self.scratch.xe_ok(["sr-list", "name-label=fast", "--minimal"]);
        let dir = self.scratch.path("run/sr").join(sr);
        let (token, target) = (String::from("a-stranger"), vdi.parse().expect("a uuid"));
        // Its last reader may still be going.
        self.scratch.eventually("the image can be written", |_| {
            let mut blockd = Door::open(&dir).map_err(|error| error.to_string())?;
            let attach = Verb::Attach { token: token.clone(), target, writable: true };
            blockd.control(attach).map(drop).map_err(|error| error.to_string())
        });
        let mut program = Command::new("qemu-io");
        program.args(["-f", "raw", "-c", &format!("write -s {} 0 {}", file.display(), bytes.len()), "-c", "flush"]);
        program.arg(format!("nbd+unix:///{token}?socket={}", dir.join("nbd.sock").display()));
        let status = program.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("qemu-io");
        assert!(status.success(), "qemu-io: {status}");
        let mut blockd = Door::open(&dir).expect("the store");
        blockd.control(Verb::Detach { token }).expect("the end of the attachment");
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Suspend and resume; what a suspended machine refuses; an image that is damaged.
fn sleeps_and_wakes(world: &mut World) {
    let before = world.counts();
    world.on("vm-suspend");
    assert_eq!((world.power_state().as_str(), world.processes()), ("suspended", 0));
    let images = world.images();
    assert_eq!(images, [world.parameter(&world.vm, "suspend-VDI-uuid")]);
    let refused = world.scratch.xe_fails(["vm-start", &format!("uuid={}", world.vm)]);
    assert!(refused.contains("suspended"), "{refused}");
    let vbds = world.scratch.xe_ok(["vbd-list", &format!("vm-uuid={}", world.vm), "params=vdi-uuid", "--minimal"]);
    for disk in vbds.split(',') {
        let file = world.scratch.path("strange");
        fs::write(&file, [7; 4096]).expect("a file");
        let import = ["vdi-import", &format!("uuid={disk}"), &format!("filename={}", file.display()), "format=raw"];
        let refused = world.scratch.xe(import);
        assert!(refused.status != 0, "a disk that the sleeping guest knows was written");
        let refused = world.scratch.xe_fails(["vdi-destroy", &format!("uuid={disk}")]);
        assert!(refused.contains("use"), "{refused}");
    }

    let whole = world.beginning(&images[0], 3 * MIB);
    let mut damaged = whole.clone();
    damaged[2 * MIB + 500_000] ^= 1;
    world.overwrite(&images[0], &damaged);
    let refused = world.scratch.xe_fails(["vm-resume", &format!("uuid={}", world.vm)]);
    assert!(refused.contains("damaged"), "{refused}");
    assert_eq!((world.power_state().as_str(), world.processes()), ("suspended", 0));
    world.overwrite(&images[0], &[vec![0; 64 << 10], whole[64 << 10..].to_vec()].concat());
    let refused = world.scratch.xe_fails(["vm-resume", &format!("uuid={}", world.vm)]);
    assert!(refused.contains("no complete memory image"), "{refused}");
    assert_eq!((world.power_state().as_str(), world.processes()), ("suspended", 0));
    world.overwrite(&images[0], &whole);

    world.on("vm-resume");
    assert_eq!((world.power_state().as_str(), world.processes()), ("running", 1));
    assert!(world.images().is_empty());
    world.assert_goes_on("after suspend and resume", &before);
}

/// A checkpoint and the way back to it, again and again.
fn goes_back(world: &mut World) -> String {
    let before = world.counts();
    let checkpoint = world.scratch.xe_ok(["vm-checkpoint", &format!("uuid={}", world.vm), "new-name-label=here"]);
    let after = world.assert_goes_on("after the checkpoint", &before);
    assert_eq!(world.parameter(&checkpoint, "power-state"), "suspended");
    let info = world.parameter(&checkpoint, "snapshot-info");
    assert!(info.contains("consistency: memory") && info.contains("paused_us"), "{info}");
    world.guest("touch /run/later /run/d/later && sync");

    for round in 0..2 {
        while world.counts().memory < after.memory + 50 {}
        world.scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={checkpoint}")]);
        assert_eq!((world.power_state().as_str(), world.processes()), ("suspended", 0), "round {round}");
        assert_eq!(world.images().len(), 2, "the checkpoint keeps its own");
        world.on("vm-resume");
        let back = world.counts();
        assert_eq!(world.guest("ls /run/later /run/d/later 2>/dev/null | wc -l"), "0", "round {round}");
        assert!(back.memory >= before.memory, "{back:?} after {before:?}");
        assert!(back.memory < after.memory + 50, "round {round}: {back:?} is not back at {after:?}");
        world.assert_goes_on("after the revert", &back);
    }

    let plain = world.scratch.xe_ok(["vm-snapshot", &format!("uuid={}", world.vm), "new-name-label=disks"]);
    world.scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={plain}")]);
    assert_eq!((world.power_state().as_str(), world.processes()), ("halted", 0));
    world.scratch.xe_ok(["snapshot-uninstall", &format!("snapshot-uuid={plain}"), "force=true"]);
    let twin = world.scratch.xe_ok(["vm-install", &format!("template={checkpoint}"), "new-name-label=twin"]);
    assert_eq!(world.parameter(&twin, "power-state"), "halted", "a new machine begins without memory");
    world.scratch.xe_ok(["vm-uninstall", &format!("uuid={twin}"), "force=true"]);
    world.scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={checkpoint}")]);
    world.on("vm-resume");
    world.assert_goes_on("after another revert", &before);
    checkpoint
}

/// Disks that came and went while the machine ran: its memory knows those that were there, at their places.
fn knows_disks_that_come_and_go(world: &mut World) {
    let image = guest::ext4_image(&world.scratch.path("late.raw"), DATA_BYTES);
    let (_, vbd) = guest::disk(&world.scratch, &world.vm, "2", &world.sr, &image);
    world.scratch.xe_ok(["vbd-plug", &format!("uuid={vbd}")]);
    world.guest("until [ -b /dev/vdc ]; do sleep 0.1; done; mkdir -p /run/late && mount -t ext4 /dev/vdc /run/late");
    world.guest("echo before >/run/late/words && sync");

    world.sleeps_and_goes_on("with a disk that was plugged in");
    world.guest("echo after >>/run/late/words && sync");
    let checkpoint = world.scratch.xe_ok(["vm-checkpoint", &format!("uuid={}", world.vm), "new-name-label=with"]);
    world.guest("echo lost >>/run/late/words && umount /run/late");
    world.scratch.xe_ok(["vbd-unplug", &format!("uuid={vbd}")]);
    world.guest("until ! [ -b /dev/vdc ]; do sleep 0.1; done");

    world.sleeps_and_goes_on("after a disk was unplugged");
    assert_eq!(world.guest("ls /dev/vdc 2>/dev/null | wc -l"), "0");
    let plugged = world.scratch.xe_ok(["vbd-param-get", &format!("uuid={vbd}"), "param-name=currently-attached"]);
    assert_eq!(plugged, "false");
    // Its place is free, in the machine that was built anew as well.
    world.scratch.xe_ok(["vbd-plug", &format!("uuid={vbd}")]);
    let said = "until mount -t ext4 /dev/vdc /run/late 2>/dev/null; do sleep 0.1; done; cat /run/late/words";
    assert_eq!(world.guest(said), "before\nafter\nlost");

    // Its memory knows the disk as it was then, mounted.
    world.scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={checkpoint}")]);
    world.on("vm-resume");
    assert_eq!(world.guest("grep -c /run/late /proc/mounts; cat /run/late/words"), "1\nbefore\nafter");
    world.guest("echo again >>/run/late/words && umount /run/late");
    let vbd = world.scratch.xe_ok(["vbd-list", &format!("vm-uuid={}", world.vm), "userdevice=2", "--minimal"]);
    world.scratch.xe_ok(["vbd-unplug", &format!("uuid={vbd}")]);
    world.sleeps_and_goes_on("after a disk of the memory was unplugged");
    let vdi = world.scratch.xe_ok(["vbd-param-get", &format!("uuid={vbd}"), "param-name=vdi-uuid"]);
    world.scratch.xe_ok(["vbd-destroy", &format!("uuid={vbd}")]);
    world.scratch.xe_ok(["vdi-destroy", &format!("uuid={vdi}")]);
    world.scratch.xe_ok(["snapshot-uninstall", &format!("snapshot-uuid={checkpoint}"), "force=true"]);
}

/// A checkpoint that is cancelled leaves nothing, and the guest goes on.
fn is_cancelled(world: &mut World) {
    let before = world.counts();
    let known = world.scratch.xe_ok(["vdi-list", "--minimal"]);
    let mut xe = world.begin("vm-checkpoint", &[&format!("uuid={}", world.vm), "new-name-label=never"]);
    let task = world.scratch.eventually("the checkpoint's task shows", |scratch| {
        let tasks = scratch.xe_ok(["task-list", "name-label=Async.VM.checkpoint", "status=pending", "--minimal"]);
        if tasks.is_empty() { Err("no task".into()) } else { Ok(tasks) }
    });
    world.scratch.xe_ok(["task-cancel", &format!("uuid={task}")]);
    let status = xe.wait().expect("xe ends");
    world.assert_goes_on("after a cancelled checkpoint", &before);
    if status.success() {
        // It was faster than the cancelling.
        let made = world.scratch.xe_ok(["snapshot-list", "name-label=never", "--minimal"]);
        world.scratch.xe_ok(["snapshot-uninstall", &format!("snapshot-uuid={made}"), "force=true"]);
    }
    assert_eq!(world.scratch.xe_ok(["vdi-list", "--minimal"]), known);
}

/// The daemon is killed again and again, each time a little later in the operation.
fn survives_kills(world: &mut World, checkpoint: &str) {
    let kills = std::env::var("TANADA_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let uuid = format!("uuid={}", world.vm);
    for (command, sleeps) in [("vm-suspend", false), ("vm-resume", true), ("vm-checkpoint", false)] {
        let args: Vec<&str> = match command {
            "vm-checkpoint" => vec![&uuid, "new-name-label=killed"],
            _ => vec![&uuid],
        };
        let took = time(world, command, &args, sleeps);
        for kill in 0..kills {
            let what = format!("{command} killed at {kill} of {kills}");
            let before = world.counts();
            if sleeps {
                world.on("vm-suspend");
            }
            world.kill_during(took * kill / kills, command, &args);
            world.assert_one_of_both(&what);
            world.assert_goes_on(&what, &before);
            uninstall_killed(world);
            assert_eq!(world.images().len(), 1, "{what}: only the checkpoint has memory");
        }
    }
    let revert = format!("snapshot-uuid={checkpoint}");
    let began = Instant::now();
    world.scratch.xe_ok(["snapshot-revert", &revert]);
    let took = began.elapsed();
    for kill in 0..kills {
        let what = format!("revert killed at {kill} of {kills}");
        if world.power_state() != "running" {
            world.on("vm-resume");
        }
        world.kill_during(took * kill / kills, "snapshot-revert", &[&revert]);
        let (state, processes) = (world.power_state(), world.processes());
        assert_eq!(processes, usize::from(state == "running"), "{what}: {state}");
        world.scratch.xe_ok(["snapshot-revert", &revert]);
        world.on("vm-resume");
        let now = world.counts();
        world.assert_goes_on(&what, &now);
        assert_eq!(world.images().len(), 1, "{what}");
    }
}

/// How long the operation takes when nobody kills; the machine runs afterwards.
fn time(world: &mut World, command: &str, args: &[&str], sleeps: bool) -> Duration {
    if sleeps {
        world.on("vm-suspend");
    }
    let began = Instant::now();
    world.scratch.xe_ok(std::iter::once(command).chain(args.iter().copied()));
    let took = began.elapsed();
    if world.power_state() == "suspended" {
        world.on("vm-resume");
    }
    uninstall_killed(world);
    took
}

fn uninstall_killed(world: &World) {
    let made = world.scratch.xe_ok(["snapshot-list", "name-label=killed", "--minimal"]);
    for snapshot in made.split(',').filter(|uuid| !uuid.is_empty()) {
        world.scratch.xe_ok(["snapshot-uninstall", &format!("snapshot-uuid={snapshot}"), "force=true"]);
    }
}

/// The machine and its checkpoint leave in a file, are lost, and go on where they were.
fn travels(world: &mut World, checkpoint: &str) {
    let before = world.counts();
    world.on("vm-suspend");
    let file = world.scratch.path("asleep.xva");
    let (uuid, filename) = (format!("uuid={}", world.vm), format!("filename={}", file.display()));
    world.scratch.xe_ok(["vm-export", &uuid, &filename, "include-snapshots=true", "preserve-power-state=true"]);
    let sr = world.scratch.xe_ok(["sr-list", "name-label=fast", "--minimal"]);
    world.scratch.xe_ok(["vm-uninstall", &uuid, "force=true"]);
    assert_eq!(world.scratch.xe_ok(["vdi-list", "--minimal"]), "");
    let vm = world.scratch.xe_ok(["vm-import", &filename, &format!("sr-uuid={sr}"), "restore=true"]);
    fs::remove_file(file).expect("the file");
    assert_eq!((&vm, world.power_state().as_str(), world.processes()), (&world.vm, "suspended", 0));
    assert_eq!(world.images().len(), 2, "the machine's memory and the checkpoint's");
    world.on("vm-resume");
    world.assert_goes_on("after the import", &before);
    world.scratch.xe_ok(["snapshot-revert", &format!("snapshot-uuid={checkpoint}")]);
    assert_eq!(world.power_state(), "suspended");
    world.on("vm-resume");
    let back = world.counts();
    assert!(back.boot == before.boot && back.memory < before.memory, "{back:?} is not before {before:?}");
    world.assert_goes_on("after a revert to what was imported", &back);
}

/// One guest for all of it: booting is what takes long.
#[test]
fn memory_is_kept_and_comes_back() {
    let mut world = World::new();
    sleeps_and_wakes(&mut world);
    let checkpoint = goes_back(&mut world);
    knows_disks_that_come_and_go(&mut world);
    is_cancelled(&mut world);
    survives_kills(&mut world, &checkpoint);
    travels(&mut world, &checkpoint);
    world.scratch.xe_ok(["vm-uninstall", &format!("uuid={}", world.vm), "force=true"]);
    assert_eq!(world.scratch.xe_ok(["vdi-list", "--minimal"]), "", "nothing is left of it");
}
