//! Networks, as far as machines need one to name.

use futures_util::FutureExt;
use tanada_xapi::{ApiError, ApiResult, Value};

use super::records::given;
use crate::context::{Args, CallContext, Handlers};
use crate::db::View;

pub fn handlers() -> Handlers {
    vec![
        ("network.create", |ctx, args| create(ctx, args).boxed()),
        ("network.destroy", |ctx, args| destroy(ctx, args).boxed()),
    ]
}

async fn create(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let fields = given("network", args.map("args")?)?;
    ctx.db().write(|tx| tx.create("network", fields)).map(Value::from)
}

async fn destroy(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let network = args.reference("self")?;
    ctx.db().write(|tx| {
        let record = tx.get("network", &network)?;
        if let Some(vif) = record.refs("VIFs").first() {
            return Err(ApiError::network_contains_vif(vif));
        }
        if let Some(pif) = record.refs("PIFs").first() {
            return Err(ApiError::network_contains_pif(pif));
        }
        tx.destroy("network", &network)
    })?;
    Ok(Value::Void)
}
