//! How an image lies on its disk. All numbers are little-endian.
//!
//! ```text
//!   0          64 KiB              1 MiB         2 MiB         3 MiB
//!   ┌──────────┬───────────────────┬─────────────┬─────────────┬──
//!   │ head     │ nothing           │ frame 0     │ frame 1     │ ...
//!   └──────────┴───────────────────┴─────────────┴─────────────┴──
//!   head:   "TANADAME" │ version u32 │ length u32 │ CRC-32C of the text u32 │ zero u32 │ text (JSON, [`Head`])
//!   frame:  "FRAM" │ number u32 │ image u64 │ length u32 │ CRC-32C of the payload u32 │ CRC-32C of the above u32 │
//!           zero u32 │ payload
//! ```
//! A payload is a part of QEMU's migration stream; all but the last have [`PAYLOAD_BYTES`]. The number of the image is in
//! each frame, so that what an earlier image left on the disk is not taken for this one's. Reading trusts nothing: every
//! length follows from the head and is compared, never followed.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::hardware::Hardware;
use crate::transfer::disk::CHUNK_BYTES;

/// The place of a frame on the disk, in bytes: the piece in which disks are read and written.
pub const FRAME_BYTES: u64 = CHUNK_BYTES;
/// What a frame holds of the stream.
pub const PAYLOAD_BYTES: u64 = FRAME_BYTES - FRAME_HEADER as u64;
/// The head with its text.
pub const HEAD_BYTES: usize = 64 << 10;

const HEAD_MAGIC: &[u8; 8] = b"TANADAME";
const FRAME_MAGIC: &[u8; 4] = b"FRAM";
const VERSION: u32 = 1;
const HEAD_HEADER: usize = 24;
pub const FRAME_HEADER: usize = 32;
/// Disks want whole blocks.
const BLOCK_BYTES: usize = 4096;

/// What the image says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// In every frame.
    pub number: u64,
    /// The VM's uuid.
    pub vm: Uuid,
    /// Bytes of QEMU's stream.
    pub stream_bytes: u64,
    pub hardware: Hardware,
}

/// Why bytes are no image that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("there is no complete memory image on the disk")]
    Absent,
    #[error("the memory image has version {0}; this program reads version {VERSION}")]
    Version(u32),
    #[error("the memory image is damaged: {0}")]
    Damaged(String),
}

fn damaged(what: impl Into<String>) -> ImageError {
    ImageError::Damaged(what.into())
}

/// Frames that a stream of so many bytes takes.
pub const fn frames(stream_bytes: u64) -> u64 {
    stream_bytes.div_ceil(PAYLOAD_BYTES)
}

/// Bytes of disk that a stream of so many bytes takes, with the head.
pub const fn disk_bytes(stream_bytes: u64) -> u64 {
    frames(stream_bytes).saturating_add(1).saturating_mul(FRAME_BYTES)
}

/// Where a frame lies.
pub const fn offset(frame: u64) -> u64 {
    frame.saturating_add(1).saturating_mul(FRAME_BYTES)
}

impl Head {
    /// The first [`HEAD_BYTES`] of the disk; `None` where the text is too long for them.
    pub fn encode(&self) -> Option<Bytes> {
        let text = serde_json::to_vec(self).ok()?;
        if text.len() > HEAD_BYTES - HEAD_HEADER {
            return None;
        }
        let mut bytes = BytesMut::with_capacity(HEAD_BYTES);
        bytes.extend_from_slice(HEAD_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&text).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&text);
        bytes.resize(HEAD_BYTES, 0);
        Some(bytes.freeze())
    }

    /// Reads the beginning of a disk of `disk_bytes` bytes.
    pub fn decode(bytes: &[u8], disk: u64) -> Result<Head, ImageError> {
        if bytes.get(..8) != Some(HEAD_MAGIC) {
            return Err(ImageError::Absent);
        }
        let (version, length, sum) = (number(bytes, 8)?, number(bytes, 12)?, number(bytes, 16)?);
        if version != VERSION {
            return Err(ImageError::Version(version));
        }
        let end = HEAD_HEADER.saturating_add(length as usize);
        let text = bytes.get(HEAD_HEADER..end).ok_or_else(|| damaged("its head is too long"))?;
        if crc32c::crc32c(text) != sum {
            return Err(damaged("the checksum of its head is wrong"));
        }
        let head: Head = serde_json::from_slice(text).map_err(|error| damaged(format!("its head: {error}")))?;
        if head.stream_bytes == 0 || disk_bytes(head.stream_bytes) > disk {
            let words = format!("{} bytes of memory cannot be on a disk of {disk} bytes", head.stream_bytes);
            return Err(damaged(words));
        }
        Ok(head)
    }

    /// Bytes of the stream in this frame.
    fn payload_of(&self, frame: u64) -> u64 {
        self.stream_bytes.saturating_sub(frame.saturating_mul(PAYLOAD_BYTES)).min(PAYLOAD_BYTES)
    }

    /// The payload of a frame that was read from its place.
    pub fn frame(&self, frame: u64, bytes: &Bytes) -> Result<Bytes, ImageError> {
        let wrong = |what: &str| damaged(format!("frame {frame}: {what}"));
        let header = bytes.get(..FRAME_HEADER).ok_or_else(|| wrong("cut off"))?;
        if header.get(..4) != Some(FRAME_MAGIC) || crc32c::crc32c(&header[..24]) != number(header, 24)? {
            return Err(wrong("its header is not one"));
        }
        let image = u64::from(number(header, 8)?) | u64::from(number(header, 12)?) << 32;
        if u64::from(number(header, 4)?) != frame || image != self.number {
            return Err(wrong("it is another one's"));
        }
        let length = number(header, 16)?;
        if u64::from(length) != self.payload_of(frame) {
            return Err(wrong("its length is wrong"));
        }
        let end = FRAME_HEADER.saturating_add(length as usize);
        if end > bytes.len() {
            return Err(wrong("cut off"));
        }
        let payload = bytes.slice(FRAME_HEADER..end);
        if crc32c::crc32c(&payload) != number(header, 20)? {
            return Err(wrong("its checksum is wrong"));
        }
        Ok(payload)
    }
}

/// Room for a frame: `FRAME_HEADER` bytes that [`seal`] fills, the payload behind them.
pub fn blank_frame() -> BytesMut {
    let mut frame = BytesMut::with_capacity(FRAME_BYTES as usize);
    frame.resize(FRAME_HEADER, 0);
    frame
}

/// Completes a frame, padded to whole blocks.
pub fn seal(mut frame: BytesMut, number: u32, image: u64) -> Bytes {
    let length = frame.len().saturating_sub(FRAME_HEADER) as u32;
    let sum = crc32c::crc32c(&frame[FRAME_HEADER..]);
    let header = &mut frame[..FRAME_HEADER];
    header[..4].copy_from_slice(FRAME_MAGIC);
    header[4..8].copy_from_slice(&number.to_le_bytes());
    header[8..16].copy_from_slice(&image.to_le_bytes());
    header[16..20].copy_from_slice(&length.to_le_bytes());
    header[20..24].copy_from_slice(&sum.to_le_bytes());
    let own = crc32c::crc32c(&header[..24]);
    header[24..28].copy_from_slice(&own.to_le_bytes());
    frame.resize(frame.len().next_multiple_of(BLOCK_BYTES), 0);
    frame.freeze()
}

fn number(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let field = bytes.get(at..at.saturating_add(4)).and_then(|field| field.try_into().ok());
    field.map(u32::from_le_bytes).ok_or_else(|| damaged("cut off"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::{FRAME_HEADER, HEAD_BYTES, Head, ImageError, PAYLOAD_BYTES, blank_frame, disk_bytes, seal};
    use crate::vmm::memory::hardware::tests::hardware;

    fn head(stream_bytes: u64) -> Head {
        Head { number: 7 << 40 | 5, vm: Uuid::max(), stream_bytes, hardware: hardware() }
    }

    fn frame(head: &Head, number: u32, payload: &[u8]) -> Bytes {
        let mut frame = blank_frame();
        frame.extend_from_slice(payload);
        seal(frame, number, head.number)
    }

    #[test]
    fn what_was_written_is_read() {
        let head = head(PAYLOAD_BYTES + 3);
        let bytes = head.encode().unwrap();
        assert_eq!(bytes.len(), HEAD_BYTES);
        assert_eq!(Head::decode(&bytes, disk_bytes(head.stream_bytes)), Ok(head.clone()));
        let first = frame(&head, 0, &vec![9; PAYLOAD_BYTES as usize]);
        assert_eq!(head.frame(0, &first).unwrap().len(), PAYLOAD_BYTES as usize);
        assert_eq!(&head.frame(1, &frame(&head, 1, b"end")).unwrap()[..], b"end");
    }

    #[test]
    fn a_changed_bit_anywhere_is_noticed() {
        let whole = head(3);
        let (head_bytes, frame_bytes) = (whole.encode().unwrap(), frame(&whole, 0, b"end"));
        let text_end = HEAD_BYTES - head_bytes.iter().rev().take_while(|byte| **byte == 0).count();
        for at in (0..20).chain(24..text_end) {
            let mut bytes = head_bytes.to_vec();
            bytes[at] ^= 0x10;
            assert!(Head::decode(&bytes, u64::MAX).is_err(), "byte {at} of the head");
        }
        for at in (0..28).chain(FRAME_HEADER..FRAME_HEADER + 3) {
            let mut bytes = frame_bytes.to_vec();
            bytes[at] ^= 0x10;
            assert!(whole.frame(0, &bytes.into()).is_err(), "byte {at} of the frame");
        }
    }

    #[test]
    fn what_is_not_this_image_is_refused() {
        let whole = head(PAYLOAD_BYTES + 3);
        let other = Head { number: 1, ..whole.clone() };
        assert!(whole.frame(0, &frame(&other, 0, &vec![9; PAYLOAD_BYTES as usize])).is_err(), "another image's");
        assert!(whole.frame(0, &frame(&whole, 1, b"end")).is_err(), "another place's");
        assert!(whole.frame(1, &frame(&whole, 1, b"more")).is_err(), "another length");
        assert!(whole.frame(1, &frame(&whole, 1, b"end").slice(..FRAME_HEADER + 2)).is_err(), "cut off");
        assert!(whole.frame(1, &Bytes::new()).is_err(), "nothing");
        assert_eq!(Head::decode(&[], 0), Err(ImageError::Absent));
        assert_eq!(Head::decode(&[0; HEAD_BYTES], u64::MAX), Err(ImageError::Absent));
        let bytes = whole.encode().unwrap();
        assert!(Head::decode(&bytes, disk_bytes(whole.stream_bytes) - 1).is_err(), "a disk that is too short");
        assert!(Head::decode(&bytes[..40], u64::MAX).is_err(), "a head cut off");
        let mut newer = bytes.to_vec();
        newer[8] = 2;
        assert_eq!(Head::decode(&newer, u64::MAX), Err(ImageError::Version(2)));
    }
}
