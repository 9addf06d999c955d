//! FlexVols: the few volumes that hold an SR's LUNs.

use serde_json::json;

use super::{Array, appears};
use crate::error::{ArrayError, ArrayResult, absent, code};
use crate::model::{FlexVol, SplitStatus};
use crate::query::{Query, segment};

/// The array gets so long to answer at once instead of by a job.
const AT_ONCE_SECONDS: &str = "15";
const FIELDS: &str = "uuid,name,state,comment,size,space.size,space.available,space.used,aggregates";
/// A thin FlexVol grows by itself when so full, in percent.
const GROW_THRESHOLD: u32 = 85;

/// A FlexVol to be made.
#[derive(Debug, Clone)]
pub struct FlexVolSpec {
    pub name: String,
    pub aggregate: String,
    pub size: u64,
    /// It grows by itself up to this.
    pub size_max: u64,
    pub thin: bool,
    pub dedupe: bool,
    pub comment: String,
}

impl FlexVolSpec {
    fn body(&self, svm: &str) -> serde_json::Value {
        let mut body = json!({
            "svm": {"name": svm},
            "name": self.name,
            "style": "flexvol",
            "aggregates": [{"name": self.aggregate}],
            "size": self.size,
            "guarantee": {"type": if self.thin { "none" } else { "volume" }},
            // The default policy takes snapshots of its own, and their reserve is taken from the LUNs.
            "snapshot_policy": {"name": "none"},
            "space": {"snapshot": {"reserve_percent": 0}, "fractional_reserve": 0},
            "autosize": {"mode": "grow", "maximum": self.size_max, "grow_threshold": GROW_THRESHOLD},
            "comment": self.comment,
        });
        if self.dedupe {
            body["efficiency"] = json!({"dedupe": "background"});
        }
        body
    }
}

impl Array {
    /// FlexVols whose name matches `pattern`.
    pub async fn flexvols(&self, pattern: &str) -> ArrayResult<Vec<FlexVol>> {
        let query = self.here().with("name", pattern).fields(FIELDS);
        let mut found: Vec<FlexVol> = self.rest.list("/storage/volumes", &query).await?;
        found.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
        Ok(found)
    }

    /// Makes a FlexVol, or adopts the one of this name; returns it once it is online.
    pub async fn create_flexvol(&self, spec: &FlexVolSpec) -> ArrayResult<FlexVol> {
        let query = Query::new().with("return_timeout", AT_ONCE_SECONDS);
        match self.post("/storage/volumes", &query, &spec.body(&self.svm.name)).await {
            Err(error) if error.is_any(&[code::VOLUME_EXISTS]) => {}
            other => drop(other?),
        }
        appears(&format!("FlexVol {}", spec.name), || async {
            let found = self.flexvols(&spec.name).await?;
            Ok(found.into_iter().find(|flexvol| flexvol.name == spec.name && flexvol.state == "online"))
        })
        .await
    }

    pub async fn resize_flexvol(&self, uuid: &str, size: u64) -> ArrayResult<()> {
        let query = Query::new().with("return_timeout", AT_ONCE_SECONDS);
        self.patch(&format!("/storage/volumes/{}", segment(uuid)), &query, &json!({"size": size})).await.map(drop)
    }

    pub async fn describe_flexvol(&self, uuid: &str, comment: &str) -> ArrayResult<()> {
        let query = Query::new().with("return_timeout", AT_ONCE_SECONDS);
        self.patch(&format!("/storage/volumes/{}", segment(uuid)), &query, &json!({"comment": comment})).await.map(drop)
    }

    /// False where it was not there. It rests in the array's recovery queue for some hours.
    pub async fn delete_flexvol(&self, uuid: &str) -> ArrayResult<bool> {
        let query = Query::new().with("return_timeout", AT_ONCE_SECONDS);
        let done = self.delete(&format!("/storage/volumes/{}", segment(uuid)), &query).await;
        Ok(absent(done, &[])?.is_some())
    }

    /// Clones in a FlexVol whose sharing is not complete. Accounts that may not ask get 0: the array then refuses what it
    /// cannot do yet, and is asked again.
    pub async fn pending_splits(&self, uuid: &str) -> ArrayResult<u64> {
        let path = format!("/storage/file/clone/split-status/{}", segment(uuid));
        let found: ArrayResult<SplitStatus> = self.rest.get(&path, &Query::new().fields("pending_splits")).await;
        match found {
            Ok(status) => Ok(status.pending_splits),
            Err(error) if error.is_denied() || error.is_not_found() || error.is(code::NOT_SUPPORTED) => Ok(0),
            Err(ArrayError::Malformed { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FlexVolSpec;
    use serde_json::json;

    #[test]
    fn a_flexvol_takes_no_snapshots_of_its_own_and_reserves_nothing() {
        let spec = FlexVolSpec {
            name: "f".into(),
            aggregate: "a".into(),
            size: 1,
            size_max: 2,
            thin: true,
            dedupe: false,
            comment: "c".into(),
        };
        let body = spec.body("s");
        assert_eq!(body["guarantee"], json!({"type": "none"}));
        assert_eq!(body["snapshot_policy"], json!({"name": "none"}));
        assert_eq!(body["space"]["snapshot"], json!({"reserve_percent": 0}));
        assert_eq!(body.get("efficiency"), None);
        let body = FlexVolSpec { thin: false, dedupe: true, ..spec }.body("s");
        assert_eq!(body["guarantee"], json!({"type": "volume"}));
        assert_eq!(body["efficiency"], json!({"dedupe": "background"}));
    }
}
