//! What is found without going through a whole class: objects by when they changed, and by what certain fields say.
//!
//! Whatever follows the database looks at what changed since it looked last, at every change; whoever removes an object asks
//! who names it. With hundreds of machines and a year of snapshots a class has a hundred thousand objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tanada_xapi::Ref;

use super::record::Record;
use super::relations::of_one;

/// Fields that are looked up by value, beside those of relations.
static FIELDS: [(&str, &str); 2] = [("VM", "suspend_VDI"), ("VDI", "location")];

/// The indexed fields of a class.
pub fn indexed(class: &str) -> impl Iterator<Item = &'static str> + use<'_> {
    let own = FIELDS.iter().filter(move |(of, _)| *of == class).map(|(_, field)| *field);
    of_one(class).map(|relation| relation.one).chain(own)
}

/// In order of creation.
type Members = BTreeMap<u64, Arc<Record>>;

#[derive(Default)]
pub struct Index {
    /// By class; the key is the generation of the last change, and the sequence number.
    by_change: HashMap<&'static str, BTreeMap<(u64, u64), Arc<Record>>>,
    /// By field of a class, and what it says. Nothing is kept of null references and empty texts.
    by_value: HashMap<(&'static str, &'static str), HashMap<String, Members>>,
}

impl Index {
    pub fn put(&mut self, old: Option<&Record>, new: &Arc<Record>) {
        let class = new.class().name;
        if let Some(old) = old {
            self.remove(old);
        }
        self.by_change.entry(class).or_default().insert((new.modified, new.sequence), new.clone());
        for field in indexed(class) {
            if let Some(value) = value(new, field) {
                let of_field = self.by_value.entry((class, field)).or_default();
                of_field.entry(value.to_owned()).or_default().insert(new.sequence, new.clone());
            }
        }
    }

    pub fn remove(&mut self, old: &Record) {
        let class = old.class().name;
        if let Some(changes) = self.by_change.get_mut(class) {
            changes.remove(&(old.modified, old.sequence));
        }
        for field in indexed(class) {
            let Some(value) = value(old, field) else { continue };
            let Some(of_field) = self.by_value.get_mut(&(class, field)) else { continue };
            if let Some(members) = of_field.get_mut(value) {
                members.remove(&old.sequence);
                if members.is_empty() {
                    of_field.remove(value);
                }
            }
        }
    }

    /// Objects of the class changed after `generation`, the longest unchanged first.
    pub fn changed_since(&self, class: &str, generation: u64) -> impl Iterator<Item = &Arc<Record>> {
        let changes = self.by_change.get(class).map(|changes| changes.range((generation + 1, 0)..));
        changes.into_iter().flatten().map(|(_, record)| record)
    }

    /// Objects of the class whose indexed `field` says `value`, in order of creation.
    pub fn having(&self, class: &'static str, field: &'static str, value: &str) -> impl Iterator<Item = &Arc<Record>> {
        let members = self.by_value.get(&(class, field)).and_then(|of_field| of_field.get(value));
        members.into_iter().flat_map(BTreeMap::values)
    }
}

fn value<'a>(record: &'a Record, field: &str) -> Option<&'a str> {
    let text = record.str(field);
    (!text.is_empty() && !Ref::from(text).is_null()).then_some(text)
}
