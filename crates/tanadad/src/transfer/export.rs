//! A machine, snapshot or template as an XVA archive.
//!
//! ```text
//! disks ──NBD, holes skipped──▶ chunks ══bounded══▶ thread: archive writer ▶ compressor ══bounded══▶ response body
//! ```
//!
//! Nothing is kept beyond the pieces under way, so memory does not depend on the machine's size. The archive's end is
//! written last: what breaks off before is no archive to any reader.

use std::collections::BTreeMap;

use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};
use tanada_xva::compress::Encoder;
use tanada_xva::{ArchiveWriter, ChecksumKind, Compression, DiskPlan, Ova, XvaError, XvaResult};
use tokio::sync::mpsc;

use super::attached::{Access, Attached};
use super::disk::{Chunk, DiskReader, Tally};
use super::error::{abort, client_gone, disk_error, taken, xva_error};
use super::pack::pack;
use super::rate::Rate;
use super::stream::{Outgoing, Piece, PieceWriter};
use crate::context::{CallContext, Operation};
use crate::ops::allowed;

/// Chunks between the disks and the writing thread, 1 MiB each.
const CHUNKS_UNDER_WAY: usize = 4;

/// How an archive is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    pub compression: Compression,
    pub checksum: ChecksumKind,
}

/// A machine on its way out. [`Export::run`] feeds the body that [`Export::open`] returned beside it.
pub struct Export {
    ctx: CallContext,
    form: Form,
    ova: Ova,
    plans: Vec<DiskPlan>,
    disks: BTreeMap<String, Attached>,
    rate: Rate,
    body: mpsc::Sender<Piece>,
    writer: PieceWriter,
    _operation: Operation,
}

impl Export {
    /// Everything that can be refused is refused here, before a header is sent.
    pub async fn open(ctx: CallContext, vm: &Ref, form: Form, mut rate: Rate) -> ApiResult<(Export, Outgoing)> {
        let operation = ctx.begin("VM", vm, "export", |tx| allowed::vm(tx, vm, "export"))?;
        let packed = ctx.db().read(|state| pack(state, vm))?;
        let plans = packed.ova.disks().map_err(xva_error)?;
        let mut disks = BTreeMap::new();
        for (id, vdi) in packed.disks {
            rate = rate.and_of_disk(&ctx.daemon, &vdi)?;
            disks.insert(id, Attached::open(&ctx.daemon, &vdi, Access::Read).await?);
        }
        let (writer, body, pieces) = PieceWriter::channel();
        let export = Export { ctx, form, ova: packed.ova, plans, disks, rate, body, writer, _operation: operation };
        Ok((export, pieces))
    }

    pub async fn run(self) -> ApiResult<Value> {
        let Export { ctx, form, ova, plans, mut disks, rate, body, writer, _operation } = self;
        let (chunks, queue) = mpsc::channel(CHUNKS_UNDER_WAY);
        let thread = tokio::task::spawn_blocking(move || write(writer, &ova, form, queue));
        let tally = Tally::within(rate);
        let work = async { verdict(read(&ctx, &plans, &disks, chunks, &tally).await, thread.await, &body).await };
        // When it is cancelled, the thread may still wait for a client that has stopped reading; it ends when the
        // connection does.
        let result = ctx.task.until_cancelled(work).await.unwrap_or_else(Err);
        while let Some((_, disk)) = disks.pop_first() {
            disk.release().await;
        }
        ctx.task.moved(tally.moved());
        if let Err(error) = &result {
            abort(body, error);
        }
        result.map(|()| Value::Void)
    }
}

/// Of the reader's reason and the writer's the one that came first: where the reading stopped because the writer did, the
/// writer knows why.
async fn verdict(
    read: ApiResult<()>,
    written: Result<XvaResult<()>, tokio::task::JoinError>,
    body: &mpsc::Sender<Piece>,
) -> ApiResult<()> {
    match (read, written) {
        (_, Err(error)) => Err(ApiError::internal(format!("the archive's writer: {error}"))),
        (Err(error), Ok(Err(XvaError::Unwritable(_)))) => Err(error),
        (_, Ok(Err(error))) => Err(xva_error(error)),
        (Err(error), Ok(Ok(()))) => Err(error),
        (Ok(()), Ok(Ok(()))) => taken(body, || false).await,
    }
}

/// Reads all disks in the archive's order into the queue.
async fn read(
    ctx: &CallContext,
    plans: &[DiskPlan],
    disks: &BTreeMap<String, Attached>,
    chunks: mpsc::Sender<Chunk>,
    tally: &Tally,
) -> ApiResult<()> {
    let total: u64 = plans.iter().map(|plan| plan.size).sum();
    let mut done = 0;
    for plan in plans {
        let disk =
            disks.get(&plan.id).ok_or_else(|| ApiError::internal(format!("disk {} is not attached", plan.id)))?;
        let mut reader = DiskReader::new(disk.client()?, plan.size, tally);
        while let Some(chunk) = reader.next().await.map_err(disk_error)? {
            done += chunk.length();
            chunks.send(chunk).await.map_err(|_| client_gone())?;
            ctx.task.progress(done as f64 / total as f64);
        }
    }
    Ok(())
}

/// Runs on a thread of its own until the archive is whole or the queue or the body ends early.
fn write(out: PieceWriter, ova: &Ova, form: Form, mut queue: mpsc::Receiver<Chunk>) -> XvaResult<()> {
    let now = u64::try_from(DateTime::now().unix()).unwrap_or(0);
    let encoder = Encoder::new(out, form.compression).map_err(XvaError::Io)?;
    let mut archive = ArchiveWriter::begin(encoder, ova, form.checksum, now)?;
    while archive.next_chunk().is_some() {
        match queue.blocking_recv() {
            Some(Chunk::Data(bytes)) => archive.chunk(&bytes)?,
            Some(Chunk::Zeros(_)) => archive.zeros()?,
            None => return Err(XvaError::Unwritable("the disks ended early".into())),
        }
    }
    archive.finish()?.finish().map(drop).map_err(XvaError::Io)
}

const _: () = assert!(super::disk::CHUNK_BYTES == tanada_xva::limits::CHUNK_BYTES as u64);
