//! The array: a state machine over FlexVols, LUNs, snapshots, groups and access, apart from HTTP.
//!
//! - Every change goes through a method here, under one lock, and ends with [`Array::settle`]: the state is written to
//!   the directory and what initiators see is brought in line with the maps.
//! - A FlexVol snapshot holds all LUNs of its volume; snapshots of one or several volumes are cut at one instant.
//! - A LUN clone lives in the FlexVol of its source, has a serial number and uuid of its own, no maps, and its thin flag
//!   is off. While its blocks are still being shared (`split_ms`) the volume takes no snapshot and the snapshot that it
//!   came from cannot be deleted.
//! - Sharing of blocks costs nothing in time or space only where the directory's file system has reflinks; what is
//!   reported as used is what an array would report, as nearly as that can be known from files (see [`space`]).

mod access;
mod flexclone;
mod group;
mod instant;
mod lun;
mod lun_clone;
mod names;
mod present;
mod snapshot;
mod space;
pub mod state;
mod volume;

pub use access::{CredentialChange, MapRequest, NewIgroup};
pub use instant::SnapshotWish;
pub use lun::{LunChange, NewLun};
pub use lun_clone::{CloneSource, CloneWish};
pub use present::Doorkeeper;
pub use volume::{NewVolume, VolumeChange};

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sim_target::Target;
use sim_target::router::Router;
use uuid::Uuid;

use crate::api::error::{ApiError, ApiResult};
use crate::options::Options;
use state::State;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time as ONTAP writes it: whole seconds, with offset.
pub fn timestamp() -> String {
    let seconds = i64::try_from(now_ms() / 1000).unwrap_or(0);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    time.to_string().replace('Z', "+00:00")
}

/// The whole array behind one lock.
pub struct Array {
    pub state: State,
    pub options: Options,
    pub target: Arc<Target>,
    pub router: Arc<Router>,
    doorkeeper: Arc<Doorkeeper>,
    dir: PathBuf,
    /// Two-phase group snapshots that were started and not committed: group, snapshot's name and comment, deadline.
    started: Vec<group::Started>,
    loose: Vec<group::Loose>,
    /// When LUNs and snapshots were made, as long as readers may not know them yet.
    born: BTreeMap<Uuid, u64>,
}

impl Array {
    pub fn new(
        state: State,
        options: Options,
        target: Arc<Target>,
        router: Arc<Router>,
        doorkeeper: Arc<Doorkeeper>,
    ) -> ApiResult<Array> {
        let dir = options.dir.clone();
        let mut array = Array {
            state,
            options,
            target,
            router,
            doorkeeper,
            dir,
            started: Vec::new(),
            loose: Vec::new(),
            born: BTreeMap::new(),
        };
        array.settle()?;
        Ok(array)
    }

    /// Ends a change: writes the state, shows what the maps say.
    pub fn settle(&mut self) -> ApiResult<()> {
        self.present()?;
        save(&self.dir, &self.state).map_err(|error| ApiError::internal(format!("saving the state: {error}")))
    }

    /// Notes that something is new: with a lag, readers learn of it later.
    fn note_birth(&mut self, uuid: Uuid) {
        if self.options.lag_ms > 0 {
            self.born.insert(uuid, now_ms());
        }
    }

    /// Whether readers may not know of this yet.
    pub fn is_unseen(&self, uuid: &str) -> bool {
        let born = Uuid::parse_str(uuid).ok().and_then(|uuid| self.born.get(&uuid));
        born.is_some_and(|born| now_ms() < born + self.options.lag_ms)
    }

    /// What happens by itself as time goes by.
    pub fn tick(&mut self) -> ApiResult<()> {
        self.forget_ended_splits();
        let (now, lag) = (now_ms(), self.options.lag_ms);
        self.born.retain(|_, born| now < *born + lag);
        self.end_flexclone_splits();
        if self.watch_space() { self.settle() } else { Ok(()) }
    }

    fn lun_file(&self, volume: Uuid, lun: Uuid) -> PathBuf {
        self.volume_dir(volume).join(lun.to_string())
    }

    fn snapshot_file(&self, volume: Uuid, snapshot: Uuid, lun: Uuid) -> PathBuf {
        self.volume_dir(volume).join(format!("{snapshot}.{lun}"))
    }

    fn volume_dir(&self, volume: Uuid) -> PathBuf {
        self.dir.join("volumes").join(volume.to_string())
    }

    pub fn svm(&self, name: &str) -> ApiResult<&state::Svm> {
        let found = self.state.svms.iter().find(|svm| svm.name == name);
        found.ok_or_else(|| ApiError::missing(2621462, format!("SVM \"{name}\" does not exist.")))
    }
}

fn save(dir: &Path, state: &State) -> std::io::Result<()> {
    let text = serde_json::to_vec(state)?;
    let fresh = dir.join("state.json.new");
    fs::write(&fresh, text)?;
    fs::rename(fresh, dir.join("state.json"))
}

/// What an earlier run left in the directory.
pub fn load(dir: &Path) -> std::io::Result<Option<State>> {
    match fs::read(dir.join("state.json")) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn io_error(what: &str) -> impl Fn(std::io::Error) -> ApiError {
    move |error| ApiError::internal(format!("{what}: {error}"))
}
