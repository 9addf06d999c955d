//! HTTPS to one array: kept connections, one deadline per exchange, bounded answers. What a status means is decided
//! above ([`crate::rest`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// A page of 10,000 records with attributes is some ten MB.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Exchanges at a time; arrays serve few API requests in parallel.
const PARALLEL_MAX: usize = 6;
/// A connection that cannot be made within this is no connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

type Sender = SendRequest<Full<Bytes>>;

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub body: Bytes,
}

/// No answer came; whether the request took effect is known in the first two cases only (it did not).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    Unconnected(String),
    Untrusted(String),
    Unanswered(String),
}

/// Where an array is and how one logs in to it.
pub struct Transport {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    authorization: HeaderValue,
    idle: Mutex<Vec<Sender>>,
    slots: Semaphore,
}

impl Transport {
    /// `host` is a name or address; the error says what is wrong with it.
    pub fn new(host: &str, port: u16, user: &str, password: &str, tls: ClientConfig) -> Result<Transport, String> {
        let server_name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| format!("target {host:?} is neither a host name nor an address"))?;
        let credentials = STANDARD.encode(format!("{user}:{password}"));
        let mut authorization = HeaderValue::from_str(&format!("Basic {credentials}"))
            .map_err(|_| String::from("the user name and password cannot be sent"))?;
        authorization.set_sensitive(true);
        Ok(Transport {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            server_name,
            tls: TlsConnector::from(Arc::new(tls)),
            authorization,
            idle: Mutex::default(),
            slots: Semaphore::new(PARALLEL_MAX),
        })
    }

    /// `host:port`, for messages.
    pub fn place(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// One request and its answer, within `deadline` including the wait for a slot.
    pub async fn exchange(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Bytes>,
        deadline: Duration,
    ) -> Result<Reply, Lost> {
        let late = || Lost::Unanswered(format!("{} did not answer within {} s", self.place(), deadline.as_secs()));
        tokio::time::timeout(deadline, self.unhurried(method, path, body)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn unhurried(&self, method: &Method, path: &str, body: Option<&Bytes>) -> Result<Reply, Lost> {
        let unanswered = |error: &dyn std::fmt::Display| Lost::Unanswered(format!("{}: {error}", self.place()));
        let _slot = self.slots.acquire().await.map_err(|error| unanswered(&error))?;
        let request = self.request(method, path, body).map_err(Lost::Unconnected)?;
        let mut sender = match self.kept().await {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let answer = sender.send_request(request).await.map_err(|error| unanswered(&error))?;
        let status = answer.status().as_u16();
        let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| unanswered(&error))?.to_bytes();
        if !sender.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        }
        Ok(Reply { status, retry_after: seconds.map(Duration::from_secs), body })
    }

    /// A connection that was used before and still looks alive.
    async fn kept(&self) -> Option<Sender> {
        loop {
            let mut sender = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn request(&self, method: &Method, path: &str, body: Option<&Bytes>) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(HOST, self.place()).header(AUTHORIZATION, self.authorization.clone());
        request = request.header(USER_AGENT, concat!("tanada/", env!("CARGO_PKG_VERSION")));
        request = request.header("X-Dot-Client-App", concat!("tanada/", env!("CARGO_PKG_VERSION")));
        request = request.header(ACCEPT, "application/hal+json");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body.cloned().unwrap_or_default())).map_err(|error| format!("{method} {path}: {error}"))
    }

    async fn connect(&self) -> Result<Sender, Lost> {
        let late =
            || Lost::Unconnected(format!("{} cannot be reached within {} s", self.place(), CONNECT_DEADLINE.as_secs()));
        tokio::time::timeout(CONNECT_DEADLINE, self.connect_unhurried()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn connect_unhurried(&self) -> Result<Sender, Lost> {
        let unconnected = |error: &dyn std::fmt::Display| Lost::Unconnected(format!("{}: {error}", self.place()));
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| unconnected(&error))?;
        stream.set_nodelay(true).map_err(|error| unconnected(&error))?;
        let stream = self.tls.connect(self.server_name.clone(), stream).await.map_err(|error| {
            let certificate = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match certificate {
                Some(rustls::Error::InvalidCertificate(reason)) => Lost::Untrusted(format!(
                    "the certificate of {} is not trusted ({reason}); name its CA file in device-config:cacert, or its SHA-256 in device-config:fingerprint",
                    self.place()
                )),
                _ => unconnected(&error),
            }
        })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| unconnected(&error))?;
        // It ends with the sender or with the connection; errors reach whoever waits for an answer.
        tokio::spawn(connection);
        Ok(sender)
    }
}
