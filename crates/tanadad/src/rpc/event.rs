//! Events: what changed since a token.
//!
//! A token is two generations, of the objects and of the messages, as twenty digits each. The database stamps every
//! object with the generations of its making and of its last change, so nothing is queued: a reply is computed from the
//! state at one moment, and holds for each object only how it differs from the moment of the token.
//!
//! | made | changed | gone | event |
//! |---|---|---|---|
//! | after | any | no | `add` |
//! | before | after | no | `mod` |
//! | before | any | after | `del` |
//! | after | any | after | none |
//!
//! A caller that would get nothing waits for the database to change, for its timeout, or for its session to end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tanada_xapi::classes::{self, Class};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::context::{Args, CallContext, Daemon, Handlers};
use crate::db::{Record, State, View};

/// A timeout that cannot be used means this long.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// After the first change, this long is waited for more: one reply instead of many. Task watchers are not kept waiting.
const BATCH: Duration = Duration::from_millis(20);

/// Classes whose objects make no events.
const SILENT: [&str; 4] = ["session", "user", "event", "secret"];

pub fn handlers() -> Handlers {
    vec![
        ("event.from", |ctx, args| Box::pin(from(ctx, args))),
        ("event.inject", |ctx, args| Box::pin(inject(ctx, args))),
        ("event.get_current_id", |ctx, _| Box::pin(current_id(ctx))),
        ("event.register", |ctx, args| Box::pin(register(ctx, args))),
        ("event.unregister", |ctx, args| Box::pin(unregister(ctx, args))),
        ("event.next", |ctx, _| Box::pin(next(ctx))),
    ]
}

/// What a caller wants to hear of.
#[derive(Debug, Clone, PartialEq)]
enum Subscription {
    All,
    Class(&'static str),
    Object(&'static str, Ref),
    /// Text without a meaning matches nothing.
    Nothing,
}

impl Subscription {
    fn parse(text: &str) -> Subscription {
        if text == "*" {
            return Subscription::All;
        }
        let (class, object) = match text.split_once('/') {
            Some((class, object)) => (class, Some(object)),
            None => (text, None),
        };
        match (classes::class_ignoring_case(class), object) {
            (Some(class), None) => Subscription::Class(class.name),
            (Some(class), Some(object)) => Subscription::Object(class.name, Ref::from(object)),
            (None, _) => Subscription::Nothing,
        }
    }

    fn covers(&self, class: &str, object: &Ref) -> bool {
        match self {
            Subscription::All => true,
            Subscription::Class(name) => *name == class,
            Subscription::Object(name, id) => *name == class && id == object,
            Subscription::Nothing => false,
        }
    }

    fn touches(&self, class: &str) -> bool {
        match self {
            Subscription::All => true,
            Subscription::Class(name) | Subscription::Object(name, _) => *name == class,
            Subscription::Nothing => false,
        }
    }
}

fn subscriptions(texts: &[String]) -> Vec<Subscription> {
    texts.iter().map(|t| Subscription::parse(t)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Token {
    objects: u64,
    messages: u64,
}

impl Token {
    const START: Token = Token { objects: 0, messages: 0 };

    fn parse(text: &str) -> ApiResult<Token> {
        if text.is_empty() {
            return Ok(Token::START);
        }
        let parse = || {
            let (objects, messages) = text.split_once(',')?;
            Some(Token { objects: objects.parse().ok()?, messages: messages.parse().ok()? })
        };
        parse().ok_or_else(|| ApiError::event_from_token_parse_failure(text))
    }

    fn since(self, class: &str) -> u64 {
        if class == "message" { self.messages } else { self.objects }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:020},{:020}", self.objects, self.messages)
    }
}

struct Event {
    class: &'static str,
    operation: &'static str,
    object: Ref,
    generation: u64,
    /// `None` for a deletion.
    record: Option<Arc<Record>>,
}

impl Event {
    fn of(record: &Arc<Record>, since: u64) -> Event {
        Event {
            class: record.class().name,
            operation: if record.created_generation() > since { "add" } else { "mod" },
            object: record.id().clone(),
            generation: record.modified_generation(),
            record: Some(record.clone()),
        }
    }

    /// Messages first, then what is new, what changed, what is gone.
    fn rank(&self) -> (u8, u64) {
        let group = match (self.class, self.operation) {
            ("message", _) => 0,
            (_, "add") => 1,
            (_, "mod") => 2,
            _ => 3,
        };
        (group, self.generation)
    }

    fn to_value(&self, timestamp: &str) -> Value {
        let mut map = vec![
            ("id", Value::from(self.generation.to_string())),
            ("timestamp", Value::from(timestamp)),
            ("class", Value::from(self.class.to_ascii_lowercase())),
            ("operation", Value::from(self.operation)),
            ("ref", Value::from(&self.object)),
        ];
        if let Some(record) = &self.record {
            map.push(("snapshot", Value::Map(record.to_map())));
        }
        Value::map(map)
    }
}

/// The events since `token`, of one moment.
fn collect(state: &State, wanted: &[Subscription], token: Token) -> Vec<Event> {
    let mut events = Vec::new();
    let covered = |class: &str, object: &Ref| wanted.iter().any(|s| s.covers(class, object));
    for class in speaking().filter(|c| wanted.iter().any(|s| s.touches(c.name))) {
        let since = token.since(class.name);
        let changed = state.changed_since(class.name, since).filter(|r| covered(class.name, r.id()));
        events.extend(changed.map(|r| Event::of(r, since)));
    }
    for gone in state.deletions().rev() {
        if gone.generation <= token.objects.min(token.messages) {
            break;
        }
        let since = token.since(gone.class);
        let was_known = gone.generation > since && gone.created_generation <= since;
        if !was_known || SILENT.contains(&gone.class) || !covered(gone.class, &gone.id) {
            continue;
        }
        if state.find(gone.class, &gone.id).is_none() {
            let (class, object, generation) = (gone.class, gone.id.clone(), gone.generation);
            events.push(Event { class, operation: "del", object, generation, record: None });
        }
    }
    events.sort_by_key(Event::rank);
    events
}

fn speaking() -> impl Iterator<Item = &'static Class> {
    classes::classes().iter().filter(|c| !SILENT.contains(&c.name))
}

fn counts(state: &State) -> Value {
    let count = |class: &Class| i32::try_from(state.count(class.name)).unwrap_or(i32::MAX);
    let classes = classes::classes().iter().filter(|c| c.name != "event");
    Value::Map(classes.map(|c| (c.name.to_ascii_lowercase(), Value::I4(count(c)))).collect())
}

async fn from(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let wanted = subscriptions(&args.strings("classes")?);
    let token = Token::parse(args.str("token")?)?;
    let seconds = args.float("timeout")?;
    let timeout = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(TIMEOUT_MAX).min(TIMEOUT_MAX);
    let deadline = Instant::now() + timeout;
    let answer = |state: &State| {
        let events = collect(state, &wanted, token);
        (events, counts(state), state.generation())
    };
    let (events, counts, generation) = wait(&ctx, &wanted, deadline, |state| {
        let reply = answer(state);
        (!reply.0.is_empty()).then_some(reply)
    })
    .await?
    .unwrap_or_else(|| ctx.db().read(|s| answer(s)));
    let token = Token { objects: generation, messages: generation };
    Ok(Value::map([
        ("events", Value::Set(events.iter().map(|e| e.to_value("0.0")).collect())),
        ("valid_ref_counts", counts),
        ("token", Value::from(token.to_string())),
    ]))
}

/// Calls `look` at every change until it answers something; `None` at the deadline.
async fn wait<T>(
    ctx: &CallContext,
    wanted: &[Subscription],
    deadline: Instant,
    look: impl Fn(&State) -> Option<T>,
) -> ApiResult<Option<T>> {
    let tasks_only = wanted.iter().all(|s| matches!(s, Subscription::Class("task") | Subscription::Object("task", _)));
    let mut changed = ctx.db().changed();
    let mut stopping = ctx.daemon.stopping.subscribe();
    loop {
        // Marked as seen before looking, so that a change in between wakes us again.
        changed.borrow_and_update();
        if !ctx.session.id().is_null() && !ctx.daemon.sessions.is_open(ctx.session.id()) {
            return Err(ApiError::session_invalid(ctx.session.id()));
        }
        if let Some(found) = ctx.db().read(|s| look(s)) {
            return Ok(Some(found));
        }
        tokio::select! {
            seen = changed.changed() => if seen.is_err() { return Ok(None) },
            () = tokio::time::sleep_until(deadline) => return Ok(None),
            () = stopped(&mut stopping) => return Ok(None),
        }
        if !tasks_only {
            tokio::time::sleep_until(deadline.min(Instant::now() + BATCH)).await;
        }
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the daemon is gone, which is no different.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn inject(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let (class, object) = (args.str("class")?, args.reference("ref")?);
    let Some(class) = classes::class_ignoring_case(class).map(|c| c.name) else {
        return Err(ApiError::handle_invalid(class, object));
    };
    ctx.db().write(|tx| tx.touch(class, &object))?;
    let touched = ctx.db().read(|s| Ok::<_, ApiError>(s.get(class, &object)?.modified_generation()))?;
    Ok(Value::from(Token { objects: touched - 1, messages: 0 }.to_string()))
}

async fn current_id(ctx: CallContext) -> ApiResult<Value> {
    let generation = ctx.db().read(State::generation);
    Ok(Value::Int(i64::try_from(generation).unwrap_or(i64::MAX)))
}

/// Who uses the older interface: what each session registered for, and up to where it has heard.
#[derive(Default)]
pub struct Registrations {
    by_session: Mutex<HashMap<Ref, Registration>>,
}

struct Registration {
    wanted: Vec<Subscription>,
    heard: u64,
}

impl Registrations {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ref, Registration>> {
        self.by_session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the sessions that have ended.
    pub fn expire(&self, daemon: &Daemon) {
        self.lock().retain(|session, _| daemon.sessions.is_open(session));
    }
}

async fn register(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let wanted = subscriptions(&args.strings("classes")?);
    let heard = ctx.db().read(State::generation);
    let mut registrations = ctx.daemon.registrations.lock();
    let registration =
        registrations.entry(ctx.session.id().clone()).or_insert(Registration { wanted: Vec::new(), heard });
    registration.wanted.extend(wanted.into_iter().filter(|s| !registration.wanted.contains(s)).collect::<Vec<_>>());
    Ok(Value::Void)
}

async fn unregister(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let unwanted = subscriptions(&args.strings("classes")?);
    let mut registrations = ctx.daemon.registrations.lock();
    if let Some(registration) = registrations.get_mut(ctx.session.id()) {
        registration.wanted.retain(|s| !unwanted.contains(s));
    }
    Ok(Value::Void)
}

async fn next(ctx: CallContext) -> ApiResult<Value> {
    let session = ctx.session.id();
    let registered = ctx.daemon.registrations.lock().get(session).map(|r| (r.wanted.clone(), r.heard));
    let Some((wanted, heard)) = registered.filter(|(wanted, _)| !wanted.is_empty()) else {
        return Err(ApiError::session_not_registered(session));
    };
    if ctx.db().read(|s| s.history_start() > heard) {
        ctx.daemon.registrations.lock().remove(session);
        return Err(ApiError::events_lost());
    }
    let token = Token { objects: heard, messages: heard };
    let found = wait(&ctx, &wanted, Instant::now() + TIMEOUT_MAX, |state| {
        let events = collect(state, &wanted, token);
        (!events.is_empty()).then(|| (events, state.generation()))
    });
    let Some((events, generation)) = found.await? else { return Ok(Value::empty_set()) };
    if let Some(registration) = ctx.daemon.registrations.lock().get_mut(session) {
        registration.heard = generation;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let timestamp = format!("{:.3}", now.as_secs_f64());
    Ok(Value::Set(events.iter().map(|e| e.to_value(&timestamp)).collect()))
}
