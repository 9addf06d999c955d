//! A guest at rest while its disks are cut on two stores: one instant, file systems that need no recovery, and a
//! certificate that says how it was done. A guard of the freeze that hangs changes the certificate at most.
//!
//! In the guest a program counts: each number is durable on the first store before it is written to the second.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tanada_e2e::{Scratch, guest, tanada};

const DATA_BYTES: u64 = 16 << 20;
/// When guards are stopped, after they have started: they connect, freeze, hold and thaw within some hundred milliseconds.
const STOPS_MS: [u64; 3] = [0, 60, 150];

struct World {
    scratch: Scratch,
    stores: [String; 2],
    vm: String,
}

impl World {
    fn new() -> World {
        let scratch = guest::host();
        let stores = ["near", "far"].map(|name| guest::store(&scratch, name));
        let [a, b] = ["a", "b"].map(|name| guest::ext4_image(&scratch.path(&format!("{name}.raw")), DATA_BYTES));
        let root = guest::root_image();
        let vm = guest::start(&scratch, "db1", &[(&stores[0], &root), (&stores[0], &a), (&stores[1], &b)]);
        let mut world = World { scratch, stores, vm };
        world.guest("mkdir -p /run/a /run/b && mount -t ext4 /dev/vdb /run/a && mount -t ext4 /dev/vdc /run/b");
        world.guest(
            "(n=0; while :; do n=$((n+1)); for d in /run/a /run/b; do echo $n >$d/new; sync; mv $d/new $d/count; sync; done; \
             done) >/dev/null 2>&1 </dev/null & until [ -s /run/b/count ]; do sleep 0.1; done",
        );
        world
    }

    fn guest(&mut self, command: &str) -> String {
        guest::run(&mut self.scratch, &self.vm, command)
    }

    /// The program in the guest counts on.
    fn assert_counts_on(&mut self) {
        self.guest("n=$(cat /run/b/count); until [ $(cat /run/b/count) -gt $n ]; do sleep 0.05; done");
    }

    fn snapshot(&self, command: &str) -> String {
        self.scratch.xe_ok([command, &format!("uuid={}", self.vm), &format!("new-name-label={command}")])
    }

    /// A snapshot whose guard stands still `after` it was started.
    fn snapshot_without_guard(&mut self, after: Duration) -> String {
        let name = format!("unguarded-{}", after.as_millis());
        let mut xe = Command::new(tanada());
        xe.args(["xe", "vm-snapshot", &format!("uuid={}", self.vm), &format!("new-name-label={name}")]);
        xe.env("TANADA_SOCKET", self.scratch.socket());
        let mut xe = xe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting xe");
        let guard = loop {
            if let Some(guard) = guard_of(&self.vm) {
                break guard;
            }
            assert!(xe.try_wait().expect("xe").is_none(), "a snapshot was taken without a guard");
            sleep(Duration::from_millis(1));
        };
        sleep(after);
        // It may have done its part already.
        let _ = kill_process(guard, Signal::STOP);
        assert!(xe.wait().expect("xe").success(), "{name}");
        let vm = self.vm.clone();
        self.scratch.eventually("the guard has ended", |_| guard_of(&vm).map_or(Ok(()), |pid| Err(format!("{pid:?}"))));
        self.scratch.xe_ok(["snapshot-list", &format!("name-label={name}"), "--minimal"])
    }

    /// A key of the snapshot's certificate; `None` where it has none.
    fn told(&self, snapshot: &str, key: &str) -> Option<String> {
        let args = [format!("uuid={snapshot}"), "param-name=snapshot-info".into(), format!("param-key={key}")];
        let ran = self.scratch.xe(std::iter::once("snapshot-param-get".to_owned()).chain(args));
        (ran.status == 0).then(|| ran.out.trim().to_owned())
    }

    fn number(&self, snapshot: &str, key: &str) -> u64 {
        let told = self.told(snapshot, key).unwrap_or_else(|| panic!("the certificate has no {key}"));
        told.parse().unwrap_or_else(|_| panic!("{key} is {told}"))
    }

    /// A disk of a snapshot as a file.
    fn image(&self, snapshot: &str, device: usize) -> PathBuf {
        let vdi = self.scratch.disk(snapshot, device);
        let file = self.scratch.path(&format!("{vdi}.raw"));
        let name = format!("filename={}", file.display());
        self.scratch.xe_ok(["vdi-export", &format!("uuid={vdi}"), &name, "format=raw"]);
        file
    }

    /// Everything that a certificate says of a cut over two stores.
    fn assert_told(&self, snapshot: &str, level: &str) {
        assert_eq!(self.told(snapshot, "consistency").as_deref(), Some(level));
        assert!(self.number(snapshot, "held_us") > 0);
        // The disks of one store are of one instant; the other store's came later, while the machine was held.
        let skew = self.number(snapshot, "skew_us");
        assert!(skew > 0 && skew <= self.number(snapshot, "held_us"));
        for (device, store, expected) in [("0", 0, 0), ("1", 0, 0), ("2", 1, skew)] {
            assert_eq!(self.told(snapshot, &format!("disk.{device}.sr")).as_deref(), Some(&*self.stores[store]));
            assert_eq!(self.number(snapshot, &format!("disk.{device}.skew_us")), expected, "disk {device}");
            assert_eq!(self.told(snapshot, &format!("disk.{device}.level")).as_deref(), Some(level));
        }
    }
}

/// The guard of a freeze of this machine.
fn guard_of(vm: &str) -> Option<Pid> {
    let numbers = fs::read_dir("/proc").expect("/proc").flatten();
    let mut numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let guard = numbers.find(|pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("quiesce-guard") && line.contains(vm)
    });
    guard.and_then(Pid::from_raw)
}

/// What a file in the image's file system holds.
fn content(image: &Path, file: &str) -> u64 {
    let read = Command::new("debugfs").args(["-R", &format!("cat {file}")]).arg(image).output().expect("debugfs");
    let text = String::from_utf8_lossy(&read.stdout).into_owned();
    text.trim().parse().unwrap_or_else(|_| panic!("{file} of {}: {text:?}", image.display()))
}

fn needs_recovery(image: &Path) -> bool {
    let told = Command::new("dumpe2fs").arg("-h").arg(image).output().expect("dumpe2fs");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8_lossy(&told.stdout).contains("needs_recovery")
}

/// Replays the journal, and finds nothing else to mend.
fn recover(image: &Path) {
    let checked = Command::new("e2fsck").args(["-p", "-f"]).arg(image).output().expect("e2fsck");
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{}: {text}", image.display());
}

/// The number on the second store is the first one's, or the one before.
fn assert_one_instant(a: &Path, b: &Path) {
    let (a, b) = (content(a, "count"), content(b, "count"));
    assert!(b <= a && a <= b + 1, "{a} on the first store, {b} on the second");
}

#[test]
fn disks_on_two_stores_are_frozen_and_cut_together_whatever_becomes_of_the_guard() {
    let mut world = World::new();
    let snapshot = world.snapshot("vm-snapshot-with-quiesce");
    world.assert_counts_on();
    world.assert_told(&snapshot, "file system");
    assert_eq!(world.told(&snapshot, "freeze-held").as_deref(), Some("yes"));
    assert!(world.number(&snapshot, "frozen_us") > world.number(&snapshot, "held_us"));
    assert_eq!(world.number(&snapshot, "file-systems-frozen"), world.number(&snapshot, "file-systems-thawed"));
    let [a, b] = [1, 2].map(|device| world.image(&snapshot, device));
    assert!(!needs_recovery(&a) && !needs_recovery(&b), "frozen file systems need no recovery");
    assert_one_instant(&a, &b);

    // Nobody is asked: the machine is held all the same, and the order of its writes with it.
    let vm = format!("uuid={}", world.vm);
    world.scratch.xe_ok(["vm-param-set", &vm, "other-config:tanada-quiesce=skip"]);
    let snapshot = world.snapshot("vm-snapshot");
    world.assert_counts_on();
    world.assert_told(&snapshot, "crash");
    assert_eq!(world.told(&snapshot, "not-quiesced-code").as_deref(), Some("skipped"));
    assert_eq!(world.told(&snapshot, "frozen_us"), None);
    let [a, b] = [1, 2].map(|device| world.image(&snapshot, device));
    assert!(needs_recovery(&a) && needs_recovery(&b), "the program was writing");
    recover(&a);
    recover(&b);
    assert_one_instant(&a, &b);

    world.scratch.xe_ok(["vm-param-set", &vm, "other-config:tanada-quiesce=prefer"]);
    for after in STOPS_MS.map(Duration::from_millis) {
        let snapshot = world.snapshot_without_guard(after);
        world.assert_counts_on();
        let level = world.told(&snapshot, "consistency").expect("a level");
        let [a, b] = [1, 2].map(|device| world.image(&snapshot, device));
        match world.told(&snapshot, "not-quiesced-code").as_deref() {
            None => assert!(level == "file system" && !needs_recovery(&a) && !needs_recovery(&b), "{after:?}: {level}"),
            Some(code) => assert_eq!((level.as_str(), code), ("crash", "guard-failed"), "{after:?}"),
        }
        recover(&a);
        recover(&b);
        assert_one_instant(&a, &b);
    }
}
