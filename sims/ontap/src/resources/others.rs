//! What clients look at in passing: logs that they send, licences, disks, SnapMirror.

use serde_json::{Value, json};

use crate::api::error::ApiResult;
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written};
use crate::model::Array;

pub struct ApplicationLogs;

impl Resource for ApplicationLogs {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "support/ems/application-logs",
            keys: &[],
            always: &[],
            expensive: &[],
            parameters: &[],
            fields: &[
                "computer_name",
                "event_source",
                "app_version",
                "category",
                "severity",
                "event_id",
                "event_description",
                "autosupport_required",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, _: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(Vec::new())
    }
    fn post(&self, _: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        tracing::info!(
            source = call.body.text("event_source"),
            version = call.body.text("app_version"),
            said = call.body.text("event_description"),
            "an application's log entry"
        );
        Ok(Written::Now(None))
    }
}

pub struct Licenses;

impl Resource for Licenses {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "cluster/licensing/licenses",
            keys: &["name"],
            always: &[],
            expensive: &[],
            parameters: &[],
            fields: &["name", "scope", "state", "licenses", "description"],
            is_cluster_only: true,
        }
    }
    fn records(&self, _: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let record = |name: &&str| json!({ "name": name, "scope": "cluster", "state": "compliant" });
        Ok(["base", "flexclone", "iscsi", "snaprestore"].iter().map(record).collect())
    }
}

pub struct Disks;

impl Resource for Disks {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/disks",
            keys: &["name"],
            always: &[],
            expensive: &[],
            parameters: &[],
            fields: &["name", "effective_type", "type", "aggregates", "state", "node"],
            is_cluster_only: true,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let disk = |(number, aggregate): (usize, &crate::model::state::Aggregate)| {
            json!({ "name": format!("1.0.{number}"), "effective_type": "ssd", "type": "ssd", "state": "present",
                "aggregates": [{ "name": aggregate.name, "uuid": aggregate.uuid }] })
        };
        Ok(array.state.aggregates.iter().enumerate().map(disk).collect())
    }
}

/// Nothing is mirrored here.
pub struct Relationships;

impl Resource for Relationships {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "snapmirror/relationships",
            keys: &["uuid"],
            always: &[],
            expensive: &[],
            parameters: &[],
            fields: &["uuid", "source", "destination", "state", "policy", "list_destinations_only"],
            is_cluster_only: false,
        }
    }
    fn records(&self, _: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(Vec::new())
    }
}
