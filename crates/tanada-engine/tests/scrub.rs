//! Scrubbing: planted rot is found and named, each block is read once, the rate is kept, work beside it does no harm.

mod shell;

use shell::{Device, MIB, Random, Shell, block, formatted, id};
use tanada_disk::Buf;
use tanada_engine::{
    Alert, Control, DamagedPart, EngineConfig, Reply, Request, ScrubDamage, ScrubMark, ScrubState, ScrubStatus,
};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::{Geometry, Pointer};

const FAST: u64 = 1 << 40;

fn store() -> Shell {
    Shell::open(formatted(64 * MIB, MIB), EngineConfig::new(64 * MIB))
}

fn start(shell: &mut Shell, rate: u64, from: ScrubMark) {
    shell.must(Control::ScrubStart { rate, from, damage: Vec::new() });
}

fn status(shell: &mut Shell) -> ScrubStatus {
    match shell.must(Control::ScrubStatus) {
        Reply::Scrub(status) => *status,
        other => panic!("{other:?}"),
    }
}

/// The report of the scrub that is running, at its end.
fn report(shell: &mut Shell) -> ScrubStatus {
    for _ in 0..2_000_000 {
        let finished = shell.alerts.iter().position(|alert| matches!(alert, Alert::ScrubFinished(_)));
        if let Some(at) = finished {
            let Alert::ScrubFinished(status) = shell.alerts.remove(at) else { unreachable!() };
            assert_eq!(status.state, ScrubState::Finished);
            return *status;
        }
        assert!(shell.step(), "nothing left to do, and the scrub has not ended");
    }
    panic!("the scrub does not end: {:?}", status(shell));
}

fn scrub(shell: &mut Shell) -> ScrubStatus {
    start(shell, FAST, ScrubMark::default());
    report(shell)
}

/// The block of the device with this content.
fn place_of(device: &Device, content: &[u8]) -> u64 {
    *device.blocks.iter().find(|(_, bytes)| *bytes == content).expect("the content is on the device").0
}

/// The block of the device with a pointer to `target`.
fn parent_of(device: &Device, target: u64) -> u64 {
    let leads_there = |bytes: &Vec<u8>| {
        let (pointers, _) = bytes.as_chunks::<16>();
        pointers.iter().filter_map(|bytes| Pointer::decode(bytes).ok()).any(|pointer| pointer.block() == target)
    };
    let geometry = Geometry::new(64 * MIB / 4096, 256).expect("valid");
    let mut nodes = device.blocks.iter().rev().filter(|(at, _)| geometry.is_allocatable(**at));
    *nodes.find(|(_, bytes)| leads_there(bytes)).expect("a node leads there").0
}

fn flip(device: &mut Device, block: u64) {
    device.blocks.get_mut(&block).expect("it is there")[99] ^= 0x10;
}

/// A volume (1) with a generation (2) below it and a clone (3) beside it, all with content of their own and shared.
fn family(shell: &mut Shell) {
    let volume = shell.create(id(1), 600 * MIB);
    for n in 0..40 {
        shell.write(volume, n * 15 * MIB, &[block(n), block(1000 + n)].concat());
    }
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.must(Control::Clone { source: id(2), volume: id(3) });
    let clone = shell.export(id(3), true);
    for n in 0..20 {
        shell.write(volume, n * 30 * MIB, &block(2000 + n));
        shell.write(clone, n * 15 * MIB + 8192, &block(3000 + n));
    }
    shell.close(volume);
    shell.close(clone);
    shell.must(Control::Checkpoint);
}

#[test]
fn everything_is_read_once() {
    let mut shell = store();
    family(&mut shell);
    let before = shell.device.reads.clone();
    let report = scrub(&mut shell);
    assert_eq!((report.damage.clone(), report.mark.damaged), (Vec::new(), 0));
    assert_eq!((report.bytes_done, report.seconds_left), (report.bytes_total, None));
    let reads: Vec<u64> =
        shell.device.reads.iter().filter(|(block, n)| before.get(block) != Some(n)).map(|r| *r.0).collect();
    for n in [0, 39, 1000, 1039, 2000, 2019, 3000, 3019] {
        assert!(reads.contains(&place_of(&shell.device, &block(n))), "content {n} was not read");
    }
    let more_than_once = |at: &&u64| shell.device.reads[at] - before.get(at).copied().unwrap_or(0) > 1;
    let again: Vec<&u64> = reads.iter().filter(more_than_once).collect();
    assert!(again.is_empty(), "read more than once: {again:?}");
    assert_eq!(report.mark.blocks, reads.len() as u64);
    // 120 blocks of data, and the nodes above them.
    assert!(report.mark.blocks > 120 + 60, "{report:?}");
}

#[test]
fn planted_rot_is_found_and_named() {
    let mut shell = store();
    family(&mut shell);
    let shared = place_of(&shell.device, &block(1007));
    let own = place_of(&shell.device, &block(2003));
    let cloned = place_of(&shell.device, &block(3005));
    let leaf = parent_of(&shell.device, place_of(&shell.device, &block(1039)));
    let below_inner = parent_of(&shell.device, place_of(&shell.device, &block(3019)));
    let inner = parent_of(&shell.device, below_inner);
    for at in [shared, own, cloned, leaf, inner] {
        flip(&mut shell.device, at);
    }
    let report = scrub(&mut shell);
    let found = |block: u64| -> &ScrubDamage {
        report.damage.iter().find(|damage| damage.block == block).unwrap_or_else(|| panic!("{block}: {report:?}"))
    };
    let names = |damage: &ScrubDamage| (damage.volume, damage.generation, damage.offset, damage.length);
    assert_eq!(names(found(shared)), (Some(id(1)), Some(id(2)), 7 * 15 * MIB + 4096, 4096));
    assert_eq!(names(found(own)), (Some(id(1)), None, 3 * 30 * MIB, 4096));
    assert_eq!(names(found(cloned)), (Some(id(3)), None, 5 * 15 * MIB + 8192, 4096));
    assert_eq!(
        (found(leaf).part, found(leaf).offset, found(leaf).length),
        (DamagedPart::Map { level: 0 }, 585 * MIB, MIB)
    );
    assert_eq!((found(inner).part, found(inner).length), (DamagedPart::Map { level: 1 }, 256 * MIB));
    assert_eq!((report.damage.len(), report.mark.damaged), (5, 5));
    let told = |damage: &ScrubDamage| {
        shell.alerts.iter().any(|alert| {
            matches!(alert, Alert::Damage { volume, offset, .. }
                if Some(*volume) == damage.generation.or(damage.volume) && *offset == damage.offset)
        })
    };
    assert!(report.damage.iter().all(told), "{:?}", shell.alerts);
    assert!(found(own).message.contains("checksum"), "{report:?}");
}

#[test]
fn rot_in_what_holds_the_store_together_is_found() {
    let mut shell = store();
    family(&mut shell);
    // The scrub begins with a checkpoint, which would renew what changed: now nothing does.
    let geometry = Geometry::new(64 * MIB / 4096, 256).expect("valid");
    for block in [geometry.page_block(0, 0), geometry.page_block(0, 1)] {
        if shell.device.blocks.contains_key(&block) {
            flip(&mut shell.device, block);
        }
    }
    start(&mut shell, 4096, ScrubMark::default());
    while status(&mut shell).mark.blocks == 0 {
        shell.step();
    }
    // The second copies are not read yet, and the catalog neither.
    flip(&mut shell.device, SUPERBLOCK_AT[0][1]);
    flip(&mut shell.device, SUPERBLOCK_AT[1][1]);
    let tables = shell.device.blocks.clone();
    for (at, bytes) in tables.iter().filter(|(at, _)| geometry.is_allocatable(**at)) {
        if bytes.windows(16).any(|word| word == id(3).as_bytes()) {
            flip(&mut shell.device, *at);
        }
    }
    let report = report(&mut shell);
    let parts: Vec<DamagedPart> = report.damage.iter().map(|damage| damage.part).collect();
    assert!(parts.contains(&DamagedPart::Superblock), "{report:?}");
    assert!(parts.contains(&DamagedPart::Catalog), "{report:?}");
    assert!(parts.contains(&DamagedPart::Bitmap { region: 0 }), "{report:?}");
    assert_eq!(parts.len(), 3, "{report:?}");
}

#[test]
fn the_rate_is_kept_and_guests_come_first() {
    let mut shell = store();
    family(&mut shell);
    let rate = 100 * 4096;
    let from = shell.now;
    start(&mut shell, rate, ScrubMark::default());
    let report = report(&mut shell);
    let alone = shell.now - from;
    let due = report.bytes_done * 1_000_000 / rate;
    assert!((due..due + due / 5).contains(&(alone + 20_000)), "{alone} us for {} bytes", report.bytes_done);
    assert!((rate * 4 / 5..=rate * 11 / 10).contains(&report.bytes_per_second), "{report:?}");

    let export = shell.export(id(1), false);
    let from = shell.now;
    start(&mut shell, rate, ScrubMark::default());
    while status(&mut shell).state == ScrubState::Running {
        shell.read(export, 0, 4096);
        shell.now += 500;
    }
    assert!(shell.now - from > 3 * alone, "{} us beside a guest, {alone} alone", shell.now - from);
}

#[test]
fn a_scrub_goes_on_from_its_mark_after_a_restart() {
    let mut shell = store();
    family(&mut shell);
    let whole = scrub(&mut shell).mark.blocks;
    start(&mut shell, 100 * 4096, ScrubMark::default());
    while status(&mut shell).mark.place < 300 * MIB / 4096 {
        assert!(shell.step());
    }
    let stopped = status(&mut shell);
    assert!(stopped.seconds_left.is_some() && stopped.bytes_done < stopped.bytes_total, "{stopped:?}");
    let mut shell = shell.reopen();
    let (left, right) = (place_of(&shell.device, &block(1003)), place_of(&shell.device, &block(1036)));
    flip(&mut shell.device, left);
    flip(&mut shell.device, right);
    let known = ScrubDamage {
        part: DamagedPart::Data,
        block: 5,
        volume: Some(id(1)),
        generation: None,
        offset: 0,
        length: 4096,
        message: "of old".to_owned(),
    };
    let from = ScrubMark { damaged: 1, ..stopped.mark };
    shell.must(Control::ScrubStart { rate: FAST, from, damage: vec![known.clone()] });
    let report = report(&mut shell);
    assert_eq!(report.damage.iter().map(|damage| damage.block).collect::<Vec<_>>(), [5, right]);
    assert_eq!((report.damage[0].clone(), report.mark.damaged), (known, 2));
    // The frame is verified twice, and what the restart wrote.
    assert!((whole..whole + 40).contains(&report.mark.blocks), "{} of {whole}", report.mark.blocks);
}

#[test]
fn one_at_a_time_and_wrong_rates_are_refused_with_words() {
    let mut shell = store();
    family(&mut shell);
    let slow = Control::ScrubStart { rate: 4096, from: ScrubMark::default(), damage: Vec::new() };
    let again = |shell: &mut Shell, control: Control| match shell.control(control) {
        Ok(Reply::Changed { changed }) => Ok(changed),
        Ok(other) => panic!("{other:?}"),
        Err(failure) => Err((failure.errno, failure.message)),
    };
    assert_eq!(again(&mut shell, slow.clone()), Ok(true));
    assert_eq!(again(&mut shell, slow.clone()), Ok(false));
    let faster = Control::ScrubStart { rate: 8192, from: ScrubMark::default(), damage: Vec::new() };
    let (errno, message) = again(&mut shell, faster).expect_err("one runs");
    assert!(errno == 16 && message.contains("4096"), "{message}");
    assert_eq!(again(&mut shell, Control::ScrubStop), Ok(true));
    assert_eq!(again(&mut shell, Control::ScrubStop), Ok(false));
    assert_eq!(status(&mut shell).state, ScrubState::Stopped);
    let nothing = Control::ScrubStart { rate: 100, from: ScrubMark::default(), damage: Vec::new() };
    let (errno, message) = again(&mut shell, nothing).expect_err("too slow");
    assert!(errno == 22 && message.contains("100 bytes") && message.contains("4096 or more"), "{message}");
    assert_eq!(again(&mut shell, slow), Ok(true));
    while shell.step() && status(&mut shell).mark.blocks < 10 {}
    assert!(shell.alerts.iter().all(|alert| !matches!(alert, Alert::Damage { .. })), "{:?}", shell.alerts);
}

/// Space turns over, generations come and go, and everything stays well.
#[test]
fn work_beside_a_scrub_raises_no_false_alarm() {
    for seed in 0..8 {
        let mut config = EngineConfig::new(32 * MIB);
        config.checkpoint_entries = 60;
        let mut shell = Shell::open(formatted(32 * MIB, MIB), config);
        shell.random = Some(Random(seed));
        let export = shell.create(id(1), 8 * MIB);
        let mut random = Random(seed + 100);
        let (mut next, mut scrubs, mut generations) = (1u64, 0, std::collections::VecDeque::new());
        start(&mut shell, 64 * MIB, ScrubMark::default());
        while scrubs < 3 {
            assert!(next < 100_000, "seed {seed}: the scrub does not get on: {:?}", status(&mut shell));
            let place = random.below(2000);
            shell.write(export, place * 4096, &block(next));
            if next.is_multiple_of(50) {
                generations.push_back(id(1000 + u128::from(next)));
                shell.must(Control::Snapshot { group: vec![(id(1), id(1000 + u128::from(next)))] });
            }
            if generations.len() > 3 {
                let oldest = generations.remove(random.below(3) as usize).expect("there are four");
                shell.must(Control::Destroy { id: oldest });
            }
            next += 1;
            if let Some(at) = shell.alerts.iter().position(|alert| matches!(alert, Alert::ScrubFinished(_))) {
                shell.alerts.remove(at);
                scrubs += 1;
                start(&mut shell, 64 * MIB, ScrubMark::default());
            }
        }
        let damage = shell.alerts.iter().find(|alert| matches!(alert, Alert::Damage { .. }));
        assert_eq!(damage, None, "seed {seed}");
        assert!(shell.stat().checkpoint > 20, "seed {seed}: nothing turned over: {:?}", shell.stat());
    }
}

#[test]
fn a_guest_that_meets_a_damaged_map_node_raises_the_alarm() {
    let mut shell = store();
    family(&mut shell);
    let mut shell = shell.reopen();
    let leaf = parent_of(&shell.device, place_of(&shell.device, &block(1039)));
    flip(&mut shell.device, leaf);
    let export = shell.export(id(2), false);
    let refused = shell.ask(Request::Read { export, offset: 585 * MIB + 4096, length: 4096 }).expect_err("damaged");
    assert_eq!(refused.errno, 5);
    let told = |alert: &Alert| matches!(alert, Alert::Damage { volume, message, .. } if *volume == id(2) && message.contains("map node"));
    assert!(shell.alerts.iter().any(told), "{:?}", shell.alerts);
    assert!(shell.ask(Request::Read { export, offset: 0, length: 4096 }).is_ok());
    let volume = shell.export(id(1), true);
    let patch =
        Request::Write { export: volume, offset: 585 * MIB + 4096, data: Buf::copy_from(&[1; 512]), fua: false };
    assert_eq!(shell.ask(patch).expect_err("what it would change cannot be read").errno, 5);
}
