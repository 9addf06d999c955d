//! `/protocols/san/lun-maps` and the nodes that report a map.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, svm_of, uuid_key};
use crate::model::state::LunMap;
use crate::model::{Array, MapRequest};
use crate::resources::svm_ref;

pub struct LunMaps;

impl Resource for LunMaps {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "protocols/san/lun-maps",
            keys: &["lun.uuid", "igroup.uuid"],
            always: &["lun.name", "igroup.name", "svm.name", "svm.uuid"],
            expensive: &["reporting_nodes"],
            parameters: &[],
            fields: &["lun", "igroup", "svm", "logical_unit_number", "reporting_nodes"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array.state.maps.iter().filter_map(|map| record(array, map)).collect())
    }
    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let svm = svm_of(array, call)?;
        let lun = lun_of(array, call, &svm)?;
        let igroup = igroup_of(array, call, &svm)?;
        let number = match call.body.number("logical_unit_number")? {
            Some(number) => {
                let bad = |_| ApiError::bad_value("logical_unit_number", &number.to_string());
                Some(u16::try_from(number).map_err(bad)?)
            }
            None => None,
        };
        array.map(MapRequest { lun, igroup, number })?;
        Ok(Written::Now(Some(vec![lun.to_string(), igroup.to_string()])))
    }
    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        array.unmap(uuid_key(at, 0)?, uuid_key(at, 1)?).map(|()| Written::Now(None))
    }
    fn not_found(&self) -> ApiError {
        ApiError::missing(5374922, "The specified LUN map does not exist.")
    }
}

fn record(array: &Array, map: &LunMap) -> Option<Value> {
    let (lun, igroup) = (array.state.luns.get(&map.lun)?, array.state.igroups.get(&map.igroup)?);
    let nodes: Vec<Value> =
        array.state.nodes.iter().map(|node| json!({ "name": node.name, "uuid": node.uuid })).collect();
    Some(json!({
        "svm": svm_ref(array, &igroup.svm), "logical_unit_number": map.number, "reporting_nodes": nodes,
        "lun": { "uuid": lun.uuid, "name": lun.facts.name, "node": nodes.first() },
        "igroup": { "uuid": igroup.uuid, "name": igroup.name, "protocol": igroup.protocol, "os_type": igroup.os_type,
            "initiators": igroup.initiators },
    }))
}

fn lun_of(array: &Array, call: &Call, svm: &str) -> ApiResult<Uuid> {
    let missing = || ApiError::missing(1254201, "The specified LUN was not found.").at("lun");
    match (call.body.text("lun.uuid"), call.body.text("lun.name")) {
        (Some(uuid), _) => {
            let uuid = Uuid::parse_str(&uuid).map_err(|_| ApiError::bad_value("lun.uuid", &uuid))?;
            array.state.luns.contains_key(&uuid).then_some(uuid).ok_or_else(missing)
        }
        (None, Some(name)) => array.lun_named(svm, &name).map(|lun| lun.uuid).ok_or_else(missing),
        (None, None) => Err(ApiError::invalid(5374901, "lun.uuid or lun.name must be specified.").at("lun")),
    }
}

fn igroup_of(array: &Array, call: &Call, svm: &str) -> ApiResult<Uuid> {
    let missing = || ApiError::missing(5374878, "The specified initiator group was not found.").at("igroup");
    match (call.body.text("igroup.uuid"), call.body.text("igroup.name")) {
        (Some(uuid), _) => {
            let uuid = Uuid::parse_str(&uuid).map_err(|_| ApiError::bad_value("igroup.uuid", &uuid))?;
            array.state.igroups.contains_key(&uuid).then_some(uuid).ok_or_else(missing)
        }
        (None, Some(name)) => array.igroup_named(svm, &name).map(|igroup| igroup.uuid).ok_or_else(missing),
        (None, None) => Err(ApiError::invalid(5374902, "igroup.uuid or igroup.name must be specified.").at("igroup")),
    }
}

pub struct ReportingNodes;

impl Resource for ReportingNodes {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "protocols/san/lun-maps/{}/{}/reporting-nodes",
            keys: &["uuid"],
            always: &["name"],
            expensive: &[],
            parameters: &[],
            fields: &["uuid", "name", "iscsi", "fcp", "lun", "igroup"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, above: &[String]) -> ApiResult<Vec<Value>> {
        let (lun, igroup) = (uuid_key(above, 0)?, uuid_key(above, 1)?);
        if !array.state.maps.iter().any(|map| map.lun == lun && map.igroup == igroup) {
            return Err(ApiError::missing(5374922, "The specified LUN map does not exist."));
        }
        Ok(array.state.nodes.iter().map(|node| json!({ "uuid": node.uuid, "name": node.name })).collect())
    }
}
