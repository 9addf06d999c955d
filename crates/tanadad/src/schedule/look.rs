//! What is due, from the records, the notes and the time. Changes nothing.

use std::collections::HashSet;

use jiff::Timestamp;
use tanada_schedule::spread::{offset_seconds, window_seconds};
use tanada_schedule::{Attempt, Frequency, Member, Policy, Verdict, calendar};
use tanada_xapi::Ref;

use super::exceptions;
use super::notes::{self, MachineNote, time};
use crate::db::{Record, View};
use crate::ops::records::strings;

/// A clock that is set back by less repeats nothing.
const AHEAD_SECONDS_MAX: i64 = 24 * 3600;

/// A run that may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub vm: Ref,
    pub schedule: Ref,
    pub slot: Timestamp,
    pub since: Timestamp,
    /// Slots before this one that nobody handled.
    pub missed: u64,
    /// Not the repetition of a failed run.
    pub first: bool,
    /// Somebody asked for it; its slot is now, and none of the calendar's.
    pub by_hand: bool,
}

/// What there is to do.
#[derive(Debug, Default)]
pub struct Look {
    pub due: Vec<Due>,
    /// Machines that are due and busy otherwise.
    pub waiting: usize,
    /// When there will be more to do.
    pub wake: Option<Timestamp>,
    /// Machines that came to their schedule without our doing: they begin now.
    pub unknown: Vec<Ref>,
    /// Machines that are noted for a time that is yet to come.
    pub ahead: Vec<Ref>,
    /// Machines that are left out, with the slot that has passed.
    pub passed_over: Vec<(Ref, Timestamp)>,
}

impl Look {
    fn wake_by(&mut self, at: Option<Timestamp>) {
        self.wake = match (self.wake, at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// The policy of a schedule; `None` when its record is not understood, which is logged.
pub fn policy(schedule: &Record) -> Option<Policy> {
    let frequency = Frequency::parse(schedule.str("frequency"))?;
    let keys = strings(schedule.map("schedule"));
    let policy = Policy::new(frequency, schedule.int("retained_snapshots"), &keys, &calendar::host_zone());
    policy.inspect_err(|wrong| tracing::error!(schedule = schedule.uuid(), %wrong, "a schedule is not understood")).ok()
}

/// Looks at all schedules. Machines in `running` are being run already.
pub fn look(view: &impl View, now: Timestamp, running: &HashSet<Ref>) -> Look {
    let mut found = Look::default();
    for schedule in view.all("VMSS").iter().filter(|schedule| schedule.bool("enabled")) {
        let Some(policy) = policy(schedule) else { continue };
        let machines = view.resolve("VM", &schedule.refs("VMs"));
        let window = window_seconds(policy.jitter_seconds, machines.len());
        // One of a time that is yet to come says nothing.
        let since = notes::of_schedule(view, schedule.uuid()).since;
        let since = if is_ahead(since, now) { i64::MIN } else { since };
        // A machine that is being run is looked at again when that has ended.
        let idle = machines.iter().filter(|vm| !vm.bool("is_a_template") && !running.contains(vm.id()));
        for vm in idle {
            let note = notes::of_machine(view, vm.uuid()).filter(|note| note.schedule == schedule.uuid());
            let Some(note) = note else {
                found.unknown.push(vm.id().clone());
                continue;
            };
            if is_ahead(note.handled, now) {
                found.ahead.push(vm.id().clone());
                continue;
            }
            let member = Member {
                calendar: &policy.calendar,
                handled: time(note.handled.max(since)),
                offset_seconds: offset_seconds(schedule.uuid(), vm.uuid(), window),
                attempt: attempt(&note),
                busy: !vm.map("current_operations").is_empty(),
            };
            let skipped = exceptions::is_skipped(vm, now, &policy.calendar.zone);
            sort(&mut found, vm, schedule, &member, skipped, now);
        }
    }
    found
}

/// Is that further ahead of the clock than setting it back a little explains? It was noted while the clock was wrong, or the
/// clock is wrong now.
pub fn is_ahead(noted: i64, now: Timestamp) -> bool {
    noted > now.as_second() + AHEAD_SECONDS_MAX
}

fn attempt(note: &MachineNote) -> Option<Attempt> {
    let kept = note.attempt?;
    Some(Attempt { slot: time(kept.slot), failures: kept.failures, again_at: time(kept.again_at) })
}

fn sort(found: &mut Look, vm: &Record, schedule: &Record, member: &Member<'_>, skipped: bool, now: Timestamp) {
    match member.verdict(now) {
        Verdict::Sleep { until } => found.wake_by(until),
        Verdict::Wait { slot } | Verdict::Run { slot, .. } if skipped => {
            found.passed_over.push((vm.id().clone(), slot));
        }
        Verdict::Wait { .. } => found.waiting += 1,
        Verdict::Run { slot, since, missed } => found.due.push(Due {
            vm: vm.id().clone(),
            schedule: schedule.id().clone(),
            slot,
            since,
            missed,
            first: member.attempt.is_none_or(|attempt| attempt.slot != slot),
            by_hand: false,
        }),
    }
}
