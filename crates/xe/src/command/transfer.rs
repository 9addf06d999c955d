//! Export and import: machines as XVA archives, disks as raw or other images.

use crate::command::select::{Selection, Templates, vms};
use crate::command::snapshot::snapshot_param;
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::Object;
use crate::record::field::scalar;
use crate::stream::{Target, Upload, is_output, resume, upload};
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[
    Command::new(
        "vm-export",
        &["filename"],
        &["compress", "preserve-power-state", "metadata", "include-snapshots", "excluded-device-types", "rate"],
        "Exports a VM to a file (compress=true, gzip or zstd; rate=bytes per second at most; include-snapshots=true with all \
         of its snapshots; preserve-power-state=true with the memory of a suspended VM; metadata=true without disks; \
         metadata=true --all: every VM in one file).",
        vm_export,
    )
    .selects_vms(),
    Command::new(
        "template-export",
        &["template-uuid", "filename"],
        &["compress", "metadata", "excluded-device-types", "rate"],
        "Exports a template to a file (compress=true, gzip or zstd).",
        template_export,
    ),
    Command::new(
        "snapshot-export-to-template",
        &["filename"],
        &[
            "uuid",
            "snapshot-uuid",
            "compress",
            "preserve-power-state",
            "metadata",
            "excluded-device-types",
            "rate",
        ],
        "Exports a snapshot to a file from which a template can be imported.",
        snapshot_export,
    ),
    Command::new(
        "vm-import",
        &[],
        &["filename", "url", "sr-uuid", "preserve", "restore", "metadata", "dry-run", "vdi:", "rate"],
        "Imports VMs and templates from a file, with their snapshots where they are in it (restore=true keeps uuids and \
         MAC addresses; \
         metadata=true takes disks that are here; vdi:OLD=NEW says which).",
        vm_import,
    ),
    Command::new(
        "vdi-export",
        &["uuid", "filename"],
        &["format", "base", "resume", "progress", "rate"],
        "Exports the contents of a disk to a file (format=raw, vhd, qcow2 or tar; vhd and qcow2 with base=<uuid>: what differs from that disk).",
        vdi_export,
    ),
    Command::new(
        "vdi-import",
        &["uuid", "filename"],
        &["format", "delta", "offset", "progress", "rate"],
        "Imports the contents of a disk from a file (format=raw, vhd, qcow2 or tar; delta=true: what the file leaves out stays as it is).",
        vdi_import,
    ),
];

const TO_EXPORT: Selection = Selection { templates: Templates::ToExplain, control_domains: false, single: false };

/// `true` is gzip, as it always was.
fn compression(ctx: &Ctx<'_>) -> Result<String, Failure> {
    match ctx.params.or("compress", "false") {
        "" => Ok("true".to_owned()),
        word @ ("gzip" | "zstd") => Ok(word.to_owned()),
        other => crate::scalar::parse_bool("compress", other)
            .map(|on| on.to_string())
            .map_err(|_| Failure::cli(format!("compress={other} is none of true, false, gzip, zstd"))),
    }
}

/// The bound of a transfer, in bytes per second, where one is given.
fn rate(ctx: &Ctx<'_>, query: &mut Vec<(&'static str, String)>) -> Outcome {
    if ctx.params.get("rate").is_some() {
        query.push(("rate", ctx.params.size("rate")?.to_string()));
    }
    Ok(())
}

fn export(ctx: &mut Ctx<'_>, vm: &Object, filename: &str) -> Outcome {
    let name = vm.record.get("name_label").map(scalar).unwrap_or_default();
    let which = ("ref", vm.reference.to_string());
    if ctx.params.flag("metadata")? {
        return export_metadata(ctx, which, format!("Export of the metadata of VM: {name}"), filename);
    }
    let mut query = vec![
        which,
        ("use_compression", compression(ctx)?),
        ("preserve_power_state", ctx.params.flag("preserve-power-state")?.to_string()),
    ];
    if ctx.params.flag("include-snapshots")? {
        query.push(("export_snapshots", "true".to_owned()));
    }
    rate(ctx, &mut query)?;
    fetch(ctx, &Target { path: "/export", query, label: format!("Export of VM: {name}") }, filename)
}

/// Records alone; snapshots come along unless told otherwise.
fn export_metadata(ctx: &mut Ctx<'_>, which: (&'static str, String), label: String, filename: &str) -> Outcome {
    let snapshots = ctx.params.flag_or("include-snapshots", true)?.to_string();
    let excluded = ctx.params.or("excluded-device-types", "").to_owned();
    let query = vec![which, ("export_snapshots", snapshots), ("excluded_device_types", excluded)];
    fetch(ctx, &Target { path: "/export_metadata", query, label }, filename)
}

fn fetch(ctx: &mut Ctx<'_>, target: &Target<'_>, filename: &str) -> Outcome {
    ctx.download(target, filename)?;
    if is_output(filename) { Ok(()) } else { ctx.line("Export succeeded") }
}

fn vm_export(ctx: &mut Ctx<'_>) -> Outcome {
    let filename = ctx.params.need("filename")?.to_owned();
    if ctx.params.flag("all")? {
        if !ctx.params.flag("metadata")? {
            return Err(Failure::cli("--all goes with metadata=true: disks are exported VM by VM (--multiple)"));
        }
        let which = ("all", "true".to_owned());
        return export_metadata(ctx, which, "Export of the metadata of all VMs".to_owned(), &filename);
    }
    // Several machines go to filename, filename2, filename3 and so on.
    for (index, vm) in vms(ctx, &TO_EXPORT)?.iter().enumerate() {
        let filename = if index == 0 { filename.clone() } else { format!("{filename}{}", index + 1) };
        export(ctx, vm, &filename)?;
    }
    Ok(())
}

fn template_export(ctx: &mut Ctx<'_>) -> Outcome {
    let uuid = ctx.params.need("template-uuid")?.to_owned();
    let template = ctx.api()?.object_by_uuid("VM", &uuid)?;
    if template.record.get("is_a_template").and_then(Value::as_bool) != Some(true) {
        return Err(Failure::cli(format!("{uuid} is not a template")));
    }
    let filename = ctx.params.need("filename")?.to_owned();
    export(ctx, &template, &filename)
}

fn snapshot_export(ctx: &mut Ctx<'_>) -> Outcome {
    let snapshot = snapshot_param(ctx)?;
    let filename = ctx.params.need("filename")?.to_owned();
    export(ctx, &snapshot, &filename)
}

fn vm_import(ctx: &mut Ctx<'_>) -> Outcome {
    let restore = ctx.params.flag("preserve")? || ctx.params.flag("restore")?;
    if ctx.params.flag("metadata")? {
        return import_metadata(ctx, restore);
    }
    if ctx.params.flag("dry-run")? {
        return Err(Failure::cli("dry-run goes with metadata=true"));
    }
    let sr = match ctx.params.get("sr-uuid") {
        Some(_) => ctx.by_uuid_param("sr-uuid", "SR")?,
        None => ctx
            .default_sr()?
            .ok_or_else(|| Failure::cli("No sr-uuid was given and the pool has no default SR to import into"))?,
    };
    let force = ctx.params.flag("force")?;
    let imported = match (ctx.params.get("filename"), ctx.params.get("url")) {
        (Some(filename), None) => {
            let mut query =
                vec![("sr_id", sr.to_string()), ("restore", restore.to_string()), ("force", force.to_string())];
            rate(ctx, &mut query)?;
            let target = Target { path: "/import", query, label: format!("Import of {filename}") };
            upload(ctx.api()?, target, &Upload::whole(filename))?
        }
        (None, Some(url)) => {
            let params = vec![Value::from(url), Value::from(&sr), Value::Bool(restore), Value::Bool(force)];
            ctx.api()?.run("VM.import", params, "Importing")?
        }
        _ => return Err(Failure::cli("Exactly one of filename and url must be given")),
    };
    print_imported(ctx, &imported)
}

/// The machines' disks are here already; the file holds records alone.
fn import_metadata(ctx: &mut Ctx<'_>, restore: bool) -> Outcome {
    let filename = ctx.params.need("filename")?.to_owned();
    let dry_run = ctx.params.flag("dry-run")?;
    let maps: Vec<(String, String)> =
        ctx.params.map("vdi").into_iter().map(|(old, new)| (format!("vdi:{old}"), new)).collect();
    let flags = [("restore", restore), ("force", ctx.params.flag("force")?), ("dry_run", dry_run)];
    let query = flags.map(|(name, on)| (name, on.to_string())).into_iter();
    let query = query.chain(maps.iter().map(|(name, new)| (name.as_str(), new.clone()))).collect();
    let target = Target { path: "/import_metadata", query, label: format!("Import of the metadata in {filename}") };
    let imported = upload(ctx.api()?, target, &Upload::whole(&filename))?;
    // Scripts expect a line.
    if dry_run { ctx.line("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") } else { print_imported(ctx, &imported) }
}

fn print_imported(ctx: &mut Ctx<'_>, imported: &Value) -> Outcome {
    let mut uuids = Vec::new();
    for vm in imported.as_set().unwrap_or_default() {
        uuids.push(ctx.api()?.uuid("VM", &Ref::from(scalar(vm)))?);
    }
    ctx.line(&uuids.join(","))
}

fn vdi_export(ctx: &mut Ctx<'_>) -> Outcome {
    let vdi = ctx.by_uuid_param("uuid", "VDI")?;
    let mut query = vec![("vdi", vdi.to_string()), ("format", ctx.params.or("format", "raw").to_owned())];
    if ctx.params.get("base").is_some() {
        query.push(("base", ctx.by_uuid_param("base", "VDI")?.to_string()));
    }
    rate(ctx, &mut query)?;
    let target = Target { path: "/export_raw_vdi", query, label: "Export of VDI".to_owned() };
    let filename = ctx.params.need("filename")?.to_owned();
    if ctx.params.flag("resume")? {
        return resume(ctx.api()?, target, &filename);
    }
    ctx.download(&target, &filename)
}

fn vdi_import(ctx: &mut Ctx<'_>) -> Outcome {
    let vdi = ctx.by_uuid_param("uuid", "VDI")?;
    let format = ctx.params.or("format", "raw").to_owned();
    let offset = match ctx.params.get("offset") {
        Some(_) => {
            u64::try_from(ctx.params.size("offset")?).map_err(|_| Failure::cli("offset must not be negative"))?
        }
        None => 0,
    };
    let mut query = vec![
        ("vdi", vdi.to_string()),
        ("format", format.clone()),
        ("delta", ctx.params.or("delta", "auto").to_owned()),
        ("offset", offset.to_string()),
    ];
    rate(ctx, &mut query)?;
    let target = Target { path: "/import_raw_vdi", query, label: "Import of VDI".to_owned() };
    let name = ctx.params.need("filename")?.to_owned();
    let plain_disk = matches!(format.as_str(), "" | "raw");
    upload(ctx.api()?, target, &Upload { name: &name, offset, plain_disk }).map(drop)
}
