//! An image as a sequence of pieces, laid out before the first byte of the disk is read.

use bytes::{Bytes, BytesMut};
use tanada_xva::ChecksumKind;
use tanada_xva::tar::{Header, padding};

use crate::error::ImageResult;
use crate::limits::RUN_BYTES;

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Metadata, as it is.
    Bytes(Bytes),
    /// `length` bytes of the disk from `offset` on (at most 1 MiB), then `padding` zeros.
    Disk { offset: u64, length: u64, padding: u64 },
    /// A member of a tar stream with this range of the disk (at most 1 MiB), then one with its checksum.
    Member { name: String, offset: u64, length: u64 },
}

/// A whole image: its length in bytes, and its pieces in order.
pub struct Plan {
    pub length: u64,
    pub pieces: Box<dyn Iterator<Item = Piece> + Send>,
}

impl Piece {
    /// Bytes of the image that the piece becomes.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Disk { length, padding, .. } => length + padding,
            Piece::Member { length, .. } => member_length(*length),
        }
    }

    /// The range of the disk that has to be read for it: offset and length in bytes.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Piece::Bytes(_) => None,
            Piece::Disk { offset, length, .. } | Piece::Member { offset, length, .. } => Some((*offset, *length)),
        }
    }

    /// The piece's bytes. `disk` is what was read of its range, empty where it has none.
    pub fn render(self, disk: Bytes) -> ImageResult<Bytes> {
        match self {
            Piece::Bytes(bytes) => Ok(bytes),
            Piece::Disk { padding: 0, .. } => Ok(disk),
            Piece::Disk { padding, .. } => {
                let length = disk.len() + padding as usize;
                let mut bytes = BytesMut::with_capacity(length);
                bytes.extend_from_slice(&disk);
                bytes.resize(length, 0);
                Ok(bytes.freeze())
            }
            Piece::Member { name, length, .. } => {
                let sum = ChecksumKind::Xxh64;
                let mut bytes = BytesMut::with_capacity(member_length(length) as usize);
                let sum_name = format!("{name}{}", sum.suffix());
                member(&mut bytes, &Header::new(name, disk.len() as u64), &disk)?;
                let text = sum.of(&disk);
                member(&mut bytes, &Header::new(sum_name, text.len() as u64), text.as_bytes())?;
                Ok(bytes.freeze())
            }
        }
    }
}

/// Pieces for a range of the disk in steps of at most 1 MiB, then zeros up to `stored` bytes.
pub(crate) fn runs(offset: u64, length: u64, stored: u64) -> impl Iterator<Item = Piece> {
    let end = offset + length;
    let padding = stored - length;
    (offset..end).step_by(RUN_BYTES as usize).map(move |at| {
        let length = RUN_BYTES.min(end - at);
        Piece::Disk { offset: at, length, padding: if at + length == end { padding } else { 0 } }
    })
}

fn member(out: &mut BytesMut, header: &Header, content: &[u8]) -> ImageResult<()> {
    out.extend_from_slice(&header.encode(0)?);
    out.extend_from_slice(content);
    out.resize(out.len() + header.padding(), 0);
    Ok(())
}

fn member_length(content: u64) -> u64 {
    let text = ChecksumKind::Xxh64.text_length() as u64;
    let block = tanada_xva::tar::BLOCK as u64;
    block + content + padding(content) as u64 + block + text + padding(text) as u64
}
