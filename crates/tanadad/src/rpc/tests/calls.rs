use tanada_xapi::{ApiError, Ref, Value};

use crate::db::View;
use crate::rpc::session::Role;
use crate::testing::{LOCAL, TestDaemon};

fn text(s: &str) -> Value {
    Value::from(s)
}

#[tokio::test]
async fn calls_are_checked_in_order() {
    let t = TestDaemon::new(vec![("VM.start", |_, args| {
        Box::pin(async move { Ok(Value::from(format!("{} {}", args.reference("vm")?, args.bool("force")?))) })
    })]);
    let vm = || text("OpaqueRef:x");
    let unknown = |name: &str| Err(ApiError::message_method_unknown(name));
    for name in ["VM.fly", "Cat.get_all", "nonsense", "Async.VM.get_all", "Async.task.create", "vm.get_all"] {
        assert_eq!(t.call_raw(LOCAL, name, vec![]).await, unknown(name), "{name}");
    }
    assert_eq!(t.call("VMPP.get_all_records", []).await, Err(ApiError::message_removed()));
    assert_eq!(t.call("host.license_apply", []).await, Err(ApiError::message_removed()));
    let count = ApiError::message_parameter_count_mismatch("VM.start", 3, 1);
    assert_eq!(t.call("VM.start", [vm()]).await, Err(count));
    let nobody = Ref::from("OpaqueRef:nobody");
    let params = [vm(), Value::Bool(false), Value::Bool(false)];
    assert_eq!(t.call_as(&nobody, "VM.start", params.clone()).await, Err(ApiError::session_invalid(&nobody)));
    let wrong = t.call("VM.start", [vm(), Value::Bool(false), text("perhaps")]).await.unwrap_err();
    assert!(wrong.is("INTERNAL_ERROR") && wrong.params[0].contains("force"), "{wrong}");
    assert_eq!(t.call("VM.start", params).await, Ok(text("OpaqueRef:x false")));
    assert_eq!(t.call("VM.suspend", [vm()]).await, Err(ApiError::not_implemented("VM.suspend")));
    let bad_enum = t.call("VM.assert_operation_valid", [vm(), text("fly")]).await.unwrap_err();
    assert!(bad_enum.is("INTERNAL_ERROR"));
}

#[tokio::test]
async fn parameters_may_be_left_out_from_the_end() {
    let t = TestDaemon::new(vec![("VM.snapshot", |_, args| {
        Box::pin(async move { Ok(Value::Int(i64::try_from(args.refs("ignore_vdis")?.len()).unwrap_or(-1))) })
    })]);
    let (vm, name) = (text("OpaqueRef:x"), text("nightly"));
    assert_eq!(t.call("VM.snapshot", [vm.clone(), name.clone()]).await, Ok(Value::Int(0)));
    let ignored = Value::set(["OpaqueRef:d"]);
    assert_eq!(t.call("VM.snapshot", [vm.clone(), name.clone(), ignored.clone()]).await, Ok(Value::Int(1)));
    let much = t.call("VM.snapshot", [vm, name, ignored, text("more")]).await;
    assert_eq!(much, Err(ApiError::message_parameter_count_mismatch("VM.snapshot", 2, 4)));
}

#[tokio::test]
async fn roles_are_enforced() {
    let t = TestDaemon::new(vec![("VM.start", |_, _| Box::pin(async { Ok(Value::Void) }))]);
    let reader = t.daemon.sessions.open(&t.daemon.db, "reader", "", Role::ReadOnly, false).unwrap();
    let params = [text("OpaqueRef:x"), Value::Bool(false), Value::Bool(false)];
    let refused = t.call_as(reader.id(), "VM.start", params).await.unwrap_err();
    assert_eq!((&*refused.code, refused.params[0].as_str()), ("RBAC_PERMISSION_DENIED", "vm.start"));
    assert!(t.call_as(reader.id(), "VM.get_all", []).await.is_ok());
    assert!(t.call_as(reader.id(), "secret.get_all_records", []).await.unwrap_err().is("RBAC_PERMISSION_DENIED"));
    let pool = t.daemon.db.read(|s| s.only("pool")).unwrap();
    let refused = t.call_as(reader.id(), "pool.set_name_label", [Value::from(pool.id()), text("x")]).await;
    assert!(refused.unwrap_err().is("RBAC_PERMISSION_DENIED"));
}

#[tokio::test]
async fn implicit_messages_read_and_write_the_table() {
    let t = TestDaemon::new(Vec::new());
    let pool = t.call("pool.get_all", []).await.unwrap().as_set().unwrap()[0].clone();
    let uuid = t.call("pool.get_uuid", [pool.clone()]).await.unwrap();
    assert_eq!(t.call("pool.get_by_uuid", [uuid]).await, Ok(pool.clone()));
    assert_eq!(t.call("pool.get_by_uuid", [text("u")]).await, Err(ApiError::uuid_invalid("pool", "u")));
    let nothing = ApiError::handle_invalid("pool", "OpaqueRef:x");
    assert_eq!(t.call("pool.get_uuid", [text("OpaqueRef:x")]).await, Err(nothing));

    assert_eq!(t.call("pool.set_name_label", [pool.clone(), text("rice")]).await, Ok(Value::Void));
    assert_eq!(t.call("pool.get_name_label", [pool.clone()]).await, Ok(text("rice")));
    let entry = |key: &str| [pool.clone(), text(key), text("v")];
    assert_eq!(t.call("pool.add_to_other_config", entry("k")).await, Ok(Value::Void));
    let again = t.call("pool.add_to_other_config", entry("k")).await.unwrap_err();
    assert_eq!(again, ApiError::map_duplicate_key("pool", "other_config", pool.as_str().unwrap(), "k"));
    for _ in 0..2 {
        assert_eq!(t.call("pool.remove_from_other_config", [pool.clone(), text("k")]).await, Ok(Value::Void));
        assert_eq!(t.call("pool.add_tags", [pool.clone(), text("t")]).await, Ok(Value::Void));
    }
    assert_eq!(t.call("pool.get_tags", [pool.clone()]).await, Ok(Value::set(["t"])));
    assert_eq!(t.call("pool.remove_tags", [pool.clone(), text("t")]).await, Ok(Value::Void));
    assert_eq!(t.call("pool.get_tags", [pool.clone()]).await, Ok(Value::empty_set()));

    let found = t.call("role.get_all_records_where", [text("field \"name__label\" = \"read-only\"")]).await.unwrap();
    assert_eq!(found.as_map().unwrap().len(), 1);
    assert!(t.call("role.get_all_records_where", [text("field")]).await.unwrap_err().is("INVALID_VALUE"));
    let named = t.call("role.get_by_name_label", [text("pool-admin")]).await.unwrap();
    assert_eq!(named.as_set().unwrap().len(), 1);
}

#[tokio::test]
async fn every_record_of_every_listed_class_has_all_its_fields() {
    let t = TestDaemon::new(Vec::new());
    for class in tanada_xapi::classes::classes().iter().filter(|c| c.listed && !c.removed && c.name != "event") {
        let records = t.call(&format!("{}.get_all_records", class.name), []).await.unwrap();
        for record in records.as_map().unwrap().values() {
            for field in &class.fields {
                let value = record.get(field.name).unwrap_or_else(|| panic!("{}.{}", class.name, field.name));
                assert_eq!(field.ty.coerce(value.clone()).as_ref(), Ok(value));
            }
        }
    }
}

#[tokio::test]
async fn methods_are_listed_without_a_session_and_without_what_is_gone() {
    let t = TestDaemon::new(Vec::new());
    let listed = t.call_raw(LOCAL, "system.listMethods", vec![]).await.unwrap();
    let has = |name: &str| listed.as_set().unwrap().contains(&text(name));
    assert!(has("VM.get_all_records") && has("Async.VM.snapshot") && has("event.from") && has("SR.create"));
    assert!(!has("VMPP.get_all_records") && !has("VBD_metrics.get_all_records") && !has("Async.event.from"));
    assert_eq!(t.call_raw(LOCAL, "system.isAlive:x", vec![text("y")]).await, Ok(text("y")));
    assert_eq!(t.call("host.list_methods", []).await, Ok(listed));
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_call_alone() {
    let t = TestDaemon::new(vec![("VM.pause", |_, _| Box::pin(async { panic!("on purpose") }))]);
    let failed = t.call("VM.pause", [text("OpaqueRef:x")]).await.unwrap_err();
    assert!(failed.is("INTERNAL_ERROR"));
    assert!(t.call("VM.get_all", []).await.is_ok());
    assert_eq!(t.daemon.db.read(|s| s.count("task")), 0);
}

#[tokio::test]
async fn messages_are_kept_and_found() {
    let t = TestDaemon::new(Vec::new());
    let pool = t.daemon.db.read(|s| s.only("pool")).unwrap();
    let make = |uuid: &str| [text("ALARM"), Value::Int(3), text("Pool"), text(uuid), text("body")];
    let message = t.call("message.create", make(pool.uuid())).await.unwrap();
    assert!(t.call("message.create", make("u")).await.unwrap_err().is("UUID_INVALID"));
    let since = text("19700101T00:00:00Z");
    let found = t.call("message.get", [text("Pool"), text(pool.uuid()), since.clone()]).await.unwrap();
    assert_eq!(found.as_map().unwrap().keys().collect::<Vec<_>>(), [message.as_str().unwrap()]);
    let none = t.call("message.get", [text("VM"), text(pool.uuid()), since]).await;
    assert_eq!(none, Ok(Value::empty_map()));
    assert_eq!(t.call("message.destroy", [message]).await, Ok(Value::Void));
    assert_eq!(t.call("message.get_all", []).await, Ok(Value::empty_set()));
}

#[tokio::test]
async fn plain_objects_are_made_from_records() {
    let t = TestDaemon::new(Vec::new());
    let missing = t.call("secret.create", [Value::empty_map()]).await.unwrap_err();
    assert!(missing.params[0].contains("value"), "{missing}");
    let secret = t.call("secret.create", [Value::map([("value", "s3"), ("colour", "red")])]).await.unwrap();
    assert_eq!(t.call("secret.get_value", [secret.clone()]).await, Ok(text("s3")));
    assert_eq!(t.call("secret.destroy", [secret]).await, Ok(Value::Void));
}
