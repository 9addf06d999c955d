//! The control daemon: XenAPI, objects, tasks, and the supervision of QEMU and of the data plane.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | where things are, where to listen |
//! | [`db`] | every object in memory and in SQLite, transactions, intents |
//! | [`context`] | [`context::Daemon`], and what a handler of a message gets |
//! | [`storage`] | drivers of attached SRs, attachments of disks |
//! | [`rpc`] | dispatch of calls, implicit messages, sessions, tasks, events |
//! | [`http`] | sockets, TLS, XML-RPC, JSON-RPC, routes of data transfers |
//! | [`nbd`] | disks over NBD and TLS, for backup programs |
//! | [`schedule`] | snapshot schedules, and the room that storage has for them |
//! | [`run`] | from start to end |
//!
//! A message gets its body in `ops` (objects), `vmm` (running machines) or `transfer` (export and import by HTTP).

pub mod args;
pub mod config;
pub mod context;
pub mod db;
pub mod files;
pub mod http;
pub mod nbd;
pub mod ops;
pub mod rpc;
pub mod run;
pub mod schedule;
pub mod storage;
pub mod transfer;
pub mod vmm;

pub use run::{main, run};

#[cfg(test)]
mod testing;
