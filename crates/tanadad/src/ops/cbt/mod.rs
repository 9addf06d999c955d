//! Changed blocks, as backup programs ask for them: `VDI.enable_cbt`, `list_changed_blocks`, `data_destroy`.
//!
//! The storage knows the difference of any two versions of a disk by itself, so nothing is tracked while guests write and
//! `cbt_enabled` is no more than a mark: whoever sees it may destroy a snapshot's data and still ask what changed since.
//!
//! # A snapshot without its data
//! The difference needs both versions. So before a snapshot's volume is given back, what changed until the next
//! snapshot of the disk is written down in a log:
//!
//! ```text
//!   snapshot A --data_destroy--> pending: the log of A leads to A itself, the volume is still there
//!                                   | the disk's next snapshot B is there (at once, where there is one)
//!                                   v
//!                                the log of A leads to B with the difference; A's volume is destroyed
//!   B destroyed with its record:  where a log leads to B, B's volume stays as a pending log of nobody, until
//!                                 there is a later snapshot C; then A's log leads to C with both differences
//! ```
//! So the data of the newest snapshot goes when the next one is taken: until then it costs what the disk has overwritten
//! since, as any snapshot does.
//!
//! # Invariants
//! 1. `difference(X, Y)` lies within `difference(X, P)` and `difference(P, Y)` together, whatever P is. An answer pieced
//!    together of logs may tell too much, never too little; as each log leads to the next snapshot, it tells what was
//!    written in between and nothing else.
//! 2. A volume is destroyed after its log is durable, and a VDI becomes `cbt_metadata` after its log is there. A log of a
//!    VDI that has its data means that the process ended in between: it is disregarded.
//! 3. What a log names is not strange to SR.scan ([`volumes`]).
//!
//! The logs lie beside the database, not on the SR: on another host, or after SR.forget, a disk's next backup is a full one.

mod bitmap;
mod logs;
mod settle;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tanada_driver::{Driver, DriverError, DriverErrorKind};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::vdi::{begin, remove_record};
use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::{Record, View};
use crate::ops::follow::follow;
use crate::storage::{driver_error, is_attached, volume_id};

use bitmap::Bitmap;
use logs::Log;
pub use logs::Logs;
use settle::Touched;

/// Type of a VDI whose data is destroyed.
pub const METADATA_TYPE: &str = "cbt_metadata";
/// Operations that such a VDI allows.
pub const OF_METADATA: &[&str] = &["destroy", "data_destroy", "list_changed_blocks", "forget", "update"];
/// The feature of storage that all this takes.
pub const FEATURE: &str = "VDI_CONFIG_CBT";

/// Number of the storage error for changes that cannot be told.
const UNKNOWN_CHANGES: u32 = 460;
/// How long `data_destroy` waits for the last user of a snapshot to go.
const USERS_LIMIT: Duration = Duration::from_secs(4);
const USERS_LOOK: Duration = Duration::from_millis(50);

pub fn handlers() -> Handlers {
    vec![
        ("VDI.enable_cbt", |ctx, args| configure(ctx, args, true).boxed()),
        ("VDI.disable_cbt", |ctx, args| configure(ctx, args, false).boxed()),
        ("VDI.data_destroy", |ctx, args| data_destroy(ctx, args).boxed()),
        ("VDI.list_changed_blocks", |ctx, args| list_changed_blocks(ctx, args).boxed()),
    ]
}

async fn configure(ctx: CallContext, args: Args, enabled: bool) -> ApiResult<Value> {
    let vdi = args.reference("self")?;
    let record = ctx.db().read(|state| state.get("VDI", &vdi))?;
    if record.bool("is_a_snapshot") {
        return Err(ApiError::operation_not_allowed(format!("VDI is a snapshot: {vdi}")));
    }
    let kind = record.str("type");
    if !matches!(kind, "system" | "user") {
        return Err(ApiError::vdi_incompatible_type(&vdi, kind));
    }
    if record.str("on_boot") == "reset" {
        return Err(ApiError::vdi_on_boot_mode_incompatible_with_operation());
    }
    if record.bool("cbt_enabled") == enabled {
        return Ok(Value::Void);
    }
    let (_mark, record, driver) = begin(&ctx, &vdi, if enabled { "enable_cbt" } else { "disable_cbt" }, true)?;
    supported(driver.as_ref(), &record)?;
    ctx.db().write(|tx| tx.set("VDI", &vdi, "cbt_enabled", enabled))?;
    Ok(Value::Void)
}

fn supported(driver: &dyn Driver, vdi: &Record) -> ApiResult<()> {
    match driver.capabilities().exact_difference {
        true => Ok(()),
        false => Err(ApiError::sr_operation_not_supported(vdi.reference("SR"))),
    }
}

/// Can the storage of this VDI tell differences? For what clients are told to be allowed.
pub fn is_supported(view: &impl View, sr: &Record) -> bool {
    let kinds = view.all("SM");
    kinds.iter().any(|kind| kind.str("type") == sr.str("type") && kind.map("features").contains_key(FEATURE))
}

async fn data_destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vdi = args.reference("self")?;
    let known = ctx.db().read(|state| state.get("VDI", &vdi))?;
    if known.str("type") == METADATA_TYPE {
        return Ok(Value::Void);
    }
    if !known.bool("is_a_snapshot") {
        return Err(ApiError::operation_not_allowed(format!("VDI is not a snapshot: {vdi}")));
    }
    if !known.bool("cbt_enabled") {
        return Err(ApiError::vdi_no_cbt_metadata(&vdi));
    }
    users_gone(&ctx, &vdi).await?;
    let (_mark, record, driver) = begin(&ctx, &vdi, "data_destroy", false)?;
    supported(driver.as_ref(), &record)?;
    let (sr, volume) = (sr_uuid(&ctx.daemon, &record)?, volume_id(record.str("location"))?);
    let _turn = ctx.daemon.cbt.turn(sr).write_owned().await;
    ctx.daemon.cbt.save(sr, &pending(&record, volume), &Bitmap::default())?;
    ctx.db().write(|tx| {
        tx.set_all("VDI", &vdi, [("type", Value::from(METADATA_TYPE)), ("physical_utilisation", Value::from(0))])
    })?;
    settle::settle(&ctx.daemon, sr, touched(&record)).await;
    Ok(Value::Void)
}

/// Waits a while for a snapshot to be in nobody's use: in no machine, and attached to nobody.
async fn users_gone(ctx: &CallContext, vdi: &Ref) -> ApiResult<()> {
    let deadline = Instant::now() + USERS_LIMIT;
    loop {
        let in_machine = ctx.db().read(|state| state.get("VDI", vdi).map(|vdi| !vdi.refs("VBDs").is_empty()))?;
        if !in_machine && !is_attached(&ctx.daemon, vdi) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(ApiError::vdi_in_use(vdi, "data_destroy"));
        }
        sleep(USERS_LOOK).await;
    }
}

fn touched(vdi: &Record) -> Touched {
    let mut touched = Touched::default();
    touched.add(vdi);
    touched
}

fn pending(vdi: &Record, volume: Uuid) -> Log {
    let (disk, taken) = (vdi.reference("snapshot_of").to_string(), vdi.datetime("snapshot_time").unix());
    Log { volume, disk, taken, next: volume }
}

/// As [`data_destroy`] does, for records without storage.
#[cfg(test)]
pub fn keep_for_test(daemon: &Daemon, sr: Uuid, vdi: &Record) {
    let volume = volume_id(vdi.str("location")).unwrap();
    daemon.cbt.save(sr, &pending(vdi, volume), &Bitmap::default()).unwrap();
}

fn sr_uuid(daemon: &Daemon, vdi: &Record) -> ApiResult<Uuid> {
    let sr = daemon.db.read(|state| state.get("SR", &vdi.reference("SR")))?;
    Uuid::parse_str(sr.uuid()).map_err(|_| ApiError::uuid_invalid("SR", sr.uuid()))
}

/// Ends a VDI whose log, or another's that leads to it, needs a say. Otherwise answers what the caller holds while it
/// destroys the volume: no log may come to lead there meanwhile.
pub async fn destroyed(daemon: &Arc<Daemon>, vdi: &Record) -> ApiResult<Option<OwnedRwLockReadGuard<()>>> {
    let (sr, volume) = (sr_uuid(daemon, vdi)?, volume_id(vdi.str("location"))?);
    let reading = daemon.cbt.turn(sr).read_owned().await;
    if !is_needed(daemon, sr, vdi, volume) {
        return Ok(Some(reading));
    }
    drop(reading);
    let writing = daemon.cbt.turn(sr).write_owned().await;
    if !is_needed(daemon, sr, vdi, volume) {
        return Ok(Some(writing.downgrade()));
    }
    if vdi.str("type") != METADATA_TYPE {
        daemon.cbt.save(sr, &pending(vdi, volume), &Bitmap::default())?;
    }
    daemon.db.write(|tx| remove_record(tx, vdi.id()))?;
    settle::settle(daemon, sr, touched(vdi)).await;
    Ok(None)
}

fn is_needed(daemon: &Daemon, sr: Uuid, vdi: &Record, volume: Uuid) -> bool {
    match vdi.str("type") == METADATA_TYPE {
        true => daemon.cbt.knows(sr, volume),
        false => daemon.cbt.any(sr, |log| log.next == volume && log.volume != volume),
    }
}

/// Volumes that logs need, or are about to destroy: no records are made for them.
pub fn volumes(daemon: &Daemon) -> Vec<(Ref, Uuid)> {
    let one = |sr: Uuid| {
        let record = daemon.db.read(|state| state.find_by_uuid("SR", &sr.to_string()))?;
        Some(daemon.cbt.of(sr).into_keys().map(move |volume| (record.id().clone(), volume)).collect::<Vec<_>>())
    };
    daemon.cbt.srs().into_iter().filter_map(one).flatten().collect()
}

/// An SR is gone, or nobody's any more.
pub fn forget_sr(daemon: &Daemon, uuid: &str) {
    if let Ok(sr) = Uuid::parse_str(uuid) {
        daemon.cbt.forget_sr(sr);
    }
}

async fn list_changed_blocks(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (from, to) = (args.reference("vdi_from")?, args.reference("vdi_to")?);
    let (from, to) = ctx.db().read(|state| Ok::<_, ApiError>((state.get("VDI", &from)?, state.get("VDI", &to)?)))?;
    if from.id() == to.id() || from.reference("SR") != to.reference("SR") {
        return Err(unknown("Source and target VDI are unrelated"));
    }
    let vbds = ctx.db().read(|state| state.resolve("VBD", &to.refs("VBDs")));
    if vbds.iter().any(|vbd| vbd.bool("currently_attached")) && !to.bool("is_a_snapshot") {
        return Err(ApiError::vdi_in_use(to.id(), "list_changed_blocks"));
    }
    let driver = ctx.daemon.storage.driver(&to.reference("SR"))?;
    supported(driver.as_ref(), &to)?;
    let _turn = ctx.daemon.cbt.turn(sr_uuid(&ctx.daemon, &to)?).read_owned().await;
    let changed = changes(&ctx.daemon, driver.as_ref(), &from, &to).await?;
    let size = from.int("virtual_size").max(to.int("virtual_size"));
    let size = u64::try_from(size).unwrap_or_default();
    Ok(Value::from(changed.sized(size)?.to_base64()))
}

fn unknown(words: impl std::fmt::Display) -> ApiError {
    ApiError::sr_backend_failure(UNKNOWN_CHANGES, words)
}

/// What changed between two versions, each of which may be there or have a log only.
async fn changes(daemon: &Daemon, driver: &dyn Driver, from: &Record, to: &Record) -> ApiResult<Bitmap> {
    let (from, to) = (path(daemon, from)?, path(daemon, to)?);
    let meeting = from.iter().find_map(|(volume, before)| {
        let (_, after) = to.iter().find(|(other, _)| other == volume)?;
        Some((before, after))
    });
    if let Some((before, after)) = meeting {
        let mut all = before.clone();
        all.join(after);
        return Ok(all);
    }
    let (Some((old, before)), Some((new, after))) = (from.last(), to.last()) else {
        return Err(unknown("Source and target VDI are unrelated"));
    };
    let extents = driver.difference(*old, *new).await.map_err(difference_error)?;
    let mut all = Bitmap::of(&extents)?;
    all.join(before);
    all.join(after);
    Ok(all)
}

/// The versions to which a VDI's logs lead, itself first, each with what changed until there. The last one has its
/// volume.
fn path(daemon: &Daemon, vdi: &Record) -> ApiResult<Vec<(Uuid, Bitmap)>> {
    let mut at = volume_id(vdi.str("location"))?;
    let mut path = vec![(at, Bitmap::default())];
    if vdi.str("type") != METADATA_TYPE {
        return Ok(path);
    }
    let sr = sr_uuid(daemon, vdi)?;
    let logs = daemon.cbt.of(sr);
    if !logs.contains_key(&at) {
        return Err(unknown(format!("what changed since {} is not known on this host any more", vdi.uuid())));
    }
    let mut changed = Bitmap::default();
    while let Some(log) = logs.get(&at).filter(|log| !log.is_pending()) {
        changed.join(&daemon.cbt.bitmap(sr, at)?);
        at = log.next;
        path.push((at, changed.clone()));
        if path.len() > logs.len() + 1 {
            return Err(unknown(format!("the logs of {} lead in a circle", vdi.uuid())));
        }
    }
    Ok(path)
}

fn difference_error(error: DriverError) -> ApiError {
    match error.kind {
        DriverErrorKind::InvalidArgument => unknown("Source and target VDI are unrelated"),
        _ => driver_error(error),
    }
}

/// Reads the logs of an earlier life.
pub fn load(daemon: &Daemon) -> anyhow::Result<()> {
    Ok(daemon.cbt.load()?)
}

/// Gives data back as soon as the snapshots allow it, and ends what an earlier life left.
pub fn keep_current(daemon: &Arc<Daemon>) {
    follow(daemon, |daemon, seen| async move { settle_changed(&daemon, seen).await }.boxed());
}

/// One round of [`keep_current`]: looks at what changed after generation `seen`, answers the generation looked at.
///
/// Where a snapshot goes, the record of its disk changes. At the first round, after an SR was attached, and where something was
/// left, all logs are gone through.
pub async fn settle_changed(daemon: &Arc<Daemon>, seen: u64) -> u64 {
    let (generation, touched) = daemon.db.read(|state| {
        let mut touched = Touched { all: seen == 0, ..Touched::default() };
        if !daemon.cbt.is_empty() {
            touched.all |= state.changed_since("PBD", seen).next().is_some();
            state.changed_since("VDI", seen).for_each(|vdi| touched.add(vdi));
        }
        (state.generation(), touched)
    });
    for sr in daemon.cbt.srs() {
        if daemon.cbt.has_left(sr) || daemon.cbt.any(sr, |log| touched.concerns(log)) {
            let _turn = daemon.cbt.turn(sr).write_owned().await;
            settle::settle(daemon, sr, touched.clone()).await;
        }
    }
    generation
}
