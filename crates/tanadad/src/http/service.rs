//! One request, one response.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tanada_xapi::{ApiError, jsonrpc, xmlrpc};

use super::{Response, Route, error_page, full, transfer};
use crate::context::Daemon;
use crate::rpc::dispatch::{self, Peer, Reply};

/// Bytes of a call.
const CALL_BYTES_MAX: usize = 300 << 10;
/// A call must have arrived by then; its work may take as long as it likes.
const CALL_READ_TIMEOUT: Duration = Duration::from_secs(60);

pub async fn answer(daemon: Arc<Daemon>, routes: Arc<[Route]>, peer: Peer, request: Request<Incoming>) -> Response {
    let path = request.uri().path();
    if let Some(route) = find(&routes, request.method(), path) {
        return transfer::answer(daemon, route, peer, request).await;
    }
    let mut response = match *request.method() {
        Method::POST if path == "/jsonrpc" => json_call(&daemon, peer, request).await,
        Method::POST => xml_call(&daemon, peer, request).await,
        Method::OPTIONS => Response::new(full("")),
        _ => return error_page(StatusCode::NOT_FOUND, &format!("there is nothing at {path}")),
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("X-Requested-With, Content-Type"));
    response
}

/// The route with the longest path that the request's lies under.
fn find(routes: &[Route], method: &Method, path: &str) -> Option<Route> {
    let under = |r: &&Route| path.strip_prefix(r.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let candidates = routes.iter().filter(|r| r.method == *method).filter(under);
    candidates.max_by_key(|r| r.path.len()).cloned()
}

/// The whole body, or the page that says why not.
async fn read(request: Request<Incoming>) -> Result<Vec<u8>, Response> {
    let body = Limited::new(request.into_body(), CALL_BYTES_MAX).collect();
    match tokio::time::timeout(CALL_READ_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            Err(error_page(StatusCode::PAYLOAD_TOO_LARGE, &format!("a call may have {CALL_BYTES_MAX} bytes")))
        }
        Ok(Err(e)) => Err(error_page(StatusCode::BAD_REQUEST, &e.to_string())),
        Err(_) => Err(error_page(StatusCode::REQUEST_TIMEOUT, "the call did not arrive in time")),
    }
}

async fn xml_call(daemon: &Arc<Daemon>, peer: Peer, request: Request<Incoming>) -> Response {
    let body = match read(request).await {
        Ok(body) => body,
        Err(page) => return page,
    };
    let text = match String::from_utf8(body) {
        Ok(text) => text,
        Err(_) => return xml(xmlrpc::encode_response(&Err(ApiError::invalid_value("body", "not UTF-8")))),
    };
    let call = match xmlrpc::decode_call(&text) {
        Ok(call) => call,
        Err(e) => return error_page(StatusCode::INTERNAL_SERVER_ERROR, &format!("not an XML-RPC call: {e}")),
    };
    xml(match dispatch::call(daemon, peer, &call.method, call.params).await {
        Reply::Enveloped(result) => xmlrpc::encode_response(&result),
        Reply::Bare(value) => xmlrpc::encode_bare_response(&value),
    })
}

async fn json_call(daemon: &Arc<Daemon>, peer: Peer, request: Request<Incoming>) -> Response {
    let body = match read(request).await {
        Ok(body) => body,
        Err(page) => return page,
    };
    let call = match jsonrpc::decode_request(&body) {
        Ok(call) => call,
        Err(e) => return error_page(StatusCode::INTERNAL_SERVER_ERROR, &format!("not a JSON-RPC call: {e}")),
    };
    let result = match dispatch::call(daemon, peer, &call.method, call.params).await {
        Reply::Enveloped(result) => result,
        Reply::Bare(value) => Ok(value),
    };
    // Some clients compare this header as a whole: no charset.
    typed("application/json", jsonrpc::encode_response(call.version, &call.id, &result))
}

fn xml(text: String) -> Response {
    typed("text/xml", text)
}

fn typed(content_type: &'static str, text: String) -> Response {
    let mut response = Response::new(full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
