//! SRs: made, introduced, scanned, forgotten, destroyed.
//!
//! The driver's work comes first and the records last, in one transaction with the end of the intent: an SR that a
//! client can see exists.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures_util::FutureExt;
use quick_xml::escape::escape;
use tanada_driver::registry::{Backend, Found, SrConfig};
use tanada_driver::{Driver, DriverError, DriverErrorKind, ScanEntry, VolumeFacts};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use uuid::Uuid;

use super::cbt::{self, METADATA_TYPE};
use super::intents::{self, Plan};
use super::records::{bytes, int, strings};
use super::secrets;
use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::{Record, Tx, View};
use crate::storage::{alerts, driver_error, host_initiator, numbered, volume_id};

pub fn handlers() -> Handlers {
    vec![
        ("SR.create", |ctx, args| create(ctx, args).boxed()),
        ("SR.introduce", |ctx, args| introduce(ctx, args).boxed()),
        ("SR.forget", |ctx, args| forget(ctx, args).boxed()),
        ("SR.destroy", |ctx, args| destroy(ctx, args).boxed()),
        ("SR.scan", |ctx, args| scan_message(ctx, args).boxed()),
        ("SR.update", |ctx, args| update(ctx, args).boxed()),
        ("SR.probe", |ctx, args| probe(ctx, args).boxed()),
        ("SR.get_supported_types", |ctx, _| get_supported_types(ctx).boxed()),
        ("SR.set_name_label", |ctx, args| set_text(ctx, args, "name_label").boxed()),
        ("SR.set_name_description", |ctx, args| set_text(ctx, args, "name_description").boxed()),
        ("SR.set_shared", |ctx, args| set_shared(ctx, args).boxed()),
    ]
}

async fn create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let host = ctx.db().read(|state| state.get("host", &args.reference("host")?))?;
    let backend = ctx.daemon.storage.backend(args.str("type")?)?;
    let given = strings(args.map("device_config")?);
    let plain = ctx.db().read(|state| secrets::reveal(state, &given))?;
    let shared = args.bool("shared")?;
    check_config(backend.as_ref(), &plain, shared)?;
    let size = bytes("physical_size", args.int("physical_size")?)?;
    let uuid = Uuid::new_v4();
    let config = SrConfig {
        sr: uuid,
        device_config: plain,
        physical_size: (size > 0).then_some(size),
        name_label: args.string("name_label")?,
        name_description: args.string("name_description")?,
        initiator: ctx.db().read(host_initiator),
    };
    let driver_name = backend.facts().name.to_owned();
    let (hidden, intent) = ctx.db().write(|tx| {
        let hidden = secrets::hide(tx, &given)?;
        let plan = Plan::SrCreate { uuid, driver: driver_name.clone(), device_config: hidden.clone() };
        Ok((hidden, plan.put(tx)?))
    })?;
    let driver = match make(backend.as_ref(), &config).await {
        Ok(driver) => driver,
        Err(error) => {
            give_up(&ctx.daemon, backend.as_ref(), &config, &hidden, &intent, &error).await;
            return Err(sr_error(error));
        }
    };
    let sr = Ref::random();
    alerts::adopt(&ctx.daemon, &sr, driver);
    let made = ctx.db().write(|tx| {
        let content_type = args.str("content_type")?;
        tx.create_as(
            "SR",
            sr.clone(),
            [
                ("uuid", Value::from(uuid.to_string())),
                ("name_label", args.value("name_label")?.clone()),
                ("name_description", args.value("name_description")?.clone()),
                ("type", Value::from(driver_name.as_str())),
                ("content_type", Value::from(if content_type.is_empty() { "user" } else { content_type })),
                ("shared", Value::from(shared)),
                ("sm_config", args.value("sm_config")?.clone()),
            ],
        )?;
        tx.create(
            "PBD",
            [
                ("host", Value::from(host.id())),
                ("SR", Value::from(&sr)),
                ("device_config", Value::map(hidden.clone())),
                ("currently_attached", Value::from(true)),
            ],
        )?;
        tx.clear_intent(&intent);
        Ok(())
    });
    if let Err(error) = made {
        ctx.daemon.storage.take_driver(&sr);
        return Err(error);
    }
    update_sizes(&ctx.daemon, &sr).await?;
    Ok(Value::from(sr))
}

fn check_config(backend: &dyn Backend, device_config: &BTreeMap<String, String>, shared: bool) -> ApiResult<()> {
    let facts = backend.facts();
    if let Some(key) = facts.missing_key(device_config) {
        let words = format!("device-config:{} is missing: {}", key.key, key.description);
        return Err(ApiError::sr_backend_failure(key.missing_error, words));
    }
    if shared && !facts.shared {
        let reason = format!("an SR of type {} belongs to one host", facts.name);
        return Err(ApiError::value_not_supported("shared", "true", reason));
    }
    Ok(())
}

/// Makes the container and opens it.
async fn make(backend: &dyn Backend, config: &SrConfig) -> Result<Arc<dyn Driver>, DriverError> {
    backend.create(config).await?;
    backend.open(config).await
}

/// After a creation that failed: what there is of it is erased. When the storage does not answer, the plan stays and is
/// undone at the next start.
async fn give_up(
    daemon: &Daemon,
    backend: &dyn Backend,
    config: &SrConfig,
    hidden: &BTreeMap<String, String>,
    intent: &str,
    failure: &DriverError,
) {
    // A refusal comes before anything is made; asking who is there could take that long again.
    let refused = matches!(failure.kind, DriverErrorKind::InvalidArgument | DriverErrorKind::Exists);
    let undone = if refused { Ok(()) } else { undo_create(backend, config).await };
    let ended = match undone {
        Ok(()) => end_create(daemon, hidden, intent),
        Err(error) => Err(sr_error(error)),
    };
    if let Err(error) = ended {
        tracing::warn!(sr = %config.sr, %error, "an SR that was begun could not be undone; it will be at the next start");
    }
}

/// Erases the container of an SR that was being made, if it is there and ours.
pub async fn undo_create(backend: &dyn Backend, config: &SrConfig) -> Result<(), DriverError> {
    let found = backend.probe(&config.device_config).await?;
    if found.iter().any(|found| found.sr == config.sr) { backend.erase(config).await } else { Ok(()) }
}

/// A plan to make an SR that led to nothing.
pub fn end_create(daemon: &Daemon, hidden: &BTreeMap<String, String>, intent: &str) -> ApiResult<()> {
    daemon.db.write(|tx| {
        secrets::forget(tx, hidden)?;
        tx.clear_intent(intent);
        Ok(())
    })
}

/// Failures of whole SRs have numbers of their own.
pub fn sr_error(error: DriverError) -> ApiError {
    match error.kind {
        DriverErrorKind::Exists => numbered(42, error),
        DriverErrorKind::NotFound => numbered(47, error),
        DriverErrorKind::Busy => numbered(16, error),
        DriverErrorKind::InvalidArgument => numbered(91, error),
        _ => driver_error(error),
    }
}

async fn introduce(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let backend = ctx.daemon.storage.backend(args.str("type")?)?;
    let shared = args.bool("shared")?;
    if shared && !backend.facts().shared {
        let reason = format!("an SR of type {} belongs to one host", backend.facts().name);
        return Err(ApiError::value_not_supported("shared", "true", reason));
    }
    let given = args.str("uuid")?;
    let uuid = match given {
        "" => Uuid::new_v4(),
        text => Uuid::parse_str(text).map_err(|_| ApiError::uuid_invalid("SR", text))?,
    };
    let sr = ctx.db().write(|tx| {
        if tx.find_by_uuid("SR", &uuid.to_string()).is_some() {
            return Err(ApiError::sr_uuid_exists(uuid));
        }
        tx.create(
            "SR",
            [
                ("uuid", Value::from(uuid.to_string())),
                ("name_label", args.value("name_label")?.clone()),
                ("name_description", args.value("name_description")?.clone()),
                ("type", Value::from(backend.facts().name)),
                ("content_type", args.value("content_type")?.clone()),
                ("shared", Value::from(shared)),
                ("sm_config", args.value("sm_config")?.clone()),
                ("physical_size", Value::from(-1)),
            ],
        )
    })?;
    Ok(Value::from(sr))
}

fn indestructible(sr: &Record) -> ApiResult<()> {
    match sr.entry("other_config", "indestructible") {
        Some("true") => Err(ApiError::sr_indestructible(sr.id())),
        _ => Ok(()),
    }
}

fn none_attached(view: &impl View, sr: &Record) -> ApiResult<()> {
    match view.resolve("PBD", &sr.refs("PBDs")).iter().any(|pbd| pbd.bool("currently_attached")) {
        true => Err(ApiError::sr_has_pbd(sr.id())),
        false => Ok(()),
    }
}

/// Removes the records of an SR with everything that belongs to it.
fn remove_records(tx: &mut Tx<'_>, sr: &Ref) -> ApiResult<()> {
    let record = tx.get("SR", sr)?;
    for vdi in record.refs("VDIs") {
        super::vdi::remove_record(tx, &vdi)?;
    }
    for pbd in tx.resolve("PBD", &record.refs("PBDs")) {
        secrets::forget(tx, &strings(pbd.map("device_config")))?;
        tx.destroy("PBD", pbd.id())?;
    }
    for pool in tx.all("pool") {
        for field in ["default_SR", "suspend_image_SR", "crash_dump_SR"] {
            if pool.reference(field) == *sr {
                tx.set("pool", pool.id(), field, Ref::null())?;
            }
        }
    }
    tx.destroy("SR", sr)
}

async fn forget(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let sr = args.reference("sr")?;
    let uuid = ctx.db().write(|tx| {
        let record = tx.get("SR", &sr)?;
        indestructible(&record)?;
        none_attached(tx, &record)?;
        remove_records(tx, &sr)?;
        Ok(record.uuid().to_owned())
    })?;
    cbt::forget_sr(&ctx.daemon, &uuid);
    Ok(Value::Void)
}

async fn destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let sr = args.reference("sr")?;
    let _busy = ctx.begin("SR", &sr, "destroy", |tx| {
        let record = tx.get("SR", &sr)?;
        indestructible(&record)?;
        if record.refs("PBDs").is_empty() {
            return Err(ApiError::sr_has_no_pbds(&sr));
        }
        none_attached(tx, &record)?;
        match tx.resolve("VDI", &record.refs("VDIs")).iter().any(|vdi| vdi.bool("managed")) {
            true => Err(ApiError::sr_not_empty()),
            false => Ok(()),
        }
    })?;
    let (backend, config) = config_of(&ctx.daemon, &sr)?;
    let found = backend.probe(&config.device_config).await.map_err(sr_error)?;
    if let Some(other) = found.first().filter(|_| found.iter().all(|found| found.sr != config.sr)) {
        let words = format!("another SR ({}) is there now; forget this one instead", other.sr);
        return Err(ApiError::sr_backend_failure(42, words));
    }
    let plan = Plan::SrDestroy {
        sr: sr.to_string(),
        uuid: config.sr,
        driver: backend.facts().name.to_owned(),
        device_config: ctx.db().read(|state| pbd_of(state, &sr)).map(|pbd| hidden_config(&pbd))?,
    };
    let intent = plan.write(&ctx.daemon)?;
    if let Err(error) = backend.erase(&config).await {
        intents::clear(&ctx.daemon, &intent)?;
        return Err(sr_error(error));
    }
    finish_destroy(&ctx.daemon, &sr, &intent)?;
    Ok(Value::Void)
}

/// The container is gone: so are the records.
pub fn finish_destroy(daemon: &Daemon, sr: &Ref, intent: &str) -> ApiResult<()> {
    let uuid = daemon.db.write(|tx| {
        let record = tx.find("SR", sr);
        if record.is_some() {
            remove_records(tx, sr)?;
        }
        tx.clear_intent(intent);
        Ok(record.map(|record| record.uuid().to_owned()))
    })?;
    if let Some(uuid) = uuid {
        cbt::forget_sr(daemon, &uuid);
    }
    Ok(())
}

fn pbd_of(view: &impl View, sr: &Ref) -> ApiResult<Arc<Record>> {
    let pbds = view.get("SR", sr)?.refs("PBDs");
    view.resolve("PBD", &pbds).into_iter().next().ok_or_else(|| ApiError::sr_has_no_pbds(sr))
}

fn hidden_config(pbd: &Record) -> BTreeMap<String, String> {
    strings(pbd.map("device_config"))
}

/// The back end of an SR and what its PBD on this host says.
pub fn config_of(daemon: &Daemon, sr: &Ref) -> ApiResult<(Arc<dyn Backend>, SrConfig)> {
    let (record, device_config) = daemon.db.read(|state| {
        let plain = secrets::reveal(state, &hidden_config(&*pbd_of(state, sr)?))?;
        Ok::<_, ApiError>((state.get("SR", sr)?, plain))
    })?;
    let backend = daemon.storage.backend(record.str("type"))?;
    let uuid = Uuid::parse_str(record.uuid()).map_err(|_| ApiError::uuid_invalid("SR", record.uuid()))?;
    let config = SrConfig {
        sr: uuid,
        device_config,
        physical_size: None,
        name_label: record.str("name_label").to_owned(),
        name_description: record.str("name_description").to_owned(),
        initiator: daemon.db.read(host_initiator),
    };
    Ok((backend, config))
}

async fn scan_message(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let sr = args.reference("sr")?;
    let _busy = ctx.begin("SR", &sr, "scan", |tx| super::records::must_exist(tx, "SR", &sr))?;
    scan(&ctx.daemon, &sr).await?;
    Ok(Value::Void)
}

/// Brings the VDI records in line with what the storage holds: unknown volumes get records, lost ones are marked
/// `missing`, sizes and space are read again.
pub async fn scan(daemon: &Arc<Daemon>, sr: &Ref) -> ApiResult<()> {
    let driver = daemon.storage.driver(sr)?;
    let first: HashSet<Uuid> = driver.scan().await.map_err(driver_error)?.into_iter().map(|entry| entry.id).collect();
    let planned = planned_volumes(daemon)?;
    // An operation may begin or end while we look: only what both looks agree on is strange.
    let entries = driver.scan().await.map_err(driver_error)?;
    let strange = |entry: &&ScanEntry| first.contains(&entry.id) && !planned.contains(&(sr.clone(), entry.id));
    daemon.db.write(|tx| {
        let known = tx.resolve("VDI", &tx.get("SR", sr)?.refs("VDIs"));
        let is_known = |id: &Uuid| known.iter().any(|vdi| vdi.str("location") == id.to_string());
        for entry in entries.iter().filter(strange).filter(|entry| !is_known(&entry.id)) {
            adopt_volume(tx, sr, entry)?;
        }
        for vdi in &known {
            let is_gone = vdi.str("type") == METADATA_TYPE;
            let lost = !is_gone
                && volume_id(vdi.str("location"))
                    .is_ok_and(|id| !first.contains(&id) && !entries.iter().any(|entry| entry.id == id));
            if tx.find("VDI", vdi.id()).is_some() {
                tx.set("VDI", vdi.id(), "missing", lost)?;
            }
        }
        tx.remove_entry("SR", sr, "other_config", "dirty")
    })?;
    let vdis = daemon.db.read(|state| Ok::<_, ApiError>(state.resolve("VDI", &state.get("SR", sr)?.refs("VDIs"))))?;
    for vdi in vdis.iter().filter(|vdi| !vdi.bool("missing")) {
        match super::vdi::refresh(daemon, vdi.id()).await {
            Err(error) if !error.is("SR_BACKEND_FAILURE_46") && !error.is("HANDLE_INVALID") => return Err(error),
            _ => {}
        }
    }
    update_sizes(daemon, sr).await
}

/// Volumes that intents or logs of changed blocks name.
pub fn planned_volumes(daemon: &Daemon) -> ApiResult<HashSet<(Ref, Uuid)>> {
    let intents = daemon.db.intents().map_err(ApiError::internal)?;
    let planned = intents.iter().filter_map(Plan::read).flat_map(|plan| plan.volumes());
    Ok(planned.chain(cbt::volumes(daemon)).collect())
}

/// A record for a volume that came with the storage.
fn adopt_volume(tx: &mut Tx<'_>, sr: &Ref, entry: &ScanEntry) -> ApiResult<Ref> {
    let uuid = entry.id.to_string();
    let mut fields = vec![
        ("SR", Value::from(sr)),
        ("location", Value::from(uuid.as_str())),
        ("virtual_size", int(entry.size)),
        ("type", Value::from("user")),
        ("managed", Value::from(true)),
        ("is_a_snapshot", Value::from(entry.is_generation)),
    ];
    if let Some(name) = &entry.name_label {
        fields.push(("name_label", Value::from(name.as_str())));
    }
    // A VDI made here has its volume's name as uuid; it gets that back.
    if tx.find_by_uuid("VDI", &uuid).is_none() {
        fields.push(("uuid", Value::from(uuid)));
    }
    tx.create("VDI", fields)
}

async fn update(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let sr = args.reference("sr")?;
    ctx.db().read(|state| super::records::must_exist(state, "SR", &sr))?;
    update_sizes(&ctx.daemon, &sr).await?;
    Ok(Value::Void)
}

/// Reads an SR's sizes again. `sm_config` has what XenAPI has no field for, in bytes: `tanada:free` for new data,
/// `tanada:reserved` for deletions, `tanada:unreleased` (free soon), `tanada:ghost-held` (by what was deleted but is
/// shared by several).
pub async fn update_sizes(daemon: &Daemon, sr: &Ref) -> ApiResult<()> {
    let space = daemon.storage.driver(sr)?.space().await.map_err(driver_error)?;
    daemon.db.write(|tx| {
        let vdis = tx.resolve("VDI", &tx.get("SR", sr)?.refs("VDIs"));
        let mut config = tx.get("SR", sr)?.map("sm_config").clone();
        let figures = [
            ("tanada:free", space.free),
            ("tanada:reserved", space.reserved),
            ("tanada:unreleased", space.unreleased),
            ("tanada:ghost-held", space.ghost_held),
        ];
        config.extend(figures.map(|(key, bytes)| (key.to_owned(), Value::from(bytes.to_string()))));
        let with_data = vdis.iter().filter(|vdi| vdi.str("type") != METADATA_TYPE);
        let allocated: i64 = with_data.map(|vdi| vdi.int("virtual_size")).fold(0, i64::saturating_add);
        tx.set_all(
            "SR",
            sr,
            [
                ("physical_size", int(space.physical)),
                ("physical_utilisation", int(space.used)),
                ("virtual_allocation", Value::from(allocated)),
                ("sm_config", Value::Map(config)),
            ],
        )
    })
}

/// After a deletion: waits in the background until the storage has settled, then shows the space that came back.
/// Several deletions at a time share one wait and one look after it.
pub fn space_comes_back(daemon: &Arc<Daemon>, sr: &Ref) {
    if !daemon.storage.begin_settling(sr) {
        return;
    }
    let (daemon, sr) = (daemon.clone(), sr.clone());
    tokio::spawn(async move {
        while daemon.storage.take_settling(&sr) {
            let Ok(driver) = daemon.storage.driver(&sr) else { continue };
            match driver.settle().await {
                Ok(()) => sizes_changed(&daemon, &sr).await,
                Err(error) => tracing::debug!(%sr, %error, "an SR did not settle"),
            }
        }
    });
}

/// [`update_sizes`] after an operation that has succeeded: what goes wrong here is logged.
pub async fn sizes_changed(daemon: &Daemon, sr: &Ref) {
    if let Err(error) = update_sizes(daemon, sr).await {
        tracing::warn!(%sr, %error, "the sizes of an SR could not be read");
    }
}

async fn probe(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let backend = ctx.daemon.storage.backend(args.str("type")?)?;
    let given = strings(args.map("device_config")?);
    let device_config = ctx.db().read(|state| secrets::reveal(state, &given))?;
    check_config(backend.as_ref(), &device_config, false)?;
    let found = backend.probe(&device_config).await.map_err(sr_error)?;
    Ok(Value::from(probe_text(&found)))
}

/// The list of SRs as XenServer's clients read it.
fn probe_text(found: &[Found]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" ?>\n<SRlist>\n");
    for one in found {
        let (name, description) = (escape(&one.name_label), escape(&one.name_description));
        xml.push_str(&format!(
            "  <SR><UUID>{}</UUID><size>{}</size><name_label>{name}</name_label>\
             <name_description>{description}</name_description></SR>\n",
            one.sr, one.size
        ));
    }
    xml.push_str("</SRlist>\n");
    xml
}

async fn get_supported_types(ctx: CallContext) -> ApiResult<Value> {
    Ok(Value::set(ctx.daemon.storage.registry().types().map(|facts| facts.name)))
}

async fn set_text(ctx: CallContext, args: Args, field: &'static str) -> ApiResult<Value> {
    let (sr, value) = (args.reference("sr")?, args.value("value")?.clone());
    ctx.db().write(|tx| tx.set("SR", &sr, field, value))?;
    Ok(Value::Void)
}

async fn set_shared(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (sr, value) = (args.reference("sr")?, args.bool("value")?);
    let record = ctx.db().read(|state| state.get("SR", &sr))?;
    let facts = ctx.daemon.storage.backend(record.str("type"))?.facts();
    if value && !facts.shared {
        let reason = format!("an SR of type {} belongs to one host", facts.name);
        return Err(ApiError::value_not_supported("shared", "true", reason));
    }
    match record.refs("PBDs").as_slice() {
        [first, _, ..] if !value => Err(ApiError::sr_has_multiple_pbds(first)),
        _ => ctx.db().write(|tx| tx.set("SR", &sr, "shared", value)).map(Value::from),
    }
}

/// A volume's space as `sm_config` shows it.
pub fn space_keys(facts: &VolumeFacts) -> [(&'static str, u64); 3] {
    [("tanada:mapped", facts.mapped), ("tanada:exclusive", facts.exclusive), ("tanada:shared", facts.shared)]
}
