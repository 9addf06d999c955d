//! What the fuzzer runs: for each target a function that takes any bytes and panics where something is wrong.
//!
//! ```text
//!   superblock  bytes -> which small real store, and what its superblocks say -> checker and engine
//!   store       bytes -> which small real store, and what to change in it -> checker and engine
//!   nbd         bytes -> what a client sends, and how it is cut into pieces -> the server's session
//!   image       bytes -> which small disk image, what to change in it, how it is cut into pieces -> its reader
//! ```
//! An input is a little program, read off the bytes by [`Script`]: it never runs out (zeros follow), so that every input
//! means something and small changes of it change little. Checksums are mended after the changes, or nothing behind the
//! first check of a checksum would ever be reached.
//!
//! `cargo xtask fuzz` runs the targets under libFuzzer; the test `replay` runs the kept corpus with a stable toolchain.

mod script;

pub mod image;
pub mod nbd;
pub mod store;
pub mod superblock;

pub use script::Script;

/// A target by name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    match name {
        "superblock" => Some(superblock::run),
        "store" => Some(store::run),
        "nbd" => Some(nbd::run),
        "image" => Some(image::run),
        _ => None,
    }
}
