//! Records as `xe` shows them: one table per class says which fields there are, in which order, how each is printed and
//! whether it can be set. The generic commands (`X-list`, `X-param-*`), the filters and the VM selectors all follow from it.
//!
//! | module | holds |
//! |---|---|
//! | [`field`] | what a field is, and how it becomes text |
//! | [`lookup`] | reading the objects that a record refers to |
//! | [`filter`] | `key=value` conditions over shown text |
//! | [`vm`], [`storage`], [`network`], [`pool`], [`other`] | the tables |

pub mod field;
pub mod filter;
pub mod lookup;

mod network;
mod other;
mod pool;
mod storage;
mod vm;

use crate::failure::Failure;
use crate::print::Cell;
use crate::record::field::Field;
use crate::record::lookup::Lookup;
use std::rc::Rc;
use tanada_xapi::{Map, Ref};

/// One family of generic commands.
pub struct Class {
    /// In front of the commands: `vm` in `vm-list`.
    pub prefix: &'static str,
    /// XenAPI class.
    pub api: &'static str,
    /// With an article, for help: "a VM".
    pub noun: &'static str,
    pub fields: &'static [Field],
    /// Fields of a plain list; empty for all.
    pub defaults: &'static [&'static str],
    /// Conditions that the list adds by itself.
    pub implicit: &'static [(&'static str, &'static str)],
    /// XenAPI field that lists are sorted by.
    pub order_by: &'static str,
}

pub const CLASSES: &[&Class] = &[
    &vm::VM,
    &vm::TEMPLATE,
    &vm::SNAPSHOT,
    &storage::VDI,
    &storage::VBD,
    &storage::SR,
    &storage::PBD,
    &storage::SM,
    &other::TASK,
    &pool::POOL,
    &pool::HOST,
    &network::NETWORK,
    &network::VIF,
    &network::PIF,
    &other::CONSOLE,
    &other::VMSS,
    &other::SECRET,
    &other::MESSAGE,
    &other::ROLE,
];

pub fn class(prefix: &str) -> Option<&'static Class> {
    CLASSES.iter().copied().find(|class| class.prefix == prefix)
}

/// An object with its record as the server sent it.
#[derive(Debug, Clone)]
pub struct Object {
    pub reference: Ref,
    pub record: Rc<Map>,
}

impl Class {
    /// The field of exactly this name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    pub fn has_settable_fields(&self) -> bool {
        self.fields.iter().any(Field::is_settable)
    }

    pub fn has_collections_to_change(&self) -> bool {
        self.fields.iter().any(|field| field.is_settable() && field.is_collection())
    }

    /// Which fields `params=` asks for, in the order of the table. Unknown names are ignored.
    pub fn chosen(&self, params: Option<&str>) -> Vec<&'static Field> {
        let all = || self.fields.iter().filter(|field| !field.hidden);
        match params {
            Some("all") => all().collect(),
            Some(list) => {
                let names: Vec<&str> = list.split(',').map(str::trim).collect();
                self.fields.iter().filter(|field| names.contains(&field.name)).collect()
            }
            None if self.defaults.is_empty() => all().collect(),
            None => self.fields.iter().filter(|field| self.defaults.contains(&field.name)).collect(),
        }
    }
}

/// One object's cells. Expensive fields are computed only where `with_expensive` says so.
pub fn cells(
    lookup: &Lookup<'_>,
    object: &Object,
    fields: &[&'static Field],
    with_expensive: bool,
) -> Result<Vec<Cell>, Failure> {
    let mut cells = Vec::with_capacity(fields.len());
    for field in fields {
        let value = if field.expensive && !with_expensive {
            "<expensive field>".to_owned()
        } else {
            match field.shown.text(lookup, object) {
                // A record is worth showing even where the server refuses to compute one of its fields.
                Err(Failure::Api(error)) if field.expensive => format!("<unavailable: {}>", error.code),
                text => text?,
            }
        };
        cells.push(Cell::new(field.heading(), value));
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::CLASSES;

    #[test]
    fn tables_are_sound() {
        for class in CLASSES {
            assert_eq!(class.fields[0].name, "uuid", "{}: scripts rely on the uuid in front", class.prefix);
            for (index, field) in class.fields.iter().enumerate() {
                let twice = class.fields[..index].iter().any(|other| other.name == field.name);
                assert!(!twice, "{} has {} twice", class.prefix, field.name);
            }
            for name in class.defaults.iter().chain(class.implicit.iter().map(|(name, _)| name)) {
                assert!(class.field(name).is_some(), "{} has no field {name}", class.prefix);
            }
        }
    }

    /// Everything that is shown is a field of the API, and everything that can be set has its message.
    #[test]
    fn tables_agree_with_the_api() {
        use tanada_xapi::classes;
        for class in CLASSES {
            let api = classes::class(class.api).unwrap();
            assert!(api.field(class.order_by).is_some(), "{} is sorted by {}", class.prefix, class.order_by);
            for field in class.fields {
                if let Some(name) = field.shown.api_field() {
                    assert!(api.field(name).is_some(), "{} shows {name}, which {} has not", class.prefix, class.api);
                    let changes: &[&str] = match (field.is_settable(), field.is_map(), field.is_set()) {
                        (false, ..) => &[],
                        (true, true, _) => &["set_", "add_to_", "remove_from_"],
                        (true, _, true) => &["set_", "add_", "remove_"],
                        (true, ..) => &["set_"],
                    };
                    for change in changes {
                        let message = format!("{change}{name}");
                        assert!(
                            api.method(&message).is_some(),
                            "{}: there is no {}.{message}",
                            class.prefix,
                            class.api
                        );
                    }
                } else {
                    assert!(!field.is_settable(), "{}-{} cannot be set", class.prefix, field.name);
                }
                if let crate::record::field::Shown::Via(reference, target, inner) = field.shown {
                    assert!(api.field(reference).is_some(), "{reference}");
                    // host_metrics and the like may be missing from the table: then so is the object.
                    if let (Some(target), Some(name)) = (classes::class(target), inner.api_field()) {
                        assert!(target.field(name).is_some(), "{} has no {name}", target.name);
                    }
                }
            }
        }
    }

    #[test]
    fn fields_are_chosen_in_the_order_of_the_table() {
        let vm = super::class("vm").unwrap();
        let names = |params| vm.chosen(params).iter().map(|field| field.name).collect::<Vec<_>>();
        assert_eq!(names(None), ["uuid", "name-label", "power-state"]);
        assert_eq!(names(Some("power-state,nonsense,uuid")), ["uuid", "power-state"]);
        assert!(names(Some("all")).len() > 60);
    }
}
