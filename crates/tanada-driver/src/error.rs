//! What a driver's caller hears when a verb fails.

/// One error for all drivers: a kind to match on, words that name the thing, and what XenAPI shows beside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DriverError {
    pub kind: DriverErrorKind,
    pub message: String,
    /// `SR_BACKEND_FAILURE_<n>`, where the type of storage has a number of its own for this; else it follows from the kind.
    pub sm: Option<u32>,
    /// The last parameter of the XenAPI error: XML with what could be chosen.
    pub detail: Option<String>,
}

impl DriverError {
    pub fn new(kind: DriverErrorKind, message: impl Into<String>) -> DriverError {
        DriverError { kind, message: message.into(), sm: None, detail: None }
    }

    pub fn with_sm(self, number: u32) -> DriverError {
        DriverError { sm: Some(number), ..self }
    }

    pub fn with_detail(self, xml: impl Into<String>) -> DriverError {
        DriverError { detail: Some(xml.into()), ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverErrorKind {
    NotFound,
    Exists,
    Busy,
    NoSpace,
    Unsupported,
    /// These volumes cannot be cut at one instant by this storage; nothing was done.
    NotAtomic,
    InvalidArgument,
    /// The storage cannot be reached now; the verb may or may not have taken effect: repeat it.
    Unreachable,
    Io,
}
