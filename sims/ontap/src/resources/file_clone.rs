//! `/storage/file/clone`: how far the sharing of clones is. Cloning of files that are no LUNs is not simulated.

use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, required_text};
use crate::model::Array;
use crate::resources::volume_ref;

pub struct FileClone;

impl Resource for FileClone {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/file/clone",
            keys: &[],
            always: &[],
            expensive: &[],
            parameters: &[],
            fields: &[
                "volume",
                "source_path",
                "destination_path",
                "overwrite_destination",
                "is_backup",
                "autodelete",
                "range",
                "token_uuid",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, _: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(Vec::new())
    }
    fn post(&self, _: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let destination = required_text(call, "destination_path")?;
        if destination.starts_with('/') {
            let words = format!("The destination \"{destination}\" must be relative to the volume.");
            return Err(ApiError::invalid(917812, words).at("destination_path"));
        }
        Err(ApiError::invalid(917864, "There is no such file: volumes hold LUNs only.").at("source_path"))
    }
}

pub struct SplitStatus;

impl Resource for SplitStatus {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/file/clone/split-status",
            keys: &["volume.uuid"],
            always: &["volume.name"],
            expensive: &[],
            parameters: &[],
            fields: &["volume", "pending_splits", "unsplit_size", "svm"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let record = |uuid: &uuid::Uuid| {
            let bytes: u64 = array.pending_splits(*uuid).map(|split| split.bytes).sum();
            json!({ "volume": volume_ref(array, *uuid), "pending_splits": array.pending_splits(*uuid).count(), "unsplit_size": bytes })
        };
        Ok(array.state.volumes.keys().map(record).collect())
    }
}

pub struct SplitLoads;

impl Resource for SplitLoads {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/file/clone/split-loads",
            keys: &["node.uuid"],
            always: &["node.name"],
            expensive: &[],
            parameters: &[],
            fields: &["node", "load"],
            is_cluster_only: true,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let maximum: u64 = 16 << 40;
        let record = |node: &crate::model::state::Node| {
            json!({ "node": { "name": node.name, "uuid": node.uuid },
                "load": { "current": 0, "maximum": maximum, "allowable": maximum, "token_reserved": 0 } })
        };
        Ok(array.state.nodes.iter().map(record).collect())
    }
}
