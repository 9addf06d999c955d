//! How far after its slot a machine runs: the same each time, another for each machine.

use crate::calendar::Frequency;

/// Between two machines on average, where nobody says how wide the window is: a freeze takes about a second.
const SECONDS_EACH: i64 = 2;
/// The widest window that is chosen by itself.
const WINDOW_MAX_SECONDS: i64 = 15 * 60;

/// The widest window that may be asked for, in seconds: a run must not come near the next.
pub const fn window_limit_seconds(frequency: Frequency) -> i64 {
    match frequency {
        Frequency::Hourly => 45 * 60,
        Frequency::Daily | Frequency::Weekly => 12 * 3600,
    }
}

/// The window of a schedule in seconds: as asked for, else so that machines do not crowd; one alone runs on the dot.
pub fn window_seconds(asked: Option<i64>, machines: usize) -> i64 {
    let machines = i64::try_from(machines).unwrap_or(i64::MAX);
    asked.unwrap_or_else(|| (machines - 1).saturating_mul(SECONDS_EACH).clamp(0, WINDOW_MAX_SECONDS))
}

/// Seconds between a machine's slot and its run, less than the window: follows from the names of both alone.
pub fn offset_seconds(schedule: &str, machine: &str, window_seconds: i64) -> i64 {
    if window_seconds <= 1 {
        return 0;
    }
    let hash = fnv1a(schedule.bytes().chain([0]).chain(machine.bytes()));
    // The window is far below 2^32, so the remainder is as even as matters.
    i64::try_from(hash % window_seconds.unsigned_abs()).unwrap_or(0)
}

/// FNV-1a, with the high half folded in: even in its low bits, and stable over versions of the program.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 32) ^ hash
}

#[cfg(test)]
mod tests {
    use super::{offset_seconds, window_seconds};

    #[test]
    fn three_hundred_machines_do_not_crowd() {
        let window = window_seconds(None, 300);
        assert_eq!(window, 598);
        let mut per_minute = [0; 10];
        for number in 0..300 {
            let machine = format!("6d2f8b2e-0000-4000-8000-{number:012}");
            let offset = offset_seconds("d1a5c7c0-1111-4222-8333-444455556666", &machine, window);
            assert_eq!(offset, offset_seconds("d1a5c7c0-1111-4222-8333-444455556666", &machine, window));
            per_minute[usize::try_from(offset / 60).unwrap()] += 1;
        }
        assert!(per_minute.iter().all(|count| (12..=50).contains(count)), "{per_minute:?}");
    }

    #[test]
    fn one_alone_runs_on_the_dot() {
        assert_eq!(window_seconds(None, 1), 0);
        assert_eq!(window_seconds(None, 0), 0);
        assert_eq!(window_seconds(Some(600), 1), 600);
        assert_eq!(window_seconds(None, 100_000), 900);
        assert_eq!(offset_seconds("a", "b", 0), 0);
    }
}
