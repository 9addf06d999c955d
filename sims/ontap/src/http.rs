//! HTTPS in front of the API: accounts, headers, injected faults, slow and lost answers.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, SERVER};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sim_target::faults::{Action, Faults};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::api::jobs::JobFault;
use crate::api::request::{Body, Call, Method};
use crate::api::{Answer, Api};
use crate::model::Array;
use crate::options::Account;
use crate::zapi;

/// Longest body that is read.
const BODY_BYTES_MAX: usize = 1 << 20;
/// What a client that is told to wait should wait, in seconds.
const RETRY_SECONDS: &str = "1";

/// Everything that answering needs.
pub struct Face {
    pub api: Api,
    /// For the XML interface, which goes past the API.
    pub array: Arc<Mutex<Array>>,
    pub accounts: Vec<Account>,
    /// Names and uuids of SVMs, for tunnelling.
    pub svms: Vec<(String, Uuid)>,
    pub faults: Faults,
}

/// Accepts connections for ever.
pub async fn serve(face: Arc<Face>, listener: TcpListener, tls: TlsAcceptor) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                continue;
            }
        };
        let (face, tls) = (Arc::clone(&face), tls.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(face, stream, tls).await {
                tracing::debug!(%peer, %error, "a connection ended");
            }
        });
    }
}

async fn connection(face: Arc<Face>, stream: tokio::net::TcpStream, tls: TlsAcceptor) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = TokioIo::new(tls.accept(stream).await?);
    let service = service_fn(move |request| answer(Arc::clone(&face), request));
    hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await.map_err(io::Error::other)
}

/// An error here ends the connection without an answer.
async fn answer(face: Arc<Face>, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_string();
    let bytes = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok(response(&Answer::error(&ApiError::invalid(262201, error.to_string())))),
    };
    let name = call_name(parts.method.as_str(), &target);
    let fault = face.faults.take(&name);
    let mut job_fault = JobFault::default();
    match &fault {
        Some(Action::DelayMs(time)) => tokio::time::sleep(Duration::from_millis(*time)).await,
        Some(Action::FailBefore(code)) => return Ok(response(&Answer::error(&ApiError::injected(code)))),
        Some(Action::NoSpace) => {
            let error = ApiError::invalid(917536, "No space left on the aggregate.");
            return Ok(response(&Answer::error(&error)));
        }
        Some(Action::DropBefore) => return Err(io::Error::other("injected: dropped before")),
        Some(Action::Other(what)) if what == "device_busy" => {
            // The code is nowhere documented: clients go by the words.
            let error = ApiError::invalid(13565952, "LUN clone failed: Device busy");
            return Ok(response(&Answer::error(&error)));
        }
        Some(Action::Other(what)) => job_fault = job_trouble(what),
        Some(Action::FailAfter(_) | Action::DropAfter) | None => {}
    }
    if parts.uri.path() == zapi::PATH {
        let headers = parts.headers.clone();
        return spawn_blocking(move || face.answer_xml(&headers, &bytes)).await.map_err(io::Error::other);
    }
    let done = {
        let headers = parts.headers.clone();
        let method = parts.method.as_str().to_string();
        spawn_blocking(move || face.answer(&method, &target, &headers, &bytes, job_fault))
            .await
            .map_err(io::Error::other)?
    };
    match fault {
        Some(Action::DropAfter) => Err(io::Error::other("injected: dropped after")),
        Some(Action::FailAfter(code)) => Ok(response(&Answer::error(&ApiError::injected(&code)))),
        _ => Ok(response(&done)),
    }
}

/// `job_fail:<code>`, `job_fail_after:<code>`, `job_vanish`, `job_slow:<ms>`
fn job_trouble(what: &str) -> JobFault {
    let (word, value) = what.split_once(':').unwrap_or((what, ""));
    match word {
        "job_fail" => JobFault { fails: Some(value.to_string()), ..JobFault::default() },
        "job_fail_after" => JobFault { fails_after: Some(value.to_string()), ..JobFault::default() },
        "job_vanish" => JobFault { vanishes: true, ..JobFault::default() },
        "job_slow" => JobFault { slow_ms: value.parse().unwrap_or(0), ..JobFault::default() },
        _ => JobFault::default(),
    }
}

/// A call's name for fault rules: method and path, with `{uuid}` for every uuid and without parameters.
pub fn call_name(method: &str, target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    let parts = path.split('/').filter(|part| !part.is_empty());
    let shown = parts.map(|part| if Uuid::parse_str(part).is_ok() { "{uuid}" } else { part });
    format!("{method} /{}", shown.collect::<Vec<_>>().join("/"))
}

impl Face {
    fn answer(&self, method: &str, target: &str, headers: &HeaderMap, body: &[u8], fault: JobFault) -> Answer {
        let account = match self.account(headers) {
            Ok(account) => account,
            Err(error) => return Answer::error(&error),
        };
        let call = match self.call(account, method, target, headers, body) {
            Ok(call) => call,
            Err(error) => return Answer::error(&error),
        };
        if account.read_only && call.method != Method::Get {
            return Answer::error(&ApiError::forbidden());
        }
        self.api.answer(&call, account.svm.is_some(), fault)
    }

    fn answer_xml(&self, headers: &HeaderMap, body: &[u8]) -> Response<Full<Bytes>> {
        match self.account(headers) {
            Ok(account) => {
                let mut array = self.array.lock().unwrap_or_else(PoisonError::into_inner);
                let text = zapi::answer(&mut array, account.svm.as_deref(), body);
                let mut response = Response::new(Full::new(Bytes::from(text)));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=UTF-8"));
                response
            }
            Err(error) => response(&Answer::error(&error)),
        }
    }

    fn account(&self, headers: &HeaderMap) -> ApiResult<&Account> {
        let refused = || ApiError::injected("401");
        let said = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(refused)?;
        let (scheme, text) = said.split_once(' ').ok_or_else(refused)?;
        let decoded = STANDARD.decode(text.trim()).map_err(|_| refused())?;
        let decoded = String::from_utf8(decoded).map_err(|_| refused())?;
        let (user, password) = decoded.split_once(':').ok_or_else(refused)?;
        let mut accounts = self.accounts.iter();
        let found = accounts.find(|account| account.user == user && account.password == password);
        found.filter(|_| scheme.eq_ignore_ascii_case("basic")).ok_or_else(refused)
    }

    fn call(&self, account: &Account, method: &str, target: &str, headers: &HeaderMap, body: &[u8]) -> ApiResult<Call> {
        let method = Method::parse(method).ok_or_else(|| ApiError::not_supported(method))?;
        let (segments, parameters) = Call::split(target);
        if let Some((name, _)) = parameters.iter().find(|(name, _)| name.contains("password")) {
            return Err(ApiError::invalid(262202, format!("The field \"{name}\" may not be specified in the URL.")));
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let by_uuid = header("x-dot-svm-uuid").map(|uuid| {
            let found = self.svms.iter().find(|(_, own)| own.to_string() == uuid);
            found
                .map(|(name, _)| name.clone())
                .ok_or_else(|| ApiError::missing(2621462, format!("SVM {uuid} does not exist.")))
        });
        let tunnel = by_uuid.transpose()?.or_else(|| header("x-dot-svm-name").map(String::from));
        if let Some(name) = tunnel.as_ref().filter(|name| !self.svms.iter().any(|(own, _)| own == *name)) {
            return Err(ApiError::missing(2621462, format!("SVM \"{name}\" does not exist.")));
        }
        let svm = match (&account.svm, tunnel) {
            (Some(own), Some(other)) if *own != other => return Err(ApiError::forbidden()),
            (Some(own), _) => Some(own.clone()),
            (None, tunnel) => tunnel,
        };
        let links = header("accept").is_none_or(|accept| accept.trim() != "application/json");
        let body = Body::parse(body)?;
        if method == Method::Get && !body.is_empty() {
            return Err(ApiError::invalid(262198, "A body is not allowed here."));
        }
        Ok(Call { method, segments, parameters, body, svm, links })
    }
}

fn response(answer: &Answer) -> Response<Full<Bytes>> {
    let text = if answer.body.is_null() { json!({}).to_string() } else { answer.body.to_string() };
    let mut response = Response::new(Full::new(Bytes::from(text + "\n")));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("libzapid-httpd"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/hal+json"));
    if let Some(location) = answer.location.as_ref().and_then(|location| HeaderValue::from_str(location).ok()) {
        headers.insert(LOCATION, location);
    }
    if matches!(answer.status, 429 | 503) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
    }
    response
}

/// For the caller that only wants to know where we listen.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
