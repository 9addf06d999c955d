//! Limits and exhaustion: what does not fit is refused with words that name the thing, the value and what is accepted;
//! what is full gives way again.

mod shell;

use shell::{MIB, Random, Shell, block, formatted, id};
use tanada_disk::Buf;
use tanada_engine::{Control, EngineConfig, ExportId, Extent, ExtentKind, Failure, Reply, Request};

const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;

fn store(bytes: u64, config: EngineConfig) -> Shell {
    Shell::open(formatted(bytes, MIB), EngineConfig { device_bytes: bytes, ..config })
}

fn refused(shell: &mut Shell, control: Control) -> Failure {
    let text = format!("{control:?}");
    match shell.control(control) {
        Err(failure) => failure,
        Ok(reply) => panic!("{} succeeded: {reply:?}", &text[..text.len().min(100)]),
    }
}

fn says(failure: &Failure, errno: i32, words: &[&str]) {
    assert_eq!(failure.errno, errno, "{failure}");
    words.iter().for_each(|word| assert!(failure.message.contains(word), "'{word}' is missing: {failure}"));
}

fn request(export: ExportId, offset: u64, bytes: &[u8]) -> Request {
    Request::Write { export, offset, data: Buf::copy_from(bytes), fua: false }
}

#[test]
fn a_thin_volume_of_64_tib_from_its_first_block_to_its_last() {
    let mut shell = store(64 * MIB, EngineConfig::new(0));
    let export = shell.create(id(1), 64 * TIB);
    for (n, offset) in [0, 32 * TIB, 64 * TIB - 4096].into_iter().enumerate() {
        shell.write(export, offset, &block(n as u64));
    }
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.must(Control::Checkpoint);
    assert_eq!(shell.read(export, 64 * TIB - 8192, 8192), [vec![0; 4096], block(2)].concat());
    let ask = |export| Request::Extents { export, offset: 0, length: 64 * TIB, extents_max: 10, since: None };
    let Ok(Reply::Extents(extents)) = shell.ask(ask(export)) else { panic!("extents") };
    let data: Vec<u64> = extents.iter().filter(|e| e.kind == ExtentKind::Data).map(|e| e.offset).collect();
    assert_eq!(data, [0, 32 * TIB, 64 * TIB - 4096]);
    // All of it at once, by either verb.
    shell.ask(Request::Discard { export, offset: 0, length: 64 * TIB, fua: true }).expect("discarded");
    assert_eq!(shell.read(export, 32 * TIB, 4096), [0; 4096]);
    let zeroes = Request::WriteZeroes { export, offset: 0, length: 64 * TIB, fua: false, keep_allocated: false };
    shell.ask(zeroes).expect("zeroed");
    let Ok(Reply::Extents(extents)) = shell.ask(ask(export)) else { panic!("extents") };
    assert_eq!(extents, [Extent { offset: 0, length: 64 * TIB, kind: ExtentKind::Hole }]);
    let generation = shell.export(id(2), false);
    assert_eq!(shell.read(generation, 64 * TIB - 4096, 4096), block(2));
    let beyond = shell.ask(Request::Read { export, offset: 64 * TIB - 512, length: 1024 }).expect_err("beyond the end");
    says(&beyond, EINVAL, &["1024 bytes", &format!("offset {}", 64 * TIB - 512), &(64 * TIB).to_string()]);
    shell.must(Control::Settle);
    assert_eq!(shell.usage(id(1)).mapped, 0);
}

#[test]
fn sizes_that_no_volume_can_have_are_refused_with_words() {
    let mut shell = store(64 * MIB, EngineConfig::new(0));
    let most = (4 * PIB).to_string();
    for size in [0, 4 * PIB + 1, u64::MAX] {
        let said = refused(&mut shell, Control::CreateVolume { id: id(1), size });
        says(&said, EINVAL, &[&size.to_string(), &most]);
    }
    let export = shell.create(id(1), 4 * PIB);
    shell.write(export, 4 * PIB - 4096, &block(1));
    assert_eq!(shell.read(export, 4 * PIB - 4096, 4096), block(1));
    let said = refused(&mut shell, Control::Resize { id: id(1), size: 5 * PIB });
    says(&said, EINVAL, &[&(5 * PIB).to_string(), &most]);
    let said = refused(&mut shell, Control::GrowStore { size: 32 * MIB });
    says(&said, EINVAL, &[&(64 * MIB).to_string(), "cannot shrink", &(32 * MIB).to_string()]);
    // A size is rounded up to whole blocks.
    let odd = shell.create(id(2), 5000);
    assert_eq!(shell.usage(id(2)).size, 8192);
    assert_eq!(shell.read(odd, 8191, 1), [0]);
}

#[test]
fn a_group_has_128_members_at_most() {
    let mut shell = store(64 * MIB, EngineConfig::new(0));
    let group: Vec<_> = (0..129).map(|n| (id(n), id(1000 + n))).collect();
    for (volume, _) in &group {
        shell.must(Control::CreateVolume { id: *volume, size: MIB });
    }
    let said = refused(&mut shell, Control::Snapshot { group: group.clone() });
    says(&said, EINVAL, &["129", "1 to 128"]);
    says(&refused(&mut shell, Control::Snapshot { group: Vec::new() }), EINVAL, &["0 volumes", "1 to 128"]);
    shell.must(Control::Snapshot { group: group[..128].to_vec() });
    assert_eq!(shell.stat().generations, 128);
}

/// Every offset and length that a guest with 512-byte sectors may use, and odder ones, against plain memory.
#[test]
fn requests_of_any_alignment_do_what_they_say() {
    for (seed, unit) in [(1, 512), (2, 512), (3, 1), (4, 1)] {
        let mut shell = store(64 * MIB, EngineConfig::new(0));
        shell.random = Some(Random(seed));
        let size = 16 * 4096;
        let export = shell.create(id(1), size);
        let (mut truth, mut random) = (vec![0u8; size as usize], Random(seed));
        for n in 0..1500u64 {
            let offset = random.below(size / unit) * unit;
            let length = (random.below(5 * 4096 / unit) * unit).min(size - offset);
            let range = offset as usize..(offset + length) as usize;
            match random.below(8) {
                0 => {
                    let keep_allocated = random.below(2) == 0;
                    let zeroes = Request::WriteZeroes { export, offset, length, fua: false, keep_allocated };
                    shell.ask(zeroes).expect("zeroed");
                    truth[range].fill(0);
                }
                1 => {
                    shell.ask(Request::Discard { export, offset, length, fua: n % 2 == 0 }).expect("discarded");
                    // Whole blocks only.
                    let whole = offset.next_multiple_of(4096)..(offset + length) / 4096 * 4096;
                    if !whole.is_empty() {
                        truth[whole.start as usize..whole.end as usize].fill(0);
                    }
                }
                2 if n % 50 == 2 => drop(shell.must(Control::Checkpoint)),
                _ => {
                    let bytes: Vec<u8> = (0..length).map(|at| (n * 31 + at) as u8).collect();
                    shell.ask(request(export, offset, &bytes)).expect("written");
                    truth[range].copy_from_slice(&bytes);
                }
            }
            let offset = random.below(size / unit) * unit;
            let length = (random.below(3 * 4096 / unit) * unit).min(size - offset);
            let expected = &truth[offset as usize..(offset + length) as usize];
            assert!(
                shell.read(export, offset, length as u32) == expected,
                "seed {seed}, step {n}, at {offset}+{length}"
            );
        }
        let mut shell = shell.reopen();
        let export = shell.export(id(1), true);
        assert!(shell.read(export, 0, size as u32) == truth, "seed {seed} after a restart");
    }
}

/// Fills a volume until the store refuses; how many pieces of 64 KiB it took.
fn fill(shell: &mut Shell, export: ExportId, from: u64) -> u64 {
    for n in from.. {
        let written = shell.ask(request(export, n * 65536, &[n as u8 | 1; 65536]));
        if let Err(said) = written {
            says(&said, ENOSPC, &["no room", "free"]);
            return n - from;
        }
    }
    unreachable!("an endless store")
}

#[test]
fn a_full_store_refuses_writes_and_still_gives_space_back() {
    for reserve_bytes in [0, 4 * MIB] {
        let mut shell = store(32 * MIB, EngineConfig { reserve_bytes, ..EngineConfig::new(0) });
        let (a, b) = (shell.create(id(1), TIB), shell.create(id(2), TIB));
        for n in 0..100 {
            shell.write(b, n * 65536, &[n as u8 | 1; 65536]);
        }
        shell.must(Control::Snapshot { group: vec![(id(2), id(3))] });
        let taken = fill(&mut shell, a, 0);
        assert!(taken > 100, "{taken} pieces");
        // New versions were refused earlier, so that deleting is still possible.
        for control in [
            Control::Snapshot { group: vec![(id(1), id(4))] },
            Control::Clone { source: id(3), volume: id(5) },
            Control::CreateVolume { id: id(6), size: MIB },
        ] {
            says(&refused(&mut shell, control), ENOSPC, &["bytes are free", "too few for new volumes and generations"]);
        }
        for _ in 0..3 {
            assert!(fill(&mut shell, a, taken) <= 1, "it has room after all");
            shell.must(Control::Checkpoint);
        }
        // What is there is there, and can be flushed.
        assert_eq!(shell.read(a, (taken - 1) * 65536, 4096), [(taken - 1) as u8 | 1; 4096]);
        shell.ask(Request::Flush { export: a }).expect("flushed");
        // Space comes back by a discard ...
        shell.ask(Request::Discard { export: a, offset: 0, length: 50 * 65536, fua: false }).expect("discarded");
        shell.must(Control::Settle);
        let again = fill(&mut shell, a, 2 * taken);
        assert!((40..=60).contains(&again), "{again} pieces after a discard of 50");
        // ... and by deletions, of a generation alone and of a volume.
        shell.close(b);
        shell.must(Control::Destroy { id: id(2) });
        shell.must(Control::Destroy { id: id(3) });
        shell.must(Control::Settle);
        let again = fill(&mut shell, a, 3 * taken);
        assert!((85..=115).contains(&again), "{again} pieces after a deletion of 100");
        let mut shell = shell.reopen();
        let a = shell.export(id(1), true);
        assert_eq!(shell.read(a, 60 * 65536, 4096), [61; 4096]);
        assert_eq!(shell.stat().failed, None);
    }
}

#[test]
fn a_ring_that_is_full_makes_writers_wait_and_nothing_else() {
    let mut shell = Shell::open(formatted(64 * MIB, 64 * 4096), EngineConfig::new(64 * MIB));
    shell.random = Some(Random(5));
    let export = shell.create(id(1), 16 * MIB);
    let mut random = Random(6);
    // Far more at once than 64 blocks can take: half of them ask for a sync, and each sync ends a block.
    for round in 0..4u64 {
        let mut ids = Vec::new();
        for n in 0..500 {
            let data = Buf::copy_from(&block(round * 1000 + n));
            ids.push(shell.submit(Request::Write { export, offset: n * 4096, data, fua: random.below(2) == 0 }));
            if n % 4 == 0 {
                shell.step();
            }
        }
        let cut =
            shell.submit(Request::Control(Control::Snapshot { group: vec![(id(1), id(u128::from(round) + 10))] }));
        ids.into_iter().for_each(|id| drop(shell.wait(id).expect("written")));
        shell.wait(cut).expect("cut");
    }
    for n in [0, 250, 499] {
        assert_eq!(shell.read(export, n * 4096, 4096), block(3000 + n));
    }
    assert!(shell.stat().checkpoint > 4, "{:?}", shell.stat());
}

#[test]
fn a_megabyte_of_memory_is_slow_and_enough() {
    let config = EngineConfig { memory_bytes: MIB, ..EngineConfig::new(0) };
    let mut shell = store(256 * MIB, config);
    shell.random = Some(Random(8));
    let export = shell.create(id(1), TIB);
    let mut random = Random(9);
    let mut truth = std::collections::BTreeMap::new();
    for n in 1..6000 {
        let place = random.below(4000) * 60_000;
        shell.write(export, place * 4096, &block(n));
        truth.insert(place, n);
        if n % 1500 == 0 {
            shell.must(Control::Snapshot { group: vec![(id(1), id(100 + u128::from(n)))] });
        }
    }
    for (place, n) in &truth {
        assert_eq!(shell.read(export, place * 4096, 4096), block(*n));
    }
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    let (place, n) = truth.last_key_value().expect("written");
    assert_eq!(shell.read(export, place * 4096, 4096), block(*n));
}

#[test]
fn a_store_grows_under_load() {
    let mut config = EngineConfig::new(24 * MIB);
    config.device_can_grow = true;
    let mut shell = Shell::open(formatted(24 * MIB, MIB), config);
    shell.random = Some(Random(4));
    let export = shell.create(id(1), TIB);
    let (mut next, mut size) = (0u64, 24 * MIB);
    while next < 1500 {
        let ids: Vec<u64> = (0..20)
            .map(|n| shell.submit(request(export, (next + n) * 65536, &[(next + n) as u8 | 1; 65536])))
            .collect();
        size += 4 * MIB;
        shell.must(Control::GrowStore { size });
        ids.into_iter().for_each(|id| drop(shell.wait(id).expect("written")));
        next += 20;
    }
    assert_eq!(shell.stat().physical, size);
    shell.config.device_bytes = size;
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    for n in [0, 700, 1499] {
        assert_eq!(shell.read(export, n * 65536, 65536), [n as u8 | 1; 65536]);
    }
}

/// V10 by the sum of an era: discards that are each below its bound.
#[test]
fn many_discards_of_moderate_size_are_left_to_the_walk() {
    const VOLUME: u64 = 2048 * MIB;
    let mut shell = Shell::open(formatted(256 * MIB, 4 * MIB), EngineConfig::new(256 * MIB));
    let volume = shell.create(id(1), VOLUME);
    for leaf in 0..2048 {
        shell.write(volume, leaf * MIB, &block(leaf));
    }
    shell.must(Control::Checkpoint);
    let mut shell = shell.reopen();
    let volume = shell.export(id(1), true);
    let full = shell.stat();
    shell.write(volume, 5 * 4096, &block(7)); // stays: what is discarded begins behind it
    for at in (MIB..VOLUME).step_by(200 << 20) {
        let length = (200 * MIB).min(VOLUME - at);
        shell.ask(Request::Discard { export: volume, offset: at, length, fua: false }).expect("discarded");
    }
    let before = shell.device.reads.values().sum::<u64>();
    shell.must(Control::Checkpoint);
    let read = shell.device.reads.values().sum::<u64>() - before;
    assert!(read < 2 * 256 + 100, "one checkpoint read {read} blocks to free what was discarded");
    let listed = match shell.must(Control::List) {
        Reply::List(list) => list.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(listed, 1, "the generations are hidden");
    assert!(shell.stat().dying <= 1, "one is enough: {:?}", shell.stat());
    shell.must(Control::Settle);
    let after = shell.stat();
    assert!(full.used - after.used > 2 * 2040 * 4096, "{} bytes in use, {} before", after.used, full.used);
    let mut shell = shell.reopen();
    let volume = shell.export(id(1), true);
    assert_eq!(shell.read(volume, 0, 4096), block(0));
    assert_eq!(shell.read(volume, 5 * 4096, 4096), block(7));
    for leaf in [1, 200, 201, 1000, 2047] {
        assert_eq!(shell.read(volume, leaf * MIB, 4096), [0; 4096], "leaf {leaf}");
    }
}

#[test]
fn no_way_leads_to_more_versions_than_the_table_holds() {
    // A ring so large that it does not make for checkpoints.
    let config = EngineConfig { versions_max: 200, ..EngineConfig::new(64 * MIB) };
    let mut shell = Shell::open(formatted(64 * MIB, 16 * MIB), config);
    let export = shell.create(id(1), TIB);
    shell.write(export, 0, &block(1));
    shell.close(export);
    let mut generations = 0;
    let full = loop {
        generations += 1;
        let group = vec![(id(1), id(1000 + generations))];
        match shell.control(Control::Snapshot { group }) {
            Ok(_) => {}
            Err(failure) => break failure,
        }
    };
    says(&full, ENOSPC, &["200 at most"]);
    shell.must(Control::Checkpoint);
    // A former head goes with the next checkpoint, and until then takes a slot.
    let mut reverts = 0;
    let revert = Control::Revert { volume: id(1), generation: id(1001) };
    let full = loop {
        match shell.control(revert.clone()) {
            Ok(_) => reverts += 1,
            Err(failure) => break failure,
        }
        assert!(reverts <= 200, "as many as one likes");
    };
    says(&full, ENOSPC, &["200 versions", "200 at most"]);
    assert!(reverts >= 100, "a reserve for volumes that are there: {reverts}");
    says(&refused(&mut shell, Control::Resize { id: id(1), size: MIB }), ENOSPC, &["200 at most"]);
    // A guest's discard is not refused.
    let export = shell.export(id(1), true);
    shell.ask(Request::Discard { export, offset: 0, length: TIB, fua: true }).expect("discarded");
    assert_eq!(shell.read(export, 0, 4096), [0; 4096]);
    shell.close(export);
    shell.must(Control::Settle);
    shell.must(revert);
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 0, 4096), block(1));
}
