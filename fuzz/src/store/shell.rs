//! Drives an engine on an image, one operation after another, and waits for answers.

use std::collections::{BTreeMap, VecDeque};

use tanada_disk::{Buf, DiskOp};
use tanada_engine::{
    Action, Alert, Control, Engine, EngineConfig, ExportId, Extent, Failure, IoId, OpenReport, Reply, Request,
    RequestId, Segment, VolumeInfo,
};
use tanada_format::BLOCK_BYTES;
use uuid::Uuid;

use super::image::Image;

/// Turns that one request may take; far more than any needs on images of this size.
const TURNS_MAX: u32 = 300_000;

pub struct Shell {
    engine: Engine,
    pub image: Image,
    now: u64,
    next: u64,
    queue: VecDeque<(IoId, DiskOp)>,
    replies: BTreeMap<u64, Result<Reply, Failure>>,
    opened: Option<Result<OpenReport, Failure>>,
    pub alerts: Vec<Alert>,
}

/// Small limits, so that small images meet them.
fn config(image: &Image) -> EngineConfig {
    EngineConfig {
        reserve_bytes: 64 << 10,
        walk_blocks: 7,
        checkpoint_entries: 200,
        ..EngineConfig::new(image.length_blocks * BLOCK_BYTES as u64)
    }
}

impl Shell {
    /// Opens the store, or says why the engine does not.
    pub fn open(image: Image) -> Result<Shell, Failure> {
        let engine = Engine::open(config(&image), 1000);
        let mut shell = Shell {
            engine,
            image,
            now: 1000,
            next: 1,
            queue: VecDeque::new(),
            replies: BTreeMap::new(),
            opened: None,
            alerts: Vec::new(),
        };
        for _ in 0..TURNS_MAX {
            if let Some(opened) = shell.opened.take() {
                return opened.map(|_| shell);
            }
            shell.turn();
        }
        panic!("opening does not end");
    }

    fn turn(&mut self) {
        self.now += 10;
        let mut moved = false;
        for (io, op) in std::mem::take(&mut self.queue) {
            moved = true;
            let result = self.image.carry_out(&op);
            self.engine.complete(self.now, io, result);
        }
        self.engine.turn(self.now);
        while let Some(action) = self.engine.next_action() {
            moved = true;
            match action {
                Action::Disk { io, op } => self.queue.push_back((io, op)),
                Action::Reply { request, result } => {
                    assert!(self.replies.insert(request.0, result).is_none(), "request {} answered twice", request.0);
                }
                Action::Opened(result) => self.opened = Some(result),
                Action::Alert(alert) => self.alerts.push(alert),
                Action::Keep(block) => panic!("{block:?} is to be kept without memory for it"),
            }
        }
        if !moved && let Some(deadline) = self.engine.deadline() {
            self.now = self.now.max(deadline);
        }
    }

    /// Lets the engine go on without asking for anything.
    pub fn idle(&mut self, turns: u32) {
        (0..turns).for_each(|_| self.turn());
    }

    pub fn submit(&mut self, request: Request) -> u64 {
        let id = self.next;
        self.next += 1;
        self.engine.submit(self.now, RequestId(id), request);
        id
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        let text = format!("{request:?}");
        let id = self.submit(request);
        for _ in 0..TURNS_MAX {
            if let Some(result) = self.replies.remove(&id) {
                return result;
            }
            self.turn();
        }
        panic!("{text} is not answered");
    }

    pub fn control(&mut self, control: Control) -> Result<Reply, Failure> {
        self.ask(Request::Control(control))
    }

    pub fn list(&mut self) -> Vec<VolumeInfo> {
        match self.control(Control::List) {
            Ok(Reply::List(volumes)) => volumes,
            other => panic!("a list: {other:?}"),
        }
    }

    pub fn export(&mut self, id: Uuid, writable: bool) -> Result<ExportId, Failure> {
        match self.control(Control::Open { id, writable })? {
            Reply::Opened { export, .. } => Ok(export),
            other => panic!("opened: {other:?}"),
        }
    }

    pub fn write(&mut self, export: ExportId, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.ask(Request::Write { export, offset, data: Buf::copy_from(data), fua: false }).map(drop)
    }

    pub fn read(&mut self, export: ExportId, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        match self.ask(Request::Read { export, offset, length })? {
            Reply::Data(segments) => {
                for segment in segments {
                    match segment {
                        Segment::Data(buf) => bytes.extend_from_slice(&buf),
                        Segment::Zeros(count) => bytes.resize(bytes.len() + count as usize, 0),
                    }
                }
            }
            other => panic!("read: {other:?}"),
        }
        assert_eq!(bytes.len(), length as usize, "read at {offset}");
        Ok(bytes)
    }

    pub fn extents(&mut self, export: ExportId, offset: u64, length: u64) -> Result<Vec<Extent>, Failure> {
        match self.ask(Request::Extents { export, offset, length, extents_max: 64, since: None })? {
            Reply::Extents(extents) => Ok(extents),
            other => panic!("extents: {other:?}"),
        }
    }
}
