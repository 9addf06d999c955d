//! What a snapshot knows about its consistency, and what one would reach.

use crate::command::select::{VMS, each_vm};
use crate::command::snapshot::WHICH;
use crate::command::{Command, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::scalar;
use tanada_certificate::Certificate;
use tanada_certificate::check::Check;
use tanada_certificate::keys::Info;
use tanada_xapi::Value;

pub const COMMANDS: &[Command] = &[
    Command::new(
        "snapshot-certificate",
        &[],
        WHICH,
        "Prints what a snapshot, or a template made of one, knows about its consistency (--minimal: the level).",
        certificate,
    ),
    Command::new(
        "vm-quiesce-check",
        &[],
        &["hold"],
        "Freezes and thaws the guests of running VMs once, without a snapshot, and tells every step and what a snapshot \
         would get (--minimal: the level); hold=<milliseconds> keeps them frozen. Fails where that is crash-consistent.",
        check,
    )
    .selects_vms(),
];

/// Also of an imported template: the certificate travels with it.
fn certificate(ctx: &mut Ctx<'_>) -> Outcome {
    let uuid = ctx.params.get("snapshot-uuid").or_else(|| ctx.params.get("uuid"));
    let uuid = uuid.ok_or_else(|| Failure::cli("Required parameter not found: snapshot-uuid or uuid."))?.to_owned();
    let record = ctx.api()?.object_by_uuid("VM", &uuid)?.record;
    let info = record.get("snapshot_info").and_then(Value::as_map).cloned().unwrap_or_default();
    let info: Info = info.into_iter().map(|(key, value)| (key, scalar(&value))).collect();
    let none =
        || Failure::cli(format!("{uuid} has no certificate: it is neither a snapshot nor a template made of one"));
    let certificate = Certificate::from_map(&info).ok_or_else(none)?;
    if ctx.is_minimal()? {
        return ctx.line(certificate.level.name());
    }
    let name = record.get("name_label").map(scalar).unwrap_or_default();
    ctx.line(&format!("{:>17}: {} ({uuid})", "snapshot", one_line(&name)))?;
    if record.get("is_a_snapshot").and_then(Value::as_bool) == Some(true) {
        let taken = record.get("snapshot_time").map(scalar).unwrap_or_default();
        ctx.line(&format!("{:>17}: {taken}", "taken"))?;
    }
    ctx.write(&certificate.to_string())
}

fn check(ctx: &mut Ctx<'_>) -> Outcome {
    let args = Value::map(ctx.params.get("hold").map(|hold| ("hold", hold.to_owned())));
    let is_minimal = ctx.is_minimal()?;
    let mut is_good = true;
    each_vm(ctx, &VMS, |ctx, vm| {
        let params = vec![Value::from(&vm.reference), "tanada".into(), "quiesce-check".into(), args.clone()];
        let answer = ctx.call("VM.call_plugin", params)?;
        let check = Check::from_json(&scalar(&answer)).map_err(Failure::unexpected)?;
        is_good &= check.is_quiesced();
        if is_minimal {
            return ctx.line(check.level().name());
        }
        let name = vm.record.get("name_label").map(scalar).unwrap_or_default();
        ctx.line(&format!("{} ({})", one_line(&name), vm.record.get("uuid").map(scalar).unwrap_or_default()))?;
        ctx.write(&check.to_string())
    })?;
    if is_good { Ok(()) } else { Err(Failure::Reported) }
}

/// A name that cannot move the cursor.
fn one_line(name: &str) -> String {
    name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}
