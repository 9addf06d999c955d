//! Calls to the server, one after another, over one session.

use crate::failure::Failure;
use crate::progress::Bar;
use crate::record::Object;
use crate::record::field::scalar;
use crate::transport::{Body, Endpoint};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, StatusCode, header};
use std::cell::RefCell;
use std::rc::Rc;
use tanada_xapi::{ApiError, Map, Ref, Value, xmlrpc};
use tokio::runtime::Runtime;

/// How long one `event.from` may wait, in seconds.
const EVENT_WAIT_S: f64 = 30.0;

pub struct Api {
    pub runtime: Runtime,
    pub endpoint: Endpoint,
    session: Ref,
    idle: RefCell<Option<SendRequest<Body>>>,
    debug: bool,
}

impl Api {
    /// Connects and logs in.
    pub fn login(endpoint: Endpoint, user: &str, password: &str, debug: bool) -> Result<Api, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::cli(format!("Cannot start: {error}")))?;
        let mut api = Api { runtime, endpoint, session: Ref::null(), idle: RefCell::new(None), debug };
        let params = [user, password, "1.0", "xe"].map(Value::from);
        let session = api.runtime.block_on(api.raw_call("session.login_with_password", &params))?;
        api.session = Ref::from(scalar(&session));
        Ok(api)
    }

    /// Ends the session; a failure to do so concerns nobody.
    pub fn logout(self) {
        let _ = self.call("session.logout", Vec::new());
    }

    pub fn session(&self) -> &Ref {
        &self.session
    }

    /// Calls `method` with the session in front of `params`.
    pub fn call(&self, method: &str, params: Vec<Value>) -> Result<Value, Failure> {
        self.runtime.block_on(self.call_async(method, params))
    }

    pub async fn call_async(&self, method: &str, params: Vec<Value>) -> Result<Value, Failure> {
        let mut all = vec![Value::from(&self.session)];
        all.extend(params);
        self.raw_call(method, &all).await
    }

    async fn raw_call(&self, method: &str, params: &[Value]) -> Result<Value, Failure> {
        if self.debug {
            eprintln!("-> {method} ({} parameters)", params.len());
        }
        let body = Bytes::from(xmlrpc::encode_call(method, params));
        let mut sender = self.sender().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri("/RPC2")
            .header(header::HOST, self.endpoint.authority())
            .header(header::CONTENT_TYPE, "text/xml")
            .body(Full::new(body).map_err(|never| match never {}).boxed())
            .map_err(|error| Failure::unexpected(error.to_string()))?;
        let lost = |error: hyper::Error| Failure::cli(format!("Lost the connection to {}: {error}", self.endpoint));
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status();
        let reply = response.into_body().collect().await.map_err(lost)?.to_bytes();
        if status != StatusCode::OK {
            return Err(Failure::cli(format!("{} answered {status} to {method}", self.endpoint)));
        }
        self.idle.replace(Some(sender));
        let text = std::str::from_utf8(&reply).map_err(|error| Failure::unexpected(error.to_string()))?;
        let result =
            xmlrpc::decode_response(text).map_err(|error| Failure::unexpected(format!("{method}: {error}")))?;
        if self.debug {
            eprintln!("<- {method}: {}", result.as_ref().map_or_else(ApiError::to_string, |_| "ok".to_owned()));
        }
        Ok(result?)
    }

    /// The connection of the call before if it is still open, else a new one.
    async fn sender(&self) -> Result<SendRequest<Body>, Failure> {
        let kept = self.idle.take();
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        self.endpoint.connect().await
    }

    /// All objects of a class.
    pub fn all(&self, class: &str) -> Result<Vec<Object>, Failure> {
        let records = self.call(&format!("{class}.get_all_records"), Vec::new())?;
        let Value::Map(records) = records else {
            return Err(Failure::unexpected(format!("{class}.get_all_records answered a {}", records.kind())));
        };
        records.into_iter().map(|(reference, record)| Ok(object(Ref::from(reference), record))).collect()
    }

    /// One object's record; `None` if it does not exist.
    pub fn record(&self, class: &str, reference: &Ref) -> Result<Option<Rc<Map>>, Failure> {
        match self.call(&format!("{class}.get_record"), vec![Value::from(reference)]) {
            Ok(record) => Ok(Some(object(reference.clone(), record).record)),
            Err(Failure::Api(error)) if error.is("HANDLE_INVALID") => Ok(None),
            Err(other) => Err(other),
        }
    }

    pub fn by_uuid(&self, class: &str, uuid: &str) -> Result<Ref, Failure> {
        let reference = self.call(&format!("{class}.get_by_uuid"), vec![Value::from(uuid)])?;
        Ok(Ref::from(scalar(&reference)))
    }

    pub fn object_by_uuid(&self, class: &str, uuid: &str) -> Result<Object, Failure> {
        let reference = self.by_uuid(class, uuid)?;
        let record = self.record(class, &reference)?;
        let record = record.ok_or_else(|| Failure::Api(ApiError::uuid_invalid(class, uuid)))?;
        Ok(Object { reference, record })
    }

    pub fn uuid(&self, class: &str, reference: &Ref) -> Result<String, Failure> {
        Ok(scalar(&self.call(&format!("{class}.get_uuid"), vec![Value::from(reference)])?))
    }

    /// Runs `method` as a task and waits for its end, with a progress bar on a terminal.
    pub fn run(&self, method: &str, params: Vec<Value>, label: &str) -> Result<Value, Failure> {
        let task = Ref::from(scalar(&self.call(&format!("Async.{method}"), params)?));
        let mut bar = Bar::new(label);
        let outcome = self.runtime.block_on(self.finish_task(&task, &mut bar));
        bar.finish();
        let _ = self.call("task.destroy", vec![Value::from(&task)]);
        outcome
    }

    /// Waits for a task; a first Ctrl-C asks the server to cancel it.
    pub async fn finish_task(&self, task: &Ref, bar: &mut Bar) -> Result<Value, Failure> {
        tokio::select! {
            outcome = self.watch_task(task, bar) => return outcome,
            _ = tokio::signal::ctrl_c() => {}
        }
        // The connection was left in the middle of a call: the next one is a new one.
        self.idle.take();
        self.call_async("task.cancel", vec![Value::from(task)]).await?;
        self.watch_task(task, bar).await
    }

    /// Waits for a task whose progress is shown otherwise.
    pub async fn watch_task_quietly(&self, task: &Ref) -> Result<Value, Failure> {
        self.watch_task(task, &mut Bar::silent()).await
    }

    /// Follows a task by events until it has ended.
    pub async fn watch_task(&self, task: &Ref, bar: &mut Bar) -> Result<Value, Failure> {
        let classes = Value::set([format!("task/{task}")]);
        let mut token = String::new();
        loop {
            let params = vec![classes.clone(), Value::from(token.as_str()), Value::from(EVENT_WAIT_S)];
            let batch = self.call_async("event.from", params).await?;
            for event in batch.get("events").and_then(Value::as_set).unwrap_or_default() {
                if event.get("operation").and_then(Value::as_str) == Some("del") {
                    return Err(Failure::cli(format!("The task {task} was destroyed before it ended")));
                }
                let Some(record) = event.get("snapshot").and_then(Value::as_map) else { continue };
                bar.fraction(record.get("progress").and_then(Value::as_float).unwrap_or(0.0));
                if let Some(outcome) = outcome(record) {
                    return outcome;
                }
            }
            token = scalar(batch.get("token").unwrap_or(&Value::Void));
        }
    }
}

fn object(reference: Ref, record: Value) -> Object {
    let record = match record {
        Value::Map(map) => map,
        _ => Map::new(),
    };
    Object { reference, record: Rc::new(record) }
}

/// What an ended task says; `None` while it is under way.
pub fn outcome(task: &Map) -> Option<Result<Value, Failure>> {
    let status = task.get("status").map(scalar).unwrap_or_default();
    let errors = || task.get("error_info").and_then(Value::as_set).unwrap_or_default().iter().map(scalar).collect();
    match status.to_lowercase().as_str() {
        "success" => {
            let result = task.get("result").map(scalar).unwrap_or_default();
            Some(if result.is_empty() {
                Ok(Value::Void)
            } else {
                xmlrpc::decode_value(&result).map_err(|error| Failure::unexpected(format!("task result: {error}")))
            })
        }
        "failure" | "cancelled" => Some(Err(Failure::Api(ApiError::from_list(errors())))),
        _ => None,
    }
}
