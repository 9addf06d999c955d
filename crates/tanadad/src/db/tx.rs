use std::collections::BTreeMap;
use std::sync::Arc;

use tanada_xapi::classes::{self, Class};
use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};

use super::record::Record;
use super::relations::{is_derived, of_many, of_one};
use super::sqlite::Intent;
use super::state::{State, View};

/// What a transaction will change. `None` = deleted.
#[derive(Default)]
pub(super) struct Changes {
    pub objects: BTreeMap<(&'static str, Ref), Option<Record>>,
    pub intents_put: Vec<Intent>,
    pub intents_cleared: Vec<String>,
    /// `None` = forgotten.
    pub notes: BTreeMap<String, Option<String>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
            && self.intents_put.is_empty()
            && self.intents_cleared.is_empty()
            && self.notes.is_empty()
    }
}

/// A transaction: sees its own changes ([`View`]), keeps the relations.
pub struct Tx<'a> {
    base: &'a State,
    changes: Changes,
    /// Objects made here, in order.
    created: u64,
}

/// Above every sequence number of the committed state: new objects sort last, in order of their making.
pub(super) const NEW_SEQUENCE: u64 = 1 << 62;

impl<'a> Tx<'a> {
    pub(super) fn new(base: &'a State) -> Tx<'a> {
        Tx { base, changes: Changes::default(), created: 0 }
    }

    pub(super) fn into_changes(mut self) -> Changes {
        // Made and destroyed in here: nobody ever saw it.
        let base = self.base;
        self.changes.objects.retain(|(class, id), change| change.is_some() || base.find(class, id).is_some());
        self.changes
    }

    /// A new object: `fields` over the defaults; gets a uuid when none is given.
    pub fn create<K: AsRef<str>>(
        &mut self,
        class: &str,
        fields: impl IntoIterator<Item = (K, Value)>,
    ) -> ApiResult<Ref> {
        self.create_as(class, Ref::random(), fields)
    }

    /// A new object under a reference that the caller has chosen.
    pub fn create_as<K: AsRef<str>>(
        &mut self,
        class: &str,
        id: Ref,
        fields: impl IntoIterator<Item = (K, Value)>,
    ) -> ApiResult<Ref> {
        let class = declared(class)?;
        if self.find(class.name, &id).is_some() {
            return Err(ApiError::db_uniqueness_constraint_violation(class.name, "ref", id));
        }
        let mut record = Record::new(class, id.clone());
        for (field, value) in fields {
            refuse_derived(class.name, field.as_ref())?;
            record.put(field.as_ref(), value)?;
        }
        if class.field("uuid").is_some() {
            if record.uuid().is_empty() {
                record.put("uuid", Value::from(uuid::Uuid::new_v4().to_string()))?;
            } else if self.find_by_uuid(class.name, record.uuid()).is_some() {
                return Err(ApiError::db_uniqueness_constraint_violation(class.name, "uuid", record.uuid()));
            }
        }
        self.adopt(&mut record)?;
        self.created += 1;
        record.sequence = NEW_SEQUENCE + self.created;
        let ones: Vec<_> = of_one(class.name).map(|r| (r, record.reference(r.one))).collect();
        self.changes.objects.insert((class.name, id.clone()), Some(record));
        for (relation, target) in ones {
            self.join(relation.many_class, &target, relation.many, &id)?;
        }
        Ok(id)
    }

    /// References to the new object that already dangle (a VM made again under its old reference).
    fn adopt(&self, record: &mut Record) -> ApiResult<()> {
        for relation in of_many(record.class().name) {
            let members = self.having(relation.one_class, relation.one, record.id().as_str());
            let members: Vec<Value> = members.iter().map(|r| Value::from(r.id())).collect();
            record.put(relation.many, Value::Set(members))?;
        }
        Ok(())
    }

    /// Sets one field. `HANDLE_INVALID` for an unknown object; an unknown field or wrong type is an internal error.
    pub fn set(&mut self, class: &str, id: &Ref, field: &str, value: impl Into<Value>) -> ApiResult<()> {
        refuse_derived(class, field)?;
        let relation = of_one(class).find(|r| r.one == field);
        let old_target = match relation {
            Some(_) => Some(self.get(class, id)?.reference(field)),
            None => None,
        };
        let record = self.edit(class, id, |record| record.put(field, value.into()))?;
        let (Some(relation), Some(old)) = (relation, old_target) else { return Ok(()) };
        let new = record.reference(field);
        if old != new {
            self.leave(relation.many_class, &old, relation.many, id)?;
            self.join(relation.many_class, &new, relation.many, id)?;
        }
        Ok(())
    }

    /// Sets several fields.
    pub fn set_all<K: AsRef<str>>(
        &mut self,
        class: &str,
        id: &Ref,
        fields: impl IntoIterator<Item = (K, Value)>,
    ) -> ApiResult<()> {
        fields.into_iter().try_for_each(|(field, value)| self.set(class, id, field.as_ref(), value))
    }

    /// Puts one entry into a map field, over an older one.
    pub fn put_entry(
        &mut self,
        class: &str,
        id: &Ref,
        field: &str,
        key: &str,
        value: impl Into<Value>,
    ) -> ApiResult<()> {
        let mut map = self.get(class, id)?.map(field).clone();
        map.insert(key.to_owned(), value.into());
        self.set(class, id, field, Value::Map(map))
    }

    /// Takes one entry out of a map field; no error when it is not there.
    pub fn remove_entry(&mut self, class: &str, id: &Ref, field: &str, key: &str) -> ApiResult<()> {
        let mut map = self.get(class, id)?.map(field).clone();
        map.remove(key);
        self.set(class, id, field, Value::Map(map))
    }

    /// Puts a value into a set field; no error when it is there already.
    pub fn add_member(&mut self, class: &str, id: &Ref, field: &str, value: impl Into<Value>) -> ApiResult<()> {
        let value = value.into();
        let mut items = self.get(class, id)?.set(field).to_vec();
        if !items.contains(&value) {
            items.push(value);
        }
        self.set(class, id, field, Value::Set(items))
    }

    /// Takes a value out of a set field; no error when it is not there.
    pub fn remove_member(&mut self, class: &str, id: &Ref, field: &str, value: impl Into<Value>) -> ApiResult<()> {
        let value = value.into();
        let mut items = self.get(class, id)?.set(field).to_vec();
        items.retain(|v| *v != value);
        self.set(class, id, field, Value::Set(items))
    }

    /// Marks the object as changed without changing it.
    pub fn touch(&mut self, class: &str, id: &Ref) -> ApiResult<()> {
        self.edit(class, id, |_| Ok(true)).map(|_| ())
    }

    /// Removes the object. References to it are left dangling; objects that belong to it are the caller's business.
    pub fn destroy(&mut self, class: &str, id: &Ref) -> ApiResult<()> {
        let class = declared(class)?.name;
        let record = self.get(class, id)?;
        for relation in of_one(class) {
            self.leave(relation.many_class, &record.reference(relation.one), relation.many, id)?;
        }
        self.changes.objects.insert((class, id.clone()), None);
        Ok(())
    }

    /// Writes down what is about to be done, durable with this transaction; answers the intent's id.
    pub fn put_intent(&mut self, kind: &str, body: serde_json::Value) -> ApiResult<String> {
        let id = uuid::Uuid::new_v4().to_string();
        let intent = Intent { id: id.clone(), kind: kind.to_owned(), body, created: DateTime::now() };
        self.changes.intents_put.push(intent);
        Ok(id)
    }

    /// Replaces the body of an intent that exists, as its operation advances.
    pub fn update_intent(&mut self, id: &str, kind: &str, body: serde_json::Value) {
        let intent = Intent { id: id.to_owned(), kind: kind.to_owned(), body, created: DateTime::now() };
        self.changes.intents_put.push(intent);
    }

    /// What the intent was about is done or undone.
    pub fn clear_intent(&mut self, id: &str) {
        self.changes.intents_put.retain(|i| i.id != id);
        self.changes.intents_cleared.push(id.to_owned());
    }

    /// Keeps a text of the daemon's own, over an older one of that name.
    pub fn put_note(&mut self, name: &str, text: String) {
        if self.note(name).as_deref() != Some(text.as_str()) {
            self.changes.notes.insert(name.to_owned(), Some(text));
        }
    }

    pub fn forget_note(&mut self, name: &str) {
        if self.note(name).is_some() {
            self.changes.notes.insert(name.to_owned(), None);
        }
    }

    /// The objects of a class that this transaction has made or changed.
    fn ours(&self, class: &'static str) -> impl Iterator<Item = &Record> {
        let ours = self.changes.objects.range((class, Ref::from(""))..).take_while(move |((c, _), _)| *c == class);
        ours.filter_map(|(_, change)| change.as_ref())
    }

    /// Changes an object with `change`, which says whether it did; answers the object as it is now.
    fn edit(
        &mut self,
        class: &str,
        id: &Ref,
        change: impl FnOnce(&mut Record) -> ApiResult<bool>,
    ) -> ApiResult<Arc<Record>> {
        let class = declared(class)?.name;
        let old = self.get(class, id)?;
        let mut record = Record::clone(&old);
        if !change(&mut record)? {
            return Ok(old);
        }
        if record.uuid_changed(&old) && self.find_by_uuid(class, record.uuid()).is_some() {
            return Err(ApiError::db_uniqueness_constraint_violation(class, "uuid", record.uuid()));
        }
        self.changes.objects.insert((class, id.clone()), Some(record.clone()));
        Ok(Arc::new(record))
    }

    fn join(&mut self, class: &str, target: &Ref, field: &str, member: &Ref) -> ApiResult<()> {
        self.change_members(class, target, field, |items| {
            let member = Value::from(member);
            if !items.contains(&member) {
                items.push(member);
            }
        })
    }

    fn leave(&mut self, class: &str, target: &Ref, field: &str, member: &Ref) -> ApiResult<()> {
        self.change_members(class, target, field, |items| items.retain(|v| v.as_str() != Some(member.as_str())))
    }

    /// A target that is null or gone has no members to keep.
    fn change_members(
        &mut self,
        class: &str,
        target: &Ref,
        field: &str,
        change: impl FnOnce(&mut Vec<Value>),
    ) -> ApiResult<()> {
        if target.is_null() || self.find(class, target).is_none() {
            return Ok(());
        }
        let put = |record: &mut Record| {
            let mut items = record.set(field).to_vec();
            change(&mut items);
            record.put(field, Value::Set(items))
        };
        self.edit(class, target, put).map(|_| ())
    }
}

impl Record {
    fn uuid_changed(&self, old: &Record) -> bool {
        self.class().field("uuid").is_some() && self.uuid() != old.uuid()
    }
}

impl View for Tx<'_> {
    fn find(&self, class: &str, id: &Ref) -> Option<Arc<Record>> {
        let class = classes::class(class)?.name;
        match self.changes.objects.get(&(class, id.clone())) {
            Some(Some(record)) => Some(Arc::new(record.clone())),
            Some(None) => None,
            None => self.base.find(class, id),
        }
    }

    fn find_by_uuid(&self, class: &str, uuid: &str) -> Option<Arc<Record>> {
        let class = classes::class(class).filter(|c| c.field("uuid").is_some())?.name;
        if let Some(record) = self.ours(class).find(|r| r.uuid() == uuid) {
            return Some(Arc::new(record.clone()));
        }
        let base = self.base.find_by_uuid(class, uuid)?;
        // Changed here: then it has another uuid by now, or is gone.
        if self.changes.objects.contains_key(&(class, base.id().clone())) { None } else { Some(base) }
    }

    fn all(&self, class: &str) -> Vec<Arc<Record>> {
        let Some(class) = classes::class(class).map(|c| c.name) else { return Vec::new() };
        let mut all = self.base.all(class);
        all.retain(|r| !self.changes.objects.contains_key(&(class, r.id().clone())));
        all.extend(self.ours(class).cloned().map(Arc::new));
        all.sort_unstable_by_key(|r| r.sequence);
        all
    }

    fn having(&self, class: &str, field: &str, value: &str) -> Vec<Arc<Record>> {
        let Some(class) = classes::class(class).map(|c| c.name) else { return Vec::new() };
        let mut found = self.base.having(class, field, value);
        found.retain(|r| !self.changes.objects.contains_key(&(class, r.id().clone())));
        if !value.is_empty() && !Ref::from(value).is_null() {
            found.extend(self.ours(class).filter(|r| r.str(field) == value).cloned().map(Arc::new));
        }
        found.sort_unstable_by_key(|r| r.sequence);
        found
    }

    fn note(&self, name: &str) -> Option<String> {
        self.changes.notes.get(name).cloned().unwrap_or_else(|| self.base.note(name))
    }
}

fn declared(class: &str) -> ApiResult<&'static Class> {
    classes::class(class).ok_or_else(|| ApiError::internal(format!("there is no class {class}")))
}

fn refuse_derived(class: &str, field: &str) -> ApiResult<()> {
    if is_derived(class, field) {
        return Err(ApiError::internal(format!("{class}.{field} follows from a relation and cannot be set")));
    }
    Ok(())
}
