//! The control plane's end of blockd's door: one connection, many calls, restarts of the other side survived.
//!
//! ```text
//!   call() --mpsc--> actor --line--> blockd
//!     ^                |  <--line--
//!     +---- oneshot ---+     connection lost: everything unanswered is sent again on the next one
//! ```
//! One actor owns the connection. A call stays in `outstanding` until it is answered or its deadline passes. Sending a
//! call again is safe because the verbs are idempotent; a caller that hears [`ControlError::Deadline`] does not know
//! whether the verb took effect and has to repeat it.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tanada_blockd_api::{
    Answer, Command, Envelope, Event, Failure, Greeting, LINE_BYTES_MAX, Outcome, PROTOCOL_MAJOR, Response,
};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a call may take, restarts of blockd included.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// A peer that takes no line for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Failed connections in a row before the keeper is looked after.
const FAILURES_BEFORE_REVIVAL: u32 = 5;
/// Events kept for a slow listener.
const EVENTS_KEPT: usize = 64;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// blockd refused, and says why.
    #[error(transparent)]
    Refused(Failure),
    /// No answer in time. Whether the verb took effect is unknown.
    #[error("{} did not answer within {} s ({last})", socket.display(), after.as_secs())]
    Deadline { socket: PathBuf, after: Duration, last: String },
    /// An answer of another shape than the command's.
    #[error("{} answered {command} with something else: {answer}", socket.display())]
    Mismatch { socket: PathBuf, command: &'static str, answer: String },
}

/// Starts what should be listening, when nothing is.
pub type Revive = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// A connection to one store's blockd. Cheap to clone; the actor ends with the last clone.
#[derive(Clone)]
pub struct ControlClient {
    socket: Arc<PathBuf>,
    calls: mpsc::UnboundedSender<Call>,
    events: broadcast::Sender<Event>,
    greeting: watch::Receiver<Option<Greeting>>,
}

struct Call {
    command: Command,
    until: Instant,
    deadline: Duration,
    reply: oneshot::Sender<Result<Answer, ControlError>>,
}

impl ControlClient {
    /// Begins to connect; never fails. Calls wait for the connection, up to their deadline.
    pub fn start(socket: PathBuf, revive: Option<Revive>) -> ControlClient {
        let (calls, inbox) = mpsc::unbounded_channel();
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let (greeted, greeting) = watch::channel(None);
        let actor = Actor {
            socket: socket.clone(),
            events: events.clone(),
            greeted,
            revive,
            outstanding: BTreeMap::new(),
            next_id: 1,
            last_error: String::from("not connected yet"),
        };
        tokio::spawn(actor.run(inbox));
        ControlClient { socket: Arc::new(socket), calls, events, greeting }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Events of the store from now on; a listener that is too slow misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// The greeting of the current (or last) connection.
    pub fn greeting(&self) -> Option<Greeting> {
        self.greeting.borrow().clone()
    }

    /// Waits until blockd has greeted, at most `limit`.
    pub async fn greeted(&self, limit: Duration) -> Result<Greeting, ControlError> {
        let mut greeting = self.greeting.clone();
        let waited = timeout(limit, async {
            loop {
                if let Some(found) = greeting.borrow_and_update().clone() {
                    return Some(found);
                }
                if greeting.changed().await.is_err() {
                    return None;
                }
            }
        });
        waited.await.ok().flatten().ok_or_else(|| ControlError::Deadline {
            socket: self.socket.to_path_buf(),
            after: limit,
            last: String::from("no greeting"),
        })
    }

    pub async fn call(&self, command: Command) -> Result<Answer, ControlError> {
        self.call_within(command, DEADLINE_DEFAULT).await
    }

    pub async fn call_within(&self, command: Command, deadline: Duration) -> Result<Answer, ControlError> {
        let (reply, answer) = oneshot::channel();
        let call = Call { command, until: Instant::now() + deadline, deadline, reply };
        let gone = || ControlError::Deadline {
            socket: self.socket.to_path_buf(),
            after: deadline,
            last: String::from("the control client has ended"),
        };
        self.calls.send(call).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

enum Line {
    Response(Response),
    Event(Event),
    Lost(String),
}

struct Connection {
    writer: OwnedWriteHalf,
    lines: mpsc::UnboundedReceiver<Line>,
    reader: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Actor {
    socket: PathBuf,
    events: broadcast::Sender<Event>,
    greeted: watch::Sender<Option<Greeting>>,
    revive: Option<Revive>,
    outstanding: BTreeMap<u64, Call>,
    next_id: u64,
    last_error: String,
}

impl Actor {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Call>) {
        let mut retry = RETRY_FIRST;
        let mut failures = 0;
        loop {
            match self.connect().await {
                Ok(connection) => {
                    retry = RETRY_FIRST;
                    failures = 0;
                    if !self.serve(connection, &mut inbox).await {
                        return;
                    }
                }
                Err(error) => {
                    self.last_error = error.to_string();
                    failures += 1;
                }
            }
            if failures >= FAILURES_BEFORE_REVIVAL {
                failures = 0;
                self.revive().await;
            }
            if !self.wait(retry, &mut inbox).await {
                return;
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn revive(&mut self) {
        let Some(revive) = &self.revive else { return };
        tracing::warn!(socket = %self.socket.display(), error = %self.last_error, "nobody serves the store; starting its keeper");
        if let Err(error) = revive().await {
            tracing::error!(socket = %self.socket.display(), %error, "the keeper does not start");
            self.last_error = error;
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        let (read, writer) = UnixStream::connect(&self.socket).await?.into_split();
        let mut reader = BufReader::new(read);
        let mut line = Vec::new();
        let greeting = timeout(GREETING_TIMEOUT, read_line(&mut reader, &mut line))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no greeting"))??;
        let greeting: Greeting = serde_json::from_slice(greeting.ok_or_else(closed)?)?;
        if greeting.protocol_major != PROTOCOL_MAJOR {
            let words = format!("blockd speaks protocol {}, this program {PROTOCOL_MAJOR}", greeting.protocol_major);
            return Err(io::Error::new(io::ErrorKind::Unsupported, words));
        }
        self.greeted.send_replace(Some(greeting));
        let (sink, lines) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_lines(reader, sink));
        Ok(Connection { writer, lines, reader })
    }

    /// Serves one connection until it is lost (true) or nobody wants it any more (false).
    async fn serve(&mut self, mut connection: Connection, inbox: &mut mpsc::UnboundedReceiver<Call>) -> bool {
        let waiting: Vec<u64> = self.outstanding.keys().copied().collect();
        for id in waiting {
            if let Err(error) = self.send(&mut connection.writer, id).await {
                self.last_error = error.to_string();
                return true;
            }
        }
        loop {
            let expiry = self.next_expiry();
            tokio::select! {
                line = connection.lines.recv() => match line {
                    Some(Line::Response(response)) => self.answer(response),
                    Some(Line::Event(event)) => drop(self.events.send(event)),
                    Some(Line::Lost(why)) => {
                        self.last_error = why;
                        return true;
                    }
                    None => return true,
                },
                call = inbox.recv() => {
                    let Some(call) = call else { return false };
                    let id = self.accept(call);
                    if let Err(error) = self.send(&mut connection.writer, id).await {
                        self.last_error = error.to_string();
                        return true;
                    }
                }
                () = sleep_until(expiry) => self.expire(),
            }
        }
    }

    /// Without a connection: takes calls in and lets old ones expire for `pause`. False when nobody is left.
    async fn wait(&mut self, pause: Duration, inbox: &mut mpsc::UnboundedReceiver<Call>) -> bool {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                call = inbox.recv() => match call {
                    Some(call) => drop(self.accept(call)),
                    None => return false,
                },
                () = sleep_until(end.min(self.next_expiry())) => {
                    self.expire();
                    if Instant::now() >= end {
                        return true;
                    }
                }
            }
        }
    }

    fn accept(&mut self, call: Call) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.outstanding.insert(id, call);
        id
    }

    async fn send(&self, writer: &mut OwnedWriteHalf, id: u64) -> io::Result<()> {
        let Some(call) = self.outstanding.get(&id) else { return Ok(()) };
        let mut line = serde_json::to_vec(&Envelope { id, command: call.command.clone() })?;
        line.push(b'\n');
        timeout(WRITE_TIMEOUT, writer.write_all(&line))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "blockd takes no commands"))?
    }

    fn answer(&mut self, response: Response) {
        let Some(call) = self.outstanding.remove(&response.id) else { return };
        let result = match response.outcome {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Error(failure) => Err(ControlError::Refused(failure)),
        };
        drop(call.reply.send(result));
    }

    fn next_expiry(&self) -> Instant {
        let idle = Instant::now() + Duration::from_secs(3600);
        self.outstanding.values().map(|call| call.until).min().unwrap_or(idle)
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self.outstanding.iter().filter(|(_, call)| call.until <= now).map(|(id, _)| *id).collect();
        for id in late {
            let Some(call) = self.outstanding.remove(&id) else { continue };
            let error = ControlError::Deadline {
                socket: self.socket.clone(),
                after: call.deadline,
                last: self.last_error.clone(),
            };
            drop(call.reply.send(Err(error)));
        }
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "blockd closed the connection")
}

async fn read_lines(mut reader: BufReader<OwnedReadHalf>, sink: mpsc::UnboundedSender<Line>) {
    let mut line = Vec::new();
    loop {
        let parsed = match read_line(&mut reader, &mut line).await {
            Ok(Some(bytes)) => parse(bytes),
            Ok(None) => Line::Lost(closed().to_string()),
            Err(error) => Line::Lost(error.to_string()),
        };
        let last = matches!(parsed, Line::Lost(_));
        if sink.send(parsed).is_err() || last {
            return;
        }
    }
}

fn parse(line: &[u8]) -> Line {
    if let Ok(response) = serde_json::from_slice::<Response>(line) {
        return Line::Response(response);
    }
    match serde_json::from_slice::<Event>(line) {
        Ok(event) => Line::Event(event),
        Err(error) => Line::Lost(format!("blockd sent a line that is neither a reply nor an event: {error}")),
    }
}

/// One line without its end, `None` at the end of the stream. Longer than [`LINE_BYTES_MAX`] is an error.
async fn read_line<'a>(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &'a mut Vec<u8>,
) -> io::Result<Option<&'a [u8]>> {
    line.clear();
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let take = end.map_or(chunk.len(), |at| at + 1);
        line.extend_from_slice(&chunk[..take]);
        reader.consume(take);
        if end.is_some() {
            line.pop();
            return Ok(Some(line));
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line of more than {LINE_BYTES_MAX} bytes"),
            ));
        }
    }
}
