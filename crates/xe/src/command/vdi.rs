//! Virtual disks.

use crate::command::{Command, Others, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::scalar;
use crate::record::lookup::Lookup;
use crate::record::{Object, cells, class};
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new(
        "vdi-create",
        &["sr-uuid", "name-label", "virtual-size"],
        &["type", "name-description", "sharable", "read-only", "sm-config:", "other-config:", "tags:"],
        "Creates an empty disk.",
        create,
    ),
    Command::new(
        "vdi-introduce",
        &["uuid", "sr-uuid", "type", "location"],
        &[
            "name-label",
            "name-description",
            "sharable",
            "read-only",
            "managed",
            "other-config:",
            "xenstore-data:",
            "sm-config:",
        ],
        "Makes a disk known that exists on the storage.",
        introduce,
    ),
    Command::new("vdi-destroy", &["uuid"], &[], "Destroys a disk and its data.", |x| {
        x.task("VDI.destroy", Vec::new()).map(drop)
    }),
    Command::new("vdi-forget", &["uuid"], &[], "Forgets a disk and leaves its data.", |x| x.message("VDI.forget")),
    Command::new("vdi-update", &["uuid"], &[], "Reads a disk's particulars again.", |x| x.message("VDI.update")),
    Command::new("vdi-resize", &["uuid", "disk-size"], &["online"], "Makes a disk larger.", resize),
    Command::new(
        "vdi-clone",
        &["uuid"],
        &["new-name-label", "new-name-description", "driver-params:"],
        "Clones a disk, sharing its data.",
        |x| duplicate(x, "VDI.clone"),
    ),
    Command::new(
        "vdi-snapshot",
        &["uuid"],
        &["new-name-label", "new-name-description", "driver-params:"],
        "Takes a snapshot of a disk.",
        |x| duplicate(x, "VDI.snapshot"),
    ),
    Command::new(
        "vdi-copy",
        &["uuid"],
        &["sr-uuid", "into-vdi-uuid", "base-vdi-uuid"],
        "Copies a disk's data into another SR or disk.",
        copy,
    ),
    Command::new("vdi-enable-cbt", &["uuid"], &[], "Turns changed block tracking on.", |x| x.message("VDI.enable_cbt")),
    Command::new("vdi-disable-cbt", &["uuid"], &[], "Turns changed block tracking off.", |x| {
        x.message("VDI.disable_cbt")
    }),
    Command::new("vdi-data-destroy", &["uuid"], &[], "Destroys a snapshot's data, keeping what changed.", |x| {
        x.message("VDI.data_destroy")
    }),
    Command::new(
        "vdi-list-changed-blocks",
        &["vdi-from-uuid", "vdi-to-uuid"],
        &[],
        "Prints which blocks differ, as a bitmap in base64.",
        changed_blocks,
    ),
    Command::new("cd-list", &[], &["params"], "Lists the CD images in ISO repositories.", cd_list).others(Others::None),
];

fn create(ctx: &mut Ctx<'_>) -> Outcome {
    let kind = ctx.params.or("type", "user").to_lowercase();
    let tags = ctx.params.map("tags").into_values().collect::<Vec<_>>();
    let record = Value::map([
        ("name_label", Value::from(ctx.params.need("name-label")?)),
        ("name_description", Value::from(ctx.params.or("name-description", ""))),
        ("SR", Value::from(ctx.by_uuid_param("sr-uuid", "SR")?)),
        ("virtual_size", Value::Int(ctx.params.size("virtual-size")?)),
        ("type", Value::from(kind)),
        ("sharable", Value::Bool(ctx.params.flag("sharable")?)),
        ("read_only", Value::Bool(ctx.params.flag("read-only")?)),
        ("other_config", ctx.params.map_value("other-config")),
        ("xenstore_data", Value::empty_map()),
        ("sm_config", ctx.params.map_value("sm-config")),
        ("tags", Value::from(tags)),
    ]);
    let vdi = ctx.call("VDI.create", vec![record])?;
    ctx.print_uuid("VDI", &vdi)
}

fn introduce(ctx: &mut Ctx<'_>) -> Outcome {
    let params = vec![
        Value::from(ctx.params.need("uuid")?),
        Value::from(ctx.params.or("name-label", "")),
        Value::from(ctx.params.or("name-description", "")),
        Value::from(ctx.by_uuid_param("sr-uuid", "SR")?),
        Value::from(ctx.params.need("type")?.to_lowercase()),
        Value::Bool(ctx.params.flag("sharable")?),
        Value::Bool(ctx.params.flag("read-only")?),
        ctx.params.map_value("other-config"),
        Value::from(ctx.params.need("location")?),
        ctx.params.map_value("xenstore-data"),
        ctx.params.map_value("sm-config"),
        Value::Bool(ctx.params.flag_or("managed", true)?),
        Value::Int(0),
        Value::Int(0),
        Value::from(Ref::null()),
        Value::Bool(false),
        Value::from(tanada_xapi::DateTime::EPOCH),
        Value::from(Ref::null()),
    ];
    let vdi = ctx.call("VDI.introduce", params)?;
    ctx.print_uuid("VDI", &vdi)
}

fn resize(ctx: &mut Ctx<'_>) -> Outcome {
    let size = Value::Int(ctx.params.size("disk-size")?);
    let method = if ctx.params.flag("online")? { "VDI.resize_online" } else { "VDI.resize" };
    let vdi = ctx.by_uuid_param("uuid", "VDI")?;
    ctx.call(method, vec![Value::from(vdi), size]).map(drop)
}

/// Clone or snapshot.
fn duplicate(ctx: &mut Ctx<'_>, method: &str) -> Outcome {
    let hints = ctx.params.map_value("driver-params");
    let new = ctx.task(method, vec![hints])?;
    for (param, message) in
        [("new-name-label", "VDI.set_name_label"), ("new-name-description", "VDI.set_name_description")]
    {
        if let Some(text) = ctx.params.get(param) {
            ctx.call(message, vec![new.clone(), Value::from(text)])?;
        }
    }
    ctx.print_uuid("VDI", &new)
}

fn copy(ctx: &mut Ctx<'_>) -> Outcome {
    if ctx.params.get("sr-uuid").is_some() == ctx.params.get("into-vdi-uuid").is_some() {
        return Err(Failure::cli("Exactly one of sr-uuid and into-vdi-uuid must be given"));
    }
    let optional = |name: &str, class: &str| match ctx.params.get(name) {
        Some(_) => ctx.by_uuid_param(name, class),
        None => Ok(Ref::null()),
    };
    let (sr, into) = (optional("sr-uuid", "SR")?, optional("into-vdi-uuid", "VDI")?);
    let base = optional("base-vdi-uuid", "VDI")?;
    let new = ctx.task("VDI.copy", vec![Value::from(sr), Value::from(base), Value::from(into)])?;
    ctx.print_uuid("VDI", &new)
}

fn changed_blocks(ctx: &mut Ctx<'_>) -> Outcome {
    let from = ctx.by_uuid_param("vdi-from-uuid", "VDI")?;
    let to = ctx.by_uuid_param("vdi-to-uuid", "VDI")?;
    let bitmap = ctx.call("VDI.list_changed_blocks", vec![Value::from(from), Value::from(to)])?;
    ctx.line(&scalar(&bitmap))
}

fn cd_list(ctx: &mut Ctx<'_>) -> Outcome {
    let Some(table) = class("vdi") else { return Ok(()) };
    let fields: Vec<_> = match ctx.params.get("params") {
        Some(params) => table.chosen(Some(params)),
        None => table.chosen(Some("name-label,uuid")),
    };
    let shown = {
        let api = ctx.api()?;
        let lookup = Lookup::for_list(api);
        let is_iso = |sr: &Object| sr.record.get("content_type").map(scalar).as_deref() == Some("iso");
        let isos: Vec<Ref> = api.all("SR")?.into_iter().filter(is_iso).map(|sr| sr.reference).collect();
        let mut shown = Vec::new();
        for vdi in api.all("VDI")? {
            if isos.contains(&Ref::from(vdi.record.get("SR").map(scalar).unwrap_or_default())) {
                shown.push(cells(&lookup, &vdi, &fields, false)?);
            }
        }
        shown
    };
    ctx.records(&shown)
}
