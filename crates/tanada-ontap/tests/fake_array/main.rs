//! The driver over an array made of memory: every verb, every verb twice, and every request of every verb going wrong.

mod fake;
mod faults;
mod transport;
mod verbs;
