//! The commands that every class has: `X-list` and `X-param-list`, `-get`, `-set`, `-add`, `-remove`, `-clear`.

use crate::command::{Command, Others, Outcome, Run};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::record::field::{Field, Shown, scalar};
use crate::record::filter::{address, matches, unknown_field};
use crate::record::lookup::Lookup;
use crate::record::{CLASSES, Class, Object, cells};
use crate::scalar::{parse_bool, parse_int};
use std::borrow::Cow;
use tanada_xapi::{Ref, Value};

pub fn commands() -> Vec<Command> {
    let mut commands = Vec::new();
    for class in CLASSES.iter().copied() {
        let mut add = |suffix: &str, required, optional, others, help: String, run| {
            commands.push(Command {
                name: Cow::Owned(format!("{}-{suffix}", class.prefix)),
                required,
                optional,
                others,
                help: Cow::Owned(help),
                hidden: false,
                run: Run::Of(class, run),
            });
        };
        let noun = class.noun;
        let conditions = Others::Conditions(class);
        add(
            "list",
            &[],
            &["params"],
            conditions,
            format!("Lists every {noun}, or those that meet the conditions."),
            list,
        );
        add("param-list", &["uuid"], &[], Others::None, format!("Lists all parameters of one {noun}."), param_list);
        let help = format!("Prints one parameter of one {noun}.");
        add("param-get", &["uuid", "param-name"], &["param-key"], Others::None, help, param_get);
        if class.has_settable_fields() {
            let help = format!("Sets parameters of one {noun}.");
            add("param-set", &["uuid"], &[], Others::Settings(class), help, param_set);
            let help = format!("Empties a parameter of one {noun}.");
            add("param-clear", &["uuid", "param-name"], &[], Others::None, help, param_clear);
        }
        if class.has_collections_to_change() {
            let help = format!("Adds to a set or map parameter of one {noun}.");
            add("param-add", &["uuid", "param-name"], &["param-key"], Others::Anything, help, param_add);
            let help = format!("Removes from a set or map parameter of one {noun}.");
            add("param-remove", &["uuid", "param-name", "param-key"], &[], Others::None, help, param_remove);
        }
    }
    commands
}

fn list(ctx: &mut Ctx<'_>, class: &'static Class) -> Outcome {
    let fields = class.chosen(ctx.params.get("params"));
    let mut conditions: Vec<(String, String)> = Vec::new();
    if !ctx.params.flag("all")? {
        let given =
            ctx.params.0.iter().filter(|(key, _)| key != "params" && !crate::params::COMMON.contains(&key.as_str()));
        conditions.extend(given.cloned());
        let is_given = |name: &str, conditions: &[(String, String)]| conditions.iter().any(|(key, _)| key == name);
        for (name, value) in class.implicit {
            if !is_given(name, &conditions) {
                conditions.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
    }
    let shown = {
        let api = ctx.api()?;
        let (lookup, objects) = Lookup::with_candidates(api, class.api, &conditions)?;
        let mut shown = Vec::new();
        for object in &sorted(class, objects) {
            if matches(class, &lookup, object, &conditions)? {
                shown.push(cells(&lookup, object, &fields, false)?);
            }
        }
        shown
    };
    ctx.records(&shown)
}

/// In the order in which a person looks for them.
fn sorted(class: &Class, mut objects: Vec<Object>) -> Vec<Object> {
    let key = |object: &Object| {
        let text = object.record.get(class.order_by).map(scalar).unwrap_or_default();
        let number = text.parse::<i64>().unwrap_or(i64::MAX);
        (number, text, object.record.get("uuid").map(scalar))
    };
    objects.sort_by_cached_key(key);
    objects
}

fn target(ctx: &Ctx<'_>, class: &Class) -> Result<Object, Failure> {
    ctx.api()?.object_by_uuid(class.api, ctx.params.need("uuid")?)
}

fn param_list(ctx: &mut Ctx<'_>, class: &'static Class) -> Outcome {
    let object = target(ctx, class)?;
    let fields = class.chosen(Some("all"));
    let shown = cells(&Lookup::for_one(ctx.api()?), &object, &fields, true)?;
    ctx.records(&[shown])
}

/// The field that `param-name` names.
fn named_field(ctx: &Ctx<'_>, class: &Class) -> Result<&'static Field, Failure> {
    let name = ctx.params.need("param-name")?;
    class.field(name).ok_or_else(|| unknown_field(class, name))
}

fn param_get(ctx: &mut Ctx<'_>, class: &'static Class) -> Outcome {
    let field = named_field(ctx, class)?;
    let object = target(ctx, class)?;
    let text = {
        let lookup = Lookup::for_one(ctx.api()?);
        match ctx.params.get("param-key") {
            None => field.shown.text(&lookup, &object)?,
            Some(key) if field.is_map() => {
                let map = field.shown.map(&lookup, &object)?.unwrap_or_default();
                map.get(key).map(scalar).ok_or_else(|| Failure::cli(format!("Key {key} not found in map")))?
            }
            Some(_) => return Err(Failure::cli(format!("'{}' is not a map", field.name))),
        }
    };
    ctx.line(&text)
}

/// The API field behind a field that may be changed.
fn writable(field: &'static Field) -> Result<&'static str, Failure> {
    field
        .shown
        .api_field()
        .filter(|_| field.is_settable())
        .ok_or_else(|| Failure::cli(format!("Field '{}' is read-only.", field.name)))
}

/// What a setting becomes.
enum Step {
    Call(String, Vec<Value>),
    /// Entries of a map that the server checks as a whole: one call, so that a refusal changes nothing.
    Entries {
        api_field: &'static str,
        entries: Vec<(String, String)>,
    },
}

fn param_set(ctx: &mut Ctx<'_>, class: &'static Class) -> Outcome {
    let object = target(ctx, class)?;
    // All of them are understood before the first one is made.
    let mut steps = Vec::new();
    for (key, text) in &ctx.params.0 {
        if key != "uuid" && !crate::params::COMMON.contains(&key.as_str()) {
            add_setting(ctx, class, &object, (key, text), &mut steps)?;
        }
    }
    for step in steps {
        match step {
            Step::Call(method, params) => drop(ctx.call(&method, params)?),
            Step::Entries { api_field, entries } => {
                put_entries(ctx, class, api_field, &object.reference, entries, Existing::Replaced)?;
            }
        }
    }
    Ok(())
}

fn add_setting(
    ctx: &Ctx<'_>,
    class: &'static Class,
    object: &Object,
    (key, text): (&str, &str),
    steps: &mut Vec<Step>,
) -> Outcome {
    let address = address(class, key).ok_or_else(|| unknown_field(class, key))?;
    let field = address.field;
    let name = field.name;
    let api_field = writable(field)?;
    let this = Value::from(&object.reference);
    match address.entry {
        Some(entry) if field.checked => {
            let entry = (entry.to_owned(), text.to_owned());
            let known = steps.iter_mut().find_map(|step| match step {
                Step::Entries { api_field: other, entries } if *other == api_field => Some(entries),
                _ => None,
            });
            match known {
                Some(entries) => entries.push(entry),
                None => steps.push(Step::Entries { api_field, entries: vec![entry] }),
            }
        }
        Some(entry) if field.is_map() => {
            let remove = format!("{}.remove_from_{api_field}", class.api);
            let add = format!("{}.add_to_{api_field}", class.api);
            steps.push(Step::Call(remove, vec![this.clone(), Value::from(entry)]));
            steps.push(Step::Call(add, vec![this, Value::from(entry), Value::from(text)]));
        }
        Some(_) => return Err(Failure::cli(format!("'{name}' is a set: use {}-param-add", class.prefix))),
        None if field.is_map() => {
            return Err(Failure::cli(format!("'{name}' is a map: give a key, as in {name}:<key>=<value>")));
        }
        None if field.is_set() => {
            return Err(Failure::cli(format!("'{name}' is a set: use {}-param-add", class.prefix)));
        }
        None => {
            let value = typed(ctx, field, text)?;
            steps.push(Step::Call(format!("{}.set_{api_field}", class.api), vec![this, value]));
        }
    }
    Ok(())
}

/// What becomes of an entry whose key is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Replaced,
    /// The server is asked to add it, and says why it does not.
    Refused,
}

/// Puts entries into a map with one call that sets all of it.
fn put_entries(
    ctx: &Ctx<'_>,
    class: &Class,
    api_field: &str,
    this: &Ref,
    entries: Vec<(String, String)>,
    existing: Existing,
) -> Outcome {
    let read = ctx.call(&format!("{}.get_{api_field}", class.api), vec![Value::from(this)])?;
    let mut map = read.as_map().cloned().unwrap_or_default();
    for (key, value) in entries {
        if existing == Existing::Refused && map.contains_key(&key) {
            let params = vec![Value::from(this), Value::from(&key), Value::from(&value)];
            ctx.call(&format!("{}.add_to_{api_field}", class.api), params)?;
        }
        map.insert(key, Value::from(value));
    }
    ctx.call(&format!("{}.set_{api_field}", class.api), vec![Value::from(this), Value::Map(map)]).map(drop)
}

/// A value of the field's type from text.
fn typed(ctx: &Ctx<'_>, field: &Field, text: &str) -> Result<Value, Failure> {
    Ok(match field.shown {
        Shown::Int(_) => Value::Int(match crate::scalar::parse_size(field.name, text) {
            Ok(number) => number,
            Err(_) => parse_int(field.name, text)?,
        }),
        Shown::Bool(_) => {
            let wrong = |_| Failure::cli(format!("Parameter {} must be a boolean", field.name));
            Value::Bool(parse_bool(field.name, text).map_err(wrong)?)
        }
        Shown::Float(_) => {
            let wrong = |_| Failure::cli(format!("Parameter {} must be a floating-point number", field.name));
            Value::Float(text.parse().map_err(wrong)?)
        }
        Shown::Uuid(_, _) if text.is_empty() => Value::from(Ref::null()),
        Shown::Uuid(_, target) => Value::from(ctx.api()?.by_uuid(target, text)?),
        _ => Value::from(text),
    })
}

fn param_add(ctx: &mut Ctx<'_>, class: &'static Class) -> Outcome {
    let field = named_field(ctx, class)?;
    let api_field = writable(field)?;
    let object = target(ctx, class)?;
    let this = Value::from(&object.reference);
    if field.is_set() {
        let item = ctx.params.need("param-key")?;
        return ctx.call(&format!("{}.add_{api_field}", class.api), vec![this, Value::from(item)]).map(drop);
    }
    if !field.is_map() {
        return Err(Failure::cli(format!("'{}' is neither a set nor a map", field.name)));
    }
    let own = ["uuid", "param-name"];
    let is_entry = |key: &str| !own.contains(&key) && !crate::params::COMMON.contains(&key);
    let entries: Vec<_> = ctx.params.0.iter().filter(|(key, _)| is_entry(key)).cloned().collect();
    // `param-key=a=b` is accepted for `a=b`.
    let entries = entries.into_iter().map(|(key, value)| match value.split_once('=') {
        Some((inner, rest)) if key == "param-key" => (inner.to_owned(), rest.to_owned()),
        _ => (key, value),
    });
    if field.checked {
        return put_entries(ctx, class, api_field, &object.reference, entries.collect(), Existing::Refused);
    }
    for (key, value) in entries {
        let params = vec![this.clone(), Value::from(key), Value::from(value)];
        ctx.call(&format!("{}.add_to_{api_field}", class.api), params)?;
    }
    Ok(())
}

fn param_remove(ctx: &mut Ctx<'_>, class: &'static Class) -> Outcome {
    let field = named_field(ctx, class)?;
    let api_field = writable(field)?;
    let object = target(ctx, class)?;
    let key = ctx.params.need("param-key")?.to_owned();
    let lookup_holds = |kind: &str| Failure::cli(format!("Key {key} is not in {kind}"));
    let this = Value::from(&object.reference);
    if field.is_set() {
        let items = object.record.get(api_field).and_then(Value::as_set).unwrap_or_default();
        if !items.iter().any(|item| scalar(item) == key) {
            return Err(lookup_holds("the set"));
        }
        return ctx.call(&format!("{}.remove_{api_field}", class.api), vec![this, Value::from(key)]).map(drop);
    }
    if !field.is_map() {
        return Err(Failure::cli(format!("'{}' is neither a set nor a map", field.name)));
    }
    if object.record.get(api_field).and_then(|map| map.get(&key)).is_none() {
        return Err(lookup_holds("map"));
    }
    ctx.call(&format!("{}.remove_from_{api_field}", class.api), vec![this, Value::from(key)]).map(drop)
}

fn param_clear(ctx: &mut Ctx<'_>, class: &'static Class) -> Outcome {
    let field = named_field(ctx, class)?;
    let api_field = writable(field)?;
    let this = Value::from(target(ctx, class)?.reference);
    let empty = if field.is_map() {
        Value::empty_map()
    } else if field.is_set() {
        Value::empty_set()
    } else {
        typed(ctx, field, "")?
    };
    ctx.call(&format!("{}.set_{api_field}", class.api), vec![this, empty]).map(drop)
}
