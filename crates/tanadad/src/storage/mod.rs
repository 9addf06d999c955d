//! The SRs that are attached here, and what is reached through them.
//!
//! [`Storage`] holds the kinds of storage known to this program and one driver for each plugged PBD. Drivers are asked
//! through it; their errors become XenAPI's here and nowhere else.

pub mod alerts;
mod attach;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tanada_driver::bridge::Bridges;
use tanada_driver::embedded::{EmbeddedBackend, EmbeddedPlaces};
use tanada_driver::registry::{Backend, Registry};
use tanada_driver::{Driver, DriverError, DriverErrorKind};
use tanada_equallogic::EqualBackend;
use tanada_ontap::OntapBackend;
use tanada_xapi::{ApiError, ApiResult, Ref};
use uuid::Uuid;

pub use attach::{
    attach_vdi, attached_vdis, detach_daemon, detach_used, detach_vbd, detach_vdi, end_left, end_leftovers,
    is_attached, load_attachments, tokens_of,
};

use crate::config::Config;
use crate::db::View;
use attach::Attachments;

/// What the names of all our iSCSI initiators begin with.
const INITIATOR_PREFIX: &str = "iqn.2026-01.org.tanada";

/// Kinds of storage, open drivers, attachments.
pub struct Storage {
    registry: RwLock<Registry>,
    open: RwLock<HashMap<Ref, Arc<dyn Driver>>>,
    bridges: Bridges,
    attachments: Attachments,
    /// SRs that somebody waits for to settle; true when there was another deletion since the wait began.
    settling: Mutex<HashMap<Ref, bool>>,
}

impl Storage {
    pub fn new(registry: Registry, bridges: Bridges) -> Storage {
        Storage {
            registry: RwLock::new(registry),
            open: RwLock::default(),
            bridges,
            attachments: Attachments::default(),
            settling: Mutex::default(),
        }
    }

    /// All kinds that this program has.
    pub fn from_config(config: &Config) -> Storage {
        let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        let places = EmbeddedPlaces {
            program,
            run_dir: config.runtime_dir.join("sr"),
            state_dir: config.state_dir.join("sr"),
            scrub_every_days: config.scrub_every_days,
        };
        let embedded: Arc<dyn Backend> = Arc::new(EmbeddedBackend::new(places));
        let bridges = Bridges::new(config.runtime_dir.join("bridges"));
        let netapp: Arc<dyn Backend> = Arc::new(OntapBackend::new(bridges.clone()));
        let equal: Arc<dyn Backend> = Arc::new(EqualBackend::new(bridges.clone()));
        Storage::new(Registry::new([embedded, netapp, equal]), bridges)
    }

    /// Other kinds than the program's own.
    pub fn replace_registry(&self, registry: Registry) {
        *self.registry.write().unwrap_or_else(PoisonError::into_inner) = registry;
    }

    pub fn registry(&self) -> Registry {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The way to disks for what the daemon itself reads and writes.
    pub fn bridges(&self) -> &Bridges {
        &self.bridges
    }

    /// The kind called `name`; `SR_UNKNOWN_DRIVER` when there is none.
    pub fn backend(&self, name: &str) -> ApiResult<Arc<dyn Backend>> {
        self.registry().get(name).cloned().ok_or_else(|| ApiError::sr_unknown_driver(name))
    }

    /// The driver of an attached SR; `SR_HAS_NO_PBDS` when it is not attached here.
    pub fn driver(&self, sr: &Ref) -> ApiResult<Arc<dyn Driver>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(sr).cloned().ok_or_else(|| ApiError::sr_has_no_pbds(sr))
    }

    pub fn is_open(&self, sr: &Ref) -> bool {
        self.driver(sr).is_ok()
    }

    pub fn put_driver(&self, sr: &Ref, driver: Arc<dyn Driver>) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(sr.clone(), driver);
    }

    /// There is something to wait for; true for the one who has to do the waiting.
    pub fn begin_settling(&self, sr: &Ref) -> bool {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner).insert(sr.clone(), true).is_none()
    }

    /// For the one who waits: true when there is something (more) to wait for, false at the end.
    pub fn take_settling(&self, sr: &Ref) -> bool {
        let mut settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let more = settling.get(sr).copied().unwrap_or(false);
        if more {
            settling.insert(sr.clone(), false);
        } else {
            settling.remove(sr);
        }
        more
    }

    pub fn take_driver(&self, sr: &Ref) -> Option<Arc<dyn Driver>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(sr)
    }
}

/// A volume's name at its driver, from a VDI's `location`.
pub fn volume_id(location: &str) -> ApiResult<Uuid> {
    Uuid::parse_str(location).map_err(|_| ApiError::sr_backend_failure(46, format!("{location:?} names no volume")))
}

/// IQN of this host, for transfers.
pub fn host_initiator(view: &impl View) -> String {
    let host = view.only("host").map(|host| host.uuid().to_owned()).unwrap_or_default();
    format!("{INITIATOR_PREFIX}:host-{host}")
}

/// IQN under which a machine reaches its disks on arrays.
pub fn vm_initiator(vm_uuid: &str) -> String {
    format!("{INITIATOR_PREFIX}:vm-{vm_uuid}")
}

/// What a caller hears of a driver's failure.
pub fn driver_error(error: DriverError) -> ApiError {
    let number = match error.kind {
        DriverErrorKind::NotFound => 46,
        DriverErrorKind::Exists => 43,
        DriverErrorKind::Busy => 24,
        DriverErrorKind::NoSpace => 44,
        DriverErrorKind::Unsupported | DriverErrorKind::NotAtomic => 38,
        DriverErrorKind::InvalidArgument => 1,
        DriverErrorKind::Unreachable => 47,
        DriverErrorKind::Io => 200,
    };
    numbered(number, error)
}

/// `SR_BACKEND_FAILURE_<n>` with the number that the storage gives, else with `number`.
pub fn numbered(number: u32, error: DriverError) -> ApiError {
    let number = error.sm.unwrap_or(number);
    let mut failure = ApiError::sr_backend_failure(number, &error.message);
    if number == 44 {
        // Clients look for these words.
        failure.params[1] = format!("There is insufficient space: {}", error.message);
    }
    if let Some(detail) = error.detail {
        failure.params[2] = detail;
    }
    failure
}
