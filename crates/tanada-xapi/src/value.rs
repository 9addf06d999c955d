//! The values that travel in XenAPI calls, replies and records.

use std::collections::BTreeMap;
use std::fmt;

/// Maps and records: keys are always strings on the wire (ints, refs and enum texts are written out).
pub type Map = BTreeMap<String, Value>;

/// One XenAPI value. References and enum texts are strings, as on the wire.
///
/// A value that was decoded from XML-RPC holds strings where the type is `int` (the wire does not tell them apart);
/// [`crate::types::Type::coerce`] turns such values into the declared type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// The result of a call without one: an empty string on the wire.
    Void,
    /// Absence of an optional value (`<nil/>`, `null`); never a field's value.
    Nil,
    String(String),
    /// 64-bit; decimal text in XML-RPC, a number in JSON.
    Int(i64),
    /// 32-bit: `<i4>` in XML-RPC. Only the counts in a reply of `event.from` are written so.
    I4(i32),
    Bool(bool),
    Float(f64),
    DateTime(DateTime),
    Set(Vec<Value>),
    Map(Map),
}

impl Value {
    pub const fn empty_map() -> Value {
        Value::Map(Map::new())
    }

    pub const fn empty_set() -> Value {
        Value::Set(Vec::new())
    }

    /// A struct from pairs: `Value::map([("key", Value::from(1))])`.
    pub fn map<K: Into<String>, V: Into<Value>>(pairs: impl IntoIterator<Item = (K, V)>) -> Value {
        Value::Map(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    pub fn set<V: Into<Value>>(items: impl IntoIterator<Item = V>) -> Value {
        Value::Set(items.into_iter().map(Into::into).collect())
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            Value::Void => Some(""),
            _ => None,
        }
    }

    /// The integer, also when it is written as decimal text.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(n) => Some(*n),
            Value::I4(n) => Some(i64::from(*n)),
            Value::String(s) => s.trim().parse().ok(),
            _ => None,
        }
    }

    /// The truth value, also when it is written `true`, `false`, `1` or `0`.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            Value::String(s) if s == "true" || s == "1" => Some(true),
            Value::String(s) if s == "false" || s == "0" => Some(false),
            _ => None,
        }
    }

    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(f) => Some(*f),
            Value::Int(n) => Some(*n as f64),
            Value::I4(n) => Some(f64::from(*n)),
            Value::String(s) => s.trim().parse().ok(),
            _ => None,
        }
    }

    /// The point in time, also when it is written as text.
    pub fn as_datetime(&self) -> Option<DateTime> {
        match self {
            Value::DateTime(t) => Some(*t),
            Value::String(s) => DateTime::parse(s),
            _ => None,
        }
    }

    pub fn as_set(&self) -> Option<&[Value]> {
        match self {
            Value::Set(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The member `key` of a struct.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_map()?.get(key)
    }

    /// Short name of the kind, for messages.
    pub const fn kind(&self) -> &'static str {
        match self {
            Value::Void => "void",
            Value::Nil => "nil",
            Value::String(_) => "string",
            Value::Int(_) | Value::I4(_) => "int",
            Value::Bool(_) => "bool",
            Value::Float(_) => "float",
            Value::DateTime(_) => "datetime",
            Value::Set(_) => "set",
            Value::Map(_) => "map",
        }
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Value {
        Value::String(s.to_owned())
    }
}
impl From<String> for Value {
    fn from(s: String) -> Value {
        Value::String(s)
    }
}
impl From<&String> for Value {
    fn from(s: &String) -> Value {
        Value::String(s.clone())
    }
}
impl From<Ref> for Value {
    fn from(r: Ref) -> Value {
        Value::String(r.0)
    }
}
impl From<&Ref> for Value {
    fn from(r: &Ref) -> Value {
        Value::String(r.0.clone())
    }
}
impl From<i64> for Value {
    fn from(n: i64) -> Value {
        Value::Int(n)
    }
}
impl From<bool> for Value {
    fn from(b: bool) -> Value {
        Value::Bool(b)
    }
}
impl From<f64> for Value {
    fn from(f: f64) -> Value {
        Value::Float(f)
    }
}
impl From<DateTime> for Value {
    fn from(t: DateTime) -> Value {
        Value::DateTime(t)
    }
}
impl From<()> for Value {
    fn from((): ()) -> Value {
        Value::Void
    }
}
impl From<Map> for Value {
    fn from(map: Map) -> Value {
        Value::Map(map)
    }
}
impl<V: Into<Value>> From<Vec<V>> for Value {
    fn from(items: Vec<V>) -> Value {
        Value::set(items)
    }
}

/// The text that names no object.
const NULL: &str = "OpaqueRef:NULL";

/// A reference to an object: `OpaqueRef:` and a random uuid, or `OpaqueRef:NULL`. Opaque to clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ref(String);

impl Ref {
    /// A fresh reference that no object has.
    pub fn random() -> Ref {
        Ref(format!("OpaqueRef:{}", uuid::Uuid::new_v4()))
    }

    pub fn null() -> Ref {
        Ref(NULL.to_owned())
    }

    /// Also true for the empty string, which clients send for "none".
    pub fn is_null(&self) -> bool {
        self.0.is_empty() || self.0 == NULL
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `None` when this is the null reference.
    pub fn non_null(self) -> Option<Ref> {
        if self.is_null() { None } else { Some(self) }
    }
}

impl Default for Ref {
    fn default() -> Ref {
        Ref::null()
    }
}
impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl From<&str> for Ref {
    fn from(s: &str) -> Ref {
        Ref(s.to_owned())
    }
}
impl From<String> for Ref {
    fn from(s: String) -> Ref {
        Ref(s)
    }
}
impl AsRef<str> for Ref {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
impl std::borrow::Borrow<str> for Ref {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A point in time, in whole seconds since 1970 UTC, as XenAPI carries it. Years 0 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DateTime(i64);

/// Seconds at 9999-12-30T22:00:00Z (the calendar library's last) and at 0000-01-01T00:00:00Z: the text has room for
/// four digits of year.
const SECONDS_MAX: i64 = 253_402_207_200;
const SECONDS_MIN: i64 = -62_167_219_200;

impl DateTime {
    pub const EPOCH: DateTime = DateTime(0);

    pub fn now() -> DateTime {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        DateTime::from_unix(i64::try_from(since.as_secs()).unwrap_or(SECONDS_MAX))
    }

    /// Clamped into the years that can be written.
    pub fn from_unix(seconds: i64) -> DateTime {
        DateTime(seconds.clamp(SECONDS_MIN, SECONDS_MAX))
    }

    pub const fn unix(self) -> i64 {
        self.0
    }

    /// Reads `YYYYMMDDTHH:MM:SS[.fff][Z]`, with or without dashes in the date; UTC.
    pub fn parse(text: &str) -> Option<DateTime> {
        let text = text.trim();
        let text = text.strip_suffix('Z').unwrap_or(text);
        let text = text.split_once('.').map_or(text, |(whole, _fraction)| whole);
        let (date, time) = text.split_once('T')?;
        let date: String = date.chars().filter(|c| *c != '-').collect();
        let time: String = time.chars().filter(|c| *c != ':').collect();
        if date.len() != 8 || time.len() != 6 || !(date.clone() + &time).bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let year = date[0..4].parse().ok()?;
        let date = jiff::civil::Date::new(year, date[4..6].parse().ok()?, date[6..8].parse().ok()?).ok()?;
        let seconds = time[4..6].parse::<i8>().ok()?.min(59);
        let time = jiff::civil::Time::new(time[0..2].parse().ok()?, time[2..4].parse().ok()?, seconds, 0).ok()?;
        let stamp = date.to_datetime(time).to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        Some(DateTime::from_unix(stamp.as_second()))
    }
}

impl fmt::Display for DateTime {
    /// `YYYYMMDDTHH:MM:SSZ`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stamp = jiff::Timestamp::from_second(self.0).unwrap_or_default();
        let t = stamp.to_zoned(jiff::tz::TimeZone::UTC);
        let (date, time) = (t.date(), t.time());
        write!(f, "{:04}{:02}{:02}", date.year(), date.month(), date.day())?;
        write!(f, "T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
    }
}

#[cfg(test)]
mod tests {
    use super::{DateTime, Ref};

    #[test]
    fn times_are_written_and_read_as_xenapi_does() {
        assert_eq!(DateTime::EPOCH.to_string(), "19700101T00:00:00Z");
        let text = "20261122T16:30:05Z";
        assert_eq!(DateTime::parse(text).unwrap().to_string(), text);
        assert_eq!(DateTime::parse("2026-11-22T16:30:05.123Z").unwrap().to_string(), text);
        assert_eq!(DateTime::parse("20261122T16:30:05").unwrap().to_string(), text);
        for wrong in
            ["", "T", "20261322T16:30:05Z", "20261122T25:30:05Z", "20261122", "2026112٣T16:30:05Z", "x20261122T1630"]
        {
            assert_eq!(DateTime::parse(wrong), None, "{wrong}");
        }
        assert_eq!(DateTime::from_unix(i64::MAX).to_string(), "99991230T22:00:00Z");
    }

    #[test]
    fn the_empty_reference_is_null() {
        assert!(Ref::from("").is_null() && Ref::null().is_null() && Ref::from("OpaqueRef:NULL").is_null());
        assert!(!Ref::random().is_null());
        assert_ne!(Ref::random(), Ref::random());
    }
}
