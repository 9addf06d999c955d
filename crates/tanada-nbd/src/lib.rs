//! NBD: the codec that both sides share, and a server session without I/O.
//!
//! - [`proto`]: constants and fixed-size messages.

pub mod proto;
