//! Requests of guests that change blocks: writes, zeroes, discards; and flushes.
//!
//! ```text
//!   submit -> busy blocks (W1) -> parts: whole blocks -> pieces -> data write -> record
//!                                        block edges  -> patch task (RMW)  -> piece ...
//!          last part recorded: busy blocks given back -> journal kept or written (J6) -> [FUA: sync] -> answer
//! ```

pub mod brake;
pub mod busy;
pub mod data;
pub mod extents;
pub mod lookup;
pub mod patch;
pub mod read;
pub mod read_ahead;
pub mod stream;

use tanada_disk::Buf;
use tanada_format::VersionKind;
use uuid::Uuid;

use crate::api::{ExportId, Reply, Request, RequestId};
use crate::failure::{EBADF, EINVAL, EIO, ENOSPC, EROFS, Failure};
use crate::guest::data::{Piece, PieceKind};
use crate::guest::stream::Stream;
use crate::state::{BLOCK, Job, Patch, Phase, State};
use crate::versions::VersionId;

pub type OpId = u64;

/// A volume or generation held open.
#[derive(Debug, Clone)]
pub struct Export {
    pub uuid: Uuid,
    pub version: VersionId,
    pub writable: bool,
    /// Requests under way.
    pub in_flight: u32,
    /// Answered, and the export gone, when the last of them has ended.
    pub closing: Option<RequestId>,
    /// How far its reads are sequential.
    pub stream: Stream,
}

/// What a guest asked for.
enum Body {
    Write {
        offset: u64,
        data: Buf,
    },
    Zero {
        offset: u64,
        length: u64,
    },
    /// Whole blocks only; parts of blocks are left alone.
    Discard,
}

/// A request that changes blocks.
pub struct GuestOp {
    request: RequestId,
    export: u32,
    pub head: VersionId,
    /// Busy blocks it holds.
    start: u64,
    end: u64,
    /// `None` once begun.
    body: Option<Body>,
    /// Parts not yet recorded.
    parts: u32,
    pub failure: Option<Failure>,
    fua: bool,
    /// Last journal block with a record of it.
    pub seq: u64,
}

impl State {
    /// Takes a guest's request. Control operations go to tasks.
    pub fn submit(&mut self, request: RequestId, body: Request) {
        if let Phase::Refused(failure) = &self.phase {
            let failure = failure.clone();
            return self.reply(request, Err(failure));
        }
        self.guest_requests += u64::from(!matches!(body, Request::Control(_)));
        match body {
            Request::Control(control) => self.jobs.push_back(Job::Control { request, control }),
            Request::Read { export, offset, length } => match self.enter_export(export, offset, u64::from(length)) {
                Ok(()) if length == 0 => self.answer(request, export.0, Ok(Reply::Data(Vec::new()))),
                Ok(()) => self.begin_read(request, export.0, offset, length),
                Err(failure) => self.reply(request, Err(failure)),
            },
            Request::Extents { export, offset, length, .. } => match self.enter_export(export, offset, length) {
                Ok(()) => self.jobs.push_back(Job::Extents { request, request_body: body }),
                Err(failure) => self.reply(request, Err(failure)),
            },
            Request::Flush { export } => self.flush(request, export),
            Request::Write { export, offset, data, fua } => {
                let length = data.len() as u64;
                self.change(request, export, offset, length, fua, Body::Write { offset, data });
            }
            Request::WriteZeroes { export, offset, length, fua, keep_allocated: _ } => {
                // What is unmapped reads as zeros; a thin store cannot promise room for the next write either way.
                self.change(request, export, offset, length, fua, Body::Zero { offset, length });
            }
            Request::Discard { export, offset, length, fua } => {
                self.change(request, export, offset, length, fua, Body::Discard);
            }
        }
    }

    /// Checks a request against its export and counts it in.
    fn enter_export(&mut self, id: ExportId, offset: u64, length: u64) -> Result<(), Failure> {
        let Some(export) = self.exports.get_mut(&id.0).filter(|export| export.closing.is_none()) else {
            return Err(Failure::new(EBADF, format!("export {} is not open", id.0)));
        };
        let size = self.versions.get(export.version).map_or(0, |version| version.size);
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let message = format!("{length} bytes at offset {offset} reach beyond the {size} bytes of {}", export.uuid);
            return Err(Failure::new(EINVAL, message));
        }
        export.in_flight += 1;
        Ok(())
    }

    /// Answers a request that was counted in.
    pub fn answer(&mut self, request: RequestId, export: u32, result: Result<Reply, Failure>) {
        self.reply(request, result);
        self.leave_export(export);
    }

    fn leave_export(&mut self, id: u32) {
        let Some(export) = self.exports.get_mut(&id) else { return };
        export.in_flight -= 1;
        if let Some(request) = export.closing.filter(|_| export.in_flight == 0) {
            self.exports.remove(&id);
            self.end_ahead(id);
            self.reply(request, Ok(Reply::Done));
        }
    }

    /// Closes an export; answers when nothing of it is under way.
    pub fn close(&mut self, request: RequestId, id: ExportId) {
        match self.exports.get_mut(&id.0) {
            Some(export) if export.closing.is_some() => {
                self.reply(request, Err(Failure::new(EBADF, format!("export {} is being closed already", id.0))));
            }
            Some(export) if export.in_flight > 0 => export.closing = Some(request),
            Some(_) => {
                self.exports.remove(&id.0);
                self.end_ahead(id.0);
                self.reply(request, Ok(Reply::Done));
            }
            None => self.reply(request, Err(Failure::new(EBADF, format!("export {} is not open", id.0)))),
        }
    }

    fn flush(&mut self, request: RequestId, export: ExportId) {
        if let Err(failure) = self.check_writable().and_then(|()| self.enter_export(export, 0, 0)) {
            return self.reply(request, Err(failure));
        }
        let head = self.exports.get(&export.0).map_or(0, |export| export.version);
        let last = self.versions.get(head).map_or(0, |version| version.last_seq);
        // What is acknowledged is written or kept; what came later need not be covered.
        let seq = last.min(self.journal.acknowledged());
        self.expect_flushes();
        let op = self.new_op(request, export.0, head, 0..0, false, None);
        self.acknowledge_durable(seq, op);
    }

    fn new_op(
        &mut self,
        request: RequestId,
        export: u32,
        head: VersionId,
        blocks: std::ops::Range<u64>,
        fua: bool,
        body: Option<Body>,
    ) -> OpId {
        let id = self.next_op;
        self.next_op += 1;
        let (start, end) = (blocks.start, blocks.end);
        let op = GuestOp { request, export, head, start, end, body, parts: 0, failure: None, fua, seq: 0 };
        self.ops.insert(id, op);
        id
    }

    fn change(&mut self, request: RequestId, export: ExportId, offset: u64, length: u64, fua: bool, body: Body) {
        let writable = self.exports.get(&export.0).is_none_or(|export| export.writable);
        let checked = self.check_writable().and_then(|()| {
            if writable { Ok(()) } else { Err(Failure::new(EROFS, format!("export {} is read-only", export.0))) }
        });
        if let Err(failure) = checked.and_then(|()| self.enter_export(export, offset, length)) {
            return self.reply(request, Err(failure));
        }
        self.last_change = self.now;
        let head = self.exports.get(&export.0).map_or(0, |export| export.version);
        let blocks = match body {
            Body::Discard => offset.div_ceil(BLOCK)..(offset + length) / BLOCK,
            _ => offset / BLOCK..(offset + length).div_ceil(BLOCK),
        };
        if blocks.is_empty() || length == 0 {
            let op = self.new_op(request, export.0, head, 0..0, fua, None);
            return self.recorded(op);
        }
        let op = self.new_op(request, export.0, head, blocks.clone(), fua, Some(body));
        if self.busy.entry(head).or_default().acquire(blocks, op) {
            self.begin(op);
        }
    }

    /// The op holds its blocks: cuts it into parts.
    fn begin(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let Some(body) = op.body.take() else { return };
        let (head, start, end) = (op.head, op.start, op.end);
        op.parts = 1; // held until all parts are handed out
        match body {
            Body::Discard => self.push_unmap(id, head, start, end - start),
            Body::Zero { offset, length } => self.cut_edges(id, offset, length, |from, to| Edge::Zero(to - from)),
            Body::Write { offset, data } => {
                let length = data.len() as u64;
                self.cut_edges(id, offset, length, |from, to| Edge::Bytes(data.slice(from as usize..to as usize)));
            }
        }
        self.part_done(id);
    }

    /// Splits `length` bytes at `offset` into whole blocks and edges; `take` gives what belongs to a range of them.
    fn cut_edges(&mut self, id: OpId, offset: u64, length: u64, take: impl Fn(u64, u64) -> Edge) {
        let Some(head) = self.ops.get(&id).map(|op| op.head) else { return };
        let end = offset + length;
        let first_whole = offset.next_multiple_of(BLOCK);
        let last_whole = end / BLOCK * BLOCK;
        if first_whole > last_whole {
            return self.push_patch(id, offset, take(0, length));
        }
        if offset < first_whole {
            self.push_patch(id, offset, take(0, first_whole - offset));
        }
        if first_whole < last_whole {
            let (place, count) = (first_whole / BLOCK, (last_whole - first_whole) / BLOCK);
            match take(first_whole - offset, last_whole - offset) {
                Edge::Zero(_) => self.push_unmap(id, head, place, count),
                Edge::Bytes(buf) => self.push_data(id, head, place, buf),
            }
        }
        if last_whole < end {
            self.push_patch(id, last_whole, take(last_whole - offset, length));
        }
    }

    fn push_patch(&mut self, id: OpId, offset: u64, edge: Edge) {
        let patch = match edge {
            Edge::Zero(length) => Patch::Zeros(length as usize),
            Edge::Bytes(buf) => Patch::Bytes(buf),
        };
        self.add_part(id);
        self.jobs.push_back(Job::Patch { op: id, place: offset / BLOCK, at: (offset % BLOCK) as usize, patch });
    }

    fn push_unmap(&mut self, op: OpId, head: VersionId, place: u64, count: u64) {
        self.add_part(op);
        self.pending.push_back(Piece { op, head, place, kind: PieceKind::Unmap(count), is_rest: false });
    }

    /// Queues whole blocks, all-zero ones as holes (W5).
    pub fn push_data(&mut self, op: OpId, head: VersionId, place: u64, buf: Buf) {
        let blocks: Vec<bool> = buf.chunks_exact(BLOCK as usize).map(is_zero).collect();
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| a == b) {
            let place = place + at as u64;
            if run[0] {
                self.push_unmap(op, head, place, run.len() as u64);
            } else {
                let bytes = buf.slice(at * BLOCK as usize..(at + run.len()) * BLOCK as usize);
                self.add_part(op);
                self.pending.push_back(Piece { op, head, place, kind: PieceKind::Data(bytes), is_rest: false });
            }
            at += run.len();
        }
    }

    pub fn add_part(&mut self, id: OpId) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.parts += 1;
        }
    }

    /// A part has failed; the others go on.
    pub fn part_failed(&mut self, id: OpId, failure: Failure) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.failure.get_or_insert(failure);
        }
        self.part_done(id);
    }

    /// A part is recorded in journal block `seq`.
    pub fn part_recorded(&mut self, id: OpId, seq: u64) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.seq = op.seq.max(seq);
        }
        self.part_done(id);
    }

    pub fn part_done(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.parts -= 1;
        if op.parts == 0 {
            self.recorded(id);
        }
    }

    /// All parts are recorded: gives the blocks back and waits for the journal.
    fn recorded(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let (head, start, holds, seq, fua) = (op.head, op.start, op.start < op.end, op.seq, op.fua);
        let failed = op.failure.is_some();
        if holds {
            self.give_back(head, start);
        }
        if failed {
            self.finish_op(id);
        } else if fua {
            self.expect_flushes();
            // Nothing recorded by itself may still mean a hole that an earlier, undurable record made.
            let last = self.versions.get(head).map_or(0, |version| version.last_seq);
            self.acknowledge_durable(if seq == 0 { last } else { seq }, id);
        } else if seq <= self.journal.written() {
            self.finish_op(id);
        } else {
            self.waiting_for_journal.entry(seq).or_default().push(id);
        }
    }

    pub fn give_back(&mut self, head: VersionId, start: u64) {
        let Some(busy) = self.busy.get_mut(&head) else { return };
        let granted = busy.release(start);
        if busy.is_empty() {
            self.busy.remove(&head);
        }
        granted.into_iter().for_each(|op| self.begin(op));
    }

    /// Answers what is recorded in journal blocks up to `seq`: they are out of the process.
    pub fn acknowledge_up_to(&mut self, seq: u64) {
        while let Some(entry) = self.waiting_for_journal.first_entry().filter(|entry| *entry.key() <= seq) {
            entry.remove().into_iter().for_each(|op| self.finish_op(op));
        }
    }

    /// Answers an op.
    pub fn finish_op(&mut self, id: OpId) {
        let Some(op) = self.ops.remove(&id) else { return };
        let result = match op.failure {
            Some(failure) => Err(failure),
            None => Ok(Reply::Done),
        };
        self.answer(op.request, op.export, result);
    }

    /// The store has failed: answers an op with an error, whatever it waits for.
    pub fn abort_op(&mut self, id: OpId, failure: Failure) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.failure.get_or_insert(failure);
            self.finish_op(id);
        }
    }

    /// Ends pieces that cannot be placed.
    pub fn refuse_piece(&mut self, piece: &Piece) {
        let head = self.versions.get(piece.head).map_or_else(Uuid::nil, |version| version.uuid);
        let free = self.alloc.free() * BLOCK;
        let message = format!("no room for a write to volume {head}: {free} bytes are free, all of them reserved");
        self.part_failed(piece.op, Failure::new(ENOSPC, message));
    }

    /// True where the head can still be written by `op`'s volume.
    pub fn is_live_head(&self, head: VersionId) -> bool {
        self.versions.get(head).is_some_and(|version| version.is_live() && version.kind == VersionKind::Head)
    }

    /// The failure for a device error on a guest's data.
    pub fn data_failure(errno: i32, what: &str) -> Failure {
        let errno = if errno == 0 { EIO } else { errno };
        Failure::new(errno, format!("{what}: device error, errno {errno}"))
    }
}

/// What a guest wrote over a range.
enum Edge {
    Zero(u64),
    Bytes(Buf),
}

/// Stops at the first word that is not zero (W5).
fn is_zero(block: &[u8]) -> bool {
    block.as_chunks::<8>().0.iter().all(|word| *word == [0; 8])
}
