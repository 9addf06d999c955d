//! FlexVol snapshots and consistency groups: the instants that group cuts clone from.

use serde_json::{Value, json};

use super::{Array, appears};
use crate::error::{ArrayResult, absent, code};
use crate::model::{Named, Snapshot};
use crate::query::{Query, segment};

const AT_ONCE_SECONDS: &str = "15";

fn at_once() -> Query {
    Query::new().with("return_timeout", AT_ONCE_SECONDS)
}

fn snapshots(flexvol: &str) -> String {
    format!("/storage/volumes/{}/snapshots", segment(flexvol))
}

const GROUPS: &str = "/application/consistency-groups";

impl Array {
    /// Takes a snapshot; the one of this name is adopted (names are used once).
    pub async fn create_snapshot(&self, flexvol: &str, name: &str) -> ArrayResult<()> {
        match self.post(&snapshots(flexvol), &at_once(), &json!({"name": name})).await {
            Err(error) if error.is(code::SNAPSHOT_EXISTS) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Snapshots of a FlexVol whose name matches `pattern`.
    pub async fn snapshots(&self, flexvol: &str, pattern: &str) -> ArrayResult<Vec<Snapshot>> {
        self.rest.list(&snapshots(flexvol), &Query::new().with("name", pattern).fields("uuid,name")).await
    }

    /// The same for one that was just taken.
    pub async fn snapshots_seen(&self, flexvol: &str, name: &str) -> ArrayResult<Vec<Snapshot>> {
        let what = format!("snapshot {name}");
        let seen = appears(&what, || async {
            Ok(Some(self.snapshots(flexvol, name).await?).filter(|found| !found.is_empty()))
        });
        seen.await
    }

    /// False where it was not there. One that clones still share with is refused as locked.
    pub async fn delete_snapshot(&self, flexvol: &str, snapshot: &str) -> ArrayResult<bool> {
        let path = format!("{}/{}", snapshots(flexvol), segment(snapshot));
        Ok(absent(self.delete(&path, &at_once()).await, code::SNAPSHOT_UNKNOWN)?.is_some())
    }

    /// False where it was not there (any more).
    pub async fn rename_snapshot(&self, flexvol: &str, snapshot: &str, name: &str) -> ArrayResult<bool> {
        let path = format!("{}/{}", snapshots(flexvol), segment(snapshot));
        let done = self.patch(&path, &at_once(), &json!({"name": name})).await;
        Ok(absent(done, code::SNAPSHOT_UNKNOWN)?.is_some())
    }

    /// Makes a consistency group over FlexVols that are there; returns its uuid.
    pub async fn create_group(&self, name: &str, flexvols: &[String]) -> ArrayResult<String> {
        let volumes: Vec<Value> = flexvols
            .iter()
            .map(|flexvol| json!({"name": flexvol, "provisioning_options": {"action": "add"}}))
            .collect();
        let body = json!({"svm": {"name": self.svm.name}, "name": name, "volumes": volumes});
        match self.post(GROUPS, &at_once(), &body).await {
            Err(error) if error.is_any(code::GROUP_EXISTS) => {}
            other => drop(other?),
        }
        let what = format!("consistency group {name}");
        let found =
            appears(&what, || async { Ok(self.groups(name).await?.into_iter().find(|group| group.name == name)) });
        Ok(found.await?.uuid)
    }

    pub async fn groups(&self, pattern: &str) -> ArrayResult<Vec<Named>> {
        self.rest.list(GROUPS, &self.here().with("name", pattern).fields("uuid,name")).await
    }

    /// A crash-consistent snapshot of all FlexVols of the group at one instant; each gets one called `name`.
    pub async fn snapshot_group(&self, group: &str, name: &str) -> ArrayResult<()> {
        let body = json!({"name": name, "consistency_type": "crash"});
        match self.post(&format!("{GROUPS}/{}/snapshots", segment(group)), &at_once(), &body).await {
            Err(error) if error.is(code::SNAPSHOT_EXISTS) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends the group; its volumes and their snapshots stay.
    pub async fn delete_group(&self, group: &str) -> ArrayResult<bool> {
        let done = self.delete(&format!("{GROUPS}/{}", segment(group)), &at_once()).await;
        Ok(absent(done, code::GROUP_UNKNOWN)?.is_some())
    }
}
