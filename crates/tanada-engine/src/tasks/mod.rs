//! Straight code over events: a tiny executor, and moments to wait for.

pub mod exec;
pub mod timers;
