//! NBD: the codec that both sides share, and a server session without I/O.
//!
//! - [`proto`]: constants and fixed-size messages.
//! - [`server`]: what a server says and understands; bytes in, events and bytes out.

pub mod proto;
pub mod server;
