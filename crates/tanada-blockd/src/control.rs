//! The control socket: plain threads that turn lines into messages for the engine's thread and answers into lines.
//!
//! ```text
//!   "control" accepts --> per client: reader --Message--> Inbox (queue + eventfd) --> engine's thread
//!                                     writer <--lines---- Client's outbox <--Ticket::answer, Clients::broadcast--
//! ```
//! The engine's thread never waits for a client: an outbox is memory behind a lock held for a few instructions, and a
//! client that does not read what it is sent is disconnected once its outbox is full.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;

use rustix::event::EventfdFlags;
use tanada_blockd_api::{Answer, Command, Envelope, Event, Failure, Greeting, LINE_BYTES_MAX, Outcome, Response};

/// Clients at a time. The control plane needs one, an administrator a few.
const CLIENTS_MAX: usize = 64;
/// Commands under way for one client; its next one waits.
const COMMANDS_MAX: usize = 256;
/// Lines that may wait for a client that does not read.
const OUTBOX_LINES_MAX: usize = 2 * COMMANDS_MAX;

/// What reaches the engine's thread from the others.
pub(crate) enum Message {
    Command {
        ticket: Ticket,
        command: Command,
    },
    /// End cleanly: a signal asked for it.
    Shutdown,
}

/// The engine's end of the queue.
pub(crate) struct Inbox {
    receiver: mpsc::Receiver<Message>,
    sender: Sender,
}

/// The other threads' end of the queue.
#[derive(Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Message>,
    wake: Arc<OwnedFd>,
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Inbox> {
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let (queue, receiver) = mpsc::channel();
        Ok(Inbox { receiver, sender: Sender { queue, wake } })
    }

    pub(crate) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The eventfd that becomes readable with every message.
    pub(crate) fn wake_fd(&self) -> RawFd {
        self.sender.wake.as_raw_fd()
    }

    pub(crate) fn take(&self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }
}

impl Sender {
    pub(crate) fn send(&self, message: Message) {
        // Both fail only when the engine's thread is gone, and the process with it.
        let _ = self.queue.send(message);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// A connected client.
struct Client {
    stream: UnixStream,
    outbox: Mutex<Outbox>,
    /// Signalled when the outbox, `pending` or `is_closed` change.
    changed: Condvar,
}

#[derive(Default)]
struct Outbox {
    lines: VecDeque<Line>,
    /// Commands not yet answered.
    pending: usize,
    is_closed: bool,
}

enum Line {
    Greeting(Greeting),
    Response(Response),
    Event(Event),
}

impl Client {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Line) {
        let mut outbox = self.outbox();
        if matches!(line, Line::Response(_)) {
            outbox.pending = outbox.pending.saturating_sub(1);
        }
        outbox.lines.push_back(line);
        let is_stuck = outbox.lines.len() > OUTBOX_LINES_MAX;
        drop(outbox);
        if is_stuck {
            tracing::warn!("a control client does not read its answers: disconnected");
            self.close();
        }
        self.changed.notify_all();
    }

    fn close(&self) {
        self.outbox().is_closed = true;
        self.changed.notify_all();
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The right, and the duty, to answer one command.
#[must_use]
pub(crate) struct Ticket {
    client: Arc<Client>,
    id: u64,
}

impl Ticket {
    pub(crate) fn answer(self, result: Result<Answer, Failure>) {
        let outcome = match result {
            Ok(answer) => Outcome::Ok(answer),
            Err(failure) => Outcome::Error(failure),
        };
        self.client.push(Line::Response(Response { id: self.id, outcome }));
    }

    pub(crate) fn refuse(self, errno: i32, message: impl Into<String>) {
        self.answer(Err(Failure { errno, message: message.into() }));
    }
}

/// All connected clients, for events.
#[derive(Clone, Default)]
pub(crate) struct Clients {
    list: Arc<Mutex<Vec<Weak<Client>>>>,
}

impl Clients {
    fn list(&self) -> MutexGuard<'_, Vec<Weak<Client>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn broadcast(&self, event: &Event) {
        for client in self.list().iter().filter_map(Weak::upgrade) {
            client.push(Line::Event(event.clone()));
        }
    }

    /// `None` where there are too many already.
    fn add(&self, stream: UnixStream) -> Option<Arc<Client>> {
        let mut list = self.list();
        list.retain(|client| client.strong_count() > 0);
        if list.len() >= CLIENTS_MAX {
            return None;
        }
        let client = Arc::new(Client { stream, outbox: Mutex::default(), changed: Condvar::new() });
        list.push(Arc::downgrade(&client));
        Some(client)
    }
}

/// Starts accepting clients.
pub(crate) fn serve(listener: UnixListener, greeting: Greeting, clients: Clients, sender: Sender) -> io::Result<()> {
    thread::Builder::new().name("control".to_owned()).spawn(move || {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "accept on the control socket");
                    // Out of descriptors or memory: others must end first.
                    thread::sleep(std::time::Duration::from_millis(100));
                    continue;
                }
            };
            let Some(client) = clients.add(stream) else {
                tracing::warn!("more than {CLIENTS_MAX} control clients: one was turned away");
                continue;
            };
            client.push(Line::Greeting(greeting.clone()));
            if let Err(error) = start(client, sender.clone()) {
                tracing::error!(%error, "start threads for a control client");
            }
        }
    })?;
    Ok(())
}

fn start(client: Arc<Client>, sender: Sender) -> io::Result<()> {
    let writer = Arc::clone(&client);
    thread::Builder::new().name("control-write".to_owned()).spawn(move || {
        let _ = write_lines(&writer);
        writer.close();
    })?;
    thread::Builder::new().name("control-read".to_owned()).spawn(move || {
        if let Err(error) = read_lines(&client, &sender) {
            tracing::debug!(%error, "control connection ends");
        }
        client.close();
    })?;
    Ok(())
}

fn write_lines(client: &Client) -> io::Result<()> {
    let mut stream = &client.stream;
    loop {
        let line = {
            let mut outbox = client.outbox();
            loop {
                if outbox.is_closed {
                    return Ok(());
                }
                if let Some(line) = outbox.lines.pop_front() {
                    break line;
                }
                outbox = client.changed.wait(outbox).unwrap_or_else(PoisonError::into_inner);
            }
        };
        client.changed.notify_all();
        let mut bytes = match &line {
            Line::Greeting(greeting) => serde_json::to_vec(greeting),
            Line::Response(response) => serde_json::to_vec(response),
            Line::Event(event) => serde_json::to_vec(event),
        }?;
        bytes.push(b'\n');
        stream.write_all(&bytes)?;
    }
}

fn read_lines(client: &Arc<Client>, sender: &Sender) -> io::Result<()> {
    let mut reader = BufReader::new(&client.stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if count == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            return Err(io::Error::other(format!("a line is longer than {LINE_BYTES_MAX} bytes or has no end")));
        }
        let mut outbox = client.outbox();
        while outbox.pending >= COMMANDS_MAX && !outbox.is_closed {
            outbox = client.changed.wait(outbox).unwrap_or_else(PoisonError::into_inner);
        }
        outbox.pending += 1;
        drop(outbox);
        match serde_json::from_slice::<Envelope>(&line) {
            Ok(Envelope { id, command }) => {
                let ticket = Ticket { client: Arc::clone(client), id };
                sender.send(Message::Command { ticket, command });
            }
            Err(error) => {
                // A command of a newer version is an error to its sender, not the end of the connection.
                let id = serde_json::from_slice::<serde_json::Value>(&line)
                    .ok()
                    .and_then(|value| value.get("id")?.as_u64())
                    .ok_or_else(|| io::Error::other(format!("a line is no command: {error}")))?;
                let ticket = Ticket { client: Arc::clone(client), id };
                ticket.refuse(libc::EINVAL, format!("command not understood: {error}"));
            }
        }
    }
}
