//! Older states of disks, made by going back in time on one disk.
//!
//! ```text
//!  newest state complete ─▶ cut it ─▶ write what differs ─▶ cut: an older disk ─▶ write ─▶ cut ─▶ ... ─▶ go back to the
//!                                                                                          newest, forget that cut
//! ```
//! All states of a disk share what they have in common at the storage, as they did where they come from: thirty
//! nights take the room of their changes. A state that is told by nothing begins on a disk of its own, which goes when its
//! last state is cut; a memory image is such a disk and stays.
//!
//! Everything that is made carries the import's mark, what is made for a while too ([`super::marked`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tanada_driver::{CutPair, Driver};
use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};
use tanada_xva::{DiskEvent, Generations, Object};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::attached::{Access, Attached};
use super::disk::{Before, DiskWriter, Tally};
use super::error::disk_error;
use super::import::{Event, Made, OF_DISKS};
use super::new_disk::{NewDisk, new_disk, typed_vdi};
use crate::context::CallContext;
use crate::db::View;
use crate::ops::intents::{self, Plan};
use crate::ops::sr::sizes_changed;
use crate::ops::vdi;
use crate::schedule::space;
use crate::storage::{driver_error, volume_id};

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct OlderDisk {
    pub disk: NewDisk,
    /// Id of the disk that it is told by.
    pub base: Option<String>,
    pub snapshot_time: DateTime,
}

/// The disks of the snapshots, their records sound.
pub fn older_disks(generations: &Generations) -> ApiResult<Vec<OlderDisk>> {
    let known: BTreeMap<&str, &Object> =
        generations.objects.iter().map(|object| (object.id.as_str(), object)).collect();
    let older = generations.disks.iter().map(|plan| {
        let object =
            known.get(plan.id.as_str()).ok_or_else(|| ApiError::import_error_failed_to_find_object(&plan.id))?;
        let record = typed_vdi(object)?;
        let disk = new_disk(&plan.id, plan.size, &record);
        let snapshot_time = match record.get("snapshot_time") {
            Some(Value::DateTime(time)) => *time,
            _ => DateTime::EPOCH,
        };
        if disk.kind == "suspend" && plan.base.is_some() {
            return Err(ApiError::import_error(format!("VDI {}: memory is told by itself", plan.id)));
        }
        Ok(OlderDisk { disk, base: plan.base.clone(), snapshot_time })
    });
    older.collect()
}

/// Goes back through all states, in the archive's order.
pub struct Replay<'a> {
    ctx: &'a CallContext,
    sr: Ref,
    driver: Arc<dyn Driver>,
    older: &'a [OlderDisk],
    made: &'a mut Made,
    tally: &'a Tally,
    /// The state that is being written; none before the first.
    at: Option<usize>,
    carrier: Option<Carrier>,
    done: usize,
}

/// The disk on which states are written.
struct Carrier {
    vdi: Ref,
    volume: Uuid,
    size: u64,
    kind: CarrierKind,
    open: Option<(Attached, DiskWriter)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum CarrierKind {
    /// A disk of the machine, which goes back to this cut.
    Machine { newest: Ref, generation: Uuid },
    /// Goes when it has served.
    Temporary,
    /// Is the state itself.
    Memory,
}

impl<'a> Replay<'a> {
    /// # Errors
    /// `SR_OPERATION_NOT_SUPPORTED` where disks cannot go back to a snapshot of theirs.
    pub fn new(
        ctx: &'a CallContext,
        sr: &Ref,
        older: &'a [OlderDisk],
        made: &'a mut Made,
        tally: &'a Tally,
    ) -> ApiResult<Replay<'a>> {
        let driver = ctx.daemon.storage.driver(sr)?;
        if !driver.capabilities().revert_in_place {
            return Err(ApiError::sr_operation_not_supported(sr));
        }
        Ok(Replay { ctx, sr: sr.clone(), driver, older, made, tally, at: None, carrier: None, done: 0 })
    }

    /// Makes all states. [`Replay::end`] follows, whatever comes of it.
    pub async fn play(&mut self, events: &mut mpsc::Receiver<Event>) -> ApiResult<()> {
        space::room_for_generations(&self.ctx.daemon, &self.sr).await?;
        while let Some(event) = self.ctx.task.until_cancelled(events.recv()).await? {
            let Event::Change(change) = event else {
                return Err(ApiError::internal("a disk after the snapshots' records"));
            };
            let (DiskEvent::Data { disk, .. } | DiskEvent::Zeros { disk, .. }) = &change;
            self.turn_to(*disk).await?;
            self.ctx.task.until_cancelled(self.take(change)).await??;
        }
        // Only a stream that was read to its end says what the last states are.
        if self.older.is_empty() { Ok(()) } else { self.turn_to(self.older.len() - 1).await }
    }

    /// Cuts the last state when `played` well, and leaves nothing attached.
    pub async fn end(mut self, played: bool) -> ApiResult<()> {
        let mut ended = Ok(());
        if played {
            ended = match self.cut_state().await {
                Ok(()) => self.leave().await,
                Err(error) => Err(error),
            };
        }
        if let Some((disk, writer)) = self.carrier.take().and_then(|carrier| carrier.open) {
            drop(writer);
            disk.release().await;
        }
        sizes_changed(&self.ctx.daemon, &self.sr).await;
        ended
    }

    /// Cuts every state before this one and begins it.
    async fn turn_to(&mut self, disk: usize) -> ApiResult<()> {
        while self.at.is_none_or(|at| at < disk) {
            self.ctx.task.check()?;
            self.cut_state().await?;
            let next = self.at.map_or(0, |at| at + 1);
            self.begin(next).await?;
            self.at = Some(next);
        }
        Ok(())
    }

    /// Makes the carrier ready for this state.
    async fn begin(&mut self, next: usize) -> ApiResult<()> {
        let older = &self.older[next];
        let before = self.at.map(|at| self.older[at].disk.id.as_str());
        if older.base.is_none() || older.base.as_deref() != before {
            self.leave().await?;
            let carrier = match &older.base {
                Some(base) => self.machine_disk(base).await?,
                None => self.new_disk(older).await?,
            };
            self.carrier = Some(carrier);
        }
        let Some(carrier) = &mut self.carrier else { return Err(ApiError::internal("a state without a disk")) };
        if carrier.size != older.disk.virtual_size {
            if let Some((disk, writer)) = carrier.open.take() {
                drop(writer);
                disk.release().await;
            }
            let (size, moved) =
                self.driver.resize(carrier.volume, older.disk.virtual_size).await.map_err(driver_error)?;
            self.ctx.task.moved(moved);
            carrier.size = size;
        }
        if carrier.open.is_none() {
            let disk = Attached::open(&self.ctx.daemon, &carrier.vdi, Access::Write).await?;
            let writer = DiskWriter::new(disk.client()?, Before::Anything, self.tally);
            carrier.open = Some((disk, writer));
        }
        Ok(())
    }

    async fn take(&mut self, change: DiskEvent) -> ApiResult<()> {
        let writer = self.carrier.as_mut().and_then(|carrier| carrier.open.as_mut()).map(|(_, writer)| writer);
        let writer = writer.ok_or_else(|| ApiError::internal("a change without a disk"))?;
        match change {
            DiskEvent::Data { offset, bytes, .. } => writer.data(offset, Bytes::from(bytes)).await,
            DiskEvent::Zeros { offset, length, .. } => writer.zeros(offset, length).await,
        }
        .map_err(disk_error)
    }

    /// Ends the state that is being written: it is durable and has a name of its own.
    async fn cut_state(&mut self) -> ApiResult<()> {
        let (Some(at), Some(carrier)) = (self.at, &mut self.carrier) else { return Ok(()) };
        let older = &self.older[at];
        if let Some((disk, writer)) = carrier.open.take() {
            writer.finish().await.map_err(disk_error)?;
            let writer = DiskWriter::new(disk.client()?, Before::Anything, self.tally);
            carrier.open = Some((disk, writer));
        }
        let (vdi, volume, size, kind) = (carrier.vdi.clone(), carrier.volume, carrier.size, carrier.kind.clone());
        let made = match kind {
            CarrierKind::Memory => vdi,
            CarrierKind::Temporary => self.cut(volume, size, older, &Ref::null()).await?.0,
            CarrierKind::Machine { .. } => self.cut(volume, size, older, &vdi).await?.0,
        };
        self.made.disks.insert(older.disk.id.clone(), made);
        self.done += 1;
        self.ctx.task.progress(OF_DISKS + (1.0 - OF_DISKS) * self.done as f64 / self.older.len() as f64);
        Ok(())
    }

    /// Leaves the carrier: a disk of the machine as it is now, another one not at all.
    async fn leave(&mut self) -> ApiResult<()> {
        let Some(carrier) = self.carrier.take() else { return Ok(()) };
        if let Some((disk, writer)) = carrier.open {
            drop(writer);
            disk.release().await;
        }
        match carrier.kind {
            CarrierKind::Memory => Ok(()),
            CarrierKind::Temporary => vdi::destroy_disk(&self.ctx.daemon, &carrier.vdi).await,
            CarrierKind::Machine { newest, generation } => {
                let moved = self.driver.revert(carrier.volume, generation).await.map_err(driver_error)?;
                self.ctx.task.moved(moved);
                vdi::destroy_disk(&self.ctx.daemon, &newest).await
            }
        }
    }

    /// A disk of the machine, its newest state cut.
    async fn machine_disk(&self, id: &str) -> ApiResult<Carrier> {
        let vdi = self.made.disks.get(id).cloned();
        let vdi = vdi.ok_or_else(|| ApiError::import_error_failed_to_find_object(id))?;
        let record = self.ctx.db().read(|state| state.get("VDI", &vdi))?;
        let (volume, size) =
            (volume_id(record.str("location"))?, u64::try_from(record.int("virtual_size")).unwrap_or(0));
        let newest = OlderDisk {
            disk: NewDisk {
                id: id.to_owned(),
                virtual_size: size,
                name_label: record.str("name_label").to_owned(),
                kind: "user".to_owned(),
                ..NewDisk::default()
            },
            base: None,
            snapshot_time: DateTime::now(),
        };
        let (newest, generation) = self.cut(volume, size, &newest, &vdi).await?;
        Ok(Carrier { vdi, volume, size, kind: CarrierKind::Machine { newest, generation }, open: None })
    }

    async fn new_disk(&self, older: &OlderDisk) -> ApiResult<Carrier> {
        let vdi = vdi::create_disk(&self.ctx.daemon, &older.disk.request(&self.sr, &self.made.intent)).await?;
        let record = self.ctx.db().read(|state| state.get("VDI", &vdi))?;
        let (volume, size) =
            (volume_id(record.str("location"))?, u64::try_from(record.int("virtual_size")).unwrap_or(0));
        let kind = if older.disk.kind == "suspend" { CarrierKind::Memory } else { CarrierKind::Temporary };
        Ok(Carrier { vdi, volume, size, kind, open: None })
    }

    /// Cuts a volume; answers the VDI of the cut and its name at the storage.
    async fn cut(&self, volume: Uuid, size: u64, older: &OlderDisk, of: &Ref) -> ApiResult<(Ref, Uuid)> {
        let (daemon, generation) = (&self.ctx.daemon, Uuid::new_v4());
        let intent = Plan::Create { sr: self.sr.to_string(), volumes: vec![generation] }.write(daemon)?;
        let made = async {
            let report = self.driver.snapshot(&[CutPair { volume, generation }]).await.map_err(driver_error)?;
            self.ctx.task.moved(report.moved);
            let request = older.disk.request(&self.sr, &self.made.intent);
            let request =
                request.with("is_a_snapshot", true).with("snapshot_of", of).with("snapshot_time", older.snapshot_time);
            daemon.db.write(|tx| {
                tx.clear_intent(&intent);
                vdi::record_for(tx, &self.sr, generation, size, request.fields)
            })
        };
        match made.await {
            Ok(vdi) => Ok((vdi, generation)),
            Err(error) => {
                intents::give_up(daemon, &self.sr, &[generation], &intent).await;
                Err(error)
            }
        }
    }
}
