//! Which operation is allowed on a machine when: one table and one order of checks, for refusals and for the
//! `allowed_operations` of records alike.
//!
//! The check of an operation belongs into the transaction that marks it (`CallContext::begin`). The fields
//! `allowed_operations` are advice for clients; a task that follows the database keeps them current, so that nobody has
//! to remember to.

use std::sync::Arc;

use futures_util::FutureExt;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::{Record, View};
use crate::ops::cbt;
use crate::ops::follow::follow;
use crate::ops::machine::revert::UNFINISHED_KEY;

const HALTED: u8 = 1;
const PAUSED: u8 = 2;
const RUNNING: u8 = 4;
const SUSPENDED: u8 = 8;
const ANY: u8 = HALTED | PAUSED | RUNNING | SUSPENDED;

const STATES: [(&str, u8); 4] =
    [("Halted", HALTED), ("Paused", PAUSED), ("Running", RUNNING), ("Suspended", SUSPENDED)];

/// A line of the table: in which power states, on templates, on snapshots, and whether clients are told. What is not built
/// is not told.
struct Rule {
    operation: &'static str,
    states: u8,
    template: bool,
    snapshot: bool,
    listed: bool,
}

const fn rule(operation: &'static str, states: u8, template: bool, snapshot: bool, listed: bool) -> Rule {
    Rule { operation, states, template, snapshot, listed }
}

static RULES: &[Rule] = &[
    rule("start", HALTED, false, false, true),
    rule("start_on", HALTED, false, false, true),
    rule("provision", HALTED, true, false, true),
    rule("make_into_template", HALTED, false, false, true),
    rule("changing_NVRAM", HALTED, true, false, true),
    rule("changing_shadow_memory", HALTED, true, false, true),
    rule("create_vtpm", HALTED, false, false, false),
    rule("changing_VCPUs", HALTED, true, false, false),
    rule("changing_static_range", HALTED, true, false, true),
    rule("changing_memory_limits", HALTED, true, false, false),
    rule("changing_dynamic_range", HALTED | RUNNING, true, false, true),
    rule("clone", HALTED, true, true, true),
    rule("copy", HALTED, true, true, true),
    rule("create_template", HALTED | SUSPENDED, false, false, false),
    rule("destroy", HALTED | SUSPENDED, true, true, true),
    rule("export", HALTED | SUSPENDED, true, true, true),
    rule("migrate_send", HALTED | SUSPENDED | RUNNING, true, false, false),
    rule("pause", RUNNING, false, false, true),
    rule("clean_shutdown", RUNNING, false, false, true),
    rule("clean_reboot", RUNNING, false, false, true),
    rule("suspend", RUNNING, false, false, true),
    rule("pool_migrate", RUNNING, false, false, false),
    rule("snapshot_with_quiesce", RUNNING, false, false, true),
    rule("data_source_op", RUNNING, false, false, false),
    rule("send_sysrq", RUNNING, false, false, false),
    rule("send_trigger", RUNNING, false, false, false),
    rule("call_plugin", RUNNING, false, false, false),
    rule("changing_memory_live", RUNNING, false, false, false),
    rule("awaiting_memory_live", RUNNING, false, false, false),
    rule("changing_VCPUs_live", RUNNING, false, false, false),
    rule("changing_shadow_memory_live", RUNNING, false, false, false),
    rule("unpause", PAUSED, false, false, true),
    rule("resume", SUSPENDED, false, false, true),
    rule("resume_on", SUSPENDED, false, false, true),
    rule("csvm", SUSPENDED, false, false, false),
    rule("hard_reboot", PAUSED | RUNNING, false, false, true),
    rule("hard_shutdown", PAUSED | SUSPENDED | RUNNING, false, true, true),
    rule("shutdown", PAUSED | SUSPENDED | RUNNING, false, false, false),
    rule("checkpoint", PAUSED | SUSPENDED | RUNNING, false, false, true),
    rule("get_boot_record", PAUSED | SUSPENDED | RUNNING, false, false, false),
    rule("snapshot", ANY, false, false, true),
    rule("revert", ANY, false, true, true),
    rule("reverting", ANY, false, false, false),
    rule("metadata_export", ANY, true, true, true),
    rule("power_state_reset", ANY, false, false, false),
    rule("assert_operation_valid", ANY, true, true, false),
    rule("update_allowed_operations", ANY, true, true, false),
    rule("query_services", ANY, false, false, false),
];

/// Operations of which several may run at a time.
static TOGETHER: &[&[&str]] = &[
    &["clone", "copy", "export"],
    &["snapshot", "checkpoint"],
    &["get_boot_record"],
    &["snapshot", "snapshot_with_quiesce"],
];

/// Operations that take a machine's memory or bring it back: one that is reset goes on in the middle of them, and its disks are no
/// longer those that its memory knows.
static MEMORY: &[&str] = &["suspend", "checkpoint", "resume", "resume_on"];

/// May `operation` begin on this machine now? The first reason against it, in the documented order.
pub fn vm(view: &impl View, vm: &Ref, operation: &str) -> ApiResult<()> {
    check(view.get("VM", vm)?.as_ref(), operation)
}

/// [`vm`] for a record at hand.
pub fn check(vm: &Record, operation: &str) -> ApiResult<()> {
    let id = vm.id();
    let Some(rule) = RULES.iter().find(|rule| rule.operation == operation) else {
        return Err(ApiError::invalid_value("op", operation));
    };
    if let Some(text) = vm.entry("blocked_operations", operation) {
        return Err(ApiError::operation_blocked(id, text));
    }
    let snapshot = vm.bool("is_a_snapshot");
    // A checkpoint has memory that a copy does without.
    let asleep = if snapshot && matches!(operation, "clone" | "copy") { SUSPENDED } else { 0 };
    power_state(vm, rule.states | asleep)?;
    others(vm, operation)?;
    if vm.bool("is_a_template") && !snapshot {
        let standard = vm.bool("is_default_template");
        if !rule.template || (standard && matches!(operation, "destroy" | "migrate_send")) {
            return Err(ApiError::vm_is_template(id, operation));
        }
    }
    if snapshot && !rule.snapshot {
        return Err(ApiError::vm_is_snapshot(id, operation));
    }
    if operation == "provision" && !vm.bool("is_a_template") {
        return Err(ApiError::provision_only_allowed_on_template());
    }
    if operation == "revert" && !snapshot {
        return Err(ApiError::revert_only_allowed_on_snapshot());
    }
    if vm.bool("is_control_domain") {
        return Err(ApiError::operation_not_allowed("Operations on the control domain are not allowed"));
    }
    if matches!(operation, "start" | "start_on")
        && let Some(snapshot) = vm.entry("other_config", UNFINISHED_KEY)
    {
        return Err(half_reverted(snapshot));
    }
    if operation == "make_into_template" {
        let schedule = vm.reference("snapshot_schedule");
        if !schedule.is_null() {
            return Err(ApiError::vm_assigned_to_snapshot_schedule(id, schedule));
        }
    }
    Ok(())
}

fn half_reverted(snapshot: &str) -> ApiError {
    ApiError::operation_not_allowed(format!(
        "the machine's disks may be of two instants: its revert to the snapshot {snapshot} failed half-way; repeat it, or \
         revert to another snapshot (other_config:{UNFINISHED_KEY})"
    ))
}

/// `VM_BAD_POWER_STATE` unless the machine is in one of `states`.
fn power_state(vm: &Record, states: u8) -> ApiResult<()> {
    let actual = vm.str("power_state");
    if STATES.iter().any(|(name, bit)| *name == actual && states & bit != 0) {
        return Ok(());
    }
    let expected: Vec<String> =
        STATES.iter().filter(|(_, bit)| states & bit != 0).map(|(name, _)| name.to_lowercase()).collect();
    Err(ApiError::vm_bad_power_state(vm.id(), expected.join(", "), actual.to_lowercase()))
}

/// `OTHER_OPERATION_IN_PROGRESS` unless what runs may run beside `operation`.
fn others(vm: &Record, operation: &str) -> ApiResult<()> {
    let running: Vec<(&String, &str)> =
        vm.map("current_operations").iter().map(|(task, op)| (task, op.as_str().unwrap_or_default())).collect();
    let beside = |other: &str| match operation {
        "hard_shutdown" => other != "hard_shutdown",
        "hard_reboot" => !["hard_shutdown", "hard_reboot"].contains(&other) && !MEMORY.contains(&other),
        "assert_operation_valid" | "update_allowed_operations" | "metadata_export" => true,
        _ => TOGETHER.iter().any(|set| set.contains(&operation) && set.contains(&other)),
    };
    if running.iter().all(|(_, other)| beside(other)) {
        return Ok(());
    }
    let list = |items: Vec<&str>| match items.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("{{{}}}", many.join(",")),
    };
    let operations = list(running.iter().map(|(_, op)| *op).collect());
    let tasks = list(running.iter().map(|(task, _)| task.as_str()).collect());
    Err(ApiError::other_operation_in_progress("VM", vm.id(), operations, tasks))
}

fn of_vm(vm: &Record) -> Vec<Value> {
    RULES
        .iter()
        .filter(|rule| rule.listed && check(vm, rule.operation).is_ok())
        .map(|rule| Value::from(rule.operation))
        .collect()
}

fn of_vdi(view: &impl View, vdi: &Record) -> Vec<Value> {
    let attached = view.resolve("VBD", &vdi.refs("VBDs")).iter().any(|vbd| vbd.bool("currently_attached"));
    if !vdi.bool("managed") || !vdi.map("current_operations").is_empty() {
        return Vec::new();
    }
    let tracks = view.find("SR", &vdi.reference("SR")).is_some_and(|sr| cbt::is_supported(view, &sr));
    if vdi.str("type") == cbt::METADATA_TYPE {
        return cbt::OF_METADATA.iter().copied().map(Value::from).collect();
    }
    let mut all = vec!["snapshot", "clone", "update"];
    if !attached {
        all.extend(["copy", "destroy", "forget"]);
        if !vdi.bool("is_a_snapshot") {
            all.push("resize");
        }
    }
    if tracks && (vdi.bool("is_a_snapshot") || !attached) {
        all.push("list_changed_blocks");
    }
    if tracks && vdi.bool("is_a_snapshot") && vdi.bool("cbt_enabled") {
        all.push("data_destroy");
    }
    if tracks && !vdi.bool("is_a_snapshot") && matches!(vdi.str("type"), "user" | "system") {
        all.extend(["enable_cbt", "disable_cbt"]);
    }
    all.into_iter().map(Value::from).collect()
}

fn of_vbd(view: &impl View, vbd: &Record) -> Vec<Value> {
    let running = view.find("VM", &vbd.reference("VM")).is_some_and(|vm| vm.str("power_state") == "Running");
    let all: &[&str] = match (vbd.bool("currently_attached"), running) {
        (true, true) if vbd.bool("unpluggable") => &["unplug", "unplug_force"],
        (true, true) => &["unplug_force"],
        (false, true) => &["plug"],
        (false, false) => &["attach"],
        (true, false) => &[],
    };
    all.iter().copied().map(Value::from).collect()
}

fn of_sr(view: &impl View, sr: &Record) -> Vec<Value> {
    let pbds = view.resolve("PBD", &sr.refs("PBDs"));
    let plugged = pbds.iter().any(|pbd| pbd.bool("currently_attached"));
    let mut all = vec!["pbd_create", "pbd_destroy", "plug"];
    if plugged {
        all.extend([
            "scan",
            "unplug",
            "update",
            "vdi_create",
            "vdi_introduce",
            "vdi_destroy",
            "vdi_resize",
            "vdi_clone",
            "vdi_snapshot",
        ]);
        if cbt::is_supported(view, sr) {
            all.extend(["vdi_enable_cbt", "vdi_disable_cbt", "vdi_data_destroy", "vdi_list_changed_blocks"]);
        }
    } else {
        all.push("forget");
        if !pbds.is_empty() {
            all.push("destroy");
        }
    }
    all.into_iter().map(Value::from).collect()
}

/// Follows the database and brings the `allowed_operations` of what changed up to date.
pub fn keep_current(daemon: &Arc<Daemon>) {
    follow(daemon, |daemon, seen| async move { refresh(&daemon, seen) }.boxed());
}

/// One round of [`keep_current`]: looks at what changed after generation `seen`, answers the generation looked at.
pub fn refresh(daemon: &Daemon, seen: u64) -> u64 {
    let (generation, stale) = daemon.db.read(|state| {
        let mut related: Vec<(&'static str, Ref)> = Vec::new();
        for class in ["VM", "VDI", "VBD", "SR"] {
            for record in state.changed_since(class, seen) {
                related.push((class, record.id().clone()));
                if class == "VM" {
                    related.extend(record.refs("VBDs").into_iter().map(|vbd| ("VBD", vbd)));
                }
                if class == "VBD" {
                    related.push(("VDI", record.reference("VDI")));
                }
            }
        }
        for pbd in state.changed_since("PBD", seen) {
            related.push(("SR", pbd.reference("SR")));
        }
        related.sort();
        related.dedup();
        let stale: Vec<(&'static str, Ref)> =
            related.into_iter().filter(|(class, id)| differing(state, class, id).is_some()).collect();
        (state.generation(), stale)
    });
    if !stale.is_empty() {
        let written = daemon.db.write(|tx| {
            for (class, id) in &stale {
                if let Some(operations) = differing(tx, class, id) {
                    tx.set(class, id, "allowed_operations", Value::Set(operations))?;
                }
            }
            Ok(())
        });
        if let Err(error) = written {
            tracing::warn!(%error, "allowed operations could not be brought up to date");
        }
    }
    generation
}

/// What `allowed_operations` should be, where it is not.
fn differing(view: &impl View, class: &str, id: &Ref) -> Option<Vec<Value>> {
    let record = view.find(class, id)?;
    let operations = match class {
        "VM" => of_vm(&record),
        "VDI" => of_vdi(view, &record),
        "VBD" => of_vbd(view, &record),
        _ => of_sr(view, &record),
    };
    (record.set("allowed_operations") != operations).then_some(operations)
}

pub fn handlers() -> Handlers {
    vec![
        ("VM.assert_operation_valid", |ctx, args| assert_operation_valid(ctx, args).boxed()),
        ("VM.update_allowed_operations", |ctx, args| update(ctx, args).boxed()),
    ]
}

async fn assert_operation_valid(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (id, operation) = (args.reference("self")?, args.str("op")?);
    ctx.db().read(|state| vm(state, &id, operation))?;
    Ok(Value::Void)
}

async fn update(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let id = args.reference("self")?;
    ctx.db().write(|tx| {
        if let Some(operations) = differing(tx, "VM", &id) {
            tx.set("VM", &id, "allowed_operations", Value::Set(operations))?;
        }
        tx.get("VM", &id).map(drop)
    })?;
    Ok(Value::Void)
}
