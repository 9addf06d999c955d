//! A client that writes without end, like a guest's disk driver: when its server dies it comes back, looks whether
//! everything is there that was ever acknowledged, and sends again what was not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use tanada_nbd::proto::{CMD_FLAG_FUA, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, RequestHeader};

use super::model::{Change, Disk, Held, Interval, SECTOR, Sent, fill};
use super::nbd::Nbd;
use super::plane::{Plane, patiently};
use crate::random::Random;

const DEPTH_MAX: u64 = 32;
/// Longest change, in sectors: 256 KiB.
const CHANGE_SECTORS_MAX: u64 = 512;

/// What all threads of a run share.
#[derive(Default)]
pub struct Shared {
    /// Moves with every event that is compared with another one.
    pub clock: AtomicU64,
    /// Changes acknowledged, over all volumes.
    pub acknowledged: AtomicU64,
    /// Volumes read back as a whole and found right.
    pub verified: AtomicU64,
    /// Nobody flushes or gives commands in this life: what is acknowledged is not durable yet, and must outlive a process
    /// all the same.
    pub calm: AtomicBool,
    /// Writers that have come back since the last kill.
    pub returned: AtomicU64,
    pub stop: AtomicBool,
}

impl Shared {
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A volume as its writer and whoever cuts it know it.
pub struct Volume {
    pub token: String,
    pub id: uuid::Uuid,
    state: Mutex<State>,
}

struct State {
    disk: Disk,
    /// Sent and not acknowledged, with the time of sending.
    under_way: Vec<(Change, u64)>,
    /// Since a cut began.
    sent: Option<Vec<Sent>>,
}

impl Volume {
    pub fn new(token: String, id: uuid::Uuid, number: u64, bytes: u64) -> Volume {
        let state = State { disk: Disk::new(number, bytes), under_way: Vec::new(), sent: None };
        Volume { token, id, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on it is noted what is sent.
    pub fn begin_cut(&self) -> Disk {
        let mut state = self.state();
        let under_way = state.under_way.iter();
        state.sent = Some(
            under_way.map(|(change, sent)| Sent { change: *change, sent: *sent, acknowledged: u64::MAX }).collect(),
        );
        state.disk.clone()
    }

    pub fn end_cut(&self, base: Disk) -> Interval {
        Interval { base, sent: self.state().sent.take().unwrap_or_default() }
    }

    fn note_sent(&self, change: Change, shared: &Shared) {
        let mut state = self.state();
        let sent = shared.tick();
        state.under_way.push((change, sent));
        if let Some(list) = &mut state.sent {
            list.push(Sent { change, sent, acknowledged: u64::MAX });
        }
    }

    fn note_acknowledged(&self, change: Change, shared: &Shared) {
        let mut state = self.state();
        state.disk.acknowledged(&change);
        state.under_way.retain(|(other, _)| *other != change);
        let now = shared.tick();
        if let Some(sent) = state.sent.iter_mut().flatten().find(|sent| sent.change == change) {
            sent.acknowledged = now;
        }
        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request under way.
#[derive(Debug, Clone)]
enum Request {
    Change { change: Change, command: u16, fua: bool },
    Read { change: Change },
    Flush,
}

impl Request {
    /// Sectors that nothing else may change meanwhile.
    fn range(&self) -> Option<&Change> {
        match self {
            Request::Change { change, .. } | Request::Read { change } => Some(change),
            Request::Flush => None,
        }
    }
}

pub struct Writer<'a> {
    plane: &'a Plane,
    volume: &'a Volume,
    shared: &'a Shared,
    random: Random,
    nbd: Nbd,
    under_way: Vec<(u64, Request)>,
    depth: u64,
    stamp: u64,
    sectors: u64,
}

impl<'a> Writer<'a> {
    pub fn new(plane: &'a Plane, volume: &'a Volume, shared: &'a Shared, seed: u64) -> Result<Writer<'a>> {
        let nbd = patiently("a connection", || Ok(Nbd::connect(&plane.nbd_socket(), &volume.token)?))?;
        let sectors = nbd.size / SECTOR as u64;
        Ok(Writer {
            plane,
            volume,
            shared,
            random: Random(seed),
            nbd,
            under_way: Vec::new(),
            depth: 8,
            stamp: 0,
            sectors,
        })
    }

    /// Writes until the run is over, then waits for the last answers and reads everything back.
    pub fn run(mut self) -> Result<()> {
        self.shared.returned.fetch_add(1, Ordering::SeqCst);
        while !self.shared.is_over() {
            match self.step() {
                Ok(()) => {}
                Err(Trouble::Connection) => self.come_back()?,
                Err(Trouble::Wrong(error)) => return Err(error),
            }
        }
        loop {
            match self.drain() {
                Ok(()) => return self.verify_with(&[]),
                Err(Trouble::Connection) => self.come_back()?,
                Err(Trouble::Wrong(error)) => return Err(error),
            }
        }
    }

    /// Fills the queue and takes one answer.
    fn step(&mut self) -> Result<(), Trouble> {
        if self.random.below(200) == 0 {
            self.depth = 1 + self.random.below(DEPTH_MAX);
        }
        while (self.under_way.len() as u64) < self.depth {
            let request = self.next_request();
            if let Some(range) = request.range()
                && self.under_way.iter().filter_map(|(_, other)| other.range()).any(|other| other.overlaps(range))
            {
                break;
            }
            self.stamp += 1;
            let cookie = self.stamp;
            // Noted first: it may arrive even where sending fails.
            if let Request::Change { change, .. } = &request {
                self.volume.note_sent(*change, self.shared);
            }
            self.under_way.push((cookie, request.clone()));
            self.send(cookie, &request)?;
        }
        self.take_answer()
    }

    fn next_request(&mut self) -> Request {
        let count = match self.random.below(10) {
            0..=4 => 8,
            5 => 1 + self.random.below(CHANGE_SECTORS_MAX),
            _ => 1 + self.random.below(64),
        };
        let mut first = self.random.below(self.sectors - count);
        if self.random.below(3) > 0 {
            first &= !7;
        }
        let stamp = self.stamp + 1;
        let is_calm = self.shared.is_calm();
        let fua = self.random.below(30) == 0 && !is_calm;
        match self.random.below(100) {
            0..=2 if !is_calm => Request::Flush,
            0..=10 => {
                let first = first & !7;
                let count = (8 * (1 + count / 16)).min(self.sectors - first);
                Request::Read { change: Change { first, count, held: Held::Zeros } }
            }
            11..=16 => {
                // Whole blocks, so that a trim is sure to make zeros of them.
                let (first, count) = (first & !7, count.next_multiple_of(8).min(self.sectors - (first & !7)));
                let command = if self.random.below(2) == 0 { CMD_TRIM } else { CMD_WRITE_ZEROES };
                Request::Change { change: Change { first, count, held: Held::Zeros }, command, fua }
            }
            _ => {
                let change = Change { first, count, held: Held::Written(stamp) };
                Request::Change { change, command: CMD_WRITE, fua }
            }
        }
    }

    fn send(&mut self, cookie: u64, request: &Request) -> Result<(), Trouble> {
        let (command, fua, range) = match request {
            Request::Change { change, command, fua } => (*command, *fua, Some(change)),
            Request::Read { change } => (CMD_READ, false, Some(change)),
            Request::Flush => (CMD_FLUSH, false, None),
        };
        let (first, count) = range.map_or((0, 0), |change| (change.first, change.count));
        let mut payload = Vec::new();
        if let Some(Change { held: Held::Written(stamp), .. }) = range {
            payload.resize(count as usize * SECTOR, 0);
            fill(self.volume_number(), first, *stamp, &mut payload);
        }
        let header = RequestHeader {
            flags: if fua { CMD_FLAG_FUA } else { 0 },
            command,
            cookie,
            offset: first * SECTOR as u64,
            length: (count * SECTOR as u64) as u32,
        };
        self.nbd.send(header, &payload).map_err(|_| Trouble::Connection)
    }

    fn volume_number(&self) -> u64 {
        self.volume.state().disk.volume
    }

    fn take_answer(&mut self) -> Result<(), Trouble> {
        if self.under_way.is_empty() {
            return Ok(());
        }
        let reply = self.nbd.reply().map_err(|_| Trouble::Connection)?;
        let at = self.under_way.iter().position(|(cookie, _)| *cookie == reply.cookie);
        let Some(at) = at else {
            return Err(Trouble::Wrong(anyhow::anyhow!("an answer to {}, not asked", reply.cookie)));
        };
        let (_, request) = self.under_way[at].clone();
        if reply.error != 0 {
            let token = &self.volume.token;
            return Err(Trouble::Wrong(anyhow::anyhow!("{token}: {request:?} fails with error {}", reply.error)));
        }
        match request {
            Request::Flush => {}
            Request::Change { change, .. } => self.volume.note_acknowledged(change, self.shared),
            Request::Read { change } => {
                let bytes = self.nbd.data(change.count as usize * SECTOR).map_err(|_| Trouble::Connection)?;
                self.volume.state().disk.judge(change.first, &bytes, &[]).map_err(Trouble::Wrong)?;
            }
        }
        self.under_way.swap_remove(at);
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Trouble> {
        while !self.under_way.is_empty() {
            self.take_answer()?;
        }
        Ok(())
    }

    /// After a death: in half of the cases everything is read back before anything is sent again, else afterwards.
    fn come_back(&mut self) -> Result<()> {
        let is_verified_first = self.random.below(2) == 0;
        // Reads and flushes are asked anew or not at all; changes are sent until they are acknowledged.
        self.under_way.retain(|(_, request)| matches!(request, Request::Change { .. }));
        loop {
            let (plane, volume) = (self.plane, self.volume);
            self.nbd = patiently("a new connection", || Ok(Nbd::connect(&plane.nbd_socket(), &volume.token)?))?;
            if self.nbd.size / SECTOR as u64 != self.sectors {
                bail!("{}: {} bytes after a kill, {} sectors before it", volume.token, self.nbd.size, self.sectors);
            }
            match self.return_once(is_verified_first) {
                Ok(()) => break,
                Err(Trouble::Connection) => {}
                Err(Trouble::Wrong(error)) => return Err(error),
            }
        }
        self.shared.returned.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn return_once(&mut self, is_verified_first: bool) -> Result<(), Trouble> {
        if is_verified_first {
            let changes: Vec<Change> =
                self.under_way.iter().filter_map(|(_, request)| request.range()).copied().collect();
            self.verify(&changes)?;
        }
        for (cookie, request) in self.under_way.clone() {
            self.send(cookie, &request)?;
        }
        if !is_verified_first {
            self.drain()?;
            self.verify(&[])?;
        }
        Ok(())
    }

    /// Reads the whole volume.
    fn verify(&mut self, under_way: &[Change]) -> Result<(), Trouble> {
        let content = match self.nbd.read_all() {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(Trouble::Wrong(error.into())),
            result => result.map_err(|_| Trouble::Connection)?,
        };
        let judged = self.volume.state().disk.judge(0, &content, under_way);
        judged
            .with_context(|| format!("after a kill, {} changes under way", under_way.len()))
            .map_err(Trouble::Wrong)?;
        self.shared.verified.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn verify_with(&mut self, under_way: &[Change]) -> Result<()> {
        match self.verify(under_way) {
            Ok(()) => Ok(()),
            Err(Trouble::Wrong(error)) => Err(error),
            Err(Trouble::Connection) => bail!("the server is gone though nobody kills it any more"),
        }
    }
}

/// Why a step did not succeed.
enum Trouble {
    /// The server has died, which is expected here.
    Connection,
    /// The server lives and is wrong.
    Wrong(anyhow::Error),
}
