//! What a resource of the API is: a path, keys, records, and what can be done to them.

use serde_json::Value;
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::request::Call;
use crate::model::Array;

/// The unchanging facts of a resource.
#[derive(Debug)]
pub struct Spec {
    /// Below `/api`; `{}` stands for a key of the resource above.
    pub path: &'static str,
    /// The fields whose values follow the path for one record.
    pub keys: &'static [&'static str],
    /// Always told, beside the keys.
    pub always: &'static [&'static str],
    /// Told only when named.
    pub expensive: &'static [&'static str],
    /// Parameters that are no filters.
    pub parameters: &'static [&'static str],
    /// Top-level names of all fields; others are unknown.
    pub fields: &'static [&'static str],
    /// Not for accounts of an SVM.
    pub is_cluster_only: bool,
}

/// Work of a job.
pub type Run = Box<dyn FnOnce(&mut Array) -> ApiResult<()> + Send>;

/// What became of a write.
pub enum Written {
    /// It is done. Keys of what was made, for `Location` and the record.
    Now(Option<Vec<String>>),
    /// A job will do it.
    Later(Option<Vec<String>>, Run),
}

impl Written {
    pub fn later(made: Option<Vec<String>>, run: impl FnOnce(&mut Array) -> ApiResult<()> + Send + 'static) -> Written {
        Written::Later(made, Box::new(run))
    }
}

/// One kind of thing. `above` are the keys of the resources above, `at` those and the record's own.
pub trait Resource: Send + Sync {
    fn spec(&self) -> &'static Spec;
    /// All records with all fields, in no particular order.
    fn records(&self, array: &Array, above: &[String]) -> ApiResult<Vec<Value>>;
    fn post(&self, _array: &mut Array, _above: &[String], _call: &Call) -> ApiResult<Written> {
        Err(ApiError::not_supported("POST"))
    }
    fn patch(&self, _array: &mut Array, _at: &[String], _call: &Call) -> ApiResult<Written> {
        Err(ApiError::not_supported("PATCH"))
    }
    fn delete(&self, _array: &mut Array, _at: &[String], _call: &Call) -> ApiResult<Written> {
        Err(ApiError::not_supported("DELETE"))
    }
    /// Where a record names its SVM: calls confined to one see only what is its own.
    fn svm_pointer(&self) -> &'static str {
        "/svm/name"
    }
    /// An array of whose elements only those are told that pass the filters. Elsewhere a record is told whole.
    fn narrowed_field(&self) -> Option<&'static str> {
        None
    }
    /// The error for a key that names nothing.
    fn not_found(&self) -> ApiError {
        ApiError::no_entry()
    }
}

/// A key that has to be a uuid.
pub fn uuid_key(at: &[String], index: usize) -> ApiResult<Uuid> {
    let text = at.get(index).map(String::as_str).unwrap_or_default();
    Uuid::parse_str(text).map_err(|_| {
        let mut error = ApiError::bad_value("uuid", text);
        error.status = 404;
        error
    })
}

/// A name that has to be there.
pub fn required_text(call: &Call, field: &str) -> ApiResult<String> {
    call.body.text(field).ok_or_else(|| ApiError::required(field))
}

/// The SVM of a write: from the body, else where the call is confined to.
pub fn svm_of(array: &Array, call: &Call) -> ApiResult<String> {
    let by_uuid = match call.body.text("svm.uuid").or_else(|| call.parameter("svm.uuid").map(String::from)) {
        Some(text) => {
            let found = array.state.svms.iter().find(|svm| svm.uuid.to_string() == text);
            let missing = || ApiError::missing(2621462, format!("SVM \"{text}\" does not exist.")).at("svm.uuid");
            Some(found.ok_or_else(missing)?.name.clone())
        }
        None => None,
    };
    let by_name = call.body.text("svm.name").or_else(|| call.parameter("svm.name").map(String::from));
    if let (Some(name), Some(other)) = (&by_name, &by_uuid)
        && name != other
    {
        return Err(ApiError::invalid(2621706, "svm.name and svm.uuid are not of one SVM.").at("svm"));
    }
    let said = by_name.or(by_uuid);
    match (&said, &call.svm) {
        (Some(said), Some(confined)) if said != confined => {
            Err(ApiError::invalid(2621706, format!("This call is confined to SVM \"{confined}\".")).at("svm"))
        }
        _ => match said.or_else(|| call.svm.clone()) {
            Some(name) => array.svm(&name).map(|svm| svm.name.clone()),
            None => Err(ApiError::invalid(2621707, "svm.name or svm.uuid must be specified.").at("svm")),
        },
    }
}
