use std::io;

pub type XvaResult<T> = Result<T, XvaError>;

/// Why an archive could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum XvaError {
    /// The stream ended before the archive did.
    #[error("the archive ends early: {0}")]
    PrematureEnd(String),
    /// The bytes do not match the checksum beside them.
    #[error("{member} is damaged: its checksum in the archive is {recorded}, computed from its bytes it is {computed}")]
    Checksum { member: String, recorded: String, computed: String },
    /// Another member than the one that has to stand here.
    #[error("expected {expected} in the archive, found {found}")]
    UnexpectedMember { expected: String, found: String },
    /// The archive breaks the format or a limit.
    #[error("not a usable XVA archive: {0}")]
    Invalid(String),
    /// A layout that came after ours.
    #[error("the archive has export version {found}; versions up to {known} are accepted")]
    TooNew { found: i64, known: i64 },
    /// The caller gave a writer something that no archive can hold.
    #[error("cannot be written to an XVA archive: {0}")]
    Unwritable(String),
    /// The stream itself failed (not its content).
    #[error("archive stream: {0}")]
    Io(io::Error),
}

impl XvaError {
    pub(crate) fn invalid(message: impl Into<String>) -> XvaError {
        XvaError::Invalid(message.into())
    }

    /// Sorts an error met while reading: the end, a broken transport, or content that the decompressor refuses.
    pub(crate) fn from_read(error: io::Error, reading: &str) -> XvaError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => XvaError::PrematureEnd(format!("while reading {reading}")),
            io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::TimedOut
            | io::ErrorKind::PermissionDenied => XvaError::Io(error),
            _ => XvaError::Invalid(format!("the compressed stream is damaged while reading {reading}: {error}")),
        }
    }
}
