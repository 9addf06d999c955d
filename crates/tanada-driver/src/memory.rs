//! An SR in memory, as exact as the real one and able to fail where a test says: a second witness for everything that
//! is written against [`Driver`].
//!
//! Blocks are single numbers. A failure is planned by counting changing verbs: the n-th one fails, either with nothing
//! done ([`Fault::Before`]) or with everything done and the answer lost ([`Fault::After`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, broadcast};
use uuid::Uuid;

use crate::registry::{Backend, ConfigKey, DriverType, Found, SrConfig};
use crate::{
    Alert, AttachRequest, Capabilities, CloneRequest, CreateRequest, CutPair, CutReport, Driver, DriverError,
    DriverErrorKind, DriverResult, Endpoint, Extent, Moved, ScanEntry, SpaceFacts, VolumeFacts,
};

const BLOCK: u64 = 4096;
const PHYSICAL: u64 = 1 << 40;

pub static FACTS: DriverType = DriverType {
    name: "memory",
    name_label: "Memory",
    description: "An SR in memory, for tests",
    vendor: "Tanada",
    copyright: "The Tanada contributors",
    version: "1",
    required_api_version: "1.0",
    shared: false,
    features: &[
        ("SR_CREATE", 1),
        ("SR_DELETE", 1),
        ("SR_SCAN", 1),
        ("SR_UPDATE", 1),
        ("SR_PROBE", 1),
        ("VDI_CREATE", 1),
        ("VDI_DELETE", 1),
        ("VDI_ATTACH", 1),
        ("VDI_DETACH", 1),
        ("VDI_RESIZE", 1),
        ("VDI_CLONE", 1),
        ("VDI_SNAPSHOT", 1),
        ("VDI_CONFIG_CBT", 1),
        ("VDI_UPDATE", 1),
        ("VDI_INTRODUCE", 1),
        ("VDI_REVERT", 1),
    ],
    configuration: &[ConfigKey::required("location", "any word", 94)],
    options: &[],
};

/// When a planned failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing was done.
    Before,
    /// All was done, but the caller hears an error.
    After,
}

#[derive(Debug, Clone)]
struct Volume {
    is_generation: bool,
    parent: Option<Uuid>,
    size: u64,
    blocks: Arc<BTreeMap<u64, u64>>,
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<Uuid, Volume>,
    attached: BTreeMap<String, (Uuid, bool)>,
    metadata: Option<Vec<u8>>,
    calls: u64,
    plan: Option<(u64, Fault, DriverErrorKind)>,
    /// Steps (a verb has one before and one after its effect) until one does not return.
    pause_in: Option<u64>,
}

/// All clones are the same storage, so that a test can "restart" what is above it.
#[derive(Clone)]
pub struct MemoryDriver {
    state: Arc<Mutex<State>>,
    alerts: broadcast::Sender<Alert>,
    paused: Arc<Notify>,
    revert_in_place: bool,
    group_snapshot: bool,
    clone_is_copy: bool,
}

impl Default for MemoryDriver {
    fn default() -> MemoryDriver {
        MemoryDriver {
            state: Arc::default(),
            alerts: broadcast::channel(16).0,
            paused: Arc::default(),
            revert_in_place: true,
            group_snapshot: true,
            clone_is_copy: false,
        }
    }
}

impl MemoryDriver {
    /// A storage that can only clone, as arrays without a restore are.
    pub fn without_revert() -> MemoryDriver {
        MemoryDriver { revert_in_place: false, ..MemoryDriver::default() }
    }

    /// A storage that cuts one volume at a time.
    pub fn without_groups() -> MemoryDriver {
        MemoryDriver { group_snapshot: false, ..MemoryDriver::default() }
    }

    /// A storage whose clones take room and time.
    pub fn with_copied_clones() -> MemoryDriver {
        MemoryDriver { clone_is_copy: true, ..MemoryDriver::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the `nth` changing verb from now on (1 = the next) fail once.
    pub fn fail(&self, nth: u64, fault: Fault, kind: DriverErrorKind) {
        let mut state = self.state();
        state.plan = Some((state.calls + nth, fault, kind));
    }

    /// True while a planned failure has not struck.
    pub fn fault_is_pending(&self) -> bool {
        self.state().plan.is_some()
    }

    /// Lets the `steps`-th step from now on never return, as if the caller's process died there. Each changing verb has
    /// a step before and one after its effect.
    pub fn pause_after(&self, steps: u64) {
        self.state().pause_in = Some(steps);
    }

    /// Returns when the step has come.
    pub async fn paused(&self) {
        self.paused.notified().await;
    }

    /// Forgets a pause that has not come. The caller that is paused stays so.
    pub fn resume(&self) {
        self.state().pause_in = None;
    }

    async fn step(&self) {
        let stop = {
            let mut state = self.state();
            state.pause_in = state.pause_in.map(|steps| steps.saturating_sub(1));
            state.pause_in == Some(0)
        };
        if stop {
            self.state().pause_in = None;
            self.paused.notify_one();
            std::future::pending::<()>().await;
        }
    }

    pub fn write(&self, volume: Uuid, block: u64, value: u64) {
        if let Some(found) = self.state().volumes.get_mut(&volume) {
            Arc::make_mut(&mut found.blocks).insert(block, value);
        }
    }

    /// `None` where the volume does not exist; unwritten blocks are 0.
    pub fn read(&self, volume: Uuid, block: u64) -> Option<u64> {
        self.state().volumes.get(&volume).map(|found| found.blocks.get(&block).copied().unwrap_or(0))
    }

    pub fn ids(&self) -> Vec<Uuid> {
        self.state().volumes.keys().copied().collect()
    }

    async fn verb<T>(&self, effect: impl FnOnce(&mut State) -> DriverResult<T>) -> DriverResult<T> {
        self.step().await;
        let result = self.effect(effect);
        self.step().await;
        result
    }

    fn effect<T>(&self, effect: impl FnOnce(&mut State) -> DriverResult<T>) -> DriverResult<T> {
        let mut state = self.state();
        state.calls += 1;
        let strikes = state.plan.filter(|(call, ..)| *call == state.calls);
        if strikes.is_some() {
            state.plan = None;
        }
        let planned = |kind| failure(kind, String::from("a planned failure"));
        match strikes {
            None => effect(&mut state),
            Some((_, Fault::Before, kind)) => Err(planned(kind)),
            Some((_, Fault::After, kind)) => effect(&mut state).and(Err(planned(kind))),
        }
    }
}

impl State {
    fn volume(&self, id: Uuid) -> DriverResult<&Volume> {
        self.volumes.get(&id).ok_or_else(|| failure(DriverErrorKind::NotFound, format!("there is no volume {id}")))
    }

    fn writable(&self, id: Uuid) -> bool {
        self.attached.values().any(|(target, writable)| *target == id && *writable)
    }

    fn attached(&self, id: Uuid) -> bool {
        self.attached.values().any(|(target, _)| *target == id)
    }
}

#[async_trait]
impl Driver for MemoryDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            thin: true,
            offloaded: true,
            group_snapshot: self.group_snapshot,
            constant_time: true,
            revert_in_place: self.revert_in_place,
            exact_difference: true,
            resize_online: false,
            shared: false,
            clone_is_copy: self.clone_is_copy,
        }
    }

    async fn create(&self, request: &CreateRequest) -> DriverResult<(u64, Moved)> {
        let (volume, size) = (request.volume, request.size.div_ceil(BLOCK) * BLOCK);
        self.verb(|state| match state.volumes.get(&volume) {
            Some(found) if found.size == size && !found.is_generation => Ok((size, Moved::default())),
            Some(_) => Err(failure(DriverErrorKind::Exists, format!("volume {volume} exists"))),
            None => {
                let made = Volume { is_generation: false, parent: None, size, blocks: Arc::default() };
                state.volumes.insert(volume, made);
                Ok((size, changed(true)))
            }
        })
        .await
    }

    async fn resize(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)> {
        let size = size.div_ceil(BLOCK) * BLOCK;
        self.verb(|state| {
            state.volume(volume)?;
            if let Some(found) = state.volumes.get_mut(&volume) {
                found.size = size;
            }
            Ok((size, changed(true)))
        })
        .await
    }

    async fn destroy(&self, target: Uuid) -> DriverResult<Moved> {
        self.verb(|state| {
            if state.attached(target) {
                return Err(failure(DriverErrorKind::Busy, format!("volume {target} is attached")));
            }
            Ok(changed(state.volumes.remove(&target).is_some()))
        })
        .await
    }

    async fn snapshot(&self, group: &[CutPair]) -> DriverResult<CutReport> {
        if group.len() > 1 && !self.group_snapshot {
            return Err(failure(DriverErrorKind::NotAtomic, String::from("one volume is cut at a time")));
        }
        self.verb(|state| {
            for pair in group {
                state.volume(pair.volume)?;
            }
            let mut any = false;
            for pair in group {
                let volume = state.volume(pair.volume)?.clone();
                if state.volumes.contains_key(&pair.generation) {
                    continue;
                }
                any = true;
                state.volumes.insert(pair.generation, Volume { is_generation: true, ..volume });
                if let Some(head) = state.volumes.get_mut(&pair.volume) {
                    head.parent = Some(pair.generation);
                }
            }
            Ok(CutReport { moved: changed(any), total_us: 10, slowest_write_us: 5, writes_observed: 1 })
        })
        .await
    }

    async fn clone_volume(&self, request: &CloneRequest) -> DriverResult<Moved> {
        let (source, volume) = (request.source, request.volume);
        self.verb(|state| {
            if state.volumes.contains_key(&volume) {
                return Ok(Moved::default());
            }
            let copy = Volume { is_generation: false, parent: Some(source), ..state.volume(source)?.clone() };
            state.volumes.insert(volume, copy);
            Ok(changed(true))
        })
        .await
    }

    async fn revert(&self, volume: Uuid, generation: Uuid) -> DriverResult<Moved> {
        self.verb(|state| {
            if state.writable(volume) {
                return Err(failure(DriverErrorKind::Busy, format!("volume {volume} is attached for writing")));
            }
            let from = state.volume(generation)?.clone();
            state.volume(volume)?;
            let back = Volume { is_generation: false, parent: Some(generation), ..from };
            state.volumes.insert(volume, back);
            Ok(changed(true))
        })
        .await
    }

    async fn difference(&self, from: Uuid, to: Uuid) -> DriverResult<Vec<Extent>> {
        let state = self.state();
        let (from, to) = (state.volume(from)?, state.volume(to)?);
        let blocks: std::collections::BTreeSet<u64> = from.blocks.keys().chain(to.blocks.keys()).copied().collect();
        let differing = blocks.into_iter().filter(|block| from.blocks.get(block) != to.blocks.get(block));
        Ok(differing
            .map(|block| Extent { offset: block * BLOCK, length: BLOCK, data: to.blocks.contains_key(&block) })
            .collect())
    }

    async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint> {
        self.verb(|state| {
            state.volume(request.target)?;
            state.attached.insert(request.token.clone(), (request.target, request.writable));
            Ok(Endpoint::NbdUnix { socket: PathBuf::from("/nonexistent/memory.sock"), export: request.token.clone() })
        })
        .await
    }

    async fn detach(&self, token: &str) -> DriverResult<Moved> {
        self.verb(|state| Ok(changed(state.attached.remove(token).is_some()))).await
    }

    async fn attachments(&self) -> DriverResult<Vec<String>> {
        Ok(self.state().attached.keys().cloned().collect())
    }

    async fn stat(&self, target: Uuid) -> DriverResult<VolumeFacts> {
        let state = self.state();
        let found = state.volume(target)?;
        let mapped = found.blocks.len() as u64 * BLOCK;
        let shared_by_others =
            state.volumes.iter().any(|(id, other)| *id != target && Arc::ptr_eq(&other.blocks, &found.blocks));
        let shared = if shared_by_others { mapped } else { 0 };
        Ok(VolumeFacts {
            id: target,
            is_generation: found.is_generation,
            parent: found.parent,
            size: found.size,
            mapped,
            exclusive: mapped - shared,
            shared,
            name_label: None,
        })
    }

    async fn space(&self) -> DriverResult<SpaceFacts> {
        let state = self.state();
        let used = state.volumes.values().map(|found| found.blocks.len() as u64 * BLOCK).sum();
        let heads = state.volumes.values().filter(|found| !found.is_generation);
        Ok(SpaceFacts {
            physical: PHYSICAL,
            used,
            free: PHYSICAL - used,
            virtual_size: heads.map(|found| found.size).sum(),
            ..SpaceFacts::default()
        })
    }

    async fn scan(&self) -> DriverResult<Vec<ScanEntry>> {
        let entry = |(id, found): (&Uuid, &Volume)| ScanEntry {
            id: *id,
            is_generation: found.is_generation,
            parent: found.parent,
            size: found.size,
            name_label: None,
        };
        Ok(self.state().volumes.iter().map(entry).collect())
    }

    async fn settle(&self) -> DriverResult<()> {
        Ok(())
    }

    async fn put_metadata(&self, text: &[u8]) -> DriverResult<()> {
        self.state().metadata = Some(text.to_vec());
        Ok(())
    }

    async fn metadata(&self) -> DriverResult<Option<Vec<u8>>> {
        Ok(self.state().metadata.clone())
    }

    fn alerts(&self) -> broadcast::Receiver<Alert> {
        self.alerts.subscribe()
    }
}

/// The back end of SR type `memory`: every `location` is the one driver that it was made with.
pub struct MemoryBackend(pub MemoryDriver);

#[async_trait]
impl Backend for MemoryBackend {
    fn facts(&self) -> &'static DriverType {
        &FACTS
    }

    async fn create(&self, _config: &SrConfig) -> DriverResult<()> {
        Ok(())
    }

    async fn open(&self, _config: &SrConfig) -> DriverResult<Arc<dyn Driver>> {
        Ok(Arc::new(self.0.clone()))
    }

    async fn close(&self, _config: &SrConfig) -> DriverResult<()> {
        Ok(())
    }

    async fn erase(&self, _config: &SrConfig) -> DriverResult<()> {
        let mut state = self.0.state();
        state.volumes.clear();
        state.metadata = None;
        drop(state);
        Ok(())
    }

    async fn probe(&self, _device_config: &BTreeMap<String, String>) -> DriverResult<Vec<Found>> {
        Ok(Vec::new())
    }
}

fn changed(changed: bool) -> Moved {
    Moved { changed, ..Moved::default() }
}

fn failure(kind: DriverErrorKind, message: String) -> DriverError {
    DriverError::new(kind, message)
}
