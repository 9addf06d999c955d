//! Storage repositories and their connections to hosts.

use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::scalar;
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new(
        "sr-create",
        &["name-label", "type"],
        &["name-description", "host-uuid", "device-config:", "shared", "physical-size", "content-type", "sm-config:"],
        "Creates a storage repository and connects it.",
        create,
    ),
    Command::new(
        "sr-introduce",
        &["name-label", "type", "uuid"],
        &["name-description", "shared", "content-type", "sm-config:"],
        "Makes an existing storage repository known; connect it with pbd-create and pbd-plug.",
        introduce,
    ),
    Command::new(
        "sr-probe",
        &["type"],
        &["host-uuid", "device-config:", "sm-config:"],
        "Looks what a driver finds.",
        probe,
    ),
    Command::new("sr-scan", &["uuid"], &[], "Reads what is on a storage repository.", |x| {
        x.task("SR.scan", Vec::new()).map(drop)
    }),
    Command::new("sr-update", &["uuid"], &[], "Reads the sizes of a storage repository again.", |x| {
        x.message("SR.update")
    }),
    Command::new("sr-destroy", &["uuid"], &[], "Destroys a storage repository with all data on it.", |x| {
        x.task("SR.destroy", Vec::new()).map(drop)
    }),
    Command::new("sr-forget", &["uuid"], &[], "Forgets a storage repository and leaves its data.", |x| {
        x.message("SR.forget")
    }),
    Command::new(
        "pbd-create",
        &["host-uuid", "sr-uuid"],
        &["device-config:", "other-config:"],
        "Creates the connection of a host to a storage repository.",
        pbd_create,
    ),
    Command::new("pbd-plug", &["uuid"], &[], "Connects a host to a storage repository.", |x| {
        x.task("PBD.plug", Vec::new()).map(drop)
    }),
    Command::new("pbd-unplug", &["uuid"], &[], "Disconnects a host from a storage repository.", |x| {
        x.task("PBD.unplug", Vec::new()).map(drop)
    }),
    Command::new("pbd-destroy", &["uuid"], &[], "Destroys a connection.", |x| x.message("PBD.destroy")),
];

/// `device-config:K-filename=F` gives the contents of the local file F as K.
fn device_config(ctx: &Ctx<'_>) -> Result<Value, Failure> {
    let mut config = Vec::new();
    for (key, value) in ctx.params.map("device-config") {
        match key.strip_suffix("-filename") {
            None => config.push((key, value)),
            Some(name) => {
                let read = std::fs::read_to_string(&value);
                let text = read.map_err(|error| Failure::cli(format!("Cannot read {value}: {error}")))?;
                config.push((name.to_owned(), text));
            }
        }
    }
    Ok(Value::map(config))
}

/// `host-uuid`, else the coordinator where that is clear.
fn host(ctx: &Ctx<'_>, shared: bool) -> Result<Ref, Failure> {
    if ctx.params.get("host-uuid").is_some() {
        return ctx.by_uuid_param("host-uuid", "host");
    }
    if !shared && ctx.api()?.all("host")?.len() > 1 {
        return Err(Failure::cli("Required parameter not found: host-uuid"));
    }
    Ok(Ref::from(ctx.pool()?.record.get("master").map(scalar).unwrap_or_default()))
}

fn create(ctx: &mut Ctx<'_>) -> Outcome {
    let shared = ctx.params.flag("shared")?;
    let size = if ctx.params.get("physical-size").is_some() { ctx.params.size("physical-size")? } else { 0 };
    let params = vec![
        Value::from(host(ctx, shared)?),
        device_config(ctx)?,
        Value::Int(size),
        Value::from(ctx.params.need("name-label")?),
        Value::from(ctx.params.or("name-description", "")),
        Value::from(ctx.params.need("type")?),
        Value::from(ctx.params.or("content-type", "")),
        Value::Bool(shared),
        ctx.params.map_value("sm-config"),
    ];
    let sr = ctx.api()?.run("SR.create", params, "Creating the storage repository")?;
    ctx.print_uuid("SR", &sr)
}

fn introduce(ctx: &mut Ctx<'_>) -> Outcome {
    let params = vec![
        Value::from(ctx.params.need("uuid")?),
        Value::from(ctx.params.need("name-label")?),
        Value::from(ctx.params.or("name-description", "")),
        Value::from(ctx.params.need("type")?),
        Value::from(ctx.params.or("content-type", "")),
        Value::Bool(ctx.params.flag("shared")?),
        ctx.params.map_value("sm-config"),
    ];
    let sr = ctx.call("SR.introduce", params)?;
    ctx.print_uuid("SR", &sr)
}

fn probe(ctx: &mut Ctx<'_>) -> Outcome {
    let params = vec![
        Value::from(host(ctx, true)?),
        device_config(ctx)?,
        Value::from(ctx.params.need("type")?),
        ctx.params.map_value("sm-config"),
    ];
    let text = ctx.call("SR.probe", params)?;
    ctx.line(&scalar(&text))
}

fn pbd_create(ctx: &mut Ctx<'_>) -> Outcome {
    let record = Value::map([
        ("host", Value::from(ctx.by_uuid_param("host-uuid", "host")?)),
        ("SR", Value::from(ctx.by_uuid_param("sr-uuid", "SR")?)),
        ("device_config", device_config(ctx)?),
        ("other_config", ctx.params.map_value("other-config")),
    ]);
    let pbd = ctx.call("PBD.create", vec![record])?;
    ctx.print_uuid("PBD", &pbd)
}
