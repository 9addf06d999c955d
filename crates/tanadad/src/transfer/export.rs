//! A machine, snapshot or template as an XVA archive.
//!
//! ```text
//! disks ──NBD, holes skipped──▶ chunks ══bounded══▶ thread: archive writer ▶ compressor ══bounded══▶ response body
//!   └─ snapshots of it: what differs ──▶ ┘
//! ```
//!
//! Nothing is kept beyond the pieces under way, so memory does not depend on the machine's size. The archive's end is
//! written last: what breaks off before is no archive to any reader. Snapshots that leave with their machine are held by
//! the operation `export` of their own, so that no retention takes them away meanwhile.

use std::collections::BTreeMap;

use tanada_xapi::{ApiError, ApiResult, DateTime, Ref, Value};
use tanada_xva::compress::Encoder;
use tanada_xva::{
    ArchiveWriter, ChecksumKind, Compression, Delta, DeltaPlan, DiskPlan, Generations, Ova, XvaError, XvaResult,
};
use tokio::sync::mpsc;

use super::attached::{Access, Attached};
use super::differing::Differing;
use super::disk::{CHUNK_BYTES, Chunk, DiskReader, Tally};
use super::error::{abort, client_gone, disk_error, taken, xva_error};
use super::pack::{Along, Packed, pack};
use super::rate::Rate;
use super::stream::{Outgoing, Piece, PieceWriter};
use crate::context::{CallContext, Operation};
use crate::db::View;
use crate::ops::allowed;

/// Chunks between the disks and the writing thread, 1 MiB each.
const CHUNKS_UNDER_WAY: usize = 4;

/// How an archive is written, and what beside a halted machine it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    pub compression: Compression,
    pub checksum: ChecksumKind,
    /// The memory of a suspended machine, and of checkpoints.
    pub memory: bool,
    /// The machine's snapshots.
    pub snapshots: bool,
}

/// What the archive's writer gets, in its order.
enum Item {
    Chunk(Chunk),
    /// Of the older disk with this number.
    Delta {
        disk: usize,
        chunk: u64,
        delta: Delta,
    },
    /// Everything was read. Without it the reader has given up.
    End,
}

/// A machine on its way out. [`Export::run`] feeds the body that [`Export::open`] returned beside it.
pub struct Export {
    ctx: CallContext,
    form: Form,
    ova: Ova,
    plans: Vec<DiskPlan>,
    generations: Option<Generations>,
    /// All disks by their ids in the archive; the machine's own are attached.
    vdis: BTreeMap<String, Ref>,
    disks: BTreeMap<String, Attached>,
    rate: Rate,
    body: mpsc::Sender<Piece>,
    writer: PieceWriter,
    _operations: Vec<Operation>,
}

impl Export {
    /// Everything that can be refused is refused here, before a header is sent.
    pub async fn open(ctx: CallContext, vm: &Ref, form: Form, mut rate: Rate) -> ApiResult<(Export, Outgoing)> {
        let mut operations = vec![ctx.begin("VM", vm, "export", |tx| allowed::vm(tx, vm, "export"))?];
        let mut along = Along { memory: form.memory, snapshots: Vec::new() };
        if form.snapshots {
            along.snapshots = ctx.db().read(|state| Ok::<_, ApiError>(state.get("VM", vm)?.refs("snapshots")))?;
            for snapshot in &along.snapshots {
                operations.push(ctx.begin("VM", snapshot, "export", |tx| allowed::vm(tx, snapshot, "export"))?);
            }
        }
        let packed = ctx.db().read(|state| pack(state, vm, &along))?;
        let plans = packed.ova.disks().map_err(xva_error)?;
        for vdi in packed.disks.values() {
            rate = rate.and_of_disk(&ctx.daemon, vdi)?;
        }
        let mut disks = BTreeMap::new();
        for DiskPlan { id, .. } in &plans {
            let vdi = packed.disks.get(id).ok_or_else(|| ApiError::internal(format!("disk {id} has no VDI")))?;
            disks.insert(id.clone(), Attached::open(&ctx.daemon, vdi, Access::Read).await?);
        }
        let (writer, body, pieces) = PieceWriter::channel();
        let Packed { ova, disks: vdis, generations } = packed;
        let _operations = operations;
        let export = Export { ctx, form, ova, plans, generations, vdis, disks, rate, body, writer, _operations };
        Ok((export, pieces))
    }

    pub async fn run(self) -> ApiResult<Value> {
        let Export { ctx, form, ova, plans, generations, vdis, mut disks, rate, body, writer, _operations } = self;
        let (items, queue) = mpsc::channel(CHUNKS_UNDER_WAY);
        let older = generations.as_ref().map_or_else(Vec::new, |generations| generations.disks.clone());
        let thread = tokio::task::spawn_blocking(move || write(writer, &ova, generations.as_ref(), form, queue));
        let tally = Tally::within(rate);
        let reading = Reading { ctx: &ctx, vdis: &vdis, total: total(&plans, &older), items, tally: &tally };
        let work = async {
            let read = async {
                reading.newest(&plans, &disks).await?;
                reading.older(&plans, &older).await
            };
            let read = read.await;
            drop(reading);
            verdict(read, thread.await, &body).await
        };
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

fn total(plans: &[DiskPlan], older: &[DeltaPlan]) -> u64 {
    let sizes = plans.iter().map(|plan| plan.size).chain(older.iter().map(|plan| plan.size));
    sizes.fold(1, u64::saturating_add)
}

/// All disks in the archive's order, into the queue.
struct Reading<'a> {
    ctx: &'a CallContext,
    vdis: &'a BTreeMap<String, Ref>,
    /// Virtual bytes of all disks.
    total: u64,
    items: mpsc::Sender<Item>,
    tally: &'a Tally,
}

impl Reading<'_> {
    async fn newest(&self, plans: &[DiskPlan], disks: &BTreeMap<String, Attached>) -> ApiResult<()> {
        let mut done = 0;
        for plan in plans {
            let disk =
                disks.get(&plan.id).ok_or_else(|| ApiError::internal(format!("disk {} is not attached", plan.id)))?;
            let mut reader = DiskReader::new(disk.client()?, plan.size, self.tally);
            while let Some(chunk) = reader.next().await.map_err(disk_error)? {
                done += chunk.length();
                self.send(Item::Chunk(chunk), done).await?;
            }
        }
        Ok(())
    }

    async fn older(&self, plans: &[DiskPlan], older: &[DeltaPlan]) -> ApiResult<()> {
        let mut done: u64 = plans.iter().map(|plan| plan.size).sum();
        for (disk, plan) in older.iter().enumerate() {
            let vdi = |id: &str| self.vdis.get(id).ok_or_else(|| ApiError::internal(format!("disk {id} has no VDI")));
            let base = plan.base.as_deref().map(vdi).transpose()?;
            let mut differing = Differing::open(&self.ctx.daemon, vdi(&plan.id)?, base, self.tally).await?;
            let told = async {
                while let Some((chunk, delta)) = differing.next().await? {
                    let at = done.saturating_add(chunk * CHUNK_BYTES);
                    self.send(Item::Delta { disk, chunk, delta }, at).await?;
                }
                Ok(())
            };
            let told = told.await;
            differing.release().await;
            told?;
            done = done.saturating_add(plan.size);
        }
        self.send(Item::End, done).await
    }

    async fn send(&self, item: Item, done: u64) -> ApiResult<()> {
        self.items.send(item).await.map_err(|_| client_gone())?;
        self.ctx.task.progress(done as f64 / self.total as f64);
        Ok(())
    }
}

/// Runs on a thread of its own until the archive is whole or the queue or the body ends early.
fn write(
    out: PieceWriter,
    ova: &Ova,
    generations: Option<&Generations>,
    form: Form,
    mut queue: mpsc::Receiver<Item>,
) -> XvaResult<()> {
    let now = u64::try_from(DateTime::now().unix()).unwrap_or(0);
    let encoder = Encoder::new(out, form.compression).map_err(XvaError::Io)?;
    let mut archive = ArchiveWriter::begin(encoder, ova, form.checksum, now)?;
    let early = || XvaError::Unwritable("the disks ended early".into());
    while archive.next_chunk().is_some() {
        match queue.blocking_recv() {
            Some(Item::Chunk(Chunk::Data(bytes))) => archive.chunk(&bytes)?,
            Some(Item::Chunk(Chunk::Zeros(_))) => archive.zeros()?,
            Some(Item::Delta { .. } | Item::End) | None => return Err(early()),
        }
    }
    if let Some(generations) = generations {
        archive.generations(generations, now)?;
    }
    loop {
        match queue.blocking_recv() {
            Some(Item::Delta { disk, chunk, delta }) => {
                let plan = generations.and_then(|generations| generations.disks.get(disk)).ok_or_else(early)?;
                archive.delta(&plan.id, chunk, &delta)?;
            }
            Some(Item::End) => break,
            Some(Item::Chunk(_)) | None => return Err(early()),
        }
    }
    archive.finish()?.finish().map(drop).map_err(XvaError::Io)
}

const _: () = assert!(CHUNK_BYTES == tanada_xva::limits::CHUNK_BYTES as u64);
