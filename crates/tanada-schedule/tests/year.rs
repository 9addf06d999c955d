//! A year of schedules over a hundred machines, the clock passed in, against what the calendar on the wall says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use tanada_schedule::calendar::zone;
use tanada_schedule::spread::{offset_seconds, window_seconds};
use tanada_schedule::{Frequency, Ladder, Member, Policy, Verdict, pick};

const MACHINES: usize = 100;
const AT_ONCE: usize = 4;
/// How long a snapshot takes here, in seconds.
const TAKES: i64 = 3;
const BEGIN: &str = "2026-01-01T00:00:00+01:00[Europe/Berlin]";
const END: &str = "2027-01-01T00:00:00+01:00[Europe/Berlin]";

struct Machine {
    name: String,
    handled: Timestamp,
    busy: bool,
    /// Nothing is to be done with it before.
    until: Timestamp,
    /// Slots of the snapshots that there are.
    held: Vec<Timestamp>,
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Counts {
    taken: usize,
    removed: usize,
    missed: u64,
    most_at_once: usize,
}

/// Runs a schedule over the year; `look` sees the machines at each local midnight.
fn year(schedule: &str, policy: &Policy, mut look: impl FnMut(Timestamp, &[Machine])) -> (Counts, Vec<Machine>) {
    let (begin, end) = (instant(BEGIN), instant(END));
    let mut machines: Vec<Machine> = (0..MACHINES)
        .map(|number| Machine {
            name: format!("vm-{number:03}"),
            handled: begin,
            busy: false,
            until: begin,
            held: Vec::new(),
        })
        .collect();
    let window = window_seconds(policy.jitter_seconds, MACHINES);
    let mut running: BinaryHeap<Reverse<(Timestamp, usize, Timestamp)>> = BinaryHeap::new();
    let mut counts = Counts::default();
    let (mut now, mut midnight) = (begin, begin);
    while now < end {
        while midnight <= now {
            look(midnight, &machines);
            midnight = midnight.to_zoned(policy.calendar.zone.clone()).checked_add(1.day()).unwrap().timestamp();
        }
        while running.peek().is_some_and(|Reverse((done, ..))| *done <= now) {
            let Some(Reverse((_, at, slot))) = running.pop() else { break };
            let machine = &mut machines[at];
            (machine.handled, machine.busy, machine.until) = (slot, false, now);
            machine.held.push(slot);
            for surplus in policy.ladder.surplus(&policy.calendar.zone, &machine.held).into_iter().rev() {
                machine.held.remove(surplus);
                counts.removed += 1;
            }
            counts.taken += 1;
        }
        let mut due = Vec::new();
        for (at, machine) in machines.iter_mut().enumerate().filter(|(_, one)| !one.busy && one.until <= now) {
            let offset_seconds = offset_seconds(schedule, &machine.name, window);
            let (calendar, handled) = (&policy.calendar, machine.handled);
            let member = Member { calendar, handled, offset_seconds, attempt: None, busy: false };
            match member.verdict(now) {
                Verdict::Run { slot, since, missed } => due.push((since, at, slot, missed)),
                Verdict::Sleep { until } => machine.until = until.unwrap_or(end),
                Verdict::Wait { .. } => unreachable!("nothing is busy here"),
            }
        }
        let since: Vec<Timestamp> = due.iter().map(|one| one.0).collect();
        for chosen in pick(&since, running.len(), AT_ONCE) {
            let (_, at, slot, missed) = due[chosen];
            machines[at].busy = true;
            counts.missed += missed;
            running.push(Reverse((now.checked_add(TAKES.seconds()).unwrap(), at, slot)));
        }
        counts.most_at_once = counts.most_at_once.max(running.len());
        let ends = running.peek().map(|Reverse((done, ..))| *done);
        let wakes = machines.iter().filter(|one| !one.busy && one.until > now).map(|one| one.until);
        now = wakes.chain(ends).min().unwrap_or(end).min(midnight);
    }
    (counts, machines)
}

fn instant(text: &str) -> Timestamp {
    text.parse::<jiff::Zoned>().unwrap().timestamp()
}

fn policy(frequency: Frequency, retained: i64, schedule: &[(&str, &str)]) -> Policy {
    let schedule: BTreeMap<String, String> =
        schedule.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    Policy::new(frequency, retained, &schedule, &TimeZone::UTC).unwrap()
}

/// What a rung keeps, said as an administrator would: walking back day by day (hour by hour ...) from the newest.
fn expected(ladder: &Ladder, all: &[Timestamp], zone: &TimeZone) -> Vec<Timestamp> {
    let local = |slot: &Timestamp| slot.to_zoned(zone.clone());
    let last_of = |key: &dyn Fn(&Timestamp) -> String, count: u32| {
        let mut last: BTreeMap<Reverse<Timestamp>, ()> = BTreeMap::new();
        let mut by_period: BTreeMap<String, Timestamp> = BTreeMap::new();
        for slot in all {
            by_period.insert(key(slot), *slot);
        }
        last.extend(by_period.into_values().map(|slot| (Reverse(slot), ())));
        last.into_keys().map(|Reverse(slot)| slot).take(count as usize).collect::<Vec<_>>()
    };
    let mut kept = last_of(&|slot| slot.to_string(), ladder.last);
    kept.extend(last_of(&|slot| local(slot).strftime("%F %H %z").to_string(), ladder.hourly));
    kept.extend(last_of(&|slot| local(slot).strftime("%F").to_string(), ladder.daily));
    kept.extend(last_of(&|slot| local(slot).strftime("%G-%V").to_string(), ladder.weekly));
    kept.extend(last_of(&|slot| local(slot).strftime("%Y-%m").to_string(), ladder.monthly));
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// Nightly at half past two, the time that one night skips and another has twice.
#[test]
fn a_year_of_nights() {
    let keys = [
        ("hour", "2"),
        ("min", "30"),
        ("timezone", "Europe/Berlin"),
        ("keep-daily", "30"),
        ("keep-weekly", "8"),
        ("keep-monthly", "12"),
    ];
    let policy = policy(Frequency::Daily, 7, &keys);
    let berlin = zone("Europe/Berlin").unwrap();
    // Said without the calendar under test: Berlin is an hour ahead, and two from 2026-03-29 to 2026-10-25, 1:00 UTC.
    let slots: Vec<Timestamp> = (0..365)
        .map(|day| {
            let midnight = instant(BEGIN).as_second() + day * 86_400;
            let slot = midnight + 9000;
            let (spring, autumn) = (
                instant("2026-03-29T01:00:00+00:00[UTC]").as_second(),
                instant("2026-10-25T01:00:00+00:00[UTC]").as_second(),
            );
            let slot = if slot > spring && slot - 3600 < autumn { (slot - 3600).max(spring) } else { slot };
            Timestamp::from_second(slot).unwrap()
        })
        .collect();
    let mut looked = 0;
    let (counts, machines) = year("nightly", &policy, |midnight, machines| {
        let passed: Vec<Timestamp> = slots.iter().copied().filter(|slot| *slot < midnight).collect();
        let expected = expected(&policy.ladder, &passed, &berlin);
        for machine in machines {
            assert_eq!(machine.held, expected, "{} at {midnight}", machine.name);
        }
        looked += 1;
    });
    println!(
        "nightly, {MACHINES} machines, 2026: {counts:?}; {} kept of each; right at {looked} midnights",
        machines[0].held.len()
    );
    assert_eq!((counts.taken, counts.missed, counts.most_at_once), (365 * MACHINES, 0, AT_ONCE));
    assert_eq!(counts.removed, counts.taken - MACHINES * machines[0].held.len());
    assert_eq!(looked, 365);
}

#[test]
fn a_year_of_hours() {
    let keys = [
        ("min", "15"),
        ("timezone", "Europe/Berlin"),
        ("keep-hourly", "24"),
        ("keep-daily", "7"),
        ("keep-weekly", "4"),
        ("keep-monthly", "12"),
    ];
    let policy = policy(Frequency::Hourly, 2, &keys);
    let berlin = zone("Europe/Berlin").unwrap();
    let begin = instant(BEGIN).as_second();
    let slots: Vec<Timestamp> =
        (0..8760).map(|hour| Timestamp::from_second(begin + hour * 3600 + 900).unwrap()).collect();
    let mut looked = 0;
    let (counts, machines) = year("hourly", &policy, |midnight, machines| {
        // All machines hold the same: comparing with the naive answer is dear, so a few days around each change and month.
        let day = midnight.to_zoned(berlin.clone());
        if day.day() < 3 || day.day() > 23 {
            let passed: Vec<Timestamp> = slots.iter().copied().filter(|slot| *slot < midnight).collect();
            let expected = expected(&policy.ladder, &passed, &berlin);
            assert!(
                machines.iter().all(|machine| machine.held == expected),
                "at {midnight}: {expected:?}, {:?}",
                machines[0].held
            );
            looked += 1;
        }
    });
    println!(
        "hourly, {MACHINES} machines, 2026: {counts:?}; {} kept of each; right at {looked} midnights",
        machines[0].held.len()
    );
    assert_eq!((counts.taken, counts.missed, counts.most_at_once), (8760 * MACHINES, 0, AT_ONCE));
}
