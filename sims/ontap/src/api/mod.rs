//! The REST face: envelope, fields, filters, pages, jobs; resources stand in [`crate::resources`].

mod dispatch;
pub mod error;
mod fields;
pub mod jobs;
mod query;
pub mod request;
pub mod resource;
mod sort;

pub use dispatch::{Answer, Api};
