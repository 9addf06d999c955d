//! The messages of class VMSS, and how a machine gets a schedule.
//!
//! As XenServer's, with more: `retained_snapshots` goes up to 100000, and `schedule` takes keys of our own (the table is in
//! `tanada_schedule::policy`). A schedule that is made, enabled or changed begins then: slots that passed before are not
//! missed.

use std::collections::BTreeMap;

use futures_util::{FutureExt, StreamExt, stream};
use jiff::tz::TimeZone;
use tanada_schedule::policy::{Wrong, completed};
use tanada_schedule::{Frequency, Policy};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::exceptions::TYPES;
use super::look::Due;
use super::run::{Ran, mark_taken, run};
use super::{Schedules, notes, prune};
use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::{Record, Tx, View};
use crate::ops::records::{given, strings};

/// Snapshots that `snapshot_now` takes at a time.
const NOW_AT_ONCE: usize = 4;

pub fn handlers() -> Handlers {
    vec![
        ("VMSS.create", |ctx, args| create(ctx, args).boxed()),
        ("VMSS.destroy", |ctx, args| destroy(ctx, args).boxed()),
        ("VMSS.set_enabled", |ctx, args| set_enabled(ctx, args).boxed()),
        ("VMSS.set_type", |ctx, args| set_type(ctx, args).boxed()),
        ("VMSS.set_frequency", |ctx, args| set_frequency(ctx, args).boxed()),
        ("VMSS.set_retained_snapshots", |ctx, args| set_retained(ctx, args).boxed()),
        ("VMSS.set_schedule", |ctx, args| set_schedule(ctx, args).boxed()),
        ("VMSS.add_to_schedule", |ctx, args| add_to_schedule(ctx, args).boxed()),
        ("VMSS.remove_from_schedule", |ctx, args| remove_from_schedule(ctx, args).boxed()),
        ("VMSS.set_last_run_time", |ctx, args| set_last_run_time(ctx, args).boxed()),
        ("VMSS.snapshot_now", |ctx, args| snapshot_now(ctx, args).boxed()),
        ("VM.set_snapshot_schedule", |ctx, args| set_snapshot_schedule(ctx, args).boxed()),
    ]
}

/// Keys that XenServer's clients know answer as there; ours say what would be accepted.
fn refusal(wrong: Wrong) -> ApiError {
    match wrong.field.as_str() {
        "schedule:min" | "schedule:hour" | "schedule:days" => ApiError::invalid_value(wrong.field, wrong.value),
        _ if wrong.accepted.is_empty() => ApiError::invalid_value(wrong.field, wrong.value),
        _ => ApiError::invalid_value(&wrong.field, format!("{} (give {})", wrong.value, wrong.accepted)),
    }
}

fn frequency_of(text: &str) -> ApiResult<Frequency> {
    Frequency::parse(text).ok_or_else(|| ApiError::invalid_value("frequency", text))
}

/// `INVALID_VALUE` unless the fields make a policy.
fn check(frequency: &str, retained: i64, schedule: &BTreeMap<String, String>) -> ApiResult<Frequency> {
    let frequency = frequency_of(frequency)?;
    // Which zone is the host's has no bearing on what is valid.
    Policy::new(frequency, retained, schedule, &TimeZone::UTC).map_err(refusal)?;
    Ok(frequency)
}

fn check_type(kind: &str) -> ApiResult<()> {
    if TYPES.contains(&kind) { Ok(()) } else { Err(ApiError::invalid_value("type", kind)) }
}

/// What has passed is none of the schedule's business.
fn begin_now(tx: &mut Tx<'_>, daemon: &Daemon, uuid: &str) {
    let mut note = notes::of_schedule(tx, uuid);
    note.since = daemon.schedules.clock.now().as_second();
    notes::put_schedule(tx, uuid, &note);
}

async fn create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let mut fields = given("VMSS", args.map("args")?)?;
    let field = |name: &str| fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value);
    let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let given = field("schedule").and_then(Value::as_map).map(strings).unwrap_or_default();
    let retained = field("retained_snapshots").and_then(Value::as_int).unwrap_or(7);
    check_type(&text("type"))?;
    let frequency = check(&text("frequency"), retained, &given)?;
    fields.retain(|(field, _)| *field != "schedule");
    fields.push(("schedule", Value::map(completed(frequency, &given))));
    let id = ctx.db().write(|tx| {
        let id = tx.create("VMSS", fields)?;
        let uuid = tx.get("VMSS", &id)?.uuid().to_owned();
        begin_now(tx, &ctx.daemon, &uuid);
        Ok(id)
    })?;
    ctx.daemon.schedules.changed.notify_one();
    Ok(Value::from(id))
}

async fn destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let id = args.reference("self")?;
    ctx.db().write(|tx| {
        let schedule = tx.get("VMSS", &id)?;
        if !schedule.refs("VMs").is_empty() {
            return Err(ApiError::vmss_has_vm());
        }
        tx.forget_note(&format!("{}{}", notes::SCHEDULE, schedule.uuid()));
        tx.destroy("VMSS", &id)
    })?;
    Ok(Value::Void)
}

/// What decides when a schedule runs.
fn slots(schedule: &Record) -> (bool, &str, [Option<&str>; 4]) {
    let keys = ["min", "hour", "days", "timezone"].map(|key| schedule.entry("schedule", key));
    (schedule.bool("enabled"), schedule.str("frequency"), keys)
}

/// Changes a schedule by `change`, which answers the new fields. Slots that have passed do not count where it runs at other times
/// now; where it does not, machines that are due and have not had their turn keep it.
fn edit(
    ctx: &CallContext,
    id: &Ref,
    change: impl FnOnce(&Record) -> ApiResult<Vec<(&'static str, Value)>>,
) -> ApiResult<Value> {
    let vms = ctx.db().write(|tx| {
        let schedule = tx.get("VMSS", id)?;
        tx.set_all("VMSS", id, change(&schedule)?)?;
        let changed = tx.get("VMSS", id)?;
        if slots(&changed) != slots(&schedule) {
            begin_now(tx, &ctx.daemon, schedule.uuid());
        }
        Ok(schedule.refs("VMs"))
    })?;
    // More may go by other rules.
    ctx.daemon.schedules.prune_later(vms);
    ctx.daemon.schedules.changed.notify_one();
    Ok(Value::Void)
}

async fn set_enabled(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, value) = (args.reference("self")?, args.bool("value")?);
    edit(&ctx, &id, |_| Ok(vec![("enabled", Value::from(value))]))
}

async fn set_type(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, value) = (args.reference("self")?, args.string("value")?);
    check_type(&value)?;
    edit(&ctx, &id, |_| Ok(vec![("type", Value::from(value))]))
}

async fn set_frequency(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, value) = (args.reference("self")?, args.string("value")?);
    edit(&ctx, &id, |schedule| {
        let keys = completed(frequency_of(&value)?, &strings(schedule.map("schedule")));
        check(&value, schedule.int("retained_snapshots"), &keys)?;
        Ok(vec![("frequency", Value::from(value.as_str())), ("schedule", Value::map(keys))])
    })
}

async fn set_retained(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, value) = (args.reference("self")?, args.int("value")?);
    edit(&ctx, &id, |schedule| {
        check(schedule.str("frequency"), value, &strings(schedule.map("schedule")))?;
        Ok(vec![("retained_snapshots", Value::from(value))])
    })
}

async fn set_schedule(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, value) = (args.reference("self")?, strings(args.map("value")?));
    edit(&ctx, &id, |schedule| {
        let frequency = check(schedule.str("frequency"), schedule.int("retained_snapshots"), &value)?;
        Ok(vec![("schedule", Value::map(completed(frequency, &value)))])
    })
}

async fn add_to_schedule(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, key, value) = (args.reference("self")?, args.string("key")?, args.string("value")?);
    edit(&ctx, &id, |schedule| {
        let mut keys = strings(schedule.map("schedule"));
        if keys.insert(key.clone(), value).is_some() {
            return Err(ApiError::map_duplicate_key("VMSS", "schedule", &id, &key));
        }
        check(schedule.str("frequency"), schedule.int("retained_snapshots"), &keys)?;
        Ok(vec![("schedule", Value::map(keys))])
    })
}

/// A key of XenServer's that is missing means its default.
async fn remove_from_schedule(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, key) = (args.reference("self")?, args.string("key")?);
    edit(&ctx, &id, |schedule| {
        let mut keys = strings(schedule.map("schedule"));
        keys.remove(&key);
        Ok(vec![("schedule", Value::map(keys))])
    })
}

/// For display: what has been handled is known otherwise.
async fn set_last_run_time(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, value) = (args.reference("self")?, args.value("value")?.clone());
    ctx.db().write(|tx| tx.set("VMSS", &id, "last_run_time", value)).map(Value::from)
}

/// A snapshot of each machine of the schedule, now; answers what came of them in words.
async fn snapshot_now(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let id = args.reference("vmss")?;
    let vms = ctx.db().read(|state| Ok::<_, ApiError>(state.resolve("VM", &state.get("VMSS", &id)?.refs("VMs"))))?;
    let all = vms.len();
    let runs = vms.into_iter().map(|vm| one_now(ctx.clone(), id.clone(), vm));
    let failed: Vec<String> =
        stream::iter(runs).buffer_unordered(NOW_AT_ONCE).filter_map(std::future::ready).collect().await;
    let mut words = format!("{} of {all} snapshots taken", all - failed.len());
    for failure in failed {
        words.push_str("; ");
        words.push_str(&failure);
    }
    Ok(Value::from(words))
}

/// What went wrong, if anything did.
async fn one_now(ctx: CallContext, schedule: Ref, vm: std::sync::Arc<Record>) -> Option<String> {
    let name = vm.str("name_label");
    let Some(claim) = Schedules::claim(&ctx.daemon, vm.id()) else {
        return Some(format!("{name}: a scheduled snapshot is being taken"));
    };
    let now = ctx.daemon.schedules.clock.now();
    let due = Due { vm: vm.id().clone(), schedule, slot: now, since: now, missed: 0, first: true, by_hand: true };
    let failure = match run(&ctx.daemon, &due).await {
        Ok(Ran::Taken(_)) => {
            if prune::prune(&ctx.daemon, vm.id()).await.postponed {
                ctx.daemon.schedules.prune_later([vm.id().clone()]);
            }
            None
        }
        Ok(Ran::Failed(error)) | Err(error) => Some(format!("{name}: {error}")),
        Ok(Ran::Busy) => Some(format!("{name}: another operation goes on with it")),
        Ok(Ran::Gone) => Some(format!("{name}: it is no longer there")),
    };
    drop(claim);
    failure
}

async fn set_snapshot_schedule(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, value) = (args.reference("self")?, args.reference("value")?);
    let now = ctx.daemon.schedules.clock.now().as_second();
    ctx.db().write(|tx| {
        let record = tx.get("VM", &vm)?;
        if record.bool("is_control_domain") {
            return Err(ApiError::invalid_value("snapshot_schedule", "the control domain has no schedule"));
        }
        if record.bool("is_a_template") {
            return Err(ApiError::vm_is_template(&vm, "set_snapshot_schedule"));
        }
        let name = format!("{}{}", notes::MACHINE, record.uuid());
        if record.reference("snapshot_schedule") != value
            && let Some(mut note) = notes::of_machine(tx, record.uuid())
        {
            mark_taken(tx, &record, &mut note)?;
        }
        if value.is_null() {
            tx.forget_note(&name);
            return tx.set("VM", &vm, "snapshot_schedule", Ref::null());
        }
        let schedule = tx.get("VMSS", &value)?.uuid().to_owned();
        if record.reference("snapshot_schedule") != value {
            notes::put_machine(tx, record.uuid(), &notes::MachineNote { schedule, handled: now, ..Default::default() });
        }
        tx.set("VM", &vm, "snapshot_schedule", &value)
    })?;
    ctx.daemon.schedules.prune_later([vm]);
    ctx.daemon.schedules.changed.notify_one();
    Ok(Value::Void)
}
