use serde_json::json;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::{Db, View};

fn disk(db: &Db, sr: &Ref, name: &str) -> Ref {
    db.write(|tx| tx.create("VDI", [("name_label", Value::from(name)), ("SR", Value::from(sr))])).unwrap()
}

fn repository(db: &Db) -> Ref {
    db.write(|tx| tx.create("SR", [("name_label", Value::from("fast"))])).unwrap()
}

fn all_fields_are_typed(db: &Db, class: &str) {
    db.read(|s| {
        for record in s.all(class) {
            for field in &record.class().fields {
                let value = record.value(field.name).clone();
                assert_eq!(field.ty.coerce(value.clone()), Ok(value), "{class}.{}", field.name);
            }
        }
    });
}

#[test]
fn objects_survive_a_restart_and_relations_are_derived_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let db = Db::open(&path).unwrap();
    let sr = repository(&db);
    let first = disk(&db, &sr, "a");
    let second = disk(&db, &sr, "b");
    let snapshot =
        db.write(|tx| tx.create("VDI", [("snapshot_of", Value::from(&first)), ("SR", Value::from(&sr))])).unwrap();
    db.write(|tx| tx.put_entry("VDI", &first, "other_config", "k", "v")).unwrap();
    db.write(|tx| tx.create("task", [("name_label", Value::from("gone"))])).unwrap();
    let intent = db.write(|tx| tx.put_intent("vdi-destroy", json!({"vdi": second.as_str()}))).unwrap();
    drop(db);

    let db = Db::open(&path).unwrap();
    db.read(|s| {
        let sr = s.get("SR", &sr).unwrap();
        assert_eq!(sr.refs("VDIs"), [first.clone(), second.clone(), snapshot.clone()]);
        assert_eq!(s.get("VDI", &first).unwrap().refs("snapshots"), std::slice::from_ref(&snapshot));
        assert_eq!(s.get("VDI", &first).unwrap().entry("other_config", "k"), Some("v"));
        assert_eq!(s.count("task"), 0);
        let names: Vec<_> = s.all("VDI").iter().map(|r| r.str("name_label").to_owned()).collect();
        assert_eq!(names, ["a", "b", ""]);
    });
    let intents = db.intents().unwrap();
    assert_eq!((intents[0].id.as_str(), intents[0].kind.as_str()), (intent.as_str(), "vdi-destroy"));
    db.write(|tx| {
        tx.clear_intent(&intent);
        Ok(())
    })
    .unwrap();
    assert_eq!(db.intents().unwrap(), []);
    all_fields_are_typed(&db, "VDI");
    all_fields_are_typed(&db, "SR");
}

#[test]
fn a_failed_transaction_changes_nothing() {
    let db = Db::in_memory().unwrap();
    let sr = repository(&db);
    let generation = db.read(|s| s.generation());
    let failed: ApiResult<()> = db.write(|tx| {
        let vdi = tx.create("VDI", [("SR", Value::from(&sr))])?;
        tx.set("SR", &sr, "name_label", "changed")?;
        tx.put_intent("x", json!({}))?;
        assert_eq!(tx.get("SR", &sr)?.refs("VDIs"), [vdi]);
        Err(ApiError::sr_not_empty())
    });
    assert!(failed.unwrap_err().is("SR_NOT_EMPTY"));
    db.read(|s| {
        assert_eq!((s.count("VDI"), s.generation()), (0, generation));
        assert_eq!(s.get("SR", &sr).unwrap().str("name_label"), "fast");
        assert!(s.get("SR", &sr).unwrap().refs("VDIs").is_empty());
    });
    assert_eq!(db.intents().unwrap(), []);
}

#[test]
fn a_refused_commit_changes_nothing_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let db = Db::open(&path).unwrap();
    let sr = repository(&db);
    // Another program holds the write lock, so the commit fails.
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = db.write(|tx| tx.set("SR", &sr, "name_label", "changed")).unwrap_err();
    assert!(error.is("INTERNAL_ERROR") && error.params[0].contains("lock"), "{error}");
    assert_eq!(db.read(|s| s.get("SR", &sr).unwrap().str("name_label").to_owned()), "fast");
    other.execute_batch("ROLLBACK").unwrap();
    db.write(|tx| tx.set("SR", &sr, "name_label", "changed")).unwrap();
}

#[test]
fn relations_follow_every_change() {
    let db = Db::in_memory().unwrap();
    let (one, two) = (repository(&db), repository(&db));
    let vdi = disk(&db, &one, "a");
    let members = |sr: &Ref| db.read(|s| s.get("SR", sr).unwrap().refs("VDIs"));
    db.write(|tx| tx.set("VDI", &vdi, "SR", &two)).unwrap();
    assert_eq!((members(&one), members(&two)), (vec![], vec![vdi.clone()]));
    assert!(db.write(|tx| tx.set("SR", &one, "VDIs", Value::set([vdi.as_str()]))).is_err());
    db.write(|tx| tx.destroy("VDI", &vdi)).unwrap();
    assert_eq!(members(&two), []);
    // A snapshot outlives its source; the source made again under its reference finds it.
    let source = db.write(|tx| tx.create("VM", [("name_label", Value::from("vm"))])).unwrap();
    let snapshot = db.write(|tx| tx.create("VM", [("snapshot_of", Value::from(&source))])).unwrap();
    db.write(|tx| tx.destroy("VM", &source)).unwrap();
    assert_eq!(db.read(|s| s.get("VM", &snapshot).unwrap().reference("snapshot_of")), source);
    let none: [(&str, Value); 0] = [];
    db.write(|tx| tx.create_as("VM", source.clone(), none)).unwrap();
    assert_eq!(db.read(|s| s.get("VM", &source).unwrap().refs("snapshots")), [snapshot]);
}

#[test]
fn uuids_are_unique_and_fields_keep_their_types() {
    let db = Db::in_memory().unwrap();
    let sr = repository(&db);
    let uuid = db.read(|s| s.get("SR", &sr).unwrap().uuid().to_owned());
    assert_eq!(db.read(|s| s.by_uuid("SR", &uuid).unwrap().id().clone()), sr);
    let again = db.write(|tx| tx.create("SR", [("uuid", Value::from(&uuid))])).unwrap_err();
    assert!(again.is("DB_UNIQUENESS_CONSTRAINT_VIOLATION"));
    db.write(|tx| tx.set("SR", &sr, "uuid", "other")).unwrap();
    assert!(db.read(|s| s.by_uuid("SR", &uuid)).unwrap_err().is("UUID_INVALID"));
    assert_eq!(db.read(|s| s.by_uuid("SR", "other").unwrap().id().clone()), sr);
    for (field, value) in [("no_such_field", Value::from("")), ("physical_size", Value::from("x"))] {
        assert!(db.write(|tx| tx.set("SR", &sr, field, value)).unwrap_err().is("INTERNAL_ERROR"));
    }
    let missing = db.write(|tx| tx.set("SR", &Ref::from("OpaqueRef:x"), "name_label", "y")).unwrap_err();
    assert_eq!(missing, ApiError::handle_invalid("SR", "OpaqueRef:x"));
}

#[test]
fn generations_move_only_with_changes_and_deletions_are_remembered() {
    let db = Db::in_memory().unwrap();
    let sr = repository(&db);
    let changed = db.changed();
    let at = *changed.borrow();
    db.write(|tx| tx.set("SR", &sr, "name_label", "fast")).unwrap();
    assert_eq!(*changed.borrow(), at, "an equal value is no change");
    db.write(|tx| tx.touch("SR", &sr)).unwrap();
    assert_eq!(*changed.borrow(), at + 1);
    db.read(|s| assert_eq!(s.changed_since("SR", at).count(), 1));
    db.write(|tx| tx.destroy("SR", &sr)).unwrap();
    db.read(|s| {
        let last = s.deletions().next_back().unwrap();
        assert_eq!((last.class, &last.id, last.generation), ("SR", &sr, at + 2));
        assert!(last.created_generation <= at);
    });
}

#[test]
fn secrets_are_sealed_on_disk_and_open_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let db = Db::open(&path).unwrap();
    let secret = db.write(|tx| tx.create("secret", [("value", Value::from("geheim"))])).unwrap();
    drop(db);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let content = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!content.windows(6).any(|w| w == b"geheim"));
    }
    let db = Db::open(&path).unwrap();
    assert_eq!(db.read(|s| s.get("secret", &secret).unwrap().str("value").to_owned()), "geheim");
    drop(db);
    std::fs::write(dir.path().join("secret.key"), [7; 32]).unwrap();
    let Err(error) = Db::open(&path) else { panic!("opened under another key") };
    assert!(format!("{error:#}").contains(secret.as_str()), "{error:#}");
}

/// Whatever happened, and in the middle of a transaction: the index says what a look at everything says.
fn index_is_right(view: &impl View, values: &[Ref], what: &str) {
    for (class, field) in [("VBD", "VM"), ("VBD", "VDI"), ("VM", "suspend_VDI"), ("VM", "snapshot_of")] {
        for value in values {
            let of = |records: Vec<std::sync::Arc<super::Record>>| -> Vec<Ref> {
                records.iter().map(|record| record.id().clone()).collect()
            };
            let mut all = view.all(class);
            all.retain(|record| record.reference(field) == *value && !value.is_null());
            assert_eq!(of(view.having(class, field, value.as_str())), of(all), "{what}: {class}.{field} = {value}");
        }
    }
}

#[test]
fn the_index_agrees_with_a_look_at_everything() {
    let db = Db::in_memory().unwrap();
    // References that objects have, had, or will have: a record may name what is gone.
    let ids: Vec<Ref> = (0..6).map(|_| Ref::random()).chain([Ref::null()]).collect();
    let mut random = 12_345_u64;
    let mut below = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    let mut seen = 0;
    for round in 0..300 {
        let generation = db.read(|state| state.generation());
        db.write(|tx| {
            for _ in 0..=below(4) {
                let (class, fields): (&str, &[&str]) =
                    [("VM", &["suspend_VDI", "snapshot_of"][..]), ("VBD", &["VM", "VDI"]), ("VDI", &[])][below(3)];
                let (id, value, field) = (&ids[below(6)], &ids[below(7)], below(2));
                match (tx.find(class, id), below(3)) {
                    (None, _) => drop(tx.create_as::<&str>(class, id.clone(), [])?),
                    (Some(_), 0) => tx.destroy(class, id)?,
                    (Some(_), _) if fields.is_empty() => tx.touch(class, id)?,
                    (Some(_), _) => tx.set(class, id, fields[field], value)?,
                }
            }
            index_is_right(tx, &ids, &format!("in round {round}"));
            Ok(())
        })
        .unwrap();
        db.read(|state| {
            index_is_right(state, &ids, &format!("after round {round}"));
            for class in ["VM", "VBD", "VDI"] {
                for since in [seen, generation] {
                    let mut changed: Vec<_> = state.changed_since(class, since).map(|r| r.id().clone()).collect();
                    let all = state.all(class);
                    let later = all.iter().filter(|record| record.modified_generation() > since);
                    let mut later: Vec<_> = later.map(|record| record.id().clone()).collect();
                    changed.sort();
                    later.sort();
                    assert_eq!(changed, later, "{class} after round {round}");
                }
            }
        });
        if round % 10 == 0 {
            seen = generation;
        }
    }
}
