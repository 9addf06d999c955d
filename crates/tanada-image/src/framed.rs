//! xapi's own framing of raw disks (`chunked` in its parameters, which is not HTTP's chunked encoding).
//!
//! ```text
//! [ offset u64 | length u32 | bytes ]* [ 0 u64 | 0 u32 ]        little endian, in bytes
//! ```
//! Ranges that do not come are not touched.

use std::io::Read;

use crate::error::{ImageError, ImageResult};
use crate::forward::Forward;
use crate::limits::RUN_BYTES;
use crate::reader::Event;

const SECTOR: u64 = 512;

pub struct FramedReader<R> {
    stream: Forward<R>,
    /// Where the frame that is being read goes on, and where it ends.
    frame: (u64, u64),
    ended: bool,
}

/// A frame's head.
pub fn head(offset: u64, length: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    bytes[8..].copy_from_slice(&length.to_le_bytes());
    bytes
}

impl<R: Read> FramedReader<R> {
    pub fn new(source: R) -> FramedReader<R> {
        FramedReader { stream: Forward::new(source), frame: (0, 0), ended: false }
    }

    pub fn next_event(&mut self) -> ImageResult<Option<Event>> {
        while self.frame.0 == self.frame.1 {
            if self.ended {
                return Ok(None);
            }
            self.begin_frame()?;
        }
        let (offset, end) = self.frame;
        let bytes = self.stream.bytes(RUN_BYTES.min(end - offset), "a frame")?;
        self.frame.0 += bytes.len() as u64;
        Ok(Some(Event::of(offset, bytes)))
    }

    fn begin_frame(&mut self) -> ImageResult<()> {
        let mut head = [0; 12];
        self.stream.exact(&mut head, "a frame's head")?;
        let (offset, length) = head.split_at(8);
        let offset = offset.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let length = length.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let end = offset.checked_add(length);
        let whole = offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
        match end {
            Some(end) if whole => self.frame = (offset, end),
            _ => {
                let why = format!("a frame of {length} bytes at {offset}; both must be multiples of {SECTOR}");
                return Err(ImageError::invalid(why));
            }
        }
        self.ended = offset == 0 && length == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{FramedReader, head};
    use crate::error::ImageError;
    use crate::reader::Event;

    #[test]
    fn frames_in_any_order_up_to_the_last_one() {
        let data = [&head(1024, 512)[..], &[7; 512], &head(512, 0), &head(0, 1024), &[0; 1024], &head(0, 0)].concat();
        let mut reader = FramedReader::new(&data[..]);
        assert_eq!(reader.next_event().unwrap(), Some(Event::Data { offset: 1024, bytes: vec![7; 512] }));
        assert_eq!(reader.next_event().unwrap(), Some(Event::Zeros { offset: 0, length: 1024 }));
        assert_eq!(reader.next_event().unwrap(), None);
        let mut cut = FramedReader::new(&data[..data.len() - 1]);
        assert!(cut.next_event().is_ok() && cut.next_event().is_ok());
        assert!(matches!(cut.next_event(), Err(ImageError::PrematureEnd(_))));
        for bad in [head(100, 512), head(512, 100), head(u64::MAX - 511, 512)] {
            assert!(matches!(FramedReader::new(&bad[..]).next_event(), Err(ImageError::Invalid(_))));
        }
    }
}
