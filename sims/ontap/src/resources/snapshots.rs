//! `/storage/volumes/{volume}/snapshots`

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, required_text, uuid_key};
use crate::model::{Array, SnapshotWish};
use crate::resources::{svm_ref, volume_ref};

pub struct Snapshots;

impl Resource for Snapshots {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/volumes/{}/snapshots",
            keys: &["uuid"],
            always: &["name"],
            expensive: &["reclaimable_space", "delta"],
            parameters: &[],
            fields: &[
                "uuid",
                "name",
                "volume",
                "svm",
                "comment",
                "create_time",
                "expiry_time",
                "size",
                "logical_size",
                "owners",
                "state",
                "reclaimable_space",
                "delta",
                "version_uuid",
                "snapmirror_label",
                "snaplock",
            ],
            is_cluster_only: false,
        }
    }

    fn records(&self, array: &Array, above: &[String]) -> ApiResult<Vec<Value>> {
        // "*" stands for all volumes.
        let volume = if above == ["*"] { None } else { Some(uuid_key(above, 0)?) };
        if let Some(volume) = volume {
            array.volume(volume)?;
        }
        let mine =
            array.state.snapshots.values().filter(|snapshot| volume.is_none_or(|volume| snapshot.volume == volume));
        Ok(mine
            .map(|snapshot| {
                let svm =
                    array.state.volumes.get(&snapshot.volume).map(|volume| volume.svm.clone()).unwrap_or_default();
                let owners = array.owners(snapshot);
                let mut record = json!({
                    "uuid": snapshot.uuid, "name": snapshot.name, "volume": volume_ref(array, snapshot.volume),
                    "svm": svm_ref(array, &svm), "comment": snapshot.comment, "create_time": snapshot.create_time,
                    "expiry_time": snapshot.expiry_time, "size": 122_880, "logical_size": 122_880, "state": "valid",
                    "version_uuid": snapshot.uuid, "reclaimable_space": 122_880,
                    "delta": { "size_consumed": 122_880, "time_elapsed": "PT0S" },
                });
                if !owners.is_empty() {
                    record["owners"] = json!(owners);
                }
                record
            })
            .collect())
    }

    fn post(&self, array: &mut Array, above: &[String], call: &Call) -> ApiResult<Written> {
        let volume = uuid_key(above, 0)?;
        array.volume(volume)?;
        let wish = SnapshotWish {
            name: required_text(call, "name")?,
            comment: call.body.text("comment").unwrap_or_default(),
            expiry_time: call.body.text("expiry_time"),
            group: None,
        };
        let uuid = Uuid::new_v4();
        Ok(Written::later(Some(vec![uuid.to_string()]), move |array| array.snapshot_volumes(&[volume], &wish, &[uuid])))
    }

    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let (volume, uuid) = (uuid_key(at, 0)?, uuid_key(at, 1)?);
        array.snapshot(volume, uuid)?;
        let (name, comment) = (call.body.text("name"), call.body.text("comment"));
        Ok(Written::later(None, move |array| array.rename_snapshot(volume, uuid, name.as_deref(), comment.as_deref())))
    }

    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        let uuid = uuid_key(at, 1)?;
        let volume = match at.first().map(String::as_str) {
            Some("*") => {
                array.state.snapshots.get(&uuid).map(|snapshot| snapshot.volume).ok_or_else(|| self.not_found())?
            }
            _ => uuid_key(at, 0)?,
        };
        array.snapshot(volume, uuid)?;
        Ok(Written::later(None, move |array| array.delete_snapshot(volume, uuid)))
    }

    fn not_found(&self) -> ApiError {
        ApiError::no_entry()
    }
}
