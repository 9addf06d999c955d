//! Plain disks on their way in: `/import_raw_vdi` with `format=raw`. (Out: [`super::image`].)
//!
//! An import into a disk that was there before can be gone on with: when the stream breaks off, what came is made durable,
//! and the task's `other_config` says in `resume_offset` where the next one begins (the parameter `offset`).

use bytes::BytesMut;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tanada_xva::is_zero;
use tokio::sync::mpsc;

use super::attached::{Access, Attached};
use super::disk::{Before, CHUNK_BYTES, DiskWriter, Tally, is_empty};
use super::error::{body_error, disk_error};
use super::marked;
use super::rate::Rate;
use super::stream::Piece;
use crate::context::CallContext;
use crate::db::View;
use crate::ops::vdi::{NewDisk, create_disk};

/// Clients that do not know the length of what they send announce this.
pub const UNKNOWN_LENGTH: u64 = 1 << 50;

const SECTOR: u64 = 512;

/// An image on its way into a disk.
pub struct Import {
    ctx: CallContext,
    vdi: Ref,
    disk: Attached,
    /// Where on the disk the stream begins, and where it has to end, in bytes.
    start: u64,
    end: u64,
    rate: Rate,
    /// The intent of a disk that was made for this.
    intent: Option<String>,
}

impl Import {
    /// Into a disk that is there, from `start` on (a multiple of 512). `announced` is the request's Content-Length; what the
    /// image lacks of the disk stays as it was.
    pub async fn open(ctx: CallContext, vdi: Ref, announced: Option<u64>, start: u64, rate: Rate) -> ApiResult<Import> {
        let announced = announced.filter(|length| *length < UNKNOWN_LENGTH);
        let record = ctx.db().read(|state| state.get("VDI", &vdi))?;
        let size = u64::try_from(record.int("virtual_size")).unwrap_or(0);
        if !start.is_multiple_of(SECTOR) {
            return Err(ApiError::value_not_supported("offset", start, "a multiple of 512"));
        }
        let end = announced.map_or(Some(size), |length| start.checked_add(length)).unwrap_or(u64::MAX);
        if end.max(start) > size {
            return Err(ApiError::vdi_too_small(&vdi, end.max(start)));
        }
        let rate = rate.and_of_disk(&ctx.daemon, &vdi)?;
        let disk = Attached::open(&ctx.daemon, &vdi, Access::Write).await?;
        Ok(Import { ctx, vdi, disk, start, end, rate, intent: None })
    }

    /// Into a new disk of the announced length.
    pub async fn create(ctx: CallContext, sr: &Ref, announced: Option<u64>, rate: Rate) -> ApiResult<Import> {
        let known = announced.filter(|length| *length < UNKNOWN_LENGTH && *length > 0);
        let size = known.ok_or_else(|| ApiError::internal("a new disk needs a Content-Length"))?;
        let intent = marked::begin(&ctx.daemon)?;
        let disk = NewDisk::new(sr, size, "Imported VDI", "").with("other_config", marked::mark(&intent));
        let opened = match create_disk(&ctx.daemon, &disk).await {
            Ok(vdi) => Import::open(ctx.clone(), vdi, announced, 0, rate).await,
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
        let Import { ctx, vdi, disk, start, end, rate, intent } = self;
        let tally = Tally::within(rate);
        let received = async {
            let client = disk.client()?;
            let empty = is_empty(&client, client.size()).await.map_err(disk_error)?;
            let before = if empty { Before::Zeros } else { Before::Anything };
            let mut stream = Stream { writer: DiskWriter::new(client, before, &tally), at: start, end };
            let result = stream.receive(&ctx, &mut body).await;
            let durable = stream.writer.finish().await.map_err(disk_error);
            if result.is_err() && durable.is_ok() && intent.is_none() {
                ctx.task.note("resume_offset", &stream.at.to_string());
            }
            result.and(durable)
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

/// The part of the disk that has not come yet.
struct Stream {
    writer: DiskWriter,
    at: u64,
    end: u64,
}

impl Stream {
    /// Writes the body in chunks up to the end; what follows is not read.
    async fn receive(&mut self, ctx: &CallContext, body: &mut mpsc::Receiver<Piece>) -> ApiResult<()> {
        let mut collected = BytesMut::new();
        while self.at < self.end {
            // At most CHUNK_BYTES.
            let wanted = CHUNK_BYTES.min(self.end - self.at) as usize;
            while collected.len() < wanted {
                match body.recv().await {
                    Some(Ok(piece)) => collected.extend_from_slice(&piece),
                    Some(Err(error)) => return Err(body_error(&error)),
                    None => return Err(ApiError::import_error_premature_eof()),
                }
            }
            let mut bytes = collected.split_to(wanted);
            // An image may end inside a sector; the rest of that sector is zero.
            bytes.resize(wanted.next_multiple_of(SECTOR as usize), 0);
            let length = bytes.len() as u64;
            if is_zero(&bytes) {
                self.writer.zeros(self.at, length).await.map_err(disk_error)?;
            } else {
                self.writer.data(self.at, bytes.freeze()).await.map_err(disk_error)?;
            }
            self.at += wanted as u64;
            ctx.task.progress(self.at as f64 / self.end as f64);
        }
        Ok(())
    }
}
