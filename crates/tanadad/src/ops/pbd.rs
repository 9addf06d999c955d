//! PBDs: an SR's attachment to this host. A plugged PBD has an open driver in [`crate::storage::Storage`].

use std::sync::Arc;

use futures_util::FutureExt;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::records::{given, message, must_exist, strings};
use super::{metadata, reconcile, secrets, sr};
use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::View;
use crate::storage::{alerts, attached_vdis};

pub fn handlers() -> Handlers {
    vec![
        ("PBD.create", |ctx, args| create(ctx, args).boxed()),
        ("PBD.plug", |ctx, args| plug(ctx, args).boxed()),
        ("PBD.unplug", |ctx, args| unplug(ctx, args).boxed()),
        ("PBD.destroy", |ctx, args| destroy(ctx, args).boxed()),
        ("PBD.set_device_config", |ctx, args| set_device_config(ctx, args).boxed()),
    ]
}

async fn create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let record = args.map("args")?;
    let reference = |key: &str| Ref::from(super::records::text(record, key));
    let (host, sr) = (reference("host"), reference("SR"));
    let config = record.get("device_config").and_then(Value::as_map);
    if config.is_some_and(|config| config.contains_key("SRmaster")) {
        return Err(ApiError::value_not_supported("host", "SRmaster", "this key is set by the server"));
    }
    let mut fields = given("PBD", record)?;
    let made = ctx.db().write(|tx| {
        must_exist(tx, "host", &host)?;
        let pbds = tx.resolve("PBD", &tx.get("SR", &sr)?.refs("PBDs"));
        if let Some(other) = pbds.iter().find(|pbd| pbd.reference("host") == host) {
            return Err(ApiError::pbd_exists(&sr, &host, other.id()));
        }
        if let Some(config) = config {
            fields.retain(|(field, _)| *field != "device_config");
            fields.push(("device_config", Value::map(secrets::hide(tx, &strings(config))?)));
        }
        tx.create("PBD", fields)
    })?;
    Ok(Value::from(made))
}

async fn plug(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let pbd = args.reference("self")?;
    let record = ctx.db().read(|state| state.get("PBD", &pbd))?;
    let sr = record.reference("SR");
    if record.bool("currently_attached") && ctx.daemon.storage.is_open(&sr) {
        return Ok(Value::Void);
    }
    let _busy = ctx.begin("SR", &sr, "plug", |tx| must_exist(tx, "SR", &sr))?;
    open(&ctx.daemon, &pbd, &sr).await?;
    metadata::restore(&ctx.daemon, &sr).await?;
    sr::scan(&ctx.daemon, &sr).await?;
    Ok(Value::Void)
}

/// Opens the driver, ends what was under way on the SR, marks the PBD.
async fn open(daemon: &Arc<Daemon>, pbd: &Ref, sr: &Ref) -> ApiResult<()> {
    let (backend, config) = sr::config_of(daemon, sr)?;
    if let Some(key) = backend.facts().missing_key(&config.device_config) {
        let words = format!("device-config:{} is missing: {}", key.key, key.description);
        return Err(ApiError::sr_backend_failure(key.missing_error, words));
    }
    let driver = backend.open(&config).await.map_err(sr::sr_error)?;
    alerts::adopt(daemon, sr, driver);
    reconcile::end_intents(daemon, Some(sr)).await;
    daemon.db.write(|tx| tx.set("PBD", pbd, "currently_attached", true))
}

async fn unplug(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let pbd = args.reference("self")?;
    let record = ctx.db().read(|state| state.get("PBD", &pbd))?;
    let sr = record.reference("SR");
    if !record.bool("currently_attached") {
        return Ok(Value::Void);
    }
    let _busy = ctx.begin("SR", &sr, "unplug", |tx| {
        let record = tx.get("SR", &sr)?;
        if let Some((task, operation)) = record.map("current_operations").iter().next() {
            let operation = operation.as_str().unwrap_or_default();
            return Err(ApiError::other_operation_in_progress("SR", &sr, operation, task));
        }
        let busy =
            tx.resolve("VDI", &record.refs("VDIs")).into_iter().find(|vdi| !vdi.map("current_operations").is_empty());
        match busy {
            Some(vdi) => Err(ApiError::new("VDI_IN_USE", vec![vdi.id().to_string()])),
            None => Ok(()),
        }
    })?;
    let used = attached_vdis(&ctx.daemon, &sr);
    if !used.is_empty() {
        return Err(ApiError::new("VDI_IN_USE", used.iter().map(Ref::to_string).collect()));
    }
    let (backend, config) = sr::config_of(&ctx.daemon, &sr)?;
    let driver = ctx.daemon.storage.take_driver(&sr);
    if let Some(driver) = &driver
        && let Err(error) = metadata::keep(&ctx.daemon, &sr, driver.as_ref()).await
    {
        tracing::warn!(%sr, %error, "an SR could not keep the records of its machines before it was detached");
    }
    if let Err(error) = backend.close(&config).await {
        if let Some(driver) = driver {
            ctx.daemon.storage.put_driver(&sr, driver);
        }
        return Err(sr::sr_error(error));
    }
    ctx.db().write(|tx| tx.set("PBD", &pbd, "currently_attached", false))?;
    Ok(Value::Void)
}

async fn destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let pbd = args.reference("self")?;
    ctx.db().write(|tx| {
        if tx.get("PBD", &pbd)?.bool("currently_attached") {
            return Err(ApiError::operation_not_allowed("PBD is currently attached; unplug it first"));
        }
        secrets::forget(tx, &strings(tx.get("PBD", &pbd)?.map("device_config")))?;
        tx.destroy("PBD", &pbd)
    })?;
    Ok(Value::Void)
}

async fn set_device_config(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (pbd, value) = (args.reference("self")?, strings(args.map("value")?));
    ctx.db().write(|tx| {
        let known = tx.get("PBD", &pbd)?;
        if known.bool("currently_attached") {
            return Err(ApiError::operation_not_allowed("PBD is currently attached; unplug it first"));
        }
        let hidden = secrets::hide(tx, &value)?;
        secrets::forget(tx, &strings(known.map("device_config")))?;
        tx.set("PBD", &pbd, "device_config", Value::map(hidden))
    })?;
    Ok(Value::Void)
}

/// At start: opens what was plugged. An SR that does not open is shown as detached, with a message; what serves its
/// running machines goes on without us.
pub async fn reopen(daemon: &Arc<Daemon>) {
    let plugged = daemon.db.read(|state| {
        let pbds = state.all("PBD").into_iter().filter(|pbd| pbd.bool("currently_attached"));
        pbds.map(|pbd| (pbd.id().clone(), pbd.reference("SR"))).collect::<Vec<_>>()
    });
    for (pbd, sr) in plugged {
        if let Err(error) = open_again(daemon, &sr).await {
            tracing::error!(%sr, %error, "an SR cannot be attached");
            let told = daemon.db.write(|tx| {
                let uuid = tx.find("SR", &sr).map(|sr| sr.uuid().to_owned()).unwrap_or_default();
                message(tx, "SR_ATTACH_FAILED", 1, "SR", &uuid, &error.to_string())?;
                tx.set("PBD", &pbd, "currently_attached", false)
            });
            if let Err(error) = told {
                tracing::error!(%error, "a PBD could not be marked as detached");
            }
        }
    }
}

async fn open_again(daemon: &Arc<Daemon>, sr: &Ref) -> ApiResult<()> {
    let (backend, config) = sr::config_of(daemon, sr)?;
    let driver = backend.open(&config).await.map_err(sr::sr_error)?;
    alerts::adopt(daemon, sr, driver);
    Ok(())
}
