//! A simulated array for one test, and disks as bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sim_ontap::{Handle, Options};
use tanada_driver::bridge::Bridges;
use tanada_driver::registry::{Backend, SrConfig};
use tanada_driver::{AttachRequest, Driver};
use tanada_ontap::{OntapBackend, Patience};
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;
pub const HOST: &str = "iqn.2026-01.org.tanada:host-5f0c";

pub struct Array {
    pub sim: Handle,
    dir: tempfile::TempDir,
}

impl Array {
    pub fn start() -> Array {
        Array::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut Options)) -> Array {
        let dir = tempfile::tempdir().unwrap();
        let sim = sim_ontap::start(Array::options(dir.path(), change)).unwrap();
        Array { sim, dir }
    }

    fn options(dir: &std::path::Path, change: impl FnOnce(&mut Options)) -> Options {
        let mut options = Options::new(dir.join("array"));
        options.strict = true;
        change(&mut options);
        options
    }

    /// The same array, switched off and on.
    pub fn restarted(self) -> Array {
        let Array { sim, dir } = self;
        sim.stop();
        let sim = sim_ontap::start(Array::options(dir.path(), |_| ())).unwrap();
        Array { sim, dir }
    }

    pub fn config(&self, sr: Uuid) -> SrConfig {
        let pairs = [
            ("target", self.sim.address().to_string()),
            ("username", String::from("admin")),
            ("password", String::from("netapp1!")),
            ("aggregate", String::from("aggr1")),
            ("svm", String::from("svm1")),
            ("cacert", self.sim.ca().display().to_string()),
            ("iscsiport", self.sim.portals("svm1")[0].port().to_string()),
        ];
        SrConfig {
            sr,
            device_config: pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            name_label: String::from("filer"),
            initiator: HOST.to_owned(),
            ..SrConfig::default()
        }
    }

    pub fn bridges(&self) -> Bridges {
        Bridges::new(self.dir.path().join("bridges"))
    }

    pub fn backend(&self) -> OntapBackend {
        let patience = Patience {
            losses: 2,
            pause: (Duration::from_millis(5), Duration::from_millis(100)),
            ..Patience::default()
        };
        OntapBackend::with_patience(self.bridges(), patience)
    }

    pub async fn open(&self, sr: Uuid) -> Arc<dyn Driver> {
        self.backend().open(&self.config(sr)).await.unwrap()
    }

    pub async fn made(&self, sr: Uuid) -> Arc<dyn Driver> {
        self.backend().create(&self.config(sr)).await.unwrap();
        self.open(sr).await
    }

    pub async fn write(&self, driver: &Arc<dyn Driver>, target: Uuid, offset: u64, bytes: &[u8]) {
        let request = attachment(target, true);
        let endpoint = driver.attach(&request).await.unwrap();
        let bridge = self.bridges().open(&endpoint, true).await.unwrap();
        let client = bridge.connect().await.unwrap();
        client.write_at_durably(offset, Bytes::copy_from_slice(bytes)).await.unwrap();
        drop(client);
        bridge.close().await;
        driver.detach(&request.token).await.unwrap();
    }

    pub async fn read(&self, driver: &Arc<dyn Driver>, target: Uuid, offset: u64, length: u32) -> Vec<u8> {
        let request = attachment(target, false);
        let endpoint = driver.attach(&request).await.unwrap();
        let bridge = self.bridges().open(&endpoint, false).await.unwrap();
        let client = bridge.connect().await.unwrap();
        let bytes = client.read_at(offset, length).await.unwrap().to_vec();
        drop(client);
        bridge.close().await;
        driver.detach(&request.token).await.unwrap();
        bytes
    }
}

pub fn attachment(target: Uuid, writable: bool) -> AttachRequest {
    let token = Uuid::new_v4().simple().to_string();
    AttachRequest { token, target, writable, initiator: HOST.to_owned() }
}
