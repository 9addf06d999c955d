//! `/network/ip/interfaces`

use serde_json::{Value, json};

use crate::api::error::ApiResult;
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, uuid_key};
use crate::model::Array;
use crate::resources::{node_ref, svm_ref};

pub struct Interfaces;

impl Resource for Interfaces {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "network/ip/interfaces",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["metric", "statistics"],
            parameters: &[],
            fields: &[
                "uuid",
                "name",
                "svm",
                "ip",
                "enabled",
                "state",
                "location",
                "services",
                "scope",
                "ipspace",
                "service_policy",
                "vip",
                "subnet",
                "metric",
                "statistics",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array
            .state
            .interfaces
            .iter()
            .map(|lif| {
                json!({
                    "uuid": lif.uuid, "name": lif.name, "svm": svm_ref(array, &lif.svm), "scope": "svm",
                    "ip": { "address": lif.address.ip(), "netmask": "8", "family": "ipv4" },
                    "enabled": lif.enabled, "state": if lif.up && lif.enabled { "up" } else { "down" },
                    "services": ["data_core", "data_iscsi"], "service_policy": { "name": "default-data-iscsi" },
                    "location": { "node": node_ref(array, &lif.node), "home_node": node_ref(array, &lif.node),
                        "port": { "name": "e0a" }, "is_home": true, "auto_revert": false },
                })
            })
            .collect())
    }
    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        if let Some(enabled) = call.body.flag("enabled")? {
            array.set_interface(uuid, |lif| lif.enabled = enabled)?;
        }
        Ok(Written::Now(None))
    }
}
