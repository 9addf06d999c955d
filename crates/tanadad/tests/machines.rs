//! Machines with a real guest, on storage that can be made to fail: an outside NBD server behind a driver of our own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tanada_driver::{
    AttachRequest, Capabilities, CloneRequest, CreateRequest, CutPair, CutReport, Driver, DriverError, DriverErrorKind,
    DriverResult, Endpoint, Extent, Moved, ScanEntry, SpaceFacts, VolumeFacts,
};
use tanada_xapi::{Map, Ref, Value};
use tanadad::config::Config;
use tanadad::context::Daemon;
use tanadad::db::{Db, Record, View};
use tanadad::ops::intents::Plan;
use tanadad::ops::machine::cut::{Instantness, Part, cut};
use tanadad::ops::reconcile;
use tanadad::ops::vdi::plan_copies;
use tanadad::vmm::power::{self, StartMode};
use tanadad::vmm::{self, disks, plugin};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// Far more than anything takes here, so that only what hangs fails.
const AMPLE: Duration = Duration::from_secs(240);

/// Serves files by nbdkit, one process for each attachment. Writes fail with ENOSPC while `failing` exists.
struct Served {
    dir: PathBuf,
    attached: Mutex<BTreeMap<String, Child>>,
    /// The machine's run state at each cut.
    cuts: Mutex<Vec<String>>,
}

/// What the one machine below `dir` does, asked over QEMU's second control socket.
fn run_state(dir: &Path) -> String {
    let machine = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let mut stream = std::os::unix::net::UnixStream::connect(machine.join("qmp2.sock")).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    for command in ["qmp_capabilities", "query-status"] {
        writeln!(stream, "{{\"execute\":\"{command}\"}}").unwrap();
    }
    let status = answers.find_map(|line| {
        let answer: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        answer["return"]["status"].as_str().map(str::to_owned)
    });
    status.expect("QEMU ended")
}

impl Served {
    fn file(&self, volume: Uuid) -> PathBuf {
        self.dir.join(format!("{volume}.raw"))
    }

    fn failing(&self) -> PathBuf {
        self.dir.join("failing")
    }

    fn attached(&self) -> usize {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).values_mut().for_each(end);
    }
}

fn end(server: &mut Child) {
    // It may have ended by itself.
    let _ = server.kill();
    let _ = server.wait();
}

fn unsupported<T>() -> DriverResult<T> {
    Err(DriverError::new(DriverErrorKind::Unsupported, "this storage only serves"))
}

#[async_trait]
impl Driver for Served {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            thin: false,
            offloaded: false,
            group_snapshot: false,
            constant_time: false,
            revert_in_place: false,
            exact_difference: false,
            resize_online: false,
            shared: false,
            clone_is_copy: false,
        }
    }
    async fn create(&self, _: &CreateRequest) -> DriverResult<(u64, Moved)> {
        unsupported()
    }
    async fn resize(&self, _: Uuid, _: u64) -> DriverResult<(u64, Moved)> {
        unsupported()
    }
    async fn destroy(&self, _: Uuid) -> DriverResult<Moved> {
        unsupported()
    }
    /// One volume at a time; notes what the machine does at that moment.
    async fn snapshot(&self, group: &[CutPair]) -> DriverResult<CutReport> {
        let [pair] = group else { return Err(DriverError::new(DriverErrorKind::NotAtomic, "one at a time")) };
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).push(run_state(&self.dir.join("../vm")));
        std::fs::copy(self.file(pair.volume), self.file(pair.generation))
            .map_err(|error| DriverError::new(DriverErrorKind::Io, error.to_string()))?;
        Ok(CutReport::default())
    }
    async fn clone_volume(&self, _: &CloneRequest) -> DriverResult<Moved> {
        unsupported()
    }
    async fn revert(&self, _: Uuid, _: Uuid) -> DriverResult<Moved> {
        unsupported()
    }
    async fn difference(&self, _: Uuid, _: Uuid) -> DriverResult<Vec<Extent>> {
        unsupported()
    }
    async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint> {
        let failed = |message: String| DriverError::new(DriverErrorKind::Unreachable, message);
        let (socket, pid_file) = (self.dir.join(&request.token), self.dir.join(format!("{}.pid", request.token)));
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.arg("--foreground").arg("--unix").arg(&socket).arg("--pidfile").arg(&pid_file);
        nbdkit.args(["--filter=error", "file"]).arg(self.file(request.target));
        nbdkit.args(["error=ENOSPC", "error-pwrite-rate=100%"]);
        nbdkit.arg(format!("error-file={}", self.failing().display()));
        if !request.writable {
            nbdkit.arg("--readonly");
        }
        if !self.file(request.target).is_file() {
            return Err(failed(format!("there is no volume {}", request.target)));
        }
        let mut server = nbdkit.spawn().map_err(|error| failed(error.to_string()))?;
        // It writes its process id once it listens.
        while !pid_file.exists() {
            if let Ok(Some(status)) = server.try_wait() {
                return Err(failed(format!("nbdkit: {status}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).insert(request.token.clone(), server);
        Ok(Endpoint::NbdUnix { socket, export: String::new() })
    }
    async fn detach(&self, token: &str) -> DriverResult<Moved> {
        let server = self.attached.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
        let changed = server.is_some();
        server.into_iter().for_each(|mut server| end(&mut server));
        Ok(Moved { changed, ..Moved::default() })
    }
    async fn attachments(&self) -> DriverResult<Vec<String>> {
        Ok(self.attached.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect())
    }
    async fn stat(&self, _: Uuid) -> DriverResult<VolumeFacts> {
        unsupported()
    }
    async fn space(&self) -> DriverResult<SpaceFacts> {
        unsupported()
    }
    async fn scan(&self) -> DriverResult<Vec<ScanEntry>> {
        unsupported()
    }
    async fn put_metadata(&self, _: &[u8]) -> DriverResult<()> {
        unsupported()
    }
    async fn metadata(&self) -> DriverResult<Option<Vec<u8>>> {
        Ok(None)
    }
    async fn settle(&self) -> DriverResult<()> {
        Ok(())
    }
    fn alerts(&self) -> tokio::sync::broadcast::Receiver<tanada_driver::Alert> {
        tokio::sync::broadcast::channel(1).1
    }
}

/// A host with storage and one VM, in a scratch directory.
struct World {
    dir: tempfile::TempDir,
    storage: Arc<Served>,
    sr: Ref,
    vm: Ref,
    data: Ref,
}

/// The daemon of one life, on a runtime of its own: dropping that ends it as a crash would.
struct Life {
    runtime: Runtime,
    daemon: Arc<Daemon>,
}

/// Ends the machine that a failed test left: the process that listens in its directory.
impl Drop for World {
    fn drop(&mut self) {
        for dir in std::fs::read_dir(self.dir.path().join("run/vm")).into_iter().flatten().flatten() {
            let Ok(listener) = std::os::unix::net::UnixStream::connect(dir.path().join("qmp2.sock")) else { continue };
            if let Ok(peer) = rustix::net::sockopt::socket_peercred(&listener) {
                let _ = rustix::process::kill_process(peer.pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        // QEMU's user passes through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let storage =
            Arc::new(Served { dir: dir.path().join("run/served"), attached: Mutex::default(), cuts: Mutex::default() });
        for sub in ["state", "run/served"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let db = Db::open(&config(dir.path()).database()).unwrap();
        let (root, data) = (Uuid::new_v4(), Uuid::new_v4());
        std::fs::copy(guest_disk(), storage.file(root)).unwrap();
        std::fs::File::create(storage.file(data)).unwrap().set_len(8 << 20).unwrap();
        let (sr, vm, data) = db
            .write(|tx| {
                tx.create("host", [("name_label", Value::from("here"))])?;
                let sr = tx.create("SR", [("type", Value::from("served"))])?;
                let vm = tx.create(
                    "VM",
                    [
                        ("name_label", Value::from("db1")),
                        ("power_state", "Halted".into()),
                        ("memory_dynamic_max", (256_i64 << 20).into()),
                        ("VCPUs_at_startup", 1_i64.into()),
                        ("domid", (-1_i64).into()),
                        ("actions_after_shutdown", "destroy".into()),
                        ("actions_after_reboot", "restart".into()),
                        ("actions_after_crash", "restart".into()),
                    ],
                )?;
                disk(tx, &sr, &vm, root, "0")?;
                let data = disk(tx, &sr, &vm, data, "1")?;
                Ok((sr, vm, data))
            })
            .unwrap();
        World { dir, storage, sr, vm, data }
    }

    /// Begins a life of the daemon: as at its start, with the storage attached.
    fn live(&self) -> Life {
        let runtime = Runtime::new().unwrap();
        let daemon = runtime.block_on(async {
            let config = config(self.dir.path());
            let db = Db::open(&config.database()).unwrap();
            let daemon = Daemon::new(config, db, tanadad::run::handlers()).unwrap();
            daemon.storage.put_driver(&self.sr, self.storage.clone());
            tanadad::storage::load_attachments(&daemon).unwrap();
            vmm::start(&daemon).await.unwrap();
            tanadad::storage::end_leftovers(&daemon).await;
            daemon
        });
        Life { runtime, daemon }
    }
}

fn config(dir: &Path) -> Config {
    Config { state_dir: dir.join("state"), runtime_dir: dir.join("run"), ..Config::default() }
}

/// A VDI and its VBD.
fn disk(tx: &mut tanadad::db::Tx<'_>, sr: &Ref, vm: &Ref, volume: Uuid, device: &str) -> tanada_xapi::ApiResult<Ref> {
    let vdi = tx.create(
        "VDI",
        [
            ("SR", Value::from(sr)),
            ("location", volume.to_string().into()),
            ("managed", true.into()),
            ("type", "user".into()),
        ],
    )?;
    tx.create(
        "VBD",
        [
            ("VM", Value::from(vm)),
            ("VDI", Value::from(vdi)),
            ("userdevice", device.into()),
            ("bootable", (device == "0").into()),
            ("mode", "RW".into()),
            ("type", "Disk".into()),
            ("unpluggable", true.into()),
        ],
    )
}

fn guest_disk() -> PathBuf {
    let dir = std::env::var_os("TANADA_GUEST_DIR").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"));
    let disk = dir.join("disk.raw");
    let words = "is missing: make the guest with `cargo xtask guest`, or name its directory in TANADA_GUEST_DIR";
    assert!(disk.is_file(), "{} {words}", disk.display());
    disk
}

impl Life {
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(AMPLE, work).await.expect("not within the time for anything") })
    }

    fn record(&self, class: &str, id: &Ref) -> Arc<Record> {
        self.daemon.db.read(|state| state.get(class, id)).unwrap()
    }

    /// Waits until the database says so.
    async fn until(&self, class: &str, id: &Ref, holds: impl Fn(&Record) -> bool) {
        let mut changed = self.daemon.db.changed();
        while !self.daemon.db.read(|state| state.find(class, id).is_some_and(|record| holds(&record))) {
            changed.changed().await.unwrap();
        }
    }

    /// The VM's metrics, once they are there.
    async fn until_state(&self, vm: &Ref, state: &str) {
        let metrics = self.record("VM", vm).reference("metrics");
        self.until("VM_metrics", &metrics, |metrics| metrics.strings("state") == [state]).await;
    }

    async fn start(&self, vm: &Ref) {
        power::start(&self.daemon, vm, StartMode::Run).await.unwrap();
        self.until_guest_lives(vm).await;
    }

    async fn until_guest_lives(&self, vm: &Ref) {
        self.until("VM", vm, |vm| !vm.reference("guest_metrics").is_null()).await;
    }

    /// Runs a command in the guest; what it wrote.
    async fn guest(&self, vm: &Ref, command: &str) -> String {
        let machine = self.daemon.vmm.machine(vm).expect("it runs");
        let args: Map = [("command".to_string(), Value::from(command))].into_iter().collect();
        let answer = plugin::call(&machine, "exec", &args).await.unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["exitcode"], 0, "{command}: {answer}");
        answer["stdout"].as_str().unwrap().trim().to_string()
    }

    /// Ends the life as a crash would: nothing is told to anybody.
    fn crash(self) {
        self.runtime.shutdown_background();
    }
}

#[test]
fn a_machine_outlives_the_daemon_and_is_cleared_up_by_the_next() {
    let world = World::new();
    let first = world.live();
    first.run(first.start(&world.vm));
    let pid = first.daemon.vmm.machine(&world.vm).unwrap().process.pid();
    assert_eq!(world.storage.attached(), 2);
    first.crash();

    let second = world.live();
    let vm = second.record("VM", &world.vm);
    assert_eq!(vm.str("power_state"), "Running");
    assert_eq!(second.daemon.vmm.machine(&world.vm).unwrap().process.pid(), pid);
    assert!(second.record("VBD", &world.data).bool("currently_attached"));
    assert_eq!(world.storage.attached(), 2);
    second.run(async {
        second.until_guest_lives(&world.vm).await;
        let uuid = second.guest(&world.vm, "cat /sys/class/dmi/id/product_uuid").await;
        assert_eq!(uuid.to_lowercase(), vm.uuid());
        power::clean_shutdown(&second.daemon, &world.vm, &tanadad::rpc::task::TaskHandle::internal()).await.unwrap();
    });
    let vm = second.record("VM", &world.vm);
    assert_eq!((vm.str("power_state"), vm.int("domid")), ("Halted", -1));
    assert!(vm.reference("resident_on").is_null() && vm.refs("consoles").is_empty());
    assert!(!second.record("VBD", &world.data).bool("currently_attached"));
    assert_eq!(world.storage.attached(), 0, "no disk stays attached");
}

#[test]
fn a_machine_that_ended_while_nobody_watched_is_halted_afterwards() {
    let world = World::new();
    let first = world.live();
    first.run(async { power::start(&first.daemon, &world.vm, StartMode::Paused).await.unwrap() });
    let machine = first.daemon.vmm.machine(&world.vm).unwrap();
    first.crash();
    machine.process.kill_now();
    drop(machine);
    let second = world.live();
    second.run(second.until("VM", &world.vm, |vm| vm.str("power_state") == "Halted"));
    assert_eq!(world.storage.attached(), 0);
}

#[test]
fn a_full_storage_holds_the_guest_and_room_lets_it_go_on() {
    let world = World::new();
    let life = world.live();
    life.run(async {
        life.start(&world.vm).await;
        std::fs::write(world.storage.failing(), b"").unwrap();
        let writes = life.guest(&world.vm, "dd if=/dev/zero of=/dev/vdb bs=64k count=4 oflag=direct 2>&1");
        let holds_and_goes_on = async {
            life.until_state(&world.vm, "io-error").await;
            let vbd = life.record("VBD", &world.data);
            assert_eq!(vbd.str("status_detail"), "no space left on the storage");
            assert_eq!(life.record("VM", &world.vm).str("power_state"), "Running");
            std::fs::remove_file(world.storage.failing()).unwrap();
            life.until_state(&world.vm, "running").await;
        };
        let (written, ()) = tokio::join!(writes, holds_and_goes_on);
        assert!(written.contains("4+0 records out"), "{written}");
        assert_eq!(life.guest(&world.vm, "dmesg | grep -c 'I/O error' || true").await, "0");
        power::force_off(&life.daemon, &world.vm).await.unwrap();
    });
    assert_eq!(life.record("VM", &world.vm).str("power_state"), "Halted");
    assert_eq!(world.storage.attached(), 0);
}

#[test]
fn a_guest_is_held_and_restarted() {
    let world = World::new();
    let life = world.live();
    let power_state = || life.record("VM", &world.vm).str("power_state").to_owned();
    life.run(async {
        life.start(&world.vm).await;
        power::pause(&life.daemon, &world.vm).await.unwrap();
        assert_eq!(power_state(), "Paused");
        power::unpause(&life.daemon, &world.vm).await.unwrap();
        assert_eq!(power_state(), "Running");

        life.guest(&world.vm, "touch /run/before").await;
        let pid = life.daemon.vmm.machine(&world.vm).unwrap().process.pid();
        power::clean_reboot(&life.daemon, &world.vm, &tanadad::rpc::task::TaskHandle::internal()).await.unwrap();
        let facts = life.record("VM", &world.vm).reference("guest_metrics");
        life.until("VM_guest_metrics", &facts, |facts| !facts.bool("live")).await;
        life.until("VM_guest_metrics", &facts, |facts| facts.bool("live")).await;
        life.guest(&world.vm, "[ ! -e /run/before ]").await;
        assert_eq!(life.daemon.vmm.machine(&world.vm).unwrap().process.pid(), pid, "a restart keeps the process");

        power::hard_reboot(&life.daemon, &world.vm).await.unwrap();
        assert_eq!(power_state(), "Running");
        power::force_off(&life.daemon, &world.vm).await.unwrap();
        assert_eq!(power_state(), "Halted");
    });
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    let world = World::new();
    let life = world.live();
    life.daemon
        .db
        .write(|tx| {
            let vbd = disk(tx, &world.sr, &world.vm, Uuid::new_v4(), "2")?;
            tx.set("VBD", &vbd, "mode", "RO")
        })
        .unwrap();
    let error = life.run(power::start(&life.daemon, &world.vm, StartMode::Run)).unwrap_err();
    assert!(error.is("SR_BACKEND_FAILURE_47"), "{error}");
    assert!(life.daemon.vmm.machine(&world.vm).is_none());
    assert_eq!(life.record("VM", &world.vm).str("power_state"), "Halted");
    assert_eq!(world.storage.attached(), 0);
}

#[test]
fn a_disk_comes_and_goes_while_the_guest_runs() {
    let world = World::new();
    let life = world.live();
    let extra = Uuid::new_v4();
    std::fs::File::create(world.storage.file(extra)).unwrap().set_len(4 << 20).unwrap();
    let vbd = life.daemon.db.write(|tx| disk(tx, &world.sr, &world.vm, extra, "2")).unwrap();
    life.daemon.db.write(|tx| tx.set("VM", &world.vm, "power_state", "Halted")).unwrap();
    life.run(async {
        // Not at the start: plugged when the guest runs.
        life.daemon.db.write(|tx| tx.set("VBD", &vbd, "empty", true)).unwrap();
        life.start(&world.vm).await;
        life.daemon.db.write(|tx| tx.set("VBD", &vbd, "empty", false)).unwrap();
        disks::plug(&life.daemon, &vbd).await.unwrap();
        assert_eq!(life.record("VBD", &vbd).str("device"), "vdc");
        assert_eq!(
            life.guest(&world.vm, "until [ -b /dev/vdc ]; do sleep 0.1; done; cat /sys/block/vdc/size").await,
            "8192"
        );
        disks::unplug(&life.daemon, &vbd).await.unwrap();
        assert!(!life.record("VBD", &vbd).bool("currently_attached"));
        life.guest(&world.vm, "[ ! -e /dev/vdc ]").await;
        assert_eq!(world.storage.attached(), 2);
        power::force_off(&life.daemon, &world.vm).await.unwrap();
    });
}

#[test]
fn a_machine_stands_still_while_its_disks_are_cut_one_by_one() {
    let world = World::new();
    let life = world.live();
    life.run(async {
        life.start(&world.vm).await;
        let disks: Vec<Arc<Record>> = life.daemon.db.read(|state| state.all("VDI"));
        let planned = plan_copies(&disks).unwrap();
        let sr = disks[0].reference("SR");
        let parts = [Part { sr, driver: world.storage.clone(), planned }];
        let instantness = cut(&life.daemon, &world.vm, &parts).await.unwrap().instantness;
        assert!(matches!(instantness, Instantness::Held { held_us } if held_us > 0), "{instantness:?}");
        assert_eq!(*world.storage.cuts.lock().unwrap_or_else(PoisonError::into_inner), ["paused", "paused"]);
        assert_eq!(life.record("VM", &world.vm).str("power_state"), "Running");
        assert_eq!(life.daemon.db.intents().unwrap().iter().filter(|intent| intent.kind == "hold").count(), 0);
        life.guest(&world.vm, "true").await;

        // A daemon that died meanwhile: the next one lets it go on.
        let machine = life.daemon.vmm.machine(&world.vm).unwrap();
        assert!(power::hold(&machine).await.unwrap());
        let intent = Plan::Hold { vm: world.vm.to_string() }.write(&life.daemon).unwrap();
        assert_eq!(run_state(&world.dir.path().join("run/vm")), "paused");
        reconcile::let_guests_go(&life.daemon).await;
        assert_eq!(run_state(&world.dir.path().join("run/vm")), "running");
        assert!(life.daemon.db.intents().unwrap().iter().all(|left| left.id != intent));
        power::force_off(&life.daemon, &world.vm).await.unwrap();
    });
}
