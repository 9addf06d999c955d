//! One machine's run: the snapshot by the message that its type names, and what is written down about it.
//!
//! ```text
//!  begin: name noted ─▶ VM.snapshot ... ─▶ finish: snapshot marked, slot handled          one transaction each
//!     └─ found: taken by an earlier life ──┘  └▶ failed: again after 1, 5, 15 minutes, then a message
//! ```

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tanada_schedule::{calendar, retry_after_seconds};
use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};

use super::exceptions;
use super::look::{Due, policy};
use super::notes::{self, AttemptNote, MachineNote, Taking};
use crate::context::{Args, CallContext, Daemon};
use crate::db::{Record, Tx, View};
use crate::ops::records::message;
use crate::rpc::session::Session;
use crate::rpc::task::TaskHandle;

/// Keys of a scheduled snapshot's `snapshot_info`: the uuid of the schedule, and the slot that it is for.
pub const INFO_SCHEDULE: &str = "schedule";
pub const INFO_SLOT: &str = "schedule-slot";

/// Seconds until a machine that turned out to be busy is asked again.
const BUSY_SECONDS: i64 = 60;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    Taken(Ref),
    Failed(ApiError),
    /// Something else goes on with the machine.
    Busy,
    /// The machine or its schedule is no more.
    Gone,
}

/// What a run needs to know.
struct Run {
    name: String,
    /// Taken by an earlier life of the daemon.
    found: Option<Ref>,
    message: &'static str,
    label: String,
}

/// Takes the snapshot that is due. An error: it could not even be written down.
pub async fn run(daemon: &Arc<Daemon>, due: &Due) -> ApiResult<Ran> {
    let Some(run) = daemon.db.write(|tx| begin(tx, due))? else { return Ok(Ran::Gone) };
    let taken = match run.found.clone() {
        Some(snapshot) => Ok(snapshot),
        None => take(daemon, &due.vm, &run).await,
    };
    let now = daemon.schedules.clock.now();
    daemon.db.write(|tx| match &taken {
        Ok(snapshot) => succeeded(tx, daemon, due, snapshot, now),
        Err(error) => failed(tx, due, error, now),
    })
}

fn begin(tx: &mut Tx<'_>, due: &Due) -> ApiResult<Option<Run>> {
    let (Some(vm), Some(schedule)) = (tx.find("VM", &due.vm), tx.find("VMSS", &due.schedule)) else { return Ok(None) };
    let mut note = notes::of_machine(tx, vm.uuid()).unwrap_or_default();
    if vm.reference("snapshot_schedule") != due.schedule {
        return Ok(None);
    }
    let zone = policy(&schedule).map_or_else(calendar::host_zone, |policy| policy.calendar.zone);
    let slot = due.slot.as_second();
    let mut found = None;
    match &note.taking {
        Some(taking) if taking.slot == slot => found = unmarked(tx, &vm, &taking.name),
        _ => mark_taken(tx, &vm, &mut note)?,
    }
    let name = snapshot_name(&schedule, due.slot, &zone);
    note.taking = Some(Taking { slot, name: name.clone() });
    note.schedule = schedule.uuid().to_owned();
    notes::put_machine(tx, vm.uuid(), &note);
    if due.missed > 0 {
        tell_missed(tx, &schedule, due)?;
    }
    let label = format!("Scheduled snapshot of {} by {}", vm.str("name_label"), schedule.str("name_label"));
    Ok(Some(Run { name, found, message: message_of(&vm, &schedule), label }))
}

/// A snapshot that an earlier life took and did not come to mark is marked now, whatever becomes of its machine's note; its slot
/// is handled.
pub fn mark_taken(tx: &mut Tx<'_>, vm: &Record, note: &mut MachineNote) -> ApiResult<()> {
    let Some(taking) = &note.taking else { return Ok(()) };
    if let Some(snapshot) = unmarked(tx, vm, &taking.name) {
        mark(tx, &snapshot, &note.schedule, taking.slot)?;
        note.handled = note.handled.max(taking.slot);
        note.taking = None;
    }
    Ok(())
}

/// `nightly 2027-03-28T04:00+02:00`: the slot in the schedule's own time, never twice the same.
pub fn snapshot_name(schedule: &Record, slot: Timestamp, zone: &TimeZone) -> String {
    format!("{} {}", schedule.str("name_label"), slot.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M%:z"))
}

/// A snapshot of that name that is not marked as a schedule's.
fn unmarked(view: &impl View, vm: &Record, name: &str) -> Option<Ref> {
    let all = view.resolve("VM", &vm.refs("snapshots"));
    let found = all.iter().rfind(|one| one.str("name_label") == name && !one.bool("is_vmss_snapshot"));
    found.map(|one| one.id().clone())
}

fn tell_missed(tx: &mut Tx<'_>, schedule: &Record, due: &Due) -> ApiResult<()> {
    let mut note = notes::of_schedule(tx, schedule.uuid());
    if note.missed_told == due.slot.as_second() {
        return Ok(());
    }
    note.missed_told = due.slot.as_second();
    notes::put_schedule(tx, schedule.uuid(), &note);
    let body = format!(
        "{} runs before {} were missed, because the host was down or the machines were busy; they are not made up for",
        due.missed, due.slot
    );
    message(tx, "VMSS_SNAPSHOT_MISSED_EVENT", 3, "VMSS", schedule.uuid(), &body).map(drop)
}

/// The message that takes the snapshot. A machine that does not run has nothing to quiesce and no memory to keep.
pub fn message_of(vm: &Record, schedule: &Record) -> &'static str {
    let kind = exceptions::own_type(vm).unwrap_or_else(|| schedule.str("type"));
    match (kind, vm.str("power_state")) {
        ("snapshot_with_quiesce", "Running") => "VM.snapshot_with_quiesce",
        ("checkpoint", "Running" | "Paused" | "Suspended") => "VM.checkpoint",
        _ => "VM.snapshot",
    }
}

async fn take(daemon: &Arc<Daemon>, vm: &Ref, run: &Run) -> ApiResult<Ref> {
    let handler = daemon.methods.get(run.message).ok_or_else(|| ApiError::not_implemented(run.message))?;
    let (mut names, mut values) = (vec!["vm", "new_name"], vec![Value::from(vm), Value::from(run.name.as_str())]);
    if run.message == "VM.snapshot" {
        names.push("ignore_vdis");
        values.push(Value::empty_set());
    }
    let task = TaskHandle::create(daemon, &run.label, "")?;
    let ctx = CallContext { daemon: daemon.clone(), session: Session::internal(), task: task.clone() };
    // On its own: a handler that panics is a failed run, and nothing worse.
    let ended = tokio::spawn(handler(ctx, Args::new(names, values))).await;
    let result =
        ended.unwrap_or_else(|error| Err(ApiError::internal(format!("the snapshot failed unexpectedly: {error}"))));
    task.complete(&result);
    result.map(|snapshot| Ref::from(snapshot.as_str().unwrap_or_default()))
}

/// Marks a snapshot as a schedule's.
pub fn mark(tx: &mut Tx<'_>, snapshot: &Ref, schedule_uuid: &str, slot: i64) -> ApiResult<()> {
    if tx.find("VM", snapshot).is_none() {
        return Ok(());
    }
    tx.set("VM", snapshot, "is_vmss_snapshot", true)?;
    tx.put_entry("VM", snapshot, "snapshot_info", INFO_SCHEDULE, schedule_uuid)?;
    tx.put_entry("VM", snapshot, "snapshot_info", INFO_SLOT, DateTime::from_unix(slot).to_string())
}

/// Under a steered clock a snapshot is of that clock's time.
fn date(tx: &mut Tx<'_>, snapshot: &Ref, now: Timestamp) -> ApiResult<()> {
    let Some(record) = tx.find("VM", snapshot) else { return Ok(()) };
    let now = DateTime::from_unix(now.as_second());
    tx.set("VM", snapshot, "snapshot_time", now)?;
    for vbd in tx.resolve("VBD", &record.refs("VBDs")) {
        let vdi = vbd.reference("VDI");
        if tx.find("VDI", &vdi).is_some_and(|vdi| vdi.bool("is_a_snapshot")) {
            tx.set("VDI", &vdi, "snapshot_time", now)?;
        }
    }
    Ok(())
}

fn succeeded(tx: &mut Tx<'_>, daemon: &Daemon, due: &Due, snapshot: &Ref, now: Timestamp) -> ApiResult<Ran> {
    if let Some(schedule) = tx.find("VMSS", &due.schedule) {
        mark(tx, snapshot, schedule.uuid(), due.slot.as_second())?;
        handled(tx, due, &schedule, now, true)?;
    }
    if daemon.schedules.clock.is_steered() {
        date(tx, snapshot, now)?;
    }
    Ok(Ran::Taken(snapshot.clone()))
}

fn failed(tx: &mut Tx<'_>, due: &Due, error: &ApiError, now: Timestamp) -> ApiResult<Ran> {
    let (Some(vm), Some(schedule)) = (tx.find("VM", &due.vm), tx.find("VMSS", &due.schedule)) else {
        return Ok(Ran::Gone);
    };
    let mut note = notes::of_machine(tx, vm.uuid()).unwrap_or_default();
    note.taking = None;
    let slot = due.slot.as_second();
    if due.by_hand {
        // Whoever asked is told. The slot that is to be repeated, if there is one, keeps its turn and its count.
        notes::put_machine(tx, vm.uuid(), &note);
        return Ok(if is_busy(error) { Ran::Busy } else { Ran::Failed(error.clone()) });
    }
    let before = note.attempt.filter(|attempt| attempt.slot == slot).map_or(0, |attempt| attempt.failures);
    let busy = is_busy(error);
    let failures = if busy { before } else { before + 1 };
    let wait = if busy { Some(BUSY_SECONDS) } else { retry_after_seconds(failures).filter(|_| may_pass(error)) };
    tracing::warn!(vm = vm.uuid(), schedule = schedule.uuid(), failures, ?wait, %error, "a scheduled snapshot failed");
    if let Some(seconds) = wait {
        note.attempt = Some(AttemptNote { slot, failures, again_at: now.as_second() + seconds });
        notes::put_machine(tx, vm.uuid(), &note);
        return Ok(if busy { Ran::Busy } else { Ran::Failed(error.clone()) });
    }
    notes::put_machine(tx, vm.uuid(), &note);
    let (name, uuid) = (vm.str("name_label"), vm.uuid());
    let times = if failures == 1 { "once".to_owned() } else { format!("{failures} times") };
    let body = format!("no snapshot of {name} ({uuid}) for {}, tried {times}: {error}", due.slot);
    message(tx, "VMSS_SNAPSHOT_FAILED", 3, "VMSS", schedule.uuid(), &body)?;
    handled(tx, due, &schedule, now, false)?;
    Ok(Ran::Failed(error.clone()))
}

/// Does something else go on with the machine?
fn is_busy(error: &ApiError) -> bool {
    error.is("OTHER_OPERATION_IN_PROGRESS") || error.is("VDI_IN_USE")
}

/// Is it worth trying again?
fn may_pass(error: &ApiError) -> bool {
    !["NOT_IMPLEMENTED", "OPERATION_BLOCKED", "VM_IS_TEMPLATE", "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED"]
        .iter()
        .any(|code| error.is(code))
}

/// The machine is done with its slot; the last one of its schedule says so.
fn handled(tx: &mut Tx<'_>, due: &Due, schedule: &Record, now: Timestamp, taken: bool) -> ApiResult<()> {
    let slot = due.slot.as_second();
    if let Some(vm) = tx.find("VM", &due.vm) {
        let done = MachineNote { schedule: schedule.uuid().to_owned(), handled: slot, ..MachineNote::default() };
        notes::put_machine(tx, vm.uuid(), &done);
    }
    tx.set("VMSS", schedule.id(), "last_run_time", DateTime::from_unix(now.as_second()))?;
    let mut note = notes::of_schedule(tx, schedule.uuid());
    if note.slot != slot {
        (note.slot, note.taken, note.failed) = (slot, 0, 0);
    }
    *(if taken { &mut note.taken } else { &mut note.failed }) += 1;
    notes::put_schedule(tx, schedule.uuid(), &note);
    if note.failed == 0 && !others_pending(tx, schedule, due.slot, now) {
        let body = format!("{} snapshots for {}", note.taken, due.slot);
        message(tx, "VMSS_SNAPSHOT_SUCCEEDED", 5, "VMSS", schedule.uuid(), &body)?;
    }
    Ok(())
}

fn others_pending(view: &impl View, schedule: &Record, slot: Timestamp, now: Timestamp) -> bool {
    let zone = policy(schedule).map_or_else(calendar::host_zone, |policy| policy.calendar.zone);
    view.resolve("VM", &schedule.refs("VMs")).iter().any(|vm| {
        let note = notes::of_machine(view, vm.uuid()).filter(|note| note.schedule == schedule.uuid());
        note.is_some_and(|note| note.handled < slot.as_second()) && !exceptions::is_skipped(vm, now, &zone)
    })
}
