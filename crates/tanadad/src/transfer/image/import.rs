//! An image on its way into a disk that is there.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tanada_image::{Event, Gaps, ImageResult, Reader, Source};
use tanada_nbd::client::Client;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::context::CallContext;
use crate::db::View;
use crate::transfer::attached::{Access, Attached};
use crate::transfer::disk::{Before, DiskWriter, Tally, is_empty};
use crate::transfer::error::{disk_error, image_error};
use crate::transfer::rate::Rate;
use crate::transfer::raw::UNKNOWN_LENGTH;
use crate::transfer::stream::{Piece, PieceReader};

/// Events between the reading thread and the disk, at most 1 MiB each.
const EVENTS_UNDER_WAY: usize = 4;

/// What the caller says of the ranges that the image does not mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta {
    /// They stay as they are.
    Yes,
    /// They become zero.
    No,
    /// As the image says; one that says nothing is whole.
    Auto,
    /// As the image says; where it says nothing they stay, as XenServer does it.
    Unsaid,
}

impl Delta {
    /// Of the parameter `delta`, an addition of ours.
    pub fn from_parameter(text: Option<&str>) -> ApiResult<Delta> {
        match text {
            None => Ok(Delta::Unsaid),
            Some("true") => Ok(Delta::Yes),
            Some("false") => Ok(Delta::No),
            Some("auto") => Ok(Delta::Auto),
            Some(other) => Err(ApiError::value_not_supported("delta", other, "true, false or auto")),
        }
    }

    fn keeps(self, gaps: Gaps) -> bool {
        match (self, gaps) {
            (Delta::Yes, _) | (_, Gaps::Base) if self != Delta::No => true,
            (Delta::Unsaid, Gaps::Unsaid) => true,
            _ => false,
        }
    }
}

pub struct Import {
    ctx: CallContext,
    vdi: Ref,
    disk: Attached,
    size: u64,
    source: Source,
    delta: Delta,
    announced: Option<u64>,
    rate: Rate,
}

/// What the head of the image says.
struct Head {
    size: Option<u64>,
    gaps: Gaps,
}

impl Import {
    /// `announced` is the request's Content-Length. A tar stream's `source` is completed with the disk's size.
    pub async fn open(
        ctx: CallContext,
        vdi: Ref,
        source: Source,
        delta: Delta,
        announced: Option<u64>,
        rate: Rate,
    ) -> ApiResult<Import> {
        let record = ctx.db().read(|state| state.get("VDI", &vdi))?;
        let size = u64::try_from(record.int("virtual_size")).unwrap_or(0);
        let source = if let Source::Tar { .. } = source { Source::Tar { size } } else { source };
        let rate = rate.and_of_disk(&ctx.daemon, &vdi)?;
        let disk = Attached::open(&ctx.daemon, &vdi, Access::Write).await?;
        Ok(Import { ctx, vdi, disk, size, source, delta, announced, rate })
    }

    pub async fn run(self, body: mpsc::Receiver<Piece>) -> ApiResult<Value> {
        let Import { ctx, vdi, disk, size, source, delta, announced, rate } = self;
        let (head_sender, head) = oneshot::channel();
        let (sender, events) = mpsc::channel(EVENTS_UNDER_WAY);
        let length = announced.filter(|length| *length < UNKNOWN_LENGTH);
        let counter = Arc::new(AtomicU64::new(0));
        let stream = Counted { source: PieceReader::new(body), counter: counter.clone() };
        let open_end = announced.is_some() && length.is_none();
        let thread = tokio::task::spawn_blocking(move || read(source, stream, length, open_end, head_sender, &sender));
        let tally = Tally::within(rate);
        let progress = |offset: u64| match length {
            Some(length) => counter.load(Ordering::Relaxed) as f64 / length.max(1) as f64,
            None => offset as f64 / size.max(1) as f64,
        };
        let target = Target { ctx: &ctx, vdi: &vdi, size, delta };
        let filled = async { target.fill(disk.client()?, head, events, &tally, progress).await };
        let result = match ctx.task.until_cancelled(filled).await.unwrap_or_else(Err) {
            Ok(()) => joined(thread).await,
            Err(error) => Err(verdict(error, thread).await),
        };
        disk.release().await;
        ctx.task.moved(tally.moved());
        result.map(|()| Value::from(vdi))
    }
}

struct Target<'a> {
    ctx: &'a CallContext,
    vdi: &'a Ref,
    size: u64,
    delta: Delta,
}

impl Target<'_> {
    async fn fill(
        &self,
        client: Client,
        head: oneshot::Receiver<Head>,
        mut events: mpsc::Receiver<Event>,
        tally: &Tally,
        progress: impl Fn(u64) -> f64,
    ) -> ApiResult<()> {
        let head = head.await.map_err(|_| ended_early())?;
        // Nothing was written so far.
        if let Some(needed) = head.size.filter(|needed| *needed > self.size) {
            return Err(ApiError::vdi_too_small(self.vdi, needed));
        }
        let mut before = Before::Anything;
        if is_empty(&client, self.size).await.map_err(disk_error)? {
            before = Before::Zeros;
        } else if !self.delta.keeps(head.gaps) {
            client.zero_at(0, head.size.unwrap_or(self.size)).await.map_err(disk_error)?;
            // Beyond the image nothing is written.
            before = Before::Zeros;
        }
        let mut writer = DiskWriter::new(client, before, tally);
        while let Some(event) = events.recv().await {
            let (offset, length) = (event.offset(), event.length());
            let end = offset.saturating_add(length);
            if end > self.size {
                return Err(ApiError::vdi_too_small(self.vdi, end));
            }
            match event {
                Event::Data { bytes, .. } => writer.data(offset, Bytes::from(bytes)).await,
                Event::Zeros { .. } => writer.zeros(offset, length).await,
            }
            .map_err(disk_error)?;
            self.ctx.task.progress(progress(end).min(1.0));
        }
        writer.finish().await.map_err(disk_error)
    }
}

type Reading = JoinHandle<ImageResult<()>>;

async fn joined(thread: Reading) -> ApiResult<()> {
    match thread.await {
        Ok(read) => read.map_err(image_error),
        Err(error) => Err(ApiError::internal(format!("the image's reader: {error}"))),
    }
}

/// Of the reader's reason and ours the one that came first: where we only noticed that it ended, it knows why.
async fn verdict(ours: ApiError, thread: Reading) -> ApiError {
    if ours != ended_early() {
        // The reader may wait for a client that sends nothing; it ends when the connection does.
        return ours;
    }
    joined(thread).await.err().unwrap_or(ours)
}

fn ended_early() -> ApiError {
    ApiError::import_error_premature_eof()
}

/// Reads the image on a thread of its own, until its end or until nobody wants more of it.
fn read(
    source: Source,
    stream: Counted,
    length: Option<u64>,
    open_end: bool,
    head: oneshot::Sender<Head>,
    events: &mpsc::Sender<Event>,
) -> ImageResult<()> {
    let mut image = Reader::open(source, stream, length)?;
    if open_end {
        image.expect_open_end();
    }
    if head.send(Head { size: image.size(), gaps: image.gaps() }).is_err() {
        return Ok(());
    }
    while let Some(event) = image.next_event()? {
        if events.blocking_send(event).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Counts what is read, for the progress.
struct Counted {
    source: PieceReader,
    counter: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.counter.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::{Delta, Gaps};

    #[test]
    fn gaps_are_kept_where_somebody_says_so_and_where_nobody_does_as_xenserver_does_it() {
        let cases = [
            (Delta::Yes, [true, true, true]),
            (Delta::No, [false, false, false]),
            (Delta::Auto, [false, true, false]),
            (Delta::Unsaid, [false, true, true]),
        ];
        for (delta, expected) in cases {
            assert_eq!([Gaps::Zeros, Gaps::Base, Gaps::Unsaid].map(|gaps| delta.keeps(gaps)), expected, "{delta:?}");
        }
    }
}
