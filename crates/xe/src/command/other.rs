//! Tasks, hosts, secrets, messages, schedules.

use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::scalar;
use tanada_xapi::Value;

pub const COMMANDS: &[Command] = &[
    Command::new("task-cancel", &["uuid"], &[], "Asks for a task to be cancelled.", |x| x.message("task.cancel")),
    Command::new("task-destroy", &["uuid"], &[], "Destroys a task that has ended.", |x| x.message("task.destroy"))
        .hidden(),
    Command::new("host-enable", &["uuid"], &[], "Lets a host start VMs.", |x| x.message("host.enable")),
    Command::new("host-disable", &["uuid"], &[], "Keeps a host from starting VMs.", |x| x.message("host.disable")),
    Command::new(
        "host-call-plugin",
        &["host-uuid", "plugin", "fn"],
        &["args:"],
        "Calls a function of a plugin on a host and prints its answer.",
        host_call_plugin,
    ),
    Command::new("secret-create", &["value"], &[], "Keeps a secret.", secret_create),
    Command::new("secret-destroy", &["uuid"], &[], "Destroys a secret.", |x| x.message("secret.destroy")),
    Command::new(
        "message-create",
        &["name", "priority", "body"],
        &["vm-uuid", "host-uuid", "sr-uuid", "pool-uuid"],
        "Creates a message about a VM, a host, an SR or the pool.",
        message_create,
    ),
    Command::new("message-destroy", &[], &["uuid", "uuids"], "Destroys messages.", message_destroy),
    Command::new("message-destroy-all", &[], &[], "Destroys all messages.", message_destroy_all),
    Command::new(
        "vmss-create",
        &["name-label", "type", "frequency"],
        &["name-description", "enabled", "schedule:", "retained-snapshots"],
        "Creates a snapshot schedule.",
        vmss_create,
    ),
    Command::new(
        "vmss-snapshot-now",
        &["uuid"],
        &[],
        "Takes a snapshot of each VM of a snapshot schedule now.",
        vmss_snapshot_now,
    ),
    Command::new("vmss-destroy", &["uuid"], &[], "Destroys a snapshot schedule.", |x| x.message("VMSS.destroy")),
    Command::new("user-password-change", &["old", "new"], &[], "Changes your password.", password_change),
];

fn host_call_plugin(ctx: &mut Ctx<'_>) -> Outcome {
    let params = vec![
        Value::from(ctx.by_uuid_param("host-uuid", "host")?),
        Value::from(ctx.params.need("plugin")?),
        Value::from(ctx.params.need("fn")?),
        ctx.params.map_value("args"),
    ];
    let answer = ctx.call("host.call_plugin", params)?;
    ctx.line(&scalar(&answer))
}

fn secret_create(ctx: &mut Ctx<'_>) -> Outcome {
    let value = Value::from(ctx.params.need("value")?);
    let record = Value::map([("value", value), ("other_config", Value::empty_map())]);
    let secret = ctx.call("secret.create", vec![record])?;
    ctx.print_uuid("secret", &secret)
}

fn message_create(ctx: &mut Ctx<'_>) -> Outcome {
    let about = [("vm-uuid", "VM"), ("host-uuid", "Host"), ("sr-uuid", "SR"), ("pool-uuid", "Pool")];
    let mut given = about.iter().filter_map(|(param, class)| Some((*class, ctx.params.get(param)?)));
    let (Some((class, uuid)), None) = (given.next(), given.next()) else {
        return Err(Failure::cli("Exactly one of vm-uuid, host-uuid, sr-uuid, pool-uuid must be given"));
    };
    let params = vec![
        Value::from(ctx.params.need("name")?),
        Value::Int(ctx.params.int_or("priority", 5)?),
        Value::from(class),
        Value::from(uuid),
        Value::from(ctx.params.need("body")?),
    ];
    ctx.call("message.create", params).map(drop)
}

fn message_destroy(ctx: &mut Ctx<'_>) -> Outcome {
    let uuids = ctx.params.get("uuids").or_else(|| ctx.params.get("uuid"));
    let uuids = uuids.ok_or_else(|| Failure::cli("Required parameter not found: uuid or uuids."))?;
    for uuid in uuids.split(',').map(str::trim).filter(|uuid| !uuid.is_empty()) {
        let message = ctx.api()?.by_uuid("message", uuid)?;
        ctx.call("message.destroy", vec![Value::from(message)])?;
    }
    Ok(())
}

fn message_destroy_all(ctx: &mut Ctx<'_>) -> Outcome {
    for message in ctx.api()?.all("message")? {
        ctx.call("message.destroy", vec![Value::from(message.reference)])?;
    }
    Ok(())
}

fn vmss_create(ctx: &mut Ctx<'_>) -> Outcome {
    let record = Value::map([
        ("name_label", Value::from(ctx.params.need("name-label")?)),
        ("name_description", Value::from(ctx.params.or("name-description", ""))),
        ("enabled", Value::Bool(ctx.params.flag_or("enabled", true)?)),
        ("type", Value::from(ctx.params.need("type")?)),
        ("retained_snapshots", Value::Int(ctx.params.int_or("retained-snapshots", 7)?)),
        ("frequency", Value::from(ctx.params.need("frequency")?)),
        ("schedule", ctx.params.map_value("schedule")),
    ]);
    let vmss = ctx.call("VMSS.create", vec![record])?;
    ctx.print_uuid("VMSS", &vmss)
}

fn vmss_snapshot_now(ctx: &mut Ctx<'_>) -> Outcome {
    let vmss = ctx.by_uuid_param("uuid", "VMSS")?;
    let words = ctx.call("VMSS.snapshot_now", vec![Value::from(vmss)])?;
    ctx.line(&scalar(&words))
}

fn password_change(ctx: &mut Ctx<'_>) -> Outcome {
    let (old, new) = (Value::from(ctx.params.need("old")?), Value::from(ctx.params.need("new")?));
    ctx.call("session.change_password", vec![old, new]).map(drop)
}
