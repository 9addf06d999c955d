use std::sync::Arc;

use tanada_xapi::{ApiError, Ref, Value};

use crate::context::Handlers;
use crate::db::{Record, View};
use crate::rpc::task::{self, TASKS_MAX, TaskHandle};
use crate::testing::TestDaemon;

/// `VM.pause` answers a reference, `VM.unpause` fails, `VM.suspend` waits to be cancelled.
fn handlers() -> Handlers {
    vec![
        ("VM.pause", |_, _| Box::pin(async { Ok(Value::from("OpaqueRef:done")) })),
        ("VM.unpause", |_, _| Box::pin(async { Err(ApiError::vm_missing_pv_drivers("vm")) })),
        ("VM.suspend", |ctx, _| Box::pin(async move { ctx.task.until_cancelled(std::future::pending()).await })),
    ]
}

async fn start(t: &TestDaemon, method: &str) -> Ref {
    let task = t.call(method, [Value::from("OpaqueRef:x")]).await.unwrap();
    Ref::from(task.as_str().unwrap())
}

fn look(t: &TestDaemon, task: &Ref) -> Option<Arc<Record>> {
    t.daemon.db.read(|s| s.find("task", task))
}

/// Waits until the task has ended.
async fn end(t: &TestDaemon, task: &Ref) -> Arc<Record> {
    let mut changed = t.daemon.db.changed();
    loop {
        changed.borrow_and_update();
        match look(t, task) {
            Some(record) if task::is_ended(&record) => return record,
            _ => changed.changed().await.unwrap(),
        }
    }
}

#[tokio::test]
async fn an_asynchronous_call_answers_a_task_that_ends_with_the_result() {
    let t = TestDaemon::new(handlers());
    let task = start(&t, "Async.VM.pause").await;
    let ended = end(&t, &task).await;
    assert_eq!(ended.str("name_label"), "Async.VM.pause");
    assert_eq!((ended.str("status"), ended.str("result")), ("success", "<value>OpaqueRef:done</value>"));
    assert_eq!(ended.float("progress"), 1.0);
    assert!(ended.set("allowed_operations").is_empty() && ended.set("error_info").is_empty());
    assert!(ended.datetime("finished") >= ended.datetime("created"));

    let task = start(&t, "Async.VM.unpause").await;
    let ended = end(&t, &task).await;
    assert_eq!((ended.str("status"), ended.str("result")), ("failure", ""));
    assert_eq!(ended.strings("error_info"), ["VM_MISSING_PV_DRIVERS", "vm"]);

    assert_eq!(t.call("task.cancel", [Value::from(&task)]).await, Ok(Value::Void), "after the end: nothing to do");
    assert_eq!(t.call("task.destroy", [Value::from(&task)]).await, Ok(Value::Void));
    assert!(look(&t, &task).is_none());
}

#[tokio::test]
async fn work_is_cancelled_when_asked() {
    let t = TestDaemon::new(handlers());
    let task = start(&t, "Async.VM.suspend").await;
    assert_eq!(t.call("task.cancel", [Value::from(&task)]).await, Ok(Value::Void));
    let ended = end(&t, &task).await;
    assert_eq!(ended.str("status"), "cancelled");
    assert_eq!(ended.strings("error_info"), ["TASK_CANCELLED", task.as_str()]);
}

#[tokio::test]
async fn a_task_past_the_point_of_no_return_cannot_be_cancelled() {
    let t = TestDaemon::new(Vec::new());
    let task = TaskHandle::create(&t.daemon, "work", "").unwrap();
    task.forbid_cancel();
    let refused = t.call("task.cancel", [Value::from(task.id())]).await.unwrap_err();
    assert!(refused.is("OPERATION_NOT_ALLOWED"));
    assert_eq!(task.check(), Ok(()));
}

#[tokio::test]
async fn a_destroyed_task_goes_when_its_work_ends() {
    let t = TestDaemon::new(Vec::new());
    let task = TaskHandle::create(&t.daemon, "work", "").unwrap();
    assert_eq!(t.call("task.destroy", [Value::from(task.id())]).await, Ok(Value::Void));
    assert!(look(&t, task.id()).is_some());
    task.complete(&Ok(Value::Void));
    assert!(look(&t, task.id()).is_none());
}

#[tokio::test]
async fn a_clients_task_is_the_clients_to_end() {
    let t = TestDaemon::new(Vec::new());
    let make = || async {
        let task = t.call("task.create", [Value::from("upload"), Value::from("of a disk")]).await.unwrap();
        Ref::from(task.as_str().unwrap())
    };
    let own = make().await;
    let set = |task: &Ref, field: &str, value: Value| (format!("task.set_{field}"), [Value::from(task), value]);
    for (field, value) in [("progress", Value::Float(0.5)), ("status", Value::from("success"))] {
        let (method, params) = set(&own, field, value);
        assert_eq!(t.call(&method, params).await, Ok(Value::Void));
    }
    let ended = look(&t, &own).unwrap();
    assert_eq!((ended.str("status"), ended.float("progress")), ("success", 1.0));
    let (method, params) = set(&own, "status", Value::from("failure"));
    assert_eq!(t.call(&method, params).await, Ok(Value::Void));
    assert_eq!(look(&t, &own).unwrap().str("status"), "success", "an end is final");

    let unattached = make().await;
    assert_eq!(t.call("task.cancel", [Value::from(&unattached)]).await, Ok(Value::Void));
    assert_eq!(look(&t, &unattached).unwrap().str("status"), "cancelled");
    let adopted = TaskHandle::adopt(&t.daemon, &unattached).map(|_| ()).unwrap_err();
    assert!(adopted.is("OPERATION_NOT_ALLOWED"));
}

#[tokio::test]
async fn progress_runs_within_its_part_and_never_after_the_end() {
    let t = TestDaemon::new(Vec::new());
    let task = TaskHandle::create(&t.daemon, "work", "").unwrap();
    let shown = || look(&t, task.id()).unwrap().float("progress");
    task.part(0.5, 1.0).part(0.0, 0.5).progress(1.0);
    assert_eq!(shown(), 0.75);
    task.progress(7.0);
    assert_eq!(shown(), 1.0);
    task.complete(&Ok(Value::Void));
    task.progress(0.1);
    assert_eq!(shown(), 1.0);
    TaskHandle::internal().progress(0.5);
}

#[tokio::test]
async fn ended_tasks_make_room_for_new_ones() {
    let t = TestDaemon::new(Vec::new());
    let first = TaskHandle::create(&t.daemon, "pending", "").unwrap();
    for _ in 0..TASKS_MAX + 10 {
        TaskHandle::create(&t.daemon, "work", "").unwrap().complete(&Ok(Value::Void));
    }
    assert_eq!(t.daemon.db.read(|s| s.count("task")), TASKS_MAX);
    assert!(look(&t, first.id()).is_some(), "work under way is never dropped");
}

/// Waits until no task is left.
async fn all_gone(t: &TestDaemon) {
    let mut changed = t.daemon.db.changed();
    while t.daemon.db.read(|s| s.count("task")) > 0 {
        changed.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_neither_half_done_work_nor_a_task() {
    let t = TestDaemon::new(vec![("VM.pause", |ctx, _| {
        Box::pin(async move {
            ctx.task.cancelled().await;
            ctx.daemon.db.write(|tx| tx.create("network", [("name_label", Value::from("done"))])).map(Value::from)
        })
    })]);
    let mut changed = t.daemon.db.changed();
    {
        let call = t.call("VM.pause", [Value::from("OpaqueRef:x")]);
        tokio::pin!(call);
        while t.daemon.db.read(|s| s.count("task")) == 0 {
            tokio::select! {
                _ = &mut call => panic!("the work did not wait"),
                seen = changed.changed() => seen.unwrap(),
            }
        }
        // Here the caller goes away.
    }
    let task = t.daemon.db.read(|s| s.only("task")).unwrap();
    assert_eq!(task.str("name_label"), "VM.pause");
    assert_eq!(t.call("task.cancel", [Value::from(task.id())]).await, Ok(Value::Void));
    all_gone(&t).await;
    assert_eq!(t.daemon.db.read(|s| s.by_name("network", "done").len()), 1);
}

#[tokio::test]
async fn a_task_with_work_is_not_taken_over() {
    let t = TestDaemon::new(handlers());
    let task = start(&t, "Async.VM.suspend").await;
    let Err(error) = TaskHandle::adopt(&t.daemon, &task) else { panic!("another's task was taken over") };
    assert!(error.is("OPERATION_NOT_ALLOWED"), "{error}");
    assert_eq!(look(&t, &task).unwrap().str("status"), "pending");
    t.call("task.cancel", [Value::from(&task)]).await.unwrap();
    assert_eq!(end(&t, &task).await.str("status"), "cancelled");
    let own = Ref::from(t.call("task.create", [Value::from("t"), Value::from("")]).await.unwrap().as_str().unwrap());
    let handle = TaskHandle::adopt(&t.daemon, &own).unwrap();
    assert!(TaskHandle::adopt(&t.daemon, &own).is_err());
    handle.complete(&Ok(Value::Void));
    assert_eq!(look(&t, &own).unwrap().str("status"), "success");
}
