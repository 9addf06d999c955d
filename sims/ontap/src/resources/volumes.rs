//! `/storage/volumes`: FlexVols, FlexClones, restore.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::{Body, Call};
use crate::api::resource::{Resource, Spec, Written, required_text, svm_of, uuid_key};
use crate::model::state::Volume;
use crate::model::{Array, NewVolume, VolumeChange, now_ms};
use crate::resources::{svm_ref, volume_ref};

pub struct Volumes;

const EFFICIENCY: &[&str] = &["dedupe", "compression", "compaction", "cross_volume_dedupe", "state"];

impl Resource for Volumes {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/volumes",
            keys: &["uuid"],
            always: &["name"],
            expensive: &[
                "is_svm_root",
                "encryption",
                "guarantee",
                "autosize",
                "efficiency",
                "clone.parent_snapshot",
                "clone.parent_volume",
                "clone.parent_svm",
                "clone.is_flexclone",
                "clone.split_initiated",
                "clone.split_complete_percent",
                "clone.has_flexclone",
                "clone.inherited_savings",
                "space.snapshot",
                "space.logical_space",
                "space.afs_total",
                "space.fractional_reserve",
                "qos",
                "nas",
            ],
            parameters: &["force", "restore_to", "preserve_lun_ids", "nas"],
            fields: &[
                "uuid",
                "name",
                "svm",
                "state",
                "type",
                "style",
                "size",
                "comment",
                "aggregates",
                "create_time",
                "is_svm_root",
                "error_state",
                "snapshot_count",
                "snapshot_policy",
                "snapshot_directory_access_enabled",
                "language",
                "space",
                "clone",
                "encryption",
                "guarantee",
                "autosize",
                "efficiency",
                "qos",
                "nas",
                "tiering",
                "consistency_group",
                "flexclone",
                "is_object_store",
                "metric",
                "statistics",
                "files",
                "access_time_enabled",
            ],
            is_cluster_only: false,
        }
    }

    fn records(&self, array: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        Ok(array.state.volumes.values().map(|volume| record(array, volume)).collect())
    }

    fn post(&self, array: &mut Array, _: &[String], call: &Call) -> ApiResult<Written> {
        let svm = svm_of(array, call)?;
        let name = required_text(call, "name")?;
        let uuid = Uuid::new_v4();
        let made = Some(vec![uuid.to_string()]);
        if call.body.flag("clone.is_flexclone")?.unwrap_or(false) {
            let parent = required_text(call, "clone.parent_volume.name")?;
            let snapshot = call.body.text("clone.parent_snapshot.name");
            array.check_flexclone(&svm, &name, &parent)?;
            return Ok(Written::later(made, move |array| {
                array.create_flexclone(&svm, &name, &parent, snapshot.as_deref(), uuid)
            }));
        }
        if let Some(style) = call.body.text("style").filter(|style| style != "flexvol") {
            return Err(ApiError::bad_value("style", &style));
        }
        let aggregates = call.body.list("aggregates");
        let aggregates: Vec<String> =
            aggregates.iter().map(|body| aggregate_name(array, body)).collect::<ApiResult<_>>()?;
        if aggregates.len() != 1 {
            return Err(ApiError::invalid(918242, "Exactly one aggregate is needed for a flexvol.").at("aggregates"));
        }
        let new = NewVolume { svm, name, aggregates, change: change(&call.body)? };
        // A name that is taken is found out by the job, the rest at once.
        match array.check_new_volume(&new) {
            Err(error) if error.code != "917526" => return Err(error),
            _ => {}
        }
        Ok(Written::later(made, move |array| array.create_volume(&new, uuid)))
    }

    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        array.volume(uuid)?;
        let restore = |name: &str| {
            let path = format!("restore_to.{name}");
            call.parameter(&path).map(String::from).or_else(|| call.body.text(&path))
        };
        let wanted = (restore("snapshot.name"), restore("snapshot.uuid"));
        if wanted != (None, None) {
            let snapshot = find_snapshot(array, uuid, wanted)?;
            let force = restore("snapshot.force").is_some_and(|value| value == "true");
            let path = restore("path");
            return Ok(Written::later(None, move |array| match path {
                Some(path) => array.restore_lun(uuid, snapshot, &path),
                None => array.restore_volume(uuid, snapshot, force),
            }));
        }
        if call.body.flag("clone.split_initiated")?.unwrap_or(false) {
            return Ok(Written::later(None, move |array| array.split_flexclone(uuid)));
        }
        let change = change(&call.body)?;
        change.check()?;
        Ok(Written::later(None, move |array| array.change_volume(uuid, &change)))
    }

    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 0)?;
        array.volume(uuid)?;
        Ok(Written::later(None, move |array| array.delete_volume(uuid)))
    }
}

fn aggregate_name(array: &Array, body: &Body) -> ApiResult<String> {
    if let Some(name) = body.text("name") {
        return Ok(name);
    }
    let uuid = body.text("uuid").ok_or_else(|| ApiError::required("aggregates.name"))?;
    let found = array.state.aggregates.iter().find(|aggregate| aggregate.uuid.to_string() == uuid);
    let missing = || ApiError::missing(917508, format!("Aggregate \"{uuid}\" does not exist.")).at("aggregates.uuid");
    found.map(|aggregate| aggregate.name.clone()).ok_or_else(missing)
}

fn find_snapshot(array: &Array, volume: Uuid, wanted: (Option<String>, Option<String>)) -> ApiResult<Uuid> {
    let is_it = |name: &str, uuid: Uuid| wanted.0.as_deref() == Some(name) || wanted.1 == Some(uuid.to_string());
    let mut snapshots = array.state.snapshots.values().filter(|snapshot| snapshot.volume == volume);
    let found = snapshots.find(|snapshot| is_it(&snapshot.name, snapshot.uuid)).map(|snapshot| snapshot.uuid);
    found.ok_or_else(|| ApiError::missing(1638600, "The snapshot does not exist.").at("restore_to.snapshot"))
}

fn change(body: &Body) -> ApiResult<VolumeChange> {
    let efficiency =
        EFFICIENCY.iter().filter_map(|key| Some(((*key).to_string(), body.text(&format!("efficiency.{key}"))?)));
    Ok(VolumeChange {
        name: body.text("name"),
        size: match body.bytes("size")? {
            Some(size) => Some(size),
            None => body.bytes("space.size")?,
        },
        state: body.text("state"),
        comment: body.text("comment"),
        guarantee: body.text("guarantee.type"),
        snapshot_policy: body.text("snapshot_policy.name"),
        snapshot_directory: body.flag("snapshot_directory_access_enabled")?,
        reserve_percent: body.bytes("space.snapshot.reserve_percent")?,
        fractional_reserve: body.bytes("space.fractional_reserve")?,
        autosize_mode: body.text("autosize.mode"),
        autosize_maximum: body.bytes("autosize.maximum")?,
        autosize_minimum: body.bytes("autosize.minimum")?,
        grow_threshold: body.bytes("autosize.grow_threshold")?,
        shrink_threshold: body.bytes("autosize.shrink_threshold")?,
        efficiency: efficiency.collect(),
        tiering: body.text("tiering.policy"),
        qos: body.text("qos.policy.name"),
    })
}

fn record(array: &Array, volume: &Volume) -> Value {
    let space = array.volume_space(volume);
    let aggregate = array.state.aggregates.iter().find(|aggregate| aggregate.name == volume.aggregate);
    let snapshots = array.state.snapshots.values().filter(|snapshot| snapshot.volume == volume.uuid).count();
    let has_clones =
        array.state.volumes.values().any(|other| other.clone.as_ref().is_some_and(|clone| clone.parent == volume.uuid));
    let mut record = json!({
        "uuid": volume.uuid, "name": volume.name, "svm": svm_ref(array, &volume.svm), "state": volume.state,
        "type": "rw", "style": "flexvol", "size": volume.size, "comment": volume.comment, "language": "c.utf_8",
        "aggregates": [{ "name": volume.aggregate, "uuid": aggregate.map(|aggregate| aggregate.uuid) }],
        "create_time": volume.create_time, "is_svm_root": volume.is_svm_root, "snapshot_count": snapshots,
        "error_state": { "has_bad_blocks": false, "is_inconsistent": false },
        "snapshot_policy": { "name": volume.snapshot_policy },
        "snapshot_directory_access_enabled": volume.snapshot_directory,
        "encryption": { "enabled": false }, "tiering": { "policy": volume.tiering },
        "guarantee": { "type": volume.guarantee, "honored": true },
        "autosize": {
            "mode": volume.autosize.mode, "maximum": volume.autosize.maximum, "minimum": volume.autosize.minimum,
            "grow_threshold": volume.autosize.grow_threshold, "shrink_threshold": volume.autosize.shrink_threshold
        },
        "efficiency": volume.efficiency,
        "space": {
            "size": volume.size, "available": array.room(volume), "used": space.used, "physical_used": space.used,
            "afs_total": volume.size - volume.size / 100 * volume.reserve_percent,
            "over_provisioned": 0, "metadata": 0, "fractional_reserve": volume.fractional_reserve,
            "full_threshold_percent": 98, "nearly_full_threshold_percent": 95,
            "logical_space": { "available": space.available, "used": space.used },
            "snapshot": {
                "used": space.snapshots, "reserve_percent": volume.reserve_percent,
                "reserve_size": volume.size / 100 * volume.reserve_percent,
                "autodelete": { "enabled": false, "trigger": "volume" }
            },
        },
    });
    if !volume.efficiency.contains_key("state") {
        let is_on = volume.efficiency.get("dedupe").is_some_and(|dedupe| dedupe != "none");
        record["efficiency"]["state"] = json!(if is_on { "enabled" } else { "disabled" });
    }
    record["efficiency"]["volume_path"] = json!(format!("/vol/{}", volume.name));
    if let Some(qos) = &volume.qos {
        record["qos"] = json!({ "policy": { "name": qos } });
    }
    record["clone"] = match &volume.clone {
        Some(clone) => json!({
            "is_flexclone": true, "has_flexclone": has_clones, "parent_volume": volume_ref(array, clone.parent),
            "parent_svm": svm_ref(array, &volume.svm),
            "parent_snapshot": { "uuid": clone.snapshot,
                "name": array.state.snapshots.get(&clone.snapshot).map(|snapshot| &snapshot.name) },
            "split_initiated": clone.split_until.is_some_and(|until| until > now_ms()),
        }),
        None => json!({ "is_flexclone": false, "has_flexclone": has_clones }),
    };
    if let Some(group) = array.state.groups.values().find(|group| group.volumes.contains(&volume.uuid)) {
        record["consistency_group"] = json!({ "name": group.name, "uuid": group.uuid });
    }
    record
}
