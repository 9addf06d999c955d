//! The engine's thread: one ring for sockets and the store, one turn after another.
//!
//! ```text
//!   wait --> completions --> engine.submit / engine.complete --> engine.turn --> actions --> sends, receives --+
//!    ^                                                                                                         |
//!    +---------------------------------------------------------------------------------------------------------+
//! ```
//! Everything that has ended is handled before the engine's turn, and everything that the turn answered goes out in one
//! send for each connection: batching at the socket is what makes this fast. Nothing here blocks,
//! but for the sync of a client that is alone, on a device that was quick the last time ([`Ring::sync_here`]).
//!
//! Stages: the store opens; saved attachments are opened again; only then clients are let in. At the end connections
//! are cut without an answer (a client that can, comes back and asks again), what the engine holds is awaited, a
//! checkpoint is written.

pub(crate) mod attachments;
mod commands;
mod conn;
mod cut;
mod guest;
pub(crate) mod scrub;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tanada_disk::{BufPool, DiskError, DiskOp};
use tanada_engine::{
    Action, Alert, Control, Engine, EngineConfig, Failure, IoId, OpenReport, Reply, Request, RequestId,
};
use tanada_units::MIB;

use self::attachments::{Attachments, Entry, EntryState, Saver, TableRow};
use self::commands::CommandPending;
use self::conn::{Conn, ConnState};
use self::cut::CutWatch;
use self::guest::GuestPending;
use self::scrub::Scrubs;
use crate::control::{Clients, Inbox, Message};
use crate::kept::KeptFile;
use crate::ring::{Completion, Ring};
use crate::send_thread::{self, Done, SendThread};
use crate::slab::Slab;
use crate::store_file::StoreFile;
use crate::translate;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 1024;
/// Memory for payloads that is kept for further use.
const POOL_BYTES_MAX: usize = 64 * MIB as usize;
/// Of what was read, so much is fetched into the cache while what arrived before it is worked on.
const NEXT_PREFETCHED_BYTES: usize = 16 << 10;
/// After an accept that failed for want of descriptors or memory, in microseconds.
const ACCEPT_PAUSE_US: u64 = 100_000;

/// Something asked of the engine.
enum Pending {
    Guest(GuestPending),
    Command(CommandPending),
    /// A saved attachment being opened again at the start.
    Reattach {
        token: String,
    },
    LastCheckpoint,
    /// How the scrub stands, or that it goes on.
    ScrubLook,
}

/// Connections that asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Askers {
    None,
    One(u32),
    Several,
}

impl Askers {
    fn note(&mut self, conn: u32) {
        *self = match *self {
            Askers::None => Askers::One(conn),
            Askers::One(one) if one == conn => Askers::One(one),
            _ => Askers::Several,
        };
    }

    fn is_one(self) -> bool {
        matches!(self, Askers::One(_))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The engine reads its store; then so many saved attachments are still being opened.
    Opening,
    Reattaching {
        left: usize,
    },
    Serving,
    /// Connections are cut, requests of the engine awaited.
    Draining,
    Checkpointing,
    Ended,
}

/// What is kept from one process to the next beside the store.
pub(crate) struct Books {
    pub(crate) saver: Saver,
    /// Attachments of the process before.
    pub(crate) rows: Vec<TableRow>,
    pub(crate) scrubs: Scrubs,
}

pub(crate) struct Shell {
    engine: Engine,
    ring: Ring,
    send_thread: SendThread,
    pool: BufPool,
    store: StoreFile,
    /// Where journal blocks are kept, if there is such memory.
    kept: Option<KeptFile>,
    clock: Instant,
    /// Microseconds of `clock` at the start of this turn.
    now: u64,
    stage: Stage,
    listener: OwnedFd,
    accept_again_at: Option<u64>,
    conns: Slab<Conn>,
    requests: Slab<Pending>,
    attachments: Attachments,
    saver: Saver,
    inbox: Inbox,
    clients: Clients,
    scrubs: Scrubs,
    /// Snapshots under way.
    cuts: Slab<CutWatch>,
    /// Connections that may have something to receive, send or end.
    touched: VecDeque<u32>,
    /// What the engine wants of the store in this turn.
    disk_ops: Vec<(IoId, DiskOp)>,
    /// Whose requests came since the last sync.
    askers: Askers,
    /// The engine was asked something since its last turn.
    is_asked: bool,
    opened: Option<Result<OpenReport, Failure>>,
}

impl Shell {
    /// Opens the store and the saved attachments. Must be called by the thread that calls [`Shell::run`].
    pub(crate) fn open(
        store: StoreFile,
        config: EngineConfig,
        kept: Option<KeptFile>,
        spin: Duration,
        listener: OwnedFd,
        inbox: Inbox,
        books: Books,
    ) -> anyhow::Result<(Shell, OpenReport)> {
        let clock = Instant::now();
        let mut shell = Shell {
            engine: Engine::open(config, 0),
            ring: Ring::new(spin).context("create an io_uring")?,
            send_thread: SendThread::start().context("start a thread")?,
            pool: BufPool::new(POOL_BYTES_MAX),
            store,
            kept,
            clock,
            now: 0,
            stage: Stage::Opening,
            listener,
            accept_again_at: None,
            conns: Slab::new(),
            requests: Slab::new(),
            attachments: Attachments::default(),
            saver: books.saver,
            inbox,
            clients: Clients::default(),
            scrubs: books.scrubs,
            cuts: Slab::new(),
            touched: VecDeque::new(),
            disk_ops: Vec::new(),
            askers: Askers::None,
            is_asked: false,
            opened: None,
        };
        shell.take_turn()?;
        while shell.opened.is_none() {
            shell.cycle()?;
        }
        let report = match shell.opened.take() {
            Some(Ok(report)) => report,
            Some(Err(failure)) => bail!("open the store: {failure}"),
            None => bail!("the store did not open"),
        };
        shell.reattach(books.rows);
        shell.take_turn()?;
        while matches!(shell.stage, Stage::Reattaching { left: 1.. }) {
            shell.cycle()?;
        }
        shell.stage = Stage::Serving;
        shell.resume_scrub(report.store);
        Ok((shell, report))
    }

    pub(crate) fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// Serves until told to end.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        self.ring.accept(self.listener.as_raw_fd()).context("accept")?;
        self.ring.wake(self.inbox.wake_fd()).context("wait for commands")?;
        self.ring.wake(self.send_thread.wake_fd()).context("wait for the sending thread")?;
        while self.stage != Stage::Ended {
            self.cycle()?;
        }
        Ok(())
    }

    fn reattach(&mut self, rows: Vec<TableRow>) {
        self.stage = Stage::Reattaching { left: rows.len() };
        for TableRow { token, target, writable } in rows {
            let entry = Entry { target, writable, state: EntryState::Opening, connections: 0 };
            self.attachments.entries.insert(token.clone(), entry);
            self.ask(Pending::Reattach { token }, Request::Control(Control::Open { id: target, writable }));
        }
    }

    fn cycle(&mut self) -> anyhow::Result<()> {
        let timeout = if self.send_thread.may_wait() { self.timeout() } else { Some(Duration::ZERO) };
        self.ring.wait(timeout).context("wait for the ring")?;
        self.now = self.micros();
        let mut completions = Vec::new();
        self.ring.reap(&mut completions).context("take completions")?;
        let mut completions = completions.into_iter();
        while let Some(completion) = completions.next() {
            // The next one's data comes into the cache while this one's is verified.
            if let Some(Completion::Disk { result: Ok(Some(buf)), .. }) = completions.as_slice().first() {
                buf.prefetch(0..NEXT_PREFETCHED_BYTES);
            }
            self.completed(completion)?;
        }
        for Done { conn, result, outgoing } in self.send_thread.take_done() {
            self.sent(conn, result, outgoing);
        }
        self.pass_deadlines()?;
        self.take_turn()
    }

    /// Lets the engine work and carries out what it wants, until it wants nothing more.
    fn take_turn(&mut self) -> anyhow::Result<()> {
        loop {
            self.is_asked = false;
            self.engine.turn(self.now);
            while let Some(action) = self.engine.next_action() {
                self.act(action)?;
            }
            self.end_stage();
            // Answers make room for requests that waited in receive buffers.
            for at in 0..self.touched.len() {
                let number = self.touched[at];
                self.parse_input(number);
            }
            if !self.is_asked {
                break;
            }
        }
        // Answers first: their clients work while the kernel is busy with what comes behind them.
        for at in 0..self.touched.len() {
            self.start_send(self.touched[at])?;
        }
        let is_lone_sync = matches!(self.disk_ops[..], [(_, DiskOp::Sync)]);
        let may_sync_here = is_lone_sync && self.askers.is_one() && self.ring.may_sync_here();
        if is_lone_sync {
            self.askers = Askers::None;
        }
        for (io, op) in self.disk_ops.drain(..) {
            if may_sync_here {
                self.ring.sync_here(io, self.store.raw_fd()).context("sync the store")?;
                continue;
            }
            self.ring.disk(io, self.store.raw_fd(), op, &mut self.pool).context("start a store operation")?;
        }
        while let Some(number) = self.touched.pop_front() {
            self.settle_conn(number)?;
        }
        self.end_stage();
        Ok(())
    }

    fn act(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Disk { io, op: DiskOp::Grow { length } } => {
                let result = self.store.grow(length).map(|()| None);
                let result = result.map_err(|error| DiskError { errno: error.raw_os_error().unwrap_or(libc::EIO) });
                self.engine.complete(self.now, io, result);
                self.is_asked = true;
            }
            Action::Disk { io, op } => self.disk_ops.push((io, op)),
            Action::Reply { request, result } => self.answered(request, result),
            Action::Keep(block) => match &mut self.kept {
                Some(kept) => kept.keep(&block),
                None => bail!("the engine wants {block:?} kept, and there is no memory for it"),
            },
            Action::Opened(result) => {
                if let (Some(kept), Ok(_)) = (&mut self.kept, &result) {
                    kept.clear();
                }
                self.opened = Some(result);
            }
            Action::Alert(alert) => self.alert(alert),
        }
        Ok(())
    }

    fn completed(&mut self, completion: Completion) -> anyhow::Result<()> {
        match completion {
            Completion::Disk { io, result } => self.engine.complete(self.now, io, result),
            Completion::Received { conn, result, payload, buffer } => self.received(conn, result, payload, buffer),
            Completion::Sent { conn, result, outgoing } => self.sent(conn, result, outgoing),
            Completion::Accepted { result } => self.accepted(result)?,
            // What it has done is taken in each turn.
            Completion::Woken { fd } if fd == self.send_thread.wake_fd() => {
                self.ring.wake(fd).context("wait for the sending thread")?;
            }
            Completion::Woken { .. } => {
                self.ring.wake(self.inbox.wake_fd()).context("wait for commands")?;
                while let Some(message) = self.inbox.take() {
                    match message {
                        Message::Command { ticket, command } => self.command(ticket, command),
                        Message::Shutdown => self.begin_end()?,
                    }
                }
            }
        }
        Ok(())
    }

    fn accepted(&mut self, result: io::Result<RawFd>) -> anyhow::Result<()> {
        let is_serving = self.stage == Stage::Serving;
        match result {
            Ok(fd) => {
                // SAFETY: the kernel has just made this descriptor for us, nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                if is_serving && self.conns.len() < CONNECTIONS_MAX {
                    // Means nothing on unix sockets.
                    let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
                    let number = self.conns.insert(Conn::new(fd));
                    self.touch(number);
                } else if is_serving {
                    tracing::warn!("more than {CONNECTIONS_MAX} NBD connections: one was turned away");
                }
            }
            Err(_) if !is_serving => {}
            Err(error) => {
                tracing::error!(%error, "accept on the NBD socket");
                self.accept_again_at = Some(self.now + ACCEPT_PAUSE_US);
                return Ok(());
            }
        }
        if is_serving {
            self.ring.accept(self.listener.as_raw_fd()).context("accept")?;
        }
        Ok(())
    }

    /// Hands a request to the engine.
    fn ask(&mut self, pending: Pending, request: Request) {
        let number = self.requests.insert(pending);
        self.engine.submit(self.now, RequestId(number.into()), request);
        self.is_asked = true;
    }

    fn answered(&mut self, request: RequestId, result: Result<Reply, Failure>) {
        let Some(pending) = self.requests.remove(request.0 as u32) else {
            tracing::error!(request = request.0, "the engine answered what was not asked");
            return;
        };
        match pending {
            Pending::Guest(pending) => self.guest_answered(pending, result),
            Pending::Command(pending) => self.command_answered(pending, result),
            Pending::Reattach { token } => self.reattached(token, result),
            Pending::ScrubLook => self.scrub_looked(result),
            Pending::LastCheckpoint => {
                if let Err(failure) = result {
                    tracing::error!(%failure, "no checkpoint at the end; the next start replays the journal");
                }
                self.stage = Stage::Ended;
            }
        }
    }

    fn reattached(&mut self, token: String, result: Result<Reply, Failure>) {
        match result {
            Ok(Reply::Opened { export, size, .. }) => {
                if let Some(entry) = self.attachments.entries.get_mut(&token) {
                    entry.state = EntryState::Open(attachments::Opened { export, size });
                }
            }
            other => {
                tracing::warn!(?other, "a saved attachment leads nowhere and is dropped");
                self.attachments.entries.remove(&token);
            }
        }
        if let Stage::Reattaching { left } = &mut self.stage {
            *left -= 1;
        }
    }

    fn alert(&mut self, alert: Alert) {
        match &alert {
            Alert::Damage { volume, offset, message } => tracing::error!(%volume, offset, "damage: {message}"),
            Alert::ReadOnly { message } => tracing::error!("the store takes no more writes: {message}"),
            Alert::NearlyFull { free, physical } => tracing::warn!(free, physical, "the store is nearly full"),
            Alert::Full => tracing::error!("the store is full"),
            Alert::RoomAgain { free } => tracing::info!(free, "the store has room again"),
            Alert::ScrubFinished(status) => {
                tracing::info!(bytes = status.bytes_done, damaged = status.mark.damaged, "everything is verified");
                self.scrub_seen((**status).clone(), None);
            }
        }
        self.clients.broadcast(&translate::event(alert));
    }

    /// Stops serving: clients are cut off unanswered, so that they ask the next process.
    fn begin_end(&mut self) -> anyhow::Result<()> {
        if self.stage != Stage::Serving {
            return Ok(());
        }
        tracing::info!("ending");
        self.stage = Stage::Draining;
        for (number, conn) in self.conns.iter_mut() {
            conn.cut();
            if !conn.is_touched {
                conn.is_touched = true;
                self.touched.push_back(number);
            }
        }
        self.accept_again_at = None;
        self.ring.cancel_accept().context("stop accepting")
    }

    fn end_stage(&mut self) {
        let is_guest = |(_, pending): (u32, &Pending)| matches!(pending, Pending::Guest(_));
        if self.stage == Stage::Draining && !self.requests.iter().any(is_guest) {
            self.stage = Stage::Checkpointing;
            self.ask(Pending::LastCheckpoint, Request::Control(Control::Checkpoint));
        }
    }

    fn micros(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    /// How long to wait at most.
    fn timeout(&self) -> Option<Duration> {
        if self.is_asked {
            return Some(Duration::ZERO);
        }
        let cuts = self.cuts.iter().filter_map(|(_, watch)| watch.deadline()).min();
        let next =
            [self.engine.deadline(), self.accept_again_at, self.scrubs.deadline(), cuts].into_iter().flatten().min()?;
        Some(Duration::from_micros(next.saturating_sub(self.micros())))
    }

    fn pass_deadlines(&mut self) -> anyhow::Result<()> {
        if self.accept_again_at.is_some_and(|at| at <= self.now) {
            self.accept_again_at = None;
            self.ring.accept(self.listener.as_raw_fd()).context("accept")?;
        }
        let is_due = |watch: &CutWatch| watch.deadline().is_some_and(|deadline| deadline <= self.now);
        let due: Vec<u32> = self.cuts.iter().filter(|(_, watch)| is_due(watch)).map(|(number, _)| number).collect();
        for number in due {
            self.answer_cut(number);
        }
        self.look_at_scrub();
        Ok(())
    }

    /// Puts a connection on the list of those to look at before the turn ends.
    fn touch(&mut self, number: u32) {
        if let Some(conn) = self.conns.get_mut(number)
            && !conn.is_touched
        {
            conn.is_touched = true;
            self.touched.push_back(number);
        }
    }

    /// Sends the answers that a connection has gathered, unless some are under way.
    fn start_send(&mut self, number: u32) -> anyhow::Result<()> {
        let Some(conn) = self.conns.get_mut(number) else { return Ok(()) };
        if conn.state == ConnState::Closing {
            conn.charge -= conn.out.charge;
            conn.out.clear();
        }
        if !conn.is_sending && !conn.out.is_empty() {
            let outgoing = std::mem::replace(&mut conn.out, std::mem::take(&mut conn.spare));
            conn.is_sending = true;
            if send_thread::is_worth_it(&outgoing) {
                self.send_thread.send(number, conn.raw_fd(), outgoing);
            } else {
                self.ring.send(number, conn.raw_fd(), outgoing).context("send")?;
            }
        }
        Ok(())
    }

    /// Receives where a connection can take something, or takes the connection away.
    fn settle_conn(&mut self, number: u32) -> anyhow::Result<()> {
        let Some(conn) = self.conns.get_mut(number) else { return Ok(()) };
        conn.is_touched = false;
        if conn.state == ConnState::Open && !conn.is_receiving && conn.wants_input() {
            conn.compact();
            let (payload, buffer, from) = (conn.payload.take(), std::mem::take(&mut conn.buffer), conn.end);
            conn.is_receiving = true;
            self.ring.receive(number, conn.raw_fd(), payload, buffer, from).context("receive")?;
        }
        if conn.is_over() {
            self.remove_conn(number);
        }
        Ok(())
    }
}
