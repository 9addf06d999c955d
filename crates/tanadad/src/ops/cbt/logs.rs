//! The logs on disk: one file for each, `<state>/cbt/<SR's uuid>/<volume>`, a line of JSON and then the bitmap's bytes.
//!
//! What a log says is in memory as well, except the bitmaps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tanada_xapi::{ApiError, ApiResult};
use tokio::sync::RwLock;
use uuid::Uuid;

use super::bitmap::Bitmap;
use crate::files;

/// What a log says beside its bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The generation whose place in time it keeps.
    pub volume: Uuid,
    /// Reference of the disk that it is a snapshot of.
    pub disk: String,
    /// When it was taken, in seconds since 1970.
    pub taken: i64,
    /// The bitmap tells what changed from `volume` to here. Its own volume: nothing yet, and the volume is still there.
    pub next: Uuid,
}

impl Log {
    pub fn is_pending(&self) -> bool {
        self.next == self.volume
    }
}

/// All logs. Whoever changes those of an SR holds its [`Logs::turn`] for writing; whoever reads several in a row, or destroys
/// a volume that none may come to name, for reading.
pub struct Logs {
    dir: PathBuf,
    known: Mutex<BTreeMap<(Uuid, Uuid), Log>>,
    /// SR and volume of logs that lead further, while nobody knows whether the volume is gone.
    done_with: Mutex<BTreeSet<(Uuid, Uuid)>>,
    /// SRs whose logs have to be gone through once more, all of them.
    left: Mutex<BTreeSet<Uuid>>,
    turns: Mutex<BTreeMap<Uuid, Arc<RwLock<()>>>>,
}

impl Logs {
    pub fn new(dir: PathBuf) -> Logs {
        Logs {
            dir,
            known: Mutex::default(),
            done_with: Mutex::default(),
            left: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(Uuid, Uuid), Log>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of one SR: an array that does not answer keeps nobody else waiting.
    pub fn turn(&self, sr: Uuid) -> Arc<RwLock<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(sr).or_default())
    }

    /// Reads what an earlier life of the process left.
    pub fn load(&self) -> io::Result<()> {
        let Some(srs) = entries(&self.dir)? else { return Ok(()) };
        for sr in srs {
            for volume in entries(&self.dir.join(sr.to_string()))?.unwrap_or_default() {
                match self.read(sr, volume) {
                    Ok((log, _)) => self.learn(sr, log),
                    // Without it the next backup is a full one.
                    Err(error) => tracing::warn!(%sr, %volume, %error, "a log of changed blocks cannot be read"),
                }
            }
        }
        Ok(())
    }

    fn learn(&self, sr: Uuid, log: Log) {
        if !log.is_pending() {
            self.done_with.lock().unwrap_or_else(PoisonError::into_inner).insert((sr, log.volume));
        }
        self.known().insert((sr, log.volume), log);
    }

    /// Volumes of an SR that are to be destroyed.
    pub fn done_with(&self, sr: Uuid) -> Vec<Uuid> {
        let all = self.done_with.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(at, _)| *at == sr).map(|(_, volume)| *volume).collect()
    }

    pub fn is_gone(&self, sr: Uuid, volume: Uuid) {
        self.done_with.lock().unwrap_or_else(PoisonError::into_inner).remove(&(sr, volume));
    }

    /// Something could not be done with a log of this SR.
    pub fn leave(&self, sr: Uuid) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(sr);
    }

    /// Was something left there? It is somebody's business now.
    pub fn take_left(&self, sr: Uuid) -> bool {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).remove(&sr)
    }

    pub fn has_left(&self, sr: Uuid) -> bool {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).contains(&sr)
    }

    /// Is a log of this SR such?
    pub fn any(&self, sr: Uuid, is_such: impl Fn(&Log) -> bool) -> bool {
        self.known().iter().any(|((at, _), log)| *at == sr && is_such(log))
    }

    pub fn is_empty(&self) -> bool {
        self.known().is_empty()
    }

    /// SRs that have logs.
    pub fn srs(&self) -> Vec<Uuid> {
        let mut srs: Vec<Uuid> = self.known().keys().map(|(sr, _)| *sr).collect();
        srs.dedup();
        srs
    }

    /// The logs of one SR.
    pub fn of(&self, sr: Uuid) -> BTreeMap<Uuid, Log> {
        self.known().iter().filter(|((at, _), _)| *at == sr).map(|((_, volume), log)| (*volume, log.clone())).collect()
    }

    pub fn knows(&self, sr: Uuid, volume: Uuid) -> bool {
        self.known().contains_key(&(sr, volume))
    }

    /// Durable when it returns.
    pub fn save(&self, sr: Uuid, log: &Log, changed: &Bitmap) -> ApiResult<()> {
        let dir = self.dir.join(sr.to_string());
        let mut content = serde_json::to_vec(log).map_err(ApiError::internal)?;
        content.push(b'\n');
        content.extend_from_slice(changed.as_bytes());
        let written = files::create_private_dir(&dir)
            .and_then(|()| files::write_private(&dir.join(log.volume.to_string()), &content));
        written.map_err(|error| ApiError::internal(format!("the log of {} cannot be kept: {error}", log.volume)))?;
        self.learn(sr, log.clone());
        Ok(())
    }

    /// What changed from `volume` to the log's `next`.
    pub fn bitmap(&self, sr: Uuid, volume: Uuid) -> ApiResult<Bitmap> {
        let read = self.read(sr, volume);
        read.map(|(_, changed)| changed)
            .map_err(|error| ApiError::internal(format!("the log of {volume} cannot be read: {error}")))
    }

    fn read(&self, sr: Uuid, volume: Uuid) -> io::Result<(Log, Bitmap)> {
        let wrong = |words: &str| io::Error::new(io::ErrorKind::InvalidData, words.to_owned());
        let content = fs::read(self.dir.join(sr.to_string()).join(volume.to_string()))?;
        let end = content.iter().position(|byte| *byte == b'\n').ok_or_else(|| wrong("it has no first line"))?;
        let log: Log = serde_json::from_slice(&content[..end])?;
        if log.volume != volume {
            return Err(wrong("it is another volume's"));
        }
        Ok((log, Bitmap::from_bytes(content[end + 1..].to_vec())))
    }

    pub fn remove(&self, sr: Uuid, volume: Uuid) -> ApiResult<()> {
        match fs::remove_file(self.dir.join(sr.to_string()).join(volume.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ApiError::internal(format!("the log of {volume} cannot be removed: {error}")));
            }
            _ => {}
        }
        self.known().remove(&(sr, volume));
        Ok(())
    }

    /// The SR is destroyed, and all that the logs name with it.
    pub fn forget_sr(&self, sr: Uuid) {
        self.known().retain(|(at, _), _| *at != sr);
        self.done_with.lock().unwrap_or_else(PoisonError::into_inner).retain(|(at, _)| *at != sr);
        match fs::remove_dir_all(self.dir.join(sr.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%sr, %error, "logs of changed blocks are left over");
            }
            _ => {}
        }
    }
}

/// The entries of a directory that are named by a UUID; `None` where there is no such directory.
fn entries(dir: &std::path::Path) -> io::Result<Option<Vec<Uuid>>> {
    let found = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in found {
        names.extend(entry?.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok()));
    }
    Ok(Some(names))
}

#[cfg(test)]
mod tests {
    use super::{Bitmap, Log, Logs};
    use uuid::Uuid;

    #[test]
    fn logs_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let sr = Uuid::from_u128(1);
        let log = Log { volume: Uuid::from_u128(2), disk: "OpaqueRef:d".into(), taken: 77, next: Uuid::from_u128(3) };
        let logs = Logs::new(dir.path().join("cbt"));
        logs.load().unwrap();
        assert!(logs.is_empty());
        // A newline in the bitmap is no end of the first line.
        let changed = Bitmap::from_bytes(vec![b'\n', 0, 0xff]);
        logs.save(sr, &log, &changed).unwrap();

        let again = Logs::new(dir.path().join("cbt"));
        again.load().unwrap();
        assert_eq!(again.of(sr).into_values().next(), Some(log.clone()));
        assert_eq!(again.bitmap(sr, log.volume).unwrap(), changed);
        assert_eq!(again.srs(), [sr]);
        again.remove(sr, log.volume).unwrap();
        again.remove(sr, log.volume).unwrap();
        assert!(again.is_empty() && logs.bitmap(sr, log.volume).is_err());
    }
}
