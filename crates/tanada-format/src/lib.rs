//! Everything a store keeps on its device, as values and bytes. No I/O: slices in, values out.
//!
//! ```text
//!   superblock ──▶ catalog tree ──▶ version table ──▶ volume trees ──▶ data
//!        │                     └──▶ region table ──▶ bitmap pages
//!        └──▶ journal ring: what happened since
//! ```
//!
//! The engine writes with it, the offline checker reads with it. `docs/format.md` tells the same in prose; the layout
//! itself is told once, here, as chains of constants, and guarded by the snapshot test `tests/layout.rs`.
//! Decoders take any bytes: they answer typed errors and never panic. Encoders panic on values that do not fit, which
//! are mistakes of the caller.

pub mod bitmap;
pub mod catalog;
pub mod check;
mod error;
mod field;
pub mod geometry;
pub mod image;
pub mod journal;
pub mod layout;
pub mod node;
pub mod pointer;
pub mod record;
pub mod superblock;
pub mod version;

pub use bitmap::BitmapPage;
pub use catalog::RegionEntry;
pub use error::FormatError;
pub use field::Field;
pub use geometry::Geometry;
pub use image::{FormatOptions, Image, format_image};
pub use journal::{JournalBlock, JournalBuilder, JournalHeader};
pub use node::{BLOCK_BYTES, FANOUT, LEVELS, Node, ROOT_LEVEL, TREE_BLOCKS};
pub use pointer::{Pointer, crc32c};
pub use record::{Member, Record};
pub use superblock::Superblock;
pub use version::{Version, VersionKind, VersionState};
