//! The array's portals: logins are judged and rewritten, then PDUs pass.
//!
//! ```text
//!  accept -> first login PDU -> SessionType?
//!     Discovery -> answered here: the targets that the director shows to this initiator
//!     Normal    -> Director::login: refuse | redirect | accept(target in tgtd)
//!                    rewrite TargetName and CHAP_N, in both directions until the full-feature phase
//!                    then pump PDUs: LUN numbers shifted; REPORT LUNS, VPD 0x80 and 0x83, and the
//!                    words for a full LUN, put right
//! ```
//! Several initiators of one IQN so see different LUNs, as an ONTAP SVM shows them; and redirects, refusals, dead portals
//! and cut connections are had without tgtd's help. CHAP of normal sessions is judged by tgtd itself, of discovery
//! sessions here.
//!
//! The router never looks at data except for the answers named above.

mod login;
mod scsi;
mod session;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Result, TargetError, io as failed};
use crate::router::scsi::Gate;
use crate::target::{Chap, Target};

/// Who wants to log in, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub initiator: String,
    pub target: String,
    pub portal: SocketAddr,
    /// Where the initiator is.
    pub peer: SocketAddr,
}

/// What becomes of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The name of a target of [`Target`].
    Accept {
        target: String,
    },
    /// "Moved temporarily" to another portal, `address:port`.
    Redirect {
        portal: String,
    },
    Refuse(Refusal),
}

/// Status class and detail of a login response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub class: u8,
    pub detail: u8,
}

impl Refusal {
    pub const AUTHENTICATION: Refusal = Refusal { class: 2, detail: 1 };
    pub const NOT_AUTHORISED: Refusal = Refusal { class: 2, detail: 2 };
    pub const NOT_FOUND: Refusal = Refusal { class: 2, detail: 3 };
    pub const SERVICE_UNAVAILABLE: Refusal = Refusal { class: 3, detail: 1 };
}

/// The answer to SendTargets.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// Names with their portals (`address:port,tag`).
    pub targets: Vec<(String, Vec<String>)>,
    /// Where set, the initiator has to prove itself before it is told anything.
    pub chap: Option<Chap>,
}

/// The array's word on logins. Called from threads that may block.
pub trait Director: Send + Sync + 'static {
    fn login(&self, login: &Login) -> Route;
    fn discover(&self, initiator: &str, portal: SocketAddr) -> std::result::Result<Discovery, Refusal>;
    /// The NAA identifier that LUN `lun` of `login` tells in VPD page 0x83; none leaves tgt's own.
    fn naa(&self, login: &Login, lun: u16) -> Option<[u8; 16]>;
    /// Whether a LUN that tgtd shows read-only is writable in truth, and only lacks space: initiators are then told
    /// "space allocation failed" instead of "write protected".
    fn is_full(&self, _login: &Login, _lun: u16) -> bool {
        false
    }
}

/// A logged-in session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub login: Login,
    /// In tgtd.
    pub target: String,
    pub peer: SocketAddr,
    /// As the initiator gave it at login.
    pub isid: [u8; 6],
}

struct Live {
    session: Session,
    /// True ends it.
    cut: watch::Sender<bool>,
}

#[derive(Default)]
struct Table {
    sessions: BTreeMap<u64, Live>,
    listeners: BTreeMap<SocketAddr, JoinHandle<()>>,
    last: u64,
}

/// What the tasks share.
struct Shared {
    target: Arc<Target>,
    director: Arc<dyn Director>,
    table: Mutex<Table>,
    gate: Gate,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session; the receiver tells when it is to end.
    fn enter(&self, session: Session) -> (u64, watch::Receiver<bool>) {
        let (cut, told) = watch::channel(false);
        let mut table = self.table();
        table.last += 1;
        let number = table.last;
        table.sessions.insert(number, Live { session, cut });
        (number, told)
    }

    fn leave(&self, number: u64) {
        self.table().sessions.remove(&number);
    }
}

/// Portals of one array, on a runtime of their own so that they work under tests of any kind.
pub struct Router {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Router {
    pub fn new(target: Arc<Target>, director: Arc<dyn Director>) -> Result<Router> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("iscsi-router")
            .enable_all()
            .build()
            .map_err(failed("the router's runtime"))?;
        let shared = Shared { target, director, table: Mutex::default(), gate: Gate::new() };
        Ok(Router { shared: Arc::new(shared), runtime: Some(runtime) })
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.runtime.as_ref().ok_or_else(|| TargetError::Invalid("the router has ended".into()))
    }

    /// Opens a portal. Port 0 picks one. Opening an open portal is an error.
    pub fn open(&self, portal: SocketAddr) -> Result<SocketAddr> {
        let listener = std::net::TcpListener::bind(portal).map_err(failed(format!("portal {portal}")))?;
        listener.set_nonblocking(true).map_err(failed(format!("portal {portal}")))?;
        let portal = listener.local_addr().map_err(failed(format!("portal {portal}")))?;
        let runtime = self.runtime()?;
        let _inside = runtime.enter();
        let listener = TcpListener::from_std(listener).map_err(failed(format!("portal {portal}")))?;
        let task = runtime.spawn(accept(Arc::clone(&self.shared), listener, portal));
        self.shared.table().listeners.insert(portal, task);
        Ok(portal)
    }

    /// Closes a portal and cuts its sessions, as a dead controller would.
    pub fn close(&self, portal: SocketAddr) {
        let task = self.shared.table().listeners.remove(&portal);
        if let Some(task) = task {
            task.abort();
            // Until the task is gone the port is taken: a portal that opens again must find it free.
            while !task.is_finished() {
                std::thread::yield_now();
            }
        }
        self.cut(|session| session.login.portal == portal);
    }

    /// Sessions that are logged in now.
    pub fn sessions(&self) -> Vec<Session> {
        self.shared.table().sessions.values().map(|live| live.session.clone()).collect()
    }

    /// Cuts the connections of some sessions; initiators may log in again.
    pub fn cut(&self, which: impl Fn(&Session) -> bool) {
        for live in self.shared.table().sessions.values().filter(|live| which(&live.session)) {
            live.cut.send_replace(true);
        }
    }

    /// Runs `at` while no new command reaches tgtd (commands under way end): LUNs may be taken away and shown again
    /// without an initiator noticing more than a pause.
    pub fn held<T>(&self, at: impl FnOnce() -> T) -> T {
        self.shared.gate.held(at)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.cut(|_| true);
        if let Some(runtime) = self.runtime.take() {
            // Allowed inside another runtime, unlike waiting for it.
            runtime.shutdown_background();
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, portal: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Err(error) = serve(shared, stream, portal, peer).await {
                        tracing::debug!(%portal, %peer, %error, "an iSCSI connection ended");
                    }
                });
            }
            Err(error) => tracing::warn!(%portal, %error, "accepting an iSCSI connection failed"),
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, portal: SocketAddr, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(logged_in) = login::run(&shared, stream, portal, peer).await? else { return Ok(()) };
    let (number, cut) = shared.enter(logged_in.session.clone());
    let ended = session::pump(&shared, logged_in, cut).await;
    shared.leave(number);
    ended
}
