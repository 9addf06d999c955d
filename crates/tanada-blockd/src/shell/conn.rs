//! One NBD connection: what has arrived, what is to be sent, what is under way.
//!
//! ```text
//!   Open --peer says DISC--> Draining --all answered and sent--> gone
//!     |                          |
//!     +---error, EOF, detach-----+--> Closing --nothing in flight, nothing asked of the engine--> gone
//! ```
//! A receive and a send may be in flight at a time, one of each; their buffers are with the ring meanwhile.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use tanada_engine::ExportId;
use tanada_nbd::server::Session;

use crate::outgoing::Outgoing;
use crate::ring::Payload;

/// Bytes of requests that may wait in a connection's receive buffer. Larger ones gained nothing (see the speed notes'
/// finding that 16 and 256 KiB are alike); a handshake option must fit.
pub(crate) const BUFFER_BYTES: usize = 128 << 10;
/// Requests of one connection that the engine may hold at a time ...
pub(crate) const REQUESTS_MAX: u32 = 256;
/// ... and their payloads, answers not yet sent among them, in bytes. The last request let in may go beyond by its own
/// size, 32 MiB.
pub(crate) const CHARGE_BYTES_MAX: u64 = 64 << 20;
/// Heads of answers that may wait for a client that does not read, in bytes.
pub(crate) const HEADS_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnState {
    Open,
    Draining,
    Closing,
}

/// A write whose payload is on its way.
pub(crate) struct Arriving {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) fua: bool,
}

/// An answer that is due once so many bytes of the stream were thrown away.
pub(crate) struct Refused {
    pub(crate) cookie: u64,
    pub(crate) error: u32,
    pub(crate) reason: String,
    pub(crate) left: usize,
}

pub(crate) struct Conn {
    fd: OwnedFd,
    pub(crate) session: Session,
    pub(crate) state: ConnState,
    /// In the transmission phase: where requests go, and under which name.
    pub(crate) export: Option<ExportId>,
    pub(crate) token: String,
    /// Received and not yet consumed is `buffer[start..end]`. Empty while the ring has it.
    pub(crate) buffer: Vec<u8>,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) arriving: Option<Arriving>,
    /// The payload of `arriving`, unless the ring has it.
    pub(crate) payload: Option<Payload>,
    pub(crate) refused: Option<Refused>,
    pub(crate) out: Outgoing,
    /// A sent one, to be used again.
    pub(crate) spare: Outgoing,
    pub(crate) is_receiving: bool,
    pub(crate) is_sending: bool,
    /// Requests at the engine.
    pub(crate) requests: u32,
    /// Bytes of payload and answers held for this connection.
    pub(crate) charge: u64,
    /// In the list of connections to look at before the turn ends.
    pub(crate) is_touched: bool,
}

impl Conn {
    pub(crate) fn new(fd: OwnedFd) -> Conn {
        let mut out = Outgoing::default();
        let session = Session::start(out.heads());
        Conn {
            fd,
            session,
            state: ConnState::Open,
            export: None,
            token: String::new(),
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            arriving: None,
            payload: None,
            refused: None,
            out,
            spare: Outgoing::default(),
            is_receiving: false,
            is_sending: false,
            requests: 0,
            charge: 0,
            is_touched: false,
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// True where another request may be taken up.
    pub(crate) fn has_room(&self) -> bool {
        self.requests < REQUESTS_MAX && self.charge < CHARGE_BYTES_MAX && self.out.heads_bytes() < HEADS_BYTES_MAX
    }

    /// Moves bytes of the buffer into the payload that is arriving.
    pub(crate) fn fill_payload(&mut self) {
        let Some(payload) = &mut self.payload else { return };
        let count = payload.missing().min(self.end - self.start);
        let (from, filled) = (self.start, payload.filled);
        payload.buf.as_mut_slice()[filled..filled + count].copy_from_slice(&self.buffer[from..from + count]);
        payload.filled += count;
        self.start += count;
    }

    /// Moves what is left to the front, so that the most can be received behind it.
    pub(crate) fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Ends the connection without a word; whatever is in flight comes back soon.
    pub(crate) fn cut(&mut self) {
        self.state = ConnState::Closing;
        // It may be gone already.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    /// True where nothing refers to the connection any more.
    pub(crate) fn is_over(&self) -> bool {
        let is_quiet = !self.is_receiving && !self.is_sending && self.requests == 0;
        match self.state {
            ConnState::Open => false,
            ConnState::Closing => is_quiet,
            ConnState::Draining => is_quiet && self.out.is_empty(),
        }
    }
}
