//! Declared types of fields, parameters and results, and the coercion of what arrives to what is declared.

use crate::classes;
use crate::value::{DateTime, Map, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    Void,
    String,
    Int,
    Bool,
    Float,
    DateTime,
    /// A reference to an object of the class.
    Ref(&'static str),
    /// One of the texts of the enum of that name.
    Enum(&'static str),
    Set(Box<Type>),
    Map(Box<Type>, Box<Type>),
    /// All fields of an object of the class; `<class> record` (any class) in events.
    Record(&'static str),
}

impl Type {
    /// Reads the notation of the class table: `VM ref set`, `(string -> int) map`, `enum vdi_type`.
    pub(crate) fn parse(text: &'static str) -> Option<Type> {
        let text = text.trim();
        if let Some(inner) = text.strip_suffix(" set") {
            return Some(Type::Set(Box::new(Type::parse(inner)?)));
        }
        if let Some(inner) = text.strip_suffix(" map").and_then(|t| t.strip_prefix('(')?.strip_suffix(')')) {
            let (key, value) = inner.split_once(" -> ")?;
            return Some(Type::Map(Box::new(Type::parse(key)?), Box::new(Type::parse(value)?)));
        }
        if let Some(class) = text.strip_suffix(" ref") {
            return Some(Type::Ref(class));
        }
        if let Some(class) = text.strip_suffix(" record") {
            return Some(Type::Record(class));
        }
        if let Some(name) = text.strip_prefix("enum ") {
            return Some(Type::Enum(name));
        }
        match text {
            "void" => Some(Type::Void),
            "string" => Some(Type::String),
            "int" => Some(Type::Int),
            "bool" => Some(Type::Bool),
            "float" => Some(Type::Float),
            "datetime" => Some(Type::DateTime),
            "an event batch" => Some(Type::Record("event")),
            _ => None,
        }
    }

    /// The value of a field that nobody has set: zero, empty, epoch, the null reference, an enum's first text.
    pub fn zero(&self) -> Value {
        match self {
            Type::Void => Value::Void,
            Type::String => Value::from(""),
            Type::Int => Value::Int(0),
            Type::Bool => Value::Bool(false),
            Type::Float => Value::Float(0.0),
            Type::DateTime => Value::DateTime(DateTime::EPOCH),
            Type::Ref(_) => Value::from("OpaqueRef:NULL"),
            Type::Enum(name) => Value::from(classes::enum_texts(name).first().copied().unwrap_or_default()),
            Type::Set(_) => Value::empty_set(),
            Type::Map(..) | Type::Record(_) => Value::empty_map(),
        }
    }

    /// Turns what arrived (XML-RPC knows no int apart from text, JSON no datetime) into a value of this type.
    ///
    /// The error says what was found and what is accepted.
    pub fn coerce(&self, value: Value) -> Result<Value, String> {
        let found = value.kind();
        let coerced = match self {
            Type::Void => Some(Value::Void),
            Type::String | Type::Ref(_) => match value {
                Value::String(s) => Some(Value::String(s)),
                Value::Void => Some(Value::from("")),
                _ => None,
            },
            Type::Int => match value {
                Value::Float(f) if f.fract() == 0.0 && f.abs() < 9e15 => Some(Value::Int(f as i64)),
                other => other.as_int().map(Value::Int),
            },
            Type::Bool => value.as_bool().map(Value::Bool),
            Type::Float => value.as_float().map(Value::Float),
            Type::DateTime => value.as_datetime().map(Value::DateTime),
            Type::Enum(name) => return coerce_enum(name, value),
            Type::Set(item) => match value {
                Value::Set(items) => {
                    return items.into_iter().map(|v| item.coerce(v)).collect::<Result<_, _>>().map(Value::Set);
                }
                _ => None,
            },
            Type::Map(key, item) => match value {
                Value::Map(map) => return coerce_map(key, item, map),
                _ => None,
            },
            Type::Record(class) => match value {
                Value::Map(map) => return coerce_record(class, map),
                _ => None,
            },
        };
        coerced.ok_or_else(|| format!("a value of kind {found} where {self} is expected"))
    }
}

fn coerce_enum(name: &str, value: Value) -> Result<Value, String> {
    let texts = classes::enum_texts(name);
    match value {
        Value::String(s) if texts.contains(&s.as_str()) => Ok(Value::String(s)),
        Value::String(s) => Err(format!("{s:?} is not one of {name}: {}", texts.join(", "))),
        other => Err(format!("a value of kind {} where {name} is expected", other.kind())),
    }
}

fn coerce_map(key: &Type, item: &Type, map: Map) -> Result<Value, String> {
    let mut out = Map::new();
    for (k, v) in map {
        key.coerce(Value::from(&k)).map_err(|e| format!("key {k:?}: {e}"))?;
        let v = item.coerce(v).map_err(|e| format!("{k}: {e}"))?;
        out.insert(k, v);
    }
    Ok(Value::Map(out))
}

/// Members that the class does not declare are dropped; fields that are missing stay missing.
fn coerce_record(class: &str, map: Map) -> Result<Value, String> {
    let Some(class) = classes::class(class) else { return Ok(Value::Map(map)) };
    let mut out = Map::new();
    for (name, value) in map {
        if let Some(field) = class.field(&name) {
            out.insert(name, field.ty.coerce(value).map_err(|e| format!("{}.{}: {e}", class.name, field.name))?);
        }
    }
    Ok(Value::Map(out))
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::Void => f.write_str("void"),
            Type::String => f.write_str("string"),
            Type::Int => f.write_str("int"),
            Type::Bool => f.write_str("bool"),
            Type::Float => f.write_str("float"),
            Type::DateTime => f.write_str("datetime"),
            Type::Ref(class) => write!(f, "{class} ref"),
            Type::Enum(name) => write!(f, "enum {name}"),
            Type::Set(item) => write!(f, "{item} set"),
            Type::Map(key, item) => write!(f, "({key} -> {item}) map"),
            Type::Record(class) => write!(f, "{class} record"),
        }
    }
}
