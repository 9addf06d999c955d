//! LUNs and their attributes.

use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Array, appears};
use crate::error::{ArrayError, ArrayResult, Refusal, absent, code};
use crate::model::Lun;
use crate::query::{Query, segment};

const FIELDS: &str = "uuid,name,serial_number,comment,attributes,space,status,location";
/// Names in one query; a URL stays well below 8 KiB.
const NAMES_PER_QUERY: usize = 100;

/// An empty LUN to be made.
#[derive(Debug, Clone)]
pub struct LunSpec {
    pub path: String,
    pub size: u64,
    /// Its whole size is set aside.
    pub reserved: bool,
    pub comment: String,
    pub attributes: Vec<(&'static str, String)>,
}

impl Array {
    /// All LUNs in the FlexVols that match `pattern`.
    pub async fn luns(&self, pattern: &str) -> ArrayResult<Vec<Lun>> {
        let query = self.here().with("location.volume.name", pattern).fields(FIELDS);
        self.rest.list("/storage/luns", &query).await
    }

    /// The same, with their paths alone.
    pub async fn lun_paths(&self, pattern: &str) -> ArrayResult<Vec<Lun>> {
        let query = self.here().with("location.volume.name", pattern).fields("uuid,name");
        self.rest.list("/storage/luns", &query).await
    }

    /// Those with an attribute whose name matches. Releases that cannot filter by attributes give all.
    pub async fn luns_with(&self, pattern: &str, attribute: &str) -> ArrayResult<Vec<Lun>> {
        let query = self.here().with("location.volume.name", pattern).with("attributes.name", attribute);
        match self.rest.list("/storage/luns", &query.fields(FIELDS)).await {
            Err(error) if error.is_any(code::FILTER_UNKNOWN) => self.luns(pattern).await,
            other => other,
        }
    }

    /// Those of the LUNs in `pattern` whose base name is one of `names`.
    pub async fn luns_named(&self, pattern: &str, names: &[String]) -> ArrayResult<Vec<Lun>> {
        let mut found = Vec::new();
        for some in names.chunks(NAMES_PER_QUERY) {
            let query = self.here().with("location.volume.name", pattern);
            let query = query.any("location.logical_unit", some).fields(FIELDS);
            found.extend(self.rest.list::<Lun>("/storage/luns", &query).await?);
        }
        Ok(found)
    }

    pub async fn lun_at(&self, path: &str) -> ArrayResult<Option<Lun>> {
        let found: Vec<Lun> = self.rest.list("/storage/luns", &self.here().with("name", path).fields(FIELDS)).await?;
        Ok(found.into_iter().find(|lun| lun.name == path))
    }

    async fn lun_appears(&self, path: &str) -> ArrayResult<Lun> {
        appears(&format!("LUN {path}"), || self.lun_at(path)).await
    }

    /// Makes a LUN; one that is there already is returned as it is. True where it was made now.
    pub async fn create_lun(&self, spec: &LunSpec) -> ArrayResult<(Lun, bool)> {
        let attributes: Vec<Value> =
            spec.attributes.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let body = json!({
            "svm": {"name": self.svm.name},
            "name": spec.path,
            "os_type": "linux",
            "space": {
                "size": spec.size,
                "guarantee": {"requested": spec.reserved},
                "scsi_thin_provisioning_support_enabled": true,
            },
            "comment": spec.comment,
            "attributes": attributes,
        });
        let made = existing(self.post("/storage/luns", &Query::new(), &body).await)?;
        Ok((self.lun_appears(&spec.path).await?, made))
    }

    /// Makes a LUN over the blocks of `source`: a path in the same FlexVol, or in one of its snapshots. It bears the
    /// source's comment and attributes. True where it was made now.
    pub async fn clone_lun(&self, source: &str, path: &str, reserved: bool) -> ArrayResult<(Lun, bool)> {
        let body = json!({
            "svm": {"name": self.svm.name},
            "name": path,
            "clone": {"source": {"name": source}},
            "space": {"guarantee": {"requested": reserved}, "scsi_thin_provisioning_support_enabled": true},
        });
        let made = existing(self.post("/storage/luns", &Query::new(), &body).await)?;
        Ok((self.lun_appears(path).await?, made))
    }

    /// Puts the blocks of one LUN in place of another's, which keeps its serial number and maps.
    pub async fn overwrite_lun(&self, uuid: &str, source: &str) -> ArrayResult<()> {
        self.change_lun(uuid, &json!({"clone": {"source": {"uuid": source}}})).await
    }

    pub async fn change_lun(&self, uuid: &str, body: &Value) -> ArrayResult<()> {
        self.patch(&format!("/storage/luns/{}", segment(uuid)), &Query::new(), body).await.map(drop)
    }

    pub async fn resize_lun(&self, uuid: &str, size: u64) -> ArrayResult<()> {
        match self.change_lun(uuid, &json!({"space": {"size": size}})).await {
            Err(error) if error.is(code::LUN_SAME_SIZE) => Ok(()),
            other => other,
        }
    }

    /// False where it was not there. A mapped one is refused.
    pub async fn delete_lun(&self, uuid: &str) -> ArrayResult<bool> {
        let done = self.delete(&format!("/storage/luns/{}", segment(uuid)), &Query::new()).await;
        Ok(absent(done, code::LUN_UNKNOWN)?.is_some())
    }

    pub async fn lun_by_uuid(&self, uuid: &str) -> ArrayResult<Option<Lun>> {
        let query = Query::new().fields(FIELDS);
        absent(self.rest.get(&format!("/storage/luns/{}", segment(uuid)), &query).await, code::LUN_UNKNOWN)
    }

    /// Sets one attribute, whether or not there is one of this name.
    pub async fn set_attribute(&self, lun: &str, name: &str, value: &str) -> ArrayResult<()> {
        let all = format!("/storage/luns/{}/attributes", segment(lun));
        match self.post(&all, &Query::new(), &json!({"name": name, "value": value})).await {
            Err(error) if error.is(code::ATTRIBUTE_EXISTS) => {
                let one = format!("{all}/{}", segment(name));
                self.patch(&one, &Query::new(), &json!({"value": value})).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// False where it was not there.
    pub async fn delete_attribute(&self, lun: &str, name: &str) -> ArrayResult<bool> {
        let path = format!("/storage/luns/{}/attributes/{}", segment(lun), segment(name));
        let nothing = Value::Object(serde_json::Map::new());
        let done = self.rest.write(Method::DELETE, &path, &Query::new(), &nothing).await;
        Ok(absent(done, &[code::ATTRIBUTE_UNKNOWN])?.is_some())
    }

    /// Whether any LUN in `pattern` says that it was copied from `id`.
    pub async fn has_copies(&self, pattern: &str, id: Uuid) -> ArrayResult<bool> {
        let query = self.here().with("location.volume.name", pattern);
        let query = query.with("comment", &format!("*parent={}*", id.simple())).fields("uuid");
        Ok(!self.rest.list::<Lun>("/storage/luns", &query).await?.is_empty())
    }

    /// The LUN itself, or an error that says that it went away.
    pub fn must(&self, lun: Option<Lun>, path: &str) -> ArrayResult<Lun> {
        let gone = || Refusal {
            call: format!("GET {path}"),
            status: 404,
            code: code::NOT_FOUND,
            message: format!("LUN {path} is not there (any more)"),
        };
        lun.ok_or_else(|| ArrayError::Refused(gone()))
    }
}

/// True for made now, false for there already.
fn existing<T>(result: ArrayResult<T>) -> ArrayResult<bool> {
    const EXISTS: &[u64] = &[code::LUN_EXISTS, code::LUN_NAME_EXISTS, code::CLONE_EXISTS];
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.is_any(EXISTS) => Ok(false),
        Err(error) => Err(error),
    }
}
