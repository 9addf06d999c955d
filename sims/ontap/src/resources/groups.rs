//! `/application/consistency-groups` and their snapshots.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::{Body, Call};
use crate::api::resource::{Resource, Spec, Written, required_text, svm_of, uuid_key};
use crate::model::Array;
use crate::resources::{svm_ref, volume_ref};

/// Seconds between start and commit where nothing is said.
const ACTION_TIMEOUT_DEFAULT: u64 = 7;

pub struct Groups;

impl Resource for Groups {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "application/consistency-groups",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["volumes.luns", "luns", "metric", "statistics"],
            parameters: &[],
            fields: &[
                "uuid",
                "name",
                "svm",
                "volumes",
                "luns",
                "consistency_groups",
                "space",
                "snapshot_policy",
                "restore_to",
                "replicated",
                "parent_consistency_group",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array
            .state
            .groups
            .values()
            .map(|group| {
                let volumes: Vec<Value> = group.volumes.iter().map(|volume| volume_ref(array, *volume)).collect();
                json!({ "uuid": group.uuid, "name": group.name, "svm": svm_ref(array, &group.svm), "volumes": volumes,
                    "replicated": false })
            })
            .collect())
    }
    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let svm = svm_of(array, call)?;
        let name = required_text(call, "name")?;
        let names = volumes(&call.body, "add")?;
        array.volumes_for_group(&svm, &names)?;
        let uuid = Uuid::new_v4();
        Ok(Written::later(Some(vec![uuid.to_string()]), move |array| array.create_group(&svm, &name, &names, uuid)))
    }
    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        array.group(uuid)?;
        if let Some(name) = call.body.text("restore_to.snapshot.name") {
            return Ok(Written::later(None, move |array| array.restore_group(uuid, &name)));
        }
        let (add, remove) = (volumes(&call.body, "add")?, volumes(&call.body, "remove")?);
        Ok(Written::later(None, move |array| array.change_group(uuid, &add, &remove)))
    }
    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        array.group(uuid)?;
        Ok(Written::later(None, move |array| array.delete_group(uuid)))
    }
    fn not_found(&self) -> ApiError {
        ApiError::missing(53411842, "The consistency group was not found.")
    }
}

/// Names of the volumes with this action.
fn volumes(body: &Body, action: &str) -> ApiResult<Vec<String>> {
    let mut names = Vec::new();
    for volume in body.list("volumes") {
        match volume.text("provisioning_options.action") {
            Some(said) if said == action => {
                names.push(volume.text("name").ok_or_else(|| ApiError::required("volumes.name"))?);
            }
            Some(said) if ["add", "remove"].contains(&said.as_str()) => {}
            Some(said) => return Err(ApiError::bad_value("volumes.provisioning_options.action", &said)),
            None => return Err(ApiError::required("volumes.provisioning_options.action")),
        }
    }
    Ok(names)
}

pub struct GroupSnapshots;

impl Resource for GroupSnapshots {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "application/consistency-groups/{}/snapshots",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["snapshot_volumes", "reclaimable_space", "delta", "size"],
            parameters: &["action", "action_timeout"],
            fields: &[
                "uuid",
                "name",
                "comment",
                "svm",
                "consistency_group",
                "consistency_type",
                "create_time",
                "is_partial",
                "snapshot_volumes",
                "missing_volumes",
                "write_fence",
                "snapmirror_label",
                "size",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, above: &[String]) -> ApiResult<Vec<Value>> {
        let group = array.group(uuid_key(above, 0)?)?;
        let started = array.started_group_snapshots(group.uuid).map(|started| {
            json!({ "uuid": started.snapshot, "name": started.name, "comment": started.comment,
                "consistency_type": "crash", "svm": svm_ref(array, &group.svm),
                "consistency_group": { "uuid": group.uuid, "name": group.name } })
        });
        Ok(group
            .snapshots
            .values()
            .map(|snapshot| {
                let volumes: Vec<Value> = snapshot
                    .members
                    .iter()
                    .map(|(volume, member)| {
                        json!({ "volume": volume_ref(array, *volume), "snapshot": { "uuid": member, "name": snapshot.name } })
                    })
                    .collect();
                json!({
                    "uuid": snapshot.uuid, "name": snapshot.name, "comment": snapshot.comment,
                    "create_time": snapshot.create_time, "consistency_type": "crash", "svm": svm_ref(array, &group.svm),
                    "consistency_group": { "uuid": group.uuid, "name": group.name },
                    "is_partial": volumes.len() < group.volumes.len(), "snapshot_volumes": volumes,
                    "write_fence": snapshot.write_fence,
                })
            })
            .chain(started)
            .collect())
    }
    fn post(&self, array: &mut Array, above: &[String], call: &Call) -> ApiResult<Written> {
        let group = uuid_key(above, 0)?;
        let name = required_text(call, "name")?;
        let comment = call.body.text("comment").unwrap_or_default();
        let uuid = Uuid::new_v4();
        let made = Some(vec![uuid.to_string()]);
        array.group(group)?;
        match call.parameter("action") {
            Some("start") => {
                let seconds = match call.parameter("action_timeout") {
                    Some(text) => text.parse().map_err(|_| ApiError::bad_value("action_timeout", text))?,
                    None => ACTION_TIMEOUT_DEFAULT,
                };
                Ok(Written::later(made, move |array| array.start_group_snapshot(group, &name, &comment, seconds, uuid)))
            }
            Some(other) => Err(ApiError::bad_value("action", other)),
            None => Ok(Written::later(made, move |array| array.snapshot_group(group, &name, &comment, uuid))),
        }
    }
    fn patch(&self, _: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let (group, snapshot) = (uuid_key(at, 0)?, uuid_key(at, 1)?);
        match call.parameter("action") {
            Some("commit") => Ok(Written::later(None, move |array| array.commit_group_snapshot(group, snapshot))),
            other => Err(ApiError::bad_value("action", other.unwrap_or_default())),
        }
    }
    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        let (group, snapshot) = (uuid_key(at, 0)?, uuid_key(at, 1)?);
        if !array.group(group)?.snapshots.contains_key(&snapshot) {
            return Err(ApiError::no_entry());
        }
        Ok(Written::later(None, move |array| array.delete_group_snapshot(group, snapshot)))
    }
}
