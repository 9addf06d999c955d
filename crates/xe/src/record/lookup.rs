//! Reading the objects that a record refers to, each at most once.
//!
//! A list touches many objects of a class, so it reads whole classes; a single object reads just what it refers to.

use crate::api::Api;
use crate::failure::Failure;
use crate::record::Object;
use crate::record::field::{INVALID_REFERENCE, NOT_IN_DATABASE, scalar};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tanada_xapi::{Map, Ref};

/// By class and reference; `None` where the reference dangles.
type Known = BTreeMap<(String, Ref), Option<Rc<Map>>>;

pub struct Lookup<'a> {
    pub api: &'a Api,
    whole_classes: bool,
    read_whole: RefCell<BTreeSet<String>>,
    known: RefCell<Known>,
}

impl<'a> Lookup<'a> {
    pub fn for_list(api: &'a Api) -> Lookup<'a> {
        Lookup { api, whole_classes: true, read_whole: RefCell::default(), known: RefCell::default() }
    }

    pub fn for_one(api: &'a Api) -> Lookup<'a> {
        Lookup { api, whole_classes: false, read_whole: RefCell::default(), known: RefCell::default() }
    }

    /// The objects that may meet the conditions, and a lookup that suits their number: a uuid among the conditions asks for
    /// one object, anything else for the whole class.
    pub fn with_candidates(
        api: &'a Api,
        class: &str,
        conditions: &[(String, String)],
    ) -> Result<(Lookup<'a>, Vec<Object>), Failure> {
        let Some((_, uuid)) = conditions.iter().find(|(key, _)| key == "uuid") else {
            let objects = api.all(class)?;
            let lookup = Lookup::for_list(api);
            lookup.remember(class, &objects);
            return Ok((lookup, objects));
        };
        let objects = match api.object_by_uuid(class, uuid) {
            Ok(object) => vec![object],
            Err(Failure::Api(error)) if error.is("UUID_INVALID") => Vec::new(),
            Err(other) => return Err(other),
        };
        Ok((Lookup::for_one(api), objects))
    }

    /// Makes objects known that were read anyway.
    fn remember(&self, class: &str, objects: &[Object]) {
        let mut known = self.known.borrow_mut();
        for object in objects {
            known.insert((class.to_owned(), object.reference.clone()), Some(object.record.clone()));
        }
        self.read_whole.borrow_mut().insert(class.to_owned());
    }

    /// `None` for the null reference and for one that dangles.
    pub fn object(&self, class: &str, reference: &Ref) -> Result<Option<Object>, Failure> {
        if reference.is_null() {
            return Ok(None);
        }
        if self.whole_classes && !self.read_whole.borrow().contains(class) {
            let objects = self.api.all(class)?;
            self.remember(class, &objects);
        }
        let key = (class.to_owned(), reference.clone());
        if let Some(record) = self.known.borrow().get(&key) {
            return Ok(record.clone().map(|record| Object { reference: reference.clone(), record }));
        }
        let record = if self.whole_classes { None } else { self.api.record(class, reference)? };
        self.known.borrow_mut().insert(key, record.clone());
        Ok(record.map(|record| Object { reference: reference.clone(), record }))
    }

    /// One field of the object that `reference` names, as text.
    pub fn shown(&self, class: &str, reference: &Ref, field: &str) -> Result<String, Failure> {
        if reference.is_null() {
            return Ok(NOT_IN_DATABASE.to_owned());
        }
        let object = self.object(class, reference)?;
        Ok(object.and_then(|o| o.record.get(field).map(scalar)).unwrap_or_else(|| INVALID_REFERENCE.to_owned()))
    }
}
