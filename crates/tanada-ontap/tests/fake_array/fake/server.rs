//! HTTPS in front of the fake array, with a certificate authority of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ring::digest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::resources::handle;
use super::{State, Trouble};

pub struct Server {
    pub port: u16,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Writes `ca.pem` into `dir`.
    pub async fn start(state: Arc<Mutex<State>>, dir: &Path) -> Server {
        let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![String::from("127.0.0.1")]).unwrap().signed_by(&key, &authority).unwrap();
        let der: CertificateDer<'static> = certificate.der().clone();
        let seen = digest::digest(&digest::SHA256, &der);
        let fingerprint = seen.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), state.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // A connection that a test lets break ends with an error.
                    drop(connection.await);
                });
            }
        });
        Server { port, fingerprint, task }
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let query = query(request.uri().query().unwrap_or_default());
    let authorization = request.headers().get("authorization").cloned();
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let body: Value = if body.is_empty() { json!({}) } else { serde_json::from_slice(&body)? };
    let call = Call { method, path, query, body, authorized: authorization.is_some_and(|value| value == LOGIN) };
    let answered = answer_now(&mut state.lock().unwrap_or_else(PoisonError::into_inner), &call);
    match answered {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

/// admin, correct horse
const LOGIN: &str = "Basic YWRtaW46Y29ycmVjdCBob3JzZQ==";

struct Call {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Value,
    authorized: bool,
}

/// `None` where no answer ever comes.
fn answer_now(state: &mut State, call: &Call) -> Option<io::Result<Response<Full<Bytes>>>> {
    let Call { method, path, query, body, authorized } = call;
    let some = |status, value: &Value| Some(reply(status, value));
    state.calls += 1;
    state.log.push(format!("{method} {path}"));
    let counted = state.plan.take_if(|(call, _)| *call == state.calls).map(|(_, trouble)| trouble);
    let named = state.plan_at.take_if(|(wanted, end, _)| method == *wanted && path.ends_with(*end));
    let trouble = counted.or(named.map(|(_, _, trouble)| trouble));
    let broken = || Some(Err(io::Error::other("a planned end")));
    if state.dead {
        return broken();
    }
    if !authorized {
        return some(401, &json!({"error": {"message": "not authorized", "code": "6691623"}}));
    }
    match trouble {
        Some(Trouble::DeadBefore) => {
            state.dead = true;
            return broken();
        }
        Some(Trouble::RefusedBefore) => return some(500, &json!({"error": {"message": "planned", "code": "99"}})),
        Some(Trouble::Status(status)) => return some(status, &json!({"error": {"message": "planned", "code": "0"}})),
        _ => {}
    }
    let (status, value) = handle(state, method, path, query, body);
    if trouble == Some(Trouble::Stuck) {
        state.stuck.notify_one();
        return None;
    }
    match trouble {
        Some(Trouble::Garbage) => Some(Ok(Response::new(Full::new(Bytes::from_static(b"<html>proxy</html>"))))),
        Some(Trouble::Nonsense) => {
            some(200, &json!({"records": {"name": [1]}, "job": {"uuid": 7}, "num_records": "x"}))
        }
        Some(Trouble::DeadAfter) => {
            state.dead = true;
            broken()
        }
        Some(Trouble::LostAfter) => broken(),
        Some(Trouble::RefusedAfter) => some(500, &json!({"error": {"message": "planned", "code": "99"}})),
        _ => some(status, &value),
    }
}

fn reply(status: u16, value: &Value) -> io::Result<Response<Full<Bytes>>> {
    let mut response = Response::builder().status(status).header("content-type", "application/hal+json");
    if status == 429 {
        response = response.header("retry-after", "0");
    }
    response.body(Full::new(Bytes::from(value.to_string()))).map_err(io::Error::other)
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (unescape(key), unescape(value))).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next().unwrap_or_default(), bytes.next().unwrap_or_default()];
        let digits = String::from_utf8_lossy(&digits).into_owned();
        out.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
    }
    String::from_utf8(out).unwrap_or_default()
}
