//! Everything a store keeps on its device, as values and bytes. No I/O: slices in, values out.
//!
//! The engine writes with it, the offline checker reads with it. `docs/format.md` tells the same in prose; the layout
//! itself is told once, here, as chains of constants.

mod error;
pub mod node;
pub mod pointer;

pub use error::FormatError;
pub use node::{BLOCK_BYTES, FANOUT, LEVELS, Node, ROOT_LEVEL, TREE_BLOCKS};
pub use pointer::{Pointer, crc32c};
