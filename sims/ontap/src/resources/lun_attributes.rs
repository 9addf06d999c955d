//! `/storage/luns/{lun}/attributes`

use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::api::resource::{Resource, Spec, Written, required_text, uuid_key};
use crate::model::Array;
use crate::resources::svm_ref;

pub struct LunAttributes;

impl Resource for LunAttributes {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "storage/luns/{}/attributes",
            keys: &["name"],
            always: &["lun.uuid"],
            expensive: &[],
            parameters: &[],
            fields: &["name", "value", "lun", "svm"],
            is_cluster_only: false,
        }
    }
    fn records(&self, array: &Array, above: &[String]) -> ApiResult<Vec<Value>> {
        let lun = array.lun(uuid_key(above, 0)?)?;
        let svm = svm_ref(array, &array.svm_of_lun(lun));
        let record = |(name, value): (&String, &String)| json!({ "name": name, "value": value, "lun": { "uuid": lun.uuid, "name": lun.facts.name }, "svm": svm });
        Ok(lun.facts.attributes.iter().map(record).collect())
    }
    fn post(&self, array: &mut Array, above: &[String], call: &Call) -> ApiResult<Written> {
        let (name, value) = (required_text(call, "name")?, required_text(call, "value")?);
        array.add_attribute(uuid_key(above, 0)?, &name, &value)?;
        Ok(Written::Now(Some(vec![name])))
    }
    fn patch(&self, array: &mut Array, at: &[String], call: &Call) -> ApiResult<Written> {
        let value = required_text(call, "value")?;
        array.change_attribute(uuid_key(at, 0)?, &at[1], Some(&value)).map(|()| Written::Now(None))
    }
    fn delete(&self, array: &mut Array, at: &[String], _: &Call) -> ApiResult<Written> {
        array.change_attribute(uuid_key(at, 0)?, &at[1], None).map(|()| Written::Now(None))
    }
    fn not_found(&self) -> ApiError {
        ApiError::missing(5374931, "The attribute does not exist.")
    }
}
