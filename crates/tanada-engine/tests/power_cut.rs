//! Write, flush, power cut: on a device that loses everything which no completed sync covers. No speed is bought with this.

mod shell;

use std::collections::BTreeMap;

use shell::{MIB, Random, Shell, block, formatted, id};
use tanada_disk::Buf;
use tanada_engine::{Control, EngineConfig, ExportId, KeptMemory, Reply, Request};

/// What must be there, by volume and place: what a flush or FUA has covered. And what may be there besides.
#[derive(Default)]
struct Promise {
    flushed: BTreeMap<(u128, u64), u64>,
    acknowledged: BTreeMap<(u128, u64), u64>,
}

impl Promise {
    fn flush(&mut self, volume: u128) {
        let of_volume = self.acknowledged.iter().filter(|((of, _), _)| *of == volume);
        self.flushed.extend(of_volume.map(|(place, n)| (*place, *n)));
    }
}

/// With the journal on the device alone, and with memory that a power cut clears.
fn config(kept: bool) -> EngineConfig {
    let kept = kept.then(|| KeptMemory { places: 64, found: Vec::new() });
    EngineConfig { kept, checkpoint_entries: 40, ..EngineConfig::new(64 * MIB) }
}

fn work(shell: &mut Shell, exports: &[(u128, ExportId)], random: &mut Random, promise: &mut Promise, next: &mut u64) {
    for _ in 0..random.below(60) {
        let (volume, export) = exports[random.below(exports.len() as u64) as usize];
        let (place, fua) = (random.below(200), random.below(8) == 0);
        *next += 1;
        let data = Buf::copy_from(&block(*next));
        shell.ask(Request::Write { export, offset: place * 4096, data, fua }).expect("written");
        promise.acknowledged.insert((volume, place), *next);
        if fua {
            promise.flushed.insert((volume, place), *next);
        }
        if random.below(10) == 0 {
            shell.ask(Request::Flush { export }).expect("flushed");
            promise.flush(volume);
        }
    }
}

fn number_of(bytes: &[u8], next: u64) -> u64 {
    (1..=next).find(|n| block(*n) == bytes).unwrap_or(0)
}

#[test]
fn what_a_flush_covered_survives_a_power_cut() {
    for seed in 0..16 {
        let kept = seed % 2 == 1;
        let mut shell = Shell::open(formatted(64 * MIB, MIB).with_cache(), config(kept));
        shell.random = Some(Random(seed));
        let mut random = Random(seed + 1000);
        let mut exports = vec![(1, shell.create(id(1), MIB)), (2, shell.create(id(2), MIB))];
        let (mut promise, mut next) = (Promise::default(), 0);
        for life in 0..6 {
            work(&mut shell, &exports, &mut random, &mut promise, &mut next);
            // Some more is under way when the power fails.
            for n in 0..random.below(6) {
                let data = Buf::copy_from(&block(1_000_000 + n));
                shell.submit(Request::Write { export: exports[0].1, offset: (250 - n) * 4096, data, fua: false });
            }
            (0..random.below(6)).for_each(|_| _ = shell.step());
            shell.device.power_cut();
            shell = shell.reopen();
            exports = [1, 2].map(|n| (n, shell.export(id(n), true))).to_vec();
            for ((volume, place), flushed) in &promise.flushed {
                let export = exports[*volume as usize - 1].1;
                let found = number_of(&shell.read(export, place * 4096, 4096), next);
                // What was written over it later may have reached the medium, or not.
                assert!(
                    found >= *flushed,
                    "seed {seed} life {life}: {volume} place {place} has {found}, not {flushed}"
                );
            }
            // From here on only what is there counts.
            promise = Promise::default();
            for (volume, export) in &exports {
                for place in 0..200 {
                    match number_of(&shell.read(*export, place * 4096, 4096), next) {
                        0 => {}
                        n => drop(promise.flushed.insert((*volume, place), n)),
                    }
                }
            }
        }
    }
}

#[test]
fn snapshots_clones_and_fua_answer_when_they_are_durable() {
    for kept in [false, true] {
        let mut shell = Shell::open(formatted(64 * MIB, MIB).with_cache(), config(kept));
        let export = shell.create(id(1), MIB);
        shell.write(export, 0, &block(1));
        shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
        shell.write(export, 0, &block(2));
        shell.must(Control::Clone { source: id(2), volume: id(3) });
        let data = Buf::copy_from(&block(3));
        shell.ask(Request::Write { export, offset: 4096, data, fua: true }).expect("written");
        shell.device.power_cut();
        let mut shell = shell.reopen();
        let [volume, generation, clone] = [1, 2, 3].map(|n| shell.export(id(n), false));
        assert_eq!(shell.read(generation, 0, 4096), block(1));
        assert_eq!(shell.read(clone, 0, 4096), block(1));
        assert_eq!(shell.read(volume, 0, 8192), [block(2), block(3)].concat());
    }
}

/// The proof can fail: without the flush the same cut takes the write.
#[test]
fn a_write_without_flush_is_lost_by_this_device() {
    let mut shell = Shell::open(formatted(64 * MIB, MIB).with_cache(), config(false));
    let export = shell.create(id(1), MIB);
    shell.write(export, 0, &block(1));
    shell.device.power_cut();
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 0, 4096), [0; 4096]);
    let Ok(Reply::Done) = shell.ask(Request::Flush { export }) else { panic!("a flush of nothing") };
}
