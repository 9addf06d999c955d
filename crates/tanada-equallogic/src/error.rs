//! One error for the command line of a group, by what can be done about it.

use tanada_driver::{DriverError, DriverErrorKind};

/// Why a command has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// The array answered with an error: nothing was done.
    #[error("{command:?} was refused: {text}")]
    Refused { command: String, text: String },
    /// The session ended, or no prompt came: the command may or may not have taken effect.
    #[error("{0}")]
    Lost(String),
    /// No session could be opened, and trying again later may help.
    #[error("{0}")]
    NoSession(String),
    /// The host key is not the expected one, or the account is refused: trying again does not help.
    #[error("{0}")]
    NotTrusted(String),
    /// The answer has another form than what this driver knows.
    #[error("{0}")]
    Unclear(String),
}

impl CliError {
    /// The thing that was named is not on the array.
    pub fn is_missing(&self) -> bool {
        self.says(&["does not exist"])
    }

    pub fn is_existing(&self) -> bool {
        self.says(&["already exists", "already in use", "already been"])
    }

    pub fn is_no_space(&self) -> bool {
        self.says(&["not enough space", "insufficient", "no space", "free space", "not enough free", "out of space"])
    }

    /// Thin clones depend on the template.
    pub fn is_needed(&self) -> bool {
        self.says(&["thin clone"])
    }

    /// The command itself is not known to this firmware.
    pub fn is_unknown_command(&self) -> bool {
        self.says(&["bad command", "unknown command", "invalid command", "syntax", "bad parameter", "not supported"])
    }

    fn is_not_permitted(&self) -> bool {
        self.says(&["permission", "privilege", "not authorized", "read-only account"])
    }

    fn is_busy(&self) -> bool {
        self.says(&["in use", "busy", "is online", "in progress", "must be offline", "active connection"])
    }

    fn says(&self, words: &[&str]) -> bool {
        let CliError::Refused { text, .. } = self else { return false };
        let text = text.to_ascii_lowercase();
        words.iter().any(|word| text.contains(word))
    }
}

/// Numbers of `SR_BACKEND_FAILURE_<n>` that this type of SR has for itself.
pub mod sm {
    pub const TARGET_MISSING: u32 = 160;
    pub const USER_MISSING: u32 = 161;
    pub const PASSWORD_MISSING: u32 = 162;
    pub const POOL_MISSING: u32 = 163;
    pub const CONNECT: u32 = 164;
    pub const SNAP_RESERVE: u32 = 165;
    pub const SNAP_DEPLETION: u32 = 166;
    pub const VOLUME_OUT_OF_SPACE: u32 = 167;
    pub const SNAPSHOT_OF_SNAPSHOT: u32 = 168;
    pub const PERMISSION: u32 = 169;
    pub const FIRMWARE: u32 = 170;
    pub const TARGET_PORT: u32 = 171;
    pub const POOL: u32 = 172;
    pub const TARGET_IP: u32 = 173;
    pub const METADATA: u32 = 175;
    pub const EOF: u32 = 176;
}

impl From<CliError> for DriverError {
    fn from(failure: CliError) -> DriverError {
        let (kind, number) = match &failure {
            CliError::Lost(_) => (DriverErrorKind::Unreachable, Some(sm::EOF)),
            CliError::NoSession(_) => (DriverErrorKind::Unreachable, Some(sm::CONNECT)),
            CliError::NotTrusted(_) => (DriverErrorKind::InvalidArgument, Some(sm::CONNECT)),
            CliError::Unclear(_) => (DriverErrorKind::Io, None),
            refused if refused.is_missing() => (DriverErrorKind::NotFound, None),
            refused if refused.is_existing() => (DriverErrorKind::Exists, None),
            refused if refused.is_no_space() => (DriverErrorKind::NoSpace, Some(sm::VOLUME_OUT_OF_SPACE)),
            refused if refused.is_not_permitted() => (DriverErrorKind::InvalidArgument, Some(sm::PERMISSION)),
            refused if refused.is_unknown_command() => (DriverErrorKind::Unsupported, Some(sm::FIRMWARE)),
            refused if refused.is_busy() => (DriverErrorKind::Busy, None),
            _ => (DriverErrorKind::Io, None),
        };
        crate::error_with(kind, failure.to_string(), number)
    }
}
