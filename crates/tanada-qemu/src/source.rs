//! Where a disk's blocks come from, as QEMU is told of it.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::{QemuError, Result};
use crate::machine::{check_socket_path, node_id};

/// Seconds that QEMU holds a guest's requests while the disk server is away before it stops the guest.
pub const RECONNECT_DELAY_S: u32 = 300;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// An NBD server on a unix socket.
    Nbd {
        socket: PathBuf,
        /// May be a secret.
        export: String,
    },
    Iscsi(Lun),
}

/// A LUN on an array. QEMU's initiator uses one portal: the first that answers when the disk is plugged. When that goes
/// away later it connects again without end, and the guest waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lun {
    /// `host:port`, the best first.
    pub portals: Vec<String>,
    pub iqn: String,
    pub number: u32,
    /// IQN that the machine logs in with.
    pub initiator: String,
    pub chap: Option<ChapLogin>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct ChapLogin {
    pub user: String,
    pub secret: String,
}

impl fmt::Debug for ChapLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChapLogin").field("user", &self.user).finish_non_exhaustive()
    }
}

impl DiskSource {
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            DiskSource::Nbd { socket, .. } => check_socket_path(socket),
            DiskSource::Iscsi(lun) if lun.portals.is_empty() => {
                Err(QemuError::Spec(format!("target {}: at least one portal is needed", lun.iqn)))
            }
            DiskSource::Iscsi(_) => Ok(()),
        }
    }

    /// What distinguishes this source for `blockdev-add`; one of these for each way to reach it, the best first.
    pub(crate) fn ways(&self, disk: Uuid) -> Vec<Value> {
        match self {
            DiskSource::Nbd { socket, export } => vec![json!({
                "driver": "nbd",
                "server": { "type": "unix", "path": socket.display().to_string() },
                "export": export,
                "reconnect-delay": RECONNECT_DELAY_S,
            })],
            DiskSource::Iscsi(lun) => lun.portals.iter().map(|portal| lun.way(portal, disk)).collect(),
        }
    }

    /// The secret object that [`DiskSource::ways`] refers to, as arguments of `object-add`. Needed only while the disk
    /// is being opened.
    pub(crate) fn secret(&self, disk: Uuid) -> Option<Value> {
        let DiskSource::Iscsi(Lun { chap: Some(chap), .. }) = self else { return None };
        Some(json!({ "qom-type": "secret", "id": secret_id(disk), "data": chap.secret }))
    }
}

impl Lun {
    fn way(&self, portal: &str, disk: Uuid) -> Value {
        let mut way = json!({
            "driver": "iscsi",
            "transport": "tcp",
            "portal": portal,
            "target": self.iqn,
            "lun": self.number,
            "initiator-name": self.initiator,
        });
        if let Some(chap) = &self.chap {
            way["user"] = chap.user.as_str().into();
            way["password-secret"] = secret_id(disk).into();
        }
        way
    }
}

pub(crate) fn secret_id(disk: Uuid) -> String {
    format!("chap-{}", node_id(disk))
}
