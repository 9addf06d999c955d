//! A tiny server on a unix socket: objects in a map, the implicit messages, and an answer per test for the rest.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tanada_xapi::xmlrpc::{Call, decode_call, encode_response, encode_value};
use tanada_xapi::{ApiError, ApiResult, Map, Ref, Value};

type Answer = dyn Fn(&str, &[Value]) -> Option<ApiResult<Value>> + Send + Sync;

#[derive(Default)]
pub struct State {
    /// class -> reference -> record
    pub objects: BTreeMap<String, BTreeMap<String, Map>>,
    /// `Class.message(param, ...)` of everything but reading and sessions.
    pub log: Vec<String>,
    /// What `GET` answers: the body, and how many bytes of it are really sent.
    pub download: (Vec<u8>, usize),
    pub uploaded: Vec<u8>,
    tasks: usize,
}

pub struct FakeServer {
    pub socket: PathBuf,
    pub state: Arc<Mutex<State>>,
    _folder: tempfile::TempDir,
}

impl FakeServer {
    /// `answer` is asked first; what it leaves to us follows the objects.
    pub fn start(answer: impl Fn(&str, &[Value]) -> Option<ApiResult<Value>> + Send + Sync + 'static) -> FakeServer {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let answer: Arc<Answer> = Arc::new(answer);
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (state, answer) = (shared.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &state, &answer));
            }
        });
        FakeServer { socket, state, _folder: folder }
    }

    /// Adds an object; its reference is `OpaqueRef:<uuid>`.
    pub fn add<const N: usize>(&self, class: &str, uuid: &str, fields: [(&str, Value); N]) {
        let mut record: Map = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        record.insert("uuid".to_owned(), Value::from(uuid));
        let mut state = self.state.lock().unwrap();
        state.objects.entry(class.to_owned()).or_default().insert(format!("OpaqueRef:{uuid}"), record);
    }

    pub fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }
}

fn serve(stream: UnixStream, state: &Mutex<State>, answer: &Arc<Answer>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some((start, body)) = read_request(&mut reader) {
        let mut words = start.split(' ');
        match (words.next(), words.next()) {
            (Some("POST"), _) => {
                let call = decode_call(std::str::from_utf8(&body).unwrap()).unwrap();
                let reply = encode_response(&respond(state, answer, call));
                if send(&mut writer, reply.as_bytes(), reply.len()).is_err() {
                    return;
                }
            }
            (Some("GET"), Some(uri)) => {
                let (data, sent) = state.lock().unwrap().download.clone();
                let complete = data.len() == sent;
                end_task(state, uri, complete);
                let _ = send(&mut writer, &data[..sent], data.len());
                return;
            }
            (Some("PUT"), Some(uri)) => {
                state.lock().unwrap().uploaded = body;
                end_task(state, uri, true);
                let _ = send(&mut writer, b"", 0);
            }
            _ => return,
        }
    }
}

fn read_request(reader: &mut BufReader<UnixStream>) -> Option<(String, Vec<u8>)> {
    let mut start = String::new();
    if reader.read_line(&mut start).ok()? == 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((start, body))
}

fn send(writer: &mut UnixStream, body: &[u8], length: usize) -> std::io::Result<()> {
    write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
    writer.write_all(body)
}

fn task_record(status: &str, result: &str, errors: &[String]) -> Map {
    let Value::Map(record) = Value::map([
        ("status", Value::from(status)),
        ("progress", Value::Float(1.0)),
        ("result", Value::from(result)),
        ("error_info", Value::set(errors)),
    ]) else {
        unreachable!()
    };
    record
}

/// The transfer of the task that the query names has ended.
fn end_task(state: &Mutex<State>, uri: &str, complete: bool) {
    let task = uri.split_once("task_id=").unwrap().1.split('&').next().unwrap().to_owned();
    let (status, errors) =
        if complete { ("success", vec![]) } else { ("failure", vec!["VDI_IO_ERROR".into(), "d".into()]) };
    let result = encode_value(&Value::set(["OpaqueRef:imported"]));
    let mut state = state.lock().unwrap();
    state.log.push(uri.split("session_id=").next().unwrap().to_owned() + uri.split_once(&task).unwrap().1);
    state.objects.entry("task".into()).or_default().insert(task, task_record(status, &result, &errors));
}

fn respond(state: &Mutex<State>, answer: &Arc<Answer>, call: Call) -> ApiResult<Value> {
    let Call { method, params } = call;
    if method == "session.login_with_password" {
        return match params[1].as_str() {
            Some("wrong") => Err(ApiError::session_authentication_failed("root", "no")),
            _ => Ok(Value::from("OpaqueRef:session")),
        };
    }
    assert_eq!(params[0].as_str(), Some("OpaqueRef:session"), "{method} without a session");
    let params = &params[1..];
    if let Some(asynchronous) = method.strip_prefix("Async.") {
        let outcome = run(state, answer, asynchronous, params);
        let mut state = state.lock().unwrap();
        state.tasks += 1;
        let task = format!("OpaqueRef:task-{}", state.tasks);
        let record = match outcome {
            Ok(value) => task_record("success", &encode_value(&value), &[]),
            Err(error) => task_record("failure", "", &error.to_list()),
        };
        state.objects.entry("task".into()).or_default().insert(task.clone(), record);
        return Ok(Value::from(task));
    }
    run(state, answer, &method, params)
}

fn run(state: &Mutex<State>, answer: &Arc<Answer>, method: &str, params: &[Value]) -> ApiResult<Value> {
    let (class, message) = method.split_once('.').unwrap();
    let text = |index: usize| params.get(index).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut state = state.lock().unwrap();
    let is_reading = message.starts_with("get_") || matches!(class, "session" | "event" | "task");
    if !is_reading {
        let shown: Vec<String> = params.iter().map(show).collect();
        state.log.push(format!("{method}({})", shown.join(", ")));
    }
    if let Some(answered) = answer(method, params) {
        return answered;
    }
    let objects = state.objects.entry(class.to_owned()).or_default();
    let missing = || ApiError::handle_invalid(class, text(0));
    match message {
        "get_all_records" => Ok(Value::map(objects.iter().map(|(r, record)| (r.clone(), Value::Map(record.clone()))))),
        "get_record" => objects.get(&text(0)).cloned().map(Value::Map).ok_or_else(missing),
        "get_uuid" => objects.get(&text(0)).map(|record| record["uuid"].clone()).ok_or_else(missing),
        "get_by_uuid" => {
            let found = objects.iter().find(|(_, record)| record["uuid"].as_str() == Some(&text(0)));
            found.map(|(r, _)| Value::from(r)).ok_or_else(|| ApiError::uuid_invalid(class, text(0)))
        }
        "create" if class == "task" => {
            let task = "OpaqueRef:transfer";
            objects.insert(task.to_owned(), task_record("pending", "", &[]));
            Ok(Value::from(task))
        }
        "from" => {
            let wanted = params[0].as_set().unwrap()[0].as_str().unwrap().to_owned();
            let (class, reference) = wanted.split_once('/').unwrap_or((&wanted, ""));
            let api_class = if class == "vm" { "VM" } else { class };
            let known = state.objects.get(api_class).into_iter().flatten();
            let events = known.filter(|(r, _)| reference.is_empty() || *r == reference).map(|(r, record)| {
                let snapshot = Value::Map(record.clone());
                Value::map([("operation", Value::from("add")), ("ref", Value::from(r)), ("snapshot", snapshot)])
            });
            Ok(Value::map([("events", Value::set(events)), ("token", Value::from("1"))]))
        }
        _ if is_reading || message.starts_with("destroy") || message.contains('_') => Ok(Value::Void),
        _ => Err(ApiError::message_method_unknown(method)),
    }
}

/// Short and stable: references without their prefix, maps in braces.
fn show(value: &Value) -> String {
    match value {
        Value::Map(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}={}", show(v))).collect();
            format!("{{{}}}", pairs.join(" "))
        }
        Value::Set(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Bool(b) => b.to_string(),
        Value::Float(x) => x.to_string(),
        Value::Int(n) => n.to_string(),
        other => other.as_str().unwrap_or_default().replace("OpaqueRef:", "@"),
    }
}

/// A record from a class's reference, for tests that build relations.
pub fn reference(uuid: &str) -> Value {
    Value::from(Ref::from(format!("OpaqueRef:{uuid}")))
}
