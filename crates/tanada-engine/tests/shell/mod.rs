//! A shell in a page: an in-memory device, deterministic, and calls that wait for their reply.

#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use tanada_disk::{Buf, DiskError, DiskOp, DiskResult};
use tanada_engine::{
    Action, Alert, Control, Engine, EngineConfig, ExportId, Failure, IoId, OpenReport, Reply, Request, RequestId,
    Segment, StoreStat, VolumeUsage,
};
use tanada_format::{FormatOptions, format_image};
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;

/// A small deterministic generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A device in memory, by blocks; what is not there is zeros.
#[derive(Clone, Default)]
pub struct Device {
    pub blocks: BTreeMap<u64, Vec<u8>>,
    pub writes: u64,
    pub syncs: u64,
    /// Reads so far, by block.
    pub reads: BTreeMap<u64, u64>,
    /// Fails operations: (kind: 'w' or 's', how many more).
    pub fail: Option<(char, u32)>,
    /// Fails writes that touch these blocks, as often as they come, with this errno.
    pub refuses: Option<(Range<u64>, i32)>,
    /// Writes so far, in the order in which they ended; where it is `None`, every write is durable at once.
    pub cache: Option<Vec<(u64, Vec<u8>)>>,
    durable: BTreeMap<u64, Vec<u8>>,
}

impl Device {
    /// From now on a write is durable only when a sync that was issued after its end has ended.
    pub fn with_cache(mut self) -> Device {
        self.durable = self.blocks.clone();
        self.cache = Some(Vec::new());
        self
    }

    /// How many writes a sync that is issued now covers.
    fn covered(&self) -> usize {
        self.cache.as_ref().map_or(0, Vec::len)
    }

    fn synced(&mut self, covered: usize) {
        let Some(cache) = &mut self.cache else { return };
        for (block, bytes) in &cache[..covered] {
            self.durable.insert(*block, bytes.clone());
        }
    }

    /// Loses everything that no completed sync covers.
    pub fn power_cut(&mut self) {
        self.blocks = self.durable.clone();
        self.cache = Some(Vec::new());
    }

    pub fn carry_out(&mut self, op: &DiskOp) -> DiskResult {
        let kind = match op {
            DiskOp::Write { .. } => 'w',
            DiskOp::Sync => 's',
            _ => 'r',
        };
        if let Some((which, left)) = &mut self.fail
            && *which == kind
            && *left > 0
        {
            *left -= 1;
            return Err(DiskError::EIO);
        }
        if let (DiskOp::Write { at, parts }, Some((blocks, errno))) = (op, &self.refuses) {
            let length: usize = parts.iter().map(|part| part.len()).sum();
            if at / 4096 < blocks.end && (at + length as u64) / 4096 > blocks.start {
                return Err(DiskError { errno: *errno });
            }
        }
        match op {
            DiskOp::Read { at, length } => {
                let mut bytes = vec![0; *length as usize];
                for (n, to) in bytes.chunks_mut(4096).enumerate() {
                    *self.reads.entry(at / 4096 + n as u64).or_default() += 1;
                    if let Some(from) = self.blocks.get(&(at / 4096 + n as u64)) {
                        to.copy_from_slice(from);
                    }
                }
                return Ok(Some(Buf::copy_from(&bytes)));
            }
            DiskOp::Write { at, parts } => {
                self.writes += 1;
                let mut block = at / 4096;
                for part in parts {
                    assert!(part.is_aligned());
                    for chunk in part.chunks_exact(4096) {
                        self.blocks.insert(block, chunk.to_vec());
                        if let Some(cache) = &mut self.cache {
                            cache.push((block, chunk.to_vec()));
                        }
                        block += 1;
                    }
                }
            }
            DiskOp::Sync => self.syncs += 1,
            DiskOp::Punch { .. } | DiskOp::Grow { .. } => {}
        }
        Ok(None)
    }
}

/// An operation in flight; with how many writes it covers, if it is a sync.
pub type Held = (IoId, DiskOp, usize);

pub struct Shell {
    pub engine: Engine,
    pub device: Device,
    pub config: EngineConfig,
    pub now: u64,
    next: u64,
    pub replies: BTreeMap<u64, Result<Reply, Failure>>,
    pub opened: Option<Result<OpenReport, Failure>>,
    pub alerts: Vec<Alert>,
    queue: VecDeque<Held>,
    /// Something was submitted since the last turn.
    poked: bool,
    /// Shuffles the order in which operations end.
    pub random: Option<Random>,
}

pub fn formatted(bytes: u64, journal: u64) -> Device {
    let options = FormatOptions { store: Uuid::from_u128(77), device_bytes: bytes, journal_bytes: Some(journal) };
    let mut device = Device::default();
    for (at, bytes) in format_image(&options).expect("valid options").writes {
        device.carry_out(&DiskOp::Write { at, parts: vec![Buf::copy_from(&bytes)] }).expect("memory");
    }
    device
}

pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x1_0000 + n)
}

impl Shell {
    pub fn fresh(bytes: u64) -> Shell {
        Shell::open(formatted(bytes, MIB), EngineConfig::new(bytes))
    }

    pub fn open(device: Device, config: EngineConfig) -> Shell {
        Shell::open_shuffled(device, config, None)
    }

    pub fn open_shuffled(device: Device, config: EngineConfig, random: Option<Random>) -> Shell {
        let engine = Engine::open(config.clone(), 1000);
        let mut shell = Shell {
            engine,
            device,
            config,
            now: 1000,
            next: 1,
            replies: BTreeMap::new(),
            opened: None,
            alerts: Vec::new(),
            queue: VecDeque::new(),
            poked: true,
            random,
        };
        while shell.opened.is_none() {
            assert!(shell.step(), "nothing left to do and not open");
        }
        shell
    }

    /// Kills the process and starts anew on what the device holds.
    pub fn reopen(self) -> Shell {
        let config = EngineConfig { seed: self.config.seed + 1, ..self.config };
        Shell::open_shuffled(self.device, config, self.random)
    }

    /// One turn; false where nothing arrives and nothing is due: a real shell would sleep for ever.
    pub fn step(&mut self) -> bool {
        self.now += 10;
        let ready = self.queue.len();
        if ready == 0 && !std::mem::take(&mut self.poked) {
            let Some(deadline) = self.engine.deadline() else { return false };
            self.now = self.now.max(deadline);
        }
        for _ in 0..ready {
            if let Some(random) = &mut self.random
                && random.below(3) == 0
            {
                let swap = random.below(self.queue.len() as u64) as usize;
                self.queue.swap(0, swap);
                if random.below(2) == 0 {
                    continue;
                }
            }
            let Some((io, op, covered)) = self.queue.pop_front() else { break };
            let result = self.device.carry_out(&op);
            if matches!(op, DiskOp::Sync) && result.is_ok() {
                self.device.synced(covered);
            }
            self.engine.complete(self.now, io, result);
        }
        self.engine.turn(self.now);
        while let Some(action) = self.engine.next_action() {
            match action {
                Action::Disk { io, op } => self.queue.push_back((io, op, self.device.covered())),
                Action::Reply { request, result } => {
                    assert!(self.replies.insert(request.0, result).is_none(), "answered twice");
                }
                // Lost at a power cut, and these tests kill no process with memory that outlives it.
                Action::Keep(block) => {
                    assert!(self.config.kept.is_some(), "{block:?} is to be kept without memory for it")
                }
                Action::Opened(result) => self.opened = Some(result),
                Action::Alert(alert) => self.alerts.push(alert),
            }
        }
        true
    }

    /// Device operations in flight.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn queued_ops(&self) -> impl Iterator<Item = &DiskOp> {
        self.queue.iter().map(|(_, op, _)| op)
    }

    /// Takes an operation out of those in flight, until [`Shell::let_go`].
    pub fn hold(&mut self, which: impl Fn(&DiskOp) -> bool) -> Option<Held> {
        let at = self.queue.iter().position(|(_, op, _)| which(op))?;
        self.queue.remove(at)
    }

    pub fn let_go(&mut self, held: Held) {
        self.queue.push_back(held);
    }

    pub fn submit(&mut self, request: Request) -> u64 {
        let id = self.next;
        self.next += 1;
        self.poked = true;
        self.engine.submit(self.now, RequestId(id), request);
        id
    }

    pub fn wait(&mut self, id: u64) -> Result<Reply, Failure> {
        for _ in 0..2_000_000 {
            if let Some(result) = self.replies.remove(&id) {
                return result;
            }
            assert!(self.step(), "nothing left to do, and request {id} is not answered");
        }
        panic!("request {id} is not answered");
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        let id = self.submit(request);
        self.wait(id)
    }

    pub fn control(&mut self, control: Control) -> Result<Reply, Failure> {
        self.ask(Request::Control(control))
    }

    pub fn must(&mut self, control: Control) -> Reply {
        let text = format!("{control:?}");
        self.control(control).unwrap_or_else(|failure| panic!("{text}: {failure}"))
    }

    pub fn create(&mut self, id: Uuid, size: u64) -> ExportId {
        self.must(Control::CreateVolume { id, size });
        self.export(id, true)
    }

    pub fn export(&mut self, id: Uuid, writable: bool) -> ExportId {
        match self.must(Control::Open { id, writable }) {
            Reply::Opened { export, .. } => export,
            other => panic!("opened: {other:?}"),
        }
    }

    pub fn close(&mut self, export: ExportId) {
        self.must(Control::Close { export });
    }

    pub fn write(&mut self, export: ExportId, offset: u64, data: &[u8]) {
        let data = Buf::copy_from(data);
        self.ask(Request::Write { export, offset, data, fua: false }).expect("written");
    }

    pub fn read(&mut self, export: ExportId, offset: u64, length: u32) -> Vec<u8> {
        match self.ask(Request::Read { export, offset, length }) {
            Ok(Reply::Data(segments)) => bytes_of(&segments),
            other => panic!("read at {offset}: {other:?}"),
        }
    }

    pub fn usage(&mut self, id: Uuid) -> VolumeUsage {
        match self.must(Control::Stat { id }) {
            Reply::Usage { usage, .. } => usage,
            other => panic!("stat: {other:?}"),
        }
    }

    pub fn stat(&mut self) -> StoreStat {
        match self.must(Control::StoreStat) {
            Reply::Store(stat) => *stat,
            other => panic!("stat: {other:?}"),
        }
    }
}

pub fn bytes_of(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data(buf) => bytes.extend_from_slice(buf),
            Segment::Zeros(length) => bytes.resize(bytes.len() + *length as usize, 0),
        }
    }
    bytes
}

/// A block that says who wrote it.
pub fn block(n: u64) -> Vec<u8> {
    (0..512u64).flat_map(|word| (n.wrapping_mul(0x9e37_79b9) ^ word | 1).to_le_bytes()).collect()
}
