//! A stream that only goes forward, with its position.

use std::io::Read;

use crate::error::{ImageError, ImageResult};

/// Bytes thrown away at a time.
const SKIP_BYTES: usize = 64 << 10;

pub struct Forward<R> {
    source: R,
    at: u64,
}

impl<R: Read> Forward<R> {
    pub fn new(source: R) -> Forward<R> {
        Forward { source, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn exact(&mut self, buffer: &mut [u8], what: &str) -> ImageResult<()> {
        self.source.read_exact(buffer).map_err(|error| ImageError::from_read(error, what))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// `length` bytes, which the caller has bounded.
    pub fn bytes(&mut self, length: u64, what: &str) -> ImageResult<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.exact(&mut bytes, what)?;
        Ok(bytes)
    }

    /// Fills as much of the buffer as there is; less than all of it only at the end of the stream.
    pub fn some(&mut self, buffer: &mut [u8]) -> ImageResult<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::Io(error)),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    /// Reads on to this position, which must not lie behind.
    pub fn skip_to(&mut self, position: u64, what: &str) -> ImageResult<()> {
        let mut left = position
            .checked_sub(self.at)
            .ok_or_else(|| ImageError::unsupported(format!("{what} lies at {position}, before what needs it")))?;
        let mut scratch = vec![0; SKIP_BYTES.min(left as usize)];
        while left > 0 {
            let step = (scratch.len() as u64).min(left);
            self.exact(&mut scratch[..step as usize], what)?;
            left -= step;
        }
        Ok(())
    }

    /// Reads on to the end of the stream.
    pub fn drain(&mut self) -> ImageResult<()> {
        let mut scratch = vec![0; SKIP_BYTES];
        while self.some(&mut scratch)? > 0 {}
        Ok(())
    }
}

/// Big-endian numbers at a place of a structure whose length the caller knows.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}
