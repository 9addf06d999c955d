//! Tasks: the visible side of work under way.
//!
//! ```text
//!   pending ──▶ success            complete(Ok)
//!      │   └──▶ failure            complete(Err)
//!      └─cancel()─▶ cancelling ──▶ cancelled (the work noticed) | success | failure (it did not)
//! ```
//! A task that ended never changes its status again. A client that sees an end may read `result` and `error_info`:
//! all fields of an end are written in one transaction.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tanada_driver::Moved;
use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value, xmlrpc};
use tokio::sync::watch;

use crate::context::Daemon;
use crate::db::{Record, Tx, View};

/// Tasks kept at all; beyond that the oldest ended ones go.
pub const TASKS_MAX: usize = 200;
/// Tasks that have not ended; beyond that no new ones are made.
pub const PENDING_MAX: usize = 1000;
/// An ended task is kept this long.
pub const ENDED_KEPT_SECONDS: i64 = 65 * 60;
/// A task that no work is attached to (made by a client) is kept this long.
pub const PENDING_KEPT_SECONDS: i64 = 24 * 60 * 60;

/// The work that is attached to tasks.
#[derive(Default)]
pub struct Tasks {
    running: Mutex<HashMap<Ref, watch::Sender<bool>>>,
}

impl Tasks {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ref, watch::Sender<bool>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the task work attached to it?
    pub fn is_running(&self, task: &Ref) -> bool {
        self.lock().contains_key(task)
    }

    /// Asks the work to end; `false` when there is none.
    pub fn request_cancel(&self, task: &Ref) -> bool {
        self.lock().get(task).is_some_and(|cancel| {
            cancel.send_replace(true);
            true
        })
    }

    fn attach(&self, task: &Ref) -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(false);
        self.lock().insert(task.clone(), sender);
        receiver
    }

    fn detach(&self, task: &Ref) {
        self.lock().remove(task);
    }
}

/// A piece of work's handle on its task: progress, cancellation, end.
#[derive(Clone)]
pub struct TaskHandle {
    id: Ref,
    /// `None` for work without a visible task.
    daemon: Option<Arc<Daemon>>,
    cancel: watch::Receiver<bool>,
    /// This handle's share of the whole: 0.0 and 1.0 of it are these.
    from: f64,
    to: f64,
}

impl TaskHandle {
    /// For work that no client asked for: progress goes nowhere, nothing cancels it.
    pub fn internal() -> TaskHandle {
        let (_, cancel) = watch::channel(false);
        TaskHandle { id: Ref::null(), daemon: None, cancel, from: 0.0, to: 1.0 }
    }

    /// Makes a task record and attaches to it.
    pub fn create(daemon: &Arc<Daemon>, label: &str, description: &str) -> ApiResult<TaskHandle> {
        let id = daemon.db.write(|tx| create_record(tx, label, description))?;
        Ok(TaskHandle::attach(daemon, &id))
    }

    /// Takes over a task that a client made. One that work is attached to already is not another's to end.
    pub fn adopt(daemon: &Arc<Daemon>, id: &Ref) -> ApiResult<TaskHandle> {
        let task = daemon.db.read(|s| s.get("task", id))?;
        if daemon.tasks.is_running(id) {
            return Err(ApiError::operation_not_allowed(format!("task {id} belongs to other work")));
        }
        if is_ended(&task) {
            return Err(ApiError::operation_not_allowed(format!("task {id} has ended already")));
        }
        daemon.db.write(|tx| {
            tx.set("task", id, "progress", 0.0)?;
            tx.set("task", id, "allowed_operations", Value::set(["cancel", "destroy"]))
        })?;
        let handle = TaskHandle::attach(daemon, id);
        if task.str("status") == "cancelling" {
            daemon.tasks.request_cancel(id);
        }
        Ok(handle)
    }

    fn attach(daemon: &Arc<Daemon>, id: &Ref) -> TaskHandle {
        let cancel = daemon.tasks.attach(id);
        TaskHandle { id: id.clone(), daemon: Some(daemon.clone()), cancel, from: 0.0, to: 1.0 }
    }

    /// Null for internal work.
    pub fn id(&self) -> &Ref {
        &self.id
    }

    /// A handle whose progress runs within this part of ours: `part(0.2, 0.7)`.
    pub fn part(&self, from: f64, to: f64) -> TaskHandle {
        let scale = |p: f64| self.from + (self.to - self.from) * p.clamp(0.0, 1.0);
        TaskHandle { from: scale(from), to: scale(to), ..self.clone() }
    }

    /// Shows how much is done, 0.0 to 1.0. Written in steps of a percent, so it may be called often.
    pub fn progress(&self, done: f64) {
        let Some(daemon) = &self.daemon else { return };
        let done = (self.from + (self.to - self.from) * done.clamp(0.0, 1.0)).clamp(0.0, 1.0);
        let shown = daemon.db.read(|s| s.find("task", &self.id).map(|t| t.float("progress")));
        if shown.is_some_and(|shown| (done - shown).abs() >= 0.01) {
            let set = daemon.db.write(|tx| match tx.find("task", &self.id) {
                Some(task) if !is_ended(&task) => tx.set("task", &self.id, "progress", done),
                _ => Ok(()),
            });
            if let Err(error) = set {
                tracing::warn!(task = %self.id, %error, "progress could not be shown");
            }
        }
    }

    /// Adds to what the task's `other_config` says was moved: `bytes_moved_by_host` and `bytes_moved_by_storage`.
    pub fn moved(&self, moved: Moved) {
        let Some(daemon) = &self.daemon else { return };
        let told = daemon.db.write(|tx| {
            let Some(task) = tx.find("task", &self.id) else { return Ok(()) };
            let sums =
                [("bytes_moved_by_host", moved.bytes_by_host), ("bytes_moved_by_storage", moved.bytes_by_storage)];
            for (key, more) in sums {
                let before: u64 = task.entry("other_config", key).and_then(|text| text.parse().ok()).unwrap_or(0);
                tx.put_entry("task", &self.id, "other_config", key, before.saturating_add(more).to_string())?;
            }
            Ok(())
        });
        if let Err(error) = told {
            tracing::warn!(task = %self.id, %error, "what was moved could not be told");
        }
    }

    /// Puts a word for whoever looks at the task into its `other_config`.
    pub fn note(&self, key: &str, value: &str) {
        let Some(daemon) = &self.daemon else { return };
        let told = daemon.db.write(|tx| match tx.find("task", &self.id) {
            Some(_) => tx.put_entry("task", &self.id, "other_config", key, value.to_owned()).map(drop),
            None => Ok(()),
        });
        if let Err(error) = told {
            tracing::warn!(task = %self.id, key, %error, "a task's note could not be kept");
        }
    }

    pub fn is_cancelled(&self) -> bool {
        *self.cancel.borrow()
    }

    /// `TASK_CANCELLED` when somebody asked to cancel.
    pub fn check(&self) -> ApiResult<()> {
        if self.is_cancelled() { Err(ApiError::task_cancelled(&self.id)) } else { Ok(()) }
    }

    /// Waits until somebody asks to cancel.
    pub async fn cancelled(&self) {
        let mut cancel = self.cancel.clone();
        if cancel.wait_for(|asked| *asked).await.is_err() {
            // The task has ended or cannot be cancelled: nobody will ask any more.
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` until it ends or somebody asks to cancel; then it is dropped and the answer is `TASK_CANCELLED`.
    pub async fn until_cancelled<T>(&self, work: impl Future<Output = T>) -> ApiResult<T> {
        tokio::select! {
            biased;
            () = self.cancelled() => Err(ApiError::task_cancelled(&self.id)),
            result = work => Ok(result),
        }
    }

    /// From now on the task cannot be cancelled (past the point of no return).
    pub fn forbid_cancel(&self) {
        let Some(daemon) = &self.daemon else { return };
        let set = daemon.db.write(|tx| tx.set("task", &self.id, "allowed_operations", Value::set(["destroy"])));
        if let Err(error) = set {
            tracing::warn!(task = %self.id, %error, "a task could not be marked");
        }
    }

    /// Ends the task. A later end is ignored.
    pub fn complete(&self, result: &ApiResult<Value>) {
        let Some(daemon) = &self.daemon else { return };
        daemon.tasks.detach(&self.id);
        if let Err(error) = daemon.db.write(|tx| complete_record(tx, &self.id, result)) {
            tracing::error!(task = %self.id, %error, "a task could not be ended");
        }
    }

    /// Ends the work without leaving a record: for calls whose result the caller gets directly.
    pub fn dismiss(&self) {
        let Some(daemon) = &self.daemon else { return };
        daemon.tasks.detach(&self.id);
        let dismissed = daemon.db.write(|tx| match tx.find("task", &self.id) {
            Some(_) => tx.destroy("task", &self.id),
            None => Ok(()),
        });
        if let Err(error) = dismissed {
            tracing::error!(task = %self.id, %error, "a task could not be removed");
        }
    }
}

/// A pending task. `TOO_MANY_PENDING_TASKS` when too many have not ended.
pub fn create_record(tx: &mut Tx<'_>, label: &str, description: &str) -> ApiResult<Ref> {
    make_room(tx)?;
    let host = tx.all("host").first().map_or_else(Ref::null, |h| h.id().clone());
    tx.create(
        "task",
        [
            ("name_label", Value::from(label)),
            ("name_description", Value::from(description)),
            ("created", Value::DateTime(DateTime::now())),
            ("status", Value::from("pending")),
            ("type", Value::from("<none/>")),
            ("resident_on", Value::from(host)),
            ("allowed_operations", Value::set(["cancel", "destroy"])),
        ],
    )
}

fn make_room(tx: &mut Tx<'_>) -> ApiResult<()> {
    let tasks = tx.all("task");
    if tasks.len() < TASKS_MAX {
        return Ok(());
    }
    let (ended, pending): (Vec<_>, Vec<_>) = tasks.iter().partition(|t| is_ended(t));
    if pending.len() >= PENDING_MAX {
        return Err(ApiError::too_many_pending_tasks());
    }
    // In order of creation, so the oldest go.
    let surplus = tasks.len() + 1 - TASKS_MAX;
    ended.iter().take(surplus).try_for_each(|t| tx.destroy("task", t.id()))
}

/// Removes tasks that nobody will ask about any more.
pub fn collect_garbage(daemon: &Daemon) -> ApiResult<()> {
    let now = DateTime::now().unix();
    let old = |t: &Record| match is_ended(t) {
        true => now - t.datetime("finished").unix() > ENDED_KEPT_SECONDS,
        false => now - t.datetime("created").unix() > PENDING_KEPT_SECONDS && !daemon.tasks.is_running(t.id()),
    };
    daemon.db.write(|tx| {
        let tasks = tx.all("task");
        tasks.iter().filter(|t| old(t)).try_for_each(|t| tx.destroy("task", t.id()))
    })
}

pub fn is_ended(task: &Record) -> bool {
    !matches!(task.str("status"), "pending" | "cancelling")
}

/// Writes the end of a task, unless it has ended or is gone.
pub fn complete_record(tx: &mut Tx<'_>, id: &Ref, result: &ApiResult<Value>) -> ApiResult<()> {
    let Some(task) = tx.find("task", id).filter(|t| !is_ended(t)) else { return Ok(()) };
    let (status, result, error) = match result {
        Ok(value) => ("success", xmlrpc::encode_value(value), Vec::new()),
        Err(e) if e.is("TASK_CANCELLED") => ("cancelled", String::new(), e.to_list()),
        Err(e) => ("failure", String::new(), e.to_list()),
    };
    if task.map("current_operations").values().any(|op| op.as_str() == Some("destroy")) {
        return tx.destroy("task", id);
    }
    tx.set_all(
        "task",
        id,
        [
            ("allowed_operations", Value::empty_set()),
            ("current_operations", Value::empty_map()),
            ("finished", Value::DateTime(DateTime::now())),
            ("progress", Value::Float(1.0)),
            ("result", Value::from(result)),
            ("error_info", Value::from(error)),
            ("status", Value::from(status)),
        ],
    )
}
