//! The store's engine: a synchronous state machine, event in, actions out.

pub mod api;
