//! Any image as a sequence of events, read strictly forward.
//!
//! ```text
//! open ──▶ size(), gaps() ──▶ [ next_event → Data | Zeros ]* ──▶ None: the image was whole
//! ```
//!
//! Events come in the order of the stream, which is not always that of the disk; none reaches beyond `size`, and no range
//! comes twice from a sane image. `None` comes only when everything that the image announced was there.

use std::io::Read;

use tanada_xva::{ArchiveReader, DiskEvent, Verify, is_zero};

use crate::error::{ImageError, ImageResult};
use crate::framed::FramedReader;
use crate::qcow2::Qcow2Reader;
use crate::tar;
use crate::vhd::{DynamicReader, FixedReader, Opened};

/// A piece of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// At most 2 MiB, not all zero.
    Data { offset: u64, bytes: Vec<u8> },
    /// To become zero.
    Zeros { offset: u64, length: u64 },
}

impl Event {
    pub(crate) fn of(offset: u64, bytes: Vec<u8>) -> Event {
        if is_zero(&bytes) {
            Event::Zeros { offset, length: bytes.len() as u64 }
        } else {
            Event::Data { offset, bytes }
        }
    }

    pub fn offset(&self) -> u64 {
        match self {
            Event::Data { offset, .. } | Event::Zeros { offset, .. } => *offset,
        }
    }

    pub fn length(&self) -> u64 {
        match self {
            Event::Data { bytes, .. } => bytes.len() as u64,
            Event::Zeros { length, .. } => *length,
        }
    }
}

/// What the image means by the ranges that it does not mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gaps {
    /// Zeros: the image is whole.
    Zeros,
    /// What the disk it is a delta of has there.
    Base,
    /// The image does not say.
    Unsaid,
}

/// What an image is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Vhd,
    Qcow2,
    /// For a disk of this many bytes, which the stream does not tell.
    Tar {
        size: u64,
    },
    Framed,
}

pub enum Reader<R: Read> {
    Dynamic(Box<DynamicReader<R>>),
    Fixed(Box<FixedReader<R>>),
    Qcow2(Box<Qcow2Reader<R>>),
    Tar(Box<ArchiveReader<R>>),
    Framed(Box<FramedReader<R>>),
}

impl<R: Read> Reader<R> {
    /// Reads the head of an image. `length`: of the whole stream in bytes, where it is known.
    pub fn open(source: Source, stream: R, length: Option<u64>) -> ImageResult<Reader<R>> {
        Ok(match source {
            Source::Vhd => match Opened::read(stream, length)? {
                Opened::Dynamic(reader) => Reader::Dynamic(reader),
                Opened::Fixed(reader) => Reader::Fixed(reader),
            },
            Source::Qcow2 => Reader::Qcow2(Box::new(Qcow2Reader::open(stream)?)),
            Source::Tar { size } => {
                Reader::Tar(Box::new(ArchiveReader::open_disk(stream, tar::PREFIX, size, Verify::Checksums)?))
            }
            Source::Framed => Reader::Framed(Box::new(FramedReader::new(stream))),
        })
    }

    /// For a stream that stays silent after the image instead of ending.
    pub fn expect_open_end(&mut self) {
        match self {
            Reader::Dynamic(reader) => reader.expect_open_end(),
            Reader::Qcow2(reader) => reader.expect_open_end(),
            Reader::Tar(reader) => reader.expect_open_end(),
            // The one ends with its end alone, the other says where it ends.
            Reader::Fixed(_) | Reader::Framed(_) => {}
        }
    }

    /// Bytes of the disk, where the image tells.
    pub fn size(&self) -> Option<u64> {
        match self {
            Reader::Dynamic(reader) => Some(reader.size()),
            Reader::Fixed(reader) => reader.size(),
            Reader::Qcow2(reader) => Some(reader.size()),
            Reader::Tar(_) | Reader::Framed(_) => None,
        }
    }

    pub fn gaps(&self) -> Gaps {
        match self {
            Reader::Dynamic(reader) => reader.gaps(),
            Reader::Qcow2(reader) => reader.gaps(),
            Reader::Fixed(_) | Reader::Tar(_) => Gaps::Zeros,
            Reader::Framed(_) => Gaps::Unsaid,
        }
    }

    /// The next piece, or `None` when everything was read and is whole.
    pub fn next_event(&mut self) -> ImageResult<Option<Event>> {
        match self {
            Reader::Dynamic(reader) => reader.next_event(),
            Reader::Fixed(reader) => reader.next_event(),
            Reader::Qcow2(reader) => reader.next_event(),
            Reader::Tar(reader) => Ok(reader.next_event().map_err(ImageError::from)?.map(|event| match event {
                DiskEvent::Data { offset, bytes, .. } => Event::Data { offset, bytes },
                DiskEvent::Zeros { offset, length, .. } => Event::Zeros { offset, length },
            })),
            Reader::Framed(reader) => reader.next_event(),
        }
    }
}
