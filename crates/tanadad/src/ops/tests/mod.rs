//! The storage operations over an SR in memory that can fail, and over restarts of the daemon.

mod arrays;
mod asleep;
mod attached;
mod certificates;
mod changed;
mod failures;
mod left;
mod lifecycle;
mod reverts;
mod scale;
mod schedules;
mod turns;

use std::collections::BTreeSet;
use std::sync::Arc;

use tanada_driver::memory::{MemoryBackend, MemoryDriver};
use tanada_driver::registry::{Backend, Registry};
use tanada_xapi::{ApiResult, Ref, Value};
use uuid::Uuid;

use crate::config::Config;
use crate::context::Daemon;
use crate::db::{Db, Record, View};
use crate::ops;
use crate::rpc::session::Role;
use crate::rpc::setup;
use crate::testing::TestDaemon;

/// A daemon with one SR in memory. The memory outlives the daemon.
struct World {
    test: TestDaemon,
    driver: MemoryDriver,
    sr: Ref,
}

impl World {
    async fn new() -> World {
        World::over(MemoryDriver::default()).await
    }

    async fn over(driver: MemoryDriver) -> World {
        let dir = tempfile::tempdir().unwrap();
        let test = begin(&driver, dir).await;
        let host = test.daemon.db.read(|state| state.only("host").unwrap().id().clone());
        let sr = test
            .call(
                "SR.create",
                [
                    Value::from(host),
                    Value::map([("location", "memory")]),
                    Value::from(0),
                    Value::from("fast"),
                    Value::from(""),
                    Value::from("memory"),
                    Value::from(""),
                    Value::from(false),
                    Value::empty_map(),
                ],
            )
            .await
            .unwrap();
        let sr = reference(&sr);
        World { test, driver, sr }
    }

    /// A new daemon that introduces the SR which `driver` holds.
    async fn over_introduced(driver: MemoryDriver, sr_uuid: &str) -> World {
        let test = begin(&driver, tempfile::tempdir().unwrap()).await;
        let host = test.daemon.db.read(|state| state.only("host").unwrap().id().clone());
        let params = [sr_uuid, "again", "", "memory", "user"].map(Value::from);
        let params = params.into_iter().chain([Value::from(false), Value::empty_map()]);
        let sr = reference(&test.call("SR.introduce", params).await.unwrap());
        let config = Value::map([("location", "memory")]);
        let pbd = Value::map([("host", Value::from(host)), ("SR", Value::from(&sr)), ("device_config", config)]);
        let pbd = test.call("PBD.create", [pbd]).await.unwrap();
        test.call("PBD.plug", [pbd]).await.unwrap();
        World { test, driver, sr }
    }

    /// The daemon ends without a word and another one begins on the same state.
    async fn restart(self) -> World {
        let World { test, driver, sr } = self;
        let TestDaemon { daemon, dir, .. } = test;
        drop(daemon);
        World { test: begin(&driver, dir).await, driver, sr }
    }

    async fn call(&self, method: &str, params: impl IntoIterator<Item = Value>) -> ApiResult<Value> {
        self.test.call(method, params).await
    }

    fn get(&self, class: &str, id: &Ref) -> Arc<Record> {
        self.test.daemon.db.read(|state| state.get(class, id).unwrap())
    }

    fn all(&self, class: &str) -> Vec<Arc<Record>> {
        self.test.daemon.db.read(|state| state.all(class))
    }

    async fn disk(&self, name: &str) -> Ref {
        let record = Value::map([
            ("name_label", Value::from(name)),
            ("name_description", Value::from("")),
            ("SR", Value::from(&self.sr)),
            ("virtual_size", Value::from(1 << 20)),
            ("type", Value::from("user")),
            ("sharable", Value::from(false)),
            ("read_only", Value::from(false)),
            ("other_config", Value::empty_map()),
        ]);
        reference(&self.call("VDI.create", [record]).await.unwrap())
    }

    /// A halted machine with `disks` disks and a network device.
    async fn machine(&self, disks: usize) -> Ref {
        let template = self.all("VM").into_iter().find(|vm| vm.bool("is_default_template")).unwrap();
        let vm = reference(&self.call("VM.clone", [Value::from(template.id()), Value::from("db1")]).await.unwrap());
        self.call("VM.provision", [Value::from(&vm)]).await.unwrap();
        for number in 0..disks {
            let vdi = self.disk(&format!("disk {number}")).await;
            self.vbd(&vm, &vdi, "autodetect", "RW").await.unwrap();
        }
        let network = self.all("network")[0].id().clone();
        let vif = Value::map([
            ("VM", Value::from(&vm)),
            ("network", Value::from(network)),
            ("device", Value::from("0")),
            ("MAC", Value::from("")),
            ("MTU", Value::from(1500)),
            ("other_config", Value::empty_map()),
            ("qos_algorithm_type", Value::from("")),
            ("qos_algorithm_params", Value::empty_map()),
        ]);
        self.call("VIF.create", [vif]).await.unwrap();
        vm
    }

    async fn vbd(&self, vm: &Ref, vdi: &Ref, device: &str, mode: &str) -> ApiResult<Ref> {
        let record = Value::map([
            ("VM", Value::from(vm)),
            ("VDI", Value::from(vdi)),
            ("userdevice", Value::from(device)),
            ("bootable", Value::from(false)),
            ("mode", Value::from(mode)),
            ("type", Value::from("Disk")),
            ("empty", Value::from(false)),
            ("other_config", Value::empty_map()),
            ("qos_algorithm_type", Value::from("")),
            ("qos_algorithm_params", Value::empty_map()),
        ]);
        self.call("VBD.create", [record]).await.map(|value| reference(&value))
    }

    async fn snapshot(&self, vm: &Ref, name: &str) -> ApiResult<Ref> {
        let params = [Value::from(vm), Value::from(name), Value::empty_set()];
        self.call("VM.snapshot", params).await.map(|value| reference(&value))
    }

    /// The volumes of a machine's disks in the order of their places.
    fn volumes(&self, vm: &Ref) -> Vec<Uuid> {
        let mut vbds = self.test.daemon.db.read(|state| state.resolve("VBD", &self.get("VM", vm).refs("VBDs")));
        vbds.sort_by_key(|vbd| vbd.str("userdevice").parse::<u32>().unwrap());
        let volume =
            |vbd: &Arc<Record>| Uuid::parse_str(self.get("VDI", &vbd.reference("VDI")).str("location")).unwrap();
        vbds.iter().map(volume).collect()
    }

    fn vdis(&self, vm: &Ref) -> Vec<Ref> {
        let vbds = self.test.daemon.db.read(|state| state.resolve("VBD", &self.get("VM", vm).refs("VBDs")));
        vbds.iter().map(|vbd| vbd.reference("VDI")).collect()
    }

    /// Every volume has its VDI and the other way round, nothing is under way, no reference of a VBD dangles.
    async fn assert_consistent(&self, what: &str) {
        let daemon = &self.test.daemon;
        let differences = ops::reconcile::differences(daemon, &self.sr).await.unwrap();
        assert!(differences.is_empty(), "{what}: {differences:?}");
        let locations: BTreeSet<String> = self.all("VDI").iter().map(|vdi| vdi.str("location").to_owned()).collect();
        let volumes: BTreeSet<String> = self.driver.ids().iter().map(Uuid::to_string).collect();
        assert_eq!(locations, volumes, "{what}");
        assert_eq!(daemon.db.intents().unwrap(), [], "{what}");
        for vbd in self.all("VBD") {
            let (vm, vdi) = (vbd.reference("VM"), vbd.reference("VDI"));
            let found = daemon.db.read(|state| (state.find("VM", &vm).is_some(), state.find("VDI", &vdi).is_some()));
            assert_eq!(found, (true, true), "{what}");
        }
        for class in ["VM", "VDI", "SR"] {
            for record in self.all(class) {
                assert!(record.map("current_operations").is_empty(), "{what}: {class} {}", record.uuid());
            }
        }
    }
}

fn reference(value: &Value) -> Ref {
    Ref::from(value.as_str().unwrap())
}

async fn begin(driver: &MemoryDriver, dir: tempfile::TempDir) -> TestDaemon {
    let config = Config {
        state_dir: dir.path().join("state"),
        runtime_dir: dir.path().join("run"),
        unix_socket: dir.path().join("run/xapi"),
        clock: Some(dir.path().join("run/clock")),
        ..Config::default()
    };
    std::fs::create_dir_all(&config.state_dir).unwrap();
    std::fs::create_dir_all(&config.runtime_dir).unwrap();
    let db = Db::open(&config.database()).unwrap();
    setup::ensure(&db, &config).unwrap();
    let daemon = Daemon::new(config, db, ops::handlers()).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend(driver.clone()));
    daemon.storage.replace_registry(Registry::new([backend]));
    ops::start(&daemon).await.unwrap();
    ops::after_machines(&daemon).await;
    let session = daemon.sessions.open(&daemon.db, "root", "", Role::PoolAdmin, true).unwrap();
    TestDaemon { session: session.id().clone(), daemon, dir }
}
