//! `event-wait`: until a record meets conditions.

use crate::command::{Command, Others, Outcome};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::scalar;
use crate::record::filter::address;
use crate::record::lookup::Lookup;
use crate::record::{Class, Object, class};
use std::rc::Rc;
use tanada_xapi::{Ref, Value};

pub const COMMANDS: &[Command] = &[Command::new(
    "event-wait",
    &["class"],
    &[],
    "Waits until an object of a class meets conditions: field=value, or field=/=value for anything else.",
    wait,
)
.others(Others::Anything)];

/// How long one `event.from` may wait, in seconds.
const EVENT_WAIT_S: f64 = 30.0;

/// `(field, value, whether it must differ)`
type Condition = (String, String, bool);

fn wait(ctx: &mut Ctx<'_>) -> Outcome {
    let name = ctx.params.need("class")?.to_owned();
    let table = class(&name)
        .ok_or_else(|| Failure::cli(format!("Cli listening for class '{name}' not currently implemented")))?;
    let own = |key: &str| key == "class" || crate::params::COMMON.contains(&key);
    let mut conditions: Vec<Condition> = Vec::new();
    for (key, value) in ctx.params.0.iter().filter(|(key, _)| !own(key)) {
        if address(table, key).is_none() {
            return Err(Failure::cli(format!("key missing: {key}")));
        }
        // `a=/=b` arrives as `a` and `/=b`.
        match value.strip_prefix("/=") {
            Some(value) => conditions.push((key.clone(), value.to_owned(), true)),
            None => conditions.push((key.clone(), value.clone(), false)),
        }
    }
    let classes = Value::set([table.api.to_lowercase()]);
    let mut token = String::new();
    loop {
        // An empty token answers at once with every object there is.
        let params = vec![classes.clone(), Value::from(token.as_str()), Value::from(EVENT_WAIT_S)];
        let batch = ctx.call("event.from", params)?;
        for event in batch.get("events").and_then(Value::as_set).unwrap_or_default() {
            let Some(record) = event.get("snapshot").and_then(Value::as_map) else { continue };
            let reference = Ref::from(event.get("ref").map(scalar).unwrap_or_default());
            let object = Object { reference, record: Rc::new(record.clone()) };
            if meets(ctx, table, &object, &conditions)? {
                return Ok(());
            }
        }
        token = batch.get("token").map(scalar).unwrap_or_default();
    }
}

fn meets(ctx: &Ctx<'_>, table: &Class, object: &Object, conditions: &[Condition]) -> Result<bool, Failure> {
    let lookup = Lookup::for_one(ctx.api()?);
    for (key, wanted, differs) in conditions {
        let condition = [(key.clone(), wanted.clone())];
        if crate::record::filter::matches(table, &lookup, object, &condition)? == *differs {
            return Ok(false);
        }
    }
    Ok(true)
}
