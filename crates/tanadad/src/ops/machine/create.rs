//! `VM.create`, templates, and the end of a machine's record.

use futures_util::FutureExt;
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};
use uuid::Uuid;

use super::copy::generation_id;
use crate::context::{Args, CallContext, Handlers};
use crate::db::{Tx, View};
use crate::ops::allowed;
use crate::ops::records::{given, text};

pub fn handlers() -> Handlers {
    vec![
        ("VM.create", |ctx, args| create(ctx, args).boxed()),
        ("VM.destroy", |ctx, args| destroy(ctx, args).boxed()),
        ("VM.set_is_a_template", |ctx, args| set_is_a_template(ctx, args).boxed()),
        ("VM.set_is_default_template", |ctx, args| set_is_default_template(ctx, args).boxed()),
    ]
}

async fn create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let record = args.map("args")?;
    let power = text(record, "power_state");
    if !matches!(power, "" | "Halted") {
        return Err(ApiError::vm_bad_power_state(Ref::null(), "halted", power.to_lowercase()));
    }
    let fields = given("VM", record)?;
    ctx.db().write(|tx| make(tx, fields)).map(Value::from)
}

/// A halted machine with these fields and without devices.
pub fn make(tx: &mut Tx<'_>, fields: Vec<(&'static str, Value)>) -> ApiResult<Ref> {
    let mut all: Map = fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
    let mut other_config = all.get("other_config").and_then(Value::as_map).cloned().unwrap_or_default();
    other_config.entry("mac_seed".to_owned()).or_insert_with(|| Value::from(Uuid::new_v4().to_string()));
    all.insert("other_config".into(), Value::Map(other_config));
    all.insert("power_state".into(), Value::from("Halted"));
    all.insert("domid".into(), Value::from(-1));
    if all.get("generation_id").and_then(Value::as_str).is_none_or(str::is_empty) {
        all.insert("generation_id".into(), Value::from(generation_id()));
    }
    let metrics = tx.create("VM_metrics", Vec::<(&str, Value)>::new())?;
    all.insert("metrics".into(), Value::from(metrics));
    tx.create("VM", all)
}

async fn destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("self")?;
    let uuid = ctx.db().write(|tx| {
        let record = tx.get("VM", &vm)?;
        if record.bool("is_default_template") {
            return Err(ApiError::vm_cannot_delete_default_template(&vm));
        }
        allowed::vm(tx, &vm, "destroy")?;
        remove_record(tx, &vm)?;
        Ok(record.uuid().to_owned())
    })?;
    ctx.daemon.vmm.host.forget_machine(&uuid);
    Ok(Value::Void)
}

/// Removes a machine's record with its devices. Its disks stay; its children become its parent's.
pub fn remove_record(tx: &mut Tx<'_>, vm: &Ref) -> ApiResult<()> {
    let record = tx.get("VM", vm)?;
    let parent = record.reference("parent");
    for child in record.refs("children") {
        tx.set("VM", &child, "parent", &parent)?;
    }
    for (class, field) in [("VBD", "VBDs"), ("VIF", "VIFs"), ("console", "consoles")] {
        for device in record.refs(field) {
            tx.destroy(class, &device)?;
        }
    }
    for (class, field) in [("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")] {
        let object = record.reference(field);
        if tx.find(class, &object).is_some() {
            tx.destroy(class, &object)?;
        }
    }
    for message in tx.all("message").iter().filter(|message| message.str("obj_uuid") == record.uuid()) {
        tx.destroy("message", message.id())?;
    }
    tx.destroy("VM", vm)
}

async fn set_is_a_template(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, value) = (args.reference("self")?, args.bool("value")?);
    ctx.db().write(|tx| {
        let record = tx.get("VM", &vm)?;
        if value && !record.bool("is_a_template") {
            allowed::check(&record, "make_into_template")?;
        }
        tx.set("VM", &vm, "is_a_template", value)
    })?;
    Ok(Value::Void)
}

async fn set_is_default_template(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, value) = (args.reference("vm")?, args.bool("value")?);
    ctx.db().write(|tx| {
        tx.set("VM", &vm, "is_default_template", value)?;
        match value {
            true => tx.put_entry("VM", &vm, "other_config", "default_template", "true"),
            false => tx.remove_entry("VM", &vm, "other_config", "default_template"),
        }
    })?;
    Ok(Value::Void)
}
