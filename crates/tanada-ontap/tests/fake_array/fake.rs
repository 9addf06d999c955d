//! A second witness beside the simulator: the array's model in one file, over the same HTTPS, without disks. A LUN's
//! content is a number. Every request is counted, and any one of them can go wrong before or after its effect.

mod resources;
mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tanada_driver::bridge::Bridges;
use tanada_driver::registry::SrConfig;
use tanada_ontap::{OntapBackend, Patience};
use tokio::sync::Notify;
use uuid::Uuid;

pub use server::Server;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    RefusedBefore,
    RefusedAfter,
    /// The connection ends; asking again helps.
    LostAfter,
    /// As if the caller's process died: this and all that follow get no answer.
    DeadBefore,
    DeadAfter,
    Status(u16),
    /// An answer that is no JSON.
    Garbage,
    /// An answer of another shape.
    Nonsense,
    /// The answer does not come until the array is told to go on.
    Stuck,
}

/// One array. Collections by the path after `/api`; records in the order in which they were made.
#[derive(Clone, Default)]
pub struct State {
    pub collections: BTreeMap<&'static str, Vec<Value>>,
    /// Requests so far.
    pub calls: u64,
    pub log: Vec<String>,
    pub plan: Option<(u64, Trouble)>,
    /// Method and end of the path of the request that meets trouble, whichever one it is.
    pub plan_at: Option<(&'static str, &'static str, Trouble)>,
    pub dead: bool,
    /// Told when a request got stuck.
    pub stuck: Arc<Notify>,
    /// Refused snapshot deletions per snapshot, then it goes.
    pub snapshot_busy_for: u32,
    /// Collection answers are cut into pages of so many records.
    pub page: Option<usize>,
    /// Clones lose the thin flag, as arrays do where the clone call ignores it.
    pub clones_forget_thin: bool,
    /// Every change is a job.
    pub jobs: bool,
    /// Job records are gone when they are asked for.
    pub forget_jobs: bool,
}

pub struct Fake {
    pub server: Server,
    pub state: Arc<Mutex<State>>,
    dir: tempfile::TempDir,
}

impl Fake {
    pub async fn start() -> Fake {
        let state = Arc::new(Mutex::new(resources::array()));
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(state.clone(), dir.path()).await;
        Fake { server, state, dir }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the `nth` request from now on (1 = the next) meet `trouble`.
    pub fn trouble(&self, nth: u64, trouble: Trouble) {
        let mut state = self.state();
        state.plan = Some((state.calls + nth, trouble));
    }

    /// Lets the next such request meet `trouble`.
    pub fn trouble_at(&self, method: &'static str, path_end: &'static str, trouble: Trouble) {
        self.state().plan_at = Some((method, path_end, trouble));
    }

    /// The process lives again, and nothing is planned. True where the planned trouble never came.
    pub fn recover(&self) -> bool {
        let mut state = self.state();
        state.dead = false;
        state.plan.take().is_some()
    }

    pub fn config(&self, sr: Uuid) -> SrConfig {
        let ca = self.dir.path().join("ca.pem").display().to_string();
        let pairs = [
            ("target", format!("127.0.0.1:{}", self.server.port)),
            ("username", String::from("admin")),
            ("password", String::from("correct horse")),
            ("aggregate", String::from("aggr1")),
            ("cacert", ca),
        ];
        SrConfig {
            sr,
            device_config: pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            name_label: String::from("fast"),
            initiator: String::from("iqn.2026-01.org.tanada:host-1"),
            ..SrConfig::default()
        }
    }

    pub fn backend(&self) -> OntapBackend {
        OntapBackend::with_patience(Bridges::new(self.dir.path().join("bridges")), hasty())
    }

    /// Everything that can be left over, in words that can be compared.
    pub fn objects(&self) -> Vec<String> {
        let state = self.state();
        let mut all = Vec::new();
        for (path, records) in &state.collections {
            if path.starts_with("/cluster") || path.starts_with("/svm") || path.starts_with("/network") {
                continue;
            }
            for record in records {
                let text =
                    |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
                let attributes = record.get("attributes").map(Value::to_string).unwrap_or_default();
                let name =
                    [text("/name"), text("/initiator"), text("/lun/name"), text("/igroup/name"), text("/comment")];
                all.push(format!("{path} {} {attributes}", name.join(" ")));
            }
        }
        all.sort();
        all
    }

    fn lun_field<T>(&self, id: Uuid, read: impl Fn(&mut Value) -> T) -> Option<T> {
        let mut state = self.state();
        let luns = state.collections.get_mut("/storage/luns")?;
        let found =
            luns.iter_mut().find(|lun| lun["name"].as_str().is_some_and(|name| name.ends_with(&id.to_string())));
        found.map(read)
    }

    /// Adds a FlexVol to the SR and lays a disk into it.
    pub fn move_to_second_flexvol(&self, sr: Uuid, id: Uuid) {
        let (name, uuid) = (format!("tanada_{}_fv2", sr.simple()), Uuid::new_v4().to_string());
        let mut state = self.state();
        let flexvols = state.collections.get_mut("/storage/volumes").unwrap();
        let first = format!("tanada_{}_fv1", sr.simple());
        let mut added = flexvols.iter().find(|one| one["name"] == first.as_str()).unwrap().clone();
        added["name"] = Value::from(name.as_str());
        added["uuid"] = Value::from(uuid.as_str());
        flexvols.push(added);
        drop(state);
        let laid = self.lun_field(id, |lun| {
            lun["name"] = Value::from(format!("/vol/{name}/{id}"));
            lun["location"]["volume"] = serde_json::json!({"name": name, "uuid": uuid});
        });
        laid.unwrap();
    }

    pub fn write(&self, id: Uuid, content: u64) {
        self.lun_field(id, |lun| lun["content"] = Value::from(content)).unwrap();
    }

    pub fn content(&self, id: Uuid) -> Option<u64> {
        self.lun_field(id, |lun| lun["content"].as_u64().unwrap_or_default())
    }

    pub fn lun(&self, id: Uuid) -> Option<Value> {
        self.lun_field(id, |lun| lun.clone())
    }
}

/// Tests wait for little.
pub fn hasty() -> Patience {
    Patience {
        exchange: Duration::from_secs(10),
        request: Duration::from_secs(5),
        losses: 2,
        pause: (Duration::from_millis(1), Duration::from_millis(20)),
        job: Duration::from_secs(10),
    }
}
