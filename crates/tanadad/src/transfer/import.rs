//! Machines from an XVA archive.
//!
//! ```text
//! request body ══bounded══▶ thread: decompressor ▶ archive reader ══bounded══▶ new disks by NBD ──▶ records
//! ```
//!
//! 1. `ova.xml` is read and every record checked; nothing was made so far.
//! 2. The disks are made. Each is written down in an intent first, so that a crash leaves none behind.
//! 3. Their content is streamed, checksums compared on the way; zeros stay holes. Older states of them follow, where there
//!    are some ([`super::replay`]).
//! 4. When the archive turned out whole and the disks are durable, machines, VBDs, VIFs and networks appear in one
//!    transaction, which strikes the intent off as well. A memory image that no machine here can go on with is destroyed.
//!
//! Whatever fails before the fourth step, what was made is destroyed, and the task says why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};
use tanada_xva::{ArchiveReader, DiskEvent, Generations, Ova, Verify, XvaResult};
use tokio::sync::{mpsc, oneshot};

use super::attached::{Access, Attached};
use super::disk::{Before, DiskWriter, Tally};
use super::error::{disk_error, xva_error};
use super::marked;
use super::rate::Rate;
use super::replay::Replay;
use super::stream::{Piece, PieceReader};
use super::unpack::{Manner, Unpacked};
use crate::context::{CallContext, Daemon};
use crate::db::View;
use crate::ops::intents::Plan;
use crate::ops::{vdi, vdi_copy};
use crate::vmm::memory::load::Image;

/// Events between the reading thread and the disks, at most 1 MiB each.
const EVENTS_UNDER_WAY: usize = 4;

/// Progress when the machine's disks are complete; what follows them is not known before.
pub const OF_DISKS: f64 = 0.9;

/// An import that may begin.
pub struct Import {
    ctx: CallContext,
    sr: Ref,
    manner: Manner,
    rate: Rate,
}

/// The disks made so far, by their ids in the archive, and the intent that stands for them.
pub struct Made {
    pub intent: String,
    pub disks: BTreeMap<String, Ref>,
}

/// What the reading thread tells.
pub enum Event {
    Disk(DiskEvent),
    /// All disks are complete; the machine's snapshots follow.
    Generations(Box<Generations>),
    /// A piece of an older disk that differs from its base.
    Change(DiskEvent),
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
            Ok((ova, unpacked))
        });
        let (ova, unpacked) = match unpacked {
            Ok(read) => read,
            Err(error) => {
                drop(events);
                return Err(verdict(error, thread).await);
            }
        };
        let intent = marked::begin(&self.ctx.daemon)?;
        let mut made = Made { intent, disks: BTreeMap::new() };
        let result = match self.fill(&ova, unpacked, &mut made, events).await {
            Ok(unpacked) => match joined(thread).await {
                Ok(()) => self.finish(&unpacked, &made).await,
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

    /// Steps 2 and 3. Making, attaching and detaching a disk are not broken off in the middle, streaming is. Answers all
    /// records, those of snapshots too.
    async fn fill(
        &self,
        ova: &Ova,
        unpacked: Unpacked,
        made: &mut Made,
        mut events: mpsc::Receiver<Event>,
    ) -> ApiResult<Unpacked> {
        for disk in &unpacked.disks {
            self.ctx.task.check()?;
            let vdi = vdi::create_disk(&self.ctx.daemon, &disk.request(&self.sr, &made.intent)).await?;
            made.disks.insert(disk.id.clone(), vdi);
        }
        let (tally, mut open) = (Tally::within(self.rate.clone()), None);
        let streamed = self.stream(&unpacked, made, &mut events, &mut open, &tally).await;
        // Whatever happened, no disk stays attached.
        let finished = match open {
            Some(open) if streamed.is_ok() => open.finish().await,
            Some(open) => {
                open.abandon().await;
                Ok(())
            }
            None => Ok(()),
        };
        let result = match (streamed, finished) {
            (Ok(None), Ok(())) => Ok(unpacked),
            (Ok(Some(generations)), Ok(())) => self.older(ova, &generations, made, &mut events, &tally).await,
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        self.ctx.task.moved(tally.moved());
        result
    }

    /// Fills the machine's disks; answers its snapshots where they follow.
    async fn stream(
        &self,
        unpacked: &Unpacked,
        made: &Made,
        events: &mut mpsc::Receiver<Event>,
        open: &mut Option<OpenDisk>,
        tally: &Tally,
    ) -> ApiResult<Option<Box<Generations>>> {
        let total: u64 = unpacked.disks.iter().map(|disk| disk.virtual_size).sum();
        let mut done = 0;
        while let Some(event) = self.ctx.task.until_cancelled(events.recv()).await? {
            let event = match event {
                Event::Disk(event) => event,
                Event::Generations(generations) => return Ok(Some(generations)),
                Event::Change(_) => return Err(ApiError::internal("a change before the snapshots' records")),
            };
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
            self.ctx.task.progress(OF_DISKS * done as f64 / total as f64);
        }
        Ok(None)
    }

    /// Makes the older states of the disks.
    async fn older(
        &self,
        ova: &Ova,
        generations: &Generations,
        made: &mut Made,
        events: &mut mpsc::Receiver<Event>,
        tally: &Tally,
    ) -> ApiResult<Unpacked> {
        let unpacked = Unpacked::with_generations(ova, generations, self.manner)?;
        self.ctx.db().read(|state| unpacked.check(state))?;
        let mut replay = Replay::new(&self.ctx, &self.sr, &unpacked.older, made, tally)?;
        let played = replay.play(events).await;
        let ended = replay.end(played.is_ok()).await;
        played.and(ended).map(|()| unpacked)
    }

    /// Step 4.
    async fn finish(&self, unpacked: &Unpacked, made: &Made) -> ApiResult<Vec<Ref>> {
        let usable = self.usable(unpacked, made).await?;
        self.ctx.task.check()?;
        let (machines, left) = self.ctx.db().write(|tx| {
            marked::complete(tx, made.disks.values(), &made.intent)?;
            let machines = unpacked.create(tx, &usable, self.ctx.task.id())?;
            let taken: BTreeSet<Ref> = tx.all("VM").iter().map(|vm| vm.reference("suspend_VDI")).collect();
            let left: Vec<Ref> = unpacked
                .images()
                .filter_map(|id| made.disks.get(id))
                .filter(|vdi| !taken.contains(*vdi))
                .cloned()
                .collect();
            let intent = Plan::Discard { vdis: left.iter().map(Ref::to_string).collect() };
            let left = if left.is_empty() { None } else { Some((intent.put(tx)?, left)) };
            Ok((machines, left))
        })?;
        if let Some((intent, left)) = left {
            vdi_copy::discard(&self.ctx.daemon, &left, &intent).await;
        }
        Ok(machines)
    }

    /// The disks without memory that nobody here can read: of another make, or never completed.
    async fn usable(&self, unpacked: &Unpacked, made: &Made) -> ApiResult<BTreeMap<String, Ref>> {
        let mut usable = made.disks.clone();
        for id in unpacked.images() {
            let Some(vdi) = made.disks.get(id) else { continue };
            match Image::open(&self.ctx.daemon, vdi).await {
                Ok(image) => image.release().await,
                Err(error) if error.is("SUSPEND_IMAGE_NOT_ACCESSIBLE") => {
                    tracing::warn!(%error, "the memory in an archive cannot be used; its machine is halted");
                    usable.remove(id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(usable)
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
    events: &mpsc::Sender<Event>,
) -> XvaResult<()> {
    let mut archive = ArchiveReader::open(body, verify)?;
    archive.expect_generations();
    if open_end {
        archive.expect_open_end();
    }
    if ova.send(archive.ova().clone()).is_err() {
        return Ok(());
    }
    while let Some(event) = archive.next_event()? {
        if events.blocking_send(Event::Disk(event)).is_err() {
            return Ok(());
        }
    }
    let Some(generations) = archive.generations().cloned() else { return Ok(()) };
    if events.blocking_send(Event::Generations(Box::new(generations))).is_err() {
        return Ok(());
    }
    while let Some(change) = archive.next_change()? {
        if events.blocking_send(Event::Change(change)).is_err() {
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
