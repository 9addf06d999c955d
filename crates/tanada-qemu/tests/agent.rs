//! The agent client against guests that misbehave.

use std::time::Duration;

use serde_json::{Value, json};
use tanada_qemu::QemuError;
use tanada_qemu::agent::GuestAgent;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// The guest's end of one connection.
struct Guest {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Guest {
    async fn accept(listener: &UnixListener) -> Guest {
        let (stream, _): (UnixStream, _) = listener.accept().await.unwrap();
        let (read, writer) = stream.into_split();
        Guest { reader: BufReader::new(read), writer }
    }

    /// The next command; 0xFF bytes in front of it are what a sync sends.
    async fn command(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        if self.reader.read_until(b'\n', &mut line).await.unwrap() == 0 {
            return None;
        }
        let start = line.iter().rposition(|byte| *byte == 0xFF).map_or(0, |at| at + 1);
        Some(serde_json::from_slice(&line[start..]).unwrap())
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.unwrap();
    }

    async fn answer(&mut self, command: &Value, value: Value) {
        let line = format!("{}\n", json!({ "return": value, "id": command["id"] }));
        self.raw(line.as_bytes()).await;
    }

    async fn sync(&mut self) {
        let command = self.command().await.unwrap();
        assert_eq!(command["execute"], "guest-sync-delimited");
        self.raw(&[0xFF]).await;
        self.answer(&command, command["arguments"]["id"].clone()).await;
    }
}

fn listening() -> (tempfile::TempDir, UnixListener, GuestAgent) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let agent = GuestAgent::new(&socket);
    (dir, listener, agent)
}

const AMPLE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn junk_around_the_sync_and_the_reply_is_dropped() {
    let (_dir, listener, agent) = listening();
    let guest = tokio::spawn(async move {
        let mut guest = Guest::accept(&listener).await;
        let sync = guest.command().await.unwrap();
        guest.raw(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray\"}}\n").await;
        guest.raw(b"boot noise \xFF\xFE {{{ \n\n{\"return\": 1}\n\xFF{\"return\": 17}\n").await;
        guest.raw(b"half a line\xFF").await;
        guest.answer(&sync, sync["arguments"]["id"].clone()).await;
        let ping = guest.command().await.unwrap();
        guest.raw(b"{\"return\": {}, \"id\": 1}\nnot json\n[]\n").await;
        guest.answer(&ping, json!({})).await;
        guest.command().await
    });
    agent.ping(AMPLE).await.unwrap();
    drop(agent);
    assert_eq!(guest.await.unwrap(), None);
}

#[tokio::test]
async fn a_late_reply_is_not_taken_for_the_next_one() {
    let (_dir, listener, agent) = listening();
    let guest = tokio::spawn(async move {
        let mut first = Guest::accept(&listener).await;
        first.sync().await;
        let freeze = first.command().await.unwrap();
        assert_eq!(freeze["execute"], "guest-fsfreeze-freeze");
        // Silence until the host gives up; the late answer then arrives on the new connection.
        assert_eq!(first.command().await, None);
        let mut second = Guest::accept(&listener).await;
        second.answer(&freeze, json!(3)).await;
        second.sync().await;
        let thaw = second.command().await.unwrap();
        assert_eq!(thaw["execute"], "guest-fsfreeze-thaw");
        second.answer(&freeze, json!(3)).await;
        second.answer(&thaw, json!(2)).await;
    });
    let error = agent.freeze(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, QemuError::Deadline { .. }), "{error}");
    assert_eq!(agent.thaw(AMPLE).await.unwrap(), 2);
    guest.await.unwrap();
}

#[tokio::test]
async fn an_error_reply_keeps_its_class_and_the_connection() {
    let (_dir, listener, agent) = listening();
    let guest = tokio::spawn(async move {
        let mut guest = Guest::accept(&listener).await;
        guest.sync().await;
        let command = guest.command().await.unwrap();
        let error = json!({ "error": { "class": "CommandNotFound", "desc": "guest-fsfreeze-freeze has been disabled" }, "id": command["id"] });
        guest.raw(format!("{error}\n").as_bytes()).await;
        let ping = guest.command().await.unwrap();
        guest.answer(&ping, json!({})).await;
    });
    let error = agent.freeze(AMPLE).await.unwrap_err();
    assert!(error.is_class("CommandNotFound"), "{error}");
    agent.ping(AMPLE).await.unwrap();
    guest.await.unwrap();
}

#[tokio::test]
async fn an_agent_that_dies_before_its_answer_is_an_error_and_then_found_again() {
    let (_dir, listener, agent) = listening();
    let guest = tokio::spawn(async move {
        let mut guest = Guest::accept(&listener).await;
        guest.sync().await;
        guest.command().await.unwrap();
        drop(guest);
        let mut guest = Guest::accept(&listener).await;
        guest.sync().await;
        let command = guest.command().await.unwrap();
        guest.answer(&command, json!("frozen")).await;
    });
    let error = agent.ping(AMPLE).await.unwrap_err();
    assert!(matches!(error, QemuError::Closed { .. }), "{error}");
    assert!(agent.is_frozen(AMPLE).await.unwrap());
    guest.await.unwrap();
}

#[tokio::test]
async fn words_of_a_refusal_are_bounded_and_harmless() {
    let (_dir, listener, agent) = listening();
    let guest = tokio::spawn(async move {
        let mut guest = Guest::accept(&listener).await;
        guest.sync().await;
        let command = guest.command().await.unwrap();
        let words = format!("no\u{1b}[2J\nforged line{}", "x".repeat(8 << 20));
        let error = json!({ "error": { "class": words, "desc": words }, "id": command["id"] });
        guest.raw(format!("{error}\n").as_bytes()).await;
    });
    let error = agent.freeze(AMPLE).await.unwrap_err().to_string();
    assert!(error.len() < 3000 && error.contains("forged line"), "{} bytes", error.len());
    assert!(!error.contains(char::is_control), "{error}");
    guest.await.unwrap();
}

#[tokio::test]
async fn a_reply_of_too_many_values_is_no_reply() {
    let (_dir, listener, agent) = listening();
    let guest = tokio::spawn(async move {
        let mut guest = Guest::accept(&listener).await;
        guest.sync().await;
        let command = guest.command().await.unwrap();
        let many = format!("{{\"return\": [{}0], \"id\": {}}}\n", "0,".repeat(200_000), command["id"]);
        guest.raw(many.as_bytes()).await;
        guest.answer(&command, json!("the answer")).await;
    });
    assert_eq!(agent.osinfo().await.unwrap(), json!("the answer"));
    guest.await.unwrap();
}

#[tokio::test]
async fn a_guest_that_never_comes_to_the_point_is_given_up() {
    let (_dir, listener, agent) = listening();
    let guest = tokio::spawn(async move {
        let mut guest = Guest::accept(&listener).await;
        guest.sync().await;
        guest.command().await.unwrap();
        let line = format!("{{\"return\": \"{}\", \"id\": 1}}\n", "x".repeat(1 << 20));
        let mut lines = 0u32;
        while lines < 1000 && guest.writer.write_all(line.as_bytes()).await.is_ok() {
            lines += 1;
        }
        lines
    });
    let error = agent.ping(Duration::from_secs(600)).await.unwrap_err();
    assert!(matches!(error, QemuError::Protocol { .. }), "{error}");
    assert!(guest.await.unwrap() < 1000);
}
