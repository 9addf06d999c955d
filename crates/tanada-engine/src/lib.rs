//! The store's engine: a synchronous state machine, event in, actions out.

pub mod api;
mod config;
mod engine;

pub use api::{
    Action, Alert, Control, ExportId, Extent, ExtentKind, Failure, IoId, OpenReport, Reply, Request, RequestId, Segment,
    StoreStat, VolumeInfo, VolumeKind, VolumeState, VolumeUsage,
};
pub use config::EngineConfig;
pub use engine::Engine;
