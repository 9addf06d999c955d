//! JSON-RPC 1.0 and 2.0 as XenAPI speaks them: positional parameters, no envelope inside.
//!
//! The version is that of the request: without a `jsonrpc` member 1.0, with `"2.0"` 2.0. In 2.0 an error has code 1,
//! the XenAPI code as its message and the parameters as data; in 1.0 it is one list.

use serde_json::{Map as JsonMap, Value as Json, json};

use crate::error::{ApiError, ApiResult};
use crate::json::{from_json, to_json};
use crate::value::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// A decoded request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub version: Version,
    /// A number or a string; goes back in the reply.
    pub id: Json,
    pub method: String,
    pub params: Vec<Value>,
}

/// Why a body is not the JSON-RPC that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

fn wrong<T>(text: impl Into<String>) -> Result<T, DecodeError> {
    Err(DecodeError(text.into()))
}

/// Nesting is bounded by the JSON parser (128), size by the caller.
pub fn decode_request(body: &[u8]) -> Result<Request, DecodeError> {
    let mut members = object(body)?;
    let version = match members.get("jsonrpc").map(|v| v.as_str()) {
        None => Version::V1,
        Some(Some("2.0")) => Version::V2,
        Some(_) => return wrong("member jsonrpc is not \"2.0\""),
    };
    let id = match members.remove("id") {
        Some(id @ (Json::Number(_) | Json::String(_))) => id,
        _ => return wrong("member id is neither a number nor a string"),
    };
    let Some(Json::String(method)) = members.remove("method") else { return wrong("member method is not a string") };
    let params = match (members.remove("params"), version) {
        (Some(Json::Array(params)), _) => params.into_iter().map(from_json).collect(),
        (None | Some(Json::Null), Version::V2) => Vec::new(),
        _ => return wrong("member params is not an array"),
    };
    Ok(Request { version, id, method, params })
}

/// The reply to a request of that version and id.
pub fn encode_response(version: Version, id: &Json, result: &ApiResult<Value>) -> String {
    let reply = match (version, result) {
        (Version::V1, Ok(value)) => json!({ "result": to_json(value), "error": null, "id": id }),
        (Version::V1, Err(error)) => json!({ "result": null, "error": error.to_list(), "id": id }),
        (Version::V2, Ok(value)) => json!({ "jsonrpc": "2.0", "result": to_json(value), "id": id }),
        (Version::V2, Err(error)) => {
            let error = json!({ "code": 1, "message": error.code, "data": error.params });
            json!({ "jsonrpc": "2.0", "error": error, "id": id })
        }
    };
    reply.to_string()
}

/// A 2.0 request.
pub fn encode_call(id: u64, method: &str, params: &[Value]) -> String {
    let params: Vec<Json> = params.iter().map(to_json).collect();
    json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id }).to_string()
}

/// The result in a 2.0 reply.
pub fn decode_response(body: &[u8]) -> Result<ApiResult<Value>, DecodeError> {
    let mut members = object(body)?;
    if let Some(Json::Object(mut error)) = members.remove("error") {
        let Some(Json::String(code)) = error.remove("message") else { return wrong("an error without a message") };
        let data = error.remove("data").and_then(|d| d.as_array().cloned()).unwrap_or_default();
        let params = data.iter().map(|p| p.as_str().unwrap_or_default().to_owned()).collect();
        return Ok(Err(ApiError::new(code, params)));
    }
    match members.remove("result") {
        Some(result) => Ok(Ok(from_json(result))),
        None => wrong("a reply with neither result nor error"),
    }
}

fn object(body: &[u8]) -> Result<JsonMap<String, Json>, DecodeError> {
    match serde_json::from_slice(body) {
        Ok(Json::Object(members)) => Ok(members),
        Ok(_) => wrong("the body is not one JSON object"),
        Err(e) => wrong(format!("the body is not JSON: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::{Version, decode_request, decode_response, encode_call, encode_response};
    use crate::{ApiError, Value};

    #[test]
    fn both_versions_are_answered_in_their_own_form() {
        let one = decode_request(br#"{"method":"a.b","params":["s",1,null],"id":"x"}"#).unwrap();
        assert_eq!((one.version, one.params.len()), (Version::V1, 3));
        let two = decode_request(br#"{"jsonrpc":"2.0","method":"system.listMethods","id":0}"#).unwrap();
        assert_eq!((two.version, two.params.len(), two.id.clone()), (Version::V2, 0, json!(0)));

        let error = Err(ApiError::handle_invalid("VM", "OpaqueRef:1"));
        let parse = |text: String| serde_json::from_str::<Json>(&text).unwrap();
        let v1 = parse(encode_response(Version::V1, &one.id, &error));
        assert_eq!(v1, json!({"result": null, "error": ["HANDLE_INVALID", "VM", "OpaqueRef:1"], "id": "x"}));
        let v2 = parse(encode_response(Version::V2, &two.id, &error));
        let expected = json!({"code": 1, "message": "HANDLE_INVALID", "data": ["VM", "OpaqueRef:1"]});
        assert_eq!(v2, json!({"jsonrpc": "2.0", "error": expected, "id": 0}));
        assert_eq!(decode_response(v2.to_string().as_bytes()).unwrap(), error);
        let ok = encode_response(Version::V2, &two.id, &Ok(Value::Int(1 << 60)));
        assert_eq!(decode_response(ok.as_bytes()).unwrap(), Ok(Value::Int(1 << 60)));
        let call = encode_call(7, "VM.start", &[Value::from("r"), Value::Bool(true)]);
        assert_eq!(decode_request(call.as_bytes()).unwrap().params, [Value::from("r"), Value::Bool(true)]);
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let deep = format!(r#"{{"method":"a","id":1,"params":{}"#, "[".repeat(100_000));
        let cases: [&[u8]; 8] = [
            b"",
            b"[]",
            b"\xff",
            br#"{"method":"a","params":[],"id":null}"#,
            br#"{"method":"a","params":[]}"#,
            br#"{"method":"a","id":1}"#,
            br#"{"jsonrpc":"3.0","method":"a","params":[],"id":1}"#,
            deep.as_bytes(),
        ];
        for case in cases {
            assert!(decode_request(case).is_err());
        }
    }
}
