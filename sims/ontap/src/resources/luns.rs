//! `/storage/luns`: LUNs, clones of LUNs, overwriting in place.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::{Body, Call};
use crate::api::resource::{Resource, Spec, Written, required_text, svm_of, uuid_key};
use crate::model::state::Lun;
use crate::model::{Array, CloneSource, CloneWish, LunChange, NewLun};
use crate::resources::{node_ref, svm_ref, volume_ref};

pub struct Luns;

impl Resource for Luns {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/luns",
            keys: &["uuid"],
            always: &["name"],
            expensive: &[
                "lun_maps",
                "attributes",
                "auto_delete",
                "status.mapped",
                "copy",
                "movement",
                "metric",
                "statistics",
            ],
            parameters: &["allow_delete_while_mapped", "data"],
            fields: &[
                "uuid",
                "name",
                "serial_number",
                "serial_number_hex",
                "os_type",
                "class",
                "enabled",
                "comment",
                "create_time",
                "svm",
                "location",
                "space",
                "status",
                "lun_maps",
                "attributes",
                "auto_delete",
                "clone",
                "consistency_group",
                "qos_policy",
                "movement",
                "copy",
                "metric",
                "statistics",
            ],
            is_cluster_only: false,
        }
    }

    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array.state.luns.values().map(|lun| record(array, lun)).collect())
    }

    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let svm = svm_of(array, call)?;
        let path = path_of(&call.body)?;
        let uuid = Uuid::new_v4();
        let made = Some(vec![uuid.to_string()]);
        if call.body.has("clone.source") {
            let (source, wish) = clone_wish(array, call, &svm)?;
            if array.options.lun_jobs {
                array.check_clone(&svm, &path, &source)?;
                return Ok(Written::later(made, move |array| array.clone_lun(&svm, &path, &source, &wish, uuid)));
            }
            return array.clone_lun(&svm, &path, &source, &wish, uuid).map(|()| Written::Now(made));
        }
        let body = &call.body;
        let size = body.bytes("space.size")?;
        let new = NewLun {
            svm,
            path,
            os_type: required_text(call, "os_type")?,
            size: size.ok_or_else(|| ApiError::required("space.size"))?,
            comment: body.text("comment").unwrap_or_default(),
            reserved: body.flag("space.guarantee.requested")?.unwrap_or(true),
            thin: body.flag("space.scsi_thin_provisioning_support_enabled")?.unwrap_or(array.thin_by_default()),
            attributes: attributes(body)?,
            qos: body.text("qos_policy.name"),
        };
        if array.options.lun_jobs {
            array.check_new_lun(&new)?;
            return Ok(Written::later(made, move |array| array.create_lun(&new, uuid)));
        }
        array.create_lun(&new, uuid).map(|()| Written::Now(made))
    }

    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        let lun = array.lun(uuid)?;
        let body = &call.body;
        if body.has("attributes") {
            return Err(
                ApiError::invalid(262203, "Field \"attributes\" cannot be set in this operation.").at("attributes")
            );
        }
        if body.has("clone.source") {
            let svm = array.svm_of_lun(lun);
            let source = source_of(array, body, &svm)?;
            array.overwrite_lun(uuid, &source)?;
            return Ok(Written::Now(None));
        }
        let change = LunChange {
            path: body.text("name"),
            size: body.bytes("space.size")?,
            comment: body.text("comment"),
            enabled: body.flag("enabled")?,
            reserved: body.flag("space.guarantee.requested")?,
            thin: body.flag("space.scsi_thin_provisioning_support_enabled")?,
            qos: body.text("qos_policy.name"),
            auto_delete: body.flag("auto_delete")?,
        };
        array.change_lun(uuid, &change).map(|()| Written::Now(None))
    }

    fn delete(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        let while_mapped = call.flag("allow_delete_while_mapped");
        array.lun(uuid)?;
        if array.options.lun_jobs {
            return Ok(Written::later(None, move |array| array.delete_lun(uuid, while_mapped)));
        }
        array.delete_lun(uuid, while_mapped).map(|()| Written::Now(None))
    }
}

/// The path of a new LUN: `name`, or made of `location`.
fn path_of(body: &Body) -> ApiResult<String> {
    let located = match (body.text("location.volume.name"), body.text("location.logical_unit")) {
        (Some(volume), Some(base)) => Some(format!("/vol/{volume}/{base}")),
        _ => None,
    };
    match (body.text("name"), located) {
        (Some(name), Some(located)) if name != located => {
            Err(ApiError::invalid(5374858, "The name and the location of the LUN disagree.").at("name"))
        }
        (Some(name), _) => Ok(name),
        (None, Some(located)) => Ok(located),
        (None, None) if body.has("location.volume") => {
            Err(ApiError::invalid(5374862, "The base name is missing.").at("name"))
        }
        (None, None) => Err(ApiError::invalid(5374859, "The volume and the name of the LUN are missing.").at("name")),
    }
}

fn source_of(array: &Array, body: &Body, svm: &str) -> ApiResult<CloneSource> {
    array.clone_source(svm, body.text("clone.source.name").as_deref(), body.text("clone.source.uuid").as_deref())
}

fn clone_wish(array: &Array, call: &Call, svm: &str) -> ApiResult<(CloneSource, CloneWish)> {
    let body = &call.body;
    for field in ["os_type", "attributes"] {
        if body.has(field) {
            let words = format!("The property \"{field}\" cannot be specified when creating a LUN clone.");
            return Err(ApiError::invalid(5374883, words).at(field));
        }
    }
    let source = source_of(array, body, svm)?;
    // A size that changes nothing is passed over, as some clients send it.
    if let Some(size) = body.bytes("space.size")?
        && size != array.source_size(&source)?
    {
        let words = "The property \"space.size\" cannot be specified when creating a LUN clone.";
        return Err(ApiError::invalid(5374883, words).at("space.size"));
    }
    let wish = CloneWish {
        reserved: body.flag("space.guarantee.requested")?,
        thin: body.flag("space.scsi_thin_provisioning_support_enabled")?.unwrap_or(false),
        comment: body.text("comment"),
        qos: body.text("qos_policy.name"),
    };
    Ok((source, wish))
}

fn attributes(body: &Body) -> ApiResult<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for attribute in body.list("attributes") {
        let (Some(name), Some(value)) = (attribute.text("name"), attribute.text("value")) else {
            return Err(ApiError::invalid(5374928, "An attribute needs a name and a value.").at("attributes"));
        };
        if found.insert(name.clone(), value).is_some() {
            return Err(
                ApiError::invalid(5374932, format!("The attribute \"{name}\" is given twice.")).at("attributes")
            );
        }
    }
    Ok(found)
}

impl Array {
    /// From 9.15.1 new LUNs honour UNMAP by default.
    fn thin_by_default(&self) -> bool {
        self.state.cluster.version >= [9, 15, 1]
    }
}

fn record(array: &Array, lun: &Lun) -> Value {
    let svm = array.svm_of_lun(lun);
    let volume = array.state.volumes.get(&lun.volume);
    let aggregate =
        array.state.aggregates.iter().find(|found| volume.is_some_and(|volume| volume.aggregate == found.name));
    let container_state =
        if volume.is_some_and(|volume| volume.state == "online") { "online" } else { "volume_offline" };
    let state = match (lun.enabled, lun.space_error && !lun.thin) {
        (_, true) => "space_error",
        (true, _) => "online",
        (false, _) => "offline",
    };
    let maps: Vec<Value> = array
        .state
        .maps
        .iter()
        .filter(|map| map.lun == lun.uuid)
        .map(|map| {
            let igroup = array.state.igroups.get(&map.igroup);
            json!({ "logical_unit_number": map.number,
                "igroup": { "name": igroup.map(|igroup| &igroup.name), "uuid": map.igroup } })
        })
        .collect();
    let is_guaranteed = volume.is_some_and(|volume| volume.guarantee == "volume" && volume.fractional_reserve == 100)
        && lun.facts.reserved;
    let hex = lun.serial.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let mut record = json!({
        "uuid": lun.uuid, "name": lun.facts.name, "serial_number": lun.serial, "serial_number_hex": hex,
        "os_type": lun.facts.os_type, "class": "regular", "enabled": lun.enabled, "comment": lun.facts.comment,
        "create_time": lun.create_time, "svm": svm_ref(array, &svm), "auto_delete": lun.auto_delete,
        "location": {
            "logical_unit": lun.facts.name.rsplit('/').next(), "volume": volume_ref(array, lun.volume),
            "node": aggregate.map(|aggregate| node_ref(array, &aggregate.node)),
        },
        "space": {
            "size": lun.facts.size, "used": array.lun_used(lun.uuid),
            "guarantee": { "requested": lun.facts.reserved, "reserved": is_guaranteed },
            "scsi_thin_provisioning_support_enabled": lun.thin,
        },
        "status": { "state": state, "container_state": container_state, "read_only": false, "mapped": !maps.is_empty() },
    });
    if !maps.is_empty() {
        record["lun_maps"] = json!(maps);
    }
    if !lun.facts.attributes.is_empty() {
        let list = lun.facts.attributes.iter().map(|(name, value)| json!({ "name": name, "value": value }));
        record["attributes"] = list.collect();
    }
    if lun.created_as_clone {
        record["clone"] = json!({ "created_as_clone": true });
    }
    if let Some(qos) = &lun.qos {
        record["qos_policy"] = json!({ "name": qos });
    }
    if let Some(group) = array.state.groups.values().find(|group| group.volumes.contains(&lun.volume)) {
        record["consistency_group"] = json!({ "name": group.name, "uuid": group.uuid });
    }
    record
}
