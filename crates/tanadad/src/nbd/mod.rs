//! Disks over NBD for backup programs: TCP, TLS always, read-only, one export for each VDI and session.
//!
//! ```text
//!   backup program ==TLS==> greeting, options --name "/<VDI>?session_id=<session>"--> the disk is attached
//!                                 |                                                        |
//!                                 |  names go both ways under the one they have there      v
//!                                 +--- GO or EXPORT_NAME ---> bytes, as they are <---unix socket---> blockd
//! ```
//! Nothing but STARTTLS and ABORT is answered in clear. The export's name is the key: it carries a session, which must be
//! open and may do what a VM administrator may. From the entry on bytes are passed on unseen, so whatever the data plane
//! knows (structured replies, `base:allocation`, `qemu:dirty-bitmap:` of any other snapshot of the disk) is there.
//!
//! A disk is attached for reading when its first client comes and detached when the last one goes; a client goes when it
//! says so, when its session ends, and when the daemon does.
//!
//! Connections are bounded before ([`strangers`]) and after they have shown a session.
//!
//! What this does not do: write, list exports, speak without TLS.

mod disks;
mod info;
mod options;
mod strangers;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::context::Daemon;
use crate::http::tls;
use tanada_xapi::Ref;

pub use disks::Disks;
pub use info::handlers;
use strangers::{Door, PROOF_LIMIT, Stranger};

/// Port that clients expect.
pub const PORT: u16 = 10809;
/// Clients inside exports at a time; more are turned away. Backup programs open up to eight for each disk.
const CLIENTS_MAX: usize = 64;
/// From the connection to the end of the TLS handshake.
const TLS_LIMIT: Duration = Duration::from_secs(10);
/// From there to the entry into an export, the attaching of the disk included. Strangers have less.
const ENTRY_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(5);
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// After a failed accept, so that the processor is not kept busy failing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Each way, in bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// What the rest of the daemon sees of the server.
#[derive(Default)]
pub struct Nbd {
    disks: Disks,
    /// Where it listens, if it does.
    address: OnceLock<SocketAddr>,
}

impl Nbd {
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }
}

/// The server, until it is told to end.
pub struct Server(Option<JoinHandle<()>>);

impl Server {
    /// Waits a while for the clients to be gone; the daemon has said that it stops.
    pub async fn stop(self) {
        if let Some(task) = self.0
            && timeout(STOP_LIMIT, task).await.is_err()
        {
            tracing::warn!("NBD clients were cut off");
        }
    }
}

/// Opens the door where the configuration names one.
pub async fn serve(daemon: &Arc<Daemon>) -> anyhow::Result<Server> {
    let Some(address) = daemon.config.nbd_listen else { return Ok(Server(None)) };
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for NBD"))?;
    let mut config = tls::server_config(&daemon.config.state_dir.join("tls"), tls::certificate_names(daemon))?;
    config.alpn_protocols.clear();
    // There is one server in a daemon.
    let _ = daemon.nbd.address.set(listener.local_addr()?);
    let accept = accept(listener, TlsAcceptor::from(Arc::new(config)), daemon.clone());
    Ok(Server(Some(tokio::spawn(accept))))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, daemon: Arc<Daemon>) {
    let mut clients = JoinSet::new();
    let door = Door::new(CLIENTS_MAX, PROOF_LIMIT);
    let mut stopping = daemon.stopping.subscribe();
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => break,
            // Reaps those that ended.
            Some(_) = clients.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "an NBD connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let stranger = door.come();
        let (tls, daemon) = (tls.clone(), daemon.clone());
        clients.spawn(async move {
            if let Err(error) = client(stream, &stranger, &tls, &daemon).await {
                tracing::debug!(%peer, %error, "an NBD connection broke");
            }
        });
    }
    while clients.join_next().await.is_some() {}
}

/// One client from the greeting to the end.
async fn client(stream: TcpStream, stranger: &Stranger, tls: &TlsAcceptor, daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    notice_death(&stream)?;
    let mut stopping = daemon.stopping.subscribe();
    let entered = tokio::select! {
        _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        why = stranger.sent_away() => anyhow::bail!(why),
        entered = enter(stream, stranger, tls, daemon) => entered?,
    };
    let Some((mut client, mut entry)) = entered else { return Ok(()) };
    tracing::debug!(vdi = entry.vdi, "an NBD client has come in");
    let passed = tokio::select! {
        _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
        () = session_ended(daemon, &entry.session) => Ok(()),
        passed = pass(&mut client, &mut entry.backend) => passed,
    };
    // The disk may be detached from here on.
    drop(entry);
    // A client that takes nothing any more is not waited for.
    let _ = timeout(GOODBYE_LIMIT, client.shutdown()).await;
    Ok(passed?)
}

/// A backup server that is gone without a word must not hold a snapshot for hours: it is asked after a minute of silence, and
/// given up two minutes later.
fn notice_death(stream: &TcpStream) -> std::io::Result<()> {
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, Duration::from_secs(60))?;
    set_tcp_keepintvl(stream, Duration::from_secs(30))?;
    set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

/// The client inside its export; `None` where it left before.
async fn enter(
    mut stream: TcpStream,
    stranger: &Stranger,
    tls: &TlsAcceptor,
    daemon: &Arc<Daemon>,
) -> anyhow::Result<Option<(TlsStream<TcpStream>, options::Entry)>> {
    let secured = async {
        let Some(flags) = options::until_tls(&mut stream).await? else { return Ok(None) };
        let client = tls.accept(stream).await.context("TLS")?;
        anyhow::Ok(Some((client, flags)))
    };
    let secured = timeout(TLS_LIMIT, secured).await.context("it does not come to TLS")??;
    let Some((mut client, flags)) = secured else { return Ok(None) };
    let entry = timeout(ENTRY_LIMIT, options::until_entry(&mut client, flags, stranger, daemon)).await;
    Ok(entry.context("it does not come to an entry")??.map(|entry| (client, entry)))
}

async fn pass(client: &mut TlsStream<TcpStream>, backend: &mut UnixStream) -> std::io::Result<()> {
    copy_bidirectional_with_sizes(client, backend, BUFFER_BYTES, BUFFER_BYTES).await.map(drop)
}

async fn session_ended(daemon: &Daemon, session: &Ref) {
    let mut changed = daemon.db.changed();
    while daemon.sessions.is_open(session) {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::serve;
    use super::strangers::STRANGERS_MAX;
    use crate::context::Daemon;
    use crate::db::Db;
    use crate::testing::TestDaemon;

    async fn greeted(address: SocketAddr) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address).await?;
        stream.read_exact(&mut [0; 18]).await?;
        Ok(stream)
    }

    #[tokio::test]
    async fn strangers_who_say_nothing_keep_nobody_out() {
        let test = TestDaemon::new(Vec::new());
        let mut config = test.daemon.config.clone();
        config.nbd_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let daemon = Daemon::new(config, Db::in_memory().unwrap(), Vec::new()).unwrap();
        let server = serve(&daemon).await.unwrap();
        let address = daemon.nbd.address().unwrap();
        let mut silent = Vec::new();
        for _ in 0..STRANGERS_MAX {
            silent.push(greeted(address).await.unwrap());
        }
        let _late = greeted(address).await.expect("there is room for one more");
        assert_eq!(silent[0].read(&mut [0; 1]).await.unwrap_or(0), 0, "the first one has made room");
        daemon.stopping.send_replace(true);
        server.stop().await;
    }
}
