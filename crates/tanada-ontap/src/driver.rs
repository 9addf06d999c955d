//! The trait's face of an open SR.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tanada_driver::{
    Alert, AttachRequest, Capabilities, CloneRequest, CreateRequest, CutPair, CutReport, Driver, DriverError,
    DriverErrorKind, DriverResult, Endpoint, Extent, Moved, ScanEntry, SpaceFacts, VolumeFacts,
};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::sr::{Sr, reaper};

/// Alerts kept for a reader that is slow.
const ALERTS_KEPT: usize = 64;
/// Less than this part of what the SR has and could have is scarce.
const SCARCE_PART: u64 = 10;

/// An open SR on an ONTAP array. The reaper of leftovers runs as long as it lives.
pub struct OntapDriver {
    sr: Arc<Sr>,
    alerts: broadcast::Sender<Alert>,
    reaper: JoinHandle<()>,
    scarce: AtomicBool,
}

impl OntapDriver {
    pub(crate) fn start(sr: Sr) -> OntapDriver {
        let sr = Arc::new(sr);
        let reaper = tokio::spawn(reaper(Arc::downgrade(&sr), sr.left_over()));
        OntapDriver { sr, alerts: broadcast::channel(ALERTS_KEPT).0, reaper, scarce: AtomicBool::new(false) }
    }

    /// Told once when room gets scarce, and once when there is room again. There is no event to wait for: whoever asks for
    /// the space, sees.
    fn watch(&self, space: &SpaceFacts) {
        let scarce = space.free < space.physical / SCARCE_PART;
        if self.scarce.swap(scarce, Ordering::Relaxed) == scarce {
            return;
        }
        let alert = match scarce {
            true => Alert::NearlyFull { free: space.free, physical: space.physical },
            false => Alert::RoomAgain { free: space.free },
        };
        // Nobody may be listening.
        drop(self.alerts.send(alert));
    }
}

impl Drop for OntapDriver {
    fn drop(&mut self) {
        self.reaper.abort();
    }
}

#[async_trait]
impl Driver for OntapDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            thin: true,
            offloaded: true,
            group_snapshot: true,
            constant_time: true,
            revert_in_place: true,
            exact_difference: false,
            // The array tells initiators of a new size by itself.
            resize_online: true,
            shared: true,
            clone_is_copy: false,
        }
    }

    async fn create(&self, request: &CreateRequest) -> DriverResult<(u64, Moved)> {
        self.sr.create(request).await
    }

    async fn resize(&self, volume: Uuid, size: u64) -> DriverResult<(u64, Moved)> {
        self.sr.resize(volume, size).await
    }

    async fn destroy(&self, target: Uuid) -> DriverResult<Moved> {
        self.sr.destroy(target).await
    }

    async fn snapshot(&self, group: &[CutPair]) -> DriverResult<CutReport> {
        if group.is_empty() {
            return Ok(CutReport::default());
        }
        self.sr.snapshot(group).await
    }

    async fn clone_volume(&self, request: &CloneRequest) -> DriverResult<Moved> {
        self.sr.clone_volume(request).await
    }

    async fn revert(&self, volume: Uuid, generation: Uuid) -> DriverResult<Moved> {
        self.sr.revert(volume, generation).await
    }

    async fn difference(&self, from: Uuid, to: Uuid) -> DriverResult<Vec<Extent>> {
        let words = format!("the array does not tell what differs between LUNs {from} and {to}");
        Err(DriverError::new(DriverErrorKind::Unsupported, words))
    }

    async fn attach(&self, request: &AttachRequest) -> DriverResult<Endpoint> {
        self.sr.attach(request).await
    }

    async fn detach(&self, token: &str) -> DriverResult<Moved> {
        self.sr.detach(token).await
    }

    async fn attachments(&self) -> DriverResult<Vec<String>> {
        self.sr.attachments().await
    }

    async fn stat(&self, target: Uuid) -> DriverResult<VolumeFacts> {
        self.sr.stat(target).await
    }

    async fn space(&self) -> DriverResult<SpaceFacts> {
        let space = self.sr.space().await?;
        self.watch(&space);
        Ok(space)
    }

    async fn scan(&self) -> DriverResult<Vec<ScanEntry>> {
        self.sr.scan().await
    }

    async fn settle(&self) -> DriverResult<()> {
        self.sr.settle().await
    }

    async fn put_metadata(&self, text: &[u8]) -> DriverResult<()> {
        self.sr.put_metadata(text).await
    }

    async fn metadata(&self) -> DriverResult<Option<Vec<u8>>> {
        self.sr.metadata().await
    }

    fn alerts(&self) -> broadcast::Receiver<Alert> {
        self.alerts.subscribe()
    }
}
