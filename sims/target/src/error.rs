//! The error of the crate.

/// What went wrong below a simulated array. It is the simulator's own trouble, never an answer of the array.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// tgtd refused a management request.
    #[error("tgtd refuses {what}: error {code}")]
    Refused { what: String, code: u32 },
    #[error("{0}")]
    Invalid(String),
}

pub type Result<T> = std::result::Result<T, TargetError>;

/// For `map_err`: the thing that failed, beside the system's word for it.
pub fn io<S: Into<String>>(what: S) -> impl FnOnce(std::io::Error) -> TargetError {
    move |source| TargetError::Io { what: what.into(), source }
}
