//! `vm-install`: a machine from a template or a snapshot.

use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::Object;
use crate::record::field::scalar;
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[Command::new(
    "vm-install",
    &["new-name-label"],
    &[
        "template",
        "template-uuid",
        "template-name-label",
        "template-name",
        "sr-uuid",
        "sr-name-label",
        "copy-bios-strings-from",
    ],
    "Makes a VM from a template or a snapshot.",
    install,
)];

fn install(ctx: &mut Ctx<'_>) -> Outcome {
    let name = ctx.params.need("new-name-label")?.to_owned();
    let template = template(ctx)?;
    let is_snapshot = template.record.get("is_a_snapshot").and_then(Value::as_bool) == Some(true);
    let sr = chosen_sr(ctx)?;
    if is_snapshot && sr.is_some() {
        return Err(Failure::cli("Do not specify an SR: the disks of a snapshot are cloned where they are"));
    }
    let source = Value::from(&template.reference);
    let vm = match &sr {
        Some(sr) => {
            ctx.api()?.run("VM.copy", vec![source, Value::from(&name), Value::from(sr)], "Copying the template")?
        }
        None => ctx.api()?.run("VM.clone", vec![source, Value::from(&name)], "Cloning the template")?,
    };
    match finish(ctx, &vm, &template, sr) {
        Ok(()) => ctx.print_uuid("VM", &vm),
        Err(failure) => {
            // The first failure is the one to tell.
            let _ = ctx.call("VM.destroy", vec![vm]);
            Err(failure)
        }
    }
}

/// From the clone of a template to a VM.
fn finish(ctx: &Ctx<'_>, vm: &Value, template: &Object, sr: Option<Ref>) -> Outcome {
    ctx.call("VM.set_name_description", vec![vm.clone(), Value::from("Installed via xe CLI")])?;
    if let Some(sr) = &sr {
        ctx.call("VM.set_suspend_SR", vec![vm.clone(), Value::from(sr)])?;
    }
    let disks = template.record.get("other_config").and_then(|map| map.get("disks")).map(scalar).unwrap_or_default();
    if disks.contains("<disk") {
        let sr = match sr {
            Some(sr) => sr,
            None => ctx.default_sr()?.ok_or_else(|| {
                Failure::cli("The template needs disks and the pool has no default SR: give sr-uuid or sr-name-label")
            })?,
        };
        let sr_uuid = ctx.api()?.uuid("SR", &sr)?;
        let disks = with_sr(&disks, &sr_uuid);
        ctx.call("VM.remove_from_other_config", vec![vm.clone(), Value::from("disks")])?;
        ctx.call("VM.add_to_other_config", vec![vm.clone(), Value::from("disks"), Value::from(disks)])?;
    }
    if ctx.params.get("copy-bios-strings-from").is_some() {
        let host = ctx.by_uuid_param("copy-bios-strings-from", "host")?;
        ctx.call("VM.copy_bios_strings", vec![vm.clone(), Value::from(host)])?;
    }
    ctx.api()?.run("VM.provision", vec![vm.clone()], "Provisioning").map(drop)
}

/// Exactly one template must be meant. A snapshot counts as one.
fn template(ctx: &Ctx<'_>) -> Result<Object, Failure> {
    let given = ["template-uuid", "template-name-label", "template-name", "template"];
    let mut wanted = given.iter().filter_map(|name| Some((*name, ctx.params.get(name)?)));
    let (Some((key, text)), None) = (wanted.next(), wanted.next()) else {
        return Err(Failure::cli(format!("Exactly one of {} must be given", given.join(", "))));
    };
    let is = |object: &Object, field: &str| object.record.get(field).map(scalar).as_deref() == Some(text);
    let templates: Vec<Object> = ctx
        .api()?
        .all("VM")?
        .into_iter()
        .filter(|vm| vm.record.get("is_a_template").and_then(Value::as_bool) == Some(true))
        .collect();
    let by_uuid = templates.iter().find(|vm| is(vm, "uuid"));
    if let Some(template) = by_uuid.filter(|_| matches!(key, "template" | "template-uuid")) {
        return Ok(template.clone());
    }
    let named: Vec<&Object> = match key {
        "template-uuid" => Vec::new(),
        _ => templates.iter().filter(|vm| is(vm, "name_label")).collect(),
    };
    match named.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::cli(format!("No templates matched '{text}'"))),
        several => Err(Failure::cli(format!("{} templates matched '{text}': use template-uuid", several.len()))),
    }
}

fn chosen_sr(ctx: &Ctx<'_>) -> Result<Option<Ref>, Failure> {
    if ctx.params.get("sr-uuid").is_some() {
        return ctx.by_uuid_param("sr-uuid", "SR").map(Some);
    }
    let Some(name) = ctx.params.get("sr-name-label") else { return Ok(None) };
    let found = ctx.call("SR.get_by_name_label", vec![Value::from(name)])?;
    match found.as_set().unwrap_or_default() {
        [one] => Ok(Some(Ref::from(scalar(one)))),
        [] => Err(Failure::cli(format!("No SR is named '{name}'"))),
        several => Err(Failure::cli(format!("{} SRs are named '{name}': use sr-uuid", several.len()))),
    }
}

/// The disks element with all its `sr` attributes set.
fn with_sr(disks: &str, sr_uuid: &str) -> String {
    let mut out = String::new();
    let mut rest = disks;
    while let Some(at) = rest.find(" sr=") {
        let (before, attribute) = rest.split_at(at + " sr=".len());
        out.push_str(before);
        let Some(quote) = attribute.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            rest = attribute;
            continue;
        };
        let Some(end) = attribute[1..].find(quote) else {
            rest = attribute;
            continue;
        };
        out.push(quote);
        out.push_str(sr_uuid);
        out.push(quote);
        rest = &attribute[end + 2..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::with_sr;

    #[test]
    fn disks_are_moved_to_the_chosen_sr() {
        let disks = r#"<provision><disk device="0" size="1" sr="" bootable="true"/><disk sr='x'/></provision>"#;
        let expected = r#"<provision><disk device="0" size="1" sr="U" bootable="true"/><disk sr='U'/></provision>"#;
        assert_eq!(with_sr(disks, "U"), expected);
        assert_eq!(with_sr("<a sr=", "U"), "<a sr=");
    }
}
