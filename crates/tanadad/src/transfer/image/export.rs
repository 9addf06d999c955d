//! A disk on its way out, in any format.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::iter;
use tanada_image::limits::VHD_BYTES;
use tanada_image::vhd::{self, Parent};
use tanada_image::{ClusterMap, Format, ImageError, Piece as ImagePiece, Plan, qcow2, tar};
use tanada_nbd::client::Client;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tokio::sync::mpsc;

use crate::context::CallContext;
use crate::db::{Record, View};
use crate::storage::{self, volume_id};
use crate::transfer::attached::{Access, Attached};
use crate::transfer::disk::{CHUNK_BYTES, Chunk, DiskReader, Tally, UNDER_WAY, WINDOW_BYTES};
use crate::transfer::error::{abort, client_gone, disk_error, taken};
use crate::transfer::rate::Rate;
use crate::transfer::stream::{Outgoing, Piece};

/// Bytes of the image that are sent; all of it, or what a client that was interrupted asks for.
pub type Span = Range<u64>;

/// [`Export::run`] feeds the body that [`Export::open`] returned beside it.
pub struct Export {
    ctx: CallContext,
    disk: Attached,
    content: Content,
    rate: Rate,
    /// Bytes of the disk, and of its image.
    size: u64,
    length: u64,
    body: mpsc::Sender<Piece>,
    /// Bytes of the body that were taken.
    counter: Arc<AtomicU64>,
}

enum Content {
    Raw,
    Image(Plan),
}

impl Export {
    /// Everything that can be refused is refused here, before a header is sent. With a `base`, what differs from it.
    pub async fn open(
        ctx: CallContext,
        vdi: &Ref,
        format: Format,
        base: Option<&Ref>,
        rate: Rate,
    ) -> ApiResult<(Export, Outgoing)> {
        let record = ctx.db().read(|state| state.get("VDI", vdi))?;
        let size = u64::try_from(record.int("virtual_size")).unwrap_or(0);
        if format == Format::Vhd && size > VHD_BYTES {
            return Err(ApiError::vdi_too_large(vdi, VHD_BYTES));
        }
        let rate = rate.and_of_disk(&ctx.daemon, vdi)?;
        let disk = Attached::open(&ctx.daemon, vdi, Access::Read).await?;
        let content = match format {
            Format::Raw => Ok(Content::Raw),
            _ => plan(&ctx, &disk, &record, format, base).await.map(Content::Image),
        };
        let content = match content {
            Ok(content) => content,
            Err(error) => {
                disk.release().await;
                return Err(error);
            }
        };
        let length = match &content {
            Content::Raw => size,
            Content::Image(plan) => plan.length,
        };
        let (body, counter, outgoing) = Outgoing::channel();
        Ok((Export { ctx, disk, content, rate, size, length, body, counter }, outgoing))
    }

    /// Bytes of the whole image.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Ends it before it has begun.
    pub async fn abandon(self) {
        self.disk.release().await;
    }

    /// `span` lies inside of the image.
    pub async fn run(self, span: Span) -> ApiResult<Value> {
        let Export { ctx, disk, content, rate, size, length, body, counter } = self;
        let tally = Tally::within(rate);
        let result = match disk.client() {
            Ok(client) => {
                let out = Out { ctx: &ctx, body: &body, span: span.clone(), length, at: 0 };
                let sent = ctx.task.until_cancelled(send(out, client, content, size, &tally)).await.unwrap_or_else(Err);
                match sent {
                    Ok(()) => taken(&body, || counter.load(Ordering::Relaxed) == span.end - span.start).await,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        disk.release().await;
        ctx.task.moved(tally.moved());
        if let Err(error) = &result {
            abort(body, error);
        }
        result.map(|()| Value::Void)
    }
}

/// Lays the image out. Whole images hold what is mapped, deltas what differs.
async fn plan(
    ctx: &CallContext,
    disk: &Attached,
    record: &Record,
    format: Format,
    base: Option<&Ref>,
) -> ApiResult<Plan> {
    let size = u64::try_from(record.int("virtual_size")).unwrap_or(0);
    let unit = match format {
        Format::Vhd => vhd::BLOCK_BYTES,
        Format::Qcow2 => qcow2::cluster_bytes(size),
        Format::Raw | Format::Tar => tar::CHUNK_BYTES,
    };
    let base = base.map(|base| ctx.db().read(|state| state.get("VDI", base))).transpose()?;
    let map = match &base {
        Some(base) => changed(ctx, record, base, ClusterMap::new(size, unit)).await?,
        None => mapped(&disk.client()?, ClusterMap::new(size, unit)).await?,
    };
    let id = |record: &Record| volume_id(record.uuid()).map(|uuid| *uuid.as_bytes());
    let base_id = base.as_deref().map(id).transpose()?;
    let plan = match format {
        Format::Vhd => {
            let name = |base: &Record| format!("{}.vhd", base.uuid());
            let parent = base_id.zip(base.as_deref().map(name)).map(|(id, name)| Parent { id, name });
            vhd::plan(map, id(record)?, parent)
        }
        Format::Qcow2 => qcow2::plan(map, base_id),
        Format::Raw | Format::Tar => tar::plan(map),
    };
    plan.map_err(|error| match error {
        ImageError::TooLarge { limit, .. } => ApiError::vdi_too_large(record.id(), limit),
        other => ApiError::internal(other),
    })
}

/// What is mapped now.
async fn mapped(client: &Client, mut map: ClusterMap) -> ApiResult<ClusterMap> {
    let mut at = 0;
    while at < map.size() {
        let step = WINDOW_BYTES.min(map.size() - at);
        for extent in client.extents(at, step).await.map_err(disk_error)?.into_iter().filter(|extent| extent.data) {
            map.add(extent.offset, extent.length, true);
        }
        at += step;
    }
    Ok(map)
}

/// What differs from another disk, which nobody may write to meanwhile.
async fn changed(ctx: &CallContext, record: &Record, base: &Record, mut map: ClusterMap) -> ApiResult<ClusterMap> {
    let sr = record.reference("SR");
    if base.reference("SR") != sr {
        return Err(ApiError::vdi_incompatible_type(base.id(), "the base is on another SR"));
    }
    // Its data is gone; what changed since is told by VDI.list_changed_blocks.
    if base.str("type") == "cbt_metadata" {
        return Err(ApiError::vdi_incompatible_type(base.id(), "cbt_metadata"));
    }
    let driver = ctx.daemon.storage.driver(&sr)?;
    if !driver.capabilities().exact_difference {
        return Err(ApiError::sr_operation_not_supported(&sr));
    }
    if !base.bool("is_a_snapshot") && storage::is_attached(&ctx.daemon, base.id()) {
        return Err(ApiError::vdi_in_use(base.id(), "export"));
    }
    let (old, new) = (volume_id(base.str("location"))?, volume_id(record.str("location"))?);
    for extent in driver.difference(old, new).await.map_err(storage::driver_error)? {
        map.add(extent.offset, extent.length, extent.data);
    }
    Ok(map)
}

/// The body as it is filled: position in the image, and what of it is wanted.
struct Out<'a> {
    ctx: &'a CallContext,
    body: &'a mpsc::Sender<Piece>,
    span: Span,
    length: u64,
    at: u64,
}

impl Out<'_> {
    /// Sends what is wanted of the next bytes of the image.
    async fn send(&mut self, bytes: Bytes) -> ApiResult<()> {
        let (start, end) = (self.at, self.at + bytes.len() as u64);
        self.at = end;
        let (from, to) = (start.max(self.span.start), end.min(self.span.end));
        if from < to {
            let wanted = bytes.slice((from - start) as usize..(to - start) as usize);
            self.body.send(Ok(wanted)).await.map_err(|_| client_gone())?;
        }
        self.ctx.task.progress(end as f64 / self.length.max(1) as f64);
        Ok(())
    }
}

async fn send(mut out: Out<'_>, client: Client, content: Content, size: u64, tally: &Tally) -> ApiResult<()> {
    match content {
        Content::Raw => {
            let zeros = Bytes::from_static(&[0; CHUNK_BYTES as usize]);
            out.at = out.span.start - out.span.start % CHUNK_BYTES;
            let mut reader = DiskReader::starting_at(client, out.at, size, tally);
            while out.at < out.span.end
                && let Some(chunk) = reader.next().await.map_err(disk_error)?
            {
                let bytes = match chunk {
                    Chunk::Data(bytes) => bytes,
                    // At most CHUNK_BYTES.
                    Chunk::Zeros(length) => zeros.slice(..length as usize),
                };
                out.send(bytes).await?;
            }
        }
        Content::Image(plan) => {
            let mut end = 0;
            let placed = plan.pieces.map(move |piece| {
                end += piece.length();
                (end, piece)
            });
            let (start, stop) = (out.span.start, out.span.end);
            // Nothing is read for what is not sent.
            let mut wanted = placed.skip_while(move |(end, _)| *end <= start).peekable();
            out.at = wanted.peek().map_or(start, |(end, piece)| end - piece.length());
            let wanted = wanted.take_while(move |(end, piece)| end - piece.length() < stop);
            let mut pieces =
                iter(wanted).map(|(_, piece)| read(client.clone(), tally.clone(), piece)).buffered(UNDER_WAY);
            while let Some(bytes) = pieces.next().await {
                out.send(bytes?).await?;
            }
        }
    }
    Ok(())
}

async fn read(client: Client, tally: Tally, piece: ImagePiece) -> ApiResult<Bytes> {
    let content = match piece.range() {
        Some((offset, length)) => tally.read(&client, offset, length).await.map_err(disk_error)?,
        None => Bytes::new(),
    };
    piece.render(content).map_err(ApiError::internal)
}
