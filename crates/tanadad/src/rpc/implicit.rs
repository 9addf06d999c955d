//! Messages that follow from the fields: read and written straight from the table.

use std::sync::Arc;

use tanada_xapi::classes::{Class, Field, Method};
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};

use crate::context::{Args, Daemon};
use crate::db::{Record, View};
use crate::rpc::filter::Filter;

pub fn call(daemon: &Arc<Daemon>, class: &'static Class, method: Method, args: &Args) -> ApiResult<Value> {
    let db = &daemon.db;
    let name = class.name;
    let get = |id: &Ref| db.read(|s| s.get(name, id));
    let object = || args.reference("self");
    match method {
        Method::GetAll => Ok(ids(&db.read(|s| s.all(name)))),
        Method::GetAllRecords => Ok(records(&db.read(|s| s.all(name)))),
        Method::GetAllRecordsWhere => {
            let filter = Filter::parse(args.str("expr")?)?;
            filter.check_fields(class)?;
            let mut all = db.read(|s| s.all(name));
            all.retain(|r| filter.matches(r));
            Ok(records(&all))
        }
        Method::GetRecord => Ok(Value::Map(get(&object()?)?.to_map())),
        Method::GetByUuid => Ok(Value::from(db.read(|s| s.by_uuid(name, args.str("uuid")?))?.id())),
        Method::GetByNameLabel => {
            let label = args.str("label")?;
            Ok(ids(&db.read(|s| s.by_name(name, label))))
        }
        Method::Get(field) => Ok(get(&object()?)?.value(field.name).clone()),
        Method::Set(field) => {
            let (id, value) = (object()?, args.value("value")?.clone());
            db.write(|tx| tx.set(name, &id, field.name, value)).map(Value::from)
        }
        Method::AddTo(field) => add_to(daemon, class, field, args),
        Method::RemoveFrom(field) => {
            let (id, key) = (object()?, args.str("key")?);
            db.write(|tx| tx.remove_entry(name, &id, field.name, key)).map(Value::from)
        }
        Method::Add(field) => {
            let (id, value) = (object()?, args.value("value")?.clone());
            db.write(|tx| tx.add_member(name, &id, field.name, value)).map(Value::from)
        }
        Method::Remove(field) => {
            let (id, value) = (object()?, args.value("value")?.clone());
            db.write(|tx| tx.remove_member(name, &id, field.name, value)).map(Value::from)
        }
        Method::Explicit(_) | Method::Create | Method::Destroy => Err(ApiError::not_implemented(name)),
    }
}

fn add_to(daemon: &Arc<Daemon>, class: &'static Class, field: &Field, args: &Args) -> ApiResult<Value> {
    let (id, key, value) = (args.reference("self")?, args.str("key")?, args.value("value")?.clone());
    let done = daemon.db.write(|tx| {
        if tx.get(class.name, &id)?.map(field.name).contains_key(key) {
            return Err(ApiError::map_duplicate_key(class.name, field.name, &id, key));
        }
        tx.put_entry(class.name, &id, field.name, key, value)
    });
    done.map(Value::from)
}

/// A set of references.
pub fn ids(records: &[Arc<Record>]) -> Value {
    Value::set(records.iter().map(|r| r.id()))
}

/// A map from references to records.
pub fn records(records: &[Arc<Record>]) -> Value {
    Value::Map(records.iter().map(|r| (r.id().to_string(), Value::Map(r.to_map()))).collect::<Map>())
}
