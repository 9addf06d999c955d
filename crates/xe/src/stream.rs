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
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tanada_xapi::{Ref, Value};
use tokio::sync::mpsc;

/// Read and sent at a time.
const CHUNK_BYTES: usize = 256 << 10;
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

/// Fetches into the new file `name`, or to `stdout` where the name is empty.
pub fn download(api: &Api, target: &Target<'_>, name: &str, stdout: &mut dyn Write) -> Result<(), Failure> {
    if name.is_empty() {
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

/// Sends the file `name`; the result of the task.
pub fn upload(api: &Api, target: &Target<'_>, name: &str) -> Result<Value, Failure> {
    let cannot = |error: io::Error| Failure::cli(format!("Cannot read {name}: {error}"));
    let file = File::open(name).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if metadata.is_dir() {
        return Err(Failure::cli(format!("{name} is a directory")));
    }
    let length = metadata.is_file().then_some(metadata.len());
    with_task(api, target, |task, bar| api.runtime.block_on(send(api, target, task, file, length, bar)))
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

async fn send(
    api: &Api,
    target: &Target<'_>,
    task: &Ref,
    file: File,
    length: Option<u64>,
    bar: &mut Bar,
) -> Result<Value, Failure> {
    let mut interrupt = std::pin::pin!(interrupted());
    let (chunks, queue) = mpsc::channel(CHUNKS_QUEUED);
    let (counts, mut counted) = mpsc::unbounded_channel();
    std::thread::spawn(move || read_chunks(file, &chunks));
    let body = BodyExt::boxed(FileBody { queue: std::sync::Mutex::new(queue), counts, left: length });
    let mut sender = api.endpoint.connect().await?;
    let request = request(api, Method::PUT, &target.uri(api, task), body)?;
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

/// A request body from a thread that reads a file. The mutex is there for `Sync` only; nobody contends for it.
struct FileBody {
    queue: std::sync::Mutex<mpsc::Receiver<io::Result<Bytes>>>,
    /// Bytes handed to the connection.
    counts: mpsc::UnboundedSender<u64>,
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
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Some(Ok(mut chunk))) => {
                if let Some(left) = &mut this.left {
                    // A file that grew meanwhile is sent as long as it was.
                    chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= chunk.len() as u64;
                }
                // Only the progress bar would miss it.
                let _ = this.counts.send(chunk.len() as u64);
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
