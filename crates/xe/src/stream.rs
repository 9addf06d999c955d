//! Streams between local files and the server, each watched by a task.
//!
//! The server ends the task, not the end of the stream: a body may be cut and look whole, so a transfer has succeeded only
//! when its task says so. A download that fails leaves no file behind.

use crate::api::Api;
use crate::failure::Failure;
use crate::progress::Bar;
use crate::record::field::scalar;
use crate::transport::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::{Method, Request, Response, header};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tanada_xapi::{Ref, Value};
use tokio::sync::mpsc;

/// Read and sent at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Names of what comes in instead of a file. It is taken as it is: what is no file cannot always be opened again.
const INPUT: [&str; 2] = ["-", "/dev/stdin"];
/// Names of what goes out instead of a new file.
const OUTPUT: [&str; 3] = ["", "-", "/dev/stdout"];
/// Announced where the length is not known: more than there can be, as servers of XenAPI take it.
const UNKNOWN_LENGTH: u64 = 1 << 50;
const FRAME_HEAD_BYTES: usize = 12;
const SECTOR_BYTES: usize = 512;
/// Long enough for a disk that was written to to be let go.
const ABANDON_WAIT: Duration = Duration::from_secs(60);
/// Chunks between the reading thread and the connection: enough that neither waits for the other's every step.
const CHUNKS_QUEUED: usize = 8;

/// A path with a query, such as `/export?ref=...`; the session and the task are added.
pub struct Target<'a> {
    pub path: &'a str,
    pub query: Vec<(&'a str, String)>,
    /// What the task is called, also on the progress bar.
    pub label: String,
}

impl Target<'_> {
    fn uri(&self, api: &Api, task: &Ref) -> String {
        let mut uri = format!("{}?session_id={}&task_id={task}", self.path, api.session());
        for (key, value) in &self.query {
            uri.push('&');
            uri.push_str(&percent(key));
            uri.push('=');
            uri.push_str(&percent(value));
        }
        uri
    }
}

/// For a query: everything but letters, digits and `-._~:` is escaped.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Does this name stand for what the program prints?
pub fn is_output(name: &str) -> bool {
    OUTPUT.contains(&name)
}

/// Fetches into the new file `name`, or to `stdout` for one of [`OUTPUT`].
pub fn download(api: &Api, target: &Target<'_>, name: &str, stdout: &mut dyn Write) -> Result<(), Failure> {
    if is_output(name) {
        return with_task(api, target, |task, bar| api.runtime.block_on(receive(api, target, task, stdout, bar)))
            .map(drop);
    }
    let path = Path::new(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(|error| Failure::cli(format!("Cannot create {name}: {error}")))?;
    let fetched = with_task(api, target, |task, bar| {
        let outcome = api.runtime.block_on(receive(api, target, task, &mut file, bar))?;
        file.sync_all().map_err(|error| Failure::cli(format!("Cannot write {name}: {error}")))?;
        Ok(outcome)
    });
    if fetched.is_err() {
        // What is there is of no use; that it failed is told anyway.
        let _ = std::fs::remove_file(path);
    }
    fetched.map(drop)
}

/// Goes on with the file `name` where it ends, or begins it. What came stays when the transfer breaks off.
pub fn resume(api: &Api, mut target: Target<'_>, name: &str) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::cli(format!("Cannot write {name}: {error}"));
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let mut file = options.open(name).map_err(cannot)?;
    let have = file.metadata().map_err(cannot)?.len();
    target.query.push(("offset", have.to_string()));
    let fetched =
        with_task(api, &target, |task, bar| api.runtime.block_on(receive(api, &target, task, &mut file, bar)));
    file.sync_all().map_err(cannot)?;
    fetched.map(drop)
}

/// What is sent.
pub struct Upload<'a> {
    /// A file, a pipe, or `-` for what comes in.
    pub name: &'a str,
    /// In bytes from the start of the file.
    pub offset: u64,
    /// A disk as it is: where its length is not known, it goes in frames, of which the last one says that it is.
    pub plain_disk: bool,
}

impl<'a> Upload<'a> {
    /// All of what says itself where it ends.
    pub fn whole(name: &'a str) -> Upload<'a> {
        Upload { name, offset: 0, plain_disk: false }
    }

    /// The open file, and how much of it is sent, if that is known.
    fn open(&self) -> Result<(File, Option<u64>), Failure> {
        let cannot = |error: io::Error| Failure::cli(format!("Cannot read {}: {error}", self.name));
        let mut file = match self.name {
            name if INPUT.contains(&name) => File::from(io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?),
            name => File::open(name).map_err(cannot)?,
        };
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            return Err(Failure::cli(format!("{} is a directory", self.name)));
        }
        if !metadata.is_file() && self.offset > 0 {
            return Err(Failure::cli(format!("{} is no file: it cannot be sent from an offset on", self.name)));
        }
        let start = if self.offset > 0 { file.seek(SeekFrom::Start(self.offset)) } else { file.stream_position() };
        let left = |start: io::Result<u64>| Ok::<u64, Failure>(metadata.len().saturating_sub(start.map_err(cannot)?));
        let length = metadata.is_file().then(|| left(start)).transpose()?;
        Ok((file, length))
    }
}

/// Sends a file; the result of the task.
pub fn upload(api: &Api, mut target: Target<'_>, upload: &Upload<'_>) -> Result<Value, Failure> {
    let (file, length) = upload.open()?;
    let framed = upload.plain_disk && length.is_none();
    if framed {
        target.query.push(("chunked", "true".to_owned()));
    }
    let reading = Reading { file, length, framed };
    with_task(api, &target, |task, bar| api.runtime.block_on(send(api, &target, task, reading, bar)))
}

/// A file on its way.
struct Reading {
    file: File,
    /// Unknown for pipes.
    length: Option<u64>,
    /// In xapi's frames: offset and length before each part, zeros for both at the end.
    framed: bool,
}

/// Makes the task, runs the transfer, and destroys the task.
fn with_task(
    api: &Api,
    target: &Target<'_>,
    transfer: impl FnOnce(&Ref, &mut Bar) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let label = Value::from(&target.label);
    let task = Ref::from(scalar(&api.call("task.create", vec![label, Value::from("")])?));
    let mut bar = Bar::new(&target.label);
    let outcome = transfer(&task, &mut bar);
    bar.finish();
    if outcome.is_err() {
        api.runtime.block_on(abandon(api, &task));
    }
    let _ = api.call("task.destroy", vec![Value::from(&task)]);
    outcome
}

/// What still runs on the server ends, so that nothing of it is in the way of the next command. The failure that led here
/// is the one to tell, so this tells none; a second Ctrl-C does not wait.
async fn abandon(api: &Api, task: &Ref) {
    tokio::select! {
        _ = async {
            api.call_async("task.cancel", vec![Value::from(task)]).await?;
            tokio::time::timeout(ABANDON_WAIT, api.watch_task_quietly(task)).await.unwrap_or(Ok(Value::Void))
        } => {}
        _ = interrupted() => {}
    }
}

fn lost(error: hyper::Error) -> Failure {
    Failure::cli(format!("The transfer broke off: {error}"))
}

async fn receive(
    api: &Api,
    target: &Target<'_>,
    task: &Ref,
    sink: &mut dyn Write,
    bar: &mut Bar,
) -> Result<Value, Failure> {
    let mut interrupt = std::pin::pin!(interrupted());
    let empty = Empty::new().map_err(|never| match never {}).boxed();
    let mut sender = api.endpoint.connect().await?;
    let request = request(api, Method::GET, &target.uri(api, task), empty)?;
    let response = tokio::select! {
        response = sender.send_request(request) => response.map_err(lost)?,
        failure = &mut interrupt => return Err(failure),
    };
    let mut body = accepted(api, task, response).await?;
    let mut bytes = 0;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            failure = &mut interrupt => return Err(failure),
        };
        match frame {
            None => break,
            // A task that failed says more than a connection that ended.
            Some(Err(error)) => return Err(task_failure(api, task).await.unwrap_or_else(|| lost(error))),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                sink.write_all(&data).map_err(|error| Failure::cli(format!("Cannot write: {error}")))?;
                bytes += data.len() as u64;
                bar.bytes(bytes);
            }
        }
    }
    sink.flush().map_err(|error| Failure::cli(format!("Cannot write: {error}")))?;
    api.finish_task(task, bar).await
}

async fn send(api: &Api, target: &Target<'_>, task: &Ref, reading: Reading, bar: &mut Bar) -> Result<Value, Failure> {
    let length = reading.length;
    let mut interrupt = std::pin::pin!(interrupted());
    let (chunks, queue) = mpsc::channel(CHUNKS_QUEUED);
    let (counts, mut counted) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        if reading.framed { read_frames(reading.file, &chunks) } else { read_chunks(reading.file, &chunks) }
    });
    let body = BodyExt::boxed(FileBody { queue: std::sync::Mutex::new(queue), counts: Some(counts), left: length });
    let mut sender = api.endpoint.connect().await?;
    let mut request = request(api, Method::PUT, &target.uri(api, task), body)?;
    if length.is_none() {
        request.headers_mut().insert(header::CONTENT_LENGTH, header::HeaderValue::from(UNKNOWN_LENGTH));
    }
    let mut exchange = std::pin::pin!(sender.send_request(request));
    let mut bytes = 0;
    let mut all_sent = false;
    let response = loop {
        tokio::select! {
            response = &mut exchange => break response,
            count = counted.recv(), if !all_sent => match count {
                None => all_sent = true,
                Some(count) => {
                    bytes += count;
                    show(bar, bytes, length);
                }
            },
            failure = &mut interrupt => return Err(failure),
        }
    };
    let response = match response {
        Ok(response) => response,
        Err(error) => return Err(task_failure(api, task).await.unwrap_or_else(|| lost(error))),
    };
    // The answer may come before the body is through: the connection must live until it is.
    let _connected = accepted(api, task, response).await?;
    let mut outcome = std::pin::pin!(api.watch_task_quietly(task));
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome,
            // What a pipe brings says itself where it ends, and the server knows then.
            () = tokio::time::sleep(ABANDON_WAIT), if all_sent && length.is_none() => {
                return Err(Failure::cli("The input ended, and what was sent is not whole"));
            }
            count = counted.recv(), if !all_sent => match count {
                None => all_sent = true,
                Some(count) => {
                    bytes += count;
                    show(bar, bytes, length);
                }
            },
            failure = &mut interrupt => return Err(failure),
        }
    }
}

fn show(bar: &mut Bar, bytes: u64, length: Option<u64>) {
    if let Some(length) = length.filter(|length| *length > 0) {
        bar.fraction(bytes as f64 / length as f64);
    }
    bar.bytes(bytes);
}

/// Ends with Ctrl-C. One for a whole transfer: a signal that comes while nobody listens is lost.
async fn interrupted() -> Failure {
    // Without a handler the signal ends the process, which is right too.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    Failure::cli("Interrupted")
}

fn request(api: &Api, method: Method, uri: &str, body: Body) -> Result<Request<Body>, Failure> {
    Request::builder()
        .method(method)
        .uri(uri)
        .header(header::HOST, api.endpoint.authority())
        .body(body)
        .map_err(|error| Failure::unexpected(error.to_string()))
}

/// The body of a response that says 200; else why the server refused.
async fn accepted(api: &Api, task: &Ref, response: Response<Incoming>) -> Result<Incoming, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response.into_body());
    }
    if let Some(failure) = task_failure(api, task).await {
        return Err(failure);
    }
    Err(Failure::cli(format!("{} refused the transfer: {status}", api.endpoint)))
}

/// What the task failed with, if it has.
async fn task_failure(api: &Api, task: &Ref) -> Option<Failure> {
    let record = api.call_async("task.get_record", vec![Value::from(task)]).await.ok()?;
    crate::api::outcome(record.as_map()?)?.err()
}

fn read_chunks(mut file: File, chunks: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut buffer = vec![0; CHUNK_BYTES];
        let chunk = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                buffer.truncate(count);
                Ok(Bytes::from(buffer))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = chunk.is_err();
        // Nobody listens any more when the transfer has ended.
        if chunks.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}

/// The file's bytes in frames of whole sectors.
fn read_frames(mut file: File, chunks: &mpsc::Sender<io::Result<Bytes>>) {
    let mut offset: u64 = 0;
    loop {
        let mut frame = vec![0; FRAME_HEAD_BYTES];
        let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut frame);
        let Ok(read) = read else {
            drop(chunks.blocking_send(read.map(|_| Bytes::new())));
            return;
        };
        let length = read.next_multiple_of(SECTOR_BYTES);
        frame.resize(FRAME_HEAD_BYTES + length, 0);
        // The last frame is one of nothing at 0; at most CHUNK_BYTES otherwise.
        let at = if read == 0 { 0 } else { offset };
        frame[..8].copy_from_slice(&at.to_le_bytes());
        frame[8..FRAME_HEAD_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
        offset += read as u64;
        if chunks.blocking_send(Ok(Bytes::from(frame))).is_err() || read == 0 {
            return;
        }
    }
}

/// A request body from a thread that reads a file. The mutex is there for `Sync` only; nobody contends for it.
struct FileBody {
    queue: std::sync::Mutex<mpsc::Receiver<io::Result<Bytes>>>,
    /// Bytes handed to the connection; gone when all of them were.
    counts: Option<mpsc::UnboundedSender<u64>>,
    /// Where it is not known the body never ends, it falls silent: a connection that ends early loses what is on its way.
    left: Option<u64>,
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let Ok(mut queue) = this.queue.lock() else {
            return Poll::Ready(Some(Err(io::Error::other("the reading thread panicked"))));
        };
        match queue.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) if this.left.is_none() => {
                this.counts = None;
                Poll::Pending
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Some(Ok(mut chunk))) => {
                if let Some(left) = &mut this.left {
                    // A file that grew meanwhile is sent as long as it was.
                    chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= chunk.len() as u64;
                }
                // Only the progress bar would miss it.
                let _ = this.counts.as_ref().map(|counts| counts.send(chunk.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(percent("OpaqueRef:1-a_b"), "OpaqueRef:1-a_b");
        assert_eq!(percent("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
