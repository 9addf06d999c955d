//! `/protocols/san/igroups` and the initiators in them.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, required_text, svm_of, uuid_key};
use crate::model::{Array, NewIgroup};
use crate::resources::svm_ref;

pub struct Igroups;

impl Resource for Igroups {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "protocols/san/igroups",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["lun_maps", "connectivity_tracking"],
            parameters: &["allow_delete_while_mapped"],
            fields: &[
                "uuid",
                "name",
                "svm",
                "protocol",
                "os_type",
                "comment",
                "initiators",
                "lun_maps",
                "igroups",
                "delete_on_unmap",
                "supports_igroups",
                "portset",
                "connectivity_tracking",
                "target",
            ],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array
            .state
            .igroups
            .values()
            .map(|igroup| {
                let mut record = json!({
                    "uuid": igroup.uuid, "name": igroup.name, "svm": svm_ref(array, &igroup.svm), "protocol": igroup.protocol,
                    "os_type": igroup.os_type, "delete_on_unmap": igroup.delete_on_unmap, "supports_igroups": false,
                });
                if !igroup.comment.is_empty() {
                    record["comment"] = json!(igroup.comment);
                }
                if !igroup.initiators.is_empty() {
                    record["initiators"] = igroup.initiators.iter().map(|name| json!({ "name": name })).collect();
                }
                let maps: Vec<Value> = array
                    .state
                    .maps
                    .iter()
                    .filter(|map| map.igroup == igroup.uuid)
                    .filter_map(|map| {
                        let lun = array.state.luns.get(&map.lun)?;
                        Some(json!({ "logical_unit_number": map.number, "lun": { "name": lun.facts.name, "uuid": lun.uuid } }))
                    })
                    .collect();
                if !maps.is_empty() {
                    record["lun_maps"] = json!(maps);
                }
                record
            })
            .collect())
    }
    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let new = NewIgroup {
            svm: svm_of(array, call)?,
            name: required_text(call, "name")?,
            protocol: call.body.text("protocol").unwrap_or_else(|| "mixed".into()),
            os_type: required_text(call, "os_type")?,
            comment: call.body.text("comment").unwrap_or_default(),
            initiators: call.body.list("initiators").iter().filter_map(|body| body.text("name")).collect(),
            delete_on_unmap: call.body.flag("delete_on_unmap")?.unwrap_or(false),
        };
        let uuid = Uuid::new_v4();
        array.create_igroup(&new, uuid)?;
        Ok(Written::Now(Some(vec![uuid.to_string()])))
    }
    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let body = &call.body;
        array.change_igroup(uuid_key(at, 0)?, body.text("name"), body.text("os_type"), body.text("comment"))?;
        Ok(Written::Now(None))
    }
    fn delete(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        array.delete_igroup(uuid_key(at, 0)?, call.flag("allow_delete_while_mapped")).map(|()| Written::Now(None))
    }
    fn not_found(&self) -> ApiError {
        ApiError::missing(5374852, "The initiator group does not exist.")
    }
}

pub struct Initiators;

impl Resource for Initiators {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "protocols/san/igroups/{}/initiators",
            keys: &["name"],
            always: &["igroup.uuid"],
            expensive: &["connectivity_tracking"],
            parameters: &["allow_delete_while_mapped"],
            fields: &["name", "igroup", "comment", "connectivity_tracking", "records"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, above: &[String]) -> ApiResult<Vec<Value>> {
        let igroup = array.igroup(uuid_key(above, 0)?)?;
        let reference = json!({ "uuid": igroup.uuid, "name": igroup.name });
        Ok(igroup.initiators.iter().map(|name| json!({ "name": name, "igroup": reference })).collect())
    }
    fn post(&self, array: &mut Array, above: &[String], call: &Call) -> ApiResult<Written> {
        let igroup = uuid_key(above, 0)?;
        let records = call.body.list("records");
        if records.is_empty() {
            let name = required_text(call, "name")?;
            array.add_initiator(igroup, &name)?;
            return Ok(Written::Now(Some(vec![name])));
        }
        for record in records {
            let name = record.text("name").ok_or_else(|| ApiError::required("records.name"))?;
            array.add_initiator(igroup, &name)?;
        }
        Ok(Written::Now(None))
    }
    fn delete(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        array.remove_initiator(uuid_key(at, 0)?, &at[1], call.flag("allow_delete_while_mapped"))?;
        Ok(Written::Now(None))
    }
    fn not_found(&self) -> ApiError {
        ApiError::missing(5374034, "The initiator is not in the group.")
    }
}
