//! The QEMU machine protocol: one connection, commands matched to replies by id, events fanned out.
//!
//! ```text
//!   execute() --line--> QEMU          reader task --reply--> the waiting execute(), by id
//!                                        |-----event-> every subscriber (bounded, the slow lose the oldest)
//!                                        +-----EOF---> every waiter gets Closed; closed() wakes
//! ```
//! A connection that ended stays ended: the caller connects again and asks for the state, because events sent meanwhile
//! are lost. In-band commands are serial over all monitors of a QEMU, so a command that blocks inside (a drain against a
//! dead disk server) delays all others; their deadlines still hold, but what was asked may happen later.
//!
//! A descriptor handed over ([`Qmp::hand_over`]) is known to QEMU by its name on this connection alone.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::{QemuError, Result};
use crate::text::printable;

/// Deadline for commands that answer from memory.
pub const QUICK: Duration = Duration::from_secs(10);
/// Events kept for a slow subscriber; an I/O error of a busy disk alone gives tens.
const EVENTS_KEPT: usize = 1024;
/// Replies of QEMU are far smaller; a peer that sends more in one line is not QEMU.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Longest line of an event. They are kept for slow subscribers, so together they must not be much: the longest known has
/// some hundred bytes.
const EVENT_BYTES_MAX: usize = 64 << 10;
/// Characters kept of a refusal; QEMU and its agent need some hundred.
const REFUSAL_CHARS_MAX: usize = 500;

/// One event line. `data` is an empty object where QEMU sends none.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: Value,
    /// QEMU's clock, microseconds since 1970.
    pub at_us: u64,
}

/// QEMU's version out of the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u64,
    pub minor: u64,
    pub micro: u64,
}

/// A negotiated connection. Cheap to clone; it ends when the last clone is dropped.
#[derive(Clone)]
pub struct Qmp {
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    version: Version,
    peer_pid: Option<i32>,
    next_id: AtomicU64,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
    events: broadcast::Sender<Event>,
    closed: watch::Receiver<bool>,
    reader: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Default)]
struct Waiting {
    by_id: Mutex<HashMap<u64, oneshot::Sender<std::result::Result<Value, Value>>>>,
}

impl Waiting {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<u64, oneshot::Sender<std::result::Result<Value, Value>>>) -> T) -> T {
        f(&mut self.by_id.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Forgets a waiter whose caller went away or ran out of time.
struct Registered<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.waiting.with(|map| map.remove(&self.id));
    }
}

impl Qmp {
    /// Connects, reads the greeting and leaves negotiation mode, all within `limit`. The receiver sees every event from
    /// the first on. A socket that another client holds gives no greeting, hence [`QemuError::Deadline`].
    pub async fn connect(socket: &Path, limit: Duration) -> Result<(Qmp, broadcast::Receiver<Event>)> {
        let what = format!("QMP greeting on {}", socket.display());
        match timeout(limit, Qmp::connect_inner(socket)).await {
            Ok(result) => result,
            Err(_) => Err(QemuError::Deadline { what, limit }),
        }
    }

    async fn connect_inner(socket: &Path) -> Result<(Qmp, broadcast::Receiver<Event>)> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| QemuError::Connect { socket: socket.to_path_buf(), source })?;
        let peer_pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
        let (read, write) = stream.into_split();
        let mut lines = Lines { reader: BufReader::new(read), socket: socket.to_path_buf() };
        let greeting = lines.next().await?.ok_or_else(|| lines.closed())?;
        let version = parse_greeting(&greeting).ok_or_else(|| QemuError::Protocol {
            what: format!("QMP on {}", socket.display()),
            detail: format!("no greeting but {}", printable(&greeting.to_string(), REFUSAL_CHARS_MAX)),
        })?;
        let (events, first) = broadcast::channel(EVENTS_KEPT);
        let (closing, closed) = watch::channel(false);
        let waiting = Arc::new(Waiting::default());
        let reader = tokio::spawn(read_all(lines, waiting.clone(), events.clone(), closing));
        let shared = Shared {
            socket: socket.to_path_buf(),
            version,
            peer_pid,
            next_id: AtomicU64::new(1),
            writer: tokio::sync::Mutex::new(write),
            waiting,
            events,
            closed,
            reader,
        };
        let qmp = Qmp { shared: Arc::new(shared) };
        qmp.execute("qmp_capabilities", json!({}), QUICK).await?;
        Ok((qmp, first))
    }

    pub fn version(&self) -> Version {
        self.shared.version
    }

    /// The process that listens on the socket, as the kernel recorded it.
    pub fn peer_pid(&self) -> Option<i32> {
        self.shared.peer_pid
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Returns when the connection has ended.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        // An error means that the reader is gone, which is the same thing.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Runs a command and returns its `return` member.
    ///
    /// # Errors
    /// [`QemuError::Refused`] with QEMU's class, [`QemuError::Deadline`] after `limit` (the command may still run),
    /// [`QemuError::Closed`] where the connection ended first.
    pub async fn execute(&self, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        match timeout(limit, self.execute_inner(command, arguments, None)).await {
            Ok(result) => result,
            Err(_) => Err(QemuError::Deadline { what: format!("QMP {command}"), limit }),
        }
    }

    /// Gives QEMU a descriptor, which later commands of this connection call `name`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn hand_over(&self, name: &str, descriptor: OwnedFd) -> Result<()> {
        match timeout(QUICK, self.execute_inner("getfd", json!({ "fdname": name }), Some(descriptor))).await {
            Ok(result) => result.map(drop),
            Err(_) => Err(QemuError::Deadline { what: "QMP getfd".into(), limit: QUICK }),
        }
    }

    async fn execute_inner(&self, command: &str, arguments: Value, descriptor: Option<OwnedFd>) -> Result<Value> {
        let closed = || QemuError::Closed { what: format!("QMP {command} on {}", self.shared.socket.display()) };
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.shared.waiting.with(|map| map.insert(id, sender));
        let _registered = Registered { waiting: &self.shared.waiting, id };
        if self.is_closed() {
            return Err(closed());
        }
        let mut request = Map::new();
        request.insert("execute".into(), command.into());
        if arguments.as_object().is_some_and(|members| !members.is_empty()) {
            request.insert("arguments".into(), arguments);
        }
        request.insert("id".into(), id.into());
        self.send(format!("{}\n", Value::Object(request)), descriptor).await.map_err(|_| closed())?;
        match receiver.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(refused(command, &error)),
            Err(_) => Err(closed()),
        }
    }

    /// Writes one line in a task of its own, so that a caller who gives up cannot cut a line in half. A descriptor goes
    /// with its first bytes.
    async fn send(&self, line: String, descriptor: Option<OwnedFd>) -> std::io::Result<()> {
        let shared = self.shared.clone();
        let written = tokio::spawn(async move {
            let mut writer = shared.writer.lock().await;
            let sent = match &descriptor {
                Some(descriptor) => {
                    let with = || send_with(writer.as_ref(), line.as_bytes(), descriptor);
                    writer.as_ref().async_io(Interest::WRITABLE, with).await?
                }
                None => 0,
            };
            writer.write_all(line.as_bytes().get(sent..).unwrap_or_default()).await
        });
        written.await.unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))
    }
}

/// Answers how many of the bytes went.
fn send_with(socket: &UnixStream, bytes: &[u8], descriptor: &OwnedFd) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// The words of a refusal may be a guest's: they are bounded.
pub(crate) fn refused(command: &str, error: &Value) -> QemuError {
    let member = |name: &str| printable(error.get(name).and_then(Value::as_str).unwrap_or("?"), REFUSAL_CHARS_MAX);
    QemuError::Refused { command: command.into(), class: member("class"), message: member("desc") }
}

fn parse_greeting(greeting: &Value) -> Option<Version> {
    let numbers = greeting.get("QMP")?.get("version")?.get("qemu")?;
    let number = |name: &str| numbers.get(name).and_then(Value::as_u64);
    Some(Version { major: number("major")?, minor: number("minor")?, micro: number("micro")? })
}

struct Lines {
    reader: BufReader<OwnedReadHalf>,
    socket: PathBuf,
}

impl Lines {
    /// The next JSON line; None at the end of the stream.
    async fn next(&mut self) -> Result<Option<Value>> {
        let mut line = Vec::new();
        loop {
            let what = || format!("QMP on {}", self.socket.display());
            let available = self.reader.fill_buf().await.map_err(|_| self_closed(&self.socket))?;
            if available.is_empty() {
                return Ok(None);
            }
            let (taken, whole) = match available.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (available.len(), false),
            };
            line.extend_from_slice(&available[..taken]);
            self.reader.consume(taken);
            if line.len() > LINE_BYTES_MAX {
                return Err(QemuError::Protocol {
                    what: what(),
                    detail: format!("a line over {LINE_BYTES_MAX} bytes"),
                });
            }
            if whole && !line.trim_ascii().is_empty() {
                let broken = |detail: String| QemuError::Protocol { what: what(), detail };
                let parsed: Value =
                    serde_json::from_slice(&line).map_err(|error| broken(format!("not JSON: {error}")))?;
                if line.len() > EVENT_BYTES_MAX && parsed.get("event").is_some() {
                    return Err(broken(format!("an event over {EVENT_BYTES_MAX} bytes")));
                }
                return Ok(Some(parsed));
            }
        }
    }

    fn closed(&self) -> QemuError {
        self_closed(&self.socket)
    }
}

fn self_closed(socket: &Path) -> QemuError {
    QemuError::Closed { what: format!("QMP on {}", socket.display()) }
}

async fn read_all(
    mut lines: Lines,
    waiting: Arc<Waiting>,
    events: broadcast::Sender<Event>,
    closing: watch::Sender<bool>,
) {
    loop {
        match lines.next().await {
            Ok(Some(line)) => dispatch(line, &waiting, &events),
            Ok(None) | Err(QemuError::Closed { .. }) => break,
            Err(error) => {
                tracing::warn!(%error, "giving up a QMP connection");
                break;
            }
        }
    }
    closing.send_replace(true);
    waiting.with(HashMap::clear);
}

fn dispatch(mut line: Value, waiting: &Waiting, events: &broadcast::Sender<Event>) {
    if let Some(name) = line.get("event").and_then(Value::as_str) {
        let stamp = |unit: &str| line.pointer(&format!("/timestamp/{unit}")).and_then(Value::as_u64).unwrap_or(0);
        let at_us = stamp("seconds").saturating_mul(1_000_000).saturating_add(stamp("microseconds"));
        let event = Event { name: name.into(), data: line.get("data").cloned().unwrap_or_else(|| json!({})), at_us };
        tracing::debug!(event = event.name, data = %event.data, "QMP event");
        // Nobody listening is no error.
        let _ = events.send(event);
        return;
    }
    let waiter = line.get("id").and_then(Value::as_u64).and_then(|id| waiting.with(|map| map.remove(&id)));
    let Some(waiter) = waiter else {
        tracing::debug!(%line, "QMP reply that nobody waits for");
        return;
    };
    let reply = match line.get_mut("error") {
        Some(error) => Err(error.take()),
        None => Ok(line.get_mut("return").map(Value::take).unwrap_or(Value::Null)),
    };
    let _ = waiter.send(reply);
}
