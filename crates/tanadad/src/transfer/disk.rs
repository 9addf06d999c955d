//! Disk contents through NBD, in both directions, with bounded memory.
//!
//! Reading goes strictly forward with several reads under way; holes are told by block status and never read. Writing
//! takes pieces in any order, several under way; a disk that was made for the purpose is known to be zero, so holes cost
//! nothing there.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use std::future::poll_fn;
use tanada_driver::Moved;
use tanada_nbd::client::{Client, Extent, NbdError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::rate::Rate;

/// Bytes of one read or write: the chunk of an XVA archive.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Chunks under way on one disk; 8 MiB of memory at most.
pub const UNDER_WAY: usize = 8;

/// Bytes that are read at a time, and how many such reads are under way in one transfer. What is under way is in front of a
/// guest's next request, so it is no more than keeps the storage busy: on an otherwise idle store four reads of 256 KiB
/// move 1.0 GB/s and let a guest wait for 0.7 ms (median), eight of 1 MiB move 1.3 GB/s and let it wait for 20 ms.
const READ_BYTES: u64 = 256 << 10;
const READS_UNDER_WAY: usize = 4;

/// How far ahead holes are asked for.
pub const WINDOW_BYTES: u64 = 1 << 30;

/// Bytes that one transfer has read from or written to disks so far. Holes count for nothing: neither those that are not
/// read nor those that are made. It outlives readers and writers, so that a transfer that broke off is told as well.
/// And how fast they may come.
#[derive(Debug, Clone)]
pub struct Tally {
    bytes: Arc<AtomicU64>,
    rate: Rate,
    /// Permits for reads under way. Given in the order in which they were asked for, so that pieces are read in order.
    room: Arc<Semaphore>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::within(Rate::default())
    }
}

impl Tally {
    /// Readers and writers that keep this bound.
    pub fn within(rate: Rate) -> Tally {
        Tally { bytes: Arc::default(), rate, room: Arc::new(Semaphore::new(READS_UNDER_WAY)) }
    }

    /// The same bound and count with room of its own, for a disk that is read beside another one: who waits for the one must
    /// not have to wait for pieces of the other that nobody asks for at that moment.
    pub fn beside(&self) -> Tally {
        Tally { room: Arc::new(Semaphore::new(READS_UNDER_WAY)), ..self.clone() }
    }

    /// Reads a range in pieces, each in its turn. Concurrent calls are served one after another.
    pub async fn read(&self, client: &Client, offset: u64, length: u64) -> Result<Bytes, NbdError> {
        let piece = READ_BYTES.min(self.rate.piece_bytes());
        let mut pieces = try_join_all(ranges(offset, length, piece).map(|part| self.read_piece(client, part))).await?;
        if pieces.len() == 1 {
            return Ok(pieces.remove(0));
        }
        let mut whole = BytesMut::with_capacity(length as usize);
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        Ok(whole.freeze())
    }

    async fn read_piece(&self, client: &Client, part: Range<u64>) -> Result<Bytes, NbdError> {
        let length = part.end - part.start;
        let _room = self.room.acquire().await.map_err(|error| NbdError::Lost(error.to_string()))?;
        self.rate.turn(length).await;
        // At most READ_BYTES.
        let bytes = client.read_at(part.start, length as u32).await?;
        self.add(length);
        Ok(bytes)
    }

    /// Writes in pieces, one after another, each in its turn.
    async fn write(&self, client: &Client, offset: u64, bytes: Bytes) -> Result<(), NbdError> {
        for part in ranges(0, bytes.len() as u64, self.rate.piece_bytes()) {
            let piece = bytes.slice(part.start as usize..part.end as usize);
            let length = piece.len() as u64;
            self.rate.turn(length).await;
            client.write_at(offset + part.start, piece).await?;
            self.add(length);
        }
        Ok(())
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// As a task tells it. All of it went through the host.
    pub fn moved(&self) -> Moved {
        let bytes_by_host = self.bytes.load(Ordering::Relaxed);
        Moved { changed: bytes_by_host > 0, bytes_by_host, bytes_by_storage: 0 }
    }
}

/// A range in parts of `piece` bytes, the last one as long as what is left.
fn ranges(offset: u64, length: u64, piece: u64) -> impl Iterator<Item = Range<u64>> {
    let end = offset + length;
    (offset..end).step_by(piece as usize).map(move |start| start..end.min(start + piece))
}

/// The next part of a disk, at most [`CHUNK_BYTES`] long and ending at a multiple of it or at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    Data(Bytes),
    /// Known to be zero without having been read; the length in bytes.
    Zeros(u64),
}

impl Chunk {
    pub fn length(&self) -> u64 {
        match self {
            Chunk::Data(bytes) => bytes.len() as u64,
            Chunk::Zeros(length) => *length,
        }
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<Chunk, NbdError>> + Send>>;

/// Reads a disk from its start to its end.
pub struct DiskReader {
    client: Client,
    size: u64,
    planned: u64,
    /// Extents from `planned` on, as far as they were asked for.
    extents: VecDeque<Extent>,
    under_way: VecDeque<State>,
    tally: Tally,
}

enum State {
    Reading(Reading),
    Done(Result<Chunk, NbdError>),
}

impl DiskReader {
    /// The first `size` bytes of the export.
    pub fn new(client: Client, size: u64, tally: &Tally) -> DiskReader {
        DiskReader::starting_at(client, 0, size, tally)
    }

    /// The bytes from `start`, a multiple of [`CHUNK_BYTES`], up to `size`.
    pub fn starting_at(client: Client, start: u64, size: u64, tally: &Tally) -> DiskReader {
        let (extents, under_way) = (VecDeque::new(), VecDeque::new());
        DiskReader { client, size, planned: start, extents, under_way, tally: tally.clone() }
    }

    /// The next chunk; `None` at the end of the disk.
    pub async fn next(&mut self) -> Result<Option<Chunk>, NbdError> {
        while self.under_way.len() < UNDER_WAY && self.planned < self.size {
            let state = self.plan().await?;
            self.under_way.push_back(state);
        }
        if self.under_way.is_empty() {
            return Ok(None);
        }
        poll_fn(|context| {
            // All of them move on, the first one is what we wait for.
            for state in &mut self.under_way {
                if let State::Reading(reading) = state
                    && let Poll::Ready(result) = reading.as_mut().poll(context)
                {
                    *state = State::Done(result);
                }
            }
            match self.under_way.front() {
                Some(State::Reading(_)) => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
        match self.under_way.pop_front() {
            Some(State::Done(result)) => result.map(Some),
            _ => Ok(None),
        }
    }

    async fn plan(&mut self) -> Result<State, NbdError> {
        let start = self.planned;
        let length = CHUNK_BYTES.min(self.size - start);
        let end = start + length;
        if self.extents.back().is_none_or(|last| last.offset + last.length < end) {
            let window = WINDOW_BYTES.min(self.size - start);
            self.extents = self.client.extents(start, window).await?.into();
        }
        while self.extents.front().is_some_and(|extent| extent.offset + extent.length <= start) {
            self.extents.pop_front();
        }
        let inside = self.extents.iter().take_while(|extent| extent.offset < end);
        let holes_only = !self.extents.is_empty() && inside.clone().all(|extent| !extent.data);
        self.planned = end;
        if holes_only {
            return Ok(State::Done(Ok(Chunk::Zeros(length))));
        }
        let (client, tally) = (self.client.clone(), self.tally.clone());
        let reading = async move { tally.read(&client, start, length).await.map(Chunk::Data) };
        Ok(State::Reading(Box::pin(reading)))
    }
}

/// Is all of the disk known to be zero?
pub async fn is_empty(client: &Client, size: u64) -> Result<bool, NbdError> {
    if !client.knows_extents() {
        return Ok(false);
    }
    let mut at = 0;
    while at < size {
        let step = WINDOW_BYTES.min(size - at);
        if client.extents(at, step).await?.iter().any(|extent| extent.data) {
            return Ok(false);
        }
        at += step;
    }
    Ok(true)
}

/// What a disk holds before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Made for this, all zero.
    Zeros,
    Anything,
}

/// Writes a disk. Nothing is durable before [`DiskWriter::finish`] has returned.
pub struct DiskWriter {
    client: Client,
    before: Before,
    under_way: JoinSet<Result<(), NbdError>>,
    tally: Tally,
}

impl DiskWriter {
    pub fn new(client: Client, before: Before, tally: &Tally) -> DiskWriter {
        DiskWriter { client, before, under_way: JoinSet::new(), tally: tally.clone() }
    }

    pub async fn data(&mut self, offset: u64, bytes: Bytes) -> Result<(), NbdError> {
        self.room().await?;
        let (client, tally) = (self.client.clone(), self.tally.clone());
        self.under_way.spawn(async move { tally.write(&client, offset, bytes).await });
        Ok(())
    }

    pub async fn zeros(&mut self, offset: u64, length: u64) -> Result<(), NbdError> {
        if self.before == Before::Zeros || length == 0 {
            return Ok(());
        }
        self.room().await?;
        let client = self.client.clone();
        self.under_way.spawn(async move { client.zero_at(offset, length).await });
        Ok(())
    }

    /// Waits for all writes and makes them durable.
    pub async fn finish(mut self) -> Result<(), NbdError> {
        while let Some(joined) = self.under_way.join_next().await {
            ended(joined)?;
        }
        self.client.flush().await
    }

    async fn room(&mut self) -> Result<(), NbdError> {
        while self.under_way.len() >= UNDER_WAY {
            if let Some(joined) = self.under_way.join_next().await {
                ended(joined)?;
            }
        }
        Ok(())
    }
}

fn ended(joined: Result<Result<(), NbdError>, tokio::task::JoinError>) -> Result<(), NbdError> {
    joined.map_err(|error| NbdError::Lost(format!("a write did not end: {error}")))?
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command};

    use bytes::Bytes;
    use tanada_nbd::client::Client;

    use super::{Before, CHUNK_BYTES, Chunk, DiskReader, DiskWriter, Tally, ranges};
    use crate::transfer::rate::Rate;

    const MIB: usize = CHUNK_BYTES as usize;

    /// A disk in another program's memory, empty at first.
    struct Witness(Child);

    impl Witness {
        async fn start(socket: &Path, size: usize) -> (Witness, Client) {
            let child = Command::new("nbdkit")
                .args(["--foreground", "--unix"])
                .arg(socket)
                .args(["memory", &format!("size={size}")])
                .spawn()
                .unwrap_or_else(|error| panic!("nbdkit: {error}"));
            let witness = Witness(child);
            // The socket appears by a rename, complete: ask until it does.
            loop {
                if let Ok(client) = Client::connect_unix(socket, "").await {
                    return (witness, client);
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    }

    impl Drop for Witness {
        fn drop(&mut self) {
            // It may have ended by itself.
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[test]
    fn pieces_leave_nothing_out() {
        let parts: Vec<_> = ranges(1000, 300, 128).collect();
        assert_eq!(parts, [1000..1128, 1128..1256, 1256..1300]);
        assert_eq!(ranges(7, 0, 128).count(), 0);
        assert!(ranges(0, 512, 1 << 20).eq(std::iter::once(0..512)));
    }

    #[tokio::test]
    async fn a_chunk_is_whole_whatever_the_pieces() {
        let scratch = tempfile::tempdir().unwrap();
        let (_witness, client) = Witness::start(&scratch.path().join("disk"), 2 * MIB).await;
        let content: Vec<u8> = (0..2 * MIB).map(|at| (at / 4096) as u8).collect();
        client.write_at(0, content.clone().into()).await.unwrap();
        for tally in [Tally::default(), Tally::within(Rate::bytes_per_second(32 << 20))] {
            let (offset, length) = (300 * 1024, MIB + 512);
            let read = tally.read(&client, offset as u64, length as u64).await.unwrap();
            assert!(read == content[offset..offset + length]);
            assert_eq!(tally.moved().bytes_by_host, length as u64);
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_holes_are_not() {
        let scratch = tempfile::tempdir().unwrap();
        let size = 40 * MIB + 512;
        let (_witness, client) = Witness::start(&scratch.path().join("disk"), size).await;
        // With a bound, so that pieces are smaller than chunks, both ways.
        let bound = Rate::bytes_per_second(64 << 20);
        let (written, read) = (Tally::within(bound.clone()), Tally::within(bound));
        let mut writer = DiskWriter::new(client.clone(), Before::Zeros, &written);
        for (chunk, byte) in [(0, 1u8), (7, 2), (39, 3)] {
            writer.data(chunk * CHUNK_BYTES, Bytes::from(vec![byte; MIB])).await.unwrap();
        }
        writer.data(40 * CHUNK_BYTES, Bytes::from(vec![4; 512])).await.unwrap();
        writer.finish().await.unwrap();

        let mut overwriter = DiskWriter::new(client.clone(), Before::Anything, &written);
        overwriter.zeros(7 * CHUNK_BYTES, CHUNK_BYTES).await.unwrap();
        overwriter.finish().await.unwrap();

        let mut reader = DiskReader::new(client, size as u64, &read);
        let (mut chunks, mut holes, mut bytes) = (0, 0, Vec::new());
        while let Some(chunk) = reader.next().await.unwrap() {
            chunks += 1;
            match chunk {
                Chunk::Data(data) => bytes.extend_from_slice(&data),
                Chunk::Zeros(length) => {
                    holes += 1;
                    bytes.resize(bytes.len() + length as usize, 0);
                }
            }
        }
        let mut expected = vec![0; size];
        expected[..MIB].fill(1);
        expected[39 * MIB..40 * MIB].fill(3);
        expected[40 * MIB..].fill(4);
        assert!(bytes == expected);
        assert_eq!((chunks, holes), (41, 38));
        assert_eq!(written.moved().bytes_by_host, 3 * CHUNK_BYTES + 512);
        assert_eq!(read.moved().bytes_by_host, 2 * CHUNK_BYTES + 512);
    }
}
