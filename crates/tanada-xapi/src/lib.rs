//! XenAPI from one table: values, types, classes, error codes and both codecs. No I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`value`] | [`Value`], [`Ref`], [`DateTime`]: what travels in calls, replies and records |
//! | [`error`] | [`ApiError`]: a code and its parameters, with a constructor per code |
//! | [`types`] | [`types::Type`] and the coercion of what arrives to what is declared |
//! | [`classes`] | fields and messages of every class, read once from `classes.json`; implicit messages are derived |
//! | [`json`] | values as JSON |
//! | [`jsonrpc`] | JSON-RPC 1.0 and 2.0 |
//! | [`xmlrpc`] | XML-RPC both ways; also the encoding of `ova.xml` and of task results |
//!
//! Nothing here knows about storage, QEMU or the daemon: the `xe` command line and the daemon share this crate only.

pub mod classes;
pub mod error;
pub mod json;
pub mod jsonrpc;
pub mod types;
pub mod value;
pub mod xmlrpc;

pub use error::{ApiError, ApiResult};
pub use value::{DateTime, Map, Ref, Value};
