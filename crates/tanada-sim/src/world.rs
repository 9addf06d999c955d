//! One engine, one device, many clients, one clock: moves them on in an order that the seed decides.

use std::collections::BTreeMap;

use tanada_disk::DiskOp;
use tanada_engine::{
    Action, Alert, Engine, EngineConfig, ExportId, Failure, IoId, OpenReport, Reply, Request, RequestId, ScrubStatus,
};
use tanada_format::geometry::JOURNAL_START;
use tanada_format::{FormatOptions, format_image};
use tanada_units::Uuid;

use crate::content::BLOCK;
use crate::counters::Counters;
use crate::device::{Faults, SimDevice};
use crate::kept::KeptRing;
use crate::kinds::Kind;
use crate::model::Model;
use crate::rng::Rng;

/// Why a script was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The time for the next crash has come.
    Crash,
    /// Something is not as promised.
    Wrong(String),
}

/// Events of one run at most: one that does not end is wrong, too.
const EVENTS_MAX: u64 = 5_000_000;

/// Actions of one turn at most.
const ACTIONS_MAX: u64 = 1_000_000;

/// Microseconds that the engine may sleep without a device operation in flight while anybody waits: the brake's longest
/// waits are shorter, the time between checkpoints is longer. A medium without room is tried again once a second.
const SLEEP_MAX: u64 = 200_000;
const FULL_MEDIUM_SLEEP_MAX: u64 = 1_000_000;

pub fn wrong<T>(message: String) -> Result<T, Stop> {
    Err(Stop::Wrong(message))
}

/// What kind of run a seed makes.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kind: Kind,
    pub device_bytes: u64,
    pub journal_bytes: u64,
    pub config: EngineConfig,
    /// Requests of clients in flight at most.
    pub outstanding_max: u64,
    pub volumes_max: u64,
    pub generations_max: u64,
    /// Clients may be told that there is no space.
    pub may_be_full: bool,
    /// The device may fail, so clients may be told so.
    pub faults: Faults,
    /// So many of a hundred device operations take up to `slow_events` events.
    pub slow_percent: u64,
    pub slow_events: u64,
    /// Crashes are likelier where they hurt: around superblocks and in the middle of control operations.
    pub hunted: bool,
    /// The store is nearly full from the start.
    pub brimming: bool,
    pub trace: bool,
    /// Journal blocks that fit into memory that outlives the process, if there is any.
    pub kept_places: Option<u64>,
    /// Slow operations of the device are slow even where nothing else is left to end.
    pub patient: bool,
    /// So many of a hundred requests of guests are flushes, besides those there are anyway.
    pub flush_percent: u64,
    /// So many of a hundred hole punches are slow.
    pub slow_punch_percent: u64,
    /// So many of a hundred steps are floods.
    pub flood_percent: u64,
    /// So many of a hundred steps start or stop a scrub.
    pub scrub_percent: u64,
    /// So many of a hundred requests of guests go on with a stream of reads.
    pub stream_percent: u64,
    /// So many of a hundred requests of guests give back every other block of a range, or write a large one.
    pub perforate_percent: u64,
    /// Guests write so many different contents; 0: each another.
    pub contents: u64,
}

/// A request on its way.
#[derive(Debug, Clone)]
pub enum Pending {
    Read { target: Uuid, offset: u64, length: u64, submitted: u64 },
    Change { volume: Uuid, op: usize, fua: bool },
    Flush { volume: Uuid, submitted: u64 },
    Call { submitted: u64 },
}

impl Pending {
    fn submitted(&self, model: &Model) -> u64 {
        match self {
            Pending::Change { op, .. } => model.ops[*op].submitted,
            Pending::Read { submitted, .. } | Pending::Flush { submitted, .. } | Pending::Call { submitted } => {
                *submitted
            }
        }
    }
}

impl Pending {
    pub fn reads(&self, id: Uuid) -> bool {
        matches!(self, Pending::Read { target, .. } if *target == id)
    }
}

pub type Answer = Result<Reply, Failure>;

pub struct World {
    pub engine: Option<Engine>,
    pub device: SimDevice,
    /// Where journal blocks are kept; `None` in worlds without such memory (J6a).
    pub kept: Option<KeptRing>,
    pub model: Model,
    pub rng: Rng,
    pub settings: Settings,
    /// Microseconds of the engine's clock.
    pub now: u64,
    /// Events so far; see [`crate::history`].
    pub events: u64,
    pub crash_at: u64,
    pub pending: BTreeMap<RequestId, Pending>,
    answers: BTreeMap<RequestId, (u64, Answer)>,
    pub opened: Option<Result<OpenReport, Failure>>,
    /// Generations that backup programs hold open.
    pub generation_exports: BTreeMap<Uuid, ExportId>,
    /// The last operation of the device that this process began, and the last before it served; see [`crate::crossings`].
    last_io: IoId,
    pub serving_since: Option<IoId>,
    next_request: u64,
    idle: u64,
    /// Something arrived or ended since the engine's last turn.
    touched: bool,
    /// Guests are asleep.
    pub quiet: bool,
    /// Bits were flipped: damage is expected.
    pub rotten: bool,
    /// The engine said it takes no more writes.
    pub read_only: bool,
    /// A fingerprint of everything the engine did: two runs of a seed must agree.
    pub digest: u64,
    pub counters: Counters,
    /// The last damage that an alert named: volume and byte offset.
    pub damage: Option<(Uuid, u64)>,
    /// How the scrub stood when somebody last looked; a new process takes it up from there.
    pub scrub: ScrubStatus,
    /// Where the streams of reads have come to.
    pub streamed: u64,
}

impl World {
    /// A freshly formatted store, not yet opened.
    pub fn new(settings: Settings, seed: u64) -> Result<World, Stop> {
        let mut rng = Rng::new(seed);
        let mut device = SimDevice::new(settings.device_bytes);
        let store = Uuid::from_u128(u128::from(rng.next()) << 64 | 1);
        let options =
            FormatOptions { store, device_bytes: settings.device_bytes, journal_bytes: Some(settings.journal_bytes) };
        let image = format_image(&options).map_err(|error| Stop::Wrong(error.to_string()))?;
        image.writes.iter().for_each(|(at, bytes)| device.preset(*at, bytes));
        device.slow = (settings.slow_percent, settings.slow_events);
        device.slow_punch_percent = settings.slow_punch_percent;
        device.patient = settings.patient;
        Ok(World {
            engine: None,
            device,
            kept: settings.kept_places.map(KeptRing::new),
            model: Model::new(),
            rng,
            settings,
            now: 1,
            events: 1,
            crash_at: u64::MAX,
            pending: BTreeMap::new(),
            answers: BTreeMap::new(),
            opened: None,
            generation_exports: BTreeMap::new(),
            last_io: IoId(0),
            serving_since: None,
            next_request: 1,
            idle: 0,
            touched: false,
            quiet: false,
            rotten: false,
            read_only: false,
            digest: 0,
            counters: Counters::default(),
            damage: None,
            scrub: ScrubStatus::default(),
            streamed: 0,
        })
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.settings.trace {
            eprintln!("{:>7} {:>9} {}", self.events, self.now, text());
        }
    }

    fn note(&mut self, what: u64) {
        self.digest = (self.digest ^ what).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
    }

    /// Starts a process on the device; [`World::opened`] tells how it went.
    pub fn start(&mut self) {
        let mut config = self.settings.config.clone();
        config.device_bytes = self.device.length_bytes();
        config.seed = self.rng.next();
        config.kept = self.kept.as_mut().map(KeptRing::found);
        self.trace(|| "---- open".to_owned());
        self.opened = None;
        self.serving_since = None;
        self.read_only = false;
        self.idle = 0;
        self.engine = Some(Engine::open(config, self.now));
        self.touched = true;
    }

    /// The process is gone; so are its clients' requests.
    pub fn stop(&mut self) {
        self.engine = None;
        self.quiet = false;
        self.pending.clear();
        self.answers.clear();
        self.generation_exports.clear();
        for volume in self.model.volumes.values_mut() {
            volume.export = None;
            volume.outstanding = 0;
        }
    }

    pub fn kill(&mut self) {
        self.trace(|| "==== kill".to_owned());
        self.stop();
        self.device.kill(&mut self.rng);
        if let Some(kept) = &mut self.kept {
            kept.kill(&mut self.rng);
        }
    }

    pub fn power_cut(&mut self) {
        self.trace(|| "==== power cut".to_owned());
        self.stop();
        self.device.power_cut(&mut self.rng);
        self.lose_kept();
    }

    /// What happens to kept memory when the power fails.
    pub fn lose_kept(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.power_cut();
        }
    }

    pub fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Hands a request in; its answer comes by [`World::pump`].
    pub fn submit(&mut self, pending: Pending, request: Request) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.trace(|| format!("submit {} {request:?} as {pending:?}", id.0));
        self.counters.request(&request);
        if matches!(request, Request::Control(_)) {
            self.hunt(10, 60);
        }
        self.pending.insert(id, pending);
        if let Some(engine) = &mut self.engine {
            engine.submit(self.now, id, request);
            self.touched = true;
        }
        id
    }

    /// One thing happens: an operation of the device ends or time passes. Then the engine has its turn, mostly.
    pub fn pump(&mut self) -> Result<(), Stop> {
        self.event();
        if self.events >= self.crash_at {
            return Err(Stop::Crash);
        }
        if self.events > EVENTS_MAX {
            return wrong(format!("the run does not end: {EVENTS_MAX} events"));
        }
        let busy = self.device.in_flight() > 0;
        if busy && self.rng.chance(85) {
            self.finish_one();
        } else {
            self.pass_time(busy);
        }
        let is_due = self.engine.as_ref().and_then(Engine::deadline).is_some_and(|deadline| deadline <= self.now);
        if (!busy || self.rng.chance(75)) && (self.touched || is_due) {
            self.turn()?;
        }
        self.check_alive()?;
        if self.idle > 5_000 && self.device.in_flight() == 0 {
            let waiting = self.pending.len();
            return wrong(format!(
                "stuck: {waiting} requests wait, no operation of the device is in flight, and nothing happens"
            ));
        }
        Ok(())
    }

    /// A shell gives the engine a turn for what arrives and what is due, and for nothing else: somebody must be due, and
    /// soon, where anybody waits.
    fn check_alive(&self) -> Result<(), Stop> {
        let Some((id, first)) = self.pending.first_key_value() else { return Ok(()) };
        if self.device.in_flight() > 0 || self.touched {
            return Ok(());
        }
        let most = if self.settings.faults.full > 0 { FULL_MEDIUM_SLEEP_MAX } else { SLEEP_MAX };
        let deadline = self.engine.as_ref().and_then(Engine::deadline);
        match deadline.map(|deadline| deadline.saturating_sub(self.now)) {
            None => wrong(format!("asleep for ever, though request {} waits: {first:?}", id.0)),
            Some(asleep) if asleep > most => {
                wrong(format!("asleep for {asleep} us, though request {} waits: {first:?}", id.0))
            }
            Some(_) => Ok(()),
        }
    }

    fn finish_one(&mut self) {
        if let (Some((io, result)), Some(engine)) =
            (self.device.finish_one(self.events, &mut self.rng), &mut self.engine)
        {
            if self.settings.trace {
                let how = match &result {
                    Ok(_) => "ok".to_owned(),
                    Err(error) => error.to_string(),
                };
                eprintln!("{:>7} {:>9} ended io {} {how}", self.events, self.now, io.0);
            }
            engine.complete(self.now, io, result);
            self.touched = true;
            self.idle = 0;
        }
    }

    fn pass_time(&mut self, busy: bool) {
        let deadline = self.engine.as_ref().and_then(Engine::deadline);
        self.idle += 1;
        self.now += match deadline {
            Some(deadline) if !busy || self.rng.chance(10) => deadline.saturating_sub(self.now).max(1),
            _ => self.rng.within(1, 200),
        };
    }

    pub fn turn(&mut self) -> Result<(), Stop> {
        let now = self.now;
        self.touched = false;
        if let Some(engine) = &mut self.engine {
            engine.turn(now);
        }
        for _ in 0..ACTIONS_MAX {
            let Some(action) = self.engine.as_mut().and_then(Engine::next_action) else { return Ok(()) };
            self.idle = 0;
            self.carry_out(action)?;
        }
        wrong(format!("a turn does not end: {ACTIONS_MAX} actions"))
    }

    fn carry_out(&mut self, action: Action) -> Result<(), Stop> {
        match action {
            Action::Disk { io, op } => {
                self.note(io.0);
                self.trace(|| format!("io {} {op:?}", io.0));
                self.check_crossing(&op)?;
                self.last_io = io;
                self.prepare_for(&op);
                self.device.issue(io, op, self.events, &mut self.rng);
                Ok(())
            }
            Action::Keep(block) => {
                self.note(block.seq);
                self.trace(|| format!("keep {block:?}"));
                match &mut self.kept {
                    Some(kept) => kept.keep(&block),
                    None => return wrong(format!("{block:?} is to be kept without memory for it")),
                }
                Ok(())
            }
            Action::Reply { request, result } => {
                self.note(request.0 << 1 | u64::from(result.is_ok()));
                self.trace(|| format!("reply {} {result:?}", request.0));
                self.reply(request, result)
            }
            Action::Opened(result) => {
                self.trace(|| format!("opened {result:?}"));
                self.serving_since = Some(self.last_io);
                self.opened = Some(result);
                Ok(())
            }
            Action::Alert(alert) => self.alert(&alert),
        }
    }

    /// Where an operation of the device is one around which a crash hurts.
    fn prepare_for(&mut self, op: &DiskOp) {
        let slow_syncs = self.settings.kind == Kind::SlowSyncs;
        match op {
            DiskOp::Write { at, .. } if *at < JOURNAL_START * BLOCK as u64 => {
                self.hunt(25, 300);
                let percent = if slow_syncs { 70 } else { 30 };
                self.device.slow_sync = self.settings.hunted && self.rng.chance(percent);
            }
            DiskOp::Sync if slow_syncs => {
                self.device.slow_sync |= self.rng.chance(15);
                if self.device.slow_sync {
                    self.hunt(40, 1500);
                }
            }
            _ => {}
        }
    }

    /// In runs that are hunted: the crash of this episode comes within `events`, in `percent` of all cases.
    fn hunt(&mut self, percent: u64, events: u64) {
        if self.settings.hunted && self.crash_at != u64::MAX && self.rng.chance(percent) {
            self.crash_at = self.crash_at.min(self.events + self.rng.within(1, events));
        }
    }

    fn alert(&mut self, alert: &Alert) -> Result<(), Stop> {
        self.trace(|| format!("alert {alert:?}"));
        let faulty = self.is_faulty() || self.rotten;
        match alert {
            Alert::Damage { .. } if !faulty => wrong(format!("damage on a sound device: {alert:?}")),
            Alert::ReadOnly { message } if !faulty => wrong(format!("read-only on a sound device: {message}")),
            Alert::ReadOnly { .. } => {
                self.read_only = true;
                Ok(())
            }
            Alert::Damage { volume, offset, .. } => {
                self.damage = Some((*volume, *offset));
                Ok(())
            }
            Alert::ScrubFinished(status) => {
                self.counters.scrubs += 1;
                self.scrub = ScrubStatus::clone(status);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn reply(&mut self, request: RequestId, result: Answer) -> Result<(), Stop> {
        let at = self.event();
        self.counters.replies += 1;
        let Some(pending) = self.pending.remove(&request) else {
            return wrong(format!("an answer to request {} that is not outstanding", request.0));
        };
        if let Err(failure) = &result
            && !matches!(pending, Pending::Call { .. })
        {
            self.check_failure(failure)?;
        }
        match (pending, result) {
            (Pending::Call { .. }, result) => {
                self.answers.insert(request, (at, result));
                Ok(())
            }
            (Pending::Change { volume, op, fua }, result) => {
                match result {
                    Ok(_) => self.model.answered(volume, op, at, fua),
                    Err(_) => self.model.failed(volume, op),
                }
                Ok(())
            }
            (Pending::Flush { volume, submitted }, result) => {
                if result.is_ok() {
                    self.model.flushed(volume, submitted);
                }
                self.forget(volume);
                Ok(())
            }
            (Pending::Read { target, offset, length, submitted }, result) => {
                self.forget(target);
                match result {
                    Ok(reply) => self.check_read(target, offset, length, (submitted, at), reply),
                    Err(_) => Ok(()),
                }
            }
        }
    }

    /// Errors where a failure is none that the run's settings explain.
    pub fn check_failure(&self, failure: &Failure) -> Result<(), Stop> {
        // What is damaged cannot be read, nor changed in part.
        let damaged = failure.errno == 5 && self.rotten;
        if failure.errno == 28 && self.settings.may_be_full || damaged || self.is_faulty() {
            return Ok(());
        }
        wrong(format!("a request failed without reason: {failure}"))
    }

    fn forget(&mut self, target: Uuid) {
        if let Some(volume) = self.model.volumes.get_mut(&target) {
            volume.outstanding -= 1;
        }
    }

    /// Submits a request and lets the world go on, with `traffic` beside it, until it is answered.
    pub fn call(&mut self, request: Request, traffic: bool) -> Result<(u64, Answer), Stop> {
        let submitted = self.event();
        let id = self.submit(Pending::Call { submitted }, request);
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return Ok(answer);
            }
            if traffic && self.rng.chance(30) {
                self.traffic();
            }
            self.pump()?;
        }
    }

    pub fn is_faulty(&self) -> bool {
        self.device.faults.any()
    }

    /// The same store, for trying out another way to go on.
    pub fn fork(&self, seed: u64) -> World {
        World {
            engine: None,
            device: self.device.clone(),
            kept: self.kept.clone(),
            model: self.model.clone(),
            rng: Rng::new(seed),
            settings: self.settings.clone(),
            now: self.now,
            events: self.events,
            crash_at: u64::MAX,
            pending: BTreeMap::new(),
            answers: BTreeMap::new(),
            opened: None,
            generation_exports: BTreeMap::new(),
            last_io: self.last_io,
            serving_since: None,
            next_request: self.next_request,
            idle: 0,
            touched: false,
            quiet: false,
            rotten: false,
            read_only: false,
            digest: 0,
            counters: Counters::default(),
            damage: None,
            scrub: ScrubStatus::default(),
            streamed: 0,
        }
    }

    /// As [`World::call`], for requests that must succeed. On a faulty device a failure ends the episode.
    pub fn must(&mut self, request: Request, traffic: bool) -> Result<(u64, Reply), Stop> {
        let text = format!("{request:?}");
        match self.call(request, traffic)? {
            (at, Ok(reply)) => Ok((at, reply)),
            (_, Err(_)) if self.is_faulty() => Err(Stop::Crash),
            (_, Err(failure)) => wrong(format!("{text} failed: {failure}")),
        }
    }

    /// Lets the world go on until nothing is outstanding on the volume.
    pub fn quiesce(&mut self, volume: Uuid) -> Result<(), Stop> {
        while self.model.volumes.get(&volume).is_some_and(|volume| volume.outstanding > 0) {
            self.pump()?;
        }
        Ok(())
    }

    pub fn export_of(&self, volume: Uuid) -> Option<ExportId> {
        self.model.volumes.get(&volume).and_then(|volume| volume.export)
    }

    /// The submission of the oldest request that is not answered.
    pub fn oldest(&self) -> u64 {
        let limbo = self.model.limbo.as_ref().map_or(u64::MAX, |(_, submitted)| *submitted);
        self.pending.values().map(|pending| pending.submitted(&self.model)).min().unwrap_or(u64::MAX).min(limbo)
    }
}
