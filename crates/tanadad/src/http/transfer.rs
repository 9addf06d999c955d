//! Authentication and task of a data transfer.
//!
//! `session_id` in the cookie or the query, else HTTP basic authentication (a session for this transfer alone). The task
//! is the caller's (`task_id`) or a new one, whose reference is in the response header `task-id`.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use tanada_xapi::{ApiError, Ref};

use super::{HttpError, Response, Route, error_page};
use crate::context::{CallContext, Daemon};
use crate::rpc::dispatch::Peer;
use crate::rpc::login::{self, ROOT};
use crate::rpc::roles;
use crate::rpc::session::{Role, Session};
use crate::rpc::task::TaskHandle;

/// A data transfer: who, what, and the unread body.
pub struct Transfer {
    /// The session is proved, its role checked, the task taken over.
    pub ctx: CallContext,
    pub query: Query,
    pub headers: HeaderMap,
    pub body: Incoming,
    /// Keeps the session of a basic authentication open; to be held until the transfer has ended.
    pub lease: Arc<Lease>,
}

/// Parameters of the query and of the cookie. They hold the session, so they are not printed.
#[derive(Default, Clone, PartialEq)]
pub struct Query {
    query: BTreeMap<String, String>,
    cookie: BTreeMap<String, String>,
}

impl Query {
    fn of(request: &Request<Incoming>) -> Query {
        let cookies = request.headers().get_all(header::COOKIE).iter().filter_map(|c| c.to_str().ok());
        let cookies = cookies.flat_map(|c| c.split([';', '&']));
        Query {
            query: request.uri().query().unwrap_or_default().split('&').filter_map(pair).collect(),
            cookie: cookies.map(str::trim).filter_map(pair).collect(),
        }
    }

    /// A parameter, decoded; the query's goes before the cookie's.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.query.get(name).or_else(|| self.cookie.get(name)).map(String::as_str)
    }

    /// Is the parameter the text `true`?
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    /// The parameters of the query whose names begin with `prefix`, without it.
    pub fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
        let named = |(name, value): (&String, &String)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone()));
        self.query.iter().filter_map(named).collect()
    }

    /// For what names the caller, the cookie's goes before the query's.
    fn caller(&self, name: &str) -> Option<&str> {
        self.cookie.get(name).or_else(|| self.query.get(name)).map(String::as_str).filter(|v| !v.is_empty())
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (!name.is_empty()).then(|| (percent_decoded(name), percent_decoded(value)))
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).filter(|h| h.iter().all(u8::is_ascii_hexdigit));
        let hex = hex.and_then(|h| std::str::from_utf8(h).ok());
        let code = hex.filter(|_| byte == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(code.unwrap_or(if byte == b'+' { b' ' } else { byte }));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A session that ends with its last holder.
pub struct Lease {
    daemon: Arc<Daemon>,
    session: Option<Ref>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = &self.session
            && let Err(error) = self.daemon.sessions.close(&self.daemon.db, session)
        {
            tracing::warn!(%error, "a session could not be closed");
        }
    }
}

pub async fn answer(daemon: Arc<Daemon>, route: Route, peer: Peer, request: Request<Incoming>) -> Response {
    let query = Query::of(&request);
    let task = query.caller("task_id").map(Ref::from);
    let mut response = match start(&daemon, &route, peer, query, task.as_ref(), request).await {
        Ok(response) => response,
        Err(failure) => {
            tracing::info!(path = route.path, error = %failure.error, "a transfer was refused");
            page(&failure)
        }
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn page(failure: &HttpError) -> Response {
    let mut response = error_page(failure.status, &failure.error.to_string());
    if failure.status == StatusCode::UNAUTHORIZED {
        let realm = HeaderValue::from_static("Basic realm=\"tanada\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
    }
    response
}

async fn start(
    daemon: &Arc<Daemon>,
    route: &Route,
    peer: Peer,
    query: Query,
    task: Option<&Ref>,
    request: Request<Incoming>,
) -> Result<Response, HttpError> {
    let (session, lease) = match authenticate(daemon, peer, &query, request.headers()).await {
        Ok(proved) => proved,
        Err(failure) => {
            fail_task(daemon, task, &failure.error);
            return Err(failure);
        }
    };
    // All transfers read or write whole disks.
    if !session.may(Role::VmAdmin) {
        let error = roles::denied(&session, &format!("http{}", route.path.replace('/', ".")), Role::VmAdmin);
        fail_task(daemon, task, &error);
        return Err(HttpError::new(StatusCode::FORBIDDEN, error));
    }
    let task = match task {
        Some(id) => TaskHandle::adopt(daemon, id)?,
        None => TaskHandle::create(daemon, route.path.trim_start_matches('/'), "")?,
    };
    let id = task.id().to_string();
    let (head, body) = request.into_parts();
    let ctx = CallContext { daemon: daemon.clone(), session, task: task.clone() };
    let transfer = Transfer { ctx, query, headers: head.headers, body, lease };
    // On its own, so that a client that goes away does not cut the work in half: it notices by the broken stream. The
    // end of the task belongs to it.
    let (path, work) = (route.path, (route.handler)(transfer));
    let work = async move {
        let result = tokio::spawn(work).await.unwrap_or_else(|e| {
            tracing::error!(error = %e, path, "a transfer failed");
            Err(ApiError::internal(format!("the transfer failed unexpectedly: {e}")).into())
        });
        if let Err(failure) = &result {
            task.complete(&Err(failure.error.clone()));
        }
        result
    };
    let result = tokio::spawn(work).await.unwrap_or_else(|e| Err(ApiError::internal(e).into()));
    let mut response = result?;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("task-id", id);
    }
    Ok(response)
}

/// The task of a caller who was refused.
fn fail_task(daemon: &Arc<Daemon>, task: Option<&Ref>, error: &ApiError) {
    if let Some(handle) = task.and_then(|id| TaskHandle::adopt(daemon, id).ok()) {
        handle.complete(&Err(error.clone()));
    }
}

async fn authenticate(
    daemon: &Arc<Daemon>,
    peer: Peer,
    query: &Query,
    headers: &HeaderMap,
) -> Result<(Session, Arc<Lease>), HttpError> {
    let refused = |error| HttpError::new(StatusCode::UNAUTHORIZED, error);
    let lease = |session| Arc::new(Lease { daemon: daemon.clone(), session });
    if let Some(id) = query.caller("session_id") {
        let session = daemon.sessions.get(&daemon.db, &Ref::from(id)).map_err(refused)?;
        return Ok((session, lease(None)));
    }
    let Some((user, password)) = headers.get(header::AUTHORIZATION).and_then(basic) else {
        return Err(refused(ApiError::session_authentication_failed("", "no session_id and no basic authentication")));
    };
    login::prove(daemon, peer, &user, password).await.map_err(refused)?;
    let session = daemon.sessions.open(&daemon.db, ROOT, "http", Role::PoolAdmin, peer.local)?;
    let id = session.id().clone();
    Ok((session, lease(Some(id))))
}

/// User and password of `Authorization: Basic`.
fn basic(header: &HeaderValue) -> Option<(String, String)> {
    let encoded = header.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{basic, pair, percent_decoded};
    use hyper::header::HeaderValue;

    #[test]
    fn parameters_are_decoded_and_rubbish_is_kept_as_it_is() {
        assert_eq!(pair("ref=OpaqueRef%3Aab+c"), Some(("ref".to_owned(), "OpaqueRef:ab c".to_owned())));
        assert_eq!(pair("force"), Some(("force".to_owned(), String::new())));
        assert_eq!(pair("=x"), None);
        for (text, expected) in
            [("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("a%2", "a%2"), ("%C3%A9", "é"), ("%+1", "% 1")]
        {
            assert_eq!(percent_decoded(text), expected);
        }
        assert_eq!(basic(&HeaderValue::from_static("Basic cm9vdDphOmI=")), Some(("root".into(), "a:b".into())));
        assert_eq!(basic(&HeaderValue::from_static("Basic !")), None);
        assert_eq!(basic(&HeaderValue::from_static("Bearer x")), None);
    }
}
