//! A simulated Dell EqualLogic PS group: the group manager's command line over SSH, volumes and snapshots over iSCSI.
//!
//! It imitates the array, not a client of it: names, rounding, wrapping, paging, confirmation, limits and reserve
//! policies are there whether or not our own driver ever meets them. Everything is kept in one directory, so that a
//! group can be stopped and started again.
//!
//! ```text
//!  ssh ──▶ ssh ──bytes──▶ cli::Session ──Request──▶ front ──▶ array (records) ──▶ iscsi (files, targets)
//!  initiators ───────────────────────────────────────────────────── router ───────▶ tgtd
//! ```
//! The portal is the group's address: logins there are redirected to a member's port beside it, as on the array.
//!
//! ## Faults
//! Commands are named in full (`volume create v1 1G`), besides them `login`, `session` and `iscsi login`. `Other` knows
//! `hang`, `cut-midway`, `wrong-prompt`, `event-storm`, and for the volume that the command names `delete-oldest` and
//! `volume-offline` (what a full snapshot reserve does); for `session` it knows `full`. `restart` carries the command out and
//! takes the whole group away for a second.

pub mod array;
pub mod cli;

mod controller;
mod front;
mod iscsi;
mod ssh;
mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use russh::keys::HashAlg;
use sim_target::Target;
use sim_target::faults::Faults;
use sim_target::router::Router;
use tokio::runtime::Runtime;

use array::{Array, Group};
use controller::Controller;
use front::Front;
use iscsi::{Disks, Judge};
use store::Store;

/// How often space is measured.
const TICK: Duration = Duration::from_secs(1);
/// How long a command that runs may hold up the end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How a group starts. All but addresses and limits counts at its first start only.
pub struct Options {
    pub dir: PathBuf,
    /// Port 0 chooses one.
    pub ssh: SocketAddr,
    pub portal: SocketAddr,
    /// The group's name, and its prompt.
    pub group: String,
    /// Of the account `grpadmin`.
    pub password: String,
    /// Capacity of the pools, in MB; `default` is the array's own.
    pub pools: Vec<(String, u64)>,
    /// Sessions at once.
    pub sessions_max: usize,
    /// After this time an idle session is logged out, unless its account said otherwise.
    pub idle: Duration,
    /// Speak only what old firmware may have had: 14-SHA1, AES in CBC mode, HMAC-SHA1.
    pub legacy_ssh: bool,
}

impl Options {
    /// A group with one pool of 2 TB, on ports that are free.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            ssh: SocketAddr::from(([127, 0, 0, 1], 0)),
            portal: SocketAddr::from(([127, 0, 0, 1], 0)),
            group: "group1".into(),
            password: "grpadmin".into(),
            pools: vec![("default".into(), 2 << 20)],
            sessions_max: 7,
            idle: Duration::from_secs(30 * 60),
            legacy_ssh: false,
        }
    }
}

/// A running group. Dropping it stops it.
pub struct Handle {
    front: Arc<Front>,
    controller: Arc<Controller>,
    ssh: SocketAddr,
    portal: SocketAddr,
    fingerprint: String,
    runtime: Option<Runtime>,
}

/// Starts a group on threads of its own.
pub fn start(options: Options) -> Result<Handle> {
    let mut store = Store::open(&options.dir)?;
    let mut group = match store.load()? {
        Some(group) => group,
        None => fresh(&options)?,
    };
    let key = store.host_key()?;
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
    let faults = Faults::default();
    let target = Arc::new(Target::start(&options.dir)?);
    let judge = Arc::new(Judge::new(group.clone(), faults.clone()));
    let router = Arc::new(Router::new(Arc::clone(&target), Arc::clone(&judge) as _)?);
    let portal = router.open(options.portal)?;
    group.address = portal.ip().to_string();
    let member = router.open(SocketAddr::new(portal.ip(), 0))?;
    judge.redirect(portal, member);
    let disks = Disks::new(&options.dir.join("disks"), &group, target, Arc::clone(&router), judge)?;
    let mut array = Array::new(group, Box::new(disks));
    array.settle()?;
    let front = Arc::new(Front::new(array, store, faults, options.sessions_max, options.idle));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("group-manager")
        .enable_all()
        .build()
        .context("the group manager's threads")?;
    let listener = listen(&runtime, options.ssh).with_context(|| format!("listening on {}", options.ssh))?;
    let ssh = listener.local_addr().context("the SSH port")?;
    runtime.spawn(ssh::serve(listener, key, options.legacy_ssh, Arc::clone(&front)));
    runtime.spawn(tick(Arc::clone(&front)));
    let controller = Arc::new(Controller { front: Arc::clone(&front), router, portals: [portal, member] });
    runtime.spawn(Arc::clone(&controller).serve());
    Ok(Handle { front, controller, ssh, portal, fingerprint, runtime: Some(runtime) })
}

/// Without waiting inside the runtime: the caller may be inside another one.
fn listen(runtime: &Runtime, address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let _inside = runtime.enter();
    tokio::net::TcpListener::from_std(listener)
}

fn fresh(options: &Options) -> Result<Group> {
    let mut group = Group::fresh(&options.group, "", Store::identity()?, 0, &options.password);
    group.pools = options.pools.iter().map(|(name, mb)| (name.clone(), array::Pool::of_mb(*mb))).collect();
    anyhow::ensure!(group.pools.contains_key("default"), "the pool called default is missing");
    Ok(group)
}

async fn tick(front: Arc<Front>) {
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let front = Arc::clone(&front);
        // A failure is logged there; the next tick may do better.
        let _ = tokio::task::spawn_blocking(move || front.tick()).await;
    }
}

impl Handle {
    pub fn ssh(&self) -> SocketAddr {
        self.ssh
    }

    /// Where initiators log in.
    pub fn portal(&self) -> SocketAddr {
        self.portal
    }

    /// Of the SSH host key, `SHA256:...`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn faults(&self) -> &Faults {
        &self.front.faults
    }

    /// Command sessions that are open now.
    pub fn sessions(&self) -> usize {
        self.front.sessions()
    }

    /// Measures space now instead of at the next tick.
    pub fn measure(&self) {
        self.front.tick();
    }

    /// Works on the array behind the command line's back.
    pub fn with_array<T>(&self, work: impl FnOnce(&mut Array) -> T) -> T {
        self.front.with_array(work)
    }

    /// Cuts all iSCSI sessions; initiators may log in again.
    pub fn cut_iscsi(&self) {
        self.controller.router.cut(|_| true);
    }

    /// Breaks all connections and takes no new ones until [`Handle::come_back`].
    pub fn leave(&self) {
        self.controller.leave();
    }

    /// Goes away and comes back by itself after a second.
    pub fn restart(&self) {
        self.front.request_restart();
    }

    pub fn come_back(&self) -> Result<()> {
        self.controller.come_back()
    }

    /// Ends the group; so does dropping it. When this returns, it may be started again.
    pub fn stop(self) {}
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        // Whoever starts the group again must find it at rest. A thread of its own may wait where this one, which may
        // belong to another runtime, may not.
        let ended = thread::spawn(move || runtime.shutdown_timeout(STOP_PATIENCE)).join();
        debug_assert!(ended.is_ok());
    }
}
