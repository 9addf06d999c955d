//! What SRs on arrays need of the daemon: passwords, choices, names, disks that cannot be cut together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tanada_driver::memory::MemoryDriver;
use tanada_driver::registry::{Backend, ConfigKey, DriverType, Found, Registry, SrConfig};
use tanada_driver::{Driver, DriverError, DriverErrorKind, DriverResult};
use tanada_xapi::{ApiResult, Ref, Value};

use super::{World, reference};
use crate::db::View;

static FACTS: DriverType = DriverType {
    name: "array",
    name_label: "Array",
    description: "An array that only knows its configuration",
    vendor: "Tanada",
    copyright: "The Tanada contributors",
    version: "1",
    required_api_version: "1.0",
    shared: true,
    features: &[("SR_CREATE", 1), ("SR_PROBE", 1)],
    configuration: &[
        ConfigKey::required("target", "address", 120),
        ConfigKey::required("password", "password", 122),
        ConfigKey::optional("aggregate", "where volumes are made"),
    ],
    options: &[],
};

/// Remembers what it was told.
#[derive(Default)]
struct Array {
    driver: MemoryDriver,
    seen: Mutex<Vec<SrConfig>>,
}

impl Array {
    fn see(&self, config: &SrConfig) {
        self.seen.lock().unwrap().push(config.clone());
    }
}

#[async_trait]
impl Backend for Array {
    fn facts(&self) -> &'static DriverType {
        &FACTS
    }

    async fn create(&self, config: &SrConfig) -> DriverResult<()> {
        if config.device_config.contains_key("aggregate") {
            self.see(config);
            return Ok(());
        }
        let error = DriverError::new(DriverErrorKind::InvalidArgument, "device-config:aggregate is missing");
        Err(error.with_sm(123).with_detail("<Aggrs><Aggr><Name>aggr1</Name></Aggr></Aggrs>"))
    }

    async fn open(&self, config: &SrConfig) -> DriverResult<Arc<dyn Driver>> {
        self.see(config);
        Ok(Arc::new(self.driver.clone()))
    }

    async fn close(&self, _config: &SrConfig) -> DriverResult<()> {
        Ok(())
    }

    async fn erase(&self, config: &SrConfig) -> DriverResult<()> {
        self.see(config);
        Ok(())
    }

    async fn probe(&self, device_config: &BTreeMap<String, String>) -> DriverResult<Vec<Found>> {
        self.see(&SrConfig { device_config: device_config.clone(), ..SrConfig::default() });
        let seen = self.seen.lock().unwrap();
        let made = seen.iter().filter(|config| !config.sr.is_nil());
        Ok(made
            .map(|config| Found { sr: config.sr, size: 7, name_label: config.name_label.clone(), ..Found::default() })
            .take(1)
            .collect())
    }
}

async fn world() -> (World, Arc<Array>) {
    let world = World::new().await;
    let array = Arc::new(Array::default());
    let backend: Arc<dyn Backend> = array.clone();
    world.test.daemon.storage.replace_registry(Registry::new([backend]));
    (world, array)
}

async fn create(world: &World, config: &[(&str, &str)]) -> ApiResult<Ref> {
    let host = world.all("host")[0].id().clone();
    let config = Value::map(config.iter().map(|(key, value)| (*key, *value)));
    let params = [Value::from(host), config, Value::from(0), Value::from("a <b> & c"), Value::from("")];
    let rest = [Value::from("array"), Value::from("user"), Value::from(true), Value::empty_map()];
    world.call("SR.create", params.into_iter().chain(rest)).await.map(|value| reference(&value))
}

#[tokio::test]
async fn a_password_is_a_secret_everywhere_but_at_the_array() {
    let (world, array) = world().await;
    let config = [("target", "array1"), ("password", "opensesame"), ("aggregate", "aggr1")];
    let sr = create(&world, &config).await.unwrap();
    assert!(array.seen.lock().unwrap().iter().all(|config| config.device_config["password"] == "opensesame"));
    for class in ["SR", "PBD", "task", "message", "SM", "host"] {
        for record in world.all(class) {
            let text = format!("{:?}", record.to_map());
            assert!(!text.contains("opensesame"), "{class}: {text}");
        }
    }
    let pbd = world.get("SR", &sr).refs("PBDs")[0].clone();
    let hidden = world.get("PBD", &pbd).entry("device_config", "password_secret").unwrap().to_owned();
    let secret = world.test.daemon.db.read(|state| state.find_by_uuid("secret", &hidden)).unwrap();
    assert_eq!(secret.str("value"), "opensesame");

    // Another SR may name the secret of this one; it gets its own.
    let other = [("target", "array1"), ("password_secret", hidden.as_str()), ("aggregate", "aggr1")];
    create(&world, &other).await.unwrap();
    assert_eq!(world.all("secret").len(), 2);
    world.call("PBD.unplug", [Value::from(&pbd)]).await.unwrap();
    world.call("SR.forget", [Value::from(&sr)]).await.unwrap();
    assert_eq!(world.all("secret").len(), 1);
    assert!(!format!("{:?}", array.seen.lock().unwrap()).contains("opensesame"));
}

#[tokio::test]
async fn without_the_container_the_choices_are_told_and_nothing_is_left() {
    let (world, _) = world().await;
    let error = create(&world, &[("target", "array1"), ("password", "opensesame")]).await.unwrap_err();
    assert_eq!(error.code, "SR_BACKEND_FAILURE_123");
    assert!(error.params[0].is_empty() && error.params[2].contains("<Name>aggr1</Name>"), "{error:?}");
    assert_eq!(create(&world, &[("target", "array1")]).await.unwrap_err().code, "SR_BACKEND_FAILURE_122");
    let lost = [("target", "array1"), ("password_secret", "no-such-uuid")];
    assert_eq!(create(&world, &lost).await.unwrap_err().code, "SR_BACKEND_FAILURE_20");
    assert_eq!((world.all("secret").len(), world.all("SR").len()), (0, 1));
    assert_eq!(world.test.daemon.db.intents().unwrap(), []);
}

#[tokio::test]
async fn a_probe_lists_srs_with_their_names() {
    let (world, _) = world().await;
    let config = [("target", "array1"), ("password", "opensesame"), ("aggregate", "aggr1")];
    let sr = create(&world, &config).await.unwrap();
    let host = world.all("host")[0].id().clone();
    let asked = Value::map([("target", "array1"), ("password", "opensesame")]);
    let params = [Value::from(host), asked, Value::from("array"), Value::empty_map()];
    let xml = world.call("SR.probe", params).await.unwrap();
    let xml = xml.as_str().unwrap();
    assert!(xml.contains(world.get("SR", &sr).uuid()) && xml.contains("<size>7</size>"), "{xml}");
    assert!(xml.contains("<name_label>a &lt;b&gt; &amp; c</name_label>"), "{xml}");
}

#[tokio::test]
async fn disks_that_cannot_be_cut_together_are_cut_one_by_one_while_nobody_writes() {
    let world = World::over(MemoryDriver::without_groups()).await;
    let vm = world.machine(3).await;
    let snapshot = world.snapshot(&vm, "snap").await.unwrap();
    assert_eq!(world.volumes(&snapshot).len(), 3);
    assert_eq!(world.get("VM", &snapshot).entry("snapshot_info", "held_us"), None, "it did not run");
    world.assert_consistent("after a snapshot").await;
}

#[tokio::test]
async fn what_was_moved_is_told() {
    let world = World::new().await;
    let vm = world.machine(2).await;
    let snapshot = world.snapshot(&vm, "snap").await.unwrap();
    world.call("VM.clone", [Value::from(&snapshot), Value::from("instance")]).await.unwrap();
    world.call("VM.revert", [Value::from(&snapshot)]).await.unwrap();
    for name in ["VM_CLONED", "VM_SNAPSHOT_REVERTED"] {
        let told = world.all("message").into_iter().rfind(|message| message.str("name") == name).unwrap();
        assert_eq!(told.str("body"), "bytes moved by the host: 0, by the storage: 0", "{name}");
    }
}
