//! The journal's ring: it wraps, and nothing that recovery needs is written over.

mod shell;

use shell::{MIB, Random, Shell, block, formatted, id};
use tanada_disk::{Buf, DiskOp};
use tanada_engine::{Control, EngineConfig, Request};

fn small(journal_blocks: u64) -> Shell {
    Shell::open(formatted(64 * MIB, journal_blocks * 4096), EngineConfig::new(64 * MIB))
}

#[test]
fn opening_again_and_again_does_not_wrap_the_ring_over_its_start() {
    let mut shell = small(64);
    let export = shell.create(id(1), 4 * MIB);
    shell.write(export, 0, &block(1));
    shell.ask(Request::Flush { export }).expect("flushed");
    for n in 0..200 {
        shell = shell.reopen();
        let export = shell.export(id(1), true);
        assert_eq!(shell.read(export, 0, 4096), block(1), "after {n} restarts");
    }
}

#[test]
fn a_small_ring_turns_over_under_load() {
    let mut shell = small(64);
    shell.random = Some(Random(3));
    let export = shell.create(id(1), 16 * MIB);
    let mut random = Random(9);
    let mut last = std::collections::BTreeMap::new();
    for n in 0..3000 {
        let place = random.below(4096);
        shell.write(export, place * 4096, &block(n));
        last.insert(place, n);
    }
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    for (place, n) in last {
        assert_eq!(shell.read(export, place * 4096, 4096), block(n));
    }
    assert!(shell.stat().checkpoint > 20);
}

/// Where only single blocks are free, a large write becomes a device write for each of them, and the records of those that
/// end one by one need a journal block each: more of them than the ring has.
#[test]
fn a_large_write_into_single_free_blocks_leaves_the_start_of_a_small_ring_alone() {
    let (bytes, journal_blocks) = (24 * MIB, 64);
    let mut shell = Shell::open(formatted(bytes, journal_blocks * 4096), EngineConfig::new(bytes));
    let export = shell.create(id(1), 64 * MIB);
    let mut full = 0;
    let mut write = |shell: &mut Shell| {
        let data = Buf::copy_from(&block(full));
        full += 1;
        shell.ask(Request::Write { export, offset: (full - 1) * 4096, data, fua: false }).is_ok()
    };
    while write(&mut shell) {}
    for n in (1..full).step_by(2) {
        shell.ask(Request::Discard { export, offset: n * 4096, length: 4096, fua: false }).expect("discarded");
    }
    (0..3).for_each(|_| drop(shell.must(Control::Checkpoint)));

    let large: Vec<u8> = (0..256).flat_map(|n| block(10_000 + n)).collect();
    let request = Request::Write { export, offset: 32 * MIB, data: Buf::copy_from(&large), fua: false };
    let answer = shell.submit(request);
    let single = |op: &DiskOp| matches!(op, DiskOp::Write { at, .. } if *at >= 4 * MIB + journal_blocks * 4096);
    let (mut held, mut together) = (Vec::new(), 0);
    while shell.step() || !held.is_empty() {
        held.extend(std::iter::from_fn(|| shell.hold(single)));
        together = together.max(held.len());
        if !held.is_empty() {
            shell.let_go(held.remove(0));
        }
    }
    shell.wait(answer).expect("written");
    assert!(together > 16, "{together} device writes at once: the free blocks are not single");
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert!(shell.read(export, 32 * MIB, MIB as u32) == large);
}

#[test]
fn a_journal_write_that_takes_longer_than_a_round_keeps_its_place() {
    let mut shell = small(64);
    let export = shell.create(id(1), 4 * MIB);
    let place = |op: &DiskOp| match op {
        DiskOp::Write { at, .. } if (4 * MIB..4 * MIB + 64 * 4096).contains(at) => Some(*at),
        _ => None,
    };
    let submit = |shell: &mut Shell, n: u64| {
        let request = Request::Write { export, offset: n * 4096, data: Buf::copy_from(&block(n)), fua: false };
        shell.submit(request)
    };
    let mut answers = vec![submit(&mut shell, 0)];
    let late = loop {
        assert!(shell.step(), "the journal is written");
        if let Some(held) = shell.hold(|op| place(op).is_some()) {
            break held;
        }
    };
    let taken = place(&late.1);
    for n in 1..200 {
        answers.push(submit(&mut shell, n));
        for _ in 0..4 {
            shell.step();
            assert!(shell.queued_ops().all(|op| place(op) != taken), "write {n} reaches the place of one in flight");
        }
    }
    shell.let_go(late);
    answers.into_iter().for_each(|answer| assert!(shell.wait(answer).is_ok()));
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    (0..200).for_each(|n| assert!(shell.read(export, n * 4096, 4096) == block(n), "write {n}"));
}
