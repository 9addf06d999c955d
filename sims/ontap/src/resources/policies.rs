//! `/storage/snapshot-policies` and `/storage/qos/policies`

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, required_text, svm_of, uuid_key};
use crate::model::Array;
use crate::model::state::QosPolicy;
use crate::resources::svm_ref;

pub struct SnapshotPolicies;

impl Resource for SnapshotPolicies {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/snapshot-policies",
            keys: &["uuid"],
            always: &["name"],
            expensive: &[],
            parameters: &[],
            fields: &["uuid", "name", "enabled", "scope", "comment", "copies", "svm"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        // Their uuids are the cluster's, counted on, so that they stay the same.
        let base = array.state.cluster.uuid.as_u128();
        let named = ["none", "default", "default-1weekly"].iter().zip(1u128..);
        Ok(named
            .map(|(name, number)| {
                json!({ "uuid": Uuid::from_u128(base ^ number), "name": name, "enabled": true, "scope": "cluster" })
            })
            .collect())
    }
}

pub struct QosPolicies;

impl Resource for QosPolicies {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/qos/policies",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["object_count"],
            parameters: &[],
            fields: &["uuid", "name", "svm", "fixed", "adaptive", "policy_class", "object_count", "scope", "pgid"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array
            .state
            .qos
            .values()
            .map(|policy| {
                let count = array.state.luns.values().filter(|lun| lun.qos.as_ref() == Some(&policy.name)).count();
                let mut record = json!({
                    "uuid": policy.uuid, "name": policy.name, "svm": svm_ref(array, &policy.svm),
                    "policy_class": "user_defined", "scope": "svm", "object_count": count,
                });
                for kind in ["fixed", "adaptive"] {
                    if let Some(settings) = policy.settings.get(kind) {
                        record[kind] = settings.clone();
                    }
                }
                record
            })
            .collect())
    }
    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let svm = svm_of(array, call)?;
        let name = required_text(call, "name")?;
        if array.state.qos.values().any(|policy| policy.name == name) {
            return Err(ApiError::conflict(8454154, format!("The QoS policy \"{name}\" already exists.")).at("name"));
        }
        let uuid = Uuid::new_v4();
        let settings = settings(call);
        Ok(Written::later(Some(vec![uuid.to_string()]), move |array| {
            array.state.qos.insert(uuid, QosPolicy { uuid, name, svm, settings });
            array.settle()
        }))
    }
    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        let policy = array.state.qos.get_mut(&uuid).ok_or_else(ApiError::no_entry)?;
        let before = policy.name.clone();
        if let Some(name) = call.body.text("name") {
            policy.name = name;
        }
        let after = policy.name.clone();
        if let (Some(kept), Some(given)) = (policy.settings.as_object_mut(), settings(call).as_object()) {
            kept.extend(given.clone());
        }
        for lun in array.state.luns.values_mut().filter(|lun| lun.qos.as_ref() == Some(&before)) {
            lun.qos = Some(after.clone());
        }
        array.settle()?;
        Ok(Written::Now(None))
    }
    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        let name = array.state.qos.get(&uuid).ok_or_else(ApiError::no_entry)?.name.clone();
        if array.state.luns.values().any(|lun| lun.qos.as_ref() == Some(&name)) {
            return Err(ApiError::conflict(8, format!("The QoS policy \"{name}\" is in use.")));
        }
        array.state.qos.remove(&uuid);
        array.settle()?;
        Ok(Written::Now(None))
    }
}

fn settings(call: &Call) -> Value {
    let mut settings = json!({});
    for kind in ["fixed", "adaptive"] {
        if let Some(value) = call.body.value(kind) {
            settings[kind] = value.clone();
        }
    }
    settings
}
