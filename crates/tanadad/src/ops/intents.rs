//! What is under way at the storage, written down before it is begun.
//!
//! | intent | written with | cleared with | left over after a crash |
//! |---|---|---|---|
//! | create | nothing else: records come last | the records of what was made | undone: the volumes are destroyed |
//! | destroy | the mark on the object | the end of its records | finished |
//! | discard | before the disks are made; with the end of their snapshot | the end of the operation that they are for; their end | undone: the VDIs are destroyed |
//! | resize | the mark | the new size | finished |
//! | revert | the mark | the machine's new fields | finished; given up where that fails and no disk goes back in place |
//! | sr-create | nothing | the SR's records | undone, where the container is provably ours |
//! | sr-destroy | nothing | the end of the SR's records | finished |
//! | freeze | before the guest is frozen | when it is thawed | the guest is thawed |
//! | memory | before a machine's memory is asked for | when it goes on, or its memory is on a disk | the machine goes on |
//! | hold | before the machine is held | when it goes on | the machine goes on |
//! | attachment | before the driver attaches | when the driver has detached | ended when nobody uses it |
//!
//! What cannot be ended (the storage is away) is tried again every minute, and at the next start.
//!
//! Volumes get their names before they are made, so that an undo knows what to look for; verbs of drivers may be
//! repeated, so that finishing is doing again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tanada_driver::{Driver, DriverErrorKind};
use tanada_xapi::{ApiError, ApiResult, Ref};
use uuid::Uuid;

use crate::context::Daemon;
use crate::db::{Intent, Tx};
use crate::storage::driver_error;

/// The body of an intent; its `kind` is the tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Plan {
    /// These volumes are being made.
    Create {
        sr: String,
        volumes: Vec<Uuid>,
    },
    /// These VDIs serve an operation that has not ended (a full copy), or a snapshot that is no more.
    Discard {
        vdis: Vec<String>,
    },
    /// This VDI is going, with its volume.
    Destroy {
        sr: String,
        vdi: String,
        volume: Uuid,
    },
    Resize {
        sr: String,
        vdi: String,
        volume: Uuid,
        size: u64,
    },
    Revert(RevertPlan),
    SrCreate {
        uuid: Uuid,
        driver: String,
        device_config: BTreeMap<String, String>,
    },
    SrDestroy {
        sr: String,
        uuid: Uuid,
        driver: String,
        device_config: BTreeMap<String, String>,
    },
    Freeze {
        vm: String,
    },
    Hold {
        vm: String,
    },
    /// This machine's memory is being written out.
    Memory {
        vm: String,
    },
}

/// A machine goes back to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevertPlan {
    pub vm: String,
    pub snapshot: String,
    /// The machine's disks were between two instants already.
    #[serde(default)]
    pub marked_before: bool,
    /// Disks that get a clone of the snapshot's for their volume.
    #[serde(default)]
    pub switched: Vec<SwitchDisk>,
    /// Disks whose content goes back in place.
    pub in_place: Vec<RevertDisk>,
    /// Disks that are made anew from the snapshot's.
    pub cloned: Vec<CloneDisk>,
    /// The memory of a checkpoint, as a copy of its image.
    #[serde(default)]
    pub memory: Option<CloneDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevertDisk {
    pub sr: String,
    pub vdi: String,
    pub volume: Uuid,
    pub snapshot_vdi: String,
    pub generation: Uuid,
}

/// A VDI stays and gets another volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchDisk {
    pub vdi: String,
    /// Its volume until then.
    pub old: Uuid,
    pub clone: CloneDisk,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneDisk {
    pub sr: String,
    pub snapshot_vdi: String,
    pub generation: Uuid,
    pub volume: Uuid,
}

impl RevertPlan {
    /// Everything that is made anew.
    pub fn clones(&self) -> impl Iterator<Item = &CloneDisk> {
        self.disk_clones().chain(&self.memory)
    }

    /// [`RevertPlan::clones`] without the memory.
    pub fn disk_clones(&self) -> impl Iterator<Item = &CloneDisk> {
        self.switched.iter().map(|disk| &disk.clone).chain(&self.cloned)
    }

    /// The VDIs whose content becomes another.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.switched.iter().map(|disk| disk.vdi.as_str()).chain(self.in_place.iter().map(|disk| disk.vdi.as_str()))
    }
}

impl Plan {
    const fn kind(&self) -> &'static str {
        match self {
            Plan::Create { .. } => "create",
            Plan::Discard { .. } => "discard",
            Plan::Destroy { .. } => "destroy",
            Plan::Resize { .. } => "resize",
            Plan::Revert(_) => "revert",
            Plan::SrCreate { .. } => "sr-create",
            Plan::SrDestroy { .. } => "sr-destroy",
            Plan::Freeze { .. } => "freeze",
            Plan::Hold { .. } => "hold",
            Plan::Memory { .. } => "memory",
        }
    }

    /// Writes the plan down in this transaction; answers the intent's id.
    pub fn put(&self, tx: &mut Tx<'_>) -> ApiResult<String> {
        tx.put_intent(self.kind(), serde_json::to_value(self).map_err(ApiError::internal)?)
    }

    /// Writes the plan down by itself.
    pub fn write(&self, daemon: &Daemon) -> ApiResult<String> {
        daemon.db.write(|tx| self.put(tx))
    }

    /// `None` for intents of other parts.
    pub fn read(intent: &Intent) -> Option<Plan> {
        serde_json::from_value(intent.body.clone()).ok()
    }

    /// Volumes that the plan names, by SR: they may be there or not without being strange.
    pub fn volumes(&self) -> Vec<(Ref, Uuid)> {
        let one = |sr: &str, volume: &Uuid| (Ref::from(sr), *volume);
        match self {
            Plan::Create { sr, volumes } => volumes.iter().map(|volume| one(sr, volume)).collect(),
            Plan::Destroy { sr, volume, .. } | Plan::Resize { sr, volume, .. } => vec![one(sr, volume)],
            Plan::Revert(plan) => {
                let old = plan.switched.iter().map(|disk| one(&disk.clone.sr, &disk.old));
                old.chain(plan.clones().map(|disk| one(&disk.sr, &disk.volume))).collect()
            }
            Plan::Discard { .. } | Plan::SrCreate { .. } | Plan::SrDestroy { .. } => Vec::new(),
            Plan::Freeze { .. } | Plan::Hold { .. } | Plan::Memory { .. } => Vec::new(),
        }
    }
}

/// Intents of this life of the process whose end failed: nobody is under way with them any more, and they are ended a
/// while later ([`super::reconcile::end_left`]), not only at the next start.
#[derive(Default)]
pub struct Left(Mutex<BTreeSet<String>>);

impl Left {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, intent: &str) {
        self.lock().insert(intent.to_owned());
    }

    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.lock())
    }
}

/// Strikes an intent off by itself.
pub fn clear(daemon: &Daemon, intent: &str) -> ApiResult<()> {
    daemon.db.write(|tx| {
        tx.clear_intent(intent);
        Ok(())
    })
}

/// Undoes a creation: destroys what is there of it and strikes the intent off. When the storage does not answer the
/// intent stays and is undone when the SR is attached again.
pub async fn undo_create(daemon: &Daemon, sr: &Ref, volumes: &[Uuid], intent: &str) -> ApiResult<()> {
    let driver = daemon.storage.driver(sr)?;
    destroy_all(driver.as_ref(), volumes).await?;
    clear(daemon, intent)
}

/// [`undo_create`] after a failure that the caller reports: what goes wrong here is logged.
pub async fn give_up(daemon: &Daemon, sr: &Ref, volumes: &[Uuid], intent: &str) {
    if let Err(error) = undo_create(daemon, sr, volumes, intent).await {
        tracing::warn!(%sr, ?volumes, %error, "what was begun could not be undone; it is tried again");
        daemon.left.add(intent);
    }
}

async fn destroy_all(driver: &dyn Driver, volumes: &[Uuid]) -> ApiResult<()> {
    let mut failed = None;
    for volume in volumes {
        match driver.destroy(*volume).await {
            Err(error) if error.kind != DriverErrorKind::NotFound => failed = Some(error),
            _ => {}
        }
    }
    failed.map_or(Ok(()), |error| Err(driver_error(error)))
}
