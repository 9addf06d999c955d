//! `VM.checkpoint`: memory and all disks of a machine at one instant, the guest runs on.
//!
//! ```text
//!  names written down ─▶ memory flows (guest runs) ─▶ guest stands still ─▶ disks cut ─▶ guest goes on
//!                            │ cancel, error                                               │
//!                            └─▶ runs on, nothing left          image complete ─▶ records, intents struck off
//! ```
//! The disks are cut while the guest stands still and everything it wrote is flushed, so disks on several SRs are of one
//! instant too. Whatever becomes of the cut, the guest goes on first.
//!
//! | the machine is | what the checkpoint has |
//! |---|---|
//! | Running | its memory: Suspended, goes on by a revert and a resume |
//! | Suspended | a copy of its memory's image, made by the storage |
//! | Paused | disks alone: Halted, as XenServer has it |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use tanada_driver::{CutReport, DriverErrorKind};
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};
use uuid::Uuid;

use super::copy::{self, Kind};
use super::snapshot::{Disk, copy_media, disks_of};
use crate::context::{Args, CallContext, Handlers};
use crate::db::{Record, Tx, View};
use crate::ops::allowed;
use crate::ops::intents::{self, Plan};
use crate::ops::records::message;
use crate::ops::sr::sizes_changed;
use crate::ops::vdi::{self, PlannedCopy, copy_volumes, plan_copies};
use crate::storage::driver_error;
use crate::transfer::attached::{Access, Attached};
use crate::vmm::Running;
use crate::vmm::memory::hardware::Hardware;
use crate::vmm::memory::place::NewImage;
use crate::vmm::memory::{give_up, save};
use crate::vmm::power::machine_of;

pub fn handlers() -> Handlers {
    vec![("VM.checkpoint", |ctx, args| checkpoint(ctx, args).boxed())]
}

/// What is taken, decided before anything is touched.
struct Taking {
    source: Arc<Record>,
    disks: Vec<Disk>,
    /// Copies of the disks, in their order; behind them that of a suspended machine's image.
    planned: Vec<PlannedCopy>,
    /// Indexes into `planned` by SR, with the intent of each.
    places: Vec<(Ref, Vec<usize>, String)>,
}

/// What it came to.
#[derive(Default)]
struct Taken {
    report: CutReport,
    memory: Option<Memory>,
}

/// A saved memory.
struct Memory {
    image: NewImage,
    stream_bytes: u64,
    /// For how long the guest stood still, and for how long of that its disks were being cut, in microseconds.
    paused_us: Option<u64>,
    cut_us: u64,
}

async fn checkpoint(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, name) = (args.reference("vm")?, args.str("new_name")?);
    let _mark = ctx.begin("VM", &vm, "checkpoint", |tx| {
        allowed::vm(tx, &vm, "checkpoint")?;
        disks_of(tx, &vm, &[])?.iter().try_for_each(|disk| vdi::check(tx, disk.vdi.id(), "snapshot", true))
    })?;
    let taking = Taking::plan(&ctx, &vm)?;
    let made = async {
        let taken = match taking.source.str("power_state") {
            "Running" => taking.with_memory(&ctx).await?,
            _ => Taken { report: taking.cut(&ctx).await?, memory: None },
        };
        ctx.task.moved(taken.report.moved);
        let recorded = ctx.db().write(|tx| taking.record(tx, name, &taken));
        if let (Err(_), Some(memory)) = (&recorded, &taken.memory) {
            memory.image.discard(&ctx.daemon).await;
        }
        recorded
    };
    let made = made.await;
    for (sr, places, intent) in &taking.places {
        match &made {
            Ok(_) => sizes_changed(&ctx.daemon, sr).await,
            Err(_) => intents::give_up(&ctx.daemon, sr, &taking.volumes(places), intent).await,
        }
    }
    made.map(Value::from)
}

impl Taking {
    fn plan(ctx: &CallContext, vm: &Ref) -> ApiResult<Taking> {
        let (source, disks, image) = ctx.db().read(|state| {
            let source = state.get("VM", vm)?;
            let asleep = source.str("power_state") == "Suspended";
            let image = state.find("VDI", &source.reference("suspend_VDI")).filter(|_| asleep);
            Ok::<_, ApiError>((source, disks_of(state, vm, &[])?, image))
        })?;
        let mut sources: Vec<Arc<Record>> = disks.iter().map(|disk| disk.vdi.clone()).collect();
        sources.extend(image);
        let planned = plan_copies(&sources)?;
        let mut by_sr: BTreeMap<Ref, Vec<usize>> = BTreeMap::new();
        for (at, source) in sources.iter().enumerate() {
            by_sr.entry(source.reference("SR")).or_default().push(at);
        }
        // Every SR must be attached before anything is begun.
        by_sr.keys().try_for_each(|sr| ctx.daemon.storage.driver(sr).map(drop))?;
        let mut taking = Taking { source, disks, planned, places: Vec::new() };
        let volumes: Vec<Vec<Uuid>> = by_sr.values().map(|places| taking.volumes(places)).collect();
        taking.places = ctx.db().write(|tx| {
            let put = |((sr, places), volumes): ((&Ref, &Vec<usize>), Vec<Uuid>)| {
                let intent = Plan::Create { sr: sr.to_string(), volumes }.put(tx)?;
                Ok((sr.clone(), places.clone(), intent))
            };
            by_sr.iter().zip(volumes).map(put).collect::<ApiResult<_>>()
        })?;
        Ok(taking)
    }

    fn volumes(&self, places: &[usize]) -> Vec<Uuid> {
        places.iter().map(|at| self.planned[*at].volume).collect()
    }

    /// Saves the memory, cuts in the moment in which the guest stands still, lets it go on.
    async fn with_memory(&self, ctx: &CallContext) -> ApiResult<Taken> {
        let machine = machine_of(&ctx.daemon, self.source.id())?;
        let hardware = Hardware::of(&ctx.daemon, &machine).await?;
        let image = NewImage::create(&ctx.daemon, &self.source, hardware.memory_bytes).await?;
        let taken = self.saved(ctx, &machine, hardware, &image).await;
        if taken.is_err() {
            image.discard(&ctx.daemon).await;
        }
        taken
    }

    async fn saved(
        &self,
        ctx: &CallContext,
        machine: &Arc<Running>,
        hardware: Hardware,
        image: &NewImage,
    ) -> ApiResult<Taken> {
        let disk = Attached::open(&ctx.daemon, &image.vdi, Access::Write).await?;
        let saved = async {
            let intent = Plan::Memory { vm: machine.vm.to_string() }.write(&ctx.daemon)?;
            match self.standing_still(ctx, machine, hardware, image, &disk, &intent).await {
                Ok(taken) => Ok(taken),
                Err(error) => {
                    // It may stand still, or be gone.
                    match give_up(machine).await {
                        Ok(()) => intents::clear(&ctx.daemon, &intent)?,
                        Err(stuck) => {
                            tracing::error!(vm = %machine.uuid, error = %stuck, "a machine does not go on after its checkpoint")
                        }
                    }
                    Err(error)
                }
            }
        };
        let saved = saved.await;
        disk.release().await;
        saved
    }

    async fn standing_still(
        &self,
        ctx: &CallContext,
        machine: &Arc<Running>,
        hardware: Hardware,
        image: &NewImage,
        disk: &Attached,
        intent: &str,
    ) -> ApiResult<Taken> {
        let vm = self.source.id();
        let mut standing = save::save(machine, hardware, disk.client()?, &ctx.task.part(0.0, 0.8)).await?;
        let since = Instant::now();
        let report = self.cut(ctx).await;
        let cut_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Whatever became of the cut, the guest goes on first.
        let paused_us = standing.go_on().await.map_err(|error| {
            tracing::error!(%vm, %error, "a machine does not go on after its checkpoint");
            ApiError::vm_checkpoint_resume_failed(vm)
        })?;
        intents::clear(&ctx.daemon, intent)?;
        ctx.task.progress(0.85);
        let (report, stream_bytes) = (report?, standing.complete().await?);
        let memory = Memory { image: image.clone(), stream_bytes, paused_us, cut_us };
        Ok(Taken { report, memory: Some(memory) })
    }

    /// Cuts everything that was planned. Nobody writes meanwhile: the machine stands still or has no process that runs.
    async fn cut(&self, ctx: &CallContext) -> ApiResult<CutReport> {
        let mut total = CutReport::default();
        for (sr, places, _) in &self.places {
            let driver = ctx.daemon.storage.driver(sr)?;
            let copies: Vec<PlannedCopy> = places.iter().map(|at| self.planned[*at].clone()).collect();
            let report = match copy_volumes(driver.as_ref(), &copies, true).await {
                Err(error) if error.kind == DriverErrorKind::NotAtomic => {
                    let mut sum = CutReport::default();
                    for copy in &copies {
                        add(
                            &mut sum,
                            copy_volumes(driver.as_ref(), std::slice::from_ref(copy), true)
                                .await
                                .map_err(driver_error)?,
                        );
                    }
                    sum
                }
                other => other.map_err(driver_error)?,
            };
            add(&mut total, report);
        }
        Ok(total)
    }

    fn record(&self, tx: &mut Tx<'_>, name: &str, taken: &Taken) -> ApiResult<Ref> {
        let (vm, id) = (self.source.id(), Ref::random());
        let source = tx.get("VM", vm)?;
        copy::machine(tx, &source, &id, name, Kind::Snapshot)?;
        for (disk, copy) in self.disks.iter().zip(&self.planned) {
            let vdi = copy.record(tx, true)?;
            copy::vbd(tx, &disk.vbd, &id, &vdi)?;
        }
        copy_media(tx, &source, &id)?;
        copy::vifs(tx, &source, &id, true)?;
        if let Some(image) = self.image(tx, taken)? {
            // Read when the machine goes back to it, never written.
            tx.set("VDI", &image, "read_only", true)?;
            tx.set("VM", &id, "suspend_VDI", &image)?;
            tx.set("VM", &id, "power_state", "Suspended")?;
        }
        tx.set("VM", &id, "snapshot_info", Value::Map(self.info(taken)))?;
        tx.set("VM", vm, "parent", &id)?;
        let body = match &taken.memory {
            Some(memory) => format!("<message>with {} bytes of memory</message>", memory.stream_bytes),
            None => "<message>checkpoint</message>".to_owned(),
        };
        message(tx, "VM_CHECKPOINTED", 5, "VM", source.uuid(), &body)?;
        for (_, _, intent) in &self.places {
            tx.clear_intent(intent);
        }
        Ok(id)
    }

    /// The checkpoint's image: the one that was made, or the copy of a suspended machine's.
    fn image(&self, tx: &mut Tx<'_>, taken: &Taken) -> ApiResult<Option<Ref>> {
        if let Some(memory) = &taken.memory {
            memory.image.keep(tx);
            return Ok(Some(memory.image.vdi.clone()));
        }
        self.planned.get(self.disks.len()).map(|copy| copy.record(tx, true)).transpose()
    }

    fn info(&self, taken: &Taken) -> Map {
        let mut info: Map = copy::cut_info(&taken.report)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), Value::from(value)))
            .collect();
        let mut put = |key: &str, value: String| info.insert(key.to_owned(), Value::from(value));
        let before = self.source.str("power_state");
        put("power-state-at-snapshot", before.to_owned());
        put("disk-snapshot-type", "crash_consistent".into());
        let with_memory = taken.memory.is_some() || before == "Suspended";
        put("consistency", if with_memory { "memory" } else { "crash" }.into());
        if let Some(memory) = &taken.memory {
            put("memory_bytes", memory.stream_bytes.to_string());
            put("memory_cut_us", memory.cut_us.to_string());
            if let Some(paused_us) = memory.paused_us {
                put("paused_us", paused_us.to_string());
            }
        }
        info
    }
}

fn add(total: &mut CutReport, more: CutReport) {
    total.moved += more.moved;
    total.total_us += more.total_us;
    total.slowest_write_us = total.slowest_write_us.max(more.slowest_write_us);
    total.writes_observed += more.writes_observed;
}
