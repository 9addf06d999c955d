//! Values as JSON: in JSON-RPC and in the database.

use serde_json::Value as Json;

use crate::value::{Map, Value};

/// Numbers that JSON cannot write (infinities) become text, which [`crate::types::Type::coerce`] reads back.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Void => Json::from(""),
        Value::Nil => Json::Null,
        Value::String(s) => Json::from(s.as_str()),
        Value::Int(n) => Json::from(*n),
        Value::I4(n) => Json::from(*n),
        Value::Bool(b) => Json::from(*b),
        Value::Float(f) => serde_json::Number::from_f64(*f).map_or_else(|| Json::from(f.to_string()), Json::Number),
        Value::DateTime(t) => Json::from(t.to_string()),
        Value::Set(items) => Json::Array(items.iter().map(to_json).collect()),
        Value::Map(map) => Json::Object(map.iter().map(|(k, v)| (k.clone(), to_json(v))).collect()),
    }
}

pub fn from_json(json: Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(b) => Value::Bool(b),
        Json::Number(n) => match n.as_i64() {
            Some(int) => Value::Int(int),
            None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::String(s),
        Json::Array(items) => Value::Set(items.into_iter().map(from_json).collect()),
        Json::Object(map) => Value::Map(map.into_iter().map(|(k, v)| (k, from_json(v))).collect::<Map>()),
    }
}
