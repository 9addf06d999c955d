//! Which VMs a command works on: conditions on VM fields, and `vm=` for a name or uuid.

use crate::command::Outcome;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::scalar;
use crate::record::filter::matches;
use crate::record::lookup::Lookup;
use crate::record::{Object, class};
use tanada_xapi::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Templates {
    Excluded,
    Included,
    /// Only where nothing else matches: the server's refusal says more than "no matching VMs".
    ToExplain,
}

pub struct Selection {
    pub templates: Templates,
    pub control_domains: bool,
    /// `--multiple` cannot be used.
    pub single: bool,
}

pub const VMS: Selection = Selection { templates: Templates::Excluded, control_domains: false, single: false };

/// The VMs that the parameters select: at least one, and one only without `--multiple`.
pub fn vms(ctx: &Ctx<'_>, selection: &Selection) -> Result<Vec<Object>, Failure> {
    let found = candidates(ctx, selection)?;
    if found.is_empty() {
        return Err(Failure::cli("No matching VMs found"));
    }
    if found.len() > 1 && selection.single {
        return Err(Failure::cli(format!("{} VMs match, but this works on one only", found.len())));
    }
    if found.len() > 1 && !ctx.params.flag("multiple")? {
        return Err(Failure::cli(format!(
            "{} VMs match: use --multiple to perform the operation on several VMs",
            found.len()
        )));
    }
    Ok(found)
}

fn candidates(ctx: &Ctx<'_>, selection: &Selection) -> Result<Vec<Object>, Failure> {
    let mut conditions = ctx.command.conditions(&ctx.params);
    let mut names = Vec::new();
    conditions.retain(|(key, value)| {
        let is_name = key == "vm";
        if is_name {
            names.push(value.clone());
        }
        !is_name
    });
    let Some(table) = class("vm") else { return Ok(Vec::new()) };
    let api = ctx.api()?;
    let (lookup, objects) = Lookup::with_candidates(api, "VM", &conditions)?;
    let (mut found, mut templates) = (Vec::new(), Vec::new());
    for object in objects {
        let text = |field: &str| object.record.get(field).map(scalar).unwrap_or_default();
        let is = |field: &str| object.record.get(field).and_then(Value::as_bool) == Some(true);
        let is_named = names.iter().all(|name| *name == text("uuid") || *name == text("name_label"));
        let is_hidden = is("is_control_domain") && !selection.control_domains;
        if !is_named || is_hidden || !matches(table, &lookup, &object, &conditions)? {
            continue;
        }
        if is("is_a_template") && selection.templates != Templates::Included {
            templates.push(object);
        } else {
            found.push(object);
        }
    }
    found.sort_by_cached_key(|object| object.record.get("name_label").map(scalar));
    if found.is_empty() && templates.len() == 1 && selection.templates == Templates::ToExplain {
        return Ok(templates);
    }
    Ok(found)
}

/// Runs `operation` on each selected VM. With `--multiple` a failure is told and the others still run.
pub fn each_vm(
    ctx: &mut Ctx<'_>,
    selection: &Selection,
    mut operation: impl FnMut(&mut Ctx<'_>, &Object) -> Outcome,
) -> Outcome {
    let selected = vms(ctx, selection)?;
    if !ctx.params.flag("multiple")? {
        return selected.iter().try_for_each(|vm| operation(ctx, vm));
    }
    let mut any_failed = false;
    for vm in &selected {
        if let Err(failure) = operation(ctx, vm) {
            any_failed = true;
            let uuid = vm.record.get("uuid").map(scalar).unwrap_or_default();
            let told = format!("operation failed on {uuid}: {}", ctx.summary(&failure));
            ctx.line(&told)?;
        }
    }
    if any_failed { Err(Failure::Reported) } else { Ok(()) }
}
