//! Any endpoint as NBD on a unix socket, for whatever the host itself reads and writes: transfers, copies, metadata.
//!
//! ```text
//!   NbdUnix ------------------------------------------> as it is
//!   Iscsi   --> qemu-storage-daemon (iscsi -> nbd) ----> a socket in a directory of its own
//! ```
//! One process for each open bridge. It is told everything over its monitor, on its standard input: neither passwords nor
//! names are on a command line or in a file. It ends with the [`Bridge`], and with this process however that ends.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tanada_nbd::client::{Client, NbdError};
use uuid::Uuid;

use crate::qsd::{Qsd, Refusal};
use crate::{Chap, DriverError, DriverErrorKind, DriverResult, Endpoint};

/// Seconds after which a request that the target does not answer fails: transfers tell their callers, guests wait.
const REQUEST_TIMEOUT_S: u32 = 60;
/// Names of nodes and objects; each bridge has a process of its own.
const NODE: &str = "disk";

/// Makes bridges. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bridges {
    dir: Arc<PathBuf>,
}

impl Bridges {
    /// Sockets go below `dir`, which is made when it is needed (mode 0700). What a killed process left there is of no
    /// use to anybody.
    pub fn new(dir: PathBuf) -> Bridges {
        Bridges { dir: Arc::new(dir) }
    }

    /// Reaches an attached volume as NBD.
    ///
    /// # Errors
    /// `Unreachable` where no portal answers, `NotFound` where the LUN is not there, `Io` where the login is refused or
    /// the program is not installed.
    pub async fn open(&self, endpoint: &Endpoint, writable: bool) -> DriverResult<Bridge> {
        match endpoint {
            Endpoint::NbdUnix { socket, export } => {
                Ok(Bridge { socket: socket.clone(), export: export.clone(), served: None })
            }
            Endpoint::Iscsi { portals, iqn, lun, initiator, chap } => {
                let target = Target { iqn, lun: *lun, initiator, chap: chap.as_ref() };
                let mut last = DriverError::new(DriverErrorKind::InvalidArgument, format!("{iqn} has no portal"));
                for portal in portals {
                    match self.serve(portal, &target, writable).await {
                        Ok(bridge) => return Ok(bridge),
                        Err(error) if error.kind == DriverErrorKind::Unreachable => last = error,
                        Err(error) => return Err(error),
                    }
                }
                Err(last)
            }
        }
    }

    async fn serve(&self, portal: &str, target: &Target<'_>, writable: bool) -> DriverResult<Bridge> {
        let name = Uuid::new_v4().simple().to_string();
        let place = Place::make(self.dir.join(&name)).map_err(|error| local(&self.dir, &error))?;
        let socket = place.0.join("nbd.sock");
        let mut qsd = Qsd::start().await.map_err(|error| target.refused(portal, error))?;
        let told = target.tell(&mut qsd, portal, &socket, &name, writable).await;
        told.map_err(|error| target.refused(portal, error))?;
        Ok(Bridge { socket, export: name, served: Some(Served { qsd, _place: place }) })
    }
}

/// An open bridge. Dropping it ends its process without waiting; [`Bridge::close`] waits.
pub struct Bridge {
    socket: PathBuf,
    export: String,
    served: Option<Served>,
}

struct Served {
    qsd: Qsd,
    _place: Place,
}

impl Bridge {
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Opens the volume to whoever reaches the socket: treat it as a secret.
    pub fn export(&self) -> &str {
        &self.export
    }

    pub async fn connect(&self) -> Result<Client, NbdError> {
        Client::connect_unix(&self.socket, &self.export).await
    }

    /// Ends it. Flush before: what was not flushed may be lost.
    pub async fn close(self) {
        if let Some(served) = self.served {
            served.qsd.end().await;
        }
    }

    /// The process behind it, for tests.
    pub fn pid(&self) -> Option<u32> {
        self.served.as_ref().and_then(|served| served.qsd.pid())
    }
}

/// A directory that goes with its owner.
struct Place(PathBuf);

impl Place {
    fn make(dir: PathBuf) -> io::Result<Place> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Place(dir))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: it holds nothing but a dead socket.
        drop(fs::remove_dir_all(&self.0));
    }
}

struct Target<'a> {
    iqn: &'a str,
    lun: u32,
    initiator: &'a str,
    chap: Option<&'a Chap>,
}

impl Target<'_> {
    async fn tell(
        &self,
        qsd: &mut Qsd,
        portal: &str,
        socket: &Path,
        export: &str,
        writable: bool,
    ) -> Result<(), Refusal> {
        let mut node = json!({
            "driver": "iscsi",
            "node-name": NODE,
            "transport": "tcp",
            "portal": portal,
            "target": self.iqn,
            "lun": self.lun,
            "initiator-name": self.initiator,
            "timeout": REQUEST_TIMEOUT_S,
            "read-only": !writable,
            "discard": "unmap",
            "cache": { "direct": true, "no-flush": false },
        });
        if let Some(chap) = self.chap {
            qsd.execute("object-add", json!({ "qom-type": "secret", "id": "chap", "data": chap.secret.expose() }))
                .await?;
            node["user"] = chap.user.as_str().into();
            node["password-secret"] = "chap".into();
        }
        qsd.execute("blockdev-add", node).await?;
        let address = json!({ "type": "unix", "data": { "path": socket } });
        qsd.execute("nbd-server-start", json!({ "addr": address })).await?;
        let export = json!({ "type": "nbd", "id": "export", "node-name": NODE, "name": export, "writable": writable });
        qsd.execute("block-export-add", export).await
    }

    fn refused(&self, portal: &str, refusal: Refusal) -> DriverError {
        let (kind, words) = match refusal {
            Refusal::Program(words) => (DriverErrorKind::Io, words),
            Refusal::Deadline => (DriverErrorKind::Unreachable, String::from("no answer in time")),
            Refusal::Command(words) => (kind_of(&words), words),
        };
        DriverError::new(kind, format!("{} LUN {} at {portal}: {words}", self.iqn, self.lun))
    }
}

/// libiscsi has no codes, only words.
fn kind_of(words: &str) -> DriverErrorKind {
    if words.contains("LOGICAL_UNIT_NOT_SUPPORTED") || words.contains("Target not found") {
        DriverErrorKind::NotFound
    } else if words.contains("uthenti") || words.contains("uthoriz") {
        DriverErrorKind::Io
    } else {
        DriverErrorKind::Unreachable
    }
}

fn local(path: &Path, failure: &io::Error) -> DriverError {
    DriverError::new(DriverErrorKind::Io, format!("{}: {failure}", path.display()))
}
