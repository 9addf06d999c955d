use std::sync::LazyLock;

use tanada_xapi::classes::Class;
use tanada_xapi::types::Type;
use tanada_xapi::{ApiError, ApiResult, DateTime, Map, Ref, Value};

/// One object: all fields of its class. Cheap to share (it sits in an `Arc`), never changed in place.
///
/// The getters take the field's name; asking for a field that the class lacks, or by the wrong type, is a mistake of
/// ours: it fails in debug builds and answers the type's zero otherwise.
#[derive(Debug, Clone)]
pub struct Record {
    class: &'static Class,
    id: Ref,
    values: Vec<Value>,
    /// Order of creation among all objects.
    pub(super) sequence: u64,
    /// Generations of the creation and of the last change.
    pub(super) created: u64,
    pub(super) modified: u64,
}

static NOTHING: Value = Value::Nil;
static NO_MAP: LazyLock<Map> = LazyLock::new(Map::new);

impl Record {
    /// An object with every field at its declared default.
    pub(super) fn new(class: &'static Class, id: Ref) -> Record {
        let values = class.fields.iter().map(|f| f.initial()).collect();
        Record { class, id, values, sequence: 0, created: 0, modified: 0 }
    }

    pub fn class(&self) -> &'static Class {
        self.class
    }

    /// The object's own reference.
    pub fn id(&self) -> &Ref {
        &self.id
    }

    pub fn created_generation(&self) -> u64 {
        self.created
    }

    pub fn modified_generation(&self) -> u64 {
        self.modified
    }

    /// Empty for the few classes without one.
    pub fn uuid(&self) -> &str {
        self.value("uuid").as_str().unwrap_or_default()
    }

    pub fn value(&self, field: &str) -> &Value {
        let found = self.class.field(field).and_then(|f| self.values.get(f.index));
        debug_assert!(found.is_some(), "{} has no field {field}", self.class.name);
        found.unwrap_or(&NOTHING)
    }

    fn typed<'a, T>(&'a self, field: &str, get: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = get(self.value(field));
        debug_assert!(value.is_some(), "{}.{field} has another type", self.class.name);
        value
    }

    pub fn str(&self, field: &str) -> &str {
        self.typed(field, Value::as_str).unwrap_or_default()
    }

    pub fn int(&self, field: &str) -> i64 {
        self.typed(field, Value::as_int).unwrap_or_default()
    }

    pub fn bool(&self, field: &str) -> bool {
        self.typed(field, Value::as_bool).unwrap_or_default()
    }

    pub fn float(&self, field: &str) -> f64 {
        self.typed(field, Value::as_float).unwrap_or_default()
    }

    pub fn datetime(&self, field: &str) -> DateTime {
        self.typed(field, Value::as_datetime).unwrap_or_default()
    }

    /// The reference, which may be null or dangle.
    pub fn reference(&self, field: &str) -> Ref {
        Ref::from(self.str(field))
    }

    pub fn set(&self, field: &str) -> &[Value] {
        self.typed(field, Value::as_set).unwrap_or_default()
    }

    pub fn strings(&self, field: &str) -> Vec<String> {
        self.set(field).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    pub fn refs(&self, field: &str) -> Vec<Ref> {
        self.set(field).iter().filter_map(Value::as_str).map(Ref::from).collect()
    }

    pub fn map(&self, field: &str) -> &Map {
        self.typed(field, Value::as_map).unwrap_or(&NO_MAP)
    }

    /// The text at `key` in a map of strings.
    pub fn entry(&self, field: &str, key: &str) -> Option<&str> {
        self.map(field).get(key).and_then(Value::as_str)
    }

    /// All fields, as `get_record` answers them.
    pub fn to_map(&self) -> Map {
        self.class.fields.iter().zip(&self.values).map(|(f, v)| (f.name.to_owned(), v.clone())).collect()
    }

    /// Fields with values, in the order of the table.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.class.fields.iter().zip(&self.values).map(|(f, v)| (f.name, v))
    }

    /// Sets a field, with its type checked; `false` when it has that value already.
    pub(super) fn put(&mut self, field: &str, value: Value) -> ApiResult<bool> {
        let class = self.class;
        let Some(f) = class.field(field) else {
            return Err(ApiError::internal(format!("{} has no field {field}", class.name)));
        };
        let value = f.ty.coerce(normalised(&f.ty, value));
        let value = value.map_err(|e| ApiError::internal(format!("{}.{field}: {e}", class.name)))?;
        match self.values.get_mut(f.index) {
            Some(old) if *old == value => Ok(false),
            Some(old) => {
                *old = value;
                Ok(true)
            }
            None => Err(ApiError::internal(format!("{} has no field {field}", class.name))),
        }
    }
}

/// An empty reference is kept as the null reference.
fn normalised(ty: &Type, value: Value) -> Value {
    match (ty, &value) {
        (Type::Ref(_), Value::String(s)) if s.is_empty() => ty.zero(),
        _ => value,
    }
}
