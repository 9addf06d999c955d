//! A plain NBD client that says what it sent and what was answered, no more: whoever owns it must know exactly what a
//! server that dies had acknowledged.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use tanada_nbd::plain;
use tanada_nbd::proto::{CMD_READ, RequestHeader, SimpleReply};

use super::plane::PATIENCE;

/// Bytes of one read.
const READ_BYTES: u64 = 1 << 20;

pub struct Nbd {
    stream: UnixStream,
    pub size: u64,
}

impl Nbd {
    /// Errors where the server is away, or dies meanwhile, or does not know the export.
    pub fn connect(socket: &Path, token: &str) -> io::Result<Nbd> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let size = plain::enter(&mut stream, token)?;
        Ok(Nbd { stream, size })
    }

    pub fn send(&mut self, header: RequestHeader, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(28 + payload.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes)
    }

    pub fn reply(&mut self) -> io::Result<SimpleReply> {
        let mut bytes = [0; 16];
        self.stream.read_exact(&mut bytes)?;
        SimpleReply::decode(&bytes).map_err(io::Error::other)
    }

    /// The data behind the reply to a read.
    pub fn data(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// The whole export, nothing else being under way.
    pub fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(self.size as usize);
        while (all.len() as u64) < self.size {
            let offset = all.len() as u64;
            let length = READ_BYTES.min(self.size - offset) as u32;
            self.send(RequestHeader { flags: 0, command: CMD_READ, cookie: offset, offset, length }, &[])?;
            let reply = self.reply()?;
            if reply.error != 0 {
                let text = format!("a read of {length} bytes at {offset} fails with error {}", reply.error);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            all.extend(self.data(length as usize)?);
        }
        Ok(all)
    }
}
