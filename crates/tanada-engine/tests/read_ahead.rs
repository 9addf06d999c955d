//! Guests that read in order find the next blocks read already, and never anything but what they wrote last.

mod shell;

use shell::{MIB, Shell, block, bytes_of, formatted, id};
use tanada_disk::DiskOp;
use tanada_engine::{Control, EngineConfig, ExportId, Reply, Request};

const BLOCKS: u64 = 512;
const PIECE: u64 = 32 * 4096;

fn opened() -> Shell {
    let config = EngineConfig { relayout_bytes_per_second: 0, ..EngineConfig::new(64 * MIB) };
    Shell::open(formatted(64 * MIB, MIB), config)
}

fn filled(shell: &mut Shell, id_number: u128) -> ExportId {
    let export = shell.create(id(id_number), 4 * MIB);
    for place in 0..BLOCKS {
        shell.write(export, place * 4096, &block(place));
    }
    export
}

fn expected(offset: u64, length: u64) -> Vec<u8> {
    (offset / 4096..(offset + length) / 4096).flat_map(block).collect()
}

fn finish(shell: &mut Shell) {
    while shell.queued() > 0 {
        shell.step();
    }
}

/// Reads the first MiB in order; what comes next is read ahead then.
fn stream(shell: &mut Shell, export: ExportId) {
    for n in 0..8 {
        assert!(shell.read(export, n * PIECE, PIECE as u32) == expected(n * PIECE, PIECE));
    }
    finish(shell);
}

/// What a guest reads, and how many reads were answered from what had been read ahead.
fn read_and_count(shell: &mut Shell, export: ExportId, offset: u64, length: u64) -> (Vec<u8>, u64) {
    let before = shell.stat().read_ahead;
    let bytes = shell.read(export, offset, length as u32);
    (bytes, shell.stat().read_ahead - before)
}

#[test]
fn a_stream_is_answered_from_memory_and_others_are_not() {
    let mut shell = opened();
    let export = filled(&mut shell, 1);
    stream(&mut shell, export);
    let (bytes, hits) = read_and_count(&mut shell, export, 8 * PIECE, PIECE);
    assert!((bytes == expected(8 * PIECE, PIECE), hits) == (true, 1), "{hits} hits");
    let (bytes, hits) = read_and_count(&mut shell, export, 9 * PIECE, PIECE);
    assert!((bytes == expected(9 * PIECE, PIECE), hits) == (true, 1), "{hits} hits");
    let other = filled(&mut shell, 2);
    for n in [5, 1, 7, 3, 4, 6, 0, 2] {
        let (bytes, hits) = read_and_count(&mut shell, other, n * PIECE, PIECE);
        assert!((bytes == expected(n * PIECE, PIECE), hits) == (true, 0), "{hits} hits");
    }
}

#[test]
fn parts_of_what_was_read_ahead_are_given_too_at_any_offset() {
    let mut shell = opened();
    let export = filled(&mut shell, 1);
    stream(&mut shell, export);
    let all = expected(8 * PIECE, PIECE);
    let (bytes, hits) = read_and_count(&mut shell, export, 8 * PIECE, 512);
    assert!((bytes == all[..512].to_vec(), hits) == (true, 1), "{hits} hits");
    let (bytes, hits) = read_and_count(&mut shell, export, 8 * PIECE + 512, 9000);
    assert!((bytes == all[512..9512].to_vec(), hits) == (true, 1), "{hits} hits");
}

#[test]
fn what_was_written_since_is_what_is_read() {
    let mut shell = opened();
    let export = filled(&mut shell, 1);
    stream(&mut shell, export);
    shell.write(export, 8 * PIECE + 5 * 4096, &block(9000));
    shell.ask(Request::Discard { export, offset: 9 * PIECE, length: 4096, fua: false }).expect("discarded");
    let mut after = expected(8 * PIECE, 2 * PIECE);
    after[5 * 4096..6 * 4096].copy_from_slice(&block(9000));
    after[PIECE as usize..PIECE as usize + 4096].fill(0);
    let (bytes, hits) = read_and_count(&mut shell, export, 8 * PIECE, PIECE);
    assert!((bytes == after[..PIECE as usize].to_vec(), hits) == (true, 0), "{hits} hits");
    let (bytes, hits) = read_and_count(&mut shell, export, 9 * PIECE, PIECE);
    assert!((bytes == after[PIECE as usize..].to_vec(), hits) == (true, 0), "{hits} hits");
}

#[test]
fn a_revert_and_a_checkpoint_end_what_was_read_ahead() {
    let mut shell = opened();
    let export = filled(&mut shell, 1);
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.write(export, 8 * PIECE, &block(9000));
    stream(&mut shell, export);
    let generation = shell.export(id(2), false);
    stream(&mut shell, generation);
    shell.must(Control::Checkpoint);
    assert_eq!(shell.stat().unreleased, 0, "nobody keeps the checkpoint's blocks waiting");
    let (bytes, hits) = read_and_count(&mut shell, generation, 8 * PIECE, PIECE);
    assert!((bytes == expected(8 * PIECE, PIECE), hits) == (true, 0), "{hits} hits");
    finish(&mut shell);
    let (bytes, hits) = read_and_count(&mut shell, generation, 9 * PIECE, PIECE);
    assert_eq!((bytes, hits), (expected(9 * PIECE, PIECE), 1), "and then it goes on");
    shell.close(export);
    shell.must(Control::Revert { volume: id(1), generation: id(2) });
    let export = shell.export(id(1), true);
    assert!(shell.read(export, 8 * PIECE, PIECE as u32) == expected(8 * PIECE, PIECE));
}

#[test]
fn who_comes_while_it_is_read_waits_for_it() {
    let mut shell = opened();
    let export = filled(&mut shell, 1);
    let read = |n: u64| Request::Read { export, offset: n * PIECE, length: PIECE as u32 };
    for n in 0..3 {
        shell.ask(read(n)).expect("read");
    }
    let fourth = shell.submit(read(3));
    shell.step();
    let is_read = |op: &DiskOp| matches!(op, DiskOp::Read { .. });
    let mut held: Vec<_> = std::iter::from_fn(|| shell.hold(is_read)).collect();
    assert!(held.len() > 1, "its own, and what comes next");
    shell.let_go(held.remove(0));
    shell.wait(fourth).expect("read");
    let asked = shell.submit(read(4));
    shell.step();
    assert!(!shell.replies.contains_key(&asked), "the device has not answered");
    held.into_iter().for_each(|op| shell.let_go(op));
    match shell.wait(asked) {
        Ok(Reply::Data(data)) => assert!(bytes_of(&data) == expected(4 * PIECE, PIECE)),
        other => panic!("{other:?}"),
    }
    let at = shell.device.blocks.iter().find(|(_, bytes)| **bytes == block(4 * 32)).map(|(at, _)| *at);
    assert_eq!(shell.device.reads.get(&at.expect("it was written")), Some(&1), "nothing is read twice");
}

#[test]
fn damage_that_was_read_ahead_is_told_to_who_asks_for_it() {
    let mut shell = opened();
    let export = filled(&mut shell, 1);
    let lost = shell.device.blocks.values_mut().find(|bytes| **bytes == block(8 * 32 + 3));
    lost.expect("it was written")[77] ^= 4;
    stream(&mut shell, export);
    let failure = shell.ask(Request::Read { export, offset: 8 * PIECE, length: PIECE as u32 }).expect_err("damaged");
    assert!(failure.message.contains(&format!("{}", 8 * PIECE + 3 * 4096)), "{failure}");
    assert!(shell.read(export, 9 * PIECE, PIECE as u32) == expected(9 * PIECE, PIECE));
}

#[test]
fn memory_is_bounded_and_idle_streams_give_way() {
    let config = EngineConfig { relayout_bytes_per_second: 0, memory_bytes: 8 * MIB, ..EngineConfig::new(64 * MIB) };
    let mut shell = Shell::open(formatted(64 * MIB, MIB), config);
    let (first, second) = (filled(&mut shell, 1), filled(&mut shell, 2));
    stream(&mut shell, first);
    stream(&mut shell, second);
    let hits = |shell: &mut Shell, export, n: u64| {
        let (bytes, hits) = read_and_count(shell, export, n * PIECE, PIECE);
        assert!(bytes == expected(n * PIECE, PIECE));
        finish(shell);
        hits
    };
    assert_eq!((hits(&mut shell, second, 8), hits(&mut shell, first, 8)), (0, 1), "all there is belongs to the first");
    shell.now += 200_000;
    assert_eq!((hits(&mut shell, second, 9), hits(&mut shell, second, 10)), (0, 1), "the first has stopped reading");
}

#[test]
fn what_nobody_asks_for_in_time_is_let_go() {
    for (waited, expected_hits) in [(900_000, 1), (1_000_000, 0)] {
        let mut shell = opened();
        let export = filled(&mut shell, 1);
        while shell.step() {}
        stream(&mut shell, export);
        shell.now += waited;
        shell.step();
        let (bytes, hits) = read_and_count(&mut shell, export, 8 * PIECE, PIECE);
        assert!((bytes == expected(8 * PIECE, PIECE), hits) == (true, expected_hits), "{hits} hits");
    }
}

#[test]
fn who_reads_a_part_here_and_a_part_there_has_little_read_for_nothing() {
    let mut shell = opened();
    let export = filled(&mut shell, 1);
    let read_blocks = |shell: &Shell| shell.device.reads.values().sum::<u64>();
    let before = read_blocks(&shell);
    for n in 0..4 {
        shell.read(export, n * PIECE, PIECE as u32);
    }
    finish(&mut shell);
    assert_eq!(read_blocks(&shell) - before, 128 + 64, "half as much as was read in order");
}
