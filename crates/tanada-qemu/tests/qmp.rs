//! The QMP client against a peer that misbehaves.

use std::time::Duration;

use serde_json::{Value, json};
use tanada_qemu::QemuError;
use tanada_qemu::qmp::Qmp;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#;
const AMPLE: Duration = Duration::from_secs(30);

/// Serves one connection: greets, accepts the negotiation, then hands every command to `reply`.
async fn serve(listener: UnixListener, reply: impl Fn(&Value) -> Option<String>) {
    let (stream, _) = listener.accept().await.unwrap();
    let (read, mut write) = stream.into_split();
    write.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let command: Value = serde_json::from_str(&line).unwrap();
        let answer = match command["execute"].as_str() {
            Some("qmp_capabilities") => Some(format!("{}\r\n", json!({ "return": {}, "id": command["id"] }))),
            _ => reply(&command),
        };
        match answer {
            Some(answer) => write.write_all(answer.as_bytes()).await.unwrap(),
            None => return,
        }
    }
}

fn listening() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    (dir, socket, listener)
}

#[tokio::test]
async fn events_before_the_reply_reach_the_listener_and_the_reply_its_caller() {
    let (_dir, socket, listener) = listening();
    let server = tokio::spawn(serve(listener, |command| {
        let event = json!({ "event": "STOP", "timestamp": { "seconds": 2, "microseconds": 5 } });
        let stray = json!({ "return": "not yours", "id": 999 });
        Some(format!("{event}\r\n{stray}\r\n{}\r\n", json!({ "return": { "done": true }, "id": command["id"] })))
    }));
    let (qmp, mut events) = Qmp::connect(&socket, AMPLE).await.unwrap();
    assert_eq!((qmp.version().major, qmp.version().minor), (7, 2));
    let reply = qmp.execute("stop", json!({}), AMPLE).await.unwrap();
    assert_eq!(reply, json!({ "done": true }));
    let event = events.recv().await.unwrap();
    assert_eq!((event.name.as_str(), event.at_us), ("STOP", 2_000_005));
    drop((qmp, events));
    server.await.unwrap();
}

#[tokio::test]
async fn errors_carry_the_class_and_a_lost_connection_ends_every_wait() {
    let (_dir, socket, listener) = listening();
    let server = tokio::spawn(serve(listener, |command| {
        let known = command["execute"] == "device_del";
        let error = json!({ "error": { "class": "DeviceNotFound", "desc": "no such thing" }, "id": command["id"] });
        known.then(|| format!("{error}\r\n"))
    }));
    let (qmp, _events) = Qmp::connect(&socket, AMPLE).await.unwrap();
    let error = qmp.execute("device_del", json!({ "id": "x" }), AMPLE).await.unwrap_err();
    assert!(error.is_class("DeviceNotFound"), "{error}");
    let error = qmp.execute("quit", json!({}), AMPLE).await.unwrap_err();
    assert!(matches!(error, QemuError::Closed { .. }), "{error}");
    qmp.closed().await;
    assert!(qmp.is_closed());
    let error = qmp.execute("query-status", json!({}), AMPLE).await.unwrap_err();
    assert!(matches!(error, QemuError::Closed { .. }), "{error}");
    server.await.unwrap();
}

#[tokio::test]
async fn a_command_without_an_answer_ends_at_its_deadline() {
    let (_dir, socket, listener) = listening();
    let server = tokio::spawn(serve(listener, |_| Some(String::new())));
    let (qmp, _events) = Qmp::connect(&socket, AMPLE).await.unwrap();
    let error = qmp.execute("stop", json!({}), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, QemuError::Deadline { .. }), "{error}");
    drop(qmp);
    server.await.unwrap();
}

#[tokio::test]
async fn a_socket_held_by_another_client_is_a_deadline_not_a_hang() {
    let (_dir, socket, _listener) = listening();
    let error = Qmp::connect(&socket, Duration::from_millis(50)).await.err().unwrap();
    assert!(matches!(error, QemuError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn an_event_without_measure_is_not_kept() {
    let (_dir, socket, listener) = listening();
    let server = tokio::spawn(serve(listener, |command| {
        let (long, short) = ("x".repeat(1 << 20), json!({ "event": "RESUME" }));
        let event = json!({ "event": "STOP", "data": { "words": long } });
        // A long answer is one; a long event is none.
        let answer = json!({ "return": long, "id": command["id"] });
        let more = if command["execute"] == "query-status" { format!("{event}\r\n") } else { String::new() };
        Some(format!("{short}\r\n{more}{answer}\r\n"))
    }));
    let (qmp, mut events) = Qmp::connect(&socket, AMPLE).await.unwrap();
    assert!(qmp.execute("query-block", json!({}), AMPLE).await.unwrap().is_string());
    let error = qmp.execute("query-status", json!({}), AMPLE).await.unwrap_err();
    assert!(matches!(error, QemuError::Closed { .. }), "{error}");
    let names = [events.recv().await.unwrap().name, events.recv().await.unwrap().name];
    assert_eq!(names, ["RESUME", "RESUME"]);
    drop((qmp, events));
    server.abort();
}
