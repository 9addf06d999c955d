//! Kinds of runs, chosen by the seed: each makes something happen often that is rare in the others.

use tanada_engine::EngineConfig;

use crate::device::Faults;
use crate::rng::Rng;
use crate::world::Settings;

/// The settings of the run of `seed`.
pub fn settings(seed: u64, trace: bool) -> Settings {
    let mut rng = Rng::new(seed.wrapping_mul(31) ^ 0x5e77);
    // Independent of each other, so that they meet.
    let (tight, faulty, hunted) = (rng.chance(35), rng.chance(15), rng.chance(40));
    let brimming = tight && rng.chance(60);
    let segments = *rng.pick(if brimming {
        &[3]
    } else if tight {
        &[3, 4, 5]
    } else {
        &[20, 24, 40, 70]
    });
    let mut config = EngineConfig::new(segments << 22);
    config.device_can_grow = true;
    // At the lower end the node cache holds a few paths only, and every walk reads.
    config.memory_bytes = *rng.pick(&[1 << 20, 4 << 20, 16 << 20]);
    config.checkpoint_entries = *rng.pick(&[40, 200, 1000, 5000]);
    config.checkpoint_micros = *rng.pick(&[5_000, 100_000, 60_000_000]);
    config.paced_nodes_min = 10;
    config.bitmap_pages_max = seed % 3;
    config.sync_bytes = *rng.pick(&[64 << 10, 1 << 20, 64 << 20]);
    config.sync_micros = *rng.pick(&[1_000, 50_000, 1_000_000]);
    config.reserve_bytes = 1 << 20;
    config.walk_blocks = *rng.pick(&[5, 40, 1000]);
    config.prepare_segments = [0, 1, 3][seed as usize % 3];
    // Of its own, so that the other settings of a seed stay what they were.
    let mut layout = Rng::new(seed.wrapping_mul(37) ^ 0x1a70);
    config.relayout_bytes_per_second = *layout.pick(&[0, 10 << 20, 10 << 30]);
    config.relayout_stream_bytes = *layout.pick(&[0, 8 << 10]);
    config.relayout_read_blocks = 2;
    let faults = match faulty {
        true => Faults { read: rng.below(6), write: rng.below(10), sync: rng.below(8) },
        false => Faults::default(),
    };
    Settings {
        device_bytes: segments << 22,
        journal_bytes: *rng.pick(&[64, 64, 100, 256]) << 12,
        config,
        outstanding_max: *rng.pick(&[1, 4, 16]),
        volumes_max: rng.within(1, 5),
        generations_max: *rng.pick(&[3, 10, 25]),
        may_be_full: tight,
        faults,
        slow_percent: *rng.pick(&[0, 3, 3, 12]),
        slow_events: *rng.pick(&[100, 1500]),
        hunted,
        brimming,
        trace,
        kept_places: *rng.pick(&[None, Some(2), Some(5), Some(64)]),
    }
}
