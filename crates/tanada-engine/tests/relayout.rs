//! Scattered blocks are brought together by those who read them, and only where that is safe (V12).

mod shell;

use shell::{MIB, Random, Shell, block, formatted, id};
use tanada_disk::{Buf, DiskOp};
use tanada_engine::{Control, EngineConfig, ExportId, Request};

const BLOCKS: u64 = 128;
const HALF: u64 = BLOCKS / 2;

fn opened() -> Shell {
    let config = EngineConfig { relayout_stream_bytes: 0, ..EngineConfig::new(64 * MIB) };
    Shell::open(formatted(64 * MIB, MIB), config)
}

/// Every block overwritten in a random order, so that neighbours are nowhere neighbours.
fn scatter(shell: &mut Shell, export: ExportId, salt: u64) {
    let mut places: Vec<u64> = (0..BLOCKS).collect();
    let mut random = Random(salt);
    for n in (1..places.len()).rev() {
        places.swap(n, random.below(n as u64 + 1) as usize);
    }
    for place in places {
        shell.write(export, place * 4096, &block(salt * 1000 + place));
    }
}

fn read_all(shell: &mut Shell, export: ExportId) -> Vec<u8> {
    // The clock moves on, so that there is a budget.
    shell.now += 1_000_000;
    let bytes: Vec<u8> = (0..BLOCKS / 32).flat_map(|n| shell.read(export, n * 32 * 4096, 32 * 4096)).collect();
    while shell.step() && shell.queued() > 0 {}
    bytes
}

fn expected(salt: u64) -> Vec<u8> {
    (0..BLOCKS).flat_map(|place| block(salt * 1000 + place)).collect()
}

#[test]
fn what_a_stream_reads_scattered_is_together_the_next_time() {
    let mut shell = opened();
    let export = shell.create(id(1), 4 * MIB);
    scatter(&mut shell, export, 1);
    assert_eq!(read_all(&mut shell, export), expected(1));
    assert_eq!(shell.stat().moved, BLOCKS * 4096);
    assert_eq!(read_all(&mut shell, export), expected(1));
    assert_eq!(shell.stat().moved, BLOCKS * 4096, "nothing is left to bring together");
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(read_all(&mut shell, export), expected(1), "replayed like any other write");
    shell.must(Control::Checkpoint);
    shell.must(Control::Checkpoint);
    assert_eq!(shell.usage(id(1)).mapped, BLOCKS * 4096);
    assert_eq!(shell.stat().unreleased, 0);
}

#[test]
fn it_can_be_switched_off() {
    let config = EngineConfig { relayout_bytes_per_second: 0, relayout_stream_bytes: 0, ..EngineConfig::new(64 * MIB) };
    let mut shell = Shell::open(formatted(64 * MIB, MIB), config);
    let export = shell.create(id(1), 4 * MIB);
    scatter(&mut shell, export, 1);
    read_all(&mut shell, export);
    assert_eq!(shell.stat().moved, 0);
}

#[test]
fn what_a_generation_holds_stays_where_it_is() {
    let mut shell = opened();
    let export = shell.create(id(1), 4 * MIB);
    scatter(&mut shell, export, 1);
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    read_all(&mut shell, export);
    assert_eq!(shell.stat().moved, 0);
    scatter(&mut shell, export, 2);
    assert_eq!(read_all(&mut shell, export), expected(2));
    assert_eq!(shell.stat().moved, BLOCKS * 4096, "what was written since is the head's own");
    let generation = shell.export(id(2), false);
    assert_eq!(read_all(&mut shell, generation), expected(1));
}

fn is_move(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { parts, .. } if parts.iter().map(|part| part.len() as u64).sum::<u64>() == HALF * 4096)
}

/// Submits a read of the first half, goes on until moves are on their way to the device, and lets `act` happen before they
/// end.
fn meanwhile(shell: &mut Shell, export: ExportId, act: impl FnOnce(&mut Shell)) {
    shell.now += 1_000_000;
    let read = shell.submit(Request::Read { export, offset: 0, length: (HALF * 4096) as u32 });
    while !shell.queued_ops().any(is_move) {
        assert!(shell.step(), "no move was begun");
    }
    act(shell);
    shell.wait(read).expect("read");
    while shell.step() && shell.queued() > 0 {}
}

/// Free space once all that was dropped is released.
fn free_at_rest(shell: &mut Shell) -> u64 {
    shell.must(Control::Checkpoint);
    shell.must(Control::Checkpoint);
    while shell.stat().unreleased > 0 {
        shell.step();
    }
    shell.stat().free
}

#[test]
fn a_snapshot_that_comes_between_keeps_its_blocks() {
    let mut shell = opened();
    let export = shell.create(id(1), 4 * MIB);
    scatter(&mut shell, export, 1);
    let free = free_at_rest(&mut shell);
    meanwhile(&mut shell, export, |shell| {
        let held = shell.hold(is_move).expect("a move is in flight");
        shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
        shell.let_go(held);
    });
    assert_eq!(shell.stat().moved, 0);
    let lost = free.saturating_sub(free_at_rest(&mut shell));
    assert!(lost < HALF * 4096 / 2, "the new run is given back; {lost} bytes are gone");
    assert_eq!(read_all(&mut shell, export), expected(1));
}

#[test]
fn a_write_that_comes_between_waits_and_wins() {
    let mut shell = opened();
    let export = shell.create(id(1), 4 * MIB);
    scatter(&mut shell, export, 1);
    let mut writes = Vec::new();
    meanwhile(&mut shell, export, |shell| {
        for place in [0, 27] {
            let data = Buf::copy_from(&block(5));
            writes.push(shell.submit(Request::Write { export, offset: place * 4096, data, fua: false }));
        }
    });
    writes.into_iter().for_each(|write| drop(shell.wait(write).expect("written")));
    assert_eq!(shell.stat().moved, HALF * 4096);
    let bytes = read_all(&mut shell, export);
    assert!(bytes[..4096] == block(5)[..] && bytes[27 * 4096..28 * 4096] == block(5)[..]);
    assert!(bytes[4096..27 * 4096] == expected(1)[4096..27 * 4096]);
}

#[test]
fn a_move_that_fails_changes_nothing() {
    let mut shell = opened();
    let export = shell.create(id(1), 4 * MIB);
    scatter(&mut shell, export, 1);
    shell.device.fail = Some(('w', 1));
    assert_eq!(read_all(&mut shell, export), expected(1));
    assert_eq!(shell.stat().moved, (BLOCKS - 32) * 4096);
    shell.device.fail = None;
    assert_eq!(read_all(&mut shell, export), expected(1));
}
