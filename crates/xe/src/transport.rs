//! Connections to the server: a unix socket, TLS, or plain TCP, with HTTP/1.1 on top.

use crate::failure::Failure;
use crate::trust;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

pub type Body = BoxBody<Bytes, io::Error>;

const ADVICE: &str = "Nothing was sent. A Tanada host's certificate is /var/lib/tanada/tls/cert.pem: the file that --ca (or \
                      XE_CA) names has to hold it or its authority's, and it has to bear the name that -s says";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    /// `ca`: the file whose certificates vouch for the server; `None`: any server will do.
    Tls {
        host: String,
        port: u16,
        ca: Option<PathBuf>,
    },
    Plain {
        host: String,
        port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
            Endpoint::Tls { host, port, .. } | Endpoint::Plain { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Endpoint {
    /// For the `Host` header.
    pub fn authority(&self) -> String {
        match self {
            Endpoint::Unix(_) => "localhost".to_owned(),
            Endpoint::Tls { host, port, .. } | Endpoint::Plain { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Endpoint::Tls { host, port, .. } | Endpoint::Plain { host, port } => format!("{host}:{port}"),
        }
    }

    pub async fn connect(&self) -> Result<SendRequest<Body>, Failure> {
        let failed = |error: io::Error| Failure::cli(format!("Cannot connect to {self}: {error}"));
        match self {
            Endpoint::Unix(path) => handshake(UnixStream::connect(path).await.map_err(failed)?).await,
            Endpoint::Plain { host, port } => {
                handshake(TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?).await
            }
            Endpoint::Tls { host, port, ca } => {
                let config = trust::client_config(ca.as_deref())?;
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| Failure::cli(format!("'{host}' is neither a host name nor an address")))?;
                let refused = |error: io::Error| match trust::is_about_the_certificate(&error) {
                    true => Failure::cli(format!("{self} is not to be trusted: {error}. {ADVICE}")),
                    false => failed(error),
                };
                let connector = TlsConnector::from(Arc::new(config));
                handshake(connector.connect(name, stream).await.map_err(refused)?).await
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Body>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::cli(format!("The server does not speak HTTP: {error}")))?;
    // It ends with the sender or with the connection; errors reach whoever waits for a response.
    tokio::spawn(connection);
    Ok(sender)
}
