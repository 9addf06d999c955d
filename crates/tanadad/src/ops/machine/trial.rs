//! `VM.call_plugin(vm, "tanada", "quiesce-check", args)`: would a snapshot of this machine be quiesced, and if not, why?
//!
//! Freezes and thaws the guest once as a snapshot does, and cuts nothing ([`tanada_quiesce::trial`]). Answers the JSON of a
//! quiesce check. Argument `hold`: milliseconds for which the guest stays frozen, 0 as a rule.

use std::sync::Arc;
use std::time::Duration;

use tanada_quiesce::guard::client::Ledger;
use tanada_quiesce::sequence;
use tanada_quiesce::trial::{self, Subject};
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};

use super::quiesce::{Debt, Wish, expected};
use super::snapshot::{disks_of, parts};
use super::turn::turn;
use crate::context::CallContext;
use crate::db::View;
use crate::ops::allowed;
use crate::ops::vdi::plan_copies;
use crate::vmm::power;

/// The plugin's name.
pub const NAME: &str = "tanada";
const FUNCTION: &str = "quiesce-check";
/// The longest freeze that is tried: a second less than what Windows is left frozen for.
const HOLD_MAX_MS: u64 = 7_000;

/// Runs one function of the plugin on a machine that runs.
pub async fn call(ctx: &CallContext, vm: &Ref, function: &str, args: &Map) -> ApiResult<Value> {
    if function != FUNCTION {
        return Err(ApiError::invalid_value("fn", format!("{function}: {FUNCTION} is accepted")));
    }
    let hold = hold(args)?;
    let _mark = ctx.begin("VM", vm, "snapshot", |tx| allowed::vm(tx, vm, "snapshot"))?;
    // Nobody else may freeze the guest meanwhile.
    let _turn = turn(ctx, vm, "snapshot").await?;
    let (machine, disks) =
        ctx.db().read(|state| Ok::<_, ApiError>((state.get("VM", vm)?, disks_of(state, vm, &[])?)))?;
    if machine.str("power_state") != "Running" {
        return Err(ApiError::vm_bad_power_state(vm, "running", machine.str("power_state").to_lowercase()));
    }
    let wish = Wish::of(&machine, false)?;
    let planned = plan_copies(&disks.iter().map(|disk| disk.vdi.clone()).collect::<Vec<_>>())?;
    let parts = parts(ctx, &planned)?;
    let running = power::machine_of(&ctx.daemon, vm)?;
    let agent = running.agent();
    let subject = Subject {
        agent: &agent,
        agent_present: running.agent_present(),
        power_state: machine.str("power_state"),
        settings: &wish.settings,
        program: ctx.daemon.vmm.host.program(),
        expected: expected(&ctx.daemon, &parts).await,
        limits: sequence::limits,
        hold,
    };
    let ledger: Arc<dyn Ledger> = Arc::new(Debt::new(&ctx.daemon, vm));
    let check = ctx.task.until_cancelled(trial::run(&subject, &ledger)).await?;
    Ok(Value::from(check.to_json()))
}

fn hold(args: &Map) -> ApiResult<Duration> {
    let Some(text) = args.get("hold").and_then(Value::as_str) else { return Ok(Duration::ZERO) };
    match text.parse() {
        Ok(ms) if ms <= HOLD_MAX_MS => Ok(Duration::from_millis(ms)),
        _ => Err(ApiError::invalid_value("hold", format!("{text}: 0 to {HOLD_MAX_MS} milliseconds are accepted"))),
    }
}
