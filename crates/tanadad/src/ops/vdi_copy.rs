//! VDI.copy: all data to another disk, through NBD on both sides. Sparse, with progress; a cancelled or failed copy
//! leaves no new disk behind.

use std::sync::Arc;

use futures_util::FutureExt;
use tanada_driver::Moved;
use tanada_nbd::client::NbdError;
use tanada_nbd::copy;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::intents::{self, Plan};
use super::records::{copied, must_exist};
use super::vdi::{NewDisk, begin, create_disk, destroy_disk};
use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::{Record, View};
use crate::storage::detach_daemon;
use crate::transfer::attached::{Access, Attached, disk_error};
use crate::transfer::rate::Rate;

pub fn handlers() -> Handlers {
    vec![("VDI.copy", |ctx, args| copy_message(ctx, args).boxed())]
}

/// Fields that an independent copy takes over.
const COPIED: &[&str] = &["name_label", "name_description", "type", "other_config", "xenstore_data", "tags"];

async fn copy_message(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vdi = args.reference("vdi")?;
    let (sr, into) = (args.reference("sr")?, args.reference("into_vdi")?);
    if !args.reference("base_vdi")?.is_null() {
        return Err(ApiError::not_implemented("VDI.copy with base_vdi"));
    }
    let (_mark, source, _) = begin(&ctx, &vdi, "copy", false)?;
    match (sr.is_null(), into.is_null()) {
        (false, true) => {
            let copy = copy_to_sr(&ctx, &source, &sr).await?;
            intents::clear(&ctx.daemon, &copy.intent)?;
            Ok(Value::from(copy.vdi))
        }
        (true, false) => {
            copy_into(&ctx, &source, &into).await?;
            Ok(Value::from(into))
        }
        _ => Err(ApiError::invalid_value("sr, into_vdi", "one of the two is needed, not both")),
    }
}

/// A finished copy that goes again at the next start unless the intent is struck off.
pub struct Provisional {
    pub vdi: Ref,
    pub intent: String,
    pub moved: Moved,
}

/// An independent disk on `sr` with the source's content; progress goes to the context's task.
pub async fn copy_to_sr(ctx: &CallContext, source: &Record, sr: &Ref) -> ApiResult<Provisional> {
    let target_sr = ctx.db().read(|state| state.get("SR", sr))?;
    if target_sr.str("content_type") == "iso" {
        return Err(ApiError::operation_not_allowed("disks cannot be copied to a library of ISO images"));
    }
    let _busy = ctx.begin("SR", sr, "vdi_create", |tx| must_exist(tx, "SR", sr))?;
    let size = u64::try_from(source.int("virtual_size")).unwrap_or_default();
    let vdi = Ref::random();
    let disk = NewDisk { sr: sr.clone(), virtual_size: size, id: vdi.clone(), fields: copied(source, COPIED) };
    let intent = Plan::Discard { vdis: vec![vdi.to_string()] }.write(&ctx.daemon)?;
    let copied = async {
        create_disk(&ctx.daemon, &disk).await?;
        ctx.task.until_cancelled(copy_data(ctx, source.id(), &vdi, true)).await?
    };
    match copied.await {
        Ok(moved) => Ok(Provisional { vdi, intent, moved }),
        Err(error) => {
            discard(&ctx.daemon, &[vdi], &intent).await;
            Err(error)
        }
    }
}

/// Destroys disks that served an operation which has failed, or a snapshot that goes; those that are left go a while later.
pub async fn discard(daemon: &Arc<Daemon>, vdis: &[Ref], intent: &str) {
    let mut all_gone = true;
    for vdi in vdis {
        if daemon.db.read(|state| state.find("VDI", vdi)).is_none() {
            continue;
        }
        // Readers and writers of an operation that was cancelled may still be going.
        if let Err(error) = detach_daemon(daemon, vdi).await {
            tracing::warn!(%vdi, %error, "a disk that goes could not be detached");
        }
        if let Err(error) = destroy_disk(daemon, vdi).await {
            tracing::warn!(%vdi, %error, "a disk that goes could not be destroyed yet");
            all_gone = false;
        }
    }
    if !all_gone {
        daemon.left.add(intent);
    } else if let Err(error) = intents::clear(daemon, intent) {
        tracing::error!(%error, "the end of an unfinished operation could not be recorded");
    }
}

async fn copy_into(ctx: &CallContext, source: &Record, into: &Ref) -> ApiResult<()> {
    let (_mark, target, _) = begin(ctx, into, "copy", false)?;
    if target.bool("read_only") || target.bool("is_a_snapshot") {
        return Err(ApiError::vdi_readonly(into));
    }
    let needed = source.int("virtual_size");
    if target.int("virtual_size") < needed {
        return Err(ApiError::vdi_too_small(into, needed));
    }
    ctx.task.until_cancelled(copy_data(ctx, source.id(), into, false)).await?.map(drop)
}

async fn copy_data(ctx: &CallContext, source: &Ref, target: &Ref, target_is_zero: bool) -> ApiResult<Moved> {
    let rate = Rate::default().and_of_disk(&ctx.daemon, source)?.and_of_disk(&ctx.daemon, target)?;
    let from = Attached::open(&ctx.daemon, source, Access::Read).await?;
    let to = match Attached::open(&ctx.daemon, target, Access::Write).await {
        Ok(to) => to,
        Err(error) => {
            from.release().await;
            return Err(error);
        }
    };
    let copied = async {
        let (source, target) = (from.client()?, to.client()?);
        let size = source.size().max(1);
        let turn = |bytes| {
            let rate = rate.clone();
            async move { rate.turn(bytes).await }
        };
        let progress = |done| ctx.task.progress(done as f64 / size as f64);
        let done = copy::copy(&source, &target, target_is_zero, rate.piece_bytes(), turn, progress).await;
        done.map_err(|error: NbdError| disk_error(error))
    };
    let copied = copied.await;
    from.release().await;
    to.release().await;
    let moved = Moved { changed: true, bytes_by_host: copied?.written, bytes_by_storage: 0 };
    ctx.task.moved(moved);
    Ok(moved)
}
