//! The classes, declared once in `classes.json` and read once.
//!
//! The table lists fields and the messages that a class has of its own. What follows from the fields is derived here and
//! never listed: `get_record`, `get_by_uuid`, `get_all`, `get_all_records`, `get_all_records_where`,
//! `get_by_name_label`, `get_<field>`, and for writable fields `set_<field>`, for maps `add_to_`/`remove_from_<field>`,
//! for sets `add_`/`remove_<field>`; `create` and `destroy` where the class has a constructor.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use crate::json;
use crate::types::Type;
use crate::value::Value;

/// Who may set a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qualifier {
    /// Set by the server alone.
    Runtime,
    /// Given to `create`, afterwards changed by messages of its own at most.
    Constructor,
    /// Given to `create` and set by `set_<field>`.
    Writable,
}

/// Life cycle of a field or message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Published,
    Prototyped,
    Deprecated,
    /// Answers `MESSAGE_REMOVED`; a removed field still stands in records.
    Removed,
}

#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub ty: Type,
    pub qualifier: Qualifier,
    /// What a constructor may leave out, and what it means then.
    pub default: Option<Value>,
    pub state: State,
    /// Position in [`Class::fields`].
    pub index: usize,
}

impl Field {
    /// The declared default, else the type's zero.
    pub fn initial(&self) -> Value {
        self.default.clone().unwrap_or_else(|| self.ty.zero())
    }
}

#[derive(Debug)]
pub struct Param {
    pub name: &'static str,
    pub ty: Type,
    /// Such parameters may be left out from the end.
    pub default: Option<Value>,
}

/// A message that the table lists.
#[derive(Debug)]
pub struct Message {
    pub name: &'static str,
    /// Without the session.
    pub params: Vec<Param>,
    pub result: Type,
    pub errors: Vec<&'static str>,
    pub state: State,
}

#[derive(Debug)]
pub struct Class {
    pub name: &'static str,
    pub fields: Vec<Field>,
    pub messages: Vec<Message>,
    /// `create` takes one record, `destroy` a reference.
    pub constructor: bool,
    /// The whole class is gone: every message answers `MESSAGE_REMOVED`.
    pub removed: bool,
    /// Has `get_all` and `get_all_records`.
    pub listed: bool,
    /// Has `get_<field>`.
    pub getters: bool,
    field_index: HashMap<&'static str, usize>,
    message_index: HashMap<&'static str, usize>,
}

/// What a message name means for a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    Explicit(&'static Message),
    Create,
    Destroy,
    GetAll,
    GetAllRecords,
    GetAllRecordsWhere,
    GetRecord,
    GetByUuid,
    GetByNameLabel,
    Get(&'static Field),
    Set(&'static Field),
    AddTo(&'static Field),
    RemoveFrom(&'static Field),
    Add(&'static Field),
    Remove(&'static Field),
}

// Two messages are the same when they are the same entry of the table.
impl PartialEq for Message {
    fn eq(&self, other: &Message) -> bool {
        std::ptr::eq(self, other)
    }
}
impl PartialEq for Field {
    fn eq(&self, other: &Field) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Class {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.field_index.get(name).map(|i| &self.fields[*i])
    }

    pub fn message(&self, name: &str) -> Option<&Message> {
        self.message_index.get(name).map(|i| &self.messages[*i])
    }

    /// The meaning of `name`, explicit or derived; `None` for an unknown message.
    pub fn method(&'static self, name: &str) -> Option<Method> {
        if let Some(message) = self.message(name) {
            return Some(Method::Explicit(message));
        }
        match name {
            "create" if self.constructor => return Some(Method::Create),
            "destroy" if self.constructor => return Some(Method::Destroy),
            "get_all" if self.listed => return Some(Method::GetAll),
            "get_all_records" if self.listed => return Some(Method::GetAllRecords),
            "get_all_records_where" if self.listed => return Some(Method::GetAllRecordsWhere),
            "get_record" if self.has_objects() => return Some(Method::GetRecord),
            "get_by_uuid" if self.has_objects() => return Some(Method::GetByUuid),
            "get_by_name_label" if self.named() => return Some(Method::GetByNameLabel),
            _ => {}
        }
        self.field_method(name)
    }

    fn field_method(&'static self, name: &str) -> Option<Method> {
        let writable = |field: &&Field| field.qualifier == Qualifier::Writable;
        let map = |field: &&Field| matches!(field.ty, Type::Map(..));
        let set = |field: &&Field| matches!(field.ty, Type::Set(_));
        let field = |prefix: &str| name.strip_prefix(prefix).and_then(|f| self.field(f));
        if let Some(f) = field("get_").filter(|_| self.getters) {
            return Some(Method::Get(f));
        }
        if let Some(f) = field("set_").filter(writable) {
            return Some(Method::Set(f));
        }
        if let Some(f) = field("add_to_").filter(writable).filter(map) {
            return Some(Method::AddTo(f));
        }
        if let Some(f) = field("remove_from_").filter(writable).filter(map) {
            return Some(Method::RemoveFrom(f));
        }
        if let Some(f) = field("add_").filter(writable).filter(set) {
            return Some(Method::Add(f));
        }
        field("remove_").filter(writable).filter(set).map(Method::Remove)
    }

    fn has_objects(&self) -> bool {
        self.name != "event"
    }

    fn named(&self) -> bool {
        self.field("name_label").is_some() && self.name != "pool"
    }

    /// Every message name, explicit and derived, in order.
    pub fn method_names(&'static self) -> Vec<String> {
        let mut names: BTreeSet<String> = self.messages.iter().map(|m| m.name.to_owned()).collect();
        let fixed = ["create", "destroy", "get_all", "get_all_records", "get_all_records_where"];
        let more = ["get_record", "get_by_uuid", "get_by_name_label"];
        let per_field = ["get_", "set_", "add_to_", "remove_from_", "add_", "remove_"];
        names.extend(fixed.into_iter().chain(more).map(str::to_owned));
        names.extend(self.fields.iter().flat_map(|f| per_field.iter().map(move |p| format!("{p}{}", f.name))));
        names.into_iter().filter(|name| self.method(name).is_some()).collect()
    }
}

struct Table {
    classes: Vec<Class>,
    by_name: HashMap<&'static str, usize>,
    by_lower: HashMap<String, usize>,
    enums: HashMap<&'static str, Vec<&'static str>>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    // The file is part of the program: that it can be read is a test below, not a run-time question.
    load(include_str!("../classes.json")).expect("classes.json is well formed")
});

/// All classes, in the order of the table.
pub fn classes() -> &'static [Class] {
    &TABLE.classes
}

/// The class of exactly that name (`VM`, `host`).
pub fn class(name: &str) -> Option<&'static Class> {
    TABLE.by_name.get(name).map(|i| &TABLE.classes[*i])
}

/// The class of that name in any case, as subscriptions to events and `xe` spell it.
pub fn class_ignoring_case(name: &str) -> Option<&'static Class> {
    TABLE.by_lower.get(&name.to_ascii_lowercase()).map(|i| &TABLE.classes[*i])
}

/// The texts of an enum; empty for an unknown one.
pub fn enum_texts(name: &str) -> &'static [&'static str] {
    // While the table is being loaded defaults are read as plain values, so this never recurses into the loading.
    TABLE.enums.get(name).map_or(&[], Vec::as_slice)
}

fn load(text: &str) -> Result<Table, String> {
    let root: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut table =
        Table { classes: Vec::new(), by_name: HashMap::new(), by_lower: HashMap::new(), enums: HashMap::new() };
    for entry in list(&root["classes"])? {
        for (name, texts) in entry["enums"].as_object().ok_or("enums is not an object")? {
            let texts = list(texts)?.iter().map(word).collect::<Result<_, _>>()?;
            table.enums.insert(leak(name), texts);
        }
        let class = load_class(entry)?;
        table.by_lower.insert(class.name.to_ascii_lowercase(), table.classes.len());
        table.by_name.insert(class.name, table.classes.len());
        table.classes.push(class);
    }
    Ok(table)
}

fn load_class(entry: &serde_json::Value) -> Result<Class, String> {
    let name = word(&entry["class"])?;
    let flags: Vec<&str> = list(&entry["flags"])?.iter().map(word).collect::<Result<_, _>>()?;
    let fields = list(&entry["fields"])?
        .iter()
        .enumerate()
        .map(|(index, f)| load_field(f, index).map_err(|e| format!("{name}: {e}")))
        .collect::<Result<Vec<_>, _>>()?;
    let messages = list(&entry["messages"])?
        .iter()
        .map(|m| load_message(m).map_err(|e| format!("{name}: {e}")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Class {
        name,
        field_index: fields.iter().map(|f| (f.name, f.index)).collect(),
        message_index: messages.iter().enumerate().map(|(i, m)| (m.name, i)).collect(),
        fields,
        messages,
        constructor: flags.contains(&"constructor"),
        removed: flags.contains(&"removed"),
        listed: !flags.contains(&"unlisted"),
        getters: !flags.contains(&"no_getters"),
    })
}

fn load_field(entry: &serde_json::Value, index: usize) -> Result<Field, String> {
    let name = word(&entry[0])?;
    let ty = load_type(&entry[1])?;
    let qualifier = match entry[2].as_str() {
        Some("RO/runtime") => Qualifier::Runtime,
        Some("RO/constructor") => Qualifier::Constructor,
        Some("RW") => Qualifier::Writable,
        _ => return Err(format!("{name}: unknown qualifier {}", entry[2])),
    };
    let default = match entry[3].as_str() {
        None => None,
        Some(text) => Some(load_default(&ty, text).ok_or_else(|| format!("{name}: bad default {text}"))?),
    };
    Ok(Field { name, ty, qualifier, default, state: load_state(&entry[4])?, index })
}

/// Defaults are written as the data model prints them: `""`, `{}`, `1.`, `Null`, `{"k" -> "v", ...}`, `{0}`.
fn load_default(ty: &Type, text: &str) -> Option<Value> {
    let bare = text.trim_matches('"');
    Some(match ty {
        Type::String => Value::from(bare),
        Type::Enum(_) => Value::from(text),
        Type::Int => Value::Int(text.parse().ok()?),
        Type::Bool => Value::Bool(text.parse().ok()?),
        Type::Float => Value::Float(text.parse().ok()?),
        Type::DateTime => Value::from(text).as_datetime().map(Value::DateTime)?,
        Type::Ref(_) => ty.zero(),
        Type::Set(item) => match (text, item.as_ref()) {
            ("{}", _) => Value::empty_set(),
            (_, Type::Int) => Value::set([text.strip_prefix('{')?.strip_suffix('}')?.parse::<i64>().ok()?]),
            _ => return None,
        },
        Type::Map(..) => {
            let inner = text.strip_prefix('{')?.strip_suffix('}')?;
            let pairs = inner.split(", ").filter(|p| !p.is_empty());
            let pairs = pairs.map(|p| p.split_once(" -> ").map(|(k, v)| (k.trim_matches('"'), v.trim_matches('"'))));
            Value::map(pairs.collect::<Option<Vec<_>>>()?)
        }
        Type::Void | Type::Record(_) => return None,
    })
}

fn load_message(entry: &serde_json::Value) -> Result<Message, String> {
    let name = word(&entry[0])?;
    let mut params = Vec::new();
    for param in list(&entry[1])? {
        let default = param.get(2).map(|d| json::from_json(d.clone()));
        params.push(Param { name: word(&param[0])?, ty: load_type(&param[1])?, default });
    }
    for param in &mut params {
        if let (Type::DateTime, Some(default)) = (&param.ty, &param.default) {
            param.default = default.as_datetime().map(Value::DateTime);
        }
    }
    let errors = list(&entry[3])?.iter().map(word).collect::<Result<_, _>>()?;
    Ok(Message { name, params, result: load_type(&entry[2])?, errors, state: load_state(&entry[4])? })
}

fn load_type(entry: &serde_json::Value) -> Result<Type, String> {
    let text = word(entry)?;
    Type::parse(text).ok_or_else(|| format!("unknown type {text}"))
}

fn load_state(entry: &serde_json::Value) -> Result<State, String> {
    match entry.as_str() {
        Some("published") => Ok(State::Published),
        Some("prototyped") => Ok(State::Prototyped),
        Some("deprecated") => Ok(State::Deprecated),
        Some("removed") => Ok(State::Removed),
        _ => Err(format!("unknown state {entry}")),
    }
}

fn list(entry: &serde_json::Value) -> Result<&Vec<serde_json::Value>, String> {
    entry.as_array().ok_or_else(|| format!("{entry} is not a list"))
}

fn word(entry: &serde_json::Value) -> Result<&'static str, String> {
    entry.as_str().map(leak).ok_or_else(|| format!("{entry} is not text"))
}

/// The table lives as long as the program.
fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::{Method, class, class_ignoring_case, classes, load};
    use crate::types::Type;
    use crate::value::Value;

    #[test]
    fn the_table_is_well_formed_and_every_initial_value_has_its_type() {
        load(include_str!("../classes.json")).unwrap();
        for class in classes() {
            for field in &class.fields {
                let initial = field.initial();
                assert_eq!(field.ty.coerce(initial.clone()), Ok(initial), "{}.{}", class.name, field.name);
            }
            for message in &class.messages {
                for param in &message.params {
                    if let Some(default) = &param.default {
                        assert_eq!(
                            param.ty.coerce(default.clone()).as_ref(),
                            Ok(default),
                            "{}.{}",
                            class.name,
                            message.name
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn implicit_messages_follow_from_the_fields() {
        let vm = class("VM").unwrap();
        let field = |name| vm.field(name).unwrap();
        assert_eq!(vm.method("get_name_label"), Some(Method::Get(field("name_label"))));
        assert_eq!(vm.method("set_other_config"), Some(Method::Set(field("other_config"))));
        assert_eq!(vm.method("add_to_other_config"), Some(Method::AddTo(field("other_config"))));
        assert_eq!(vm.method("remove_tags"), Some(Method::Remove(field("tags"))));
        assert_eq!(vm.method("set_power_state"), None);
        assert!(matches!(vm.method("set_order"), Some(Method::Explicit(_))));
        assert_eq!(class("SR").unwrap().method("create").map(|m| matches!(m, Method::Explicit(_))), Some(true));
        assert_eq!(class("pool").unwrap().method("get_by_name_label"), None);
        assert_eq!(class_ignoring_case("vm_GUEST_metrics").unwrap().name, "VM_guest_metrics");
        let names = vm.method_names();
        assert!(names.contains(&"get_all_records_where".to_owned()) && names.contains(&"snapshot".to_owned()));
    }

    #[test]
    fn coercion_accepts_what_clients_send_and_names_what_it_refuses() {
        assert_eq!(Type::Int.coerce(Value::from("12")), Ok(Value::Int(12)));
        assert_eq!(Type::Int.coerce(Value::Float(12.0)), Ok(Value::Int(12)));
        assert!(Type::Int.coerce(Value::from("12x")).is_err());
        assert!(Type::String.coerce(Value::Int(1)).is_err());
        let ty = Type::parse("(enum vdi_type -> VM ref set) map").unwrap();
        assert_eq!(ty.to_string(), "(enum vdi_type -> VM ref set) map");
        assert!(ty.coerce(Value::map([("user", Value::set(["OpaqueRef:1"]))])).is_ok());
        let error = ty.coerce(Value::map([("disk", Value::empty_set())])).unwrap_err();
        assert!(error.contains("disk") && error.contains("suspend"), "{error}");
        let record = Type::Record("VDI").coerce(Value::map([("virtual_size", "4096"), ("unknown", "x")]));
        assert_eq!(record, Ok(Value::map([("virtual_size", Value::Int(4096))])));
    }
}
