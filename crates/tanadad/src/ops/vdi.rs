//! VDIs: made, cut, cloned, resized, reverted, forgotten, destroyed.
//!
//! A VDI's `location` is its volume's name at the driver; for disks made here it is the VDI's uuid as well. A VDI that
//! is a snapshot is a generation: immutable, never attached for writing.

use std::sync::Arc;

use futures_util::FutureExt;
use tanada_driver::{CloneRequest, CreateRequest, CutPair, CutReport, Driver, DriverErrorKind, DriverResult};
use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};
use uuid::Uuid;

use super::cbt::{self, METADATA_TYPE, OF_METADATA};
use super::intents::{self, Plan};
use super::records::{bytes, copied, given, int, must_exist, strings, text};
use super::sr::{sizes_changed, space_comes_back, space_keys};
use super::throw_away;
use crate::context::{Args, CallContext, Daemon, Handlers, Operation};
use crate::db::{Record, Tx, View};
use crate::schedule::space;
use crate::storage::{driver_error, is_attached, volume_id};

pub fn handlers() -> Handlers {
    vec![
        ("VDI.create", |ctx, args| create(ctx, args).boxed()),
        ("VDI.introduce", |ctx, args| introduce(ctx, args).boxed()),
        ("VDI.destroy", |ctx, args| destroy(ctx, args).boxed()),
        ("VDI.forget", |ctx, args| forget(ctx, args).boxed()),
        ("VDI.snapshot", |ctx, args| snapshot(ctx, args).boxed()),
        ("VDI.clone", |ctx, args| clone(ctx, args).boxed()),
        ("VDI.revert", |ctx, args| revert(ctx, args).boxed()),
        ("VDI.resize", |ctx, args| resize(ctx, args, "resize").boxed()),
        ("VDI.resize_online", |ctx, args| resize(ctx, args, "resize_online").boxed()),
        ("VDI.update", |ctx, args| update(ctx, args).boxed()),
        ("VDI.set_name_label", |ctx, args| set_field(ctx, args, "name_label").boxed()),
        ("VDI.set_name_description", |ctx, args| set_field(ctx, args, "name_description").boxed()),
        ("VDI.set_read_only", |ctx, args| set_field(ctx, args, "read_only").boxed()),
        ("VDI.set_sharable", |ctx, args| set_field(ctx, args, "sharable").boxed()),
        ("VDI.set_allow_caching", |ctx, args| set_field(ctx, args, "allow_caching").boxed()),
    ]
}

/// Largest disk, in bytes: what a map of five levels reaches.
const SIZE_MAX: u64 = 1 << 52;

/// Fields that copies of a disk take over.
const COPIED: &[&str] = &[
    "name_label",
    "name_description",
    "type",
    "sharable",
    "other_config",
    "xenstore_data",
    "on_boot",
    "allow_caching",
    "tags",
];

/// A disk to be made.
#[derive(Debug, Clone)]
pub struct NewDisk {
    pub sr: Ref,
    /// Bytes; rounded up by the storage.
    pub virtual_size: u64,
    /// The reference that the record gets; a fresh one when it does not matter.
    pub id: Ref,
    /// Fields of the record beside those that follow from the above.
    pub fields: Vec<(&'static str, Value)>,
}

impl NewDisk {
    pub fn new(sr: &Ref, virtual_size: u64, name_label: &str, name_description: &str) -> NewDisk {
        let fields = vec![
            ("name_label", Value::from(name_label)),
            ("name_description", Value::from(name_description)),
            ("type", Value::from("user")),
        ];
        NewDisk { sr: sr.clone(), virtual_size, id: Ref::random(), fields }
    }

    pub fn with(mut self, field: &'static str, value: impl Into<Value>) -> NewDisk {
        self.fields.retain(|(name, _)| *name != field);
        self.fields.push((field, value.into()));
        self
    }

    fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// What the driver is asked for. `sm_config:vmhint` names the machine: the disk goes to the volumes of its others.
    fn request(&self, daemon: &Daemon, volume: Uuid) -> ApiResult<CreateRequest> {
        let config = self.field("sm_config").and_then(Value::as_map).map(strings).unwrap_or_default();
        let name_label = self.field("name_label").and_then(Value::as_str).unwrap_or_default().to_owned();
        let vm = config.get("vmhint").and_then(|hint| Uuid::parse_str(hint).ok());
        let (kind, near) = daemon.db.read(|state| {
            let kind = state.get("SR", &self.sr)?.str("type").to_owned();
            Ok::<_, ApiError>((kind, vm.and_then(|vm| disk_of_machine(state, vm, &self.sr))))
        })?;
        let known = daemon.storage.backend(&kind)?.facts().options;
        let options = config.into_iter().filter(|(key, _)| known.contains(&key.as_str())).collect();
        Ok(CreateRequest { volume, size: self.virtual_size, name_label, near, vm, options })
    }
}

/// The volume of a disk that a machine has on this SR.
fn disk_of_machine(view: &impl View, vm: Uuid, sr: &Ref) -> Option<Uuid> {
    let machine = view.find_by_uuid("VM", &vm.to_string())?;
    let vbds = view.resolve("VBD", &machine.refs("VBDs"));
    let disks: Vec<Ref> = vbds.iter().filter(|vbd| vbd.str("type") == "Disk").map(|vbd| vbd.reference("VDI")).collect();
    let vdi = view.resolve("VDI", &disks).into_iter().find(|vdi| vdi.reference("SR") == *sr)?;
    volume_id(vdi.str("location")).ok()
}

/// Makes an empty disk: volume and record, or neither.
pub async fn create_disk(daemon: &Daemon, disk: &NewDisk) -> ApiResult<Ref> {
    let driver = daemon.storage.driver(&disk.sr)?;
    let volume = Uuid::new_v4();
    let intent = Plan::Create { sr: disk.sr.to_string(), volumes: vec![volume] }.write(daemon)?;
    let made = async {
        let request = disk.request(daemon, volume)?;
        let (size, _) = driver.create(&request).await.map_err(driver_error)?;
        daemon.db.write(|tx| {
            let id = record_as(tx, disk.id.clone(), &disk.sr, volume, size, disk.fields.clone())?;
            tx.clear_intent(&intent);
            Ok(id)
        })
    };
    let made = made.await;
    match &made {
        Ok(_) => sizes_changed(daemon, &disk.sr).await,
        Err(_) => intents::give_up(daemon, &disk.sr, &[volume], &intent).await,
    }
    made
}

/// A record for a volume that is there.
pub fn record_for(
    tx: &mut Tx<'_>,
    sr: &Ref,
    volume: Uuid,
    size: u64,
    fields: Vec<(&'static str, Value)>,
) -> ApiResult<Ref> {
    record_as(tx, Ref::random(), sr, volume, size, fields)
}

fn record_as(
    tx: &mut Tx<'_>,
    id: Ref,
    sr: &Ref,
    volume: Uuid,
    size: u64,
    fields: Vec<(&'static str, Value)>,
) -> ApiResult<Ref> {
    let mut all = fields;
    let name = volume.to_string();
    all.extend([
        ("uuid", Value::from(name.as_str())),
        ("location", Value::from(name.as_str())),
        ("SR", Value::from(sr)),
        ("virtual_size", int(size)),
        ("managed", Value::from(true)),
    ]);
    tx.create_as("VDI", id, all)
}

async fn create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let record = args.map("args")?;
    let sr = Ref::from(text(record, "SR"));
    let kind = text(record, "type");
    if kind == METADATA_TYPE {
        return Err(ApiError::vdi_incompatible_type(Ref::null(), kind));
    }
    let size = record.get("virtual_size").and_then(Value::as_int).unwrap_or_default();
    let size = bytes("virtual_size", size)?;
    check_size(size)?;
    let _busy = ctx.begin("SR", &sr, "vdi_create", |tx| must_exist(tx, "SR", &sr))?;
    let mut disk = NewDisk { sr: sr.clone(), virtual_size: size, id: Ref::random(), fields: Vec::new() };
    disk.fields =
        given("VDI", record)?.into_iter().filter(|(field, _)| !matches!(*field, "SR" | "virtual_size")).collect();
    create_disk(&ctx.daemon, &disk).await.map(Value::from)
}

fn check_size(size: u64) -> ApiResult<()> {
    if size == 0 || size > SIZE_MAX {
        let words = format!("a disk of {size} bytes cannot be made; 1 to {SIZE_MAX} are possible");
        return Err(ApiError::sr_backend_failure(79, words));
    }
    Ok(())
}

async fn introduce(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (sr, location) = (args.reference("SR")?, args.string("location")?);
    let uuid = args.str("uuid")?;
    if !uuid.is_empty() && Uuid::parse_str(uuid).is_err() {
        return Err(ApiError::uuid_invalid("VDI", uuid));
    }
    ctx.db().read(|state| {
        let vdis = state.resolve("VDI", &state.get("SR", &sr)?.refs("VDIs"));
        match vdis.iter().any(|vdi| vdi.str("location") == location && vdi.uuid() != uuid) {
            true => Err(ApiError::location_not_unique(&sr, &location)),
            false => Ok(()),
        }
    })?;
    let facts = ctx.daemon.storage.driver(&sr)?.stat(volume_id(&location)?).await.map_err(driver_error)?;
    let made = ctx.db().write(|tx| {
        if !uuid.is_empty()
            && let Some(known) = tx.find_by_uuid("VDI", uuid)
        {
            return Ok(known.id().clone());
        }
        let mut fields = vec![
            ("SR", Value::from(&sr)),
            ("location", Value::from(location.as_str())),
            ("virtual_size", int(facts.size)),
            ("is_a_snapshot", Value::from(facts.is_generation)),
        ];
        if !uuid.is_empty() {
            fields.push(("uuid", Value::from(uuid)));
        }
        for field in [
            "name_label",
            "name_description",
            "type",
            "sharable",
            "read_only",
            "other_config",
            "xenstore_data",
            "sm_config",
        ] {
            fields.push((field, args.value(field)?.clone()));
        }
        for field in ["managed", "snapshot_time", "snapshot_of"] {
            fields.push((field, args.value(field)?.clone()));
        }
        tx.create("VDI", fields)
    })?;
    refresh(&ctx.daemon, &made).await?;
    Ok(Value::from(made))
}

/// The checks that all operations on a disk share, in the documented order.
///
/// `live` operations may run while the disk is in use by a machine.
pub fn check(tx: &Tx<'_>, vdi: &Ref, operation: &str, live: bool) -> ApiResult<()> {
    let record = tx.get("VDI", vdi)?;
    if let Some((task, running)) =
        record.map("current_operations").iter().find(|(_, running)| running.as_str() != Some("copy"))
    {
        return Err(ApiError::other_operation_in_progress("VDI", vdi, running.as_str().unwrap_or_default(), task));
    }
    let vbds = tx.resolve("VBD", &record.refs("VBDs"));
    let attached = vbds.iter().filter(|vbd| vbd.bool("currently_attached"));
    let readers_only = attached.clone().all(|vbd| vbd.str("mode") == "RO");
    if attached.count() > 0 && !live && !(operation == "copy" && readers_only) {
        return Err(ApiError::vdi_in_use(vdi, operation));
    }
    if !record.bool("managed") {
        return Err(ApiError::vdi_not_managed(vdi));
    }
    if record.str("type") == METADATA_TYPE && !OF_METADATA.contains(&operation) {
        return Err(ApiError::vdi_incompatible_type(vdi, METADATA_TYPE));
    }
    if operation == "snapshot" && record.bool("sharable") {
        return Err(ApiError::vdi_is_sharable(vdi));
    }
    Ok(())
}

/// Checks and marks an operation on a disk whose SR must be attached.
pub fn begin(
    ctx: &CallContext,
    vdi: &Ref,
    operation: &'static str,
    live: bool,
) -> ApiResult<(Operation, Arc<Record>, Arc<dyn Driver>)> {
    let record = ctx.db().read(|state| state.get("VDI", vdi))?;
    let mark = ctx.begin("VDI", vdi, operation, |tx| check(tx, vdi, operation, live))?;
    // Attachments of the daemon itself (a transfer) have no VBD. Whoever comes from here on sees the mark.
    if !live && operation != "copy" && is_attached(&ctx.daemon, vdi) {
        return Err(ApiError::vdi_in_use(vdi, operation));
    }
    let driver = ctx.daemon.storage.driver(&record.reference("SR"))?;
    Ok((mark, record, driver))
}

async fn snapshot(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vdi = args.reference("vdi")?;
    let (_mark, record, driver) = begin(&ctx, &vdi, "snapshot", true)?;
    space::room_for_generations(&ctx.daemon, &record.reference("SR")).await?;
    let (copies, report) = copies(&ctx.daemon, &driver, &[record], true, None).await?;
    ctx.task.moved(report.moved);
    copies.first().map(Value::from).ok_or_else(|| ApiError::internal("no snapshot was made"))
}

async fn clone(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vdi = args.reference("vdi")?;
    let purpose = args.map("driver_params")?.get(throw_away::MARK).cloned();
    let (_mark, record, driver) = begin(&ctx, &vdi, "clone", true)?;
    let (copies, report) = copies(&ctx.daemon, &driver, &[record], false, purpose).await?;
    ctx.task.moved(report.moved);
    copies.first().map(Value::from).ok_or_else(|| ApiError::internal("no clone was made"))
}

/// Snapshots or clones of disks of one SR, with their records; throw-away ones where it is said what for.
async fn copies(
    daemon: &Daemon,
    driver: &Arc<dyn Driver>,
    disks: &[Arc<Record>],
    as_snapshots: bool,
    throw_away_for: Option<Value>,
) -> ApiResult<(Vec<Ref>, CutReport)> {
    let Some(first) = disks.first() else { return Ok((Vec::new(), CutReport::default())) };
    let sr = first.reference("SR");
    let planned = plan_copies(disks)?;
    let volumes: Vec<Uuid> = planned.iter().map(|copy| copy.volume).collect();
    let intent = Plan::Create { sr: sr.to_string(), volumes: volumes.clone() }.write(daemon)?;
    let made = async {
        let report = copy_volumes(driver.as_ref(), &planned, as_snapshots).await.map_err(driver_error)?;
        let ids = daemon.db.write(|tx| {
            let ids: ApiResult<Vec<Ref>> = planned.iter().map(|copy| copy.record(tx, as_snapshots)).collect();
            let ids = ids?;
            if let Some(purpose) = throw_away_for {
                for vdi in &ids {
                    tx.put_entry("VDI", vdi, "other_config", throw_away::MARK, purpose.clone())?;
                }
            }
            tx.clear_intent(&intent);
            Ok(ids)
        })?;
        Ok((ids, report))
    };
    let made = made.await;
    match &made {
        Ok(_) => sizes_changed(daemon, &sr).await,
        Err(_) => intents::give_up(daemon, &sr, &volumes, &intent).await,
    }
    made
}

/// A disk and the volume that a copy of it will be.
#[derive(Debug, Clone)]
pub struct PlannedCopy {
    pub source: Arc<Record>,
    pub source_volume: Uuid,
    pub volume: Uuid,
}

pub fn plan_copies(disks: &[Arc<Record>]) -> ApiResult<Vec<PlannedCopy>> {
    let plan = |disk: &Arc<Record>| {
        let source_volume = volume_id(disk.str("location"))?;
        Ok(PlannedCopy { source: disk.clone(), source_volume, volume: Uuid::new_v4() })
    };
    disks.iter().map(plan).collect()
}

/// The driver's part: one cut for all snapshots, or a clone each.
pub async fn copy_volumes(driver: &dyn Driver, planned: &[PlannedCopy], as_snapshots: bool) -> DriverResult<CutReport> {
    // A snapshot's content does not change: another name for it is a clone that nobody writes to.
    let (cut, cloned): (Vec<_>, Vec<_>) =
        planned.iter().partition(|copy| as_snapshots && !copy.source.bool("is_a_snapshot"));
    let group: Vec<CutPair> =
        cut.iter().map(|copy| CutPair { volume: copy.source_volume, generation: copy.volume }).collect();
    let mut report = if group.is_empty() { CutReport::default() } else { driver.snapshot(&group).await? };
    for copy in cloned {
        let request = CloneRequest {
            name_label: copy.source.str("name_label").to_owned(),
            // The disks of one machine lie together, so that they can be cut together.
            near: planned.first().map(|first| first.volume).filter(|first| *first != copy.volume),
            ..CloneRequest::new(copy.source_volume, copy.volume)
        };
        report.moved += driver.clone_volume(&request).await?;
    }
    Ok(report)
}

impl PlannedCopy {
    /// The record of the copy.
    pub fn record(&self, tx: &mut Tx<'_>, as_snapshot: bool) -> ApiResult<Ref> {
        // The source may have been renamed meanwhile.
        let source = tx.find("VDI", self.source.id()).unwrap_or_else(|| self.source.clone());
        let mut fields = copied(&source, COPIED);
        if as_snapshot {
            fields.push(("is_a_snapshot", Value::from(true)));
            fields.push(("snapshot_of", Value::from(source.id())));
            fields.push(("snapshot_time", Value::from(DateTime::now())));
            fields.push(("cbt_enabled", Value::from(source.bool("cbt_enabled"))));
        }
        let size = u64::try_from(source.int("virtual_size")).unwrap_or_default();
        record_for(tx, &source.reference("SR"), self.volume, size, fields)
    }
}

async fn revert(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let snapshot = args.reference("snapshot")?;
    let known = ctx.db().read(|state| state.get("VDI", &snapshot))?;
    if !known.bool("is_a_snapshot") {
        return Err(ApiError::operation_not_allowed("revert goes back to a snapshot; this VDI is none"));
    }
    let (_mark, record, driver) = begin(&ctx, &snapshot, "blocked", true)?;
    let target = record.reference("snapshot_of");
    let (_target_mark, head, _) = begin(&ctx, &target, "blocked", false)?;
    if !driver.capabilities().revert_in_place {
        return Err(ApiError::sr_operation_not_supported(record.reference("SR")));
    }
    let (volume, generation) = (volume_id(head.str("location"))?, volume_id(record.str("location"))?);
    ctx.task.moved(driver.revert(volume, generation).await.map_err(driver_error)?);
    ctx.db().write(|tx| tx.set("VDI", &target, "virtual_size", record.int("virtual_size")))?;
    sizes_changed(&ctx.daemon, &record.reference("SR")).await;
    Ok(Value::Void)
}

async fn resize(ctx: CallContext, args: Args, operation: &'static str) -> ApiResult<Value> {
    let vdi = args.reference("vdi")?;
    let size = bytes("size", args.int("size")?)?;
    check_size(size)?;
    let known = ctx.db().read(|state| state.get("VDI", &vdi))?;
    let online = operation == "resize_online";
    if online
        && !ctx.daemon.storage.driver(&known.reference("SR"))?.capabilities().resize_online
        && is_attached(&ctx.daemon, &vdi)
    {
        return Err(ApiError::sr_operation_not_supported(known.reference("SR")));
    }
    let (_mark, record, driver) = begin(&ctx, &vdi, operation, online)?;
    if record.bool("is_a_snapshot") {
        return Err(ApiError::vdi_readonly(&vdi));
    }
    let current = u64::try_from(record.int("virtual_size")).unwrap_or_default();
    if size < current {
        let words = format!("the disk has {current} bytes and cannot shrink to {size}");
        return Err(ApiError::sr_backend_failure(79, words));
    }
    let volume = volume_id(record.str("location"))?;
    let sr = record.reference("SR");
    let intent = Plan::Resize { sr: sr.to_string(), vdi: vdi.to_string(), volume, size }.write(&ctx.daemon)?;
    match driver.resize(volume, size).await {
        Ok((reached, moved)) => {
            ctx.task.moved(moved);
            finish_resize(&ctx.daemon, &vdi, reached, &intent)?;
            crate::vmm::disks::grown(&ctx.daemon, &vdi, reached).await;
        }
        Err(error) => {
            // It may have taken effect all the same: the storage's word counts.
            if let Ok(facts) = driver.stat(volume).await {
                finish_resize(&ctx.daemon, &vdi, facts.size, &intent)?;
            }
            return Err(driver_error(error));
        }
    }
    sizes_changed(&ctx.daemon, &sr).await;
    Ok(Value::Void)
}

pub fn finish_resize(daemon: &Daemon, vdi: &Ref, size: u64, intent: &str) -> ApiResult<()> {
    daemon.db.write(|tx| {
        tx.clear_intent(intent);
        match tx.find("VDI", vdi) {
            Some(_) => tx.set("VDI", vdi, "virtual_size", int(size)),
            None => Ok(()),
        }
    })
}

async fn destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vdi = args.reference("self")?;
    let (_mark, ..) = begin(&ctx, &vdi, "destroy", false)?;
    destroy_disk(&ctx.daemon, &vdi).await?;
    Ok(Value::Void)
}

/// Ends a disk: its volume, then its record with its VBDs. Checks nothing beside what the driver checks.
pub async fn destroy_disk(daemon: &Arc<Daemon>, vdi: &Ref) -> ApiResult<()> {
    let record = daemon.db.read(|state| state.get("VDI", vdi))?;
    let sr = record.reference("SR");
    let driver = daemon.storage.driver(&sr)?;
    let Some(_turn) = cbt::destroyed(daemon, &record).await? else {
        sizes_changed(daemon, &sr).await;
        return Ok(());
    };
    let volume = volume_id(record.str("location"))?;
    let intent = Plan::Destroy { sr: sr.to_string(), vdi: vdi.to_string(), volume }.write(daemon)?;
    if let Err(error) = driver.destroy(volume).await {
        // The answer may be lost and the volume gone all the same.
        let gone = driver.stat(volume).await.is_err_and(|error| error.kind == DriverErrorKind::NotFound);
        if !gone {
            intents::clear(daemon, &intent)?;
            return Err(driver_error(error));
        }
    }
    finish_destroy(daemon, vdi, &intent)?;
    sizes_changed(daemon, &sr).await;
    space_comes_back(daemon, &sr);
    Ok(())
}

/// The volume is gone: so is the record.
pub fn finish_destroy(daemon: &Daemon, vdi: &Ref, intent: &str) -> ApiResult<()> {
    daemon.db.write(|tx| {
        if tx.find("VDI", vdi).is_some() {
            remove_record(tx, vdi)?;
        }
        tx.clear_intent(intent);
        Ok(())
    })
}

/// Removes a VDI's record with its VBDs.
pub fn remove_record(tx: &mut Tx<'_>, vdi: &Ref) -> ApiResult<()> {
    for vbd in tx.get("VDI", vdi)?.refs("VBDs") {
        tx.destroy("VBD", &vbd)?;
    }
    for vm in tx.having("VM", "suspend_VDI", vdi.as_str()) {
        tx.set("VM", vm.id(), "suspend_VDI", Ref::null())?;
    }
    tx.destroy("VDI", vdi)
}

async fn forget(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vdi = args.reference("vdi")?;
    if is_attached(&ctx.daemon, &vdi) {
        return Err(ApiError::vdi_in_use(&vdi, "forget"));
    }
    ctx.db().write(|tx| {
        check(tx, &vdi, "forget", false)?;
        remove_record(tx, &vdi)
    })?;
    Ok(Value::Void)
}

async fn update(ctx: CallContext, args: Args) -> ApiResult<Value> {
    refresh(&ctx.daemon, &args.reference("vdi")?).await?;
    Ok(Value::Void)
}

/// Reads a disk's size and space again. `physical_utilisation` is what comes back when only this disk is destroyed;
/// `sm_config` has that and what it shares (`tanada:mapped`, `tanada:exclusive`, `tanada:shared`), in bytes.
pub async fn refresh(daemon: &Daemon, vdi: &Ref) -> ApiResult<()> {
    let record = daemon.db.read(|state| state.get("VDI", vdi))?;
    if record.str("type") == METADATA_TYPE {
        return Ok(());
    }
    let driver = daemon.storage.driver(&record.reference("SR"))?;
    let facts = driver.stat(volume_id(record.str("location"))?).await.map_err(driver_error)?;
    daemon.db.write(|tx| {
        let mut config: Map = tx.get("VDI", vdi)?.map("sm_config").clone();
        for (key, value) in space_keys(&facts) {
            config.insert(key.to_owned(), Value::from(value.to_string()));
        }
        tx.set_all(
            "VDI",
            vdi,
            [
                ("virtual_size", int(facts.size)),
                ("physical_utilisation", int(facts.exclusive)),
                ("sm_config", Value::Map(config)),
            ],
        )
    })
}

async fn set_field(ctx: CallContext, args: Args, field: &'static str) -> ApiResult<Value> {
    let (vdi, value) = (args.reference("self")?, args.value("value")?.clone());
    ctx.db().write(|tx| {
        let record = tx.get("VDI", &vdi)?;
        let attached = tx.resolve("VBD", &record.refs("VBDs")).iter().any(|vbd| vbd.bool("currently_attached"));
        if attached && matches!(field, "read_only" | "sharable") {
            return Err(ApiError::vdi_in_use(&vdi, field));
        }
        tx.set("VDI", &vdi, field, value)
    })?;
    Ok(Value::Void)
}
