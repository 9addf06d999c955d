//! `/storage/aggregates`

use serde_json::{Value, json};

use crate::api::error::ApiResult;
use crate::api::resource::{Resource, Spec};
use crate::model::Array;
use crate::resources::node_ref;

pub struct Aggregates;

impl Resource for Aggregates {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/aggregates",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["metric", "statistics", "inactive_data_reporting", "space.footprint", "space.efficiency"],
            parameters: &[],
            fields: &[
                "uuid",
                "name",
                "state",
                "node",
                "home_node",
                "space",
                "block_storage",
                "create_time",
                "volume_count",
                "snaplock_type",
            ],
            is_cluster_only: true,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array
            .state
            .aggregates
            .iter()
            .map(|aggregate| {
                let space = array.aggregate_space(&aggregate.name);
                let count = array.state.volumes.values().filter(|volume| volume.aggregate == aggregate.name).count();
                json!({
                    "uuid": aggregate.uuid, "name": aggregate.name, "state": "online", "volume_count": count,
                    "node": node_ref(array, &aggregate.node), "home_node": node_ref(array, &aggregate.node),
                    "space": {
                        "block_storage": { "size": space.size, "available": space.available, "used": space.used,
                            "full_threshold_percent": 98 },
                        "efficiency": { "savings": 0, "ratio": 1.0 },
                    },
                    "block_storage": {
                        "storage_type": "ssd",
                        "primary": { "disk_type": "ssd", "raid_type": "raid_dp", "disk_count": 12, "disk_class": "solid_state" },
                    },
                    "snaplock_type": "non_snaplock",
                })
            })
            .collect())
    }
}
