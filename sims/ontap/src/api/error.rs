//! The array's errors, as ONTAP words them.

use serde_json::{Value, json};

/// An error answer: HTTP status, ONTAP's code (digits as text), a message, and which argument is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    pub code: String,
    pub message: String,
    pub target: Option<String>,
}

pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn with(status: u16, code: u32, message: impl Into<String>) -> ApiError {
        ApiError { status, code: code.to_string(), message: message.into(), target: None }
    }
    /// 400
    pub fn invalid(code: u32, message: impl Into<String>) -> ApiError {
        ApiError::with(400, code, message)
    }
    /// 404
    pub fn missing(code: u32, message: impl Into<String>) -> ApiError {
        ApiError::with(404, code, message)
    }
    /// 409
    pub fn conflict(code: u32, message: impl Into<String>) -> ApiError {
        ApiError::with(409, code, message)
    }
    /// 403, "6"
    pub fn forbidden() -> ApiError {
        ApiError::with(403, 6, "not authorized for that command")
    }
    /// 500, for the simulator's own trouble: never an answer that ONTAP documents.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::with(500, 65541, message)
    }
    /// "4"
    pub fn no_entry() -> ApiError {
        ApiError::missing(4, "entry doesn't exist")
    }
    /// "3"
    pub fn no_such_api(path: &str) -> ApiError {
        ApiError::missing(3, format!("API not found: {path}"))
    }
    pub fn not_supported(method: &str) -> ApiError {
        ApiError::with(405, 3, format!("the operation {method} is not supported on this resource"))
    }
    /// "2"
    pub fn bad_value(field: &str, value: &str) -> ApiError {
        ApiError::invalid(2, format!("Invalid value \"{value}\" for field \"{field}\".")).at(field)
    }
    pub fn required(field: &str) -> ApiError {
        ApiError::invalid(262212, format!("Field \"{field}\" is required for this operation.")).at(field)
    }
    pub fn at(mut self, target: &str) -> ApiError {
        self.target = Some(target.to_string());
        self
    }
    /// For faults: an error by its number. Below 600 it is an HTTP status.
    pub fn injected(number: &str) -> ApiError {
        let message = "injected fault";
        match number.parse::<u32>() {
            Ok(401) => ApiError::with(401, 6691623, "User is not authorized."),
            Ok(status @ 400..600) => ApiError::with(status as u16, if status == 429 { 262160 } else { 65541 }, message),
            Ok(code @ (4 | 1638600 | 5374852 | 5374922)) => ApiError::missing(code, message),
            Ok(code) => ApiError::invalid(code, message),
            Err(_) => ApiError::internal(format!("injected fault {number:?}, which is no number")),
        }
    }

    pub fn body(&self) -> Value {
        let mut error = json!({ "message": self.message, "code": self.code });
        if let Some(target) = &self.target {
            error["target"] = json!(target);
        }
        json!({ "error": error })
    }
}

impl From<sim_target::TargetError> for ApiError {
    fn from(error: sim_target::TargetError) -> ApiError {
        ApiError::internal(error.to_string())
    }
}
