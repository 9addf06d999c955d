//! Properties of machines that have rules beyond their type, and small questions about hosts and the pool.
//!
//! Memory keeps the order static_min ≤ dynamic_min ≤ dynamic_max ≤ static_max at all times, and processors
//! 1 ≤ at_startup ≤ max. What a running machine has got already is not changed under it: those need a halted one.

use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};

use crate::context::{Args, CallContext, Handlers};
use crate::db::{Record, Tx, View};
use crate::ops::allowed;
use crate::rpc::setup;

pub fn handlers() -> Handlers {
    vec![
        ("VM.set_memory_static_min", |c, a| Box::pin(async move { set_memory(c, &a, &[("value", STATIC_MIN)]) })),
        ("VM.set_memory_static_max", |c, a| Box::pin(async move { set_memory(c, &a, &[("value", STATIC_MAX)]) })),
        ("VM.set_memory_dynamic_min", |c, a| Box::pin(async move { set_memory(c, &a, &[("value", DYNAMIC_MIN)]) })),
        ("VM.set_memory_dynamic_max", |c, a| Box::pin(async move { set_memory(c, &a, &[("value", DYNAMIC_MAX)]) })),
        ("VM.set_memory_static_range", |c, a| {
            Box::pin(async move { set_memory(c, &a, &[("min", STATIC_MIN), ("max", STATIC_MAX)]) })
        }),
        ("VM.set_memory_dynamic_range", |c, a| {
            Box::pin(async move { set_memory(c, &a, &[("min", DYNAMIC_MIN), ("max", DYNAMIC_MAX)]) })
        }),
        ("VM.set_memory_limits", |c, a| Box::pin(async move { set_memory(c, &a, &LIMITS) })),
        ("VM.set_memory", |c, a| Box::pin(async move { set_memory(c, &a, &ALL) })),
        ("VM.set_VCPUs_max", |c, a| Box::pin(async move { set_processors(c, &a, "VCPUs_max") })),
        ("VM.set_VCPUs_at_startup", |c, a| Box::pin(async move { set_processors(c, &a, "VCPUs_at_startup") })),
        ("VM.set_HVM_boot_policy", |c, a| Box::pin(async move { set_halted(c, &a, "HVM_boot_policy") })),
        ("VM.set_actions_after_crash", |c, a| Box::pin(async move { set(c, &a, "actions_after_crash") })),
        ("VM.set_order", |c, a| Box::pin(async move { set_count(c, &a, "order") })),
        ("VM.set_start_delay", |c, a| Box::pin(async move { set_count(c, &a, "start_delay") })),
        ("VM.set_shutdown_delay", |c, a| Box::pin(async move { set_count(c, &a, "shutdown_delay") })),
        ("VM.set_bios_strings", |c, a| Box::pin(async move { set_bios_strings(c, &a) })),
        ("VM.set_appliance", |c, a| Box::pin(async move { set_appliance(c, &a) })),
        ("VM.get_possible_hosts", |c, a| Box::pin(async move { possible_hosts(c, &a) })),
        ("VM.assert_can_boot_here", |c, a| Box::pin(async move { can_boot_here(c, &a) })),
        ("host.get_server_localtime", |c, a| Box::pin(async move { local_time(c, &a) })),
        ("host.has_extension", |_, _| Box::pin(async { Ok(Value::Bool(false)) })),
        ("pool.has_extension", |_, _| Box::pin(async { Ok(Value::Bool(false)) })),
        // Every change is durable when its call returns.
        ("pool.sync_database", |_, _| Box::pin(async { Ok(Value::Void) })),
    ]
}

const STATIC_MIN: &str = "memory_static_min";
const STATIC_MAX: &str = "memory_static_max";
const DYNAMIC_MIN: &str = "memory_dynamic_min";
const DYNAMIC_MAX: &str = "memory_dynamic_max";
/// (parameter, field)
const LIMITS: [(&str, &str); 4] = [
    ("static_min", STATIC_MIN),
    ("static_max", STATIC_MAX),
    ("dynamic_min", DYNAMIC_MIN),
    ("dynamic_max", DYNAMIC_MAX),
];
/// One figure for all but the least, which may stay lower.
const ALL: [(&str, &str); 3] = [("value", STATIC_MAX), ("value", DYNAMIC_MIN), ("value", DYNAMIC_MAX)];

fn change(ctx: &CallContext, vm: &Ref, work: impl FnOnce(&mut Tx<'_>, &Record) -> ApiResult<()>) -> ApiResult<Value> {
    ctx.db().write(|tx| {
        let record = tx.get("VM", vm)?;
        work(tx, &record)
    })?;
    Ok(Value::Void)
}

fn set_memory(ctx: CallContext, args: &Args, fields: &[(&str, &str)]) -> ApiResult<Value> {
    let vm = args.reference("self")?;
    change(&ctx, &vm, |tx, record| {
        let is_static = fields.iter().any(|(_, f)| matches!(*f, STATIC_MIN | STATIC_MAX));
        allowed::check(record, if is_static { "changing_static_range" } else { "changing_dynamic_range" })?;
        for (param, field) in fields {
            tx.set("VM", &vm, field, args.int(param)?)?;
        }
        let changed = tx.get("VM", &vm)?;
        let order = [STATIC_MIN, DYNAMIC_MIN, DYNAMIC_MAX, STATIC_MAX].map(|f| changed.int(f));
        if order[0] < 0 || !order.is_sorted() {
            return Err(ApiError::memory_constraint_violation_order());
        }
        Ok(())
    })
}

fn set_processors(ctx: CallContext, args: &Args, field: &str) -> ApiResult<Value> {
    let (vm, value) = (args.reference("self")?, args.int("value")?);
    change(&ctx, &vm, |tx, record| {
        allowed::check(record, "changing_VCPUs")?;
        tx.set("VM", &vm, field, value)?;
        let changed = tx.get("VM", &vm)?;
        let (startup, max) = (changed.int("VCPUs_at_startup"), changed.int("VCPUs_max"));
        if startup < 1 || startup > max {
            return Err(ApiError::invalid_value(
                field,
                format!("{value}: 1 <= VCPUs_at_startup <= VCPUs_max is needed"),
            ));
        }
        Ok(())
    })
}

fn set(ctx: CallContext, args: &Args, field: &str) -> ApiResult<Value> {
    let (vm, value) = (args.reference("self")?, args.value("value")?.clone());
    change(&ctx, &vm, |tx, _| tx.set("VM", &vm, field, value))
}

/// Seconds or an order: not negative.
fn set_count(ctx: CallContext, args: &Args, field: &str) -> ApiResult<Value> {
    let value = args.int("value")?;
    if value < 0 {
        return Err(ApiError::invalid_value(field, value));
    }
    set(ctx, args, field)
}

fn set_halted(ctx: CallContext, args: &Args, field: &str) -> ApiResult<Value> {
    let (vm, value) = (args.reference("self")?, args.value("value")?.clone());
    change(&ctx, &vm, |tx, record| {
        let state = record.str("power_state").to_ascii_lowercase();
        if state != "halted" {
            return Err(ApiError::vm_bad_power_state(&vm, "halted", state));
        }
        tx.set("VM", &vm, field, value)
    })
}

/// Once only.
fn set_bios_strings(ctx: CallContext, args: &Args) -> ApiResult<Value> {
    let (vm, value) = (args.reference("self")?, args.value("value")?.clone());
    change(&ctx, &vm, |tx, record| {
        if !record.map("bios_strings").is_empty() {
            return Err(ApiError::vm_bios_strings_already_set());
        }
        tx.set("VM", &vm, "bios_strings", value)
    })
}

fn set_appliance(ctx: CallContext, args: &Args) -> ApiResult<Value> {
    let (vm, appliance) = (args.reference("self")?, args.reference("value")?);
    change(&ctx, &vm, |tx, record| {
        if record.bool("is_a_template") || record.bool("is_a_snapshot") {
            return Err(ApiError::vm_is_template(&vm, "set_appliance"));
        }
        if !appliance.is_null() {
            tx.get("VM_appliance", &appliance)?;
        }
        tx.set("VM", &vm, "appliance", &appliance)
    })
}

/// Has the host room for the machine, and is it open for machines?
fn fits(host: &Record, vm: &Record) -> ApiResult<()> {
    if !host.bool("enabled") {
        return Err(ApiError::host_disabled(host.id()));
    }
    let (needed, (_, free)) = (vm.int(STATIC_MAX), setup::memory());
    if needed > free {
        return Err(ApiError::host_not_enough_free_memory(needed, free));
    }
    Ok(())
}

fn possible_hosts(ctx: CallContext, args: &Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    ctx.db().read(|s| {
        let vm = s.get("VM", &vm)?;
        let hosts = s.all("host");
        Ok(Value::set(hosts.iter().filter(|h| fits(h, &vm).is_ok()).map(|h| h.id())))
    })
}

fn can_boot_here(ctx: CallContext, args: &Args) -> ApiResult<Value> {
    let (vm, host) = (args.reference("self")?, args.reference("host")?);
    ctx.db().read(|s| fits(&*s.get("host", &host)?, &*s.get("VM", &vm)?))?;
    Ok(Value::Void)
}

fn local_time(ctx: CallContext, args: &Args) -> ApiResult<Value> {
    let host = args.reference("host")?;
    ctx.db().read(|s| s.get("host", &host).map(|_| ()))?;
    let offset = jiff::Zoned::now().offset().seconds();
    Ok(Value::DateTime(DateTime::from_unix(DateTime::now().unix() + i64::from(offset))))
}
