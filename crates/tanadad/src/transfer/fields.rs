//! Fields of records as archives bring them.

use tanada_xapi::classes;
use tanada_xapi::types::Type;
use tanada_xapi::{ApiError, ApiResult, Map, Value};
use tanada_xva::Object;

/// The fields that we know, each of its declared type.
pub fn typed(object: &Object) -> ApiResult<Map> {
    let Some(class) = classes::class(&object.class) else { return Ok(Map::new()) };
    let mut fields = Map::new();
    for field in &class.fields {
        let Some(value) = object.record.get(field.name) else { continue };
        let value = match (&field.ty, value) {
            (Type::Enum(name), Value::String(text)) => Value::from(in_our_case(name, text)),
            (_, value) => value.clone(),
        };
        // What is listed with words of a newer release is left at its default where it says nothing about the machine.
        let coerced = match field.ty.coerce(value) {
            Ok(value) => value,
            Err(_)
                if matches!(
                    field.name,
                    "allowed_operations" | "current_operations" | "blocked_operations" | "purpose"
                ) =>
            {
                continue;
            }
            Err(why) => {
                let at = format!("{} {}, field {}", object.class, object.id, field.name);
                return Err(ApiError::import_error(format!("{at}: {why}")));
            }
        };
        fields.insert(field.name.to_owned(), coerced);
    }
    Ok(fields)
}

/// Enum texts are matched in any case: other writers send `halted`.
fn in_our_case(name: &str, text: &str) -> String {
    let known = classes::enum_texts(name).iter().find(|known| known.eq_ignore_ascii_case(text));
    known.map_or_else(|| text.to_owned(), |known| (*known).to_owned())
}

/// What a new object takes over: neither its identity nor what the database derives nor references, which are set one
/// by one.
pub fn kept(class: &str, record: &Map) -> Map {
    const NEVER: [&str; 5] = ["uuid", "allowed_operations", "current_operations", "blobs", "assigned_ips"];
    let declared = classes::class(class);
    let keeps = |field: &str| {
        let ty = declared.and_then(|class| class.field(field)).map(|field| &field.ty);
        let reference = match ty {
            Some(Type::Ref(_)) => true,
            Some(Type::Set(item)) => matches!(**item, Type::Ref(_)),
            _ => false,
        };
        !reference && !NEVER.contains(&field)
    };
    record.iter().filter(|(field, _)| keeps(field)).map(|(field, value)| (field.clone(), value.clone())).collect()
}

pub fn text<'a>(record: &'a Map, field: &str) -> &'a str {
    record.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub fn int(record: &Map, field: &str) -> i64 {
    record.get(field).and_then(Value::as_int).unwrap_or_default()
}
