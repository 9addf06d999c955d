//! A simulated NetApp ONTAP cluster: REST over HTTPS in front, LUNs over iSCSI behind, both on loopback.
//!
//! ```text
//!  HTTPS --> http (accounts, faults) --> api (envelope, fields, filters, jobs) --> resources --> model (the array)
//!  iSCSI --> sim-target's router  <-- what an initiator may see ------------------------------------^
//! ```
//! It imitates the array, not any driver: what the vendor's own Python client and other programs need is there too.
//! [`start`] makes one in this process; the program of the same name prints its addresses as one line of JSON.

mod api;
mod http;
mod model;
mod options;
mod resources;
mod seed;
mod tls;
mod zapi;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use sim_target::Target;
use sim_target::faults::Faults;
use sim_target::router::{Director, Router};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

pub use options::{Account, Options};

use crate::api::Api;
use crate::api::jobs::Jobs;
use crate::http::Face;
use crate::model::{Array, Doorkeeper};

/// How long the end of a simulator may take.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A running array. It ends when this is dropped; its directory brings it back.
pub struct Handle {
    runtime: Option<Runtime>,
    array: Arc<Mutex<Array>>,
    faults: Faults,
    address: SocketAddr,
    trust: tls::Trust,
}

/// Starts an array, or the one that was in the directory before.
pub fn start(options: Options) -> Result<Handle> {
    std::fs::create_dir_all(options.dir.join("volumes"))
        .with_context(|| format!("the array's directory {}", options.dir.display()))?;
    let listener = http::bind(options.listen).with_context(|| format!("the management address {}", options.listen))?;
    let address = listener.local_addr()?;
    let (config, trust) = tls::configure(&options.dir, address.ip())?;
    let state = match model::load(&options.dir).context("the array's state")? {
        Some(state) => state,
        None => seed::state(&options)?,
    };
    let target = Arc::new(Target::start(&options.dir)?);
    let doorkeeper = Arc::new(Doorkeeper::default());
    let router = Arc::new(Router::new(Arc::clone(&target), Arc::clone(&doorkeeper) as Arc<dyn Director>)?);
    let portals: Vec<SocketAddr> =
        state.interfaces.iter().filter(|lif| lif.enabled && lif.up).map(|lif| lif.address.into()).collect();
    let svms = state.svms.iter().map(|svm| (svm.name.clone(), svm.uuid)).collect();
    let array = Array::new(state, options.clone(), target, Arc::clone(&router), Arc::clone(&doorkeeper))
        .map_err(|error| anyhow!("the array: {}", error.message))?;
    let array = Arc::new(Mutex::new(array));
    doorkeeper.serve(&array);
    for portal in portals {
        router.open(portal)?;
    }
    let jobs = Arc::new(Jobs::new(options.job_ms, options.job_expiry_ms));
    let api = Api::new(Arc::clone(&array), Arc::clone(&jobs), resources::all(&jobs), options.strict);
    let faults = Faults::default();
    let face = Arc::new(Face {
        api,
        array: Arc::clone(&array),
        accounts: options.accounts.clone(),
        svms,
        faults: faults.clone(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("ontap-http")
        .enable_all()
        .build()
        .context("the simulator's runtime")?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    runtime.spawn(http::serve(face, listener, TlsAcceptor::from(config)));
    runtime.spawn(watch(Arc::downgrade(&array), Duration::from_millis(options.space_ms)));
    Ok(Handle { runtime: Some(runtime), array, faults, address, trust })
}

/// Looks at space, ends splits, as time goes by.
async fn watch(array: std::sync::Weak<Mutex<Array>>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(array) = array.upgrade() else { return };
        let looked = tokio::task::spawn_blocking(move || {
            array.lock().unwrap_or_else(PoisonError::into_inner).tick().map_err(|error| error.message)
        });
        if let Ok(Err(error)) = looked.await {
            tracing::warn!(error, "looking after the array failed");
        }
    }
}

impl Handle {
    /// The management address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://address:port`
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// PEM file of the authority that signed the certificate.
    pub fn ca(&self) -> PathBuf {
        self.trust.ca.clone()
    }

    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.trust.fingerprint
    }

    /// Rules for calls: names are `METHOD /api/path` with `{uuid}` for uuids. Besides the common actions `Other` takes
    /// `job_fail:<code>`, `job_fail_after:<code>`, `job_vanish`, `job_slow:<ms>` and `device_busy`.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    fn with_array<T>(&self, work: impl FnOnce(&mut Array) -> T) -> T {
        work(&mut self.array.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// iSCSI portals of an SVM.
    pub fn portals(&self, svm: &str) -> Vec<SocketAddr> {
        self.with_array(|array| {
            let mine = array.state.interfaces.iter().filter(|lif| lif.svm == svm);
            mine.map(|lif| lif.address.into()).collect()
        })
    }

    /// Takes an iSCSI portal down, with its sessions, or brings it back.
    pub fn set_portal(&self, portal: SocketAddr, up: bool) -> Result<()> {
        let done = self.with_array(|array| {
            let found = array.state.interfaces.iter().find(|lif| SocketAddr::V4(lif.address) == portal)?.uuid;
            Some(array.set_interface(found, |lif| lif.up = up))
        });
        let done = done.with_context(|| format!("there is no portal {portal}"))?;
        done.map_err(|error| anyhow!(error.message))
    }

    /// Cuts all iSCSI connections, as the restart of a controller does. Initiators may come back at once.
    pub fn cut_iscsi(&self) {
        let router = self.with_array(|array| Arc::clone(&array.router));
        router.cut(|_| true);
    }

    /// How many volumes, LUNs, snapshots, igroups, LUN maps and consistency groups there are, apart from SVM roots.
    pub fn census(&self) -> Census {
        self.with_array(|array| {
            let state = &array.state;
            Census {
                volumes: state.volumes.values().filter(|volume| !volume.is_svm_root).count(),
                luns: state.luns.len(),
                snapshots: state.snapshots.len(),
                igroups: state.igroups.len(),
                maps: state.maps.len(),
                groups: state.groups.len(),
                credentials: state.credentials.iter().filter(|found| found.initiator != "default").count(),
            }
        })
    }

    /// Ends the array, orderly. The directory stays.
    pub fn stop(self) {
        drop(self);
    }
}

/// What is on the array: equal before and after means that nothing was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    pub volumes: usize,
    pub luns: usize,
    pub snapshots: usize,
    pub igroups: usize,
    pub maps: usize,
    pub groups: usize,
    pub credentials: usize,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        // On a thread of its own, since this may be inside a runtime where waiting is forbidden.
        let ended = thread::spawn(move || runtime.shutdown_timeout(STOP_PATIENCE)).join();
        if ended.is_err() {
            tracing::warn!("the simulator's runtime did not end");
        }
        self.with_array(|array| {
            for portal in array.state.interfaces.iter().map(|lif| SocketAddr::from(lif.address)) {
                array.router.close(portal);
            }
        });
    }
}
