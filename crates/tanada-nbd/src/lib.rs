//! NBD: the codec that both sides share, a server session without I/O, and a client.
//!
//! - [`proto`]: constants and fixed-size messages.
//! - [`server`]: what a server says and understands; bytes in, events and bytes out.
//! - [`client`]: an asynchronous client; [`copy`] moves whole exports with it.
//! - [`plain`]: the way in for blocking clients that see every byte.

pub mod client;
pub mod copy;
mod handshake;
pub mod plain;
pub mod proto;
pub mod server;
