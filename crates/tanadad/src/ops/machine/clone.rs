//! `VM.clone` (disks shared with the source by the storage) and `VM.copy` (disks of its own, on any SR).

use std::collections::BTreeMap;

use futures_util::FutureExt;
use tanada_driver::Moved;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use uuid::Uuid;

use super::copy::{self, Kind};
use super::snapshot::{Disk, copy_media, disks_of};
use crate::context::{Args, CallContext, Handlers};
use crate::db::View;
use crate::ops::allowed;
use crate::ops::intents::{self, Plan};
use crate::ops::records::{message, moved_text};
use crate::ops::sr::sizes_changed;
use crate::ops::vdi::{self, PlannedCopy, copy_volumes, plan_copies};
use crate::ops::vdi_copy::{Provisional, copy_to_sr, discard};
use crate::storage::driver_error;

pub fn handlers() -> Handlers {
    vec![("VM.clone", |ctx, args| clone(ctx, args).boxed()), ("VM.copy", |ctx, args| full_copy(ctx, args).boxed())]
}

async fn clone(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, name) = (args.reference("vm")?, args.str("new_name")?);
    let _mark = ctx.begin("VM", &vm, "clone", |tx| {
        allowed::vm(tx, &vm, "clone")?;
        disks_of(tx, &vm, &[])?.iter().try_for_each(|disk| vdi::check(tx, disk.vdi.id(), "clone", true))
    })?;
    let disks = ctx.db().read(|state| disks_of(state, &vm, &[]))?;
    let mut by_sr: BTreeMap<Ref, Vec<usize>> = BTreeMap::new();
    for (at, disk) in disks.iter().enumerate() {
        by_sr.entry(disk.vdi.reference("SR")).or_default().push(at);
    }
    let planned = plan_copies(&disks.iter().map(|disk| disk.vdi.clone()).collect::<Vec<_>>())?;
    let volumes_on = |places: &[usize]| -> Vec<Uuid> { places.iter().map(|at| planned[*at].volume).collect() };
    // Every SR must be attached before anything is begun.
    by_sr.keys().try_for_each(|sr| ctx.daemon.storage.driver(sr).map(drop))?;
    let intents: Vec<String> = ctx.db().write(|tx| {
        let put = |(sr, places): (&Ref, &Vec<usize>)| {
            Plan::Create { sr: sr.to_string(), volumes: volumes_on(places) }.put(tx)
        };
        by_sr.iter().map(put).collect()
    })?;
    let made = async {
        let mut moved = Moved::default();
        for (sr, places) in &by_sr {
            let driver = ctx.daemon.storage.driver(sr)?;
            let copies: Vec<PlannedCopy> = places.iter().map(|at| planned[*at].clone()).collect();
            moved += copy_volumes(driver.as_ref(), &copies, false).await.map_err(driver_error)?.moved;
        }
        ctx.task.moved(moved);
        ctx.db().write(|tx| {
            let mut vdis = Vec::with_capacity(planned.len());
            for copy in &planned {
                vdis.push(copy.record(tx, false)?);
            }
            let id = record(tx, &vm, name, &disks, &vdis, moved)?;
            intents.iter().for_each(|intent| tx.clear_intent(intent));
            Ok(id)
        })
    };
    let made = made.await;
    for ((sr, places), intent) in by_sr.iter().zip(&intents) {
        match &made {
            Ok(_) => sizes_changed(&ctx.daemon, sr).await,
            Err(_) => intents::give_up(&ctx.daemon, sr, &volumes_on(places), intent).await,
        }
    }
    made.map(Value::from)
}

/// The new machine over disks that are there.
fn record(
    tx: &mut crate::db::Tx<'_>,
    vm: &Ref,
    name: &str,
    disks: &[Disk],
    vdis: &[Ref],
    moved: Moved,
) -> ApiResult<Ref> {
    let source = tx.get("VM", vm)?;
    let id = Ref::random();
    copy::machine(tx, &source, &id, name, Kind::Twin)?;
    for (disk, vdi) in disks.iter().zip(vdis) {
        copy::vbd(tx, &disk.vbd, &id, vdi)?;
    }
    copy_media(tx, &source, &id)?;
    copy::vifs(tx, &source, &id, false)?;
    let uuid = source.uuid().to_owned();
    message(tx, "VM_CLONED", 5, "VM", &uuid, &moved_text(moved))?;
    Ok(id)
}

async fn full_copy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, name, sr) = (args.reference("vm")?, args.str("new_name")?, args.reference("sr")?);
    if !sr.is_null() && ctx.db().read(|state| state.get("SR", &sr))?.str("content_type") == "iso" {
        return Err(ApiError::operation_not_allowed("machines cannot be copied to a library of ISO images"));
    }
    let _mark = ctx.begin("VM", &vm, "copy", |tx| {
        allowed::vm(tx, &vm, "copy")?;
        disks_of(tx, &vm, &[])?.iter().try_for_each(|disk| vdi::check(tx, disk.vdi.id(), "copy", false))
    })?;
    let disks = ctx.db().read(|state| disks_of(state, &vm, &[]))?;
    let total: f64 = disks.iter().map(|disk| disk.vdi.int("virtual_size") as f64).sum();
    let mut copies: Vec<Provisional> = Vec::new();
    let made = async {
        let mut done = 0.0;
        let mut moved = Moved::default();
        for disk in &disks {
            let target = if sr.is_null() { disk.vdi.reference("SR") } else { sr.clone() };
            let next = done + disk.vdi.int("virtual_size") as f64;
            let part = CallContext { task: ctx.task.part(done / total, next / total), ..ctx.clone() };
            let copy = copy_to_sr(&part, &disk.vdi, &target).await?;
            moved += copy.moved;
            copies.push(copy);
            done = next;
        }
        let vdis: Vec<Ref> = copies.iter().map(|copy| copy.vdi.clone()).collect();
        ctx.db().write(|tx| {
            copies.iter().for_each(|copy| tx.clear_intent(&copy.intent));
            record(tx, &vm, name, &disks, &vdis, moved)
        })
    };
    let made = made.await;
    if made.is_err() {
        for copy in &copies {
            discard(&ctx.daemon, std::slice::from_ref(&copy.vdi), &copy.intent).await;
        }
    }
    made.map(Value::from)
}
