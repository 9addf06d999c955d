//! One SR on one array: what the verbs of a driver mean there.
//!
//! The array is the only record. Every verb looks first, does what is missing, and can be repeated after any failure;
//! nothing is remembered between verbs. Invariants:
//!
//! - A LUN is a disk of the SR when its identity names itself ([`crate::names`]). Identity is written after the blocks are
//!   there, so a disk that can be seen is whole.
//! - A LUN that is not finished is never adopted: what it holds may be older than the call. It is deleted and made again.
//! - Snapshots of FlexVols and consistency groups live for the seconds of a cut. Those that stay behind bear this host's
//!   tag, so that it can tell its own leftovers from another host's work.
//! - Blocks move inside the array only; no verb here reads or writes a disk.
//!
//! What may run at the same time, within one process:
//!
//! | | create | cut of several | attach, detach | others |
//! |---|---|---|---|---|
//! | create | in turn where FlexVols are chosen | yes | yes | yes |
//! | cut of several | yes | in turn | yes | yes |
//! | attach, detach | yes | yes | in turn for one initiator | yes |

mod attach;
mod container;
mod cut;
mod facts;
mod metadata;
mod place;
mod reap;
mod volume;

use std::collections::BTreeMap;
use std::sync::Arc;

use ring::digest;
use serde_json::json;
use tanada_driver::bridge::Bridges;
use tanada_driver::{DriverError, DriverErrorKind, DriverResult};
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use crate::array::Array;
use crate::config::Config;
use crate::model::{FlexVol, Lun};
use crate::names::{self, Container, Identity, Kind, TOKEN_PREFIX};
use crate::tls::hex;

pub use place::VMHINT;
pub use reap::reaper;

/// An open SR.
pub struct Sr {
    array: Array,
    sr: Uuid,
    config: Config,
    /// Written into the comments of FlexVols that are made later.
    container: Container,
    /// Eight digits that are this host's alone.
    host: String,
    /// IQN under which the host itself logs in.
    initiator: String,
    bridges: Bridges,
    placing: Mutex<()>,
    cutting: Mutex<()>,
    keeping: Mutex<()>,
    left_over: Arc<Notify>,
}

impl Sr {
    pub fn new(array: Array, config: Config, container: Container, initiator: String, bridges: Bridges) -> Sr {
        let host = host_tag(&initiator);
        Sr {
            array,
            sr: container.sr,
            config,
            container,
            host,
            initiator,
            bridges,
            placing: Mutex::new(()),
            cutting: Mutex::new(()),
            keeping: Mutex::new(()),
            left_over: Arc::default(),
        }
    }

    /// Told when a cut leaves something for the reaper.
    pub fn left_over(&self) -> Arc<Notify> {
        self.left_over.clone()
    }

    pub fn array(&self) -> &Array {
        &self.array
    }

    fn pattern(&self) -> String {
        names::flexvol_pattern(self.sr)
    }

    /// The SR's FlexVols, by number.
    pub async fn flexvols(&self) -> DriverResult<Vec<FlexVol>> {
        let found = self.array.flexvols(&self.pattern()).await?;
        Ok(found.into_iter().filter(|one| self.owns_flexvol(&one.name)).collect())
    }

    fn owns_flexvol(&self, name: &str) -> bool {
        names::parse_flexvol(name).is_some_and(|(sr, _)| sr == self.sr)
    }

    /// All LUNs in the SR's FlexVols, whosever they are.
    async fn luns(&self) -> DriverResult<Vec<Lun>> {
        let found = self.array.luns(&self.pattern()).await?;
        Ok(found.into_iter().filter(|lun| self.owns_flexvol(lun.flexvol())).collect())
    }

    /// LUNs by the ids that are their names, finished or not. Two of one name (in two FlexVols) are not made by this
    /// driver unless the array showed it an old list; the finished one counts.
    async fn find(&self, ids: &[Uuid]) -> DriverResult<BTreeMap<Uuid, Lun>> {
        let wanted: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        let mut found = BTreeMap::new();
        for lun in self.array.luns_named(&self.pattern(), &wanted).await? {
            let Ok(id) = Uuid::try_parse(lun.base()) else { continue };
            if !self.owns_flexvol(lun.flexvol()) || !ids.contains(&id) {
                continue;
            }
            if Identity::of(&lun).is_some() || !found.contains_key(&id) {
                found.insert(id, lun);
            }
        }
        Ok(found)
    }

    /// A finished disk and who it is.
    async fn disk(&self, id: Uuid) -> DriverResult<(Lun, Identity)> {
        let found = self.find(&[id]).await?.remove(&id);
        found.and_then(|lun| Identity::of(&lun).map(|identity| (lun, identity))).ok_or_else(|| self.no_disk(id))
    }

    fn no_disk(&self, id: Uuid) -> DriverError {
        let words = format!("there is no disk {id} in the FlexVols of SR {} on SVM {}", self.sr, self.array.svm().name);
        DriverError::new(DriverErrorKind::NotFound, words)
    }

    fn identity(&self, vdi: Uuid, kind: Kind, parent: Option<Uuid>) -> Identity {
        Identity { sr: self.sr, vdi, kind, parent }
    }

    /// Makes a LUN the disk that `identity` says, and sees to it that space comes back when a guest discards. The comment
    /// is what finishes it. Writes what differs, so that a finished one costs nothing.
    async fn finish(&self, lun: Lun, identity: &Identity, name_label: &str) -> DriverResult<Lun> {
        let thin = lun.space.scsi_thin_provisioning_support_enabled;
        if !thin || lun.comment != identity.comment() {
            let body = json!({
                "comment": identity.comment(),
                "space": {"scsi_thin_provisioning_support_enabled": true},
            });
            self.array.change_lun(&lun.uuid, &body).await?;
        }
        self.finish_attributes(&lun, identity, name_label).await?;
        if thin {
            return Ok(lun);
        }
        let again = self.array.lun_by_uuid(&lun.uuid).await?;
        let again = self.array.must(again, &lun.name)?;
        if again.space.scsi_thin_provisioning_support_enabled {
            return Ok(again);
        }
        let words = format!("LUN {} does not keep space reclamation switched on", lun.name);
        Err(DriverError::new(DriverErrorKind::Io, words))
    }

    /// Attributes repeat the comment for people and tools. An account that may not write them has the comment alone.
    async fn finish_attributes(&self, lun: &Lun, identity: &Identity, name_label: &str) -> DriverResult<()> {
        let mut wanted = identity.attributes();
        let label: String = name_label.chars().take(500).collect();
        if !label.is_empty() {
            wanted.push(("tanada.name", label));
        }
        for (name, value) in &wanted {
            if lun.attribute(name) == Some(value) {
                continue;
            }
            match self.array.set_attribute(&lun.uuid, name, value).await {
                Err(error) if error.is_denied() => return Ok(()),
                other => other?,
            }
        }
        let inherited = |name: &str| name.starts_with(TOKEN_PREFIX) || (name == "tanada.name" && name_label.is_empty());
        let own = |value: &str| value.starts_with(&format!("{} ", lun.base()));
        for attribute in lun.attributes.iter().filter(|one| inherited(&one.name) && !own(&one.value)) {
            self.array.delete_attribute(&lun.uuid, &attribute.name).await?;
        }
        Ok(())
    }
}

/// The same for every life of the process on this host.
fn host_tag(initiator: &str) -> String {
    hex(&digest::digest(&digest::SHA256, initiator.as_bytes()).as_ref()[..4])
}

/// Sixteen digits that were not used before.
fn operation() -> String {
    Uuid::new_v4().simple().to_string()[..16].to_owned()
}
