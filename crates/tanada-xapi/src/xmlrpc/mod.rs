//! XML-RPC as XenAPI speaks it.
//!
//! What is written: strings, references and enum texts as *untyped* values, 64-bit ints as decimal text in an untyped
//! value, `boolean`, `double`, `dateTime.iso8601`, arrays and structs; characters that XML cannot hold are dropped.
//! What is read: all of that and `int`, `i4`, `i8`, `string`, `nil`; depth and count of values are bounded, document
//! types are refused, attributes are never looked at.
//!
//! A reply is one struct: `Status` = `Success` with `Value`, or `Failure` with `ErrorDescription`. `<fault>` is not used.

mod decode;
mod encode;

pub use decode::{Call, DecodeError, Limits, decode_call, decode_response, decode_value, decode_value_within};
pub use encode::{encode_bare_response, encode_call, encode_response, encode_value, write_value};

#[cfg(test)]
mod tests;
