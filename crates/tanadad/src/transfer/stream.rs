//! Where the async side and a thread that may block meet: byte pieces through bounded channels.
//!
//! ```text
//! request body ──▶ Sender ══bounded══▶ PieceReader (std::io::Read)  ──▶ archive reader, decompressor
//! archive writer, compressor ──▶ PieceWriter (std::io::Write) ══bounded══▶ Receiver ──▶ response body
//! ```
//!
//! A sender that is dropped is the end of the stream; a failure travels as an error. A receiver that is dropped makes
//! the other side's next write fail, so that a thread ends when nobody wants its bytes.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

/// A piece of a stream, or why there is no more.
pub type Piece = Result<Bytes, io::Error>;

/// Pieces on their way in each direction; with pieces of [`PIECE_BYTES`] this is 2 MiB.
pub const PIECES_UNDER_WAY: usize = 8;

/// Bytes that a writer collects before it sends a piece.
pub const PIECE_BYTES: usize = 256 << 10;

/// A response's body while it is sent. A server may let go of it as soon as it has taken the announced length, so what
/// was taken is counted.
pub struct Outgoing {
    pieces: mpsc::Receiver<Piece>,
    taken: Arc<AtomicU64>,
}

impl Outgoing {
    /// The counter holds the bytes taken so far.
    pub fn channel() -> (mpsc::Sender<Piece>, Arc<AtomicU64>, Outgoing) {
        let (sender, pieces) = mpsc::channel(PIECES_UNDER_WAY);
        let taken = Arc::new(AtomicU64::new(0));
        (sender, taken.clone(), Outgoing { pieces, taken })
    }

    pub async fn next(&mut self) -> Option<Piece> {
        let piece = self.pieces.recv().await?;
        self.taken.fetch_add(piece.as_ref().map_or(0, |bytes| bytes.len() as u64), Ordering::Relaxed);
        Some(piece)
    }
}

/// The blocking end of an incoming stream.
pub struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
}

impl PieceReader {
    pub fn new(pieces: mpsc::Receiver<Piece>) -> PieceReader {
        PieceReader { pieces, current: Bytes::new() }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// The blocking end of an outgoing stream. What is not flushed is not sent.
pub struct PieceWriter {
    pieces: mpsc::Sender<Piece>,
    collected: BytesMut,
}

impl PieceWriter {
    /// The sender beside it is for an error that ends the stream.
    pub fn channel() -> (PieceWriter, mpsc::Sender<Piece>, Outgoing) {
        let (pieces, _, body) = Outgoing::channel();
        (PieceWriter { pieces: pieces.clone(), collected: BytesMut::new() }, pieces, body)
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE_BYTES - self.collected.len());
        self.collected.extend_from_slice(&bytes[..length]);
        if self.collected.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.collected.is_empty() {
            return Ok(());
        }
        let piece = self.collected.split().freeze();
        self.collected.reserve(PIECE_BYTES);
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::sync::atomic::Ordering;

    use tokio::sync::mpsc;

    use super::{PIECE_BYTES, PIECES_UNDER_WAY, PieceReader, PieceWriter};

    #[test]
    fn bytes_arrive_in_order_and_an_error_stays_one() {
        let (sender, pieces) = mpsc::channel(PIECES_UNDER_WAY);
        let mut reader = PieceReader::new(pieces);
        for piece in ["ab", "", "cde"] {
            sender.blocking_send(Ok(piece.into())).unwrap();
        }
        sender.blocking_send(Err(ErrorKind::ConnectionReset.into())).unwrap();
        let mut text = [0; 5];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"abcde");
        assert_eq!(reader.read(&mut text).unwrap_err().kind(), ErrorKind::ConnectionReset);
        drop(sender);
        assert_eq!(reader.read(&mut text).unwrap(), 0);
    }

    #[tokio::test]
    async fn writes_become_pieces_and_fail_when_nobody_reads() {
        let (mut writer, _, mut body) = PieceWriter::channel();
        let writing = tokio::task::spawn_blocking(move || {
            writer.write_all(&vec![7; PIECE_BYTES + 1]).unwrap();
            writer.flush().unwrap();
            writer
        });
        assert_eq!(body.next().await.unwrap().unwrap().len(), PIECE_BYTES);
        assert_eq!(&body.next().await.unwrap().unwrap()[..], [7]);
        assert_eq!(body.taken.load(Ordering::Relaxed), PIECE_BYTES as u64 + 1);
        drop(body);
        let mut writer = writing.await.unwrap();
        let failing = tokio::task::spawn_blocking(move || writer.write_all(b"x").and_then(|()| writer.flush()));
        assert_eq!(failing.await.unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
