//! The crate's one error: a kind to match on, words that name the thing.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why something with a QEMU process or its guest did not work.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// Nobody listens on the socket, or it cannot be reached.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    /// The other side took longer than the deadline. What was asked may still happen.
    #[error("{what}: no answer within {} ms", limit.as_millis())]
    Deadline { what: String, limit: Duration },
    /// QEMU or the guest agent answered with an error. `class` is for programs, `message` for people.
    #[error("{command}: {message} ({class})")]
    Refused { command: String, class: String, message: String },
    /// The connection ended before the answer.
    #[error("{what}: the connection was closed")]
    Closed { what: String },
    /// The other side broke the protocol.
    #[error("{what}: {detail}")]
    Protocol { what: String, detail: String },
    /// The description of the machine cannot be run; says what would be accepted.
    #[error("{0}")]
    Spec(String),
    /// QEMU ended by itself while it was being started; `log` holds the end of its error output.
    #[error("qemu ended with {status} while starting: {log}")]
    EndedEarly { status: String, log: String },
    /// An operation of the host's kernel failed.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

pub type Result<T> = std::result::Result<T, QemuError>;

impl QemuError {
    /// True where the other side answered with this error class.
    pub fn is_class(&self, wanted: &str) -> bool {
        matches!(self, QemuError::Refused { class, .. } if class == wanted)
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> QemuError {
        let what = what.into();
        move |source| QemuError::Io { what, source }
    }
}
