//! Sockets and connections.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{Route, service, tls};
use crate::context::Daemon;
use crate::rpc::dispatch::Peer;

/// Connections at a time; more wait in the kernel's queue. Root of this machine shares no places with those who only know the
/// address.
const CONNECTIONS_MAX: Connections = Connections { local: 256, remote: 1024 };
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What calls under way get to end in when the daemon stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptors left), so that the processor is not kept busy failing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many there may be over all listeners of a kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connections {
    pub local: usize,
    pub remote: usize,
}

/// The open doors.
pub struct Server {
    daemon: Arc<Daemon>,
    stop: watch::Sender<bool>,
    listeners: JoinSet<()>,
    /// Where HTTPS is, with the port that was chosen if 0 was asked for.
    pub address: Option<SocketAddr>,
    pub plain_address: Option<SocketAddr>,
}

impl Server {
    /// Closes the doors and waits a while for calls under way.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.daemon.stopping.send_replace(true);
        let all = async { while self.listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            tracing::warn!("calls under way were cut off");
        }
    }
}

#[derive(Clone)]
struct Shared {
    daemon: Arc<Daemon>,
    routes: Arc<[Route]>,
    local: Arc<Semaphore>,
    remote: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// Opens what the configuration names.
pub async fn serve(daemon: &Arc<Daemon>, routes: Vec<Route>) -> anyhow::Result<Server> {
    serve_so_many(daemon, routes, CONNECTIONS_MAX).await
}

pub(super) async fn serve_so_many(
    daemon: &Arc<Daemon>,
    routes: Vec<Route>,
    connections: Connections,
) -> anyhow::Result<Server> {
    let (stop, stopped) = watch::channel(false);
    let shared = Shared {
        daemon: daemon.clone(),
        routes: routes.into(),
        local: Arc::new(Semaphore::new(connections.local)),
        remote: Arc::new(Semaphore::new(connections.remote)),
        stop: stopped,
    };
    let config = &daemon.config;
    let mut server =
        Server { daemon: daemon.clone(), stop, listeners: JoinSet::new(), address: None, plain_address: None };
    let unix = listen_unix(&config.unix_socket)?;
    server.listeners.spawn(accept_unix(unix, shared.clone()));
    if let Some(address) = config.listen {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        server.address = Some(listener.local_addr()?);
        let tls = tls::server_config(&config.state_dir.join("tls"), tls::certificate_names(daemon))?;
        server.listeners.spawn(accept_tcp(listener, Some(TlsAcceptor::from(Arc::new(tls))), shared.clone()));
    }
    if let Some(address) = config.listen_plain {
        anyhow::ensure!(address.ip().is_loopback(), "plain HTTP is for loopback addresses only, not for {address}");
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        server.plain_address = Some(listener.local_addr()?);
        server.listeners.spawn(accept_tcp(listener, None, shared.clone()));
    }
    Ok(server)
}

/// We hold the lock of the instance, so a socket file that is there is left over.
fn listen_unix(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept_unix(listener: UnixListener, shared: Shared) {
    let mut connections = JoinSet::new();
    let mut stop = shared.stop.clone();
    while let Some(accepted) = next(&mut stop, &mut connections, &shared.local, || listener.accept()).await {
        let Some(((stream, _), place)) = accepted else { continue };
        let peer = Peer { local: true, address: None };
        connections.spawn(connection(stream, peer, place, shared.clone()));
    }
    while connections.join_next().await.is_some() {}
}

async fn accept_tcp(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Shared) {
    let mut connections = JoinSet::new();
    let mut stop = shared.stop.clone();
    while let Some(accepted) = next(&mut stop, &mut connections, &shared.remote, || listener.accept()).await {
        let Some(((stream, address), place)) = accepted else { continue };
        let peer = Peer { local: false, address: Some(address.ip()) };
        // Small replies must not wait for the client's acknowledgement; dead clients must be noticed one day.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            match tls {
                None => connection(stream, peer, place, shared).await,
                Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => connection(stream, peer, place, shared).await,
                    Ok(Err(error)) => tracing::debug!(%error, %address, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
                },
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

/// The next connection and its place; `Some(None)` when there was none this time, `None` when we stop. Without a place none
/// is accepted: not even a handshake is begun, and no descriptor taken.
async fn next<T, F: Future<Output = std::io::Result<T>>>(
    stop: &mut watch::Receiver<bool>,
    connections: &mut JoinSet<()>,
    places: &Arc<Semaphore>,
    accept: impl FnOnce() -> F,
) -> Option<Option<(T, OwnedSemaphorePermit)>> {
    let placed = async {
        let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
        Ok::<_, std::io::Error>((accept().await?, place))
    };
    tokio::select! {
        () = asked(stop) => None,
        // Reaps those that ended.
        Some(_) = connections.join_next() => Some(None),
        accepted = placed => match accepted {
            Ok(accepted) => Some(Some(accepted)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                Some(None)
            }
        },
    }
}

/// Waits until the doors are to be closed.
async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is no different.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    _place: OwnedSemaphorePermit,
    shared: Shared,
) {
    let Shared { daemon, routes, mut stop, .. } = shared;
    let service = service_fn(move |request| {
        let answer = service::answer(daemon.clone(), routes.clone(), peer, request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        // A client may close its half of the connection at the end of an upload and still wait for the answer.
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = asked(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}
