//! Exhaustive replay: a short run is stopped after each of its events in turn, and there the power fails in every way, or
//! in very many: each subset of the writes that no sync covers survives. Every outcome must be an instant of the history.

use crate::device::Faults;
use crate::kinds::{Kind, settings};
use crate::rng::Rng;
use crate::run::Broken;
use crate::verify::Ended;
use crate::world::{Settings, Stop, World};

/// Subsets of whole writes tried at most at one event; all of them where there are no more.
const SUBSETS_MAX: u64 = 16;

/// Besides these, subsets with torn writes.
const TORN: u64 = 4;

/// What a replay did.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    pub events: u64,
    pub recoveries: u64,
    pub broken: Option<Broken>,
}

/// Replays the run of `seed` up to each event in `events`.
pub fn replay(seed: u64, events: std::ops::Range<u64>) -> Replayed {
    let mut replayed = Replayed::default();
    for event in events {
        if let Err(message) = replay_event(seed, event, &mut replayed) {
            replayed.broken = Some(Broken { seed, message: format!("power cut at event {event}: {message}") });
            break;
        }
        replayed.events += 1;
    }
    replayed
}

fn replay_event(seed: u64, event: u64, replayed: &mut Replayed) -> Result<(), String> {
    let text = |stop: Stop| format!("{stop:?}");
    let mut settings = Settings {
        faults: Faults::default(),
        may_be_full: false,
        brimming: false,
        device_bytes: 24 << 20,
        ..settings(seed, Some(Kind::Mixed), false)
    };
    settings.config.prepare_segments = 0; // a segment of zeros in flight has more subsets than can be tried
    let mut world = World::new(settings, seed).map_err(text)?;
    world.crash_at = event;
    let opened = world.open_store();
    let stop = if let Err(stop) = opened { stop } else { world.work() };
    if let Stop::Wrong(message) = stop {
        return Err(message);
    }
    let crashed = world.event();
    world.crash_at = u64::MAX;
    let pending = world.device.pending_writes() as u32;
    let mut rng = Rng::new(seed ^ event << 32);
    let all = 1u64.checked_shl(pending).unwrap_or(u64::MAX);
    for n in 0..all.min(SUBSETS_MAX) + TORN {
        // Bit n: whether the pending write n survives. Beyond all subsets: prefixes and random ones.
        let torn = n >= all.min(SUBSETS_MAX);
        let mask = match (all <= SUBSETS_MAX && !torn, n % 2 == 0) {
            (true, _) => n,
            (false, true) => (1u64 << (rng.below(u64::from(pending.min(63)) + 1))) - 1,
            (false, false) => rng.next() & rng.next() | 1 << rng.below(64),
        };
        // Each write that is torn keeps sectors of its own choice.
        let (tears, sectors) = if torn { (rng.next() | rng.next(), rng.next()) } else { (0, 0) };
        let survives = |write: usize| match write < 64 && mask >> write & 1 != 0 {
            true => 0xff,
            false if write < 64 && tears >> write & 1 != 0 => sectors.rotate_left(write as u32 * 7) as u8,
            false => 0,
        };
        let mut fork = world.fork(seed ^ n);
        fork.stop();
        fork.device.power_cut_exactly(survives);
        fork.lose_kept();
        fork.check_image().map_err(text)?;
        fork.open_store().map_err(text)?;
        fork.verify_recovery(Ended::PowerCut, crashed)
            .map_err(|stop| format!("survivors {mask:#x} of {pending}, torn {tears:#x}: {stop:?}"))?;
        fork.check_image().map_err(text)?;
        replayed.recoveries += 1;
    }
    Ok(())
}
