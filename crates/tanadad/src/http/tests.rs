use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tanada_xapi::{ApiError, Ref, Value, jsonrpc, xmlrpc};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::listen::{Connections, serve_so_many};
use super::{HttpError, Response, Route, Server, Transfer, full, serve};
use crate::context::Daemon;
use crate::db::{Db, View};
use crate::testing::TestDaemon;

/// `PUT /upload` counts the bytes of its body; `GET /broken` is refused.
fn routes() -> Vec<Route> {
    vec![
        Route { method: Method::PUT, path: "/upload", handler: |t| Box::pin(upload(t)) },
        Route {
            method: Method::GET,
            path: "/broken",
            handler: |_| Box::pin(async { Err(HttpError::new(StatusCode::BAD_REQUEST, ApiError::sr_not_empty())) }),
        },
    ]
}

async fn upload(mut transfer: Transfer) -> Result<Response, HttpError> {
    let mut bytes = 0;
    while let Some(Ok(frame)) = transfer.body.frame().await {
        bytes += frame.data_ref().map_or(0, |d| d.len());
    }
    transfer.ctx.task.complete(&Ok(Value::from(bytes.to_string())));
    Ok(Response::new(full(transfer.query.get("name").unwrap_or_default().to_owned())))
}

struct Served {
    test: TestDaemon,
    server: Server,
}

async fn served() -> Served {
    let test = TestDaemon::new(Vec::new());
    let server = serve(&test.daemon, routes()).await.unwrap();
    Served { test, server }
}

impl Served {
    async fn unix(&self) -> UnixStream {
        UnixStream::connect(&self.test.daemon.config.unix_socket).await.unwrap()
    }

    fn task(&self, answer: &str) -> Ref {
        let header = answer.lines().find_map(|l| l.strip_prefix("task-id: ")).unwrap();
        Ref::from(header)
    }
}

/// Sends a request, closes our half and reads everything that comes back.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

fn post(path: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        .into()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn both_protocols_are_spoken_on_the_unix_socket() {
    let served = served().await;
    let login = xmlrpc::encode_call("session.login_with_password", &[Value::from("root"), Value::from("")]);
    let answer = exchange(served.unix().await, &post("/RPC2", &login)).await;
    assert!(answer.contains("content-type: text/xml\r\n") && answer.contains("access-control-allow-origin: *\r\n"));
    let session = xmlrpc::decode_response(body(&answer)).unwrap().unwrap();

    let call = jsonrpc::encode_call(0, "pool.get_all", std::slice::from_ref(&session));
    let answer = exchange(served.unix().await, &post("/jsonrpc", &call)).await;
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    let pools = jsonrpc::decode_response(body(&answer).as_bytes()).unwrap().unwrap();
    assert_eq!(pools.as_set().unwrap().len(), 1);

    let list = exchange(served.unix().await, &post("/anything", &xmlrpc::encode_call("system.listMethods", &[]))).await;
    assert!(!body(&list).contains("Status") && body(&list).contains("VM.get_all_records"));
    let failure = exchange(served.unix().await, &post("/", &xmlrpc::encode_call("VM.fly", &[session]))).await;
    let failure = xmlrpc::decode_response(body(&failure)).unwrap();
    assert_eq!(failure, Err(ApiError::message_method_unknown("VM.fly")));
}

#[tokio::test]
async fn what_is_no_call_is_refused() {
    let served = served().await;
    let large = "x".repeat(400 << 10);
    let cases = [
        (post("/", "<methodCall>"), "500"),
        (post("/jsonrpc", "{}"), "500"),
        (post("/jsonrpc", &large), "413"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), "404"),
        (b"PUT /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), "404"),
        (b"OPTIONS /jsonrpc HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), "200"),
        (b"rubbish\r\n\r\n".to_vec(), "400"),
    ];
    for (request, expected) in cases {
        let answer = exchange(served.unix().await, &request).await;
        assert_eq!(status(&answer), expected, "{answer}");
    }
    let mut invalid = post("/", "<methodCall>12");
    let end = invalid.len();
    invalid[end - 2..].copy_from_slice(b"\xff\xfe");
    let answer = exchange(served.unix().await, &invalid).await;
    assert!(xmlrpc::decode_response(body(&answer)).unwrap().unwrap_err().is("INVALID_VALUE"));
}

async fn over_tls(address: SocketAddr, certificate: &std::path::Path, request: &[u8]) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    exchange(stream, request).await
}

#[tokio::test]
async fn https_has_a_certificate_of_its_own_and_needs_the_password() {
    let test = TestDaemon::new(Vec::new());
    let mut config = test.daemon.config.clone();
    config.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let daemon = Daemon::new(config, Db::in_memory().unwrap(), Vec::new()).unwrap();
    daemon.passwords.set("right").unwrap();
    let server = serve(&daemon, Vec::new()).await.unwrap();
    let address = server.address.unwrap();
    let certificate = test.dir.path().join("state/tls/cert.pem");
    for (password, accepted) in [("wrong", false), ("right", true)] {
        let login = [Value::from("root"), Value::from(password)];
        let login = post("/", &xmlrpc::encode_call("session.login_with_password", &login));
        let answer = over_tls(address, &certificate, &login).await;
        assert_eq!(xmlrpc::decode_response(body(&answer)).unwrap().is_ok(), accepted, "{password}");
    }
    let key = std::fs::metadata(test.dir.path().join("state/tls/key.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    let before = std::fs::read(&certificate).unwrap();
    server.stop().await;
    serve(&daemon, Vec::new()).await.unwrap().stop().await;
    assert_eq!(std::fs::read(&certificate).unwrap(), before, "the certificate stays");
}

#[tokio::test]
async fn plain_http_is_for_loopback_alone() {
    let test = TestDaemon::new(Vec::new());
    let mut config = test.daemon.config.clone();
    config.listen_plain = Some(SocketAddr::from(([0, 0, 0, 0], 0)));
    let daemon = Daemon::new(config, Db::in_memory().unwrap(), Vec::new()).unwrap();
    let Err(error) = serve(&daemon, Vec::new()).await else { panic!("served to everybody") };
    assert!(error.to_string().contains("loopback"), "{error}");
}

#[tokio::test]
async fn whoever_holds_all_remote_places_does_not_keep_root_out() {
    let test = TestDaemon::new(Vec::new());
    let mut config = test.daemon.config.clone();
    config.listen_plain = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let daemon = Daemon::new(config, Db::in_memory().unwrap(), Vec::new()).unwrap();
    let server = serve_so_many(&daemon, Vec::new(), Connections { local: 1, remote: 2 }).await.unwrap();
    let address = server.plain_address.unwrap();
    let request = post("/", &xmlrpc::encode_call("system.listMethods", &[]));
    let holding = |mut stream: TcpStream| async move {
        // Answered, so it has its place, and the next request is begun and not ended.
        let whole = b"OPTIONS / HTTP/1.1\r\nhost: x\r\n\r\nPOST / HTTP/1.1\r\n";
        stream.write_all(whole).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        stream
    };
    let first = holding(TcpStream::connect(address).await.unwrap()).await;
    let _second = holding(TcpStream::connect(address).await.unwrap()).await;
    let third = tokio::spawn(exchange_owned(TcpStream::connect(address).await.unwrap(), request.clone()));
    let unix = UnixStream::connect(&daemon.config.unix_socket).await.unwrap();
    assert_eq!(status(&exchange(unix, &request).await), "200");
    assert!(!third.is_finished(), "three remote connections of two");
    let nothing = first.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "root waited until a place was given up");
    drop(first);
    assert_eq!(status(&third.await.unwrap()), "200");
    server.stop().await;
}

async fn exchange_owned(stream: TcpStream, request: Vec<u8>) -> String {
    exchange(stream, &request).await
}

#[tokio::test]
async fn a_transfer_is_authenticated_and_ends_its_task() {
    let served = served().await;
    let (session, db) = (&served.test.session, &served.test.daemon.db);
    let head =
        |query: &str, extra: &str| format!("PUT /upload/?{query} HTTP/1.1\r\nhost: x\r\n{extra}\r\n").into_bytes();

    let answer = exchange(served.unix().await, &head("", "content-length: 0\r\n")).await;
    assert_eq!(status(&answer), "401");
    assert!(answer.contains("www-authenticate: Basic"), "{answer}");

    // A length far beyond what is sent, and an early end: what came is what counts.
    let request = head(&format!("session_id={session}&name=a%20b"), "content-length: 1125899906842624\r\n");
    let answer = exchange(served.unix().await, &[request, b"12345".to_vec()].concat()).await;
    assert_eq!((status(&answer), body(&answer)), ("200", "a b"), "{answer}");
    assert!(answer.contains("connection: close\r\n"));
    let task = db.read(|s| s.get("task", &served.task(&answer))).unwrap();
    assert_eq!((task.str("status"), task.str("result")), ("success", "<value>5</value>"));

    let own = served.test.call("task.create", [Value::from("mine"), Value::from("")]).await.unwrap();
    let cookie = format!("cookie: session_id={session}; task_id={}\r\ncontent-length: 2\r\n", own.as_str().unwrap());
    let answer = exchange(served.unix().await, &[head("session_id=x", &cookie), b"ab".to_vec()].concat()).await;
    assert_eq!(served.task(&answer).as_str(), own.as_str().unwrap());

    let sessions = db.read(|s| s.count("session"));
    let basic = format!("authorization: Basic {}\r\ncontent-length: 0\r\n", STANDARD.encode("root:"));
    assert_eq!(status(&exchange(served.unix().await, &head("", &basic)).await), "200");
    let mut changed = db.changed();
    while db.read(|s| s.count("session")) > sessions {
        changed.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_refused_transfer_fails_its_task() {
    let served = served().await;
    let test = &served.test;
    let task = || async { test.call("task.create", [Value::from("t"), Value::from("")]).await.unwrap() };
    let look = |task: &Value| test.daemon.db.read(|s| s.get("task", &Ref::from(task.as_str().unwrap()))).unwrap();
    let get = |query: String| format!("GET /broken?{query} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes();

    let own = task().await;
    let query = format!("session_id={}&task_id={}", test.session, own.as_str().unwrap());
    let answer = exchange(served.unix().await, &get(query)).await;
    assert_eq!(status(&answer), "400");
    assert_eq!(look(&own).strings("error_info"), ["SR_NOT_EMPTY"]);

    let own = task().await;
    let query = format!("session_id=OpaqueRef:nobody&task_id={}", own.as_str().unwrap());
    assert_eq!(status(&exchange(served.unix().await, &get(query)).await), "401");
    assert_eq!(look(&own).strings("error_info"), ["SESSION_INVALID", "OpaqueRef:nobody"]);

    let own = task().await;
    let reader =
        test.daemon.sessions.open(&test.daemon.db, "r", "", crate::rpc::session::Role::ReadOnly, false).unwrap();
    let query = format!("session_id={}&task_id={}", reader.id(), own.as_str().unwrap());
    assert_eq!(status(&exchange(served.unix().await, &get(query)).await), "403");
    assert_eq!(look(&own).strings("error_info")[0], "RBAC_PERMISSION_DENIED");
}

#[tokio::test]
async fn stopping_ends_waiting_calls_and_closes_the_doors() {
    let served = served().await;
    let params = [Value::from(&served.test.session), Value::set(["vm"]), Value::from(""), Value::Float(1e9)];
    let token = served.test.call("event.from", params[1..3].iter().cloned().chain([Value::Float(0.0)])).await.unwrap();
    let mut params = params.to_vec();
    params[2] = token.get("token").unwrap().clone();
    let request = post("/", &xmlrpc::encode_call("event.from", &params));
    let stream = served.unix().await;
    let waiting = tokio::spawn(async move { exchange(stream, &request).await });
    // The connection is accepted before the doors close: the listener takes them in order.
    let other = exchange(served.unix().await, &post("/", &xmlrpc::encode_call("system.listMethods", &[]))).await;
    assert_eq!(status(&other), "200");
    let path = served.test.daemon.config.unix_socket.clone();
    served.server.stop().await;
    assert_eq!(status(&waiting.await.unwrap()), "200");
    assert!(UnixStream::connect(path).await.is_err());
}
