//! `/svm/svms`

use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult};
use crate::api::resource::{Resource, Spec};
use crate::model::Array;

pub struct Svms;

impl Resource for Svms {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "svm/svms",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["aggregates_delegated", "number_of_volumes_in_recovery_queue"],
            parameters: &[],
            fields: &[
                "uuid",
                "name",
                "state",
                "subtype",
                "aggregates",
                "iscsi",
                "fcp",
                "nvme",
                "nfs",
                "cifs",
                "language",
                "comment",
                "ipspace",
                "max_volumes",
                "ip_interfaces",
                "snapshot_policy",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array
            .state
            .svms
            .iter()
            .map(|svm| {
                let aggregates: Vec<Value> = array
                    .state
                    .aggregates
                    .iter()
                    .filter(|aggregate| svm.aggregates.contains(&aggregate.name))
                    .map(|aggregate| json!({ "name": aggregate.name, "uuid": aggregate.uuid }))
                    .collect();
                json!({
                    "uuid": svm.uuid, "name": svm.name, "state": svm.state, "subtype": "default", "aggregates": aggregates,
                    "iscsi": { "enabled": svm.iscsi.as_ref().is_some_and(|service| service.enabled), "allowed": true },
                    "fcp": { "enabled": false }, "nvme": { "enabled": false },
                    "language": "c.utf_8", "comment": "", "ipspace": { "name": "Default" },
                })
            })
            .collect())
    }
    fn svm_pointer(&self) -> &'static str {
        "/name"
    }
    fn not_found(&self) -> ApiError {
        ApiError::missing(2621462, "The SVM does not exist.")
    }
}
