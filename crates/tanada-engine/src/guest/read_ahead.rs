//! Reading ahead for guests that read in order: the device works on what is next while the guest is busy with what it got.
//!
//! ```text
//!   a stream of reads --> pieces behind its end: looked up, read, verified like any read     sought --> under way --> there
//!   a guest's read inside a piece: looked up anew, the same pointers (W7)? --> waits for the piece, or is answered from it
//!                                                        | no, or the piece is only sought
//!                                                        +--> a read of its own
//! ```
//! Invariants:
//! 1. (W7) A piece counts as a reader from its look-up until it is let go (B3). So as long as it is here no block of it can have been
//!    used again, and pointers that are still the same mean the same content. Whatever changed them (a write, a discard, a
//!    revert, a move) makes the guest's read one of its own; nobody has to tell a piece about changes.
//! 2. Nothing waits for a piece: one that is there is let go when a checkpoint takes over, for blocks could wait for
//!    it; one under way is as short as any read.
//! 3. A piece with a block that did not verify is let go, and those who wait read for themselves: damage is found, mended
//!    or told by [`super::read`] alone.
//! 4. Memory is bounded for each export and for all of them. A piece that is not asked for within a second is let go, for
//!    its blocks may be parts of larger chunks of memory, which it keeps.

use std::collections::{BTreeMap, VecDeque};

use tanada_format::Pointer;

use crate::api::{Reply, RequestId};
use crate::guest::read::{GuestRead, ReadId, Role};
use crate::guest::stream::Stream;
use crate::state::{BLOCK, State};

/// Requests above this share of what is read ahead keep the device busy by themselves.
const REQUEST_SHARE: u64 = 4;
/// Small requests are read ahead many at a time, in pieces of at least this share.
const PIECE_SHARE: u64 = 16;
/// Who reads in order asks sooner, in microseconds.
const KEPT_MICROS: u64 = 1_000_000;
/// Where memory is short, a piece as old as this is idle, in microseconds.
const IDLE_MICROS: u64 = 100_000;
/// Of the memory budget, all pieces together may hold this share.
const MEMORY_SHARE: u64 = 16;

/// A part of a volume that is read before anybody asks.
struct Piece {
    number: u64,
    begun: u64,
    offset: u64,
    length: u64,
    /// Bytes of it that guests have been given.
    given: u64,
    content: Content,
    waiters: Vec<Waiter>,
}

enum Content {
    /// Map nodes are read for it.
    Sought,
    UnderWay(ReadId),
    There(Box<GuestRead>),
}

/// A guest's read that a piece under way will answer.
#[derive(Clone, Copy)]
struct Waiter {
    request: RequestId,
    offset: u64,
    length: u32,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.length
    }

    fn covers(&self, offset: u64, length: u32) -> bool {
        self.offset <= offset && offset + u64::from(length) <= self.end()
    }
}

/// All pieces, by export, in order of place.
#[derive(Default)]
pub struct ReadAhead {
    pieces: BTreeMap<u32, VecDeque<Piece>>,
    bytes: u64,
    next_number: u64,
    /// When to look for what nobody has asked for.
    sweep_at: Option<u64>,
    /// Reads of guests that a piece answered, since the store was opened.
    pub answered: u64,
}

impl ReadAhead {
    pub fn sweep_at(&self) -> Option<u64> {
        self.sweep_at
    }

    fn piece(&mut self, export: u32, number: u64) -> Option<&mut Piece> {
        self.pieces.get_mut(&export)?.iter_mut().find(|piece| piece.number == number)
    }

    /// Takes away the pieces of `export` that nobody waits for and that `is_over` names.
    fn remove(&mut self, export: u32, is_over: impl Fn(&Piece) -> bool) -> VecDeque<Piece> {
        let Some(pieces) = self.pieces.get_mut(&export) else { return VecDeque::new() };
        let (over, kept): (VecDeque<Piece>, VecDeque<Piece>) =
            std::mem::take(pieces).into_iter().partition(|piece| piece.waiters.is_empty() && is_over(piece));
        *pieces = kept;
        if pieces.is_empty() {
            self.pieces.remove(&export);
        }
        self.bytes -= over.iter().map(|piece| piece.length).sum::<u64>();
        over
    }
}

impl State {
    /// Answers a guest's read from what was read ahead, now or when it is there; false where it must read for itself.
    pub fn read_from_ahead(&mut self, request: RequestId, export: u32, offset: u64, length: u32) -> bool {
        let version = self.exports.get(&export).map(|export| export.version);
        let pieces = self.ahead.pieces.get(&export).into_iter().flatten();
        let Some(piece) = pieces.into_iter().find(|piece| piece.covers(offset, length)) else { return false };
        let (number, read) = (piece.number, self.read_of(piece));
        let Some(read) = read.filter(|read| Some(read.version) == version) else { return false };
        let (version, place, from) = (read.version, offset / BLOCK, (offset / BLOCK - read.first()) as usize);
        let count = ((offset + u64::from(length)).div_ceil(BLOCK) - place) as usize;
        let mut now: Vec<Pointer> = Vec::with_capacity(count);
        let found = self.look_up_cached(version, place, count as u64, &mut now);
        let Some(pieces) = self.ahead.pieces.get(&export) else { return false };
        let Some(piece) = pieces.iter().find(|piece| piece.number == number) else { return false };
        let is_same = |read: &GuestRead| now.iter().zip(from..).all(|(now, index)| *now == read.pointer(index));
        if found < count as u64 || !self.read_of(piece).is_some_and(is_same) {
            return false;
        }
        self.ahead.answered += 1;
        let Some(piece) = self.ahead.piece(export, number) else { return false };
        piece.waiters.push(Waiter { request, offset, length });
        if matches!(piece.content, Content::There(_)) {
            self.serve(export, number);
        }
        true
    }

    fn read_of<'a>(&'a self, piece: &'a Piece) -> Option<&'a GuestRead> {
        match &piece.content {
            Content::Sought => None,
            Content::UnderWay(id) => self.reads.get(*id),
            Content::There(read) => Some(read),
        }
    }

    /// Answers those who wait for a piece that is there, and lets it go once all of it was given.
    fn serve(&mut self, export: u32, number: u64) {
        let Some(piece) = self.ahead.piece(export, number) else { return };
        let Content::There(read) = &piece.content else { return };
        let waiters = std::mem::take(&mut piece.waiters);
        piece.given += waiters.iter().map(|waiter| u64::from(waiter.length)).sum::<u64>();
        let is_over = piece.given >= piece.length;
        let answers: Vec<_> =
            waiters.iter().map(|waiter| (waiter.request, read.part(waiter.offset, waiter.length))).collect();
        for (request, data) in answers {
            self.answer(request, export, Ok(Reply::Data(data)));
        }
        if is_over {
            for piece in self.ahead.remove(export, |piece| piece.number == number) {
                if let Content::There(read) = piece.content {
                    self.bring_together(&read);
                    self.let_go(read);
                }
            }
        }
    }

    /// The foremost read of `stream` was one of `length` bytes, not none: reads what is next.
    pub fn read_ahead(&mut self, export: u32, length: u64, stream: Stream) {
        let (window, end) = (self.config.ahead_bytes, stream.end());
        // Further back nothing is asked for any more.
        let behind = end.saturating_sub(self.config.stream_reordered_bytes);
        let is_left = |piece: &Piece| stream.streak() == 0 || piece.end() <= behind;
        self.drop_ahead(export, is_left);
        if length * REQUEST_SHARE > window || stream.streak() < self.config.ahead_stream_bytes {
            return;
        }
        let Some(version) = self.exports.get(&export).filter(|it| it.closing.is_none()).map(|it| it.version) else {
            return;
        };
        let size = self.versions.get(version).map_or(0, |version| version.size);
        // Who reads a part here and a part there has at most half as much again read for nothing.
        let ahead = window.min(stream.streak() / 2);
        let piece_bytes = length * (window / PIECE_SHARE).div_ceil(length).max(1);
        let last = self.ahead.pieces.get(&export).and_then(|pieces| pieces.back()).map_or(0, Piece::end);
        let mut offset = end.max(last);
        while offset + piece_bytes <= size.min(end + ahead) && self.has_room_ahead(export, piece_bytes) {
            self.begin_piece(export, offset, piece_bytes);
            offset += piece_bytes;
        }
    }

    /// True where `bytes` more are within the bound, if need be after others' idle pieces were dropped. Who else reads in order
    /// keeps what he has: with more streams than there is room for, the later ones read for themselves.
    fn has_room_ahead(&mut self, export: u32, bytes: u64) -> bool {
        let limit = self.config.memory_bytes / MEMORY_SHARE;
        if self.ahead.bytes + bytes > limit {
            let idle_since = self.now.saturating_sub(IDLE_MICROS);
            let others: Vec<u32> = self.ahead.pieces.keys().copied().filter(|other| *other != export).collect();
            for other in others {
                self.drop_ahead(other, |piece| matches!(piece.content, Content::There(_)) && piece.begun <= idle_since);
            }
        }
        self.ahead.bytes + bytes <= limit
    }

    fn begin_piece(&mut self, export: u32, offset: u64, length: u64) {
        let number = self.ahead.next_number;
        self.ahead.next_number += 1;
        let piece =
            Piece { number, begun: self.now, offset, length, given: 0, content: Content::Sought, waiters: Vec::new() };
        self.ahead.pieces.entry(export).or_default().push_back(piece);
        self.ahead.bytes += length;
        self.ahead.sweep_at.get_or_insert(self.now + KEPT_MICROS);
        self.start_read(Role::Ahead { number }, export, offset, length as u32);
    }

    /// A piece has been looked up, and is being read as `id`; false where nobody wants it any more.
    pub fn piece_under_way(&mut self, export: u32, number: u64, id: ReadId) -> bool {
        let Some(piece) = self.ahead.piece(export, number) else { return false };
        piece.content = Content::UnderWay(id);
        true
    }

    /// A piece has been read; all of it verified, or not.
    pub fn piece_read(&mut self, export: u32, number: u64, read: Box<GuestRead>) {
        if !read.is_right() {
            return self.piece_failed(export, number, read);
        }
        let is_overtaken = self.releases.is_overtaken(read.round);
        let Some(piece) = self.ahead.piece(export, number) else { return self.let_go(read) };
        piece.content = Content::There(read);
        self.serve(export, number);
        if is_overtaken {
            self.drop_ahead(export, |piece| piece.number == number);
        }
    }

    /// A piece could not be read: those who wait for it find out for themselves.
    pub fn piece_failed(&mut self, export: u32, number: u64, read: Box<GuestRead>) {
        self.let_go(read);
        let waiters = self.ahead.piece(export, number).map(|piece| std::mem::take(&mut piece.waiters));
        self.drop_ahead(export, |piece| piece.number == number);
        for Waiter { request, offset, length } in waiters.into_iter().flatten() {
            self.start_read(Role::Guest { request }, export, offset, length);
        }
    }

    /// Drops the pieces of an export that nobody waits for and that `is_over` names.
    fn drop_ahead(&mut self, export: u32, is_over: impl Fn(&Piece) -> bool) {
        for piece in self.ahead.remove(export, is_over) {
            if let Content::There(read) = piece.content {
                self.let_go(read);
            }
        }
    }

    /// Lets go of what nobody has asked for in time.
    pub fn sweep_ahead(&mut self) {
        let now = self.now;
        if self.ahead.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        let exports: Vec<u32> = self.ahead.pieces.keys().copied().collect();
        for export in exports {
            self.drop_ahead(export, |piece| piece.begun + KEPT_MICROS <= now);
        }
        let oldest = self.ahead.pieces.values().flatten().map(|piece| piece.begun).min();
        // One with a reader waiting for it stays, however old.
        self.ahead.sweep_at = oldest.map(|begun| (begun + KEPT_MICROS).max(now + KEPT_MICROS / 4));
    }

    /// The export is gone.
    pub fn end_ahead(&mut self, export: u32) {
        self.drop_ahead(export, |_| true);
    }

    /// Blocks wait for those who began to read before now: drops what is only kept.
    pub fn yield_ahead(&mut self) {
        let exports: Vec<u32> = self.ahead.pieces.keys().copied().collect();
        for export in exports {
            self.drop_ahead(export, |piece| matches!(piece.content, Content::There(_)));
        }
    }
}
