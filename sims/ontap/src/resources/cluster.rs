//! `/cluster` and its nodes.

use serde_json::{Value, json};

use crate::api::error::ApiResult;
use crate::api::resource::{Resource, Spec};
use crate::model::Array;

pub struct ClusterItself;

impl Resource for ClusterItself {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "cluster",
            keys: &[],
            always: &["name", "uuid"],
            expensive: &[],
            parameters: &[],
            fields: &[
                "name",
                "uuid",
                "version",
                "san_optimized",
                "disaggregated",
                "management_interfaces",
                "location",
                "contact",
                "timezone",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let cluster = &array.state.cluster;
        let [generation, major, minor] = cluster.version;
        Ok(vec![json!({
            "name": cluster.name, "uuid": cluster.uuid, "san_optimized": false, "disaggregated": false,
            "version": {
                "full": format!("NetApp Release {generation}.{major}.{minor}: Mon Jun 01 12:00:00 UTC 2026"),
                "generation": generation, "major": major, "minor": minor
            },
            "timezone": { "name": "Etc/UTC" },
        })])
    }
}

pub struct Nodes;

impl Resource for Nodes {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "cluster/nodes",
            keys: &["uuid"],
            always: &["name"],
            expensive: &[],
            parameters: &[],
            fields: &[
                "uuid",
                "name",
                "model",
                "serial_number",
                "state",
                "version",
                "is_all_flash_optimized",
                "is_all_flash_select_optimized",
                "ha",
                "uptime",
            ],
            is_cluster_only: true,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let [generation, major, minor] = array.state.cluster.version;
        Ok(array
            .state
            .nodes
            .iter()
            .map(|node| {
                json!({
                    "uuid": node.uuid, "name": node.name, "model": node.model, "serial_number": node.serial_number,
                    "state": "up", "is_all_flash_optimized": true, "is_all_flash_select_optimized": false,
                    "version": { "generation": generation, "major": major, "minor": minor },
                })
            })
            .collect())
    }
}
