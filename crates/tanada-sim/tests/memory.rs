//! The memory budget, measured: every byte that the engine allocates while it opens a large store, and works on it,
//! is counted. The store is synthetic: a real map of many times the budget, data blocks that are holes, and a ring full
//! of blocks that are older than its checkpoint.
//!
//! Everything is a sixteenth of what it is in production: 256 MiB of budget beside a TiB mapped are 16 MiB here beside
//! 64 GiB. What does not shrink with the budget (tables by region and segment) is a sixteenth by itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use tanada_disk::{Buf, BufMut, DiskError, DiskOp, DiskResult};
use tanada_engine::{Action, Control, Engine, EngineConfig, ExportId, IoId, Reply, Request, RequestId};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::{BLOCK_BYTES, JournalBuilder, JournalHeader, Record, Superblock};
use tanada_sim::synth::{Sink, SynthOptions, SynthVolume, synthesize};
use tanada_units::{GIB, MIB, Uuid};

const BUDGET: usize = 16 << 20;
const MAPPED: u64 = 64 * GIB;
const STORE: u64 = 68 * GIB;
const JOURNAL: u64 = 64 * MIB;
const VOLUME: Uuid = Uuid::from_u128(1);

/// Bytes allocated now, and at most so far.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct FileSink<'a>(&'a File);

impl Sink for FileSink<'_> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
}

/// An engine on a file: operations end in the turn after their start, in order.
struct Bench<'a> {
    engine: Engine,
    file: &'a File,
    now: u64,
    next: u64,
    in_flight: VecDeque<(IoId, DiskOp)>,
    answered: u64,
    last: Option<Reply>,
    opened: bool,
}

impl Bench<'_> {
    fn turn(&mut self) {
        self.now += 100;
        for _ in 0..self.in_flight.len() {
            let Some((io, op)) = self.in_flight.pop_front() else { break };
            let result = carry_out(self.file, op);
            self.engine.complete(self.now, io, result);
        }
        self.engine.turn(self.now);
        let mut moved = false;
        while let Some(action) = self.engine.next_action() {
            moved = true;
            match action {
                Action::Disk { io, op } => self.in_flight.push_back((io, op)),
                Action::Reply { result, .. } => {
                    self.answered += 1;
                    self.last = Some(result.expect("nothing fails here"));
                }
                Action::Opened(result) => {
                    result.expect("it opens");
                    self.opened = true;
                }
                Action::Keep(_) | Action::Alert(_) => {}
            }
        }
        if let Some(deadline) = self.engine.deadline().filter(|_| !moved && self.in_flight.is_empty()) {
            self.now = self.now.max(deadline);
        }
    }

    fn submit(&mut self, request: Request) {
        self.next += 1;
        self.engine.submit(self.now, RequestId(self.next), request);
    }

    /// Waits until at most `left` requests are under way.
    fn wait(&mut self, left: u64) {
        for _ in 0..10_000_000u64 {
            if self.next - self.answered <= left {
                return;
            }
            self.turn();
        }
        panic!("{} requests are not answered", self.next - self.answered);
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.submit(request);
        self.wait(0);
        self.last.take().expect("an answer")
    }
}

fn carry_out(file: &File, op: DiskOp) -> DiskResult {
    match op {
        DiskOp::Read { at, length } => {
            let mut buf = BufMut::zeroed(length as usize);
            file.read_exact_at(buf.as_mut_slice(), at).map_err(|_| DiskError::EIO)?;
            Ok(Some(buf.freeze()))
        }
        DiskOp::Write { mut at, parts } => {
            for part in parts {
                file.write_all_at(&part, at).map_err(|_| DiskError::EIO)?;
                at += part.len() as u64;
            }
            Ok(None)
        }
        DiskOp::Sync | DiskOp::Punch { .. } | DiskOp::Grow { .. } => Ok(None),
    }
}

/// The store: a volume mapped from end to end, and a ring that was full many times.
fn store() -> File {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(STORE).expect("a sparse file");
    let options = SynthOptions {
        store: Uuid::from_u128(9),
        device_bytes: STORE,
        journal_bytes: Some(JOURNAL),
        volumes: vec![SynthVolume { uuid: VOLUME, size: MAPPED, generations: 0, changes: 0 }],
        seed: 1,
    };
    synthesize(&options, &mut FileSink(&file)).expect("a store");
    let mut bytes = [0; BLOCK_BYTES];
    let at = SUPERBLOCK_AT[1].map(|at| at * BLOCK_BYTES as u64);
    file.read_exact_at(&mut bytes, at[0]).expect("a superblock");
    let mut superblock = Superblock::decode(&bytes, 1).expect("a superblock");
    let blocks = superblock.geometry.journal_blocks();
    (superblock.journal_seq, superblock.incarnation) = (1 + 4 * blocks, 1);
    for at in at {
        file.write_all_at(&superblock.encode(), at).expect("written");
    }
    for seq in superblock.journal_seq - blocks..superblock.journal_seq {
        let mut builder = JournalBuilder::new();
        while builder.push(&Record::Unmap { head: 1, place: 7, blocks: 1 }) {}
        let header =
            JournalHeader { store: superblock.store, incarnation: 1, seq, durable_seq: seq - 1, checkpoint: 1 };
        let at = superblock.geometry.journal_block(seq) * BLOCK_BYTES as u64;
        file.write_all_at(&builder.seal(&header), at).expect("written");
    }
    file
}

#[test]
fn a_store_of_any_size_stays_within_the_budget() {
    let file = store();
    let config = EngineConfig {
        memory_bytes: BUDGET as u64,
        bitmap_pages_max: 24 * MIB / 16 / 8300,
        ..EngineConfig::new(STORE)
    };
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let most = || MOST.load(Ordering::Relaxed) - before;
    let mut bench = Bench {
        engine: Engine::open(config, 1),
        file: &file,
        now: 1,
        next: 0,
        in_flight: VecDeque::new(),
        answered: 0,
        last: None,
        opened: false,
    };
    while !bench.opened {
        bench.turn();
    }
    assert!(most() <= BUDGET, "opening took {} bytes of memory, {BUDGET} are the budget", most());
    let Reply::Opened { export, .. } = bench.ask(Request::Control(Control::Open { id: VOLUME, writable: true })) else {
        panic!("not opened")
    };
    let data = Buf::copy_from(&[7; BLOCK_BYTES]);
    let first = checkpoints(&mut bench);
    let mut at = 1u64;
    for n in 0..60_000u64 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 20) % (MAPPED / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
        bench.submit(request(export, offset, &data, n));
        bench.wait(31);
    }
    bench.wait(0);
    let made = checkpoints(&mut bench) - first;
    assert!(made >= 4, "{made} checkpoints were made: too few to say anything");
    assert!(most() <= BUDGET, "work took {} bytes of memory, {BUDGET} are the budget", most());
    // The counting counts: the map alone is sixteen times the budget, its cache a good part of it.
    assert!(most() > BUDGET / 4, "only {} bytes were counted", most());
}

/// Mostly writes all over the volume, so that every leaf and every bitmap page is met; reads between them.
fn request(export: ExportId, offset: u64, data: &Buf, n: u64) -> Request {
    match n % 8 {
        0 => Request::Read { export, offset, length: BLOCK_BYTES as u32 },
        _ => Request::Write { export, offset, data: data.clone(), fua: false },
    }
}

fn checkpoints(bench: &mut Bench<'_>) -> u64 {
    match bench.ask(Request::Control(Control::StoreStat)) {
        Reply::Store(stat) => stat.checkpoint,
        other => panic!("{other:?}"),
    }
}
