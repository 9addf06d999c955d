//! The paths, their parameters and their headers.

use std::io;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::unfold;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Version};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tanada_xva::{ChecksumKind, Compression};
use tokio::sync::mpsc;

use super::error::abort;
use super::export::{Export, Form};
use super::import::Import;
use super::raw;
use super::stream::{Outgoing, PIECES_UNDER_WAY, Piece};
use super::unpack::Manner;
use crate::context::CallContext;
use crate::db::View;
use crate::http::{Body, HttpError, Query, Response, Route, Transfer};

/// Bytes of a request that are read and thrown away after an import has all it needs (tar pads its archives), so that
/// the client can read the response before it sees the connection end.
const DISCARDED_BYTES: u64 = 1 << 20;

/// All paths of this module, for the HTTP server.
pub fn routes() -> Vec<Route> {
    vec![
        Route { method: Method::GET, path: "/export", handler: |t| export(t).boxed() },
        Route { method: Method::PUT, path: "/import", handler: |t| import(t).boxed() },
        Route { method: Method::GET, path: "/export_raw_vdi", handler: |t| export_raw(t).boxed() },
        Route { method: Method::PUT, path: "/import_raw_vdi", handler: |t| import_raw(t).boxed() },
        Route { method: Method::GET, path: "/export_metadata", handler: |t| refused(t, "/export_metadata").boxed() },
        Route { method: Method::PUT, path: "/import_metadata", handler: |t| refused(t, "/import_metadata").boxed() },
    ]
}

async fn refused(_transfer: Transfer, what: &'static str) -> Result<Response, HttpError> {
    Err(HttpError::new(StatusCode::NOT_IMPLEMENTED, ApiError::not_implemented(what)))
}

async fn export(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, lease, .. } = transfer;
    let vm = named(&ctx, "VM", &query, "ref", "uuid")?.ok_or_else(|| missing("ref or uuid"))?;
    if query.is_true("preserve_power_state") {
        return Err(ApiError::not_implemented("export with preserve_power_state").into());
    }
    let form = Form { compression: compression(&query)?, checksum: checksum(&query)? };
    let (export, pieces) = Export::open(ctx.clone(), &vm, form).await?;
    tokio::spawn(async move {
        let result = export.run().await;
        ctx.task.complete(&result);
        drop(lease);
    });
    let mut response = Response::new(streamed(pieces));
    // No length and no chunks: the body ends with the connection, as old clients expect.
    *response.version_mut() = Version::HTTP_10;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"export.xva\""));
    Ok(response)
}

async fn import(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, headers, body, lease } = transfer;
    if is_probe(&query, &body) {
        ctx.task.complete(&Ok(Value::Void));
        return Ok(Response::new(crate::http::full("")));
    }
    let sr = match named(&ctx, "SR", &query, "sr_id", "sr_uuid")? {
        Some(sr) => sr,
        None => default_sr(&ctx)?,
    };
    let manner = Manner { restore: query.is_true("restore"), force: query.is_true("force") };
    let import = Import::open(ctx.clone(), &sr, manner)?;
    let announced = announced(&headers);
    let pieces = received(body, announced);
    Ok(accepted(ctx, lease, import.run(pieces, is_open(announced))))
}

async fn export_raw(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, lease, .. } = transfer;
    only_raw(&query)?;
    if query.get("base").is_some() {
        return Err(ApiError::not_implemented("export_raw_vdi with a base and format=raw").into());
    }
    let vdi = disk(&ctx, &query)?.ok_or_else(|| missing("vdi"))?;
    let uuid = ctx.db().read(|state| Ok::<_, ApiError>(state.get("VDI", &vdi)?.uuid().to_owned()))?;
    let (export, size, pieces) = raw::Export::open(ctx.clone(), &vdi).await?;
    tokio::spawn(async move {
        let result = export.run().await;
        ctx.task.complete(&result);
        drop(lease);
    });
    let mut response = Response::new(streamed(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    if let Ok(name) = HeaderValue::from_str(&format!("attachment; filename=\"{uuid}.raw\"")) {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

async fn import_raw(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, headers, body, lease } = transfer;
    only_raw(&query)?;
    if query.get("chunked").is_some() {
        return Err(HttpError::new(StatusCode::NOT_FOUND, ApiError::not_implemented("import_raw_vdi with chunked")));
    }
    if is_probe(&query, &body) {
        ctx.task.complete(&Ok(Value::Void));
        return Ok(Response::new(crate::http::full("")));
    }
    let announced = announced(&headers);
    let import = match disk(&ctx, &query)? {
        Some(vdi) => raw::Import::open(ctx.clone(), vdi, announced).await?,
        None => {
            let sr = named(&ctx, "SR", &query, "sr_id", "sr_uuid")?.ok_or_else(|| missing("vdi, sr_id or sr_uuid"))?;
            raw::Import::create(ctx.clone(), &sr, announced).await?
        }
    };
    let pieces = received(body, announced);
    Ok(accepted(ctx, lease, import.run(pieces)))
}

/// Headers at once, then a body without content that ends when the work has ended well and breaks off when not.
fn accepted(
    ctx: CallContext,
    lease: impl Send + 'static,
    work: impl Future<Output = ApiResult<Value>> + Send + 'static,
) -> Response {
    let (body, _, pieces) = Outgoing::channel();
    tokio::spawn(async move {
        let result = work.await;
        ctx.task.complete(&result);
        if let Err(error) = &result {
            abort(body, error);
        }
        drop(lease);
    });
    let mut response = Response::new(streamed(pieces));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// Xen Orchestra asks with an empty body and without a task whether this is the right host.
fn is_probe(query: &Query, body: &Incoming) -> bool {
    body.is_end_stream() && query.get("task_id").is_none()
}

fn streamed(body: Outgoing) -> Body {
    let frames = unfold(body, |mut body| async move {
        let piece = body.next().await?;
        Some((piece.map(Frame::data), body))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Hands the request's body on piece by piece.
fn received(mut body: Incoming, announced: Option<u64>) -> mpsc::Receiver<Piece> {
    let (sender, pieces) = mpsc::channel(PIECES_UNDER_WAY);
    let open_end = is_open(announced);
    tokio::spawn(async move {
        let mut wanted = true;
        let mut discarded = 0;
        while let Some(frame) = body.frame().await {
            let piece: Piece = match frame {
                Ok(frame) => Ok(frame.into_data().unwrap_or_else(|_| Bytes::new())),
                Err(_) if open_end => return,
                Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)),
            };
            let (length, last) = (piece.as_ref().map_or(0, Bytes::len), piece.is_err());
            wanted = wanted && sender.send(piece).await.is_ok();
            if !wanted {
                discarded += length as u64;
            }
            if last || discarded > DISCARDED_BYTES {
                return;
            }
        }
    });
    pieces
}

/// Who announces more than there can be does not know the length: it closes the connection at the end or falls silent,
/// and the content says whether it is whole.
fn is_open(announced: Option<u64>) -> bool {
    announced.is_some_and(|length| length >= raw::UNKNOWN_LENGTH)
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

fn only_raw(query: &Query) -> Result<(), HttpError> {
    let format = query.get("format").unwrap_or("raw");
    match format {
        "raw" | "" => Ok(()),
        "vhd" | "qcow2" | "tar" => {
            let what = format!("disk images with format={format}");
            Err(HttpError::new(StatusCode::NOT_IMPLEMENTED, ApiError::not_implemented(what)))
        }
        _ => Err(HttpError::new(StatusCode::NOT_FOUND, ApiError::internal(format!("Unknown format {format}")))),
    }
}

fn compression(query: &Query) -> ApiResult<Compression> {
    let text = query.get("use_compression").unwrap_or_default();
    Compression::from_parameter(text)
        .ok_or_else(|| ApiError::value_not_supported("use_compression", text, "true, gzip, zstd or false"))
}

/// An addition of ours: `checksum=sha1` for importers older than XenServer 8.1.
fn checksum(query: &Query) -> ApiResult<ChecksumKind> {
    match query.get("checksum").unwrap_or_default() {
        "" | "xxhash" => Ok(ChecksumKind::Xxh64),
        "sha1" => Ok(ChecksumKind::Sha1),
        other => Err(ApiError::value_not_supported("checksum", other, "xxhash or sha1")),
    }
}

/// The object that the query names by reference or by uuid.
fn named(ctx: &CallContext, class: &str, query: &Query, by_ref: &str, by_uuid: &str) -> ApiResult<Option<Ref>> {
    let given = |name: &str| query.get(name).filter(|text| !text.is_empty());
    ctx.db().read(|state| match (given(by_ref), given(by_uuid)) {
        (Some(id), _) => state.get(class, &Ref::from(id)).map(|record| Some(record.id().clone())),
        (None, Some(uuid)) => state.by_uuid(class, uuid).map(|record| Some(record.id().clone())),
        (None, None) => Ok(None),
    })
}

/// `vdi`: a reference or a uuid.
fn disk(ctx: &CallContext, query: &Query) -> ApiResult<Option<Ref>> {
    let Some(text) = query.get("vdi").filter(|text| !text.is_empty()) else { return Ok(None) };
    let id = Ref::from(text);
    ctx.db().read(|state| {
        let found = state.find("VDI", &id).or_else(|| state.find_by_uuid("VDI", text));
        found.map(|record| Some(record.id().clone())).ok_or_else(|| ApiError::handle_invalid("VDI", text))
    })
}

fn default_sr(ctx: &CallContext) -> ApiResult<Ref> {
    ctx.db().read(|state| {
        let sr = state.only("pool")?.reference("default_SR");
        state.find("SR", &sr).map(|record| record.id().clone()).ok_or_else(|| ApiError::default_sr_not_found(&sr))
    })
}

fn missing(what: &str) -> ApiError {
    ApiError::internal(format!("the request lacks the parameter {what}"))
}
