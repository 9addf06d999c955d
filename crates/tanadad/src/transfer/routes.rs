//! The paths, their parameters and their headers.

use std::io;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::unfold;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
    HeaderValue, RANGE, TRANSFER_ENCODING,
};
use hyper::{Method, StatusCode, Version};
use tanada_image::{Format, Source};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tanada_xva::{ChecksumKind, Compression};
use tokio::sync::mpsc;

use super::error::abort;
use super::export::{Export, Form};
use super::image;
use super::import::Import;
use super::metadata::{self, Wanted};
use super::rate::Rate;
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
        Route { method: Method::GET, path: "/export_metadata", handler: |t| export_metadata(t).boxed() },
        Route { method: Method::PUT, path: "/import_metadata", handler: |t| import_metadata(t).boxed() },
    ]
}

async fn export(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, lease, .. } = transfer;
    let vm = named(&ctx, "VM", &query, "ref", "uuid")?.ok_or_else(|| missing("ref or uuid"))?;
    // The second is an addition of ours; the name is that of `/export_metadata`.
    let (memory, snapshots) = (query.is_true("preserve_power_state"), query.is_true("export_snapshots"));
    let form = Form { compression: compression(&query)?, checksum: checksum(&query)?, memory, snapshots };
    let (export, pieces) = Export::open(ctx.clone(), &vm, form, rate(&query)?).await?;
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
    let manner = manner(&query);
    let import = Import::open(ctx.clone(), &sr, manner, rate(&query)?)?;
    let announced = announced(&headers);
    let pieces = received(body, announced);
    Ok(accepted(ctx, lease, import.run(pieces, is_open(announced))))
}

async fn export_metadata(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, .. } = transfer;
    let vm = match query.is_true("all") {
        true => None,
        false => Some(named(&ctx, "VM", &query, "ref", "uuid")?.ok_or_else(|| missing("ref, uuid or all"))?),
    };
    // Absent means with snapshots.
    let snapshots = query.get("export_snapshots").is_none_or(|text| text != "false");
    let wanted = Wanted::new(vm, snapshots, query.get("excluded_device_types").unwrap_or_default())?;
    let archive = metadata::export(&ctx, &wanted)?;
    ctx.task.complete(&Ok(Value::Void));
    let mut response = Response::new(crate::http::full(archive));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"export.xva\""));
    Ok(response)
}

async fn import_metadata(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, headers, body, lease } = transfer;
    let manner = Manner { metadata: true, ..manner(&query) };
    let import = metadata::Import { manner, dry_run: query.is_true("dry_run"), mapped: query.with_prefix("vdi:") };
    let pieces = received(body, announced(&headers));
    Ok(accepted(ctx.clone(), lease, import.run(ctx, pieces)))
}

fn manner(query: &Query) -> Manner {
    Manner { restore: query.is_true("restore"), force: query.is_true("force"), metadata: false }
}

async fn export_raw(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, headers, lease, .. } = transfer;
    let format = format(&query)?;
    let vdi = disk(&ctx, &query, "vdi")?.ok_or_else(|| missing("vdi"))?;
    let base = disk(&ctx, &query, "base")?;
    if base.is_some() && !format.has_deltas() {
        return Err(ApiError::value_not_supported("format", format.name(), "vhd or qcow2, when there is a base").into());
    }
    let uuid = ctx.db().read(|state| Ok::<_, ApiError>(state.get("VDI", &vdi)?.uuid().to_owned()))?;
    let (export, pieces) = image::Export::open(ctx.clone(), &vdi, format, base.as_ref(), rate(&query)?).await?;
    let length = export.length();
    let (span, ranged) = match span(&query, &headers, length) {
        Ok(found) => found,
        Err(error) => {
            export.abandon().await;
            return Err(error);
        }
    };
    let sent = span.clone();
    tokio::spawn(async move {
        let result = export.run(sent).await;
        ctx.task.complete(&result);
        drop(lease);
    });
    let mut response = Response::new(streamed(pieces));
    if ranged {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(span.end - span.start));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let range = format!("bytes {}-{}/{length}", span.start, span.end.saturating_sub(1));
    if let (true, Ok(range)) = (ranged, HeaderValue::from_str(&range)) {
        headers.insert(CONTENT_RANGE, range);
    }
    let name = format!("attachment; filename=\"{uuid}.{}\"", format.name());
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

async fn import_raw(transfer: Transfer) -> Result<Response, HttpError> {
    let Transfer { ctx, query, headers, body, lease } = transfer;
    let format = format(&query)?;
    let framed = query.get("chunked").is_some();
    if framed && format != Format::Raw {
        let error = ApiError::value_not_supported("chunked", format.name(), "it goes with format=raw alone");
        return Err(HttpError::new(StatusCode::NOT_FOUND, error));
    }
    if let Some(encoding) = headers.get(TRANSFER_ENCODING) {
        let error = ApiError::internal(format!("Cannot handle encoding: {}", encoding.to_str().unwrap_or_default()));
        return Err(HttpError::new(StatusCode::NOT_FOUND, error));
    }
    if is_probe(&query, &body) {
        ctx.task.complete(&Ok(Value::Void));
        return Ok(Response::new(crate::http::full("")));
    }
    let announced = announced(&headers);
    let offset = offset(&query)?.unwrap_or(0);
    let rate = rate(&query)?;
    let delta = image::Delta::from_parameter(query.get("delta"))?;
    let vdi = disk(&ctx, &query, "vdi")?;
    let source = match format {
        Format::Raw if framed => Some(Source::Framed),
        Format::Raw => None,
        Format::Vhd => Some(Source::Vhd),
        Format::Qcow2 => Some(Source::Qcow2),
        Format::Tar => Some(Source::Tar { size: 0 }),
    };
    if source.is_some() && offset > 0 {
        return Err(ApiError::value_not_supported("offset", offset, "0; raw disks alone can be gone on with").into());
    }
    match (vdi, source) {
        (Some(vdi), Some(source)) => {
            let import = image::Import::open(ctx.clone(), vdi, source, delta, announced, rate).await?;
            Ok(accepted(ctx, lease, import.run(received(body, announced))))
        }
        (Some(vdi), None) => {
            let import = raw::Import::open(ctx.clone(), vdi, announced, offset, rate).await?;
            Ok(accepted(ctx, lease, import.run(received(body, announced))))
        }
        (None, source) => {
            let sr = named(&ctx, "SR", &query, "sr_id", "sr_uuid")?.ok_or_else(|| ApiError::vdi_missing("", ""))?;
            if source.is_some() || offset > 0 {
                let error = ApiError::value_not_supported("format", format.name(), "raw, when there is no vdi");
                return Err(HttpError::new(StatusCode::BAD_REQUEST, error));
            }
            let import = raw::Import::create(ctx.clone(), &sr, announced, rate).await?;
            Ok(accepted(ctx, lease, import.run(received(body, announced))))
        }
    }
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

fn format(query: &Query) -> Result<Format, HttpError> {
    let name = query.get("format").unwrap_or_default();
    let unknown = || HttpError::new(StatusCode::NOT_FOUND, ApiError::internal(format!("Unknown format {name}")));
    Format::named(name).ok_or_else(unknown)
}

/// An addition of ours: where an interrupted transfer goes on, in bytes.
fn offset(query: &Query) -> ApiResult<Option<u64>> {
    let Some(text) = query.get("offset") else { return Ok(None) };
    text.parse().map(Some).map_err(|_| ApiError::value_not_supported("offset", text, "a number of bytes"))
}

/// The part of an image of `length` bytes that is asked for, and whether a Range header asks. More than one range is
/// answered with everything, as servers may.
fn span(query: &Query, headers: &HeaderMap, length: u64) -> Result<(image::Span, bool), HttpError> {
    let beyond = |at: u64| {
        let error = ApiError::value_not_supported("offset", at, format!("at most {length}, the image's length"));
        HttpError::new(StatusCode::RANGE_NOT_SATISFIABLE, error)
    };
    if let Some(start) = offset(query)? {
        return if start <= length { Ok((start..length, false)) } else { Err(beyond(start)) };
    }
    let text = headers.get(RANGE).and_then(|range| range.to_str().ok()).and_then(|range| range.strip_prefix("bytes="));
    let Some((start, end)) = text.and_then(|range| range.split_once('-')) else { return Ok((0..length, false)) };
    match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), _) if start >= length => Err(beyond(start)),
        (Ok(start), Err(_)) if end.is_empty() => Ok((start..length, true)),
        (Ok(start), Ok(last)) if start <= last => Ok((start..length.min(last.saturating_add(1)), true)),
        (Err(_), Ok(last)) if start.is_empty() => Ok((length.saturating_sub(last)..length, true)),
        _ => Ok((0..length, false)),
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

/// An addition of ours: `rate`, bytes per second.
fn rate(query: &Query) -> ApiResult<Rate> {
    Rate::parse("rate", query.get("rate"))
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

/// The disk that a parameter names by reference or by uuid.
fn disk(ctx: &CallContext, query: &Query, name: &str) -> ApiResult<Option<Ref>> {
    let Some(text) = query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
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
