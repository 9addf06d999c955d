//! Bodies of the messages that belong to no subsystem: sessions, tasks, messages, secrets, host and pool.

use std::sync::Arc;

use tanada_xapi::classes::{Class, Qualifier, class};
use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};

use crate::context::{Args, CallContext, Handlers};
use crate::db::{Record, Tx, View};
use crate::rpc::task::{complete_record, create_record, is_ended};
use crate::rpc::{dispatch, implicit, login, setup};

pub fn handlers() -> Handlers {
    vec![
        ("session.logout", |ctx, _| Box::pin(logout(ctx))),
        ("session.local_logout", |ctx, _| Box::pin(logout(ctx))),
        ("session.change_password", |ctx, args| Box::pin(change_password(ctx, args))),
        ("session.get_all_subject_identifiers", |_, _| Box::pin(async { Ok(Value::empty_set()) })),
        ("task.create", |ctx, args| Box::pin(task_create(ctx, args))),
        ("task.cancel", |ctx, args| Box::pin(task_cancel(ctx, args))),
        ("task.destroy", |ctx, args| Box::pin(task_destroy(ctx, args))),
        ("task.set_status", |ctx, args| Box::pin(task_set_status(ctx, args))),
        ("task.set_progress", |ctx, args| Box::pin(task_set(ctx, args, "progress"))),
        ("task.set_result", |ctx, args| Box::pin(task_set(ctx, args, "result"))),
        ("task.set_error_info", |ctx, args| Box::pin(task_set(ctx, args, "error_info"))),
        ("task.set_resident_on", |ctx, args| Box::pin(task_set(ctx, args, "resident_on"))),
        ("message.create", |ctx, args| Box::pin(message_create(ctx, args))),
        ("message.destroy", |ctx, args| Box::pin(message_destroy(ctx, args))),
        ("message.destroy_many", |ctx, args| Box::pin(message_destroy_many(ctx, args))),
        ("message.get", |ctx, args| Box::pin(message_get(ctx, args))),
        ("message.get_since", |ctx, args| Box::pin(message_get_since(ctx, args))),
        ("secret.create", |ctx, args| Box::pin(create_plain(ctx, args, "secret"))),
        ("secret.destroy", |ctx, args| Box::pin(destroy_plain(ctx, args, "secret"))),
        ("VM_appliance.create", |ctx, args| Box::pin(create_plain(ctx, args, "VM_appliance"))),
        ("VM_appliance.destroy", |ctx, args| Box::pin(destroy_plain(ctx, args, "VM_appliance"))),
        ("host.list_methods", |_, _| Box::pin(async { Ok(Value::from(dispatch::method_names())) })),
        ("host.get_servertime", |_, _| Box::pin(async { Ok(Value::DateTime(DateTime::now())) })),
        ("host.compute_free_memory", |ctx, args| Box::pin(free_memory(ctx, args))),
        ("host.enable", |ctx, args| Box::pin(host_enable(ctx, args, true))),
        ("host.disable", |ctx, args| Box::pin(host_enable(ctx, args, false))),
    ]
}

async fn logout(ctx: CallContext) -> ApiResult<Value> {
    ctx.daemon.sessions.close(ctx.db(), ctx.session.id())?;
    Ok(Value::Void)
}

async fn change_password(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (old, new) = (args.string("old_pwd")?, args.string("new_pwd")?);
    login::change_password(&ctx.daemon, ctx.session.is_local(), old, new).await?;
    Ok(Value::Void)
}

async fn task_create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (label, description) = (args.str("label")?, args.str("description")?);
    ctx.db().write(|tx| create_record(tx, label, description)).map(Value::from)
}

async fn task_cancel(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let id = args.reference("task")?;
    let running = ctx.daemon.tasks.is_running(&id);
    ctx.db().write(|tx| {
        let task = tx.get("task", &id)?;
        if is_ended(&task) {
            return Ok(());
        }
        if !task.set("allowed_operations").contains(&Value::from("cancel")) {
            return Err(ApiError::operation_not_allowed(format!("task {id} cannot be cancelled any more")));
        }
        if !running {
            return complete_record(tx, &id, &Err(ApiError::task_cancelled(&id)));
        }
        tx.put_entry("task", &id, "current_operations", id.as_str(), "cancel")?;
        tx.set("task", &id, "status", "cancelling")
    })?;
    ctx.daemon.tasks.request_cancel(&id);
    Ok(Value::Void)
}

/// An ended task goes at once, another one when it ends.
async fn task_destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let id = args.reference("self")?;
    let running = ctx.daemon.tasks.is_running(&id);
    let done = ctx.db().write(|tx| match tx.get("task", &id)? {
        task if is_ended(&task) || !running => tx.destroy("task", &id),
        _ => tx.put_entry("task", &id, "current_operations", id.as_str(), "destroy"),
    });
    done.map(Value::from)
}

async fn task_set_status(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, status) = (args.reference("self")?, args.string("value")?);
    let done = ctx.db().write(|tx| {
        let task = tx.get("task", &id)?;
        if is_ended(&task) {
            return Ok(());
        }
        if !matches!(status.as_str(), "pending" | "cancelling") {
            let end = [
                ("finished", Value::DateTime(DateTime::now())),
                ("progress", Value::Float(1.0)),
                ("allowed_operations", Value::empty_set()),
            ];
            tx.set_all("task", &id, end)?;
        }
        tx.set("task", &id, "status", status)
    });
    done.map(Value::from)
}

async fn task_set(ctx: CallContext, args: Args, field: &'static str) -> ApiResult<Value> {
    let (id, value) = (args.reference("self")?, args.value("value")?.clone());
    ctx.db().write(|tx| tx.set("task", &id, field, value)).map(Value::from)
}

/// A message to the administrator about an object. `priority` 1 (urgent) to 5; `class` as the enum `cls` has it.
pub fn raise(tx: &mut Tx<'_>, name: &str, priority: i64, class: &str, object_uuid: &str, body: &str) -> ApiResult<Ref> {
    tx.create(
        "message",
        [
            ("name", Value::from(name)),
            ("priority", Value::Int(priority)),
            ("cls", Value::from(class)),
            ("obj_uuid", Value::from(object_uuid)),
            ("timestamp", Value::DateTime(DateTime::now())),
            ("body", Value::from(body)),
        ],
    )
}

async fn message_create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (name, priority, class) = (args.str("name")?, args.int("priority")?, args.str("cls")?);
    let (object, body) = (args.str("obj_uuid")?, args.str("body")?);
    let declared = tanada_xapi::classes::class_ignoring_case(class).map_or(class, |c| c.name);
    ctx.db().read(|s| s.by_uuid(declared, object).map(|_| ()))?;
    ctx.db().write(|tx| raise(tx, name, priority, class, object, body)).map(Value::from)
}

async fn message_destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let id = args.reference("self")?;
    ctx.db().write(|tx| tx.destroy("message", &id)).map(Value::from)
}

async fn message_destroy_many(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let ids = args.refs("messages")?;
    ctx.db().write(|tx| ids.iter().try_for_each(|id| tx.destroy("message", id))).map(Value::from)
}

async fn message_get(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (class, object, since) = (args.str("cls")?, args.str("obj_uuid")?, args.value("since")?.as_datetime());
    let matches = |m: &Arc<Record>| m.str("cls") == class && m.str("obj_uuid") == object;
    Ok(messages_since(&ctx, since, matches))
}

async fn message_get_since(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let since = args.value("since")?.as_datetime();
    Ok(messages_since(&ctx, since, |_| true))
}

fn messages_since(ctx: &CallContext, since: Option<DateTime>, matches: impl Fn(&Arc<Record>) -> bool) -> Value {
    let since = since.unwrap_or_default();
    let mut all = ctx.db().read(|s| s.all("message"));
    all.retain(|m| m.datetime("timestamp") > since && matches(m));
    implicit::records(&all)
}

/// What a constructor may set of a record; a field that has no default and is missing is an error.
pub fn constructor_fields(class: &'static Class, record: &Map) -> ApiResult<Vec<(&'static str, Value)>> {
    let mut fields = Vec::new();
    for field in class.fields.iter().filter(|f| f.qualifier != Qualifier::Runtime) {
        match record.get(field.name) {
            Some(value) => fields.push((field.name, value.clone())),
            None if field.default.is_some() => {}
            None => return Err(ApiError::internal(format!("{}.create: field {} is missing", class.name, field.name))),
        }
    }
    Ok(fields)
}

fn declared(name: &str) -> ApiResult<&'static Class> {
    class(name).ok_or_else(|| ApiError::internal(format!("there is no class {name}")))
}

async fn create_plain(ctx: CallContext, args: Args, name: &'static str) -> ApiResult<Value> {
    let fields = constructor_fields(declared(name)?, args.map("args")?)?;
    ctx.db().write(|tx| tx.create(name, fields)).map(Value::from)
}

async fn destroy_plain(ctx: CallContext, args: Args, name: &'static str) -> ApiResult<Value> {
    let id = args.reference("self")?;
    ctx.db().write(|tx| tx.destroy(name, &id)).map(Value::from)
}

async fn free_memory(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let host = args.reference("host")?;
    ctx.db().read(|s| s.get("host", &host).map(|_| ()))?;
    let (_, free) = setup::memory();
    Ok(Value::Int(free))
}

async fn host_enable(ctx: CallContext, args: Args, enabled: bool) -> ApiResult<Value> {
    let host = args.reference("host")?;
    ctx.db().write(|tx| tx.set("host", &host, "enabled", enabled)).map(Value::from)
}
