//! The engine's face: events in, actions out.

use std::cell::RefCell;
use std::rc::Rc;

use tanada_disk::DiskResult;

use crate::api::{Action, IoId, Request, RequestId};
use crate::config::EngineConfig;
use crate::state::{Handle, Job, Phase, State};
use crate::tasks::exec::Executor;

/// One store. It lives in the thread that drives it: its tasks share its state without locks.
pub struct Engine {
    handle: Handle,
    executor: Executor,
}

impl Engine {
    /// Starts opening a store: emits device operations, ends with [`Action::Opened`].
    pub fn open(config: EngineConfig, now: u64) -> Engine {
        let state = State::new(config, now);
        let mut engine = Engine { handle: Handle(Rc::new(RefCell::new(state))), executor: Executor::default() };
        engine.turn(now);
        engine
    }

    /// Takes a request; its answer is an [`Action::Reply`], in this turn or a later one.
    pub fn submit(&mut self, now: u64, id: RequestId, request: Request) {
        self.handle.with(|state| {
            state.now = now;
            state.submit(id, request);
        });
    }

    /// Reports the end of a device operation.
    pub fn complete(&mut self, now: u64, io: IoId, result: DiskResult) {
        self.handle.with(|state| {
            state.now = now;
            state.complete(io, result);
        });
    }

    /// Moves everything on that the events since the last turn made possible.
    pub fn turn(&mut self, now: u64) {
        self.handle.with(|state| {
            state.now = now;
            state.yielded.drain(..).for_each(|waker| waker.wake());
            state.ring_timers();
            state.sweep_ahead();
            state.start_checkpoint();
            state.start_walk();
        });
        self.run_tasks();
        self.handle.with(|state| {
            state.more_releases = state.release_some();
            state.place_pending();
            state.line_up_data();
            state.settle();
            state.start_checkpoint();
        });
        self.run_tasks();
        self.handle.with(|state| {
            state.write_journal();
            state.start_sync();
            state.watch();
        });
    }

    fn run_tasks(&mut self) {
        loop {
            self.executor.run();
            let jobs = self.handle.with(|state| std::mem::take(&mut state.jobs));
            if jobs.is_empty() {
                return;
            }
            jobs.into_iter().for_each(|job| self.spawn(job));
        }
    }

    fn spawn(&mut self, job: Job) {
        let handle = self.handle.clone();
        match job {
            Job::Open => self.executor.spawn(handle.open()),
            Job::Read(read) => self.executor.spawn(handle.cold_read(read)),
            Job::MendRead(read) => self.executor.spawn(handle.mend_read(read)),
            Job::Patch { op, place, at, patch } => self.executor.spawn(handle.patch(op, place, at, patch)),
            Job::Extents { request, request_body } => self.executor.spawn(handle.guest_extents(request, request_body)),
            Job::Control { request, control } => self.executor.spawn(handle.control(request, control)),
            Job::Checkpoint => self.executor.spawn(handle.checkpoint()),
            Job::LoadPages { pages } => self.executor.spawn(handle.load_for_data(pages)),
            Job::Walk => self.executor.spawn(handle.walk()),
            Job::CountGhosts => self.executor.spawn(handle.count_ghosts()),
            Job::Scrub { run } => self.executor.spawn(handle.scrub(run)),
        }
    }

    /// The next thing to do, if any.
    pub fn next_action(&mut self) -> Option<Action> {
        self.handle.with(|state| state.actions.pop_front())
    }

    /// When [`Engine::turn`] must be called even if nothing arrives, in microseconds of the shell's clock.
    pub fn deadline(&self) -> Option<u64> {
        if self.executor.has_ready() {
            return Some(self.handle.with(|state| state.now));
        }
        self.handle.with(|state| state.deadline())
    }
}

impl State {
    /// What is looked at once per turn.
    fn watch(&mut self) {
        if self.phase == Phase::Serving {
            self.watch_space();
            self.punch_idle();
            self.prepare_space();
            self.hurry();
        }
    }

    /// Before writers are held for lack of room in journal or delta, the running checkpoint stops giving way.
    fn hurry(&mut self) {
        let journal = self.journal.used() * 4 >= self.journal.blocks() * 3;
        let delta = self.versions.cost.bytes() * 4 >= self.delta_limit() * 3;
        if self.checkpoint.running && (journal || delta) {
            self.checkpoint.urgent = true;
        }
    }

    fn deadline(&self) -> Option<u64> {
        if !self.yielded.is_empty() || !self.jobs.is_empty() || self.more_releases {
            return Some(self.now);
        }
        let timers = self.next_timer().into_iter().chain(self.ahead.sweep_at());
        if self.phase != Phase::Serving {
            return timers.min();
        }
        // What this turn's tasks, or the end of a checkpoint or of a walk, made possible after it had looked.
        if self.has_unplaced()
            || self.can_walk()
            || self.can_checkpoint() && (self.checkpoint.wanted || self.wants_to_settle())
        {
            return Some(self.now);
        }
        let dirty = self.is_dirty();
        let checkpoint = (dirty && !self.checkpoint.running)
            .then(|| (self.checkpoint.last_at + self.config.checkpoint_micros).max(self.now + 1000));
        self.sync_at()
            .into_iter()
            .chain(checkpoint)
            .chain(self.punch_at())
            .chain(timers)
            .chain(self.admission_at())
            .chain(self.medium_retry_at())
            .min()
    }
}
