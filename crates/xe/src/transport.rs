//! Connections to the server: a unix socket, TLS, or plain TCP, with HTTP/1.1 on top.

use crate::failure::Failure;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

pub type Body = BoxBody<Bytes, io::Error>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tls { host: String, port: u16 },
    Plain { host: String, port: u16 },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
            Endpoint::Tls { host, port } | Endpoint::Plain { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Endpoint {
    /// For the `Host` header.
    pub fn authority(&self) -> String {
        match self {
            Endpoint::Unix(_) => "localhost".to_owned(),
            Endpoint::Tls { host, port } | Endpoint::Plain { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Endpoint::Tls { host, port } | Endpoint::Plain { host, port } => format!("{host}:{port}"),
        }
    }

    pub async fn connect(&self) -> Result<SendRequest<Body>, Failure> {
        let failed = |error: io::Error| Failure::cli(format!("Cannot connect to {self}: {error}"));
        match self {
            Endpoint::Unix(path) => handshake(UnixStream::connect(path).await.map_err(failed)?).await,
            Endpoint::Plain { host, port } => {
                handshake(TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?).await
            }
            Endpoint::Tls { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| Failure::cli(format!("'{host}' is neither a host name nor an address")))?;
                let connector = TlsConnector::from(Arc::new(tls_config()?));
                handshake(connector.connect(name, stream).await.map_err(failed)?).await
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

/// Servers make their own certificates, so there is no authority to ask: the connection is encrypted but the server is not
/// authenticated, as this command line has always done it.
fn tls_config() -> Result<ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::cli(format!("TLS: {error}")))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
