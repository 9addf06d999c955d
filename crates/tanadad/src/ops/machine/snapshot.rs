//! `VM.snapshot`: all disks of a machine at one instant, running or not.
//!
//! ```text
//!  mark ─▶ names of the generations written down ─▶ freeze? ─▶ one cut ─▶ thaw ─▶ records, intents struck off
//! ```
//! No byte of a disk passes the host; the cut happens in the storage, and the machine is not touched unless its storage
//! cannot cut its disks together ([`super::cut`]). Whatever goes wrong before the last step leaves neither generations nor
//! records; so does a snapshot that is not quiesced where that was insisted on. What it is worth is in its certificate
//! ([`super::certify`]).

use std::sync::Arc;

use futures_util::FutureExt;
use tanada_quiesce::verdict::{Verdict, judge};
use tanada_quiesce::vss;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use uuid::Uuid;

use super::certify::{self, Taken};
use super::copy::{self, Kind};
use super::cut::{self, Part};
use super::quiesce::{self, Wish, rest};
use super::turn::turn;
use crate::context::{Args, CallContext, Handlers};
use crate::db::{Record, Tx, View};
use crate::ops::intents::{self, Plan};
use crate::ops::sr::sizes_changed;
use crate::ops::vdi::{PlannedCopy, plan_copies};
use crate::ops::{allowed, throw_away, vdi};
use crate::schedule::space;

pub fn handlers() -> Handlers {
    vec![
        ("VM.snapshot", |ctx, args| snapshot(ctx, args).boxed()),
        ("VM.snapshot_with_quiesce", |ctx, args| snapshot_with_quiesce(ctx, args).boxed()),
    ]
}

async fn snapshot(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let ignored = args.refs("ignore_vdis")?;
    take(&ctx, &args.reference("vm")?, args.str("new_name")?, &ignored, false).await
}

async fn snapshot_with_quiesce(ctx: CallContext, args: Args) -> ApiResult<Value> {
    take(&ctx, &args.reference("vm")?, args.str("new_name")?, &[], true).await
}

/// A snapshot; with `insist` a quiesced one or none.
async fn take(ctx: &CallContext, vm: &Ref, name: &str, ignored: &[Ref], insist: bool) -> ApiResult<Value> {
    let operation = if insist { "snapshot_with_quiesce" } else { "snapshot" };
    let _mark = ctx.begin("VM", vm, operation, |tx| {
        allowed::vm(tx, vm, operation)?;
        disks_of(tx, vm, ignored)?.iter().try_for_each(|disk| vdi::check(tx, disk.vdi.id(), "snapshot", true))
    })?;
    let _turn = turn(ctx, vm, operation).await?;
    let (machine, disks) =
        ctx.db().read(|state| Ok::<_, ApiError>((state.get("VM", vm)?, disks_of(state, vm, ignored)?)))?;
    let wish = Wish::of(&machine, insist)?;
    let planned = plan_copies(&disks.iter().map(|disk| disk.vdi.clone()).collect::<Vec<_>>())?;
    let parts = parts(ctx, &planned)?;
    for part in &parts {
        space::room_for_generations(&ctx.daemon, &part.sr).await?;
    }
    let intents = write_intents(ctx, &parts)?;
    ctx.task.progress(0.1);
    let made = async {
        let (taken, verdict) = cut(ctx, &machine, &parts, wish).await?;
        ctx.task.moved(taken.done.report.moved);
        ctx.task.progress(0.8);
        let id = Ref::random();
        ctx.db().write(|tx| {
            record(tx, &machine, &id, name, &disks, &planned)?;
            certify::record(tx, vm, &id, &disks, &parts, &taken, verdict)?;
            intents.iter().for_each(|intent| tx.clear_intent(intent));
            Ok(id)
        })
    };
    let made = made.await;
    end_parts(ctx, &parts, &intents, made.is_ok()).await;
    made.map(Value::from)
}

/// After the last step: what was made is counted, or given up.
pub async fn end_parts(ctx: &CallContext, parts: &[Part], intents: &[String], is_made: bool) {
    for (part, intent) in parts.iter().zip(intents) {
        if is_made {
            sizes_changed(&ctx.daemon, &part.sr).await;
        } else {
            let volumes: Vec<Uuid> = part.planned.iter().map(|copy| copy.volume).collect();
            intents::give_up(&ctx.daemon, &part.sr, &volumes, intent).await;
        }
    }
}

/// A disk of a machine with its place.
pub struct Disk {
    pub vbd: Arc<Record>,
    pub vdi: Arc<Record>,
}

/// The disks (not CDs, not empty drives, not what a backup has attached) of a machine, without the `ignored` ones.
pub fn disks_of(view: &impl View, vm: &Ref, ignored: &[Ref]) -> ApiResult<Vec<Disk>> {
    let vbds = view.resolve("VBD", &view.get("VM", vm)?.refs("VBDs"));
    let disks = vbds.into_iter().filter(|vbd| vbd.str("type") == "Disk" && !vbd.bool("empty"));
    let disks = disks.filter(|vbd| vbd.entry("other_config", throw_away::ATTACHED).is_none());
    let disks = disks.map(|vbd| {
        let vdi = view.get("VDI", &vbd.reference("VDI"))?;
        Ok(Disk { vbd, vdi })
    });
    let disks: ApiResult<Vec<Disk>> = disks.collect();
    Ok(disks?.into_iter().filter(|disk| !ignored.contains(disk.vdi.id())).collect())
}

/// The disks by the SR that they are on; none for a machine without disks.
pub fn parts(ctx: &CallContext, planned: &[PlannedCopy]) -> ApiResult<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for copy in planned {
        let sr = copy.source.reference("SR");
        match parts.iter_mut().find(|part| part.sr == sr) {
            Some(part) => part.planned.push(copy.clone()),
            None => parts.push(Part { driver: ctx.daemon.storage.driver(&sr)?, sr, planned: vec![copy.clone()] }),
        }
    }
    Ok(parts)
}

/// The names of everything that is about to be made, all of them or none.
pub(super) fn write_intents(ctx: &CallContext, parts: &[Part]) -> ApiResult<Vec<String>> {
    ctx.db().write(|tx| {
        let plan = |part: &Part| {
            let volumes = part.planned.iter().map(|copy| copy.volume).collect();
            Plan::Create { sr: part.sr.to_string(), volumes }.put(tx)
        };
        parts.iter().map(plan).collect()
    })
}

/// The cut, with the guest at rest if it is to be and can be, and what that was worth.
async fn cut(ctx: &CallContext, machine: &Record, parts: &[Part], wish: Wish) -> ApiResult<(Taken, Verdict)> {
    let rested = rest(&ctx.daemon, machine, wish, parts, cut::cut(&ctx.daemon, machine.id(), parts)).await;
    let mut verdict = judge(&rested.evidence);
    let participants = vss::judge_writers(&mut verdict, &rested.writers);
    if rested.evidence.is_unanswered() {
        ctx.db().write(|tx| certify::not_thawed(tx, machine.id()))?;
    }
    let refusal = || match &verdict.downgrade {
        Some(downgrade) if wish.insist => Err(quiesce::refusal(machine.id(), downgrade)),
        _ => Ok(()),
    };
    let Some(cut) = rested.cut else {
        refusal()?;
        return Err(ApiError::internal("no cut was made, and nothing says why"));
    };
    // The storage's own words come first: they are what is to be mended.
    let done = cut?;
    refusal()?;
    let asked = machine.str("power_state") == "Running" && verdict.downgrade.is_some();
    let taken = Taken {
        done,
        power_state: machine.str("power_state").to_owned(),
        guest: rested.guest,
        mounts: rested.probe.map(|probe| probe.mounts).unwrap_or_default(),
        participants,
        notes: rested.notes,
        advise: asked && !wish.skips(),
    };
    Ok((taken, verdict))
}

/// The records of a snapshot beside its certificate.
pub(super) fn record(
    tx: &mut Tx<'_>,
    machine: &Record,
    id: &Ref,
    name: &str,
    disks: &[Disk],
    planned: &[PlannedCopy],
) -> ApiResult<()> {
    let source = tx.get("VM", machine.id())?;
    copy::machine(tx, &source, id, name, Kind::Snapshot)?;
    for (disk, copy) in disks.iter().zip(planned) {
        let vdi = copy.record(tx, true)?;
        copy::vbd(tx, &disk.vbd, id, &vdi)?;
    }
    copy_media(tx, &source, id)?;
    copy::vifs(tx, &source, id, true)?;
    tx.set("VM", machine.id(), "parent", id)
}

/// Drives keep their media: a CD is referred to, never copied.
pub fn copy_media(tx: &mut Tx<'_>, source: &Record, vm: &Ref) -> ApiResult<()> {
    for vbd in tx.resolve("VBD", &source.refs("VBDs")).iter().filter(|vbd| vbd.str("type") != "Disk") {
        copy::vbd(tx, vbd, vm, &vbd.reference("VDI"))?;
    }
    Ok(())
}
