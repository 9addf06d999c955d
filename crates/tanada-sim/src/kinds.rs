//! Kinds of runs, chosen by the seed: each makes something happen often that is rare in the others.

use tanada_engine::EngineConfig;

use crate::device::Faults;
use crate::rng::Rng;
use crate::world::Settings;

/// What a run is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bit of everything.
    Mixed,
    /// Syncs take long, guests write on without asking for any, and the crash comes in between: what waits for a sync
    /// must really wait, for the journal's start and for space.
    SlowSyncs,
    /// Writes of data fail while each is followed by a flush.
    FailingWrites,
    /// Much is written, given back and written again while the medium still takes space back.
    SlowPunches,
    /// Scrubs, beside slow reads and space that turns over.
    Scrubs,
    /// A full store without any reserve.
    NoReserve,
    /// Guests write the same few contents over and over, so that what a crash tore may become whole later.
    Echoes,
    /// Streams of reads over what was scattered, and writes between them.
    Relayout,
    /// What is below the store is full now and then; guests write the same few contents, and flush often.
    FullMedium,
    /// Free space in single blocks, and writes that are much larger: each becomes many, and a small ring is all but full.
    Fragments,
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::Mixed,
        Kind::SlowSyncs,
        Kind::FailingWrites,
        Kind::SlowPunches,
        Kind::Scrubs,
        Kind::NoReserve,
        Kind::Echoes,
        Kind::Relayout,
        Kind::FullMedium,
        Kind::Fragments,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Mixed => "mixed",
            Kind::SlowSyncs => "slow-syncs",
            Kind::FailingWrites => "failing-writes",
            Kind::SlowPunches => "slow-punches",
            Kind::Scrubs => "scrubs",
            Kind::NoReserve => "no-reserve",
            Kind::Echoes => "echoes",
            Kind::Relayout => "relayout",
            Kind::FullMedium => "full-medium",
            Kind::Fragments => "fragments",
        }
    }

    /// Errors: what would be accepted.
    pub fn named(name: &str) -> Result<Kind, String> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name).join(", ");
            format!("a kind of run {name}: one of {names} is accepted")
        })
    }

    /// Three of four seeds are mixed.
    fn of(seed: u64) -> Kind {
        match seed % 4 {
            3 => *Rng::new(seed.wrapping_mul(41) ^ 0xd12e).pick(&Kind::ALL[1..]),
            _ => Kind::Mixed,
        }
    }
}

/// The settings of the run of `seed`, of the kind that the seed says or of another.
pub fn settings(seed: u64, kind: Option<Kind>, trace: bool) -> Settings {
    let kind = kind.unwrap_or_else(|| Kind::of(seed));
    let mut rng = Rng::new(seed.wrapping_mul(43) ^ 0x5179);
    let mut settings = mixed(seed, trace);
    settings.kind = kind;
    if kind != Kind::Mixed {
        settings.faults = Faults::default();
        settings.patient = true;
    }
    let config = &mut settings.config;
    match kind {
        Kind::Mixed => {}
        Kind::SlowSyncs => {
            config.checkpoint_entries = *rng.pick(&[40, 200]);
            config.checkpoint_micros = *rng.pick(&[5_000, 100_000]);
            config.prepare_segments = 0;
            settings.journal_bytes = 64 << 12;
            settings.outstanding_max = rng.within(1, 2);
            settings.kept_places = *rng.pick(&[None, None, Some(5)]);
            (settings.slow_percent, settings.slow_events) = (2, 1500);
            settings.hunted = true;
            settings.brims(rng.chance(60));
        }
        Kind::FailingWrites => {
            settings.faults.data = rng.within(20, 120);
            settings.outstanding_max = 1;
            settings.flush_percent = 50;
        }
        Kind::SlowPunches => {
            config.checkpoint_entries = *rng.pick(&[1000, 5000]);
            config.prepare_segments = 0;
            settings.slow_punch_percent = 80;
            settings.slow_events = 400;
            settings.flood_percent = 4;
            settings.volumes_max = 2;
            settings.resize(*rng.pick(&[16, 20]));
        }
        Kind::Scrubs => {
            config.checkpoint_entries = *rng.pick(&[40, 200]);
            config.checkpoint_micros = *rng.pick(&[5_000, 100_000]);
            (settings.slow_percent, settings.slow_events) = (*rng.pick(&[3, 12]), 1500);
            settings.scrub_percent = 4;
            settings.brims(rng.chance(60));
        }
        Kind::NoReserve => {
            config.reserve_bytes = 0;
            settings.brims(true);
        }
        Kind::Echoes => {
            settings.contents = rng.within(2, 4);
            settings.kept_places = None;
            settings.volumes_max = 1;
            settings.outstanding_max = *rng.pick(&[4, 16]);
            config.checkpoint_entries = 5000;
            config.checkpoint_micros = 60_000_000;
            config.sync_micros = 1_000_000;
            config.sync_bytes = 64 << 20;
            config.prepare_segments = 0;
            settings.resize(20);
        }
        Kind::Relayout => {
            config.relayout_bytes_per_second = 10 << 30;
            config.relayout_stream_bytes = 0;
            config.checkpoint_entries = *rng.pick(&[200, 1000]);
            (settings.slow_percent, settings.slow_events) = (12, 300);
            settings.outstanding_max = *rng.pick(&[4, 16]);
            settings.volumes_max = 2;
            settings.stream_percent = 25;
            let mut ahead = Rng::new(seed.wrapping_mul(41) ^ 0xa4ea);
            (config.ahead_stream_bytes, config.ahead_bytes) = (8 << 10, *ahead.pick(&[0, 64 << 10, 256 << 10]));
            settings.resize(40);
        }
        Kind::FullMedium => {
            settings.faults.full = rng.within(5, 150);
            settings.contents = *rng.pick(&[0, 2, 2]);
            settings.kept_places = *rng.pick(&[None, None, Some(5)]);
            settings.flush_percent = rng.within(20, 50);
            settings.outstanding_max = *rng.pick(&[1, 1, 4]);
            settings.volumes_max = 1;
            config.checkpoint_entries = *rng.pick(&[200, 5000]);
            config.checkpoint_micros = *rng.pick(&[100_000, 60_000_000]);
            config.sync_micros = 1_000_000;
            config.sync_bytes = 64 << 20;
            config.prepare_segments = 0;
            settings.brims(rng.chance(70));
        }
        Kind::Fragments => {
            config.checkpoint_entries = 5000;
            config.checkpoint_micros = 60_000_000;
            config.checkpoint_journal_percent = *rng.pick(&[50, 90]);
            config.prepare_segments = 0;
            settings.journal_bytes = 64 << 12;
            settings.outstanding_max = *rng.pick(&[4, 16, 64]);
            settings.volumes_max = 2;
            settings.perforate_percent = 10;
            settings.brims(rng.chance(70));
        }
    }
    settings
}

impl Settings {
    /// A device of so many segments.
    fn resize(&mut self, segments: u64) {
        self.device_bytes = segments << 22;
        self.config.device_bytes = segments << 22;
        (self.may_be_full, self.brimming) = (false, false);
    }

    /// A small store that is full from the start, or a larger one.
    fn brims(&mut self, brims: bool) {
        self.resize(if brims { 3 } else { 24 });
        (self.may_be_full, self.brimming) = (brims, brims);
    }
}

fn mixed(seed: u64, trace: bool) -> Settings {
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
    // A stream's second time through a volume's beginning is one anew.
    config.stream_reordered_bytes = 16 << 10;
    config.ahead_bytes = 0;
    let faults = match faulty {
        true => Faults { read: rng.below(6), write: rng.below(10), sync: rng.below(8), ..Faults::default() },
        false => Faults::default(),
    };
    Settings {
        kind: Kind::Mixed,
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
        patient: false,
        flush_percent: 0,
        slow_punch_percent: 0,
        flood_percent: 0,
        scrub_percent: 0,
        stream_percent: 0,
        perforate_percent: 0,
        contents: 0,
    }
}
