
//! Frameworks for end-to-end tests: real programs in scratch directories.

pub mod store;
