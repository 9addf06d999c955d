//! The guest agent behind its virtio port: one command at a time, and no trust in what the guest sends.
//!
//! ```text
//!            connect + sync ok                      command
//!   Absent ------------------> Synced ------------------------------> Busy
//!     ^                          ^   matching id: answer               |
//!     |                          +-------------------------------------+
//!     +------ deadline, EOF, caller gone, line too long ---------------+
//! ```
//! - The host's socket can always be connected, agent or not; only a sync proves an agent. A sync is the byte 0xFF and
//!   `guest-sync-delimited` with a random number; everything up to the reply that carries the number is dropped: replies
//!   to commands whose caller gave up, complaints about the 0xFF, boot messages.
//! - A command that ran out of time stays queued in the guest and may run later. The connection is given up with it, so
//!   that its late reply is dropped by the next sync. After any failed freeze the caller owes a thaw.
//! - The port takes one client at a time; a second one waits without a word, hence the deadlines.
//! - The agent sends no events: the end of a program started by [`GuestAgent::exec`] can only be asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::{QemuError, Result};
use crate::qmp::refused;
use crate::text::printable;

/// Limit for connecting and syncing: an agent that needs longer counts as absent.
pub const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// Limit for commands that answer from memory.
pub const QUICK: Duration = Duration::from_secs(10);
/// Longest line accepted. The agent returns at most 48 MiB of a file in one reply; we ask for far less.
const LINE_BYTES_MAX: usize = 32 << 20;
/// Most values in one reply: a text takes what it takes, but each value beside it takes thirty times the byte that a guest
/// sends for it. The longest reply known, the list of commands, has some thousand.
const VALUES_MAX: usize = 100_000;
/// Most that is read in search of one reply; a port holds far less of what is left over from others.
const JUNK_BYTES_MAX: usize = 2 * LINE_BYTES_MAX;
/// Bytes asked for or sent at once by the file helpers.
const FILE_CHUNK_BYTES: usize = 512 << 10;
/// Steps between questions for the end of a program: short ones are noticed at once, long ones do not load the agent.
const EXEC_POLL_FIRST: Duration = Duration::from_millis(10);
const EXEC_POLL_MAX: Duration = Duration::from_millis(500);
/// Opens the reply to a sync, and clears the agent's parser when sent.
const DELIMITER: u8 = 0xFF;

/// A guest's agent port. Connects when first used and again after any failure.
pub struct GuestAgent {
    socket: PathBuf,
    next_id: AtomicU64,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// The port given away to another process: until this is dropped no command is sent from here, and the turns of those
/// who wait for one do not come.
#[must_use = "the port comes back when this is dropped"]
pub struct Lent {
    socket: PathBuf,
    _turn: OwnedMutexGuard<Option<Connection>>,
}

impl Lent {
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

/// What a program in the guest left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// None where a signal ended it.
    pub exit_code: Option<i64>,
    pub signal: Option<i64>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The agent keeps at most 16 MiB of each.
    pub truncated: bool,
}

/// What to run in the guest. No shell is involved unless `path` is one.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub path: String,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub input: Vec<u8>,
}

/// How the guest is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    Powerdown,
    Reboot,
    Halt,
}

impl GuestAgent {
    /// Names the port; touches nothing.
    pub fn new(socket: &Path) -> GuestAgent {
        // Ids start at a random place, so that a reply to another process's command cannot match.
        let start = uuid::Uuid::new_v4().as_u64_pair().0 >> 12;
        GuestAgent { socket: socket.to_path_buf(), next_id: AtomicU64::new(start), connection: Arc::default() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs one command within `limit`, waiting for other commands' turns included.
    ///
    /// # Errors
    /// [`QemuError::Refused`] in the agent's words; anything else means that the agent is absent, dead or too slow.
    pub async fn command(&self, name: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let until = Instant::now() + limit;
        let late = || QemuError::Deadline { what: format!("guest agent {name}"), limit };
        let mut slot = timeout_at(until, self.connection.lock()).await.map_err(|_| late())?;
        // Taken out while in use: whoever is cancelled here leaves no half-read connection behind.
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect_and_sync(until.min(Instant::now() + SYNC_LIMIT)).await?,
        };
        let id = self.fresh_id();
        let mut request = json!({ "execute": name, "id": id });
        if arguments.as_object().is_some_and(|members| !members.is_empty()) {
            request["arguments"] = arguments;
        }
        let exchange = async {
            connection.send(&request).await?;
            connection.reply_to(id).await
        };
        let mut reply = timeout_at(until, exchange).await.map_err(|_| late())??;
        *slot = Some(connection);
        match reply.get_mut("error") {
            Some(error) => Err(refused(name, error)),
            None => Ok(reply.get_mut("return").map(Value::take).unwrap_or(Value::Null)),
        }
    }

    /// Closes the connection, so that somebody else can be the port's one client, once those before have had their turns.
    ///
    /// # Errors
    /// [`QemuError::Deadline`] where their turns last longer than `limit`.
    pub async fn lend(&self, limit: Duration) -> Result<Lent> {
        let turn = timeout(limit, self.connection.clone().lock_owned()).await;
        let mut turn = turn.map_err(|_| QemuError::Deadline { what: "guest agent's port".into(), limit })?;
        *turn = None;
        Ok(Lent { socket: self.socket.clone(), _turn: turn })
    }

    fn fresh_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    async fn connect_and_sync(&self, until: Instant) -> Result<Connection> {
        let absent =
            || QemuError::Deadline { what: format!("guest agent on {}", self.socket.display()), limit: SYNC_LIMIT };
        let attempt = async {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(|source| QemuError::Connect { socket: self.socket.clone(), source })?;
            let mut connection = Connection { stream, received: Vec::new() };
            connection.sync(self.fresh_id()).await?;
            Ok(connection)
        };
        timeout_at(until, attempt).await.map_err(|_| absent())?
    }

    /// True round trip to the agent.
    pub async fn ping(&self, limit: Duration) -> Result<()> {
        self.command("guest-ping", json!({}), limit).await.map(drop)
    }

    /// Version and `supported_commands`, as the agent words it.
    pub async fn info(&self) -> Result<Value> {
        self.command("guest-info", json!({}), QUICK).await
    }

    pub async fn osinfo(&self) -> Result<Value> {
        self.command("guest-get-osinfo", json!({}), QUICK).await
    }

    pub async fn network_interfaces(&self) -> Result<Value> {
        self.command("guest-network-get-interfaces", json!({}), QUICK).await
    }

    pub async fn fsinfo(&self) -> Result<Value> {
        self.command("guest-get-fsinfo", json!({}), QUICK).await
    }

    pub async fn host_name(&self) -> Result<Value> {
        self.command("guest-get-host-name", json!({}), QUICK).await
    }

    /// Freezes all file systems; the number frozen. After an error or a deadline call [`GuestAgent::thaw`].
    pub async fn freeze(&self, limit: Duration) -> Result<u64> {
        self.count("guest-fsfreeze-freeze", limit).await
    }

    /// The number of file systems thawed now; fewer than frozen means that the freeze did not hold.
    pub async fn thaw(&self, limit: Duration) -> Result<u64> {
        self.count("guest-fsfreeze-thaw", limit).await
    }

    /// True where the agent believes that it has frozen the guest. It is the agent's flag, not the file systems' state.
    pub async fn is_frozen(&self, limit: Duration) -> Result<bool> {
        let status = self.command("guest-fsfreeze-status", json!({}), limit).await?;
        match status.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(unexpected("guest-fsfreeze-status", &status)),
        }
    }

    async fn count(&self, command: &str, limit: Duration) -> Result<u64> {
        let reply = self.command(command, json!({}), limit).await?;
        reply.as_u64().ok_or_else(|| unexpected(command, &reply))
    }

    /// Asks the guest to end. There is no reply on success: what tells is the SHUTDOWN or RESET event of QEMU.
    pub async fn shutdown(&self, mode: ShutdownMode) -> Result<()> {
        let mode = match mode {
            ShutdownMode::Powerdown => "powerdown",
            ShutdownMode::Reboot => "reboot",
            ShutdownMode::Halt => "halt",
        };
        match self.command("guest-shutdown", json!({ "mode": mode }), Duration::from_secs(2)).await {
            Ok(_) | Err(QemuError::Deadline { .. } | QemuError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Runs a program to its end and returns its output. On a deadline the program goes on in the guest.
    pub async fn exec(&self, request: &ExecRequest, limit: Duration) -> Result<ExecOutcome> {
        let until = Instant::now() + limit;
        let mut arguments = json!({ "path": request.path, "arg": request.arguments, "capture-output": true });
        if !request.environment.is_empty() {
            arguments["env"] = json!(request.environment);
        }
        if !request.input.is_empty() {
            arguments["input-data"] = BASE64.encode(&request.input).into();
        }
        let started = self.command("guest-exec", arguments, limit).await?;
        let pid = started.get("pid").and_then(Value::as_i64).ok_or_else(|| unexpected("guest-exec", &started))?;
        let mut pause = EXEC_POLL_FIRST;
        loop {
            match self.command("guest-exec-status", json!({ "pid": pid }), QUICK).await {
                Ok(status) if status.get("exited").and_then(Value::as_bool) == Some(true) => {
                    return exec_outcome(&status);
                }
                // A guest that is held for a while (its storage is away) answers when it goes on.
                Ok(_) | Err(QemuError::Deadline { .. }) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() + pause > until {
                return Err(QemuError::Deadline { what: format!("{} in the guest (pid {pid})", request.path), limit });
            }
            sleep(pause).await;
            pause = (pause * 2).min(EXEC_POLL_MAX);
        }
    }

    /// Reads a whole file of at most `bytes_max` bytes.
    pub async fn read_file(&self, path: &str, bytes_max: usize, limit: Duration) -> Result<Vec<u8>> {
        let handle = self.open_file(path, "r", limit).await?;
        let result = self.read_open_file(handle, path, bytes_max, limit).await;
        self.close_file(handle).await;
        result
    }

    async fn read_open_file(&self, handle: i64, path: &str, bytes_max: usize, limit: Duration) -> Result<Vec<u8>> {
        let until = Instant::now() + limit;
        let mut content = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let ask = json!({ "handle": handle, "count": FILE_CHUNK_BYTES });
            let chunk = self.command("guest-file-read", ask, left).await?;
            let bytes = decoded(&chunk, "buf-b64", "guest-file-read")?;
            content.extend_from_slice(&bytes);
            if content.len() > bytes_max {
                return Err(QemuError::Protocol {
                    what: format!("{path} in the guest"),
                    detail: format!("longer than the {bytes_max} bytes asked for"),
                });
            }
            if chunk.get("eof").and_then(Value::as_bool) == Some(true) || bytes.is_empty() {
                return Ok(content);
            }
        }
    }

    /// Replaces a file's content. Not atomic.
    pub async fn write_file(&self, path: &str, content: &[u8], limit: Duration) -> Result<()> {
        let handle = self.open_file(path, "w", limit).await?;
        let mut result = Ok(());
        for chunk in content.chunks(FILE_CHUNK_BYTES) {
            let ask = json!({ "handle": handle, "buf-b64": BASE64.encode(chunk) });
            result = self.command("guest-file-write", ask, limit).await.and_then(|reply| {
                let written = reply.get("count").and_then(Value::as_u64);
                if written == Some(chunk.len() as u64) { Ok(()) } else { Err(unexpected("guest-file-write", &reply)) }
            });
            if result.is_err() {
                break;
            }
        }
        self.close_file(handle).await;
        result
    }

    async fn open_file(&self, path: &str, mode: &str, limit: Duration) -> Result<i64> {
        let handle = self.command("guest-file-open", json!({ "path": path, "mode": mode }), limit).await?;
        handle.as_i64().ok_or_else(|| unexpected("guest-file-open", &handle))
    }

    async fn close_file(&self, handle: i64) {
        if let Err(error) = self.command("guest-file-close", json!({ "handle": handle }), QUICK).await {
            tracing::debug!(%error, handle, "a file stays open in the guest until its agent restarts");
        }
    }
}

impl Connection {
    async fn send(&mut self, request: &Value) -> Result<()> {
        let line = format!("{request}\n");
        self.write(line.as_bytes()).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(|_| QemuError::Closed { what: "guest agent".into() })
    }

    async fn sync(&mut self, number: u64) -> Result<()> {
        self.write(&[DELIMITER]).await?;
        self.send(&json!({ "execute": "guest-sync-delimited", "arguments": { "id": number }, "id": number })).await?;
        let mut read = 0;
        loop {
            let line = self.line(&mut read).await?;
            let Some(start) = line.iter().rposition(|byte| *byte == DELIMITER) else { continue };
            let reply = parsed(&line[start + 1..]);
            if reply.is_some_and(|reply| reply.get("return").and_then(Value::as_u64) == Some(number)) {
                return Ok(());
            }
        }
    }

    /// Drops everything that is not the answer to `id`: late answers to others, junk.
    async fn reply_to(&mut self, id: u64) -> Result<Value> {
        let mut read = 0;
        loop {
            let line = self.line(&mut read).await?;
            let start = line.iter().rposition(|byte| *byte == DELIMITER).map_or(0, |at| at + 1);
            match parsed(&line[start..]) {
                Some(reply) if reply.get("id").and_then(Value::as_u64) == Some(id) => return Ok(reply),
                _ => tracing::debug!(bytes = line.len(), "the guest sent a line that answers nothing"),
            }
        }
    }

    /// The next line. `read` counts the bytes of all lines before it, in search of one reply.
    async fn line(&mut self, read: &mut usize) -> Result<Vec<u8>> {
        let mut searched = 0;
        if *read > JUNK_BYTES_MAX {
            return Err(QemuError::Protocol {
                what: "guest agent".into(),
                detail: format!("over {JUNK_BYTES_MAX} bytes that answer nothing"),
            });
        }
        loop {
            if let Some(end) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(searched + end + 1);
                *read += self.received.len();
                return Ok(std::mem::replace(&mut self.received, rest));
            }
            searched = self.received.len();
            if searched > LINE_BYTES_MAX {
                return Err(QemuError::Protocol {
                    what: "guest agent".into(),
                    detail: format!("a line over {LINE_BYTES_MAX} bytes"),
                });
            }
            let closed = || QemuError::Closed { what: "guest agent".into() };
            if self.stream.read_buf(&mut self.received).await.map_err(|_| closed())? == 0 {
                return Err(closed());
            }
        }
    }
}

/// The value on a line; `None` where it is none, or one that would take far more memory than bytes were sent for it.
fn parsed(line: &[u8]) -> Option<Value> {
    if values(line) > VALUES_MAX {
        tracing::warn!(bytes = line.len(), "a guest sent more than {VALUES_MAX} values in one line");
        return None;
    }
    serde_json::from_slice(line).ok()
}

/// At least as many as there are values: each but the first comes behind a comma, a colon or an opening bracket. Those in
/// texts do not count.
fn values(line: &[u8]) -> usize {
    let (mut found, mut in_text, mut is_escaped) = (1, false, false);
    for byte in line {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b',' | b':' | b'[' | b'{' if !in_text => found += 1,
            _ => {}
        }
    }
    found
}

fn unexpected(command: &str, reply: &Value) -> QemuError {
    let shown = printable(&reply.to_string(), 200);
    QemuError::Protocol { what: format!("guest agent {command}"), detail: format!("unexpected reply {shown}") }
}

fn decoded(reply: &Value, member: &str, command: &str) -> Result<Vec<u8>> {
    let text = reply.get(member).and_then(Value::as_str).unwrap_or("");
    BASE64.decode(text).map_err(|error| QemuError::Protocol {
        what: format!("guest agent {command}"),
        detail: format!("{member} is not base64: {error}"),
    })
}

fn exec_outcome(status: &Value) -> Result<ExecOutcome> {
    let flag = |name: &str| status.get(name).and_then(Value::as_bool) == Some(true);
    Ok(ExecOutcome {
        exit_code: status.get("exitcode").and_then(Value::as_i64),
        signal: status.get("signal").and_then(Value::as_i64),
        stdout: decoded(status, "out-data", "guest-exec-status")?,
        stderr: decoded(status, "err-data", "guest-exec-status")?,
        truncated: flag("out-truncated") || flag("err-truncated"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{VALUES_MAX, parsed, values};

    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(count).sum(),
            Value::Object(members) => members.values().map(count).sum(),
            _ => 0,
        }
    }

    #[test]
    fn values_are_counted_without_being_made() {
        for text in ["1", "[]", "[[],[],{}]", r#"{"a":[1,2,{"b\\":"x,y[\"{"}],"c":null}"#, r#""\\\\""#] {
            let value: Value = serde_json::from_str(text).unwrap();
            let counted = values(text.as_bytes());
            assert!((count(&value)..=2 * count(&value) + 2).contains(&counted), "{text}: {counted}");
        }
        let text = format!("\"{}\"", ",[{:".repeat(VALUES_MAX));
        assert_eq!((values(text.as_bytes()), parsed(text.as_bytes()).is_some()), (1, true));
        let many = format!("[{}0]", "0,".repeat(VALUES_MAX));
        assert!(parsed(many.as_bytes()).is_none());
    }
}
