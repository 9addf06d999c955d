//! From a method's name and raw parameters to its result.
//!
//! Checks, in order; the first that fails answers: the method exists (asked even without a session), it was not removed,
//! the number of parameters, the session, the role, the types of the parameters. Work of handlers runs in a task of the
//! runtime of its own, so that a caller that goes away does not cut an operation in half; waiting for events does end.

use std::net::IpAddr;
use std::sync::Arc;

use tanada_xapi::classes::{self, Class, Message, Method, State};
use tanada_xapi::types::Type;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use crate::context::{Args, CallContext, Daemon, Handler};
use crate::ops::allowed;
use crate::rpc::session::Session;
use crate::rpc::task::TaskHandle;
use crate::rpc::{implicit, login, roles};

/// Where a call comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Through our unix socket, which root alone may open: any password is right for root.
    pub local: bool,
    /// `None` for a unix socket.
    pub address: Option<IpAddr>,
}

/// A result, and whether the protocol's envelope goes around it.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Enveloped(ApiResult<Value>),
    /// `system.*` answers without the `Status` envelope of XML-RPC.
    Bare(Value),
}

/// Answers one call.
pub async fn call(daemon: &Arc<Daemon>, peer: Peer, method: &str, params: Vec<Value>) -> Reply {
    if method == "system.listMethods" {
        return Reply::Bare(Value::from(method_names()));
    }
    if method.starts_with("system.isAlive:") {
        return Reply::Bare(params.into_iter().next().unwrap_or(Value::Void));
    }
    Reply::Enveloped(call_class(daemon, peer, method, params).await)
}

async fn call_class(daemon: &Arc<Daemon>, peer: Peer, method: &str, params: Vec<Value>) -> ApiResult<Value> {
    let target = Target::find(method)?;
    target.refuse_removed()?;
    if login::is_login(target.class.name, target.message) {
        let args = target.arguments(method, params)?;
        return login::login(daemon, peer, args).await;
    }
    let mut params = params.into_iter();
    let session = params.next();
    let params: Vec<Value> = params.collect();
    target.check_count(method, params.len(), session.is_some())?;
    let session = Ref::from(session.as_ref().and_then(Value::as_str).unwrap_or_default());
    let session = daemon.sessions.get(&daemon.db, &session)?;
    call_in_session(daemon, session, target, method, params).await
}

/// What to do in place of a message that nobody gives a body.
fn instead(name: &str) -> &'static str {
    match name {
        "VM.import" | "Async.VM.import" => " (fetch the file and send it with PUT /import, or xe vm-import filename=-)",
        _ => "",
    }
}

/// The rest of a call, once it is known who calls. Basic authentication of data transfers comes in here as well.
async fn call_in_session(
    daemon: &Arc<Daemon>,
    session: Session,
    target: Target,
    method: &str,
    params: Vec<Value>,
) -> ApiResult<Value> {
    roles::check(&session, target.class.name, target.message)?;
    let args = target.arguments(method, params)?;
    let name = target.name();
    let Some(handler) = daemon.methods.get(&name) else {
        if target.is_async || matches!(target.method, Method::Explicit(_) | Method::Create | Method::Destroy) {
            return Err(ApiError::not_implemented(format!("{name}{}", instead(&name))));
        }
        return implicit::call(daemon, target.class, target.method, &args);
    };
    if target.is_async {
        return start_async(daemon, session, handler, method, args);
    }
    if target.class.name == "event" {
        let ctx = CallContext { daemon: daemon.clone(), session, task: TaskHandle::internal() };
        return handler(ctx, args).await;
    }
    let task = if target.has_task() { TaskHandle::create(daemon, &name, "")? } else { TaskHandle::internal() };
    let ctx = CallContext { daemon: daemon.clone(), session, task: task.clone() };
    // The end of the task is part of the work: the caller may be gone by then.
    let daemon = daemon.clone();
    let work = async move {
        let result = worked(&daemon, handler(ctx, args)).await;
        task.dismiss();
        result
    };
    finished(tokio::spawn(work)).await
}

fn start_async(daemon: &Arc<Daemon>, session: Session, handler: Handler, method: &str, args: Args) -> ApiResult<Value> {
    let task = TaskHandle::create(daemon, method, "")?;
    let id = task.id().clone();
    let ctx = CallContext { daemon: daemon.clone(), session, task: task.clone() };
    let daemon = daemon.clone();
    tokio::spawn(async move { task.complete(&worked(&daemon, handler(ctx, args)).await) });
    Ok(Value::from(id))
}

/// The result of a handler. Who sees it also sees what may be done next: `allowed_operations` are current by then.
async fn worked(daemon: &Daemon, work: impl Future<Output = ApiResult<Value>> + Send + 'static) -> ApiResult<Value> {
    let before = daemon.db.read(|state| state.generation());
    let result = finished(tokio::spawn(work)).await;
    allowed::refresh(daemon, before);
    result
}

/// A handler that panicked is an internal error of that call alone.
async fn finished(work: tokio::task::JoinHandle<ApiResult<Value>>) -> ApiResult<Value> {
    work.await.unwrap_or_else(|e| {
        tracing::error!(error = %e, "a handler failed");
        Err(ApiError::internal(format!("the operation failed unexpectedly: {e}")))
    })
}

/// All names that can be called. A class that is gone, and what was removed, is not named.
pub fn method_names() -> Vec<String> {
    let mut names = vec!["system.listMethods".to_owned()];
    for class in classes::classes().iter().filter(|c| !c.removed) {
        for message in class.method_names() {
            let Some(method) = class.method(&message) else { continue };
            if state_of(method) == State::Removed {
                continue;
            }
            let name = format!("{}.{message}", class.name);
            if may_be_async(class, method) {
                names.push(format!("Async.{name}"));
            }
            names.push(name);
        }
    }
    names
}

fn state_of(method: Method) -> State {
    match method {
        Method::Explicit(message) => message.state,
        Method::Get(f) | Method::Set(f) => f.state,
        Method::AddTo(f) | Method::RemoveFrom(f) | Method::Add(f) | Method::Remove(f) => f.state,
        _ => State::Published,
    }
}

fn may_be_async(class: &Class, method: Method) -> bool {
    let own = matches!(method, Method::Explicit(_) | Method::Create | Method::Destroy);
    own && !matches!(class.name, "session" | "event" | "task")
}

/// The method that a call names.
#[derive(Clone, Copy)]
struct Target {
    class: &'static Class,
    message: &'static str,
    method: Method,
    is_async: bool,
}

impl Target {
    fn find(method: &str) -> ApiResult<Target> {
        let unknown = || ApiError::message_method_unknown(method);
        let (is_async, plain) = match method.strip_prefix("Async.") {
            Some(plain) => (true, plain),
            None => (false, method),
        };
        let (class, message) = plain.split_once('.').ok_or_else(unknown)?;
        let class = classes::class(class).ok_or_else(unknown)?;
        let meaning = class.method(message).ok_or_else(unknown)?;
        if is_async && !may_be_async(class, meaning) {
            return Err(unknown());
        }
        Ok(Target { class, message: name_of(message, meaning), method: meaning, is_async })
    }

    /// `Class.message`, without `Async.`.
    fn name(&self) -> String {
        format!("{}.{}", self.class.name, self.message)
    }

    fn refuse_removed(&self) -> ApiResult<()> {
        if self.class.removed || state_of(self.method) == State::Removed {
            return Err(ApiError::message_removed());
        }
        Ok(())
    }

    /// Does a synchronous call show a task while it runs? Those that may take time do.
    fn has_task(&self) -> bool {
        let quick = ["get_", "set_", "assert_", "add_", "remove_"];
        may_be_async(self.class, self.method)
            && self.class.name != "message"
            && !quick.iter().any(|prefix| self.message.starts_with(prefix))
    }

    /// Names, types and defaults of the parameters without the session.
    fn params(&self) -> Vec<(&'static str, Type, Option<Value>)> {
        let class = self.class.name;
        let object = ("self", Type::Ref(class), None);
        let explicit = |m: &'static Message| m.params.iter().map(|p| (p.name, p.ty.clone(), p.default.clone()));
        match self.method {
            Method::Explicit(message) => explicit(message).collect(),
            Method::Create => vec![("args", Type::Record(class), None)],
            Method::Destroy | Method::GetRecord | Method::Get(_) => vec![object],
            Method::GetAll | Method::GetAllRecords => Vec::new(),
            Method::GetAllRecordsWhere => vec![("expr", Type::String, None)],
            Method::GetByUuid => vec![("uuid", Type::String, None)],
            Method::GetByNameLabel => vec![("label", Type::String, None)],
            Method::Set(field) => vec![object, ("value", field.ty.clone(), None)],
            Method::AddTo(field) => {
                let (key, value) = match &field.ty {
                    Type::Map(key, value) => ((**key).clone(), (**value).clone()),
                    _ => (Type::String, Type::String),
                };
                vec![object, ("key", key, None), ("value", value, None)]
            }
            Method::RemoveFrom(_) => vec![object, ("key", Type::String, None)],
            Method::Add(field) | Method::Remove(field) => {
                let item = match &field.ty {
                    Type::Set(item) => (**item).clone(),
                    _ => Type::String,
                };
                vec![object, ("value", item, None)]
            }
        }
    }

    fn check_count(&self, method: &str, received: usize, has_session: bool) -> ApiResult<()> {
        let params = self.params();
        let least = params.iter().filter(|p| p.2.is_none()).count();
        if has_session && (least..=params.len()).contains(&received) {
            return Ok(());
        }
        Err(ApiError::message_parameter_count_mismatch(method, least, received))
    }

    /// The parameters in their declared types, defaults filled in from the end.
    fn arguments(&self, method: &str, received: Vec<Value>) -> ApiResult<Args> {
        self.check_count(method, received.len(), true)?;
        let (mut names, mut values) = (Vec::new(), Vec::new());
        let mut received = received.into_iter();
        for (name, ty, default) in self.params() {
            let value = match (received.next(), default) {
                (Some(value), _) => ty.coerce(value),
                (None, Some(default)) => Ok(default),
                (None, None) => Err("missing".to_owned()),
            };
            names.push(name);
            values.push(value.map_err(|e| ApiError::internal(format!("{method}: parameter {name}: {e}")))?);
        }
        Ok(Args::new(names, values))
    }
}

/// The message's name with the table's lifetime.
fn name_of(message: &str, method: Method) -> &'static str {
    if let Method::Explicit(m) = method {
        return m.name;
    }
    // Derived names follow from the table, so their number is bounded.
    static NAMES: std::sync::LazyLock<std::collections::HashSet<String>> =
        std::sync::LazyLock::new(|| classes::classes().iter().flat_map(|c| c.method_names()).collect());
    NAMES.get(message).map_or("", String::as_str)
}
