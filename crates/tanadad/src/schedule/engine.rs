//! The task that carries schedules out: so many runs at a time, the longest due first.
//!
//! It wakes when something is due, when a run has ended, when a schedule was changed, and once a minute in any case: the
//! system's time may have been set. While a machine that is due is busy otherwise it looks every few seconds.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tanada_schedule::pick;
use tanada_xapi::{ApiResult, Ref};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::look::{Due, Look, look};
use super::notes;
use super::prune::prune;
use super::run::{Ran, mark_taken, run};
use super::steer::{Order, Tally};
use super::{Claim, Schedules, clock, ending, space};
use crate::context::Daemon;
use crate::db::{Tx, View};

/// Runs at a time, over all schedules, unless the pool's `other_config` says otherwise.
const AT_ONCE: usize = 4;
/// More than this would make storms of freezes of what is to be spread.
const AT_ONCE_MAX: usize = 64;
/// Machines whose snapshots are removed at a time.
const CHORES_AT_ONCE: usize = 4;
const AT_ONCE_KEY: &str = "tanada-schedule-at-once";

const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_WHILE_WAITING: Duration = Duration::from_secs(5);
/// After something could not be written down: trying on at once would only fail again.
const PAUSE: Duration = Duration::from_secs(60);

/// A clock that stays behind what is noted for so long is right, and the notes are not.
const CLOCK_BELIEVED: Duration = Duration::from_secs(3600);

pub fn start(daemon: &Arc<Daemon>, orders: Option<mpsc::Receiver<Order>>) {
    tokio::spawn(drive(Engine::new(daemon), orders));
}

async fn drive(mut engine: Engine, mut orders: Option<mpsc::Receiver<Order>>) {
    let Some(daemon) = engine.daemon.upgrade() else { return };
    let changed = daemon.schedules.changed.clone();
    let mut stopping = daemon.stopping.subscribe();
    drop(daemon);
    loop {
        let Some(wait) = engine.turn() else { return };
        tokio::select! {
            ended = engine.jobs.join_next(), if !engine.jobs.is_empty() => engine.count(ended),
            ended = engine.chores.join_next(), if !engine.chores.is_empty() => engine.count(ended),
            () = changed.notified() => {}
            order = next(&mut orders) => engine.obey(order).await,
            () = tokio::time::sleep(wait) => {}
            () = ending(&mut stopping) => {
                engine.jobs.detach_all();
                engine.chores.detach_all();
                return;
            }
        }
    }
}

async fn next(orders: &mut Option<mpsc::Receiver<Order>>) -> Order {
    if let Some(orders) = orders
        && let Some(order) = orders.recv().await
    {
        return order;
    }
    std::future::pending().await
}

/// The runs under way and what has come of those that ended.
pub struct Engine {
    daemon: Weak<Daemon>,
    /// `None` of one whose end could not be written down.
    jobs: JoinSet<Option<Tally>>,
    /// What goes on beside them and takes no run's place: however much there is to remove, snapshots are taken in time.
    chores: JoinSet<Option<Tally>>,
    /// Machines whose snapshots are to be gone through now.
    pruning: BTreeSet<Ref>,
    tally: Tally,
    /// Nothing begins before.
    paused_until: Option<Instant>,
    prune_after: Instant,
    observed_hour: i64,
    /// Since when notes are ahead of the clock.
    ahead_since: Option<Instant>,
}

impl Engine {
    pub fn new(daemon: &Arc<Daemon>) -> Engine {
        forget_the_gone(daemon);
        // What may go may have become more while the daemon was away.
        daemon.schedules.prune_later(daemon.db.read(scheduled));
        Engine {
            daemon: Arc::downgrade(daemon),
            jobs: JoinSet::new(),
            chores: JoinSet::new(),
            pruning: BTreeSet::new(),
            tally: Tally::default(),
            paused_until: None,
            prune_after: Instant::now(),
            observed_hour: i64::MIN,
            ahead_since: None,
        }
    }

    /// Begins what may begin; how long there will be nothing to do. `None`: the daemon is gone.
    fn turn(&mut self) -> Option<Duration> {
        let daemon = self.daemon.upgrade()?;
        self.housekeeping(&daemon);
        let found = self.begin(&daemon);
        let clock = &daemon.schedules.clock;
        let mut wait = if found.waiting > 0 { LOOK_WHILE_WAITING } else { LOOK_EVERY };
        if let Some(wake) = found.wake.filter(|_| !clock.is_steered()) {
            let seconds = (wake.as_second() - clock.now().as_second()).max(1);
            wait = wait.min(Duration::from_secs(seconds.unsigned_abs()));
        }
        Some(wait)
    }

    /// Begins runs as far as there is room for them; answers what was found.
    fn begin(&mut self, daemon: &Arc<Daemon>) -> Look {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return Look::default();
        }
        let now = daemon.schedules.clock.now();
        let see = || {
            let running = daemon.schedules.running().clone();
            daemon.db.read(|state| look(state, now, &running))
        };
        let mut found = see();
        self.begin_anew(&mut found, daemon.schedules.clock.is_steered());
        if !found.unknown.is_empty() || !found.passed_over.is_empty() {
            let noted = daemon.db.write(|tx| take_note(tx, &found, now));
            match noted {
                Ok(()) => found = see(),
                Err(error) => self.pause(&error),
            }
        }
        let since: Vec<Timestamp> = found.due.iter().map(|due| due.since).collect();
        for at in pick(&since, self.jobs.len(), at_once(daemon)) {
            let due = found.due[at].clone();
            if let Some(claim) = Schedules::claim(daemon, &due.vm) {
                self.tally.missed += if due.first { due.missed } else { 0 };
                self.jobs.spawn(job(daemon.clone(), due, claim));
            }
        }
        found
    }

    /// Machines whose notes are of a time to come begin anew when the clock has said so for a while. A host that starts with its
    /// clock in the past has it put right by then.
    fn begin_anew(&mut self, found: &mut Look, at_once: bool) {
        if found.ahead.is_empty() {
            self.ahead_since = None;
            return;
        }
        let since = *self.ahead_since.get_or_insert_with(Instant::now);
        if at_once || since.elapsed() >= CLOCK_BELIEVED {
            tracing::warn!(
                machines = found.ahead.len(),
                "schedules begin anew: what was handled is noted for a time to come"
            );
            found.unknown.append(&mut found.ahead);
        }
    }

    fn housekeeping(&mut self, daemon: &Arc<Daemon>) {
        if Instant::now() >= self.prune_after {
            self.prune_after = Instant::now() + LOOK_EVERY;
            self.pruning.append(&mut daemon.schedules.to_prune());
        }
        while self.chores.len() < CHORES_AT_ONCE
            && let Some(vm) = self.pruning.pop_first()
        {
            match Schedules::claim(daemon, &vm) {
                Some(claim) => drop(self.chores.spawn(prune_job(daemon.clone(), vm, claim))),
                None => daemon.schedules.prune_later([vm]),
            }
        }
        let hour = daemon.schedules.clock.now().as_second().div_euclid(3600);
        if hour != self.observed_hour {
            self.observed_hour = hour;
            let daemon = daemon.clone();
            self.chores.spawn(async move {
                space::observe_all(&daemon).await;
                Some(Tally::default())
            });
        }
    }

    fn count(&mut self, ended: Option<Result<Option<Tally>, JoinError>>) {
        match ended {
            None => {}
            Some(Ok(None)) => self.pause("the end of a run could not be written down"),
            Some(Ok(Some(tally))) => {
                self.tally.taken += tally.taken;
                self.tally.failed += tally.failed;
                self.tally.removed += tally.removed;
            }
            Some(Err(error)) => self.pause(error),
        }
    }

    fn pause(&mut self, reason: impl std::fmt::Display) {
        tracing::error!(%reason, seconds = PAUSE.as_secs(), "schedules pause");
        self.paused_until = Some(Instant::now() + PAUSE);
    }

    /// Goes on until nothing is under way and nothing may begin.
    pub async fn settle(&mut self) -> Look {
        loop {
            let Some(daemon) = self.daemon.upgrade() else { return Look::default() };
            self.housekeeping(&daemon);
            let found = self.begin(&daemon);
            drop(daemon);
            if self.jobs.is_empty() && self.chores.is_empty() {
                return found;
            }
            let ended = tokio::select! {
                ended = self.jobs.join_next(), if !self.jobs.is_empty() => ended,
                ended = self.chores.join_next(), if !self.chores.is_empty() => ended,
            };
            self.count(ended);
        }
    }

    /// Moves a steered clock; what came of it.
    pub async fn steer(&mut self, to: Timestamp, through: bool) -> Tally {
        self.tally = Tally::default();
        if through {
            let mut now = Timestamp::MIN;
            while let Some(wake) = self.settle().await.wake.filter(|wake| *wake <= to && *wake > now) {
                now = wake;
                self.set_clock(wake);
            }
        }
        self.set_clock(to);
        self.keep_clock(to);
        let found = self.settle().await;
        Tally { waiting: found.waiting, ..self.tally }
    }

    async fn obey(&mut self, order: Order) {
        let tally = self.steer(order.to, order.through).await;
        // Who asked may be gone by now.
        let _ = order.done.send(tally);
    }

    fn set_clock(&mut self, to: Timestamp) {
        if let Some(daemon) = self.daemon.upgrade() {
            daemon.schedules.clock.set(to);
        }
        self.prune_after = Instant::now();
    }

    fn keep_clock(&mut self, to: Timestamp) {
        let Some(daemon) = self.daemon.upgrade() else { return };
        let kept = daemon.db.write(|tx| {
            tx.put_note(clock::NOTE, to.as_second().to_string());
            Ok(())
        });
        if let Err(error) = kept {
            self.pause(&error);
        }
    }
}

async fn job(daemon: Arc<Daemon>, due: Due, claim: Claim) -> Option<Tally> {
    let mut tally = Tally::default();
    match run(&daemon, &due).await {
        Ok(Ran::Taken(_)) => {
            tally.taken = 1;
            tally.removed = prune_here(&daemon, &due.vm).await;
        }
        Ok(Ran::Failed(_)) => tally.failed = 1,
        Ok(Ran::Busy | Ran::Gone) => {}
        Err(error) => {
            tracing::error!(vm = %due.vm, %error, "a scheduled run could not be written down");
            return None;
        }
    }
    drop(claim);
    Some(tally)
}

async fn prune_job(daemon: Arc<Daemon>, vm: Ref, claim: Claim) -> Option<Tally> {
    let removed = prune_here(&daemon, &vm).await;
    drop(claim);
    Some(Tally { removed, ..Tally::default() })
}

async fn prune_here(daemon: &Arc<Daemon>, vm: &Ref) -> u64 {
    let pruned = prune(daemon, vm).await;
    if pruned.postponed {
        daemon.schedules.prune_later([vm.clone()]);
    }
    pruned.removed
}

/// All machines that have a schedule.
fn scheduled(view: &crate::db::State) -> Vec<Ref> {
    view.all("VMSS").iter().flat_map(|schedule| schedule.refs("VMs")).collect()
}

/// Notes about what is no more.
fn forget_the_gone(daemon: &Daemon) {
    let gone = daemon.db.read(|state| {
        let of = |prefix: &'static str, class: &'static str| {
            let notes = state.notes_under(prefix).into_iter();
            notes.filter(move |name| state.find_by_uuid(class, name.trim_start_matches(prefix)).is_none())
        };
        of(notes::SCHEDULE, "VMSS").chain(of(notes::MACHINE, "VM")).chain(of(space::NOTE, "SR")).collect::<Vec<_>>()
    });
    let forgotten = daemon.db.write(|tx| {
        gone.iter().for_each(|name| tx.forget_note(name));
        Ok(())
    });
    if let Err(error) = forgotten {
        tracing::warn!(%error, "notes of schedules could not be forgotten");
    }
}

/// Machines that are new begin now; those that are left out are done with what has passed.
fn take_note(tx: &mut Tx<'_>, found: &Look, now: Timestamp) -> ApiResult<()> {
    let new = found.unknown.iter().map(|vm| (vm, now)).chain(found.passed_over.iter().map(|(vm, slot)| (vm, *slot)));
    for (vm, handled) in new {
        let Some(record) = tx.find("VM", vm) else { continue };
        let Some(schedule) = tx.find("VMSS", &record.reference("snapshot_schedule")) else { continue };
        let mut old = notes::of_machine(tx, record.uuid()).unwrap_or_default();
        mark_taken(tx, &record, &mut old)?;
        // What is being taken at this moment, by somebody's wish, is not there to be marked yet.
        let (schedule, handled, taking) = (schedule.uuid().to_owned(), handled.as_second(), old.taking);
        notes::put_machine(tx, record.uuid(), &notes::MachineNote { schedule, handled, taking, attempt: None });
    }
    Ok(())
}

fn at_once(daemon: &Daemon) -> usize {
    let pool = daemon.db.read(|state| state.only("pool"));
    let asked = pool.ok().and_then(|pool| pool.entry("other_config", AT_ONCE_KEY)?.parse().ok());
    asked.unwrap_or(AT_ONCE).clamp(1, AT_ONCE_MAX)
}
