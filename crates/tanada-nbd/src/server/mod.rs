//! One client's session with a server, without I/O.
//!
//! ```text
//!   bytes from the client --advance()--> events, bytes to send
//!
//!   ClientFlags --> Options --GO or EXPORT_NAME--> Transmission
//!                      |  ABORT                        |  DISC
//!                      +------------> Closed <---------+
//! ```
//! Whoever owns the socket calls [`Session::advance`] with what has arrived and not been consumed, until it reports
//! neither consumption nor an event; then it waits for more. A write's payload is not passed through the session: after
//! [`Ask::Write`] (and after [`Ask::Refuse`] with a payload) the next `length` bytes of the stream are the owner's to
//! take, so that they can land in their final place. Replies are encoded by [`reply`] in any order.
//!
//! Failures: a [`ProtocolError`] means that the peer is broken or hostile. The connection ends without an answer.
//! What a correct client may get wrong (unknown export, range beyond the end) is answered with an error instead.
//!
//! The session does not look at time, does not limit how many requests are under way, and knows no TLS.

mod handshake;
pub mod reply;
mod transmission;

#[cfg(test)]
mod tests;

use handshake::Handshake;
use transmission::Transmission;

use crate::proto::ProtocolError;

/// What the session must know of an export, as it is at the moment of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportInfo {
    /// In bytes.
    pub size: u64,
    pub read_only: bool,
}

/// Where exports are looked up by name during the handshake.
pub trait Exports {
    fn find(&self, name: &str) -> Option<ExportInfo>;

    /// The names to tell a client that asks; `None` refuses by policy.
    fn list(&self) -> Option<Vec<String>> {
        None
    }
}

/// A metadata context that the client selected. Its number on the wire is its place in the list plus one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`.
    Allocation,
    /// `qemu:dirty-bitmap:NAME`: what changed since NAME.
    ChangedSince(String),
}

/// What the client asks in the transmission phase, checked against the export. Offsets and lengths are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// With `whole` the data must come in one chunk.
    Read {
        offset: u64,
        length: u32,
        whole: bool,
    },
    /// `length` bytes of payload follow in the stream.
    Write {
        offset: u64,
        length: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        length: u32,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        fua: bool,
        keep_allocated: bool,
    },
    /// Answered with one chunk for each context; with `one_extent`, exactly one extent in each.
    BlockStatus {
        offset: u64,
        length: u32,
        one_extent: bool,
    },
    /// Allowed, and there is nothing to do: hints and empty ranges.
    Nothing {
        is_read: bool,
    },
    /// To be answered with `error` after `payload` bytes of the stream were thrown away.
    Refuse {
        error: u32,
        reason: String,
        payload: u32,
    },
}

/// What a step of the session led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The transmission phase begins on the export of this name. What was put in `out` must be sent first.
    Entered {
        export: String,
    },
    Asked {
        cookie: u64,
        ask: Ask,
    },
    /// The client said good-bye: finish what is under way, send what is in `out`, close.
    Closed,
}

/// How far one call came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    pub event: Option<Event>,
}

impl Step {
    /// True where nothing more can be done without more input.
    pub fn is_idle(&self) -> bool {
        self.consumed == 0 && self.event.is_none()
    }
}

enum Phase {
    Handshake(Handshake),
    Transmission(Transmission),
    Closed,
}

/// One client's session.
pub struct Session {
    phase: Phase,
}

impl Session {
    /// Begins a session; the server's greeting is appended to `out`.
    pub fn start(out: &mut Vec<u8>) -> Session {
        Session { phase: Phase::Handshake(Handshake::start(out)) }
    }

    /// Takes one step: consumes at most one message from the front of `input`. What is to be sent is appended to `out`.
    /// A handshake message must fit in the input as a whole, which takes at most
    /// [`OPTION_BYTES_MAX`](crate::proto::OPTION_BYTES_MAX) plus its header.
    pub fn advance(&mut self, input: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Result<Step, ProtocolError> {
        match &mut self.phase {
            Phase::Closed => Ok(Step { consumed: input.len(), event: None }),
            Phase::Transmission(transmission) => {
                let step = transmission.advance(input)?;
                if step.event == Some(Event::Closed) {
                    self.phase = Phase::Closed;
                }
                Ok(step)
            }
            Phase::Handshake(handshake) => {
                let (consumed, outcome) = handshake.advance(input, exports, out)?;
                let event = match outcome {
                    handshake::Outcome::Continue => None,
                    handshake::Outcome::Close => {
                        self.phase = Phase::Closed;
                        Some(Event::Closed)
                    }
                    handshake::Outcome::Enter { name, transmission } => {
                        self.phase = Phase::Transmission(transmission);
                        Some(Event::Entered { export: name })
                    }
                };
                Ok(Step { consumed, event })
            }
        }
    }

    /// The client's export has another size from now on, in bytes.
    pub fn set_size(&mut self, size: u64) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.export.size = size;
        }
    }

    /// True where structured replies were negotiated; reads must use them then.
    pub fn is_structured(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(transmission) if transmission.structured)
    }

    /// The contexts that the client selected for this export.
    pub fn contexts(&self) -> &[Context] {
        match &self.phase {
            Phase::Transmission(transmission) => &transmission.contexts,
            _ => &[],
        }
    }
}
