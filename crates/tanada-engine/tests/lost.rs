//! A map node that cannot be read costs what it mapped, in the version that goes on from it, and nothing else: the
//! store stays writable, reads of what is lost name the place, and writing over it heals.

mod shell;

use shell::{Device, MIB, Shell, block, formatted, id};
use tanada_disk::Buf;
use tanada_engine::{Alert, Control, DamagedPart, EngineConfig, ExportId, Failure, Request, ScrubMark};
use tanada_format::check::{CheckOptions, ReadAt, check};
use tanada_format::{Geometry, Pointer};

const EIO: i32 = 5;

/// The device as the checker reads it.
struct Image<'a>(&'a Device);

impl ReadAt for Image<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        for (n, to) in bytes.chunks_mut(4096).enumerate() {
            match self.0.blocks.get(&(offset / 4096 + n as u64)) {
                Some(from) => to.copy_from_slice(&from[..to.len()]),
                None => to.fill(0),
            }
        }
        Ok(())
    }
}

fn findings(shell: &Shell) -> Vec<String> {
    check(&Image(&shell.device), CheckOptions { data: true }).expect("a store").findings
}

/// Volume 1 with its blocks 0..40, a generation 2 below it, blocks 20..60 of the volume written anew, something at
/// 300 MiB; volume 3 beside them. Everything in the trees, nothing in memory.
fn store() -> (Shell, ExportId, ExportId) {
    let mut shell = Shell::open(formatted(64 * MIB, MIB), EngineConfig::new(64 * MIB));
    let (a, b) = (shell.create(id(1), 600 * MIB), shell.create(id(3), MIB));
    (0..40).for_each(|n| shell.write(a, n * 4096, &block(n)));
    (0..10).for_each(|n| shell.write(b, n * 4096, &block(500 + n)));
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    (20..60).for_each(|n| shell.write(a, n * 4096, &block(100 + n)));
    shell.write(a, 300 * MIB, &block(900));
    shell.must(Control::Checkpoint);
    assert_eq!(findings(&shell), [""; 0]);
    fresh(shell)
}

/// Starts the store anew.
fn fresh(shell: Shell) -> (Shell, ExportId, ExportId) {
    let mut shell = shell.reopen();
    let (a, b) = (shell.export(id(1), true), shell.export(id(3), true));
    (shell, a, b)
}

/// The newest block of the device with a pointer to `target`.
fn parent_of(device: &Device, target: u64) -> u64 {
    let leads_there = |bytes: &Vec<u8>| {
        let (pointers, _) = bytes.as_chunks::<16>();
        pointers.iter().filter_map(|bytes| Pointer::decode(bytes).ok()).any(|pointer| pointer.block() == target)
    };
    let geometry = Geometry::new(64 * MIB / 4096, 256).expect("valid");
    let report = check(&Image(device), CheckOptions::default()).expect("a store");
    let mut nodes = device.blocks.iter().rev().filter(|(at, _)| geometry.is_allocatable(**at) && report.uses(**at));
    *nodes.find(|(_, bytes)| leads_there(bytes)).expect("a node leads there").0
}

/// The node of volume 1 that is `level` levels above its block 59.
fn node_above(device: &Device, level: u8) -> u64 {
    let data = *device.blocks.iter().find(|(_, bytes)| **bytes == block(159)).expect("it is on the device").0;
    (0..=level).fold(data, |below, _| parent_of(device, below))
}

fn damage(shell: &mut Shell, level: u8) {
    let at = node_above(&shell.device, level);
    shell.device.blocks.get_mut(&at).expect("a node")[99] ^= 0x10;
}

fn refused(shell: &mut Shell, request: Request) -> Failure {
    shell.ask(request).map_or_else(|failure| failure, |reply| panic!("it is lost, and gave {reply:?}"))
}

/// The place is lost: reads and changes of parts say so, with its name.
fn is_lost(shell: &mut Shell, export: ExportId, place: u64) {
    let offset = place * 4096;
    for request in [
        Request::Read { export, offset, length: 4096 },
        Request::Write { export, offset: offset + 512, data: Buf::copy_from(&[7; 512]), fua: false },
    ] {
        shell.alerts.clear();
        let said = refused(shell, request);
        assert_eq!(said.errno, EIO, "{said}");
        assert!(said.message.contains(&format!("{} is damaged at offset {offset}", id(1))), "{said}");
        let named = |alert: &Alert| matches!(alert, Alert::Damage { volume, offset: at, .. } if (*volume, *at) == (id(1), offset));
        assert!(shell.alerts.iter().any(named), "{:?}", shell.alerts);
    }
}

/// Nobody else notices, and the store takes changes.
fn others_are_well(shell: &mut Shell, b: ExportId, n: u64) {
    assert_eq!(shell.stat().failed, None);
    assert!(!shell.alerts.iter().any(|alert| matches!(alert, Alert::ReadOnly { .. })), "{:?}", shell.alerts);
    assert_eq!(shell.read(b, 4096, 4096), block(501));
    shell.write(b, 9 * 4096, &block(n));
    assert_eq!(shell.read(b, 9 * 4096, 4096), block(n));
}

#[test]
fn a_damaged_leaf_that_guests_write_to_loses_what_it_mapped_and_no_more() {
    let (mut shell, a, b) = store();
    damage(&mut shell, 0);
    shell.write(a, 3 * 4096, &block(700));
    shell.write(a, 50 * 4096, &block(701));
    shell.must(Control::Checkpoint);
    let named = |alert: &&Alert| matches!(alert, Alert::Damage { volume, offset: 0, .. } if *volume == id(1));
    assert_eq!(shell.alerts.iter().filter(named).count(), 1, "{:?}", shell.alerts);
    others_are_well(&mut shell, b, 1);
    assert_eq!(shell.read(a, 3 * 4096, 4096), block(700));
    let (mut shell, a, _) = fresh(shell);
    assert_eq!(shell.read(a, 3 * 4096, 4096), block(700));
    assert_eq!(shell.read(a, 50 * 4096, 4096), block(701));
    assert_eq!(shell.read(a, 300 * MIB, 4096), block(900));
    for place in [0, 2, 4, 59, 255] {
        is_lost(&mut shell, a, place);
    }
    assert_eq!(shell.read(a, 256 * 4096, 4096), [0; 4096], "the next leaf's");
    // The generation has its own leaf, which is whole.
    let generation = shell.export(id(2), false);
    (0..40).for_each(|n| assert_eq!(shell.read(generation, n * 4096, 4096), block(n)));

    shell.write(a, 4 * 4096, &block(702));
    shell.ask(Request::Discard { export: a, offset: 59 * 4096, length: 4096, fua: false }).expect("discarded");
    shell.must(Control::Checkpoint);
    let (mut shell, a, b) = fresh(shell);
    assert_eq!(shell.read(a, 4 * 4096, 4096), block(702), "written over");
    assert_eq!(shell.read(a, 59 * 4096, 4096), [0; 4096], "unmapped");
    is_lost(&mut shell, a, 5);
    others_are_well(&mut shell, b, 2);
}

#[test]
fn what_is_lost_is_found_by_the_checker_and_the_scrub() {
    let (mut shell, a, _) = store();
    damage(&mut shell, 0);
    shell.write(a, 3 * 4096, &block(700));
    shell.must(Control::Checkpoint);
    let found = findings(&shell);
    for lost in ["3 blocks from place 0 on are lost", "252 blocks from place 4 on are lost"] {
        assert_eq!(found.iter().filter(|text| text.contains(lost)).count(), 1, "{found:#?}");
    }
    assert!(found.iter().all(|text| text.contains("lost") || text.contains("leaked")), "{found:#?}");
    let before = shell.alerts.len();
    shell.must(Control::ScrubStart { rate: 1 << 40, from: ScrubMark::default(), damage: Vec::new() });
    let status = loop {
        assert!(shell.step(), "the scrub does not end");
        if let Some(Alert::ScrubFinished(status)) = shell.alerts[before..].last() {
            break status.clone();
        }
    };
    let parts: Vec<_> = status.damage.iter().map(|one| (one.part, one.volume, one.offset, one.length)).collect();
    let (start, behind) = (3 * 4096, MIB - 4 * 4096);
    assert_eq!(
        parts,
        [(DamagedPart::Data, Some(id(1)), 0, start), (DamagedPart::Data, Some(id(1)), 4 * 4096, behind)],
        "{status:?}"
    );
}

#[test]
fn inner_nodes_and_roots_too() {
    for level in 1..5 {
        let (mut shell, a, b) = store();
        damage(&mut shell, level);
        shell.write(a, 3 * 4096, &block(700));
        shell.must(Control::Checkpoint);
        others_are_well(&mut shell, b, 1);
        let (mut shell, a, b) = fresh(shell);
        assert_eq!(shell.read(a, 3 * 4096, 4096), block(700), "level {level}");
        is_lost(&mut shell, a, 4);
        is_lost(&mut shell, a, 256 * 255);
        match level {
            1 => assert_eq!(shell.read(a, 300 * MIB, 4096), block(900)),
            _ => is_lost(&mut shell, a, 300 * 256),
        }
        // Below what is lost trees grow anew, and all of it may be unmapped at once.
        shell.write(a, 299 * MIB, &block(703));
        shell.must(Control::Checkpoint);
        others_are_well(&mut shell, b, 3);
        let (mut shell, a, _) = fresh(shell);
        assert_eq!(shell.read(a, 299 * MIB, 4096), block(703));
        shell.ask(Request::Discard { export: a, offset: 0, length: 600 * MIB, fua: false }).expect("discarded");
        shell.must(Control::Checkpoint);
        shell.must(Control::Settle);
        let (mut shell, a, b) = fresh(shell);
        for offset in [0, 3 * 4096, 299 * MIB, 300 * MIB] {
            assert_eq!(shell.read(a, offset, 4096), [0; 4096], "level {level}, offset {offset}");
        }
        others_are_well(&mut shell, b, 2);
        shell.close(a);
        shell.must(Control::Destroy { id: id(1) });
        shell.must(Control::Destroy { id: id(2) });
        shell.must(Control::Settle);
        let found = findings(&shell);
        assert!(found.iter().all(|text| text.contains("leaked")), "{found:#?}");
    }
}

#[test]
fn a_medium_with_a_bad_moment_loses_nothing() {
    let (mut shell, a, _) = store();
    let at = node_above(&shell.device, 0);
    let whole = shell.device.blocks[&at].clone();
    damage(&mut shell, 0);
    shell.write(a, 3 * 4096, &block(700));
    let asked = shell.submit(Request::Control(Control::Checkpoint));
    let before = shell.device.reads.get(&at).copied().unwrap_or(0);
    while shell.device.reads.get(&at).copied().unwrap_or(0) < before + 3 {
        assert!(shell.step(), "it is not read again");
    }
    shell.device.blocks.insert(at, whole);
    shell.wait(asked).expect("a checkpoint");
    let (mut shell, a, _) = fresh(shell);
    assert_eq!(shell.read(a, 3 * 4096, 4096), block(700));
    assert_eq!(shell.read(a, 59 * 4096, 4096), block(159));
    assert_eq!(findings(&shell), [""; 0]);
}
