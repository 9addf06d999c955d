//! A group with an SR on it, and what a test looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sim_equallogic::{Handle, Options, start};
use tanada_driver::bridge::{Bridge, Bridges};
use tanada_driver::registry::{Backend, SrConfig};
use tanada_driver::{AttachRequest, CreateRequest, CutPair, Driver, DriverResult, Endpoint};
use tanada_equallogic::{EqualBackend, EqualDriver};
use tempfile::TempDir;
use uuid::Uuid;

pub const MB: u64 = 1 << 20;
pub const PAGE: u64 = 15 * MB;
pub const VM: &str = "iqn.2026-01.org.tanada:vm-1";
pub const OTHER_VM: &str = "iqn.2026-01.org.tanada:vm-2";

pub struct World {
    pub sim: Handle,
    pub backend: EqualBackend,
    pub config: SrConfig,
    pub bridges: Bridges,
    pub driver: Arc<EqualDriver>,
    _dir: TempDir,
}

pub fn id(number: u128) -> Uuid {
    // Spread over the id, since names hold its first digits.
    Uuid::from_u128(number << 96 | number)
}

impl World {
    pub async fn new() -> World {
        World::with(&[]).await
    }

    pub async fn with(keys: &[(&str, &str)]) -> World {
        World::on(|_| {}, keys).await
    }

    /// On a group that is set up by `change`.
    pub async fn on(change: impl FnOnce(&mut Options), keys: &[(&str, &str)]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path().join("group"));
        change(&mut options);
        let sim = start(options).unwrap();
        let bridges = Bridges::new(dir.path().join("bridges"));
        let backend = EqualBackend::new(bridges.clone());
        let config = config(&sim, keys);
        backend.create(&config).await.unwrap();
        let driver = backend.open_group(&config).await.unwrap();
        World { sim, backend, config, bridges, driver, _dir: dir }
    }

    /// The driver as another process would open it.
    pub async fn reopened(&self) -> Arc<dyn Driver> {
        EqualBackend::new(self.bridges.clone()).open(&self.config).await.unwrap()
    }

    pub async fn create(&self, number: u128, size: u64) -> Uuid {
        self.driver.create(&CreateRequest::new(id(number), size)).await.unwrap();
        id(number)
    }

    pub async fn cut(&self, volume: Uuid, generation: u128) -> Uuid {
        let generation = id(generation);
        self.driver.snapshot(&[CutPair { volume, generation }]).await.unwrap();
        generation
    }

    pub async fn attach(&self, token: &str, target: Uuid, writable: bool) -> DriverResult<Endpoint> {
        self.attach_as(VM, token, target, writable).await
    }

    pub async fn attach_as(&self, who: &str, token: &str, target: Uuid, writable: bool) -> DriverResult<Endpoint> {
        let request = AttachRequest { token: token.into(), target, writable, initiator: who.into() };
        self.driver.attach(&request).await
    }

    /// Writes `byte` over the megabyte `at`.
    pub async fn write(&self, volume: Uuid, at: u64, byte: u8) {
        let (bridge, token) = self.bridge(volume, true).await;
        let client = bridge.connect().await.unwrap();
        client.write_at(at * MB, Bytes::from(vec![byte; MB as usize])).await.unwrap();
        client.flush().await.unwrap();
        drop(client);
        bridge.close().await;
        self.driver.detach(&token).await.unwrap();
    }

    /// The first byte of megabyte `at`, after a check that all of it is the same.
    pub async fn read(&self, target: Uuid, at: u64) -> u8 {
        let (bridge, token) = self.bridge(target, false).await;
        let client = bridge.connect().await.unwrap();
        let bytes = client.read_at(at * MB, MB as u32).await.unwrap();
        drop(client);
        bridge.close().await;
        self.driver.detach(&token).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    pub async fn device_bytes(&self, target: Uuid) -> u64 {
        let (bridge, token) = self.bridge(target, false).await;
        let size = bridge.connect().await.unwrap().size();
        bridge.close().await;
        self.driver.detach(&token).await.unwrap();
        size
    }

    async fn bridge(&self, target: Uuid, writable: bool) -> (Bridge, String) {
        let token = Uuid::new_v4().simple().to_string();
        let endpoint = self.attach(&token, target, writable).await.unwrap();
        (self.bridges.open(&endpoint, writable).await.unwrap(), token)
    }

    /// Everything on the group by name: volumes, snapshots, access records, accounts, collections.
    pub fn inventory(&self) -> BTreeSet<String> {
        inventory(&self.sim)
    }
}

pub fn config(sim: &Handle, keys: &[(&str, &str)]) -> SrConfig {
    let (port, portal) = (sim.ssh().port().to_string(), sim.portal().to_string());
    let base = [
        ("target", "127.0.0.1"),
        ("username", "grpadmin"),
        ("password", "grpadmin"),
        ("storagepool", "default"),
        ("port", &port),
        ("portal", &portal),
        ("hostkey", sim.fingerprint()),
    ];
    let mut device_config: BTreeMap<String, String> =
        base.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    device_config.extend(keys.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    SrConfig {
        sr: Uuid::from_u128(0xabcd_ef01_2345_6789_abcd_ef01_2345_6789),
        device_config,
        name_label: String::from("array one"),
        initiator: String::from("iqn.2026-01.org.tanada:host-1"),
        ..SrConfig::default()
    }
}

pub fn inventory(sim: &Handle) -> BTreeSet<String> {
    sim.with_array(|array| {
        let group = &array.group;
        let mut all = BTreeSet::new();
        for (name, volume) in &group.volumes {
            all.insert(format!("volume {name}"));
            all.extend(volume.snapshots.iter().map(|snapshot| format!("snapshot {name} {}", snapshot.name)));
            all.extend(volume.access.iter().map(|record| format!("access {name} {:?}", record.1)));
        }
        all.extend(group.chap.keys().map(|user| format!("account {user}")));
        all.extend(group.collections.keys().map(|name| format!("collection {name}")));
        all
    })
}
