//! Order of records and pages of them.

use std::cmp::Ordering;

use serde_json::Value;

use crate::api::error::{ApiError, ApiResult};
use crate::api::query::values;
use crate::api::request::Call;

const RECORDS_DEFAULT: usize = 10_000;

/// The text of one field, for keys and sorting.
pub fn field_text(record: &Value, path: &str) -> String {
    match values(record, path).first() {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn compare(a: &Value, b: &Value, path: &str) -> Ordering {
    let [first, second] = [a, b].map(|record| values(record, path).first().copied().cloned().unwrap_or_default());
    match (first.as_f64(), second.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => field_text(a, path).cmp(&field_text(b, path)),
    }
}

/// Sorts by `order_by` (`field asc|desc`, a list), else by the keys.
pub fn sort(records: &mut [Value], call: &Call, keys: &[&str]) {
    let wish = call.parameter("order_by").unwrap_or_default();
    let order: Vec<(String, bool)> = wish
        .split(',')
        .filter_map(|part| {
            let mut words = part.split_whitespace();
            Some((words.next()?.to_string(), words.next() == Some("desc")))
        })
        .chain(keys.iter().map(|key| ((*key).to_string(), false)))
        .collect();
    records.sort_by(|a, b| {
        order.iter().fold(Ordering::Equal, |so_far, (path, is_descending)| {
            let here = compare(a, b, path);
            so_far.then(if *is_descending { here.reverse() } else { here })
        })
    });
}

/// The page that a call asks for, and the query of the next one.
pub fn page(records: Vec<Value>, call: &Call, keys: &[&str]) -> ApiResult<(Vec<Value>, Option<String>)> {
    let number = |name: &str, default: usize| match call.parameter(name) {
        Some(text) => text.parse().map_err(|_| ApiError::invalid(262197, format!("{name}: {text} is no number"))),
        None => Ok(default),
    };
    let limit: usize = number("max_records", RECORDS_DEFAULT)?.max(1);
    let offset: usize = number("offset", 0)?;
    let start: Vec<Option<&str>> = keys.iter().map(|key| call.parameter(&format!("start.{key}"))).collect();
    let position = |record: &Value| keys.iter().map(|key| field_text(record, key)).collect::<Vec<_>>();
    let begin = match start.first() {
        Some(Some(_)) => {
            let wanted: Vec<String> = start.iter().map(|key| key.unwrap_or_default().to_string()).collect();
            // The record may be gone: then the first after it, in the order of keys.
            let exact = records.iter().position(|record| position(record) == wanted);
            exact.or_else(|| records.iter().position(|record| position(record) > wanted)).unwrap_or(records.len())
        }
        _ => offset.min(records.len()),
    };
    let next = records.get(begin + limit).map(|first| next_query(call, keys, &position(first)));
    Ok((records.into_iter().skip(begin).take(limit).collect(), next))
}

fn next_query(call: &Call, keys: &[&str], start: &[String]) -> String {
    let kept = call.parameters.iter().filter(|(name, _)| !name.starts_with("start.") && name != "offset");
    let mut words: Vec<String> = kept.map(|(name, value)| format!("{name}={}", escape(value))).collect();
    words.extend(keys.iter().zip(start).map(|(key, value)| format!("start.{key}={}", escape(value))));
    words.join("&")
}

/// Percent-encodes what may not stand in a query.
pub fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |out, byte| {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~*,/:|!()".contains(&byte);
        if is_plain { format!("{out}{}", char::from(byte)) } else { format!("{out}%{byte:02X}") }
    })
}
