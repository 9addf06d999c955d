//! From a call to its answer: finds the resource, does what is the same for all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::api::error::{ApiError, ApiResult};
use crate::api::fields::Selection;
use crate::api::jobs::{JobFault, Jobs};
use crate::api::query::matches;
use crate::api::request::{Call, Method, is_within};
use crate::api::resource::{Resource, Spec, Written};
use crate::api::sort::{escape, field_text, page, sort};
use crate::model::Array;

/// Status, `Location`, body.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub body: Value,
}

impl Answer {
    pub fn error(error: &ApiError) -> Answer {
        Answer { status: error.status, location: None, body: error.body() }
    }
}

/// The API over one array.
pub struct Api {
    array: Arc<Mutex<Array>>,
    jobs: Arc<Jobs>,
    resources: Vec<Box<dyn Resource>>,
    is_strict: bool,
}

/// Where a path leads.
struct Place<'a> {
    resource: &'a dyn Resource,
    above: Vec<String>,
    /// Keys of one record; none for the collection.
    key: Option<Vec<String>>,
}

impl Place<'_> {
    fn at(&self, key: &[String]) -> Vec<String> {
        self.above.iter().chain(key).cloned().collect()
    }

    /// `/api/...` of the collection, or of the record with these keys.
    fn href(&self, key: &[String]) -> String {
        let mut above = self.above.iter();
        let path: Vec<String> = self
            .resource
            .spec()
            .path
            .split('/')
            .map(|part| match part {
                "{}" => above.next().map(|key| escape(key)).unwrap_or_default(),
                part => part.to_string(),
            })
            .collect();
        let keys: String = key.iter().map(|key| format!("/{}", escape(key))).collect();
        format!("/api/{}{keys}", path.join("/"))
    }
}

impl Api {
    pub fn new(array: Arc<Mutex<Array>>, jobs: Arc<Jobs>, resources: Vec<Box<dyn Resource>>, is_strict: bool) -> Api {
        Api { array, jobs, resources, is_strict }
    }

    fn array(&self) -> MutexGuard<'_, Array> {
        self.array.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call. Blocks: for a lock, for a job where the caller wants to wait.
    pub fn answer(&self, call: &Call, is_svm_account: bool, fault: JobFault) -> Answer {
        let done = self.place(call).and_then(|place| {
            let spec = place.resource.spec();
            if spec.is_cluster_only && is_svm_account {
                return match (call.method, &place.key) {
                    (Method::Get, None) => {
                        Ok(Answer { status: 200, location: None, body: json!({ "records": [], "num_records": 0 }) })
                    }
                    _ => Err(ApiError::forbidden()),
                };
            }
            self.check_names(call, spec)?;
            match (call.method, &place.key) {
                (Method::Get, None) if spec.keys.is_empty() => self.show(call, &place, &[]),
                (Method::Get, None) => self.list(call, &place),
                (Method::Get, Some(key)) => self.show(call, &place, key),
                (Method::Post, None) => self.create(call, &place, fault),
                (Method::Post, Some(_)) => Err(ApiError::not_supported("POST")),
                (Method::Patch | Method::Delete, Some(key)) => self.change(call, &place, key, fault),
                (Method::Patch | Method::Delete, None) => self.change_all(call, &place, fault),
            }
        });
        done.unwrap_or_else(|error| Answer::error(&error))
    }

    fn place(&self, call: &Call) -> ApiResult<Place<'_>> {
        let path = call.segments.join("/");
        let unknown = || ApiError::no_such_api(&format!("/{path}"));
        let segments = call.segments.strip_prefix(&["api".to_string()]).ok_or_else(unknown)?;
        self.resources.iter().find_map(|resource| find(resource.as_ref(), segments)).ok_or_else(unknown)
    }

    /// Unknown names of filters, fields and body: refused by a strict array, else passed over.
    fn check_names(&self, call: &Call, spec: &Spec) -> ApiResult<()> {
        if !self.is_strict || call.flag("ignore_unknown_fields") {
            return Ok(());
        }
        let known = |name: &str| spec.fields.iter().any(|field| is_within(name, field));
        let filters = call.filters(spec.parameters).map(|(name, _)| name.to_string());
        let fields = Selection::parse(call.parameter("fields").unwrap_or_default()).named().to_vec();
        match filters
            .chain(fields)
            .chain(call.body.names())
            .find(|name| !known(name) && name != "svm" && name != "records")
        {
            Some(name) => Err(ApiError::invalid(262179, format!("Unexpected argument \"{name}\".")).at(&name)),
            None => Ok(()),
        }
    }

    /// Records that pass the filters, sorted.
    fn matching(&self, array: &Array, call: &Call, place: &Place<'_>) -> ApiResult<Vec<Value>> {
        let spec = place.resource.spec();
        let mut records = place.resource.records(array, &place.above)?;
        let filters: Vec<(&str, &str)> = call
            .filters(spec.parameters)
            .map(|(name, value)| (if name == "svm" { "svm.name" } else { name }, value))
            .filter(|(name, _)| spec.fields.iter().any(|field| is_within(name, field)))
            .collect();
        records.retain(|record| {
            let is_inside = match (&call.svm, record.pointer(place.resource.svm_pointer())) {
                (Some(svm), Some(own)) => own == svm,
                _ => true,
            };
            is_inside && filters.iter().all(|(name, value)| matches(record, name, value))
        });
        sort(&mut records, call, spec.keys);
        Ok(records)
    }

    fn selected(&self, record: &Value, call: &Call, place: &Place<'_>, is_instance: bool) -> Value {
        let spec = place.resource.spec();
        let mut selection = match call.parameter("fields") {
            Some(text) => Selection::parse(text),
            None if is_instance => Selection::standard(),
            None => Selection::default(),
        };
        for name in spec.keys.iter().chain(spec.always) {
            selection.name(name);
        }
        for (name, _) in call.filters(spec.parameters) {
            selection.name(name);
        }
        let mut chosen = selection.apply(record, spec.expensive);
        if let Some(field) = place.resource.narrowed_field()
            && let Some(list) = chosen.get_mut(field).and_then(Value::as_array_mut)
        {
            let inside =
                |name: &str| name.strip_prefix(field).and_then(|rest| rest.strip_prefix('.')).map(String::from);
            let filters: Vec<(String, &str)> =
                call.filters(spec.parameters).filter_map(|(name, value)| Some((inside(name)?, value))).collect();
            list.retain(|element| filters.iter().all(|(name, value)| matches(element, name, value)));
        }
        if call.links && !spec.keys.is_empty() {
            let key: Vec<String> = spec.keys.iter().map(|key| field_text(record, key)).collect();
            chosen["_links"] = json!({ "self": { "href": place.href(&key) } });
        }
        chosen
    }

    fn list(&self, call: &Call, place: &Place<'_>) -> ApiResult<Answer> {
        let records = {
            let array = self.array();
            let mut records = self.matching(&array, call, place)?;
            records.retain(|record| !array.is_unseen(&field_text(record, "uuid")));
            records
        };
        let keys = place.resource.spec().keys;
        let (records, next) = page(records, call, keys)?;
        let mut body = Map::new();
        body.insert("num_records".into(), json!(records.len()));
        if call.wants_records(true) {
            let records: Vec<Value> = records.iter().map(|record| self.selected(record, call, place, false)).collect();
            body.insert("records".into(), json!(records));
        }
        let mut links = Map::new();
        if call.links {
            links.insert("self".into(), json!({ "href": place.href(&[]) }));
        }
        if let Some(next) = next {
            links.insert("next".into(), json!({ "href": format!("{}?{next}", place.href(&[])) }));
        }
        if !links.is_empty() {
            body.insert("_links".into(), Value::Object(links));
        }
        Ok(Answer { status: 200, location: None, body: Value::Object(body) })
    }

    fn find_record(&self, array: &Array, call: &Call, place: &Place<'_>, key: &[String]) -> ApiResult<Value> {
        let spec = place.resource.spec();
        let is_it =
            |record: &Value| spec.keys.iter().zip(key).all(|(name, wanted)| field_text(record, name) == *wanted);
        let found = place.resource.records(array, &place.above)?.into_iter().find(is_it);
        let is_inside = |record: &Value| match (&call.svm, record.pointer(place.resource.svm_pointer())) {
            (Some(svm), Some(own)) => own == svm,
            _ => true,
        };
        found.filter(is_inside).ok_or_else(|| place.resource.not_found())
    }

    fn show(&self, call: &Call, place: &Place<'_>, key: &[String]) -> ApiResult<Answer> {
        let array = self.array();
        let record = self.find_record(&array, call, place, key)?;
        if array.is_unseen(&field_text(&record, "uuid")) {
            return Err(place.resource.not_found());
        }
        Ok(Answer { status: 200, location: None, body: self.selected(&record, call, place, true) })
    }

    fn create(&self, call: &Call, place: &Place<'_>, fault: JobFault) -> ApiResult<Answer> {
        let written = place.resource.post(&mut self.array(), &place.above, call)?;
        self.finish(call, place, written, 201, fault)
    }

    fn write(&self, array: &mut Array, call: &Call, place: &Place<'_>, key: &[String]) -> ApiResult<Written> {
        let at = place.at(key);
        match call.method {
            Method::Patch => place.resource.patch(array, &at, call),
            _ => place.resource.delete(array, &at, call),
        }
    }

    fn change(&self, call: &Call, place: &Place<'_>, key: &[String], fault: JobFault) -> ApiResult<Answer> {
        let written = {
            let mut array = self.array();
            if call.svm.is_some() {
                // What belongs to another SVM is not there for this caller.
                self.find_record(&array, call, place, key)?;
            }
            self.write(&mut array, call, place, key)?
        };
        self.finish(call, place, written, 200, fault)
    }

    /// PATCH and DELETE of everything that matches the filters, one by one.
    fn change_all(&self, call: &Call, place: &Place<'_>, fault: JobFault) -> ApiResult<Answer> {
        let spec = place.resource.spec();
        if call.filters(spec.parameters).next().is_none() {
            return Err(ApiError::invalid(262190, "A filter is needed for a collection."));
        }
        let records = self.matching(&self.array(), call, place)?;
        // Nothing to do is no error: Cinder's sweep of unused QoS policies lives on that.
        let mut jobs = Vec::new();
        for record in &records {
            let key: Vec<String> = spec.keys.iter().map(|key| field_text(record, key)).collect();
            let written = self.write(&mut self.array(), call, place, &key)?;
            if let Written::Later(_, run) = written {
                let job =
                    self.jobs.start(&self.array, self.description(call, place), call.svm.clone(), fault.clone(), run);
                jobs.push(job);
            }
        }
        let mut body = json!({ "num_records": records.len() });
        let mut is_done = true;
        let patience = Duration::from_secs(call.return_timeout()?);
        for job in &jobs {
            match self.jobs.wait(*job, patience) {
                Some(result) => result?,
                None => is_done = false,
            }
        }
        if !is_done {
            let link = |uuid: &uuid::Uuid| json!({ "uuid": uuid, "_links": { "self": { "href": format!("/api/cluster/jobs/{uuid}") } } });
            body["jobs"] = json!(jobs.iter().map(link).collect::<Vec<_>>());
            if let [job] = jobs.as_slice() {
                body["job"] = link(job);
            }
        }
        Ok(Answer { status: if is_done { 200 } else { 202 }, location: None, body })
    }

    fn description(&self, call: &Call, place: &Place<'_>) -> String {
        format!("{} {}", call.method.word(), place.href(place.key.as_deref().unwrap_or_default()))
    }

    fn finish(
        &self,
        call: &Call,
        place: &Place<'_>,
        written: Written,
        status: u16,
        fault: JobFault,
    ) -> ApiResult<Answer> {
        let patience = call.return_timeout()?;
        let made = match written {
            Written::Now(made) => made,
            Written::Later(made, run) => {
                let job = self.jobs.start(&self.array, self.description(call, place), call.svm.clone(), fault, run);
                let ended = if patience == 0 { None } else { self.jobs.wait(job, Duration::from_secs(patience)) };
                match ended {
                    Some(result) => result?,
                    None => {
                        let href = format!("/api/cluster/jobs/{job}");
                        let location = made.map(|key| place.href(&key));
                        let body = json!({ "job": { "uuid": job, "_links": { "self": { "href": href } } } });
                        return Ok(Answer { status: 202, location, body });
                    }
                }
                made
            }
        };
        let location = made.as_ref().map(|key| place.href(key));
        let body = match made {
            Some(key) if call.wants_records(false) => {
                let record = self.find_record(&self.array(), call, place, &key)?;
                let spec = place.resource.spec();
                let mut full = Selection::standard();
                spec.keys.iter().chain(spec.always).for_each(|name| full.name(name));
                let mut record = full.apply(&record, spec.expensive);
                if call.links {
                    record["_links"] = json!({ "self": { "href": place.href(&key) } });
                }
                json!({ "num_records": 1, "records": [record] })
            }
            _ => json!({}),
        };
        Ok(Answer { status, location, body })
    }
}

fn find<'a>(resource: &'a dyn Resource, segments: &[String]) -> Option<Place<'a>> {
    let spec = resource.spec();
    let pattern: Vec<&str> = spec.path.split('/').collect();
    let (head, rest) = segments.split_at_checked(pattern.len())?;
    let fits = pattern.iter().zip(head).all(|(part, segment)| *part == "{}" || part == segment);
    if !fits {
        return None;
    }
    let above =
        pattern.iter().zip(head).filter(|(part, _)| **part == "{}").map(|(_, segment)| segment.clone()).collect();
    match rest.len() {
        0 => Some(Place { resource, above, key: None }),
        length if length == spec.keys.len() && length > 0 => Some(Place { resource, above, key: Some(rest.to_vec()) }),
        _ => None,
    }
}
