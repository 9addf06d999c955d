//! `VM.suspend`, `VM.resume`, `VM.resume_on`: checks and marks; the doing is in [`crate::vmm::suspend`].

use futures_util::FutureExt;
use tanada_xapi::{ApiResult, Ref, Value};

use crate::context::{Args, CallContext, Handlers};
use crate::db::View;
use crate::ops::allowed;
use crate::vmm::power::StartMode;
use crate::vmm::suspend;

pub fn handlers() -> Handlers {
    vec![
        ("VM.suspend", |ctx, args| suspend_message(ctx, args).boxed()),
        ("VM.resume", |ctx, args| resume(ctx, args).boxed()),
        ("VM.resume_on", |ctx, args| resume_on(ctx, args).boxed()),
    ]
}

async fn suspend_message(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _busy = ctx.begin("VM", &vm, "suspend", |tx| allowed::vm(tx, &vm, "suspend"))?;
    suspend::suspend(&ctx.daemon, &vm, &ctx.task).await?;
    Ok(Value::Void)
}

async fn resume(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    resume_as(&ctx, &vm, args.bool("start_paused")?, "resume").await
}

async fn resume_on(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (vm, host) = (args.reference("vm")?, args.reference("host")?);
    ctx.db().read(|state| state.get("host", &host))?;
    resume_as(&ctx, &vm, args.bool("start_paused")?, "resume_on").await
}

async fn resume_as(ctx: &CallContext, vm: &Ref, paused: bool, operation: &'static str) -> ApiResult<Value> {
    let _busy = ctx.begin("VM", vm, operation, |tx| allowed::vm(tx, vm, operation))?;
    let mode = if paused { StartMode::Paused } else { StartMode::Run };
    suspend::resume(&ctx.daemon, vm, mode, &ctx.task).await?;
    Ok(Value::Void)
}
