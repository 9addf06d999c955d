//! A field: its name, whether it may be changed, and where its text comes from.

use crate::failure::Failure;
use crate::record::Object;
use crate::record::lookup::Lookup;
use tanada_xapi::{Ref, Value};

pub const NOT_IN_DATABASE: &str = "<not in database>";
pub const INVALID_REFERENCE: &str = "<invalid reference>";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

pub struct Field {
    pub name: &'static str,
    pub access: Access,
    pub shown: Shown,
    pub deprecated: bool,
    /// Costs calls of its own: left out of lists.
    pub expensive: bool,
    /// Never listed, but can be filtered by and asked for.
    pub hidden: bool,
    /// A map that the server checks as a whole.
    pub checked: bool,
}

/// Where a field's text comes from. The first string is the XenAPI field.
#[derive(Clone, Copy)]
pub enum Shown {
    Text(&'static str),
    Int(&'static str),
    Bool(&'static str),
    Float(&'static str),
    Time(&'static str),
    /// An enum whose text differs from the API's.
    Mapped(&'static str, fn(&str) -> String),
    Set(&'static str),
    /// A set joined by `, `.
    SetComma(&'static str),
    SetMapped(&'static str, fn(&str) -> String),
    Map(&'static str),
    /// The values of a map, as a set.
    Values(&'static str, fn(&str) -> String),
    /// The target's uuid.
    Uuid(&'static str, &'static str),
    /// The target's name.
    Name(&'static str, &'static str),
    Uuids(&'static str, &'static str),
    /// A field of the object that a reference names: reference, its class, what to show of it.
    Via(&'static str, &'static str, &'static Shown),
    Custom(fn(&Lookup<'_>, &Object) -> Result<String, Failure>),
    CustomSet(fn(&Lookup<'_>, &Object) -> Result<String, Failure>),
}

pub const fn ro(name: &'static str, shown: Shown) -> Field {
    Field { name, access: Access::ReadOnly, shown, deprecated: false, expensive: false, hidden: false, checked: false }
}

pub const fn rw(name: &'static str, shown: Shown) -> Field {
    Field { name, access: Access::ReadWrite, shown, deprecated: false, expensive: false, hidden: false, checked: false }
}

impl Field {
    pub const fn deprecated(mut self) -> Field {
        self.deprecated = true;
        self
    }

    pub const fn expensive(mut self) -> Field {
        self.expensive = true;
        self
    }

    pub const fn hidden(mut self) -> Field {
        self.hidden = true;
        self
    }

    pub const fn checked(mut self) -> Field {
        self.checked = true;
        self
    }

    pub fn is_settable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    pub fn is_collection(&self) -> bool {
        self.is_map() || self.is_set()
    }

    pub fn is_map(&self) -> bool {
        matches!(self.shown, Shown::Map(_) | Shown::Via(_, _, Shown::Map(_)))
    }

    pub fn is_set(&self) -> bool {
        use Shown::{CustomSet, Set, SetComma, SetMapped, Uuids, Values};
        matches!(self.shown, Set(_) | SetComma(_) | SetMapped(..) | Values(..) | Uuids(..) | CustomSet(_))
    }

    /// Name and flag as printed.
    pub fn heading(&self) -> String {
        let access = if self.is_settable() { "RW" } else { "RO" };
        let kind = match (self.is_set(), self.is_map()) {
            (true, _) => 'S',
            (_, true) => 'M',
            _ => ' ',
        };
        let note = if self.deprecated { " [DEPRECATED]" } else { "" };
        format!("{} ({kind}{access}){note}", self.name)
    }
}

impl Shown {
    /// The XenAPI field behind this, where there is exactly one.
    pub fn api_field(&self) -> Option<&'static str> {
        match self {
            Shown::Text(f) | Shown::Int(f) | Shown::Bool(f) | Shown::Float(f) | Shown::Time(f) => Some(f),
            Shown::Set(f) | Shown::SetComma(f) | Shown::Map(f) => Some(f),
            Shown::Mapped(f, _) | Shown::SetMapped(f, _) | Shown::Values(f, _) => Some(f),
            Shown::Uuid(f, _) | Shown::Name(f, _) | Shown::Uuids(f, _) => Some(f),
            Shown::Via(..) | Shown::Custom(_) | Shown::CustomSet(_) => None,
        }
    }

    pub fn text(&self, lookup: &Lookup<'_>, object: &Object) -> Result<String, Failure> {
        let value = |f: &str| object.record.get(f);
        let reference = |f: &str| Ref::from(value(f).and_then(Value::as_str).unwrap_or_default());
        let items = |f: &str| value(f).and_then(Value::as_set).unwrap_or_default();
        Ok(match *self {
            Shown::Text(f) | Shown::Int(f) => value(f).map(scalar).unwrap_or_default(),
            Shown::Bool(f) => value(f).and_then(Value::as_bool).map(|b| b.to_string()).unwrap_or_default(),
            Shown::Float(f) => value(f).and_then(Value::as_float).map(|x| format!("{x:.3}")).unwrap_or_default(),
            Shown::Time(f) => value(f).and_then(Value::as_datetime).map(|t| t.to_string()).unwrap_or_default(),
            Shown::Mapped(f, map) => map(&value(f).map(scalar).unwrap_or_default()),
            Shown::Set(f) => joined(items(f).iter().map(scalar), "; "),
            Shown::SetComma(f) => joined(items(f).iter().map(scalar), ", "),
            Shown::SetMapped(f, map) => joined(items(f).iter().map(|item| map(&scalar(item))), "; "),
            Shown::Map(f) => {
                let empty = tanada_xapi::Map::new();
                let pairs = value(f).and_then(Value::as_map).unwrap_or(&empty);
                joined(pairs.iter().map(|(k, v)| format!("{k}: {}", scalar(v))), "; ")
            }
            Shown::Values(f, map) => {
                let empty = tanada_xapi::Map::new();
                let pairs = value(f).and_then(Value::as_map).unwrap_or(&empty);
                joined(pairs.values().map(|v| map(&scalar(v))), "; ")
            }
            Shown::Uuid(f, class) => lookup.shown(class, &reference(f), "uuid")?,
            Shown::Name(f, class) => lookup.shown(class, &reference(f), "name_label")?,
            Shown::Uuids(f, class) => {
                let mut uuids = Vec::new();
                for item in items(f) {
                    uuids.push(lookup.shown(class, &Ref::from(scalar(item)), "uuid")?);
                }
                uuids.join("; ")
            }
            Shown::Via(f, class, inner) => match lookup.object(class, &reference(f))? {
                Some(target) => inner.text(lookup, &target)?,
                None => NOT_IN_DATABASE.to_owned(),
            },
            Shown::Custom(compute) | Shown::CustomSet(compute) => compute(lookup, object)?,
        })
    }

    /// The map behind a map field.
    pub fn map(&self, lookup: &Lookup<'_>, object: &Object) -> Result<Option<tanada_xapi::Map>, Failure> {
        match *self {
            Shown::Map(f) => Ok(object.record.get(f).and_then(Value::as_map).cloned()),
            Shown::Via(f, class, inner) => {
                let reference = Ref::from(object.record.get(f).and_then(Value::as_str).unwrap_or_default());
                match lookup.object(class, &reference)? {
                    Some(target) => inner.map(lookup, &target),
                    None => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }
}

fn joined(items: impl Iterator<Item = String>, separator: &str) -> String {
    items.collect::<Vec<_>>().join(separator)
}

/// A value inside a field as text.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::Void | Value::Nil => String::new(),
        Value::String(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::I4(number) => number.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Float(x) => format!("{x:.3}"),
        Value::DateTime(time) => time.to_string(),
        Value::Set(items) => joined(items.iter().map(scalar), "; "),
        Value::Map(map) => joined(map.iter().map(|(k, v)| format!("{k}: {}", scalar(v))), "; "),
    }
}

#[cfg(test)]
mod tests {
    use super::{Shown, ro, rw};

    #[test]
    fn headings() {
        for (field, expected) in [
            (ro("uuid", Shown::Text("uuid")), "uuid ( RO)"),
            (rw("name-label", Shown::Text("name_label")), "name-label ( RW)"),
            (ro("VDIs", Shown::Uuids("VDIs", "VDI")), "VDIs (SRO)"),
            (rw("tags", Shown::SetComma("tags")), "tags (SRW)"),
            (ro("sm-config", Shown::Map("sm_config")), "sm-config (MRO)"),
            (rw("other-config", Shown::Map("other_config")), "other-config (MRW)"),
            (ro("parent", Shown::Uuid("parent", "VDI")).deprecated(), "parent ( RO) [DEPRECATED]"),
        ] {
            assert_eq!(field.heading(), expected);
        }
    }
}
