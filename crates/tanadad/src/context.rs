//! What a handler of a message gets: the daemon, the session, its task and its arguments.
//!
//! A message is declared in the class table of `tanada-xapi`; a handler gives it a body. Arity, types, references of the
//! session, permissions and the task are dealt with before the handler runs, `Async.` variants come from the same
//! handler. A declared message without a handler answers `NOT_IMPLEMENTED`. A handler for an implicit message
//! (`VM.set_name_label`) takes the place of the built-in one.
//!
//! ```text
//! pub fn handlers() -> Handlers {
//!     vec![("VDI.resize", |ctx, args| Box::pin(resize(ctx, args)))]
//! }
//!
//! async fn resize(ctx: CallContext, args: Args) -> ApiResult<Value> {
//!     let (vdi, size) = (args.reference("vdi")?, args.int("size")?);
//!     // Checked and marked in one transaction; the mark goes when the guard is dropped.
//!     let _busy = ctx.begin("VDI", &vdi, "resize", |tx| check_resize(tx, &vdi))?;
//!     ctx.task.progress(0.1);
//!     let reached = ctx.task.until_cancelled(driver_resize(&ctx, &vdi, size)).await??;
//!     ctx.daemon.db.write(|tx| tx.set("VDI", &vdi, "virtual_size", reached))?;
//!     Ok(Value::Void)
//! }
//! ```
//!
//! Parameters are named as in the table (`VM.snapshot`: `vm`, `new_name`, `ignore_vdis`); the record of a constructor
//! is `args`, the object of a destructor `self`.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tanada_quiesce::pace::Pace;
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};
use tokio::sync::watch;

use crate::config::Config;
use crate::db::{Db, Tx};
use crate::nbd::Nbd;
use crate::ops::cbt;
use crate::ops::intents::Left;
use crate::ops::machine::turn::Turns;
use crate::ops::throw_away::Sweeping;
use crate::rpc::event::Registrations;
use crate::rpc::login::Passwords;
use crate::rpc::methods::Methods;
use crate::rpc::session::{Session, Sessions};
use crate::rpc::task::{TaskHandle, Tasks};
use crate::rpc::{builtin, event, settings};
use crate::schedule::Schedules;
use crate::storage::Storage;
use crate::transfer::rate::Rates;
use crate::vmm::Vmm;
use crate::vmm::host::Host;

/// The body of a message.
pub type Handler = fn(CallContext, Args) -> BoxFuture<'static, ApiResult<Value>>;

/// `("VM.snapshot", handler)`.
pub type Handlers = Vec<(&'static str, Handler)>;

/// Everything that lives as long as the process. Parts add their registries as fields of their own types,
/// made by `Default` or from the configuration in [`Daemon::new`], and filled by their `start` functions.
pub struct Daemon {
    pub config: Config,
    pub db: Db,
    pub sessions: Sessions,
    pub tasks: Tasks,
    pub methods: Methods,
    pub passwords: Arc<Passwords>,
    pub registrations: Registrations,
    /// Becomes true when the daemon is about to end; whoever only waits stops waiting.
    pub stopping: watch::Sender<bool>,
    pub storage: Storage,
    pub cbt: cbt::Logs,
    pub nbd: Nbd,
    pub vmm: Vmm,
    /// How long each SR takes to cut.
    pub pace: Pace,
    pub turns: Turns,
    pub left: Left,
    pub schedules: Schedules,
    pub transfer_rates: Rates,
    pub sweeping: Sweeping,
}

impl Daemon {
    /// `handlers` go over the built-in ones.
    pub fn new(config: Config, db: Db, handlers: Handlers) -> anyhow::Result<Arc<Daemon>> {
        let builtin = builtin::handlers().into_iter().chain(event::handlers()).chain(settings::handlers());
        let methods = Methods::new(builtin.chain(handlers).collect())?;
        let passwords = Arc::new(Passwords::new(&config.state_dir, config.login_failure_delay));
        let storage = Storage::from_config(&config);
        let cbt = cbt::Logs::new(config.state_dir.join("cbt"));
        let vmm = Vmm::new(Host::new(&config));
        let schedules = Schedules::new(&config, &db);
        Ok(Arc::new(Daemon {
            config,
            db,
            sessions: Sessions::default(),
            tasks: Tasks::default(),
            methods,
            passwords,
            registrations: Registrations::default(),
            stopping: watch::channel(false).0,
            storage,
            cbt,
            nbd: Nbd::default(),
            vmm,
            pace: Pace::default(),
            turns: Turns::default(),
            left: Left::default(),
            schedules,
            transfer_rates: Rates::default(),
            sweeping: Sweeping::default(),
        }))
    }
}

/// One call under way.
#[derive(Clone)]
pub struct CallContext {
    pub daemon: Arc<Daemon>,
    pub session: Session,
    pub task: TaskHandle,
}

impl CallContext {
    /// A context for the daemon's own work (schedules, reconciliation): superuser, no visible task.
    pub fn internal(daemon: &Arc<Daemon>) -> CallContext {
        CallContext { daemon: daemon.clone(), session: Session::internal(), task: TaskHandle::internal() }
    }

    pub fn db(&self) -> &Db {
        &self.daemon.db
    }

    /// Runs `check` and, in the same transaction, puts `operation` into the object's `current_operations` under this
    /// task. The entry goes when the guard is dropped.
    pub fn begin(
        &self,
        class: &'static str,
        object: &Ref,
        operation: &str,
        check: impl FnOnce(&mut Tx<'_>) -> ApiResult<()>,
    ) -> ApiResult<Operation> {
        // Two objects of one task may hold an operation each, one object only one per task.
        let key = self.task.id().to_string();
        self.daemon.db.write(|tx| {
            check(tx)?;
            tx.put_entry(class, object, "current_operations", &key, operation)
        })?;
        Ok(Operation { daemon: self.daemon.clone(), class, object: object.clone(), key })
    }
}

/// An entry in an object's `current_operations`, removed when this is dropped.
#[must_use = "the operation ends when this is dropped"]
pub struct Operation {
    daemon: Arc<Daemon>,
    class: &'static str,
    object: Ref,
    key: String,
}

impl Drop for Operation {
    fn drop(&mut self) {
        let ended = self.daemon.db.write(|tx| {
            use crate::db::View;
            match tx.find(self.class, &self.object) {
                Some(_) => tx.remove_entry(self.class, &self.object, "current_operations", &self.key),
                None => Ok(()),
            }
        });
        if let Err(error) = ended {
            tracing::error!(class = self.class, object = %self.object, %error, "an operation could not be ended");
        }
    }
}

/// The arguments of a call by the names of the table, each already of its declared type.
#[derive(Debug, Clone, Default)]
pub struct Args {
    names: Vec<&'static str>,
    values: Vec<Value>,
}

impl Args {
    pub fn new(names: Vec<&'static str>, values: Vec<Value>) -> Args {
        Args { names, values }
    }

    pub fn value(&self, name: &str) -> ApiResult<&Value> {
        let at = self.names.iter().position(|n| *n == name);
        let value = at.and_then(|i| self.values.get(i));
        value.ok_or_else(|| ApiError::internal(format!("no parameter {name} among {}", self.names.join(", "))))
    }

    fn typed<'a, T>(&'a self, name: &str, get: impl FnOnce(&'a Value) -> Option<T>) -> ApiResult<T> {
        let value = self.value(name)?;
        get(value).ok_or_else(|| ApiError::internal(format!("parameter {name} is a {}", value.kind())))
    }

    pub fn str(&self, name: &str) -> ApiResult<&str> {
        self.typed(name, Value::as_str)
    }

    pub fn string(&self, name: &str) -> ApiResult<String> {
        self.str(name).map(str::to_owned)
    }

    /// May be null or name nothing.
    pub fn reference(&self, name: &str) -> ApiResult<Ref> {
        self.str(name).map(Ref::from)
    }

    pub fn int(&self, name: &str) -> ApiResult<i64> {
        self.typed(name, Value::as_int)
    }

    pub fn bool(&self, name: &str) -> ApiResult<bool> {
        self.typed(name, Value::as_bool)
    }

    pub fn float(&self, name: &str) -> ApiResult<f64> {
        self.typed(name, Value::as_float)
    }

    pub fn set(&self, name: &str) -> ApiResult<&[Value]> {
        self.typed(name, Value::as_set)
    }

    pub fn refs(&self, name: &str) -> ApiResult<Vec<Ref>> {
        Ok(self.set(name)?.iter().filter_map(Value::as_str).map(Ref::from).collect())
    }

    pub fn strings(&self, name: &str) -> ApiResult<Vec<String>> {
        Ok(self.set(name)?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// A map, or the record of a constructor (fields that the caller left out are missing in it).
    pub fn map(&self, name: &str) -> ApiResult<&Map> {
        self.typed(name, Value::as_map)
    }
}
