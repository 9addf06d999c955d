//! Between a connection and the engine: bytes become requests, replies become bytes.

use std::io;

use tanada_engine::{ExportId, Extent, ExtentKind, Failure, Reply, Request, Segment};
use tanada_nbd::proto::{EXTENTS_MAX, NBD_EINVAL, NBD_EIO, STATE_DIRTY, STATE_HOLE, STATE_ZERO, wire_errno};
use tanada_nbd::server::{Ask, Context, Event, reply};
use uuid::Uuid;

use super::attachments::EntryState;
use super::commands::CommandPending;
use super::conn::{Arriving, Conn, ConnState, Refused};
use super::{Pending, Shell};
use crate::outgoing::Outgoing;
use crate::ring::{Payload, Received};

/// A guest's request at the engine.
pub(super) struct GuestPending {
    conn: u32,
    cookie: u64,
    export: ExportId,
    /// Bytes charged to the connection.
    charge: u64,
    /// When it was handed over, in microseconds of the shell's clock.
    started: u64,
    what: What,
}

enum What {
    Read { offset: u64, whole: bool },
    Write,
    Other,
    Status { offset: u64, length: u32, one_extent: bool, context: usize },
}

impl GuestPending {
    /// Start of a write, in microseconds of the shell's clock; `None` for anything else.
    pub(super) fn write_on(&self, exports: &[ExportId]) -> Option<u64> {
        (matches!(self.what, What::Write) && exports.contains(&self.export)).then_some(self.started)
    }
}

impl Conn {
    /// True where more bytes can be used. Not while parsed requests wait for room.
    pub(super) fn wants_input(&self) -> bool {
        self.arriving.is_some() || self.refused.is_some() || self.has_room()
    }
}

impl Shell {
    pub(super) fn received(
        &mut self,
        number: u32,
        result: io::Result<Received>,
        payload: Option<Payload>,
        buffer: Vec<u8>,
    ) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        conn.is_receiving = false;
        conn.buffer = buffer;
        conn.payload = payload;
        match result {
            Ok(received) if !received.is_end => conn.end += received.buffered,
            _ => conn.cut(),
        }
        self.touch(number);
        self.parse_input(number);
    }

    pub(super) fn sent(&mut self, number: u32, result: io::Result<()>, mut outgoing: Outgoing) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        conn.is_sending = false;
        conn.charge -= outgoing.charge;
        outgoing.clear();
        conn.spare = outgoing;
        if result.is_err() {
            conn.cut();
        }
        self.touch(number);
    }

    /// Takes requests out of the receive buffer as long as there are whole ones and room for them.
    pub(super) fn parse_input(&mut self, number: u32) {
        loop {
            let Some(conn) = self.conns.get_mut(number) else { return };
            if conn.state != ConnState::Open || conn.is_receiving {
                return;
            }
            if let Some(refused) = &mut conn.refused {
                let count = refused.left.min(conn.end - conn.start);
                conn.start += count;
                refused.left -= count;
                if refused.left > 0 {
                    return;
                }
                let structured = conn.session.is_structured();
                reply::error(conn.out.heads(), structured, refused.cookie, refused.error, &refused.reason);
                conn.refused = None;
                continue;
            }
            if conn.arriving.is_some() {
                conn.fill_payload();
                let is_whole = conn.payload.as_ref().is_some_and(|payload| payload.missing() == 0);
                if !is_whole {
                    return;
                }
                self.submit_write(number);
                continue;
            }
            if !conn.has_room() {
                return;
            }
            let input = &conn.buffer[conn.start..conn.end];
            let step = match conn.session.advance(input, &self.attachments, conn.out.heads()) {
                Ok(step) if step.is_idle() => return,
                Ok(step) => step,
                Err(error) => {
                    tracing::warn!(%error, token = conn.token, "an NBD client breaks the protocol: disconnected");
                    return conn.cut();
                }
            };
            conn.start += step.consumed;
            match step.event {
                None => {}
                Some(Event::Closed) => conn.state = ConnState::Draining,
                Some(Event::Entered { export }) => self.enter(number, export),
                Some(Event::Asked { cookie, ask }) => self.asked(number, cookie, ask),
            }
        }
    }

    fn enter(&mut self, number: u32, token: String) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let opened = self.attachments.opened(&token);
        match (opened, self.attachments.entries.get_mut(&token)) {
            (Some(opened), Some(entry)) => {
                entry.connections += 1;
                conn.export = Some(opened.export);
                conn.token = token;
            }
            _ => conn.cut(),
        }
    }

    fn asked(&mut self, number: u32, cookie: u64, ask: Ask) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let Some(export) = conn.export else { return conn.cut() };
        let (what, charge, request) = match ask {
            Ask::Nothing { is_read } => {
                let is_empty_read = is_read && conn.session.is_structured();
                let done = if is_empty_read { reply::none } else { reply::done };
                return done(conn.out.heads(), cookie);
            }
            Ask::Refuse { error, reason, payload } => {
                conn.refused = Some(Refused { cookie, error, reason, left: payload as usize });
                return;
            }
            Ask::Write { offset, length, fua } => {
                conn.arriving = Some(Arriving { cookie, offset, fua });
                conn.payload = Some(Payload { buf: self.pool.take(length as usize), filled: 0 });
                conn.charge += u64::from(length);
                return;
            }
            Ask::Read { offset, length, whole } => {
                (What::Read { offset, whole }, length.into(), Request::Read { export, offset, length })
            }
            Ask::Flush => (What::Other, 0, Request::Flush { export }),
            Ask::Trim { offset, length, fua } => {
                (What::Other, 0, Request::Discard { export, offset, length: length.into(), fua })
            }
            Ask::WriteZeroes { offset, length, fua, keep_allocated } => {
                let length = length.into();
                (What::Write, 0, Request::WriteZeroes { export, offset, length, fua, keep_allocated })
            }
            Ask::BlockStatus { offset, length, one_extent } => {
                return self.ask_status(number, cookie, What::Status { offset, length, one_extent, context: 0 });
            }
        };
        self.submit(number, cookie, export, what, charge, request);
    }

    fn submit_write(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let (Some(arriving), Some(payload), Some(export)) = (conn.arriving.take(), conn.payload.take(), conn.export)
        else {
            return conn.cut();
        };
        let Arriving { cookie, offset, fua } = arriving;
        let data = payload.buf.freeze();
        let length = data.len() as u64;
        // It was charged when its payload began to arrive.
        conn.charge -= length;
        self.submit(number, cookie, export, What::Write, length, Request::Write { export, offset, data, fua });
    }

    fn submit(&mut self, number: u32, cookie: u64, export: ExportId, what: What, charge: u64, request: Request) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        conn.requests += 1;
        conn.charge += charge;
        self.askers.note(number);
        let pending = GuestPending { conn: number, cookie, export, charge, started: self.now, what };
        self.ask(Pending::Guest(pending), request);
    }

    /// Asks for the extents of one context; the next context follows when these are there.
    fn ask_status(&mut self, number: u32, cookie: u64, what: What) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let What::Status { offset, length, one_extent, context } = what else { return };
        let Some(export) = conn.export else { return conn.cut() };
        let since = match conn.session.contexts().get(context) {
            Some(Context::ChangedSince(name)) => match Uuid::parse_str(name) {
                Ok(since) => Some(since),
                Err(_) => {
                    return reply::error(conn.out.heads(), true, cookie, NBD_EINVAL, "the context names no generation");
                }
            },
            _ => None,
        };
        let extents_max = if one_extent { 1 } else { EXTENTS_MAX };
        let request = Request::Extents { export, offset, length: length.into(), extents_max, since };
        self.submit(number, cookie, export, What::Status { offset, length, one_extent, context }, 0, request);
    }

    pub(super) fn guest_answered(&mut self, pending: GuestPending, result: Result<Reply, Failure>) {
        if matches!(pending.what, What::Write) {
            self.write_ended(pending.export, pending.started);
        }
        let number = pending.conn;
        let Some(conn) = self.conns.get_mut(number) else { return };
        conn.requests -= 1;
        let mut next_status = None;
        if conn.state == ConnState::Closing {
            conn.charge -= pending.charge;
        } else {
            next_status = conn.answer(&pending, result);
        }
        if let Some(what) = next_status {
            self.ask_status(number, pending.cookie, what);
        }
        self.touch(number);
    }

    fn write_ended(&mut self, export: ExportId, started: u64) {
        if self.cuts.is_empty() {
            return;
        }
        // Not the turn's start: a write may begin and end in one turn.
        let now = self.micros();
        let due: Vec<u32> = self
            .cuts
            .iter_mut()
            .filter_map(|(number, watch)| watch.write_ended(export, started, now).then_some(number))
            .collect();
        for number in due {
            self.answer_cut(number);
        }
    }

    /// Takes away a connection that is over, and ends a detachment that waited for it.
    pub(super) fn remove_conn(&mut self, number: u32) {
        let Some(conn) = self.conns.remove(number) else { return };
        if conn.export.is_none() {
            return;
        }
        let Some(entry) = self.attachments.entries.get_mut(&conn.token) else { return };
        entry.connections -= 1;
        if let (0, EntryState::Closing { .. }) = (entry.connections, &entry.state) {
            self.close_attachment(conn.token);
        }
    }

    /// Gives the export of a closing attachment back to the engine.
    pub(super) fn close_attachment(&mut self, token: String) {
        let Some(entry) = self.attachments.entries.remove(&token) else { return };
        if let EntryState::Closing { opened, ticket } = entry.state {
            let request = Request::Control(tanada_engine::Control::Close { export: opened.export });
            self.ask(Pending::Command(CommandPending::Detach { ticket }), request);
        }
    }
}

impl Conn {
    /// Appends the answer. `Some` where the extents of a further context are due before the reply is complete.
    fn answer(&mut self, pending: &GuestPending, result: Result<Reply, Failure>) -> Option<What> {
        let (cookie, structured) = (pending.cookie, self.session.is_structured());
        match (&pending.what, result) {
            (What::Read { offset, whole }, Ok(Reply::Data(segments))) => {
                // The charge stays until the data is sent.
                self.out.charge += pending.charge;
                push_data(&mut self.out, cookie, *offset, segments, structured, *whole);
                return None;
            }
            (What::Write | What::Other, Ok(Reply::Done)) => reply::done(self.out.heads(), cookie),
            (What::Status { offset, length, one_extent, context }, Ok(Reply::Extents(extents))) => {
                let next = context + 1;
                let is_last = next >= self.session.contexts().len();
                let changed = matches!(self.session.contexts().get(*context), Some(Context::ChangedSince(_)));
                let states = states(&extents, u64::from(*length), changed);
                reply::block_status(self.out.heads(), cookie, next as u32, &states, is_last);
                if !is_last {
                    let (offset, length, one_extent) = (*offset, *length, *one_extent);
                    return Some(What::Status { offset, length, one_extent, context: next });
                }
            }
            (_, Ok(other)) => {
                tracing::error!(?other, "the engine answered something else than was asked");
                reply::error(self.out.heads(), structured, cookie, NBD_EIO, "internal error");
            }
            (_, Err(failure)) => {
                tracing::debug!(%failure, token = self.token, "a request failed");
                let error = wire_errno(failure.errno);
                reply::error(self.out.heads(), structured, cookie, error, &failure.message);
            }
        }
        self.charge -= pending.charge;
        None
    }
}

/// The reply to a read. Simple replies and `whole` ones have one run of data; otherwise zeros travel as holes.
fn push_data(out: &mut Outgoing, cookie: u64, mut offset: u64, segments: Vec<Segment>, structured: bool, whole: bool) {
    let length = |segment: &Segment| match segment {
        Segment::Data(data) => data.len() as u32,
        Segment::Zeros(count) => *count,
    };
    if !structured {
        reply::done(out.heads(), cookie);
    } else if whole {
        reply::data(out.heads(), cookie, offset, segments.iter().map(length).sum(), true);
    }
    let is_one_run = whole || !structured;
    let mut rest = segments.into_iter().peekable();
    while let Some(segment) = rest.next() {
        if is_one_run {
            match segment {
                Segment::Data(data) => out.push_data(data),
                Segment::Zeros(count) => out.push_zeros(count as usize),
            }
            continue;
        }
        match segment {
            Segment::Zeros(mut count) => {
                while let Some(Segment::Zeros(more)) = rest.next_if(|next| matches!(next, Segment::Zeros(_))) {
                    count += more;
                }
                reply::hole(out.heads(), cookie, offset, count, rest.peek().is_none());
                offset += u64::from(count);
            }
            Segment::Data(data) => {
                let mut run = vec![data];
                while let Some(Segment::Data(more)) = rest.next_if(|next| matches!(next, Segment::Data(_))) {
                    run.push(more);
                }
                let count = run.iter().map(|data| data.len() as u32).sum();
                reply::data(out.heads(), cookie, offset, count, rest.peek().is_none());
                run.into_iter().for_each(|data| out.push_data(data));
                offset += u64::from(count);
            }
        }
    }
}

/// Extents as lengths and flags of the wire; equal neighbours become one, and none reaches beyond the request.
fn states(extents: &[Extent], length: u64, changed: bool) -> Vec<(u32, u32)> {
    let mut states: Vec<(u32, u32)> = Vec::with_capacity(extents.len());
    let mut left = length;
    for extent in extents {
        let flags = match (changed, extent.kind) {
            (false, ExtentKind::Hole) => STATE_HOLE | STATE_ZERO,
            (true, ExtentKind::Data | ExtentKind::Hole) => STATE_DIRTY,
            (false, ExtentKind::Data | ExtentKind::Same) | (true, ExtentKind::Same) => 0,
        };
        // The request's length fits in 32 bits, so all of its parts do.
        let count = extent.length.min(left);
        left -= count;
        match states.last_mut() {
            _ if count == 0 => {}
            Some((last, same)) if *same == flags => *last += count as u32,
            _ => states.push((count as u32, flags)),
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::{push_data, states};
    use crate::outgoing::Outgoing;
    use tanada_disk::Buf;
    use tanada_engine::{Extent, ExtentKind, Segment};

    fn bytes(mut out: Outgoing) -> Vec<u8> {
        let mut bytes = Vec::new();
        out.pieces(|piece| bytes.extend_from_slice(piece));
        bytes
    }

    fn segments() -> Vec<Segment> {
        let data = |byte| Segment::Data(Buf::copy_from(&[byte; 8]));
        vec![data(1), data(2), Segment::Zeros(4), Segment::Zeros(4), data(3)]
    }

    #[test]
    fn a_read_is_chunks_or_one_run() {
        let mut out = Outgoing::default();
        push_data(&mut out, 1, 100, segments(), false, false);
        assert_eq!(bytes(out).len(), 16 + 32);
        let mut out = Outgoing::default();
        push_data(&mut out, 1, 100, segments(), true, true);
        assert_eq!(bytes(out).len(), 28 + 32);
        let mut out = Outgoing::default();
        push_data(&mut out, 1, 100, segments(), true, false);
        let bytes = bytes(out);
        assert_eq!(bytes.len(), (28 + 16) + 32 + (28 + 8));
        assert_eq!(bytes[44 + 20..44 + 32], [0, 0, 0, 0, 0, 0, 0, 116, 0, 0, 0, 8]);
        assert_eq!((bytes[5], bytes[44 + 5], bytes[76 + 5]), (0, 0, 1), "only the last chunk ends the reply");
    }

    #[test]
    fn equal_neighbours_become_one_extent() {
        let extent = |offset, length, kind| Extent { offset, length, kind };
        let found = [extent(0, 4, ExtentKind::Hole), extent(4, 4, ExtentKind::Hole), extent(8, 100, ExtentKind::Data)];
        assert_eq!(states(&found, 20, false), [(8, 3), (12, 0)]);
        assert_eq!(states(&found, 20, true), [(20, 1)]);
    }
}
