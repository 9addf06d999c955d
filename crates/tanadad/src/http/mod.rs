//! The doors: a unix socket for local root, HTTPS for everybody, HTTP on loopback when asked for.
//!
//! | request | answered by |
//! |---|---|
//! | a registered [`Route`], also with a trailing slash | its handler, after authentication |
//! | `POST /jsonrpc` | JSON-RPC |
//! | `POST` anywhere else | XML-RPC |
//! | `OPTIONS` | which origins may call: all, sessions are not in cookies |
//! | anything else | 404 |
//!
//! A data transfer gets the whole connection: its body is handed over unread, and the connection ends with it.

mod listen;
mod service;
pub(crate) mod tls;
mod transfer;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::{Method, StatusCode, header};
use tanada_xapi::ApiError;

pub use listen::{Server, serve};
pub use transfer::{Query, Transfer};

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub type Response = hyper::Response<Body>;

/// The body of a data transfer. It owns the end of the task: before it returns, or later when it answers a body that
/// is still streaming. When it answers an error, the task has not ended yet and ends with that error.
pub type TransferHandler = fn(Transfer) -> BoxFuture<'static, Result<Response, HttpError>>;

/// A path of its own.
#[derive(Clone)]
pub struct Route {
    pub method: Method,
    /// `/export` answers for `/export` and `/export/...`.
    pub path: &'static str,
    pub handler: TransferHandler,
}

/// A failure before the first byte of an answer.
#[derive(Debug)]
pub struct HttpError {
    pub status: StatusCode,
    pub error: ApiError,
}

impl HttpError {
    pub fn new(status: StatusCode, error: ApiError) -> HttpError {
        HttpError { status, error }
    }
}

impl From<ApiError> for HttpError {
    fn from(error: ApiError) -> HttpError {
        HttpError { status: StatusCode::INTERNAL_SERVER_ERROR, error }
    }
}

/// A body that is there at once.
pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A page that says what went wrong.
pub(crate) fn error_page(status: StatusCode, text: &str) -> Response {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
    let reason = status.canonical_reason().unwrap_or_default();
    let page = format!(
        "<html><body><h1>HTTP {} {reason}</h1><h2>Additional information</h2><p>{escaped}</p></body></html>\n",
        status.as_u16()
    );
    let mut response = Response::new(full(page));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/html"));
    response
}

#[cfg(test)]
mod tests;
