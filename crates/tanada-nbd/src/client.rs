//! An asynchronous NBD client: many requests in flight on one connection, answered in any order.
//!
//! ```text
//!   read_at() ...--mpsc--> writer task --> socket
//!      ^   permit            (whole frames only, so a dropped caller cannot tear one)
//!      +--oneshot-- reader task <--------- socket
//! ```
//! A permit bounds the requests in flight and is given back when the reply is there, not when the caller goes away.
//! When the connection is lost every request in flight fails, and so does every later one; reconnecting is the
//! caller's business, who knows what may be repeated.
//!
//! Structured replies and `base:allocation` are used where the server has them. Offsets and lengths are bytes.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::handshake::{self, Negotiated};
use crate::proto::{
    CHUNK_BLOCK_STATUS, CHUNK_HEADER_BYTES, CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, CMD_BLOCK_STATUS,
    CMD_DISC, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, ChunkHeader,
    PAYLOAD_BYTES_MAX, ProtocolError, REQUEST_BYTES, Reader, RequestHeader, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    STATE_ZERO, STRUCTURED_REPLY_MAGIC, SimpleReply, TF_READ_ONLY, TF_SEND_FLUSH, TF_SEND_FUA, TF_SEND_TRIM,
    TF_SEND_WRITE_ZEROES,
};

/// Requests in flight on one connection.
pub const DEPTH_DEFAULT: usize = 16;
/// Longest range of one request without payload: a multiple of every block size, below 4 GiB.
const RANGE_BYTES_MAX: u64 = 1 << 30;
/// Longest payload of a chunk that is not data: extents, or an error with its words.
const CHUNK_BYTES_MAX: u32 = 16 << 20;
const SOCKET_BUFFER_BYTES: usize = 256 << 10;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NbdError {
    /// The server refused or failed this request; the connection is good.
    #[error("{command} of {length} bytes at {offset}: {message} (errno {errno})")]
    Refused { command: &'static str, offset: u64, length: u64, errno: u32, message: String },
    /// The server does not know the export, or does not let us in.
    #[error("export {export:?} is refused: {message}")]
    NoExport { export: String, message: String },
    /// The connection is gone; whether a request in flight took effect is unknown.
    #[error("the NBD connection is lost: {0}")]
    Lost(String),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The server lacks what was asked for.
    #[error("the NBD server has no {0}")]
    Unsupported(&'static str),
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> NbdError {
        NbdError::Lost(error.to_string())
    }
}

/// A run of bytes that reads as zeros without being stored (`data: false`), or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub data: bool,
}

/// A connection to one export. Cheap to clone; the connection ends with the last clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    frames: mpsc::UnboundedSender<Frame>,
}

struct Shared {
    export: Negotiated,
    next_cookie: AtomicU64,
    permits: Arc<Semaphore>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    requests: HashMap<u64, Request>,
    lost: Option<NbdError>,
}

/// A request whose reply is not complete.
struct Request {
    header: RequestHeader,
    data: BytesMut,
    covered: u64,
    extents: Vec<Extent>,
    failure: Option<(u32, String)>,
    reply: oneshot::Sender<Result<Reply, NbdError>>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct Reply {
    data: Bytes,
    extents: Vec<Extent>,
}

struct Frame {
    header: [u8; REQUEST_BYTES],
    payload: Bytes,
}

impl Client {
    pub async fn connect_unix(path: &Path, export: &str) -> Result<Client, NbdError> {
        let (read, write) = UnixStream::connect(path).await?.into_split();
        Client::over(read, write, export, DEPTH_DEFAULT).await
    }

    pub async fn connect_tcp(address: SocketAddr, export: &str) -> Result<Client, NbdError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Client::over(read, write, export, DEPTH_DEFAULT).await
    }

    /// Negotiates over any pair of streams, at most `depth` requests in flight.
    pub async fn over<R, W>(read: R, write: W, export: &str, depth: usize) -> Result<Client, NbdError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut read = BufReader::with_capacity(SOCKET_BUFFER_BYTES, read);
        let mut write = write;
        let negotiated = handshake::negotiate(&mut read, &mut write, export).await?;
        let (frames, outbox) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            export: negotiated,
            next_cookie: AtomicU64::new(1),
            permits: Arc::new(Semaphore::new(depth.max(1))),
            pending: Mutex::default(),
        });
        tokio::spawn(write_frames(write, outbox, Arc::clone(&shared)));
        tokio::spawn(read_replies(read, Arc::clone(&shared)));
        Ok(Client { shared, frames })
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.shared.export.size
    }

    pub fn is_read_only(&self) -> bool {
        self.has(TF_READ_ONLY)
    }

    /// True where `extents` tells holes from data; otherwise everything is data.
    pub fn knows_extents(&self) -> bool {
        self.shared.export.allocation_context.is_some()
    }

    fn has(&self, flag: u16) -> bool {
        self.shared.export.flags & flag != 0
    }

    /// `length` bytes, at most 32 MiB.
    pub async fn read_at(&self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let reply = self.request(CMD_READ, 0, offset, length, Bytes::new()).await?;
        Ok(reply.data)
    }

    /// Writes at most 32 MiB.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<(), NbdError> {
        self.write(offset, data, false).await
    }

    /// Writes at most 32 MiB; durable when it returns.
    pub async fn write_at_durably(&self, offset: u64, data: Bytes) -> Result<(), NbdError> {
        self.write(offset, data, true).await
    }

    async fn write(&self, offset: u64, data: Bytes, durable: bool) -> Result<(), NbdError> {
        let Ok(length) = u32::try_from(data.len()) else { return Err(too_long("write", offset, data.len() as u64)) };
        if length == 0 {
            return Ok(());
        }
        let flags = if durable && self.has(TF_SEND_FUA) { CMD_FLAG_FUA } else { 0 };
        self.request(CMD_WRITE, flags, offset, length, data).await?;
        if durable && flags == 0 { self.flush().await } else { Ok(()) }
    }

    /// The range reads as zeros afterwards and takes no space where the server can.
    pub async fn zero_at(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        self.zero(offset, length, 0).await
    }

    /// The range reads as zeros afterwards, with its space kept.
    pub async fn zero_at_allocated(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        self.zero(offset, length, CMD_FLAG_NO_HOLE).await
    }

    async fn zero(&self, offset: u64, length: u64, flags: u16) -> Result<(), NbdError> {
        if !self.has(TF_SEND_WRITE_ZEROES) {
            return Err(NbdError::Unsupported("write-zeroes"));
        }
        for (at, step) in steps(offset, length) {
            self.request(CMD_WRITE_ZEROES, flags, at, step, Bytes::new()).await?;
        }
        Ok(())
    }

    /// The range is no longer needed; what it reads as afterwards is the server's choice.
    pub async fn trim_at(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        if !self.has(TF_SEND_TRIM) {
            return Err(NbdError::Unsupported("trim"));
        }
        for (at, step) in steps(offset, length) {
            self.request(CMD_TRIM, 0, at, step, Bytes::new()).await?;
        }
        Ok(())
    }

    /// Everything answered before this was called is durable when it returns.
    pub async fn flush(&self) -> Result<(), NbdError> {
        if !self.has(TF_SEND_FLUSH) {
            return Ok(());
        }
        self.request(CMD_FLUSH, 0, 0, 0, Bytes::new()).await.map(drop)
    }

    /// Data and holes of the range, in order, without gaps, neighbours of a kind merged.
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, NbdError> {
        let end = offset.saturating_add(length);
        let mut all: Vec<Extent> = Vec::new();
        if !self.knows_extents() {
            if length > 0 {
                all.push(Extent { offset, length, data: true });
            }
            return Ok(all);
        }
        let mut at = offset;
        while at < end {
            // The last extent may reach beyond the range asked for; it is cut at `end`.
            let step = (end - at).min(RANGE_BYTES_MAX) as u32;
            let reply = self.request(CMD_BLOCK_STATUS, 0, at, step, Bytes::new()).await?;
            for extent in reply.extents {
                let length = extent.length.min(end - at);
                if length == 0 {
                    break;
                }
                match all.last_mut() {
                    Some(last) if last.data == extent.data => last.length += length,
                    _ => all.push(Extent { offset: at, length, data: extent.data }),
                }
                at += length;
            }
        }
        Ok(all)
    }

    async fn request(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: Bytes,
    ) -> Result<Reply, NbdError> {
        if matches!(command, CMD_READ | CMD_WRITE) && length > PAYLOAD_BYTES_MAX {
            return Err(too_long(name_of(command), offset, u64::from(length)));
        }
        let lost = || NbdError::Lost(String::from("closed"));
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await.map_err(|_| lost())?;
        let cookie = self.shared.next_cookie.fetch_add(1, Ordering::Relaxed);
        let header = RequestHeader { flags, command, cookie, offset, length };
        let (reply, answer) = oneshot::channel();
        let data = if command == CMD_READ { BytesMut::zeroed(length as usize) } else { BytesMut::new() };
        let request = Request { header, data, covered: 0, extents: Vec::new(), failure: None, reply, _permit: permit };
        self.shared.admit(cookie, request)?;
        self.frames.send(Frame { header: header.encode(), payload }).map_err(|_| lost())?;
        answer.await.map_err(|_| lost())?
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, cookie: u64, request: Request) -> Result<(), NbdError> {
        let mut pending = self.pending();
        match &pending.lost {
            Some(error) => Err(error.clone()),
            None => {
                pending.requests.insert(cookie, request);
                Ok(())
            }
        }
    }

    fn take(&self, cookie: u64) -> Result<Request, NbdError> {
        let unknown = || ProtocolError::Unexpected(format!("a reply to request {cookie}, which was not made"));
        self.pending().requests.remove(&cookie).ok_or_else(|| unknown().into())
    }

    /// Fails everything in flight and everything to come. The first reason stays.
    fn lose(&self, error: NbdError) {
        let mut pending = self.pending();
        if pending.lost.is_none() {
            pending.lost = Some(error.clone());
        }
        for (_, request) in pending.requests.drain() {
            drop(request.reply.send(Err(error.clone())));
        }
    }
}

impl Request {
    fn finish(mut self) -> Result<(), NbdError> {
        let expected = u64::from(self.header.length);
        let command = name_of(self.header.command);
        let result = match self.failure.take() {
            Some((errno, message)) => {
                Err(NbdError::Refused { command, offset: self.header.offset, length: expected, errno, message })
            }
            None if self.header.command == CMD_READ && self.covered != expected => {
                let words = format!("a read of {expected} bytes answered with {}", self.covered);
                return Err(ProtocolError::Unexpected(words).into());
            }
            None if self.header.command == CMD_BLOCK_STATUS && self.extents.is_empty() => {
                return Err(ProtocolError::Unexpected(String::from("a block status without extents")).into());
            }
            None => Ok(Reply { data: self.data.freeze(), extents: self.extents }),
        };
        drop(self.reply.send(result));
        Ok(())
    }

    /// The part of the buffer that a chunk of `length` bytes at `offset` fills.
    fn window(&mut self, offset: u64, length: u64) -> Result<&mut [u8], NbdError> {
        let wrong = || ProtocolError::Unexpected(format!("{length} bytes at {offset}, which were not asked for"));
        let start = offset.checked_sub(self.header.offset).ok_or_else(wrong)?;
        let end = start.checked_add(length).filter(|end| *end <= self.data.len() as u64).ok_or_else(wrong)?;
        if length == 0 {
            return Err(wrong().into());
        }
        self.covered += length;
        Ok(&mut self.data[start as usize..end as usize])
    }
}

async fn write_frames(
    mut socket: impl AsyncWrite + Unpin,
    mut outbox: mpsc::UnboundedReceiver<Frame>,
    shared: Arc<Shared>,
) {
    while let Some(frame) = outbox.recv().await {
        if let Err(error) = write_frame(&mut socket, &frame).await {
            shared.lose(error.into());
            return;
        }
    }
    let goodbye = RequestHeader { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, length: 0 };
    drop(socket.write_all(&goodbye.encode()).await);
    drop(socket.shutdown().await);
}

async fn write_frame(socket: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    socket.write_all(&frame.header).await?;
    socket.write_all(&frame.payload).await
}

async fn read_replies(mut socket: impl AsyncRead + Unpin, shared: Arc<Shared>) {
    loop {
        if let Err(error) = read_reply(&mut socket, &shared).await {
            shared.lose(error);
            return;
        }
    }
}

async fn read_reply(socket: &mut (impl AsyncRead + Unpin), shared: &Shared) -> Result<(), NbdError> {
    let magic = socket.read_u32().await?;
    match magic {
        SIMPLE_REPLY_MAGIC => {
            let mut bytes = [0; SIMPLE_REPLY_BYTES];
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            socket.read_exact(&mut bytes[4..]).await?;
            simple_reply(socket, shared, SimpleReply::decode(&bytes)?).await
        }
        STRUCTURED_REPLY_MAGIC => {
            let mut bytes = [0; CHUNK_HEADER_BYTES];
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            socket.read_exact(&mut bytes[4..]).await?;
            chunk(socket, shared, ChunkHeader::decode(&bytes)?).await
        }
        other => {
            let expected = u64::from(STRUCTURED_REPLY_MAGIC);
            Err(ProtocolError::Magic { what: "reply", found: u64::from(other), expected }.into())
        }
    }
}

async fn simple_reply(
    socket: &mut (impl AsyncRead + Unpin),
    shared: &Shared,
    reply: SimpleReply,
) -> Result<(), NbdError> {
    let mut request = shared.take(reply.cookie)?;
    if reply.error != 0 {
        request.failure = Some((reply.error, String::from("refused by the server")));
    } else if request.header.command == CMD_READ {
        socket.read_exact(&mut request.data).await?;
        request.covered = request.data.len() as u64;
    }
    request.finish()
}

async fn chunk(socket: &mut (impl AsyncRead + Unpin), shared: &Shared, chunk: ChunkHeader) -> Result<(), NbdError> {
    let mut request = shared.take(chunk.cookie)?;
    let data_chunk = chunk.kind == CHUNK_OFFSET_DATA;
    let limit = if data_chunk { PAYLOAD_BYTES_MAX + 8 } else { CHUNK_BYTES_MAX };
    if chunk.length > limit {
        return Err(
            ProtocolError::TooLong { what: "chunk", found: u64::from(chunk.length), limit: u64::from(limit) }.into()
        );
    }
    if data_chunk {
        let offset = socket.read_u64().await?;
        let length =
            u64::from(chunk.length).checked_sub(8).ok_or(ProtocolError::Short { what: "data chunk", found: 0 })?;
        socket.read_exact(request.window(offset, length)?).await?;
    } else {
        let mut payload = vec![0; chunk.length as usize];
        socket.read_exact(&mut payload).await?;
        let context = shared.export.allocation_context;
        other_chunk(&mut request, chunk, &payload, context)?;
    }
    if chunk.is_done() {
        return request.finish();
    }
    shared.admit(chunk.cookie, request)
}

fn other_chunk(
    request: &mut Request,
    chunk: ChunkHeader,
    payload: &[u8],
    context: Option<u32>,
) -> Result<(), NbdError> {
    if chunk.is_error() {
        let mut reader = Reader::new("error chunk", payload);
        let errno = reader.u32()?;
        let length = usize::from(reader.u16()?);
        let words = String::from_utf8_lossy(reader.bytes(length)?).into_owned();
        let words = if words.is_empty() { String::from("refused by the server") } else { words };
        request.failure.get_or_insert((errno, words));
        return Ok(());
    }
    match chunk.kind {
        CHUNK_NONE => Ok(()),
        CHUNK_OFFSET_HOLE => {
            let mut reader = Reader::new("hole chunk", payload);
            let (offset, length) = (reader.u64()?, u64::from(reader.u32()?));
            request.window(offset, length)?.fill(0);
            Ok(())
        }
        CHUNK_BLOCK_STATUS if request.header.command == CMD_BLOCK_STATUS => {
            let mut reader = Reader::new("block status", payload);
            if Some(reader.u32()?) != context {
                return Ok(());
            }
            let mut offset = request.header.offset;
            while !reader.rest().is_empty() {
                let (length, state) = (u64::from(reader.u32()?), reader.u32()?);
                if length == 0 {
                    return Err(ProtocolError::Unexpected(String::from("an extent of no bytes")).into());
                }
                let data = state & STATE_ZERO == 0;
                request.extents.push(Extent { offset, length, data });
                offset = offset.saturating_add(length);
            }
            Ok(())
        }
        kind => {
            Err(ProtocolError::Unexpected(format!("a chunk of kind {kind} for a {}", name_of(request.header.command)))
                .into())
        }
    }
}

fn steps(offset: u64, length: u64) -> impl Iterator<Item = (u64, u32)> {
    let end = offset.saturating_add(length);
    (offset..end).step_by(RANGE_BYTES_MAX as usize).map(move |at| (at, (end - at).min(RANGE_BYTES_MAX) as u32))
}

fn too_long(command: &'static str, offset: u64, length: u64) -> NbdError {
    let message = format!("at most {PAYLOAD_BYTES_MAX} bytes go in one request");
    NbdError::Refused { command, offset, length, errno: crate::proto::NBD_EOVERFLOW, message }
}

fn name_of(command: u16) -> &'static str {
    match command {
        CMD_READ => "read",
        CMD_WRITE => "write",
        CMD_FLUSH => "flush",
        CMD_TRIM => "trim",
        CMD_WRITE_ZEROES => "write-zeroes",
        CMD_BLOCK_STATUS => "block-status",
        _ => "request",
    }
}
