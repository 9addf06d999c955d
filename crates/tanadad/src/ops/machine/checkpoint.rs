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

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use tanada_quiesce::verdict::Verdict;
use tanada_quiesce::{GuestFacts, Level, Method};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::certify;
use super::cut::{self, CutDone, Instantness, Part};
use super::snapshot::{self, Disk, disks_of, end_parts, parts, write_intents};
use super::turn::turn;
use crate::context::{Args, CallContext, Handlers};
use crate::db::{Record, Tx, View};
use crate::ops::allowed;
use crate::ops::intents::{self, Plan};
use crate::ops::records::message;
use crate::ops::vdi::{self, PlannedCopy, plan_copies};
use crate::schedule::space;
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
    parts: Vec<Part>,
    /// One for each part.
    intents: Vec<String>,
}

/// What it came to.
struct Taken {
    done: CutDone,
    memory: Option<Memory>,
}

/// A saved memory.
struct Memory {
    image: NewImage,
    stream_bytes: u64,
    /// For how long the guest stood still, in microseconds: by QEMU's clock, else by ours around the cut.
    paused_us: u64,
}

async fn checkpoint(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, name) = (args.reference("vm")?, args.str("new_name")?);
    let _mark = ctx.begin("VM", &vm, "checkpoint", |tx| {
        allowed::vm(tx, &vm, "checkpoint")?;
        disks_of(tx, &vm, &[])?.iter().try_for_each(|disk| vdi::check(tx, disk.vdi.id(), "snapshot", true))
    })?;
    let _turn = turn(&ctx, &vm, "checkpoint").await?;
    space::room_for_machine(&ctx.daemon, &vm).await?;
    let taking = Taking::plan(&ctx, &vm)?;
    let made = async {
        let taken = match taking.source.str("power_state") {
            "Running" => taking.with_memory(&ctx).await?,
            _ => Taken { done: taking.cut(&ctx).await?, memory: None },
        };
        ctx.task.moved(taken.done.report.moved);
        let recorded = ctx.db().write(|tx| taking.record(tx, name, &taken));
        if let (Err(_), Some(memory)) = (&recorded, &taken.memory) {
            memory.image.discard(&ctx.daemon).await;
        }
        recorded
    };
    let made = made.await;
    end_parts(&ctx, &taking.parts, &taking.intents, made.is_ok()).await;
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
        let parts = parts(ctx, &planned)?;
        let intents = write_intents(ctx, &parts)?;
        Ok(Taking { source, disks, planned, parts, intents })
    }

    /// Nobody writes meanwhile: the machine stands still or has no process that runs.
    async fn cut(&self, ctx: &CallContext) -> ApiResult<CutDone> {
        cut::cut(&ctx.daemon, self.source.id(), &self.parts).await
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
                            tracing::error!(vm = %machine.uuid, error = %stuck, "a machine does not go on after its checkpoint");
                            ctx.daemon.left.add(&intent);
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
        let done = self.cut(ctx).await;
        // Whatever became of the cut, the guest goes on first.
        let paused_us = standing.go_on().await.map_err(|error| {
            tracing::error!(%vm, %error, "a machine does not go on after its checkpoint");
            ApiError::vm_checkpoint_resume_failed(vm)
        })?;
        let paused_us = paused_us.unwrap_or_else(|| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        intents::clear(&ctx.daemon, intent)?;
        ctx.task.progress(0.85);
        let (done, stream_bytes) = (done?, standing.complete().await?);
        let done = CutDone { instantness: Instantness::Held { held_us: paused_us }, ..done };
        Ok(Taken { done, memory: Some(Memory { image: image.clone(), stream_bytes, paused_us }) })
    }

    fn record(&self, tx: &mut Tx<'_>, name: &str, taken: &Taken) -> ApiResult<Ref> {
        let id = Ref::random();
        snapshot::record(tx, &self.source, &id, name, &self.disks, &self.planned)?;
        let image = self.image(tx, taken)?;
        if let Some(image) = &image {
            // Read when the machine goes back to it, never written.
            tx.set("VDI", image, "read_only", true)?;
            tx.set("VM", &id, "suspend_VDI", image)?;
            tx.set("VM", &id, "power_state", "Suspended")?;
        }
        self.certify(tx, &id, image.is_some(), taken)?;
        let body = match &taken.memory {
            Some(memory) => format!(
                "<message>{} bytes of memory; the machine stood still for {} us</message>",
                memory.stream_bytes, memory.paused_us
            ),
            None => "<message>taken of a machine that did not run</message>".to_owned(),
        };
        message(tx, "VM_CHECKPOINTED", 5, "VM", self.source.uuid(), &body)?;
        self.intents.iter().for_each(|intent| tx.clear_intent(intent));
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

    /// Beside the certificate `snapshot_info` has the memory's size and the guest's pause.
    fn certify(&self, tx: &mut Tx<'_>, id: &Ref, with_memory: bool, taken: &Taken) -> ApiResult<()> {
        let (level, method) = if with_memory { (Level::Memory, Method::Memory) } else { (Level::Crash, Method::None) };
        let facts = certify::Taken {
            done: taken.done.clone(),
            power_state: self.source.str("power_state").to_owned(),
            guest: guest(tx, &self.source),
            mounts: Vec::new(),
            participants: Vec::new(),
            notes: Vec::new(),
            advise: false,
        };
        certify::note_worth(tx, id, level)?;
        let verdict = Verdict { level, method, freeze: None, downgrade: None };
        let certificate = certify::certificate(tx, &self.disks, &self.parts, &facts, verdict);
        let mut info = certify::info(&certificate, &taken.done);
        if let Some(memory) = &taken.memory {
            info.insert("memory_bytes".into(), Value::from(memory.stream_bytes.to_string()));
            info.insert("paused_us".into(), Value::from(memory.paused_us.to_string()));
        }
        tx.set("VM", id, "snapshot_info", Value::Map(info))
    }
}

/// What the guest told about itself when it was last asked.
fn guest(view: &impl View, vm: &Record) -> GuestFacts {
    let metrics = view.find("VM_guest_metrics", &vm.reference("guest_metrics"));
    let told =
        |key: &str| metrics.as_ref().and_then(|facts| facts.entry("os_version", key)).unwrap_or_default().to_owned();
    GuestFacts { os: told("name"), os_id: told("distro"), agent: String::new() }
}
