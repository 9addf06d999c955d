//! An SR on a group, as a [`Driver`]. The array alone knows what there is: nothing is kept here but hints.
//!
//! Each verb looks, then changes, and may be repeated from its start; one whose session was lost in the middle is repeated
//! here. Verbs that change something run one at a time in this process: most are a few commands of a few milliseconds,
//! and the group takes few sessions anyway.
//!
//! | verb | on the group |
//! |---|---|
//! | create, resize, destroy | [`crate::volumes`] |
//! | snapshot | [`crate::cut`]; the snapshot space is made sure of in [`crate::reserve`] |
//! | clone | [`crate::clones`] |
//! | revert | [`crate::revert`] |
//! | attach, detach | [`crate::access`] |
//! | stat, scan, space | [`crate::facts`] |

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tanada_driver::bridge::Bridges;
use tanada_driver::{
    Alert, AttachRequest, Capabilities, CloneRequest, CreateRequest, CutPair, CutReport, Driver, DriverError,
    DriverErrorKind, DriverResult, Endpoint, Extent, Moved, ScanEntry, SpaceFacts, VolumeFacts, metadata,
};
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::array::{Array, VolumePage, VolumeRow};
use crate::error::sm;
use crate::names::{self, Description, Kind, Role};
use crate::options::Options;
use crate::reserve::LAG;

/// Attempts at a verb whose session was lost, and the time after which none is begun.
const ATTEMPTS_MAX: u32 = 4;
const ATTEMPTS_END: Duration = Duration::from_secs(120);
const ALERTS_MAX: usize = 64;
/// How often the snapshot space is looked at; a group has events only for those who read its syslog or SNMP traps.
const PATROL_PERIOD: Duration = Duration::from_secs(300);

/// What all parts of the driver share.
pub struct Group {
    pub array: Array,
    pub sr: Uuid,
    pub options: Options,
    pub bridges: Bridges,
    /// IQN of the host itself.
    pub initiator: String,
    pub alerts: broadcast::Sender<Alert>,
    /// Held by each verb that changes something.
    pub gate: tokio::sync::Mutex<()>,
    pub opened: Instant,
    /// Told of each cut.
    pub cut_done: Notify,
    hints: Mutex<Hints>,
}

/// Where things were seen last: saves searching, proves nothing.
#[derive(Default)]
pub struct Hints {
    /// Generation: name of its volume.
    pub generations: BTreeMap<Uuid, String>,
    /// Token: name of the volume with the access record.
    pub tokens: BTreeMap<String, String>,
    /// When volumes were cut of late.
    pub cuts: BTreeMap<String, Vec<Instant>>,
    /// Volumes whose snapshot space an alert was about.
    pub warned: BTreeSet<String>,
    /// Whether the firmware takes collections; `None` before it was asked.
    pub collections: Option<bool>,
}

/// A generation on the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    pub id: Uuid,
    pub volume: String,
    pub snapshot: String,
    pub size: u64,
    pub online: bool,
}

/// One of our volumes with what its description says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    pub page: VolumePage,
    pub told: Description,
}

impl Group {
    pub fn new(array: Array, sr: Uuid, options: Options, bridges: Bridges, initiator: String) -> Group {
        let (alerts, gate) = (broadcast::channel(ALERTS_MAX).0, tokio::sync::Mutex::default());
        let (cut_done, hints) = (Notify::new(), Mutex::default());
        Group { array, sr, options, bridges, initiator, alerts, gate, opened: Instant::now(), cut_done, hints }
    }

    pub fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volumes of this SR with what their names say.
    pub async fn rows(&self) -> DriverResult<Vec<(VolumeRow, Role)>> {
        let rows = self.array.volumes().await?.into_iter();
        Ok(rows.filter_map(|row| names::role(self.sr, &row.name).map(|role| (row, role))).collect())
    }

    /// A volume with one of our names. One without a description of ours was interrupted while it was made.
    pub async fn page(&self, name: &str) -> DriverResult<Option<VolumePage>> {
        Ok(self.array.volume(name).await?)
    }

    /// The volume of a disk that is not deleted. A description that is not ours, under a name that is, was changed by
    /// hand, and what the volume is cannot be known.
    pub async fn disk(&self, id: Uuid) -> DriverResult<Option<Ours>> {
        let Some(page) = self.page(&names::volume(self.sr, id)).await? else { return Ok(None) };
        let told = Description::parse(&page.description);
        if told.is_none() && !page.description.is_empty() {
            let words = format!("the description of volume {} is not ours: {:?}", page.name, page.description);
            return Err(DriverError::new(DriverErrorKind::Io, words).with_sm(sm::METADATA));
        }
        Ok(told.filter(|told| told.kind == Kind::Disk && told.id == id).map(|told| Ours { page, told }))
    }

    pub async fn need_disk(&self, id: Uuid) -> DriverResult<Ours> {
        self.disk(id).await?.ok_or_else(|| self.missing(id))
    }

    pub fn missing(&self, id: Uuid) -> DriverError {
        DriverError::new(DriverErrorKind::NotFound, format!("there is no volume or generation {id} on the group"))
    }

    /// The generations of a volume, in the order of the group.
    pub async fn generations(&self, volume: &str) -> DriverResult<Vec<Generation>> {
        let rows = self.array.snapshots(volume).await?;
        let found: Vec<Generation> = rows
            .into_iter()
            .filter_map(|row| {
                let (id, size) = names::parse_snapshot(&row.name)?;
                Some(Generation { id, volume: volume.to_string(), snapshot: row.name, size, online: row.online })
            })
            .collect();
        let mut hints = self.hints();
        hints.generations.extend(found.iter().map(|generation| (generation.id, volume.to_string())));
        Ok(found)
    }

    pub async fn generation(&self, id: Uuid) -> DriverResult<Option<Generation>> {
        let hint = self.hints().generations.get(&id).cloned();
        if let Some(volume) = hint {
            let found = self.generations(&volume).await?.into_iter().find(|generation| generation.id == id);
            if found.is_some() {
                return Ok(found);
            }
            self.hints().generations.remove(&id);
        }
        for (row, role) in self.rows().await? {
            if role == Role::Disk && row.snapshots > 0 {
                let generations = self.generations(&row.name).await?;
                if let Some(found) = generations.into_iter().find(|generation| generation.id == id) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    pub async fn describe(&self, volume: &str, told: &Description) -> DriverResult<()> {
        self.array.on_volume(volume, &format!("description \"{}\"", told.encode())).await?;
        Ok(())
    }

    pub async fn take_offline(&self, page: &VolumePage) -> DriverResult<()> {
        if page.online {
            self.array.on_volume(&page.name, "offline").await?;
        }
        Ok(())
    }
}

/// Repeats a verb whose session was lost. True with it when there was more than one attempt: then the first may have done
/// what the last one found done.
pub async fn again<T, F: Future<Output = DriverResult<T>>>(verb: impl Fn() -> F) -> DriverResult<(T, bool)> {
    let begun = Instant::now();
    let mut attempt = 1;
    loop {
        match verb().await {
            Err(failure)
                if failure.kind == DriverErrorKind::Unreachable
                    && attempt < ATTEMPTS_MAX
                    && begun.elapsed() < ATTEMPTS_END =>
            {
                tracing::info!(%failure, attempt, "a command was lost; the verb is repeated");
                attempt += 1;
            }
            other => return other.map(|value| (value, attempt > 1)),
        }
    }
}

fn moved((moved, repeated): (Moved, bool)) -> Moved {
    Moved { changed: moved.changed || repeated, ..moved }
}

/// The open SR. Dropping it ends its patrol.
pub struct EqualDriver {
    group: Arc<Group>,
    group_snapshot: bool,
    patrol: JoinHandle<()>,
}

impl EqualDriver {
    pub(crate) fn new(group: Group, group_snapshot: bool) -> EqualDriver {
        let group = Arc::new(group);
        let watched = group.clone();
        let patrol = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(PATROL_PERIOD) => {}
                    () = watched.cut_done.notified() => tokio::time::sleep(LAG).await,
                }
                if let Err(failure) = watched.patrol().await {
                    tracing::warn!(%failure, "the snapshot space could not be looked at");
                }
            }
        });
        EqualDriver { group, group_snapshot, patrol }
    }

    /// Looks after the snapshot space now, as is done every few minutes.
    pub async fn patrol(&self) -> DriverResult<()> {
        self.group.patrol().await
    }
}

impl Drop for EqualDriver {
    fn drop(&mut self) {
        self.patrol.abort();
    }
}

#[async_trait]
impl Driver for EqualDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            thin: true,
            offloaded: true,
            group_snapshot: self.group_snapshot,
            constant_time: true,
            revert_in_place: true,
            exact_difference: false,
            resize_online: true,
            shared: true,
            // True for clones of disks, and for the first instance of a generation: the array makes a template of it.
            clone_is_copy: true,
        }
    }

    async fn create(&self, request: &CreateRequest) -> DriverResult<(u64, Moved)> {
        let _gate = self.group.gate.lock().await;
        let ((size, done), repeated) = again(|| self.group.create(request)).await?;
        Ok((size, moved((done, repeated))))
    }

    async fn resize(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)> {
        let _gate = self.group.gate.lock().await;
        let ((size, done), repeated) = again(|| self.group.resize(volume, size)).await?;
        Ok((size, moved((done, repeated))))
    }

    async fn destroy(&self, target: Uuid) -> DriverResult<Moved> {
        let _gate = self.group.gate.lock().await;
        again(|| self.group.destroy(target)).await.map(moved)
    }

    async fn snapshot(&self, pairs: &[CutPair]) -> DriverResult<CutReport> {
        let _gate = self.group.gate.lock().await;
        let (report, repeated) = again(|| self.group.cut(pairs)).await?;
        Ok(CutReport { moved: moved((report.moved, repeated)), ..report })
    }

    async fn clone_volume(&self, request: &CloneRequest) -> DriverResult<Moved> {
        let _gate = self.group.gate.lock().await;
        again(|| self.group.clone_volume(request)).await.map(moved)
    }

    async fn revert(&self, volume: Uuid, generation: Uuid) -> DriverResult<Moved> {
        let _gate = self.group.gate.lock().await;
        again(|| self.group.revert(volume, generation)).await.map(moved)
    }

    async fn difference(&self, _from: Uuid, _to: Uuid) -> DriverResult<Vec<Extent>> {
        let words = "an EqualLogic group does not tell what differs between two generations";
        Err(DriverError::new(DriverErrorKind::Unsupported, words))
    }

    async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint> {
        let _gate = self.group.gate.lock().await;
        again(|| self.group.attach(request)).await.map(|(endpoint, _)| endpoint)
    }

    async fn detach(&self, token: &str) -> DriverResult<Moved> {
        let _gate = self.group.gate.lock().await;
        again(|| self.group.detach(token)).await.map(moved)
    }

    async fn attachments(&self) -> DriverResult<Vec<String>> {
        let users = self.group.array.chap_users().await?;
        Ok(users.iter().filter_map(|user| names::token_of(self.group.sr, user)).map(str::to_string).collect())
    }

    async fn stat(&self, target: Uuid) -> DriverResult<VolumeFacts> {
        self.group.stat(target).await
    }

    async fn space(&self) -> DriverResult<SpaceFacts> {
        self.group.space().await
    }

    async fn scan(&self) -> DriverResult<Vec<ScanEntry>> {
        self.group.scan().await
    }

    async fn settle(&self) -> DriverResult<()> {
        let _gate = self.group.gate.lock().await;
        again(|| self.group.tidy()).await.map(|((), _)| ())
    }

    async fn put_metadata(&self, text: &[u8]) -> DriverResult<()> {
        self.with_management(true, async |endpoint| metadata::put(&self.group.bridges, &endpoint, text).await).await
    }

    async fn metadata(&self) -> DriverResult<Option<Vec<u8>>> {
        self.with_management(false, async |endpoint| metadata::get(&self.group.bridges, &endpoint).await).await
    }

    fn alerts(&self) -> broadcast::Receiver<Alert> {
        self.group.alerts.subscribe()
    }
}

impl EqualDriver {
    /// Attaches the management volume to this host for the time of `use_it`.
    async fn with_management<T>(
        &self,
        writable: bool,
        use_it: impl AsyncFnOnce(Endpoint) -> DriverResult<T>,
    ) -> DriverResult<T> {
        let token = format!("metadata-{}", Uuid::new_v4().simple());
        let initiator = self.group.initiator.clone();
        // Nil: the management volume has no id of its own.
        let request = AttachRequest { token: token.clone(), target: Uuid::nil(), writable, initiator };
        let used = match self.attach(&request).await {
            Ok(endpoint) => use_it(endpoint).await,
            Err(failure) => Err(failure),
        };
        let ended = self.detach(&token).await;
        let value = used?;
        ended?;
        Ok(value)
    }
}
