//! Small things that the bodies of messages share.

use std::collections::BTreeMap;

use tanada_driver::Moved;
use tanada_xapi::classes::{self, Qualifier};
use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};

use super::throw_away;
use crate::db::{Record, Tx, View};

/// The fields of a constructor's record that a client may give, as they are.
pub fn given(class: &str, record: &Map) -> ApiResult<Vec<(&'static str, Value)>> {
    let class = classes::class(class).ok_or_else(|| ApiError::internal(format!("there is no class {class}")))?;
    let settable = class.fields.iter().filter(|field| field.qualifier != Qualifier::Runtime);
    Ok(settable.filter_map(|field| record.get(field.name).map(|value| (field.name, value.clone()))).collect())
}

/// Copies the named fields of a record, without what marks this one alone.
pub fn copied(record: &Record, fields: &[&'static str]) -> Vec<(&'static str, Value)> {
    let copy = |field: &&'static str| {
        let mut value = record.value(field).clone();
        if let ("other_config", Value::Map(config)) = (*field, &mut value) {
            throw_away::forget_marks(config);
        }
        (*field, value)
    };
    fields.iter().map(copy).collect()
}

/// Text at `key` of a constructor's record; empty when it was left out.
pub fn text<'a>(record: &'a Map, key: &str) -> &'a str {
    record.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub fn truth(record: &Map, key: &str) -> bool {
    record.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// A map of strings.
pub fn strings(map: &Map) -> BTreeMap<String, String> {
    map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Bytes as XenAPI's signed integer.
pub fn int(bytes: u64) -> Value {
    Value::from(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// A non-negative number of bytes that a client gave.
pub fn bytes(field: &str, value: i64) -> ApiResult<u64> {
    u64::try_from(value).map_err(|_| ApiError::invalid_value(field, value))
}

/// What an operation moved, as text of a message.
pub fn moved_text(moved: Moved) -> String {
    format!("bytes moved by the host: {}, by the storage: {}", moved.bytes_by_host, moved.bytes_by_storage)
}

/// The object must exist.
pub fn must_exist(view: &impl View, class: &str, id: &Ref) -> ApiResult<()> {
    view.get(class, id).map(drop)
}

/// Leaves a message for administrators. Priority 1 is the highest, 5 for information.
pub fn message(tx: &mut Tx<'_>, name: &str, priority: i64, class: &str, object: &str, body: &str) -> ApiResult<Ref> {
    tx.create(
        "message",
        [
            ("name", Value::from(name)),
            ("priority", Value::from(priority)),
            ("cls", Value::from(class)),
            ("obj_uuid", Value::from(object)),
            ("timestamp", Value::from(DateTime::now())),
            ("body", Value::from(body)),
        ],
    )
}
