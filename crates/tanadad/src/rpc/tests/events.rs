use std::sync::Arc;

use tanada_xapi::{ApiError, Ref, Value};

use crate::db::View;
use crate::testing::TestDaemon;

struct Reply {
    events: Vec<(String, String, String)>,
    token: String,
    raw: Value,
}

/// `event.from`: (class, operation, reference) of each event.
async fn from(t: &TestDaemon, classes: &[&str], token: &str, timeout: f64) -> Result<Reply, ApiError> {
    let params = [Value::set(classes.iter().copied()), Value::from(token), Value::Float(timeout)];
    let raw = t.call("event.from", params).await?;
    let text = |event: &Value, key: &str| event.get(key).and_then(Value::as_str).unwrap().to_owned();
    let events = raw.get("events").and_then(Value::as_set).unwrap();
    let events = events.iter().map(|e| (text(e, "class"), text(e, "operation"), text(e, "ref"))).collect();
    let token = raw.get("token").and_then(Value::as_str).unwrap().to_owned();
    Ok(Reply { events, token, raw })
}

fn vm(t: &TestDaemon, name: &str) -> Ref {
    t.daemon.db.write(|tx| tx.create("VM", [("name_label", Value::from(name))])).unwrap()
}

fn rename(t: &TestDaemon, vm: &Ref, name: &str) {
    t.daemon.db.write(|tx| tx.set("VM", vm, "name_label", name)).unwrap();
}

fn event(class: &str, operation: &str, object: &Ref) -> (String, String, String) {
    (class.to_owned(), operation.to_owned(), object.to_string())
}

#[tokio::test]
async fn the_first_reply_is_everything_and_later_ones_are_differences() {
    let t = TestDaemon::new(Vec::new());
    let (kept, doomed) = (vm(&t, "kept"), vm(&t, "doomed"));
    let first = from(&t, &["VM"], "", 0.0).await.unwrap();
    assert_eq!(first.events, [event("vm", "add", &kept), event("vm", "add", &doomed)]);
    let counts = first.raw.get("valid_ref_counts").unwrap();
    assert_eq!((counts.get("vm"), counts.get("pool")), (Some(&Value::I4(2)), Some(&Value::I4(1))));
    assert_eq!((first.token.len(), first.token.find(',')), (41, Some(20)));

    let quiet = from(&t, &["vm"], &first.token, 0.0).await.unwrap();
    assert!(quiet.events.is_empty() && quiet.token >= first.token);

    rename(&t, &kept, "a");
    rename(&t, &kept, "b");
    t.daemon.db.write(|tx| tx.destroy("VM", &doomed)).unwrap();
    let (new, brief) = (vm(&t, "new"), vm(&t, "brief"));
    rename(&t, &new, "renamed");
    t.daemon.db.write(|tx| tx.destroy("VM", &brief)).unwrap();
    let next = from(&t, &["vm"], &first.token, 0.0).await.unwrap();
    assert_eq!(next.events, [event("vm", "add", &new), event("vm", "mod", &kept), event("vm", "del", &doomed)]);
    assert!(next.token > first.token);
    let snapshots: Vec<_> =
        next.raw.get("events").unwrap().as_set().unwrap().iter().map(|e| e.get("snapshot").cloned()).collect();
    let name = |s: &Option<Value>| s.as_ref().and_then(|s| s.get("name_label")).cloned();
    assert_eq!((name(&snapshots[0]), name(&snapshots[1])), (Some(Value::from("renamed")), Some(Value::from("b"))));
    assert_eq!(snapshots[2], None);
}

#[tokio::test]
async fn subscriptions_select_by_class_and_object() {
    let t = TestDaemon::new(Vec::new());
    let (one, two) = (vm(&t, "1"), vm(&t, "2"));
    let object = format!("vm/{one}");
    assert_eq!(from(&t, &[&object], "", 0.0).await.unwrap().events, [event("vm", "add", &one)]);
    assert!(from(&t, &["cat", "vm/", "vm/OpaqueRef:x"], "", 0.0).await.unwrap().events.is_empty());
    let all = from(&t, &["*"], "", 0.0).await.unwrap().events;
    assert!(all.contains(&event("vm", "add", &two)) && all.iter().any(|e| e.0 == "pool"));
    assert!(!all.iter().any(|e| ["session", "user", "secret"].contains(&e.0.as_str())));
    let wrong = from(&t, &["*"], "yesterday", 0.0).await.map(|_| ()).unwrap_err();
    assert_eq!(wrong, ApiError::event_from_token_parse_failure("yesterday"));
}

#[tokio::test]
async fn both_sides_of_a_relation_change() {
    let t = TestDaemon::new(Vec::new());
    let vm = vm(&t, "vm");
    let vdi = t.daemon.db.write(|tx| tx.create("VDI", [("name_label", Value::from("disk"))])).unwrap();
    let token = from(&t, &["*"], "", 0.0).await.unwrap().token;
    let vbd = t.daemon.db.write(|tx| tx.create("VBD", [("VM", Value::from(&vm)), ("VDI", Value::from(&vdi))])).unwrap();
    let events = from(&t, &["vm", "vdi", "vbd"], &token, 0.0).await.unwrap().events;
    assert_eq!(events[0], event("vbd", "add", &vbd));
    assert!(events.contains(&event("vm", "mod", &vm)) && events.contains(&event("vdi", "mod", &vdi)));
}

#[tokio::test]
async fn a_caller_waits_until_something_happens() {
    let t = Arc::new(TestDaemon::new(Vec::new()));
    let vm = vm(&t, "vm");
    let token = from(&t, &["vm"], "", 0.0).await.unwrap().token;
    let waiting = tokio::spawn({
        let (t, token) = (t.clone(), token.clone());
        async move { from(&t, &["vm"], &token, f64::INFINITY).await.map(|r| r.events) }
    });
    // A change that does not concern the caller wakes it to no effect.
    t.daemon.db.write(|tx| tx.create("network", [("name_label", Value::from("lan"))])).unwrap();
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    rename(&t, &vm, "renamed");
    assert_eq!(waiting.await.unwrap().unwrap(), [event("vm", "mod", &vm)]);
}

#[tokio::test]
async fn a_timeout_answers_nothing_and_a_later_token() {
    let t = TestDaemon::new(Vec::new());
    let token = from(&t, &["vm"], "", 0.0).await.unwrap().token;
    t.daemon.db.write(|tx| tx.create("network", [("name_label", Value::from("lan"))])).unwrap();
    let reply = from(&t, &["vm"], &token, 0.05).await.unwrap();
    assert!(reply.events.is_empty() && reply.token > token);
}

#[tokio::test]
async fn a_wait_ends_with_its_session_and_with_the_daemon() {
    let t = Arc::new(TestDaemon::new(Vec::new()));
    let token = from(&t, &["vm"], "", 0.0).await.unwrap().token;
    let wait =
        |t: Arc<TestDaemon>, token: String| async move { from(&t, &["vm"], &token, 1e300).await.map(|r| r.events) };
    let first = tokio::spawn(wait(t.clone(), token.clone()));
    tokio::task::yield_now().await;
    t.daemon.stopping.send_replace(true);
    assert_eq!(first.await.unwrap(), Ok(Vec::new()));
    t.daemon.stopping.send_replace(false);
    let second = tokio::spawn(wait(t.clone(), token));
    tokio::task::yield_now().await;
    t.daemon.sessions.close(&t.daemon.db, &t.session).unwrap();
    assert_eq!(second.await.unwrap(), Err(ApiError::session_invalid(&t.session)));
}

#[tokio::test]
async fn an_injected_event_lies_just_after_its_token() {
    let t = TestDaemon::new(Vec::new());
    let pool = t.daemon.db.read(|s| s.only("pool")).unwrap().id().clone();
    let token = t.call("event.inject", [Value::from("pool"), Value::from(&pool)]).await.unwrap();
    let token = token.as_str().unwrap().to_owned();
    assert_eq!(from(&t, &["pool"], &token, 0.0).await.unwrap().events, [event("pool", "mod", &pool)]);
    let wrong = t.call("event.inject", [Value::from("pool"), Value::from("OpaqueRef:x")]).await;
    assert_eq!(wrong, Err(ApiError::handle_invalid("pool", "OpaqueRef:x")));
}

#[tokio::test]
async fn messages_come_first() {
    let t = TestDaemon::new(Vec::new());
    let pool = t.daemon.db.read(|s| s.only("pool")).unwrap();
    let token = from(&t, &["*"], "", 0.0).await.unwrap().token;
    vm(&t, "vm");
    let params = ["ALARM", "3", "Pool", pool.uuid(), "body"].map(Value::from);
    let message = t.call("message.create", params).await.unwrap();
    let events = from(&t, &["*"], &token, 0.0).await.unwrap().events;
    assert_eq!(events[0], event("message", "add", &Ref::from(message.as_str().unwrap())));
    assert_eq!(events[1].0, "vm");
}

#[tokio::test]
async fn the_older_interface_hears_what_it_registered_for() {
    let t = TestDaemon::new(Vec::new());
    let none = t.call("event.next", []).await.unwrap_err();
    assert_eq!(none, ApiError::session_not_registered(&t.session));
    assert_eq!(t.call("event.register", [Value::set(["vm"])]).await, Ok(Value::Void));
    let vm = vm(&t, "vm");
    let events = t.call("event.next", []).await.unwrap();
    let [only] = events.as_set().unwrap() else { panic!("{events:?}") };
    assert_eq!((only.get("operation"), only.get("ref")), (Some(&Value::from("add")), Some(&Value::from(&vm))));
    assert_eq!(t.call("event.unregister", [Value::set(["vm"])]).await, Ok(Value::Void));
    assert!(t.call("event.next", []).await.unwrap_err().is("SESSION_NOT_REGISTERED"));
    let id = t.call("event.get_current_id", []).await.unwrap();
    assert_eq!(id.as_int(), i64::try_from(t.daemon.db.read(|s| s.generation())).ok());
}

/// A small generator, so that a failure names its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides
    }
}

/// One random change of the objects that `live` names.
fn change(t: &TestDaemon, dice: &mut Dice, live: &mut Vec<Ref>) {
    match dice.roll(4) {
        0 | 1 if !live.is_empty() => {
            let vm = live[dice.roll(live.len())].clone();
            let parent = live[dice.roll(live.len())].clone();
            rename(t, &vm, &dice.roll(5).to_string());
            t.daemon.db.write(|tx| tx.set("VM", &vm, "parent", &parent)).unwrap();
        }
        2 if !live.is_empty() => {
            let vm = live.swap_remove(dice.roll(live.len()));
            t.daemon.db.write(|tx| tx.destroy("VM", &vm)).unwrap();
        }
        _ => live.push(vm(t, "new")),
    }
}

#[tokio::test]
async fn a_cache_fed_by_events_equals_the_database_at_every_moment() {
    for seed in 0..40 {
        let t = TestDaemon::new(Vec::new());
        let (mut dice, mut live) = (Dice(seed), Vec::new());
        let (mut cache, mut token) = (std::collections::BTreeMap::new(), String::new());
        for _ in 0..30 {
            for _ in 0..dice.roll(6) {
                change(&t, &mut dice, &mut live);
            }
            let reply = from(&t, &["vm"], &token, 0.0).await.unwrap();
            for event in reply.raw.get("events").unwrap().as_set().unwrap() {
                let id = event.get("ref").unwrap().as_str().unwrap().to_owned();
                let known = cache.contains_key(&id);
                match (event.get("operation").unwrap().as_str().unwrap(), event.get("snapshot").cloned()) {
                    ("add", Some(snapshot)) if !known => drop(cache.insert(id, snapshot)),
                    ("mod", Some(snapshot)) if known => drop(cache.insert(id, snapshot)),
                    ("del", None) if known => drop(cache.remove(&id)),
                    other => panic!("seed {seed}: {other:?} for an object that is {known} known"),
                }
            }
            let count = reply.raw.get("valid_ref_counts").unwrap().get("vm").unwrap().as_int();
            assert_eq!(count, i64::try_from(cache.len()).ok(), "seed {seed}");
            token = reply.token;
            let records = t.call("VM.get_all_records", []).await.unwrap();
            assert_eq!(records, Value::Map(cache.clone()), "seed {seed}");
        }
    }
}
