//! Disk images as streams: VHD, qcow2, tar and xapi's framed raw, each way in one pass and without seeking.
//!
//! ```text
//! out:  extents ──▶ ClusterMap ──▶ Plan: length, then pieces ──▶ [ metadata | this range of the disk | ... ]
//! in:   std::io::Read ──▶ Reader ──▶ size, what gaps are, then events ──▶ [ data | zeros ] ──▶ None: all was there
//! ```
//!
//! A plan knows the whole layout before the first byte of the disk is read, so the length of the stream is known, any
//! part of it can be made again, and whoever sends it reads ranges ahead as it likes. A reader treats what it reads as
//! hostile: every table, size and count has a bound in [`limits`], and it holds a few MiB at a time.
//!
//! Nothing here knows a socket, a runtime or a clock.
//!
//! | module | |
//! |---|---|
//! | [`map`] | which units of a disk an image has to hold |
//! | [`plan`] | an image as a sequence of pieces |
//! | [`reader`] | any image as a sequence of events |
//! | [`vhd`] | dynamic and differencing both ways, fixed in |
//! | [`qcow2`] | metadata before data, out; in, wherever tables come before what they point at |
//! | [`tar`] | numbered 1 MiB members with checksums, as XenServer has them |
//! | [`framed`] | xapi's `chunked` raw: offset, length, bytes |
//! | [`limits`] | every bound, in one place |

mod error;
mod forward;
pub mod framed;
mod guess;
pub mod limits;
pub mod map;
pub mod plan;
pub mod qcow2;
pub mod reader;
pub mod tar;
pub mod vhd;

pub use error::{ImageError, ImageResult};
pub use map::{ClusterMap, State};
pub use plan::{Piece, Plan};
pub use reader::{Event, Gaps, Reader, Source};

/// Names one image in its own metadata; 16 bytes of a UUID in their printed order. Never all zero.
pub type ImageId = [u8; 16];

/// How a disk looks on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Raw,
    Vhd,
    Qcow2,
    Tar,
}

impl Format {
    /// By the name that XenServer's `format` parameter has for it; empty is raw.
    pub fn named(name: &str) -> Option<Format> {
        match name {
            "" | "raw" => Some(Format::Raw),
            "vhd" => Some(Format::Vhd),
            "qcow2" => Some(Format::Qcow2),
            "tar" => Some(Format::Tar),
            _ => None,
        }
    }

    /// Also what a file's name ends with.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Vhd => "vhd",
            Format::Qcow2 => "qcow2",
            Format::Tar => "tar",
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Raw => "application/octet-stream",
            Format::Vhd => "application/vhd",
            Format::Qcow2 => "application/x-qemu-disk",
            Format::Tar => "application/x-tar",
        }
    }

    /// Can an image of this format hold what changed since another disk, and nothing else?
    pub fn has_deltas(self) -> bool {
        matches!(self, Format::Vhd | Format::Qcow2)
    }
}
