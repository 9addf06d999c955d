//! What can go wrong between the driver and the array, and what of it the control plane hears.

use tanada_driver::{DriverError, DriverErrorKind};

/// Numbers that ONTAP puts into `error.code`. The HTTP status alone says too little.
pub mod code {
    pub const NOT_FOUND: u64 = 4;
    pub const NOT_SUPPORTED: u64 = 3;
    pub const DENIED: u64 = 6;
    pub const RPC_TIMEOUT: u64 = 65541;
    pub const TOO_MANY_REQUESTS: u64 = 262_160;
    /// Unexpected argument, invalid value, field not allowed here.
    pub const FILTER_UNKNOWN: &[u64] = &[262_179, 262_185, 262_197, 262_186, 262_196];
    pub const NOT_AUTHORISED: u64 = 6_691_623;

    pub const VOLUME_EXISTS: u64 = 917_526;
    pub const VOLUME_BEING_MADE: u64 = 13_107_405;
    pub const VOLUME_BUSY: u64 = 524_486;
    pub const AGGREGATE_UNKNOWN: u64 = 917_508;

    pub const LUN_EXISTS: u64 = 5_374_242;
    pub const LUN_NAME_EXISTS: u64 = 5_440_688;
    pub const LUN_BEING_MADE: u64 = 5_702_832;
    pub const CLONE_EXISTS: u64 = 1_260_136;
    pub const LUN_SAME_SIZE: u64 = 1_254_226;
    pub const LUN_MAPPED: u64 = 1_254_197;
    pub const LUN_UNKNOWN: &[u64] = &[NOT_FOUND, 5_374_875, 5_374_876, 1_254_201, 5_374_901];
    pub const NO_STORAGE: u64 = 5_440_509;

    pub const ATTRIBUTE_EXISTS: u64 = 5_374_930;
    pub const ATTRIBUTE_UNKNOWN: u64 = 5_374_931;

    pub const IGROUP_EXISTS: u64 = 5_374_023;
    pub const IGROUP_UNKNOWN: &[u64] = &[NOT_FOUND, 5_374_852, 5_374_878, 5_374_902];
    pub const IGROUP_MAPPED: u64 = 1_254_213;
    pub const INITIATOR_EXISTS: u64 = 5_374_035;
    pub const MAP_EXISTS: u64 = 1_254_207;
    pub const MAP_UNKNOWN: u64 = 5_374_922;

    pub const CREDENTIAL_EXISTS: u64 = 5_374_142;
    pub const CREDENTIAL_UNKNOWN: u64 = 5_374_895;

    pub const SNAPSHOT_EXISTS: u64 = 525_059;
    pub const SNAPSHOTS_TOO_MANY: u64 = 525_062;
    pub const SNAPSHOT_NO_SPACE: u64 = 524_479;
    pub const SNAPSHOT_LOCKED: &[u64] = &[1_638_555, 1_638_543, 524_481];
    pub const SNAPSHOT_UNKNOWN: &[u64] = &[NOT_FOUND, 1_638_600, 542_797];

    pub const GROUP_EXISTS: &[u64] = &[53_411_852, 53_411_860];
    pub const GROUP_UNKNOWN: &[u64] = &[NOT_FOUND, 53_411_842, 53_411_843, 53_411_844];
    pub const GROUP_TAKEN: u64 = 53_411_865;
}

/// SM numbers of the type (`SR_BACKEND_FAILURE_<n>`).
pub mod sm {
    pub const TARGET: u32 = 120;
    pub const USER: u32 = 121;
    pub const PASSWORD: u32 = 122;
    pub const AGGREGATE: u32 = 123;
    pub const CONNECT: u32 = 124;
    pub const LOGIN: u32 = 125;
    pub const PRIVILEGE: u32 = 126;
    pub const FLEXVOLS: u32 = 127;
    pub const SNAPSHOT_LIMIT: u32 = 128;
    pub const SNAPSHOT_SPACE: u32 = 129;
    pub const VERSION: u32 = 130;
    pub const TARGET_IQN: u32 = 131;
    pub const ISCSI_OFF: u32 = 132;
}

/// A request that the array refused, by answer or by a job that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {message} (status {status}, code {code})")]
pub struct Refusal {
    /// Method and path.
    pub call: String,
    pub status: u16,
    /// 0 where the array gave none.
    pub code: u64,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    #[error("{0}")]
    Refused(Refusal),
    /// No answer; the request may have taken effect.
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Untrusted(String),
    /// An answer that is not what the array's reference says.
    #[error("{call}: {why}")]
    Malformed { call: String, why: String },
}

pub type ArrayResult<T> = Result<T, ArrayError>;

impl ArrayError {
    /// The array's number for a refusal; 0 for everything else.
    pub fn code(&self) -> u64 {
        match self {
            ArrayError::Refused(refusal) => refusal.code,
            _ => 0,
        }
    }

    pub fn is(&self, code: u64) -> bool {
        code != 0 && self.code() == code
    }

    pub fn is_any(&self, codes: &[u64]) -> bool {
        let found = self.code();
        found != 0 && codes.contains(&found)
    }

    /// The thing that the path names is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ArrayError::Refused(refusal) if refusal.status == 404 || refusal.code == code::NOT_FOUND)
    }

    /// The account may not do this.
    pub fn is_denied(&self) -> bool {
        matches!(self, ArrayError::Refused(refusal) if refusal.status == 403 || refusal.code == code::DENIED)
    }

    /// Another operation holds the thing for a moment; the code of a refused clone is not documented, its text is.
    pub fn is_busy(&self) -> bool {
        let ArrayError::Refused(refusal) = self else { return false };
        let passing = [code::VOLUME_BUSY, code::LUN_BEING_MADE, code::VOLUME_BEING_MADE];
        passing.contains(&refusal.code)
            || code::SNAPSHOT_LOCKED.contains(&refusal.code)
            || refusal.message.to_ascii_lowercase().contains("device busy")
    }
}

/// `Ok(None)` where the array says that it is not (or no longer) there.
pub fn absent<T>(result: ArrayResult<T>, codes: &[u64]) -> ArrayResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() || error.is_any(codes) => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<ArrayError> for DriverError {
    fn from(error: ArrayError) -> DriverError {
        let (kind, number) = classify(&error);
        DriverError { sm: number, ..DriverError::new(kind, format!("NetApp array: {error}")) }
    }
}

fn classify(error: &ArrayError) -> (DriverErrorKind, Option<u32>) {
    let refusal = match error {
        ArrayError::Unreachable(_) => return (DriverErrorKind::Unreachable, Some(sm::CONNECT)),
        ArrayError::Untrusted(_) => return (DriverErrorKind::Unreachable, Some(sm::CONNECT)),
        ArrayError::Malformed { .. } => return (DriverErrorKind::Io, None),
        ArrayError::Refused(refusal) => refusal,
    };
    match (refusal.status, refusal.code) {
        (401, _) | (_, code::NOT_AUTHORISED) => (DriverErrorKind::Io, Some(sm::LOGIN)),
        (403, _) | (_, code::DENIED) => (DriverErrorKind::Unsupported, Some(sm::PRIVILEGE)),
        (_, code::SNAPSHOTS_TOO_MANY) => (DriverErrorKind::NoSpace, Some(sm::SNAPSHOT_LIMIT)),
        (_, code::SNAPSHOT_NO_SPACE) => (DriverErrorKind::NoSpace, Some(sm::SNAPSHOT_SPACE)),
        (_, code::AGGREGATE_UNKNOWN) => (DriverErrorKind::InvalidArgument, Some(sm::AGGREGATE)),
        (_, code::LUN_MAPPED | code::IGROUP_MAPPED) => (DriverErrorKind::Busy, None),
        (_, code::NO_STORAGE) => (DriverErrorKind::NoSpace, None),
        _ if says_full(&refusal.message) => (DriverErrorKind::NoSpace, None),
        _ if error.is_busy() => (DriverErrorKind::Busy, None),
        (429 | 503, _) | (_, code::RPC_TIMEOUT) => (DriverErrorKind::Unreachable, None),
        (404, _) => (DriverErrorKind::NotFound, None),
        (_, found) if code::LUN_UNKNOWN.contains(&found) => (DriverErrorKind::NotFound, None),
        _ => (DriverErrorKind::Io, None),
    }
}

/// Numbers for "full" differ by release and by object; the words do not.
fn says_full(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["no space", "not enough space", "insufficient space", "out of space", "enospc"]
        .iter()
        .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::{ArrayError, Refusal, absent, code};
    use tanada_driver::{DriverError, DriverErrorKind};

    fn refused(status: u16, code: u64, message: &str) -> ArrayError {
        ArrayError::Refused(Refusal { call: "GET /x".into(), status, code, message: message.into() })
    }

    #[test]
    fn refusals_keep_their_meaning() {
        let cases = [
            (refused(401, 0, "no"), DriverErrorKind::Io, Some(125)),
            (refused(403, 6, "not authorized"), DriverErrorKind::Unsupported, Some(126)),
            (refused(400, 525_062, "too many"), DriverErrorKind::NoSpace, Some(128)),
            (refused(400, 1, "No space left on device"), DriverErrorKind::NoSpace, None),
            (refused(400, 13_565_952, "Device busy"), DriverErrorKind::Busy, None),
            (refused(400, 1_254_197, "mapped"), DriverErrorKind::Busy, None),
            (refused(503, 0, "later"), DriverErrorKind::Unreachable, None),
            (ArrayError::Unreachable("x".into()), DriverErrorKind::Unreachable, Some(124)),
        ];
        for (error, kind, number) in cases {
            let shown = error.to_string();
            let driver = DriverError::from(error);
            assert_eq!((driver.kind, driver.sm), (kind, number), "{shown}");
            assert!(driver.message.contains(&shown), "{}", driver.message);
        }
    }

    #[test]
    fn what_is_absent_is_no_failure() {
        assert_eq!(absent(Ok(1), &[]), Ok(Some(1)));
        assert_eq!(absent::<()>(Err(refused(404, 0, "")), &[]), Ok(None));
        assert_eq!(absent::<()>(Err(refused(400, 5_374_922, "")), &[code::MAP_UNKNOWN]), Ok(None));
        assert!(absent::<()>(Err(refused(400, 0, "")), &[0]).is_err());
    }
}
