//! Machines from an XVA archive.
//!
//! ```text
//! request body ══bounded══▶ thread: decompressor ▶ archive reader ══bounded══▶ new disks by NBD ──▶ records
//! ```
//!
//! 1. `ova.xml` is read and every record checked; nothing was made so far.
//! 2. The disks are made. Each is written down in an intent first, so that a crash leaves none behind.
//! 3. Their content is streamed, checksums compared on the way; zeros stay holes.
//! 4. When the archive turned out whole and the disks are durable, machines, VBDs, VIFs and networks appear in one
//!    transaction, which strikes the intent off as well.
//!
//! Whatever fails before the fourth step, what was made is destroyed, and the task says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tanada_xva::{ArchiveReader, DiskEvent, Ova, Verify, XvaResult};
use tokio::sync::{mpsc, oneshot};

use super::attached::{Access, Attached};
use super::disk::{Before, DiskWriter, Tally};
use super::error::{disk_error, xva_error};
use super::marked;
use super::rate::Rate;
use super::stream::{Piece, PieceReader};
use super::unpack::{Manner, Unpacked};
use crate::context::{CallContext, Daemon};
use crate::db::View;
use crate::ops::vdi;

/// Events between the reading thread and the disks, at most 1 MiB each.
const EVENTS_UNDER_WAY: usize = 4;

/// An import that may begin.
pub struct Import {
    ctx: CallContext,
    sr: Ref,
    manner: Manner,
    rate: Rate,
}

/// The disks made so far, by their ids in the archive, and the intent that stands for them.
struct Made {
    intent: String,
    disks: BTreeMap<String, Ref>,
}

impl Import {
    /// Refuses SRs that cannot take disks, before a header is sent.
    pub fn open(ctx: CallContext, sr: &Ref, manner: Manner, rate: Rate) -> ApiResult<Import> {
        let record = ctx.db().read(|state| state.get("SR", sr))?;
        if record.str("content_type") == "iso" {
            return Err(ApiError::sr_operation_not_supported(sr));
        }
        ctx.daemon.storage.driver(sr)?;
        let rate = rate.and_of_sr(&ctx.daemon, sr)?;
        Ok(Import { ctx, sr: sr.clone(), manner, rate })
    }

    /// Answers the machines. `open_end`: the client stays silent after the archive instead of ending the body.
    pub async fn run(self, body: mpsc::Receiver<Piece>, open_end: bool) -> ApiResult<Value> {
        let (ova_sender, ova) = oneshot::channel();
        let (sender, events) = mpsc::channel(EVENTS_UNDER_WAY);
        let verify = if self.manner.force { Verify::Nothing } else { Verify::Checksums };
        let thread =
            tokio::task::spawn_blocking(move || read(PieceReader::new(body), verify, open_end, ova_sender, &sender));
        let described = self.ctx.task.until_cancelled(ova).await;
        let unpacked = described.and_then(|ova| {
            let ova = ova.map_err(|_| ended_early())?;
            let unpacked = Unpacked::read(&ova, self.manner)?;
            self.ctx.db().read(|state| unpacked.check(state))?;
            Ok(unpacked)
        });
        let unpacked = match unpacked {
            Ok(unpacked) => unpacked,
            Err(error) => {
                drop(events);
                return Err(verdict(error, thread).await);
            }
        };
        let intent = marked::begin(&self.ctx.daemon)?;
        let mut made = Made { intent, disks: BTreeMap::new() };
        let result = match self.fill(&unpacked, &mut made, events).await {
            Ok(()) => match joined(thread).await {
                Ok(()) => self.finish(&unpacked, &made),
                Err(error) => Err(error),
            },
            Err(error) => Err(verdict(error, thread).await),
        };
        match result {
            Ok(machines) => Ok(Value::set(machines)),
            Err(error) => {
                marked::undo(&self.ctx.daemon, &made.intent).await;
                Err(error)
            }
        }
    }

    /// Steps 2 and 3. Making, attaching and detaching a disk are not broken off in the middle, streaming is.
    async fn fill(&self, unpacked: &Unpacked, made: &mut Made, events: mpsc::Receiver<DiskEvent>) -> ApiResult<()> {
        for disk in &unpacked.disks {
            self.ctx.task.check()?;
            let vdi = vdi::create_disk(&self.ctx.daemon, &disk.request(&self.sr, &made.intent)).await?;
            made.disks.insert(disk.id.clone(), vdi);
        }
        let (tally, mut open) = (Tally::within(self.rate.clone()), None);
        let streamed = self.stream(unpacked, made, events, &mut open, &tally).await;
        // Whatever happened, no disk stays attached.
        let finished = match open {
            Some(open) if streamed.is_ok() => open.finish().await,
            Some(open) => {
                open.abandon().await;
                Ok(())
            }
            None => Ok(()),
        };
        self.ctx.task.moved(tally.moved());
        streamed.and(finished)
    }

    async fn stream(
        &self,
        unpacked: &Unpacked,
        made: &Made,
        mut events: mpsc::Receiver<DiskEvent>,
        open: &mut Option<OpenDisk>,
        tally: &Tally,
    ) -> ApiResult<()> {
        let total: u64 = unpacked.disks.iter().map(|disk| disk.virtual_size).sum();
        let mut done = 0;
        while let Some(event) = self.ctx.task.until_cancelled(events.recv()).await? {
            let (index, length) = match &event {
                DiskEvent::Data { disk, bytes, .. } => (*disk, bytes.len() as u64),
                DiskEvent::Zeros { disk, length, .. } => (*disk, *length),
            };
            if open.as_ref().is_none_or(|open| open.index != index) {
                if let Some(open) = open.take() {
                    open.finish().await?;
                }
                let vdi = unpacked.disks.get(index).and_then(|disk| made.disks.get(&disk.id));
                let vdi = vdi.ok_or_else(|| ApiError::internal(format!("disk {index} of the archive was not made")))?;
                *open = Some(OpenDisk::open(&self.ctx.daemon, index, vdi, tally).await?);
            }
            if let Some(open) = open {
                self.ctx.task.until_cancelled(open.take(event)).await??;
            }
            done += length;
            self.ctx.task.progress(done as f64 / total as f64);
        }
        Ok(())
    }

    /// Step 4.
    fn finish(&self, unpacked: &Unpacked, made: &Made) -> ApiResult<Vec<Ref>> {
        self.ctx.task.check()?;
        self.ctx.db().write(|tx| {
            marked::complete(tx, made.disks.values(), &made.intent)?;
            unpacked.create(tx, &made.disks, self.ctx.task.id())
        })
    }
}

type Reading = tokio::task::JoinHandle<XvaResult<()>>;

async fn joined(thread: Reading) -> ApiResult<()> {
    match thread.await {
        Ok(read) => read.map_err(xva_error),
        Err(error) => Err(ApiError::internal(format!("the archive's reader: {error}"))),
    }
}

/// Of the reader's reason and ours the one that came first: where we only noticed that it ended, it knows why.
async fn verdict(ours: ApiError, thread: Reading) -> ApiError {
    if ours.is("TASK_CANCELLED") {
        // The reader may wait for a client that sends nothing; it ends when the connection does.
        return ours;
    }
    match joined(thread).await {
        Err(theirs) if ours == ended_early() => theirs,
        _ => ours,
    }
}

fn ended_early() -> ApiError {
    ApiError::import_error_premature_eof()
}

/// Reads the archive on a thread of its own, until its end or until nobody wants more of it.
fn read(
    body: PieceReader,
    verify: Verify,
    open_end: bool,
    ova: oneshot::Sender<Ova>,
    events: &mpsc::Sender<DiskEvent>,
) -> XvaResult<()> {
    let mut archive = ArchiveReader::open(body, verify)?;
    if open_end {
        archive.expect_open_end();
    }
    if ova.send(archive.ova().clone()).is_err() {
        return Ok(());
    }
    while let Some(event) = archive.next_event()? {
        if events.blocking_send(event).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The disk that is being filled.
struct OpenDisk {
    index: usize,
    disk: Attached,
    writer: DiskWriter,
}

impl OpenDisk {
    async fn open(daemon: &Arc<Daemon>, index: usize, vdi: &Ref, tally: &Tally) -> ApiResult<OpenDisk> {
        let disk = Attached::open(daemon, vdi, Access::Write).await?;
        let writer = DiskWriter::new(disk.client()?, Before::Zeros, tally);
        Ok(OpenDisk { index, disk, writer })
    }

    async fn take(&mut self, event: DiskEvent) -> ApiResult<()> {
        match event {
            DiskEvent::Data { offset, bytes, .. } => self.writer.data(offset, Bytes::from(bytes)).await,
            DiskEvent::Zeros { offset, length, .. } => self.writer.zeros(offset, length).await,
        }
        .map_err(disk_error)
    }

    async fn finish(self) -> ApiResult<()> {
        let finished = self.writer.finish().await.map_err(disk_error);
        self.disk.release().await;
        finished
    }

    async fn abandon(self) {
        drop(self.writer);
        self.disk.release().await;
    }
}
