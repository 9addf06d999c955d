//! Single disks out and in: `/export_raw_vdi` and `/import_raw_vdi` in every format but raw on its way in.
//!
//! ```text
//! out:  extents or difference ──▶ plan ──▶ [ metadata | ranges read by NBD, several under way ] ══bounded══▶ response body
//! in:   request body ══bounded══▶ thread: image reader ══bounded══▶ the disk by NBD
//! ```
//! The plan is made before a header is sent, so every export has a Content-Length, and any part of it can be asked for
//! again: the same disk gives the same bytes each time, as long as nobody writes to it (nobody does to snapshots).
//!
//! What an image leaves out ([`Delta`]): a dynamic VHD leaves out zeros, a differencing one what its parent has. A qcow2
//! image says so only where it names a backing file, or where we wrote it; for XenServer's exports with a base it is the
//! caller who knows, and XenServer's import leaves alone what the image leaves out.

mod export;
mod import;

pub use export::{Export, Span};
pub use import::{Delta, Import};
