//! `/cluster/jobs`

use std::sync::Arc;

use serde_json::Value;

use crate::api::error::{ApiError, ApiResult};
use crate::api::jobs::Jobs;
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written};
use crate::model::Array;

pub struct JobRecords {
    jobs: Arc<Jobs>,
}

impl JobRecords {
    pub fn new(jobs: Arc<Jobs>) -> JobRecords {
        JobRecords { jobs }
    }
}

impl Resource for JobRecords {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "cluster/jobs",
            keys: &["uuid"],
            always: &[],
            expensive: &[],
            parameters: &["action"],
            fields: &[
                "uuid",
                "description",
                "state",
                "message",
                "code",
                "start_time",
                "end_time",
                "error",
                "svm",
                "node",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, _: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        // A job may be asked for by whoever knows its uuid: the SVM is told, but confines nothing here.
        Ok(self.jobs.records())
    }
    fn patch(&self, _: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        match call.parameter("action") {
            Some("cancel" | "pause" | "resume") => {
                Err(ApiError::invalid(65536524, "the job does not take this action in its state"))
            }
            other => Err(ApiError::bad_value("action", other.unwrap_or_default())),
        }
    }
}
