//! A request, taken apart: path, parameters, body.

use serde_json::{Map, Value};

use crate::api::error::{ApiError, ApiResult};

/// Parameters that mean the same everywhere; all others are filters or a resource's own.
const GLOBAL: &[&str] = &[
    "fields",
    "return_records",
    "return_timeout",
    "max_records",
    "order_by",
    "offset",
    "query",
    "query_fields",
    "continue_on_failure",
    "ignore_unknown_fields",
    "pretty",
];

/// Longest time that a client may ask an answer to wait, in seconds.
const RETURN_TIMEOUT_MAX: u64 = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Patch,
    Delete,
}

impl Method {
    pub fn parse(word: &str) -> Option<Method> {
        Some(match word {
            "GET" | "HEAD" => Method::Get,
            "POST" => Method::Post,
            "PATCH" => Method::Patch,
            "DELETE" => Method::Delete,
            _ => return None,
        })
    }
    pub fn word(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// A call on a resource.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    /// Path below `/api`, slashes folded.
    pub segments: Vec<String>,
    /// In the order in which they came.
    pub parameters: Vec<(String, String)>,
    pub body: Body,
    /// The SVM that the account, or the tunnelling header, confines the call to.
    pub svm: Option<String>,
    /// `_links` are wanted.
    pub links: bool,
}

impl Call {
    /// Splits `/api//storage/luns/?a=b`.
    pub fn split(target: &str) -> (Vec<String>, Vec<(String, String)>) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments = path.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect();
        let parameters = query.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        });
        (segments, parameters.collect())
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn flag(&self, name: &str) -> bool {
        self.parameter(name).is_some_and(|value| value == "true")
    }

    /// Whether a write's answer is to hold the record.
    pub fn wants_records(&self, default: bool) -> bool {
        self.parameter("return_records").map_or(default, |value| value == "true")
    }

    /// Seconds that a write may wait for its job.
    pub fn return_timeout(&self) -> ApiResult<u64> {
        let Some(text) = self.parameter("return_timeout") else { return Ok(0) };
        match text.parse() {
            Ok(seconds) if seconds <= RETURN_TIMEOUT_MAX => Ok(seconds),
            _ => Err(ApiError::invalid(262197, format!("return_timeout {text}: 0 to {RETURN_TIMEOUT_MAX} expected"))),
        }
    }

    /// Filters: what is neither global nor `own`.
    pub fn filters<'a>(&'a self, own: &'a [&str]) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).filter(move |(name, _)| {
            !GLOBAL.contains(name) && !name.starts_with("start.") && !own.iter().any(|prefix| is_within(name, prefix))
        })
    }
}

/// `a.b` is within `a`.
pub fn is_within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn decode(text: &str, is_query: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let value =
            escaped.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match value {
            Some(byte) => {
                out.push(byte);
                at += 2;
            }
            None if is_query && bytes[at] == b'+' => out.push(b' '),
            None => out.push(bytes[at]),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A JSON body: dotted keys are nested ones, numbers and booleans may come as text.
#[derive(Debug, Clone, Default)]
pub struct Body(Value);

impl Body {
    pub fn parse(bytes: &[u8]) -> ApiResult<Body> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Body(Value::Object(Map::new())));
        }
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| ApiError::invalid(262199, format!("Cannot parse the request body: {error}")))?;
        let Value::Object(map) = value else {
            return Err(ApiError::invalid(262201, "the body is no JSON object"));
        };
        Ok(Body(expand(map)?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.as_object().is_none_or(Map::is_empty)
    }

    pub fn value(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |value, key| value.get(key)).filter(|value| !value.is_null())
    }

    pub fn has(&self, path: &str) -> bool {
        self.value(path).is_some()
    }

    pub fn text(&self, path: &str) -> Option<String> {
        match self.value(path)? {
            Value::String(text) => Some(text.clone()),
            other @ (Value::Number(_) | Value::Bool(_)) => Some(other.to_string()),
            _ => None,
        }
    }

    pub fn number(&self, path: &str) -> ApiResult<Option<i64>> {
        let Some(text) = self.text(path) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ApiError::bad_value(path, &text))
    }

    /// A size in bytes, whole and not negative.
    pub fn bytes(&self, path: &str) -> ApiResult<Option<u64>> {
        let Some(text) = self.text(path) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ApiError::bad_value(path, &text))
    }

    pub fn flag(&self, path: &str) -> ApiResult<Option<bool>> {
        let Some(text) = self.text(path) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ApiError::bad_value(path, &text))
    }

    /// The elements of an array, each as a body.
    pub fn list(&self, path: &str) -> Vec<Body> {
        self.value(path).and_then(Value::as_array).into_iter().flatten().cloned().map(Body).collect()
    }

    /// Top-level names.
    pub fn names(&self) -> Vec<String> {
        self.0.as_object().into_iter().flat_map(Map::keys).cloned().collect()
    }
}

/// Puts `{"a.b": 1}` as `{"a": {"b": 1}}`; a field given in both forms is an error.
fn expand(map: Map<String, Value>) -> ApiResult<Value> {
    let mut out = Map::new();
    for (key, value) in map {
        let value = match value {
            Value::Object(inner) => expand(inner)?,
            Value::Array(list) => Value::Array(list.into_iter().map(expand_element).collect::<ApiResult<_>>()?),
            other => other,
        };
        merge(&mut out, &key, value)?;
    }
    Ok(Value::Object(out))
}

fn expand_element(value: Value) -> ApiResult<Value> {
    match value {
        Value::Object(map) => expand(map),
        other => Ok(other),
    }
}

fn merge(out: &mut Map<String, Value>, key: &str, value: Value) -> ApiResult<()> {
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    let value = match rest {
        Some(rest) => {
            let mut inner = Map::new();
            merge(&mut inner, rest, value)?;
            Value::Object(inner)
        }
        None => value,
    };
    match (out.get_mut(head), value) {
        (None, value) => {
            out.insert(head.to_string(), value);
        }
        (Some(Value::Object(there)), Value::Object(new)) => {
            for (key, value) in new {
                merge(there, &key, value)?;
            }
        }
        (Some(_), _) => {
            return Err(ApiError::invalid(262188, format!("Field \"{key}\" is specified twice.")).at(key));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Body, Call, is_within};

    #[test]
    fn odd_paths_and_half_escaped_queries_are_understood() {
        let (segments, parameters) = Call::split("/api//storage/luns/?name=/vol/a*&svm.name=s%201&fields=&x");
        assert_eq!(segments, ["api", "storage", "luns"]);
        let names: Vec<(&str, &str)> = parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(names, [("name", "/vol/a*"), ("svm.name", "s 1"), ("fields", ""), ("x", "")]);
        assert_eq!(Call::split("/api/x?a=100%").1[0].1, "100%");
    }

    #[test]
    fn bodies_may_be_nested_or_dotted_and_numbers_text() {
        let body =
            Body::parse(br#"{"space.size":"4096","space":{"guarantee.requested":"true"},"svm":{"name":"s"}}"#).unwrap();
        assert_eq!(body.bytes("space.size").unwrap(), Some(4096));
        assert_eq!(body.flag("space.guarantee.requested").unwrap(), Some(true));
        assert_eq!(body.text("svm.name").as_deref(), Some("s"));
        assert_eq!(Body::parse(b"").unwrap().names().len(), 0);
        assert_eq!(Body::parse(b"[]").unwrap_err().code, "262201");
        assert_eq!(Body::parse(b"{").unwrap_err().code, "262199");
        assert_eq!(Body::parse(br#"{"a.b":1,"a":{"b":2}}"#).unwrap_err().code, "262188");
        assert_eq!(Body::parse(br#"{"a":"-1"}"#).unwrap().bytes("a").unwrap_err().code, "2");
    }

    #[test]
    fn prefixes_end_at_dots() {
        assert!(is_within("space.size", "space") && is_within("space", "space"));
        assert!(!is_within("spaces", "space") && !is_within("space", "space.size"));
    }
}
