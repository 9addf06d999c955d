//! Plain disk images: `/export_raw_vdi` and `/import_raw_vdi` with `format=raw`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tanada_xva::is_zero;
use tokio::sync::mpsc;

use super::attached::{Access, Attached};
use super::disk::{Before, CHUNK_BYTES, Chunk, DiskReader, DiskWriter, Tally};
use super::error::{abort, body_error, client_gone, disk_error, taken};
use super::marked;
use super::stream::{Outgoing, Piece};
use crate::context::CallContext;
use crate::db::View;
use crate::ops::vdi::{NewDisk, create_disk};

/// Clients that do not know the length of what they send announce this.
pub const UNKNOWN_LENGTH: u64 = 1 << 50;

/// A disk on its way out. [`Export::run`] feeds `body`, which [`Export::open`] returned beside it.
pub struct Export {
    ctx: CallContext,
    disk: Attached,
    size: u64,
    body: mpsc::Sender<Piece>,
    /// Bytes of the body that were taken.
    counter: Arc<AtomicU64>,
}

impl Export {
    /// Everything that can be refused is refused here, before a header is sent. Answers the size in bytes as well.
    pub async fn open(ctx: CallContext, vdi: &Ref) -> ApiResult<(Export, u64, Outgoing)> {
        let record = ctx.db().read(|state| state.get("VDI", vdi))?;
        let size = u64::try_from(record.int("virtual_size")).unwrap_or(0);
        let disk = Attached::open(&ctx.daemon, vdi, Access::Read).await?;
        let (body, counter, outgoing) = Outgoing::channel();
        Ok((Export { ctx, disk, size, body, counter }, size, outgoing))
    }

    pub async fn run(self) -> ApiResult<Value> {
        let Export { ctx, disk, size, body, counter } = self;
        let tally = Tally::default();
        let result = match disk.client() {
            Ok(client) => {
                let mut reader = DiskReader::new(client, size, &tally);
                let sent = ctx.task.until_cancelled(send(&ctx, &mut reader, size, &body, &counter)).await;
                sent.unwrap_or_else(Err)
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

async fn send(
    ctx: &CallContext,
    reader: &mut DiskReader,
    size: u64,
    body: &mpsc::Sender<Piece>,
    counter: &AtomicU64,
) -> ApiResult<()> {
    let zeros = Bytes::from_static(&[0; CHUNK_BYTES as usize]);
    let mut done = 0;
    while let Some(chunk) = reader.next().await.map_err(disk_error)? {
        let length = chunk.length();
        let bytes = match chunk {
            Chunk::Data(bytes) => bytes,
            // At most CHUNK_BYTES.
            Chunk::Zeros(length) => zeros.slice(..length as usize),
        };
        body.send(Ok(bytes)).await.map_err(|_| client_gone())?;
        done += length;
        ctx.task.progress(done as f64 / size.max(1) as f64);
    }
    taken(body, || counter.load(Ordering::Relaxed) == done).await
}

/// An image on its way into a disk.
pub struct Import {
    ctx: CallContext,
    vdi: Ref,
    disk: Attached,
    size: u64,
    /// What the client announced; `None` where it did not or does not know.
    announced: Option<u64>,
    /// The intent of a disk that was made for this.
    intent: Option<String>,
}

impl Import {
    /// Into a disk that is there. `announced` is the request's Content-Length; what the image lacks of the disk stays as
    /// it was.
    pub async fn open(ctx: CallContext, vdi: Ref, announced: Option<u64>) -> ApiResult<Import> {
        let announced = announced.filter(|length| *length < UNKNOWN_LENGTH);
        let record = ctx.db().read(|state| state.get("VDI", &vdi))?;
        let size = u64::try_from(record.int("virtual_size")).unwrap_or(0);
        if let Some(length) = announced.filter(|length| *length > size) {
            return Err(ApiError::vdi_too_small(&vdi, length));
        }
        let disk = Attached::open(&ctx.daemon, &vdi, Access::Write).await?;
        Ok(Import { ctx, vdi, disk, size, announced, intent: None })
    }

    /// Into a new disk of the announced length.
    pub async fn create(ctx: CallContext, sr: &Ref, announced: Option<u64>) -> ApiResult<Import> {
        let known = announced.filter(|length| *length < UNKNOWN_LENGTH && *length > 0);
        let size = known.ok_or_else(|| ApiError::internal("a new disk needs a Content-Length"))?;
        let intent = marked::begin(&ctx.daemon)?;
        let disk = NewDisk::new(sr, size, "Imported VDI", "").with("other_config", marked::mark(&intent));
        let opened = match create_disk(&ctx.daemon, &disk).await {
            Ok(vdi) => Import::open(ctx.clone(), vdi, announced).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(import) => Ok(Import { intent: Some(intent), ..import }),
            Err(error) => {
                marked::undo(&ctx.daemon, &intent).await;
                Err(error)
            }
        }
    }

    pub async fn run(self, mut body: mpsc::Receiver<Piece>) -> ApiResult<Value> {
        let Import { ctx, vdi, disk, size, announced, intent } = self;
        let expected = announced.unwrap_or(size);
        let tally = Tally::default();
        let received = async {
            let client = disk.client()?;
            let extents = client.extents(0, size).await.map_err(disk_error)?;
            let empty = extents.iter().all(|extent| !extent.data);
            let before = if empty && client.knows_extents() { Before::Zeros } else { Before::Anything };
            receive(&ctx, DiskWriter::new(client, before, &tally), &mut body, expected).await
        };
        let result = ctx.task.until_cancelled(received).await.unwrap_or_else(Err);
        disk.release().await;
        ctx.task.moved(tally.moved());
        let result = match (&intent, result) {
            (Some(intent), Ok(())) => ctx.db().write(|tx| marked::complete(tx, [&vdi], intent)),
            (_, result) => result,
        };
        if let (Some(intent), Err(_)) = (&intent, &result) {
            marked::undo(&ctx.daemon, intent).await;
        }
        result.map(|()| Value::from(vdi))
    }
}

/// Writes `expected` bytes of the body in chunks; what follows is not read.
async fn receive(
    ctx: &CallContext,
    mut writer: DiskWriter,
    body: &mut mpsc::Receiver<Piece>,
    expected: u64,
) -> ApiResult<()> {
    let mut offset = 0;
    let mut collected = BytesMut::new();
    while offset < expected {
        // At most CHUNK_BYTES.
        let wanted = CHUNK_BYTES.min(expected - offset) as usize;
        while collected.len() < wanted {
            match body.recv().await {
                Some(Ok(piece)) => collected.extend_from_slice(&piece),
                Some(Err(error)) => return Err(body_error(&error)),
                None => return Err(ApiError::import_error_premature_eof()),
            }
        }
        let mut bytes = collected.split_to(wanted);
        // An image may end inside a sector; the rest of that sector is zero.
        bytes.resize(wanted.next_multiple_of(512), 0);
        let length = bytes.len() as u64;
        if is_zero(&bytes) {
            writer.zeros(offset, length).await.map_err(disk_error)?;
        } else {
            writer.data(offset, bytes.freeze()).await.map_err(disk_error)?;
        }
        offset += wanted as u64;
        ctx.task.progress(offset as f64 / expected as f64);
    }
    writer.finish().await.map_err(disk_error)
}
