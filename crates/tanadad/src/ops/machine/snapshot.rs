//! `VM.snapshot`: all disks of a machine at one instant, running or not.
//!
//! ```text
//!  mark ─▶ names of the generations written down ─▶ freeze? ─▶ one cut ─▶ thaw ─▶ records, intent struck off
//! ```
//! No byte of a disk passes the host; the cut happens in the storage, and the machine is not touched unless the storage
//! cannot cut its disks together ([`super::cut`]). Whatever goes wrong
//! before the last step leaves neither generations nor records.

use std::sync::Arc;

use futures_util::FutureExt;
use tanada_driver::{CutReport, Driver};
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};
use uuid::Uuid;

use super::copy::{self, Kind};
use super::cut::{self, Instantness};
use super::quiesce::{self, Level};
use crate::context::{Args, CallContext, Handlers};
use crate::db::{Record, Tx, View};
use crate::ops::intents::{self, Plan};
use crate::ops::records::message;
use crate::ops::sr::sizes_changed;
use crate::ops::vdi::{PlannedCopy, plan_copies};
use crate::ops::{allowed, vdi};

pub fn handlers() -> Handlers {
    vec![
        ("VM.snapshot", |ctx, args| snapshot(ctx, args).boxed()),
        ("VM.snapshot_with_quiesce", |ctx, args| snapshot_with_quiesce(ctx, args).boxed()),
        ("VM.checkpoint", |ctx, args| checkpoint(ctx, args).boxed()),
    ]
}

/// How much quiescing a caller insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// When the guest can.
    Try,
    /// Or no snapshot.
    Insist,
}

async fn snapshot(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let ignored = args.refs("ignore_vdis")?;
    take(&ctx, &args.reference("vm")?, args.str("new_name")?, &ignored, Wish::Try).await
}

async fn snapshot_with_quiesce(ctx: CallContext, args: Args) -> ApiResult<Value> {
    take(&ctx, &args.reference("vm")?, args.str("new_name")?, &[], Wish::Insist).await
}

async fn checkpoint(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    ctx.db().read(|state| allowed::vm(state, &vm, "checkpoint"))?;
    Err(ApiError::not_implemented("VM.checkpoint"))
}

async fn take(ctx: &CallContext, vm: &Ref, name: &str, ignored: &[Ref], wish: Wish) -> ApiResult<Value> {
    let operation = if wish == Wish::Insist { "snapshot_with_quiesce" } else { "snapshot" };
    let _mark = ctx.begin("VM", vm, operation, |tx| {
        allowed::vm(tx, vm, operation)?;
        disks_of(tx, vm, ignored)?.iter().try_for_each(|disk| vdi::check(tx, disk.vdi.id(), "snapshot", true))
    })?;
    let (machine, disks) =
        ctx.db().read(|state| Ok::<_, ApiError>((state.get("VM", vm)?, disks_of(state, vm, ignored)?)))?;
    let place = Place::of(ctx, &machine, &disks)?;
    let planned = plan_copies(&disks.iter().map(|disk| disk.vdi.clone()).collect::<Vec<_>>())?;
    let volumes: Vec<Uuid> = planned.iter().map(|copy| copy.volume).collect();
    let intent = match &place {
        Some(place) => Some(Plan::Create { sr: place.sr.to_string(), volumes: volumes.clone() }.write(&ctx.daemon)?),
        None => None,
    };
    ctx.task.progress(0.1);
    let made = async {
        let taken = cut(ctx, &machine, place.as_ref(), &planned, wish).await?;
        ctx.task.moved(taken.report.moved);
        ctx.task.progress(0.8);
        let id = Ref::random();
        ctx.db().write(|tx| {
            record(tx, vm, &id, name, &disks, &planned, &taken)?;
            if let Some(intent) = &intent {
                tx.clear_intent(intent);
            }
            Ok(id)
        })
    };
    let made = made.await;
    if let (Some(place), Some(intent)) = (&place, &intent) {
        match &made {
            Ok(_) => sizes_changed(&ctx.daemon, &place.sr).await,
            Err(_) => intents::give_up(&ctx.daemon, &place.sr, &volumes, intent).await,
        }
    }
    made.map(Value::from)
}

/// A disk of a machine with its place.
pub struct Disk {
    pub vbd: Arc<Record>,
    pub vdi: Arc<Record>,
}

/// The disks (not CDs, not empty drives) of a machine, without the `ignored` ones.
pub fn disks_of(view: &impl View, vm: &Ref, ignored: &[Ref]) -> ApiResult<Vec<Disk>> {
    let vbds = view.resolve("VBD", &view.get("VM", vm)?.refs("VBDs"));
    let disks = vbds.into_iter().filter(|vbd| vbd.str("type") == "Disk" && !vbd.bool("empty"));
    let disks = disks.map(|vbd| {
        let vdi = view.get("VDI", &vbd.reference("VDI"))?;
        Ok(Disk { vbd, vdi })
    });
    let disks: ApiResult<Vec<Disk>> = disks.collect();
    Ok(disks?.into_iter().filter(|disk| !ignored.contains(disk.vdi.id())).collect())
}

/// The one SR that a machine's disks are on.
struct Place {
    sr: Ref,
    driver: Arc<dyn Driver>,
}

impl Place {
    /// `None` for a machine without disks.
    fn of(ctx: &CallContext, machine: &Record, disks: &[Disk]) -> ApiResult<Option<Place>> {
        let Some(first) = disks.first() else { return Ok(None) };
        let sr = first.vdi.reference("SR");
        if disks.iter().any(|disk| disk.vdi.reference("SR") != sr) {
            let words = format!(
                "the disks of {} are on several SRs, which cannot be cut at one instant; leave some out (ignore_vdis) or move them",
                machine.uuid()
            );
            return Err(ApiError::operation_not_allowed(words));
        }
        Ok(Some(Place { driver: ctx.daemon.storage.driver(&sr)?, sr }))
    }
}

/// What a cut came to.
struct Taken {
    report: CutReport,
    instantness: Instantness,
    level: Level,
}

async fn cut(
    ctx: &CallContext,
    machine: &Record,
    place: Option<&Place>,
    planned: &[PlannedCopy],
    wish: Wish,
) -> ApiResult<Taken> {
    let cut = async {
        match place {
            Some(place) => cut::cut(&ctx.daemon, machine.id(), place.driver.as_ref(), planned).await,
            None => Ok((CutReport::default(), Instantness::Storage)),
        }
    };
    let taken = |(report, instantness), level| Taken { report, instantness, level };
    if machine.str("power_state") != "Running" {
        let level = Level::Crash { reason: format!("the machine was {}", machine.str("power_state")) };
        return Ok(taken(cut.await?, level));
    }
    match quiesce::freeze(&ctx.daemon, machine.id()).await? {
        Ok(frozen) => {
            let report = cut.await;
            // Whatever the cut said, the guest goes on first.
            let level = frozen.thaw(&ctx.daemon).await;
            match level {
                Level::Crash { reason } if wish == Wish::Insist => {
                    report?;
                    Err(ApiError::vm_snapshot_with_quiesce_failed(machine.id(), reason))
                }
                level => Ok(taken(report?, level)),
            }
        }
        Err(reason) if wish == Wish::Insist => Err(quiesce::refusal(machine.id(), &reason)),
        Err(reason) => Ok(taken(cut.await?, Level::Crash { reason })),
    }
}

fn record(
    tx: &mut Tx<'_>,
    vm: &Ref,
    id: &Ref,
    name: &str,
    disks: &[Disk],
    planned: &[PlannedCopy],
    taken: &Taken,
) -> ApiResult<()> {
    let source = tx.get("VM", vm)?;
    copy::machine(tx, &source, id, name, Kind::Snapshot)?;
    tx.set("VM", id, "snapshot_info", Value::Map(info(&source, taken)))?;
    for (disk, copy) in disks.iter().zip(planned) {
        let vdi = copy.record(tx, true)?;
        copy::vbd(tx, &disk.vbd, id, &vdi)?;
    }
    copy_media(tx, &source, id)?;
    copy::vifs(tx, &source, id, true)?;
    tx.set("VM", vm, "parent", id)?;
    let uuid = source.uuid().to_owned();
    let held = match taken.instantness {
        Instantness::Storage => "",
        Instantness::Held { .. } => "; the storage cannot cut these disks together: the machine was held meanwhile",
    };
    let body = format!("<message>{}{held}</message>", taken.level.disk_snapshot_type());
    message(tx, "VM_SNAPSHOTTED", 5, "VM", &uuid, &body)?;
    Ok(())
}

/// Drives keep their media: a CD is referred to, never copied.
pub fn copy_media(tx: &mut Tx<'_>, source: &Record, vm: &Ref) -> ApiResult<()> {
    for vbd in tx.resolve("VBD", &source.refs("VBDs")).iter().filter(|vbd| vbd.str("type") != "Disk") {
        copy::vbd(tx, vbd, vm, &vbd.reference("VDI"))?;
    }
    Ok(())
}

fn info(source: &Record, taken: &Taken) -> Map {
    let mut info: Map =
        copy::cut_info(&taken.report).into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
    let mut put = |key: &str, value: String| info.insert(key.to_owned(), Value::from(value));
    put("power-state-at-snapshot", source.str("power_state").to_owned());
    put("disk-snapshot-type", taken.level.disk_snapshot_type().to_owned());
    if let Instantness::Held { held_us } = taken.instantness {
        put("held_us", held_us.to_string());
    }
    match &taken.level {
        Level::Crash { .. } if source.str("power_state") == "Halted" => {
            put("consistency", "shut down".into());
        }
        Level::Crash { reason } => {
            put("consistency", "crash".into());
            put("not-quiesced-because", reason.clone());
        }
        Level::FileSystem { frozen_us, file_systems } => {
            put("consistency", "file system".into());
            put("frozen_us", frozen_us.to_string());
            put("file-systems-frozen", file_systems.to_string());
        }
    }
    info
}
