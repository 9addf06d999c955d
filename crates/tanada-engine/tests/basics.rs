//! The main path: create, write, read, flush, snapshot, clone, revert, destroy, reopen.

mod shell;

use shell::{MIB, Shell, block, id};
use tanada_disk::Buf;
use tanada_engine::{Control, EngineConfig, Extent, ExtentKind, Reply, Request};

#[test]
fn what_is_written_is_read_before_and_after_a_checkpoint_and_a_restart() {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), 16 * MIB);
    shell.write(export, 0, &block(1));
    shell.write(export, 3 * MIB, &[block(2), block(3)].concat());
    shell.write(export, 4096 + 100, b"unaligned");
    let check = |shell: &mut Shell, export| {
        assert_eq!(shell.read(export, 0, 4096), block(1));
        assert_eq!(shell.read(export, 3 * MIB, 8192), [block(2), block(3)].concat());
        assert_eq!(shell.read(export, 4096 + 98, 12), b"\0\0unaligned\0");
        assert_eq!(shell.read(export, 5 * MIB - 512, 1024), [0; 1024]);
    };
    check(&mut shell, export);
    shell.must(Control::Checkpoint);
    check(&mut shell, export);
    shell.write(export, 4096 + 109, b"!");
    let mut shell = shell.reopen();
    let report = shell.opened.clone().expect("answered").expect("opened");
    assert!(report.records_replayed > 0, "{report:?}");
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 4096 + 100, 10), b"unaligned!");
    shell.must(Control::Checkpoint);
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 4096 + 100, 10), b"unaligned!");
    assert_eq!(shell.read(export, 3 * MIB, 8192), [block(2), block(3)].concat());
}

#[test]
fn a_generation_keeps_what_was_and_a_clone_goes_its_own_way() {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), 16 * MIB);
    shell.write(export, 0, &block(1));
    for checkpointed in [false, true] {
        let n = 10 + u128::from(checkpointed) * 10;
        shell.write(export, 4096, &block(n as u64));
        shell.must(Control::Snapshot { group: vec![(id(1), id(n))] });
        shell.must(Control::Clone { source: id(n), volume: id(n + 1) });
        let clone = shell.export(id(n + 1), true);
        shell.write(export, 4096, &block(99));
        shell.write(clone, 4096, &block(n as u64 + 1));
        if checkpointed {
            shell.must(Control::Checkpoint);
        }
        let generation = shell.export(id(n), false);
        assert_eq!(shell.read(generation, 0, 8192), [block(1), block(n as u64)].concat());
        assert_eq!(shell.read(clone, 0, 8192), [block(1), block(n as u64 + 1)].concat());
        assert_eq!(shell.read(export, 0, 8192), [block(1), block(99)].concat());
        let refused =
            shell.ask(Request::Write { export: generation, offset: 0, data: Buf::copy_from(&block(1)), fua: false });
        assert_eq!(refused.expect_err("read-only").errno, 30);
    }
}

#[test]
fn revert_brings_the_old_content_back() {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), 16 * MIB);
    shell.write(export, 0, &block(1));
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.write(export, 0, &block(3));
    assert_eq!(shell.control(Control::Revert { volume: id(1), generation: id(2) }).expect_err("busy").errno, 16);
    shell.close(export);
    shell.must(Control::Revert { volume: id(1), generation: id(2) });
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 0, 4096), block(1));
    shell.must(Control::Settle);
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 0, 4096), block(1));
}

#[test]
fn destroying_everything_gives_everything_back() {
    let mut shell = Shell::fresh(64 * MIB);
    shell.must(Control::Checkpoint);
    let before = shell.stat();
    let export = shell.create(id(1), 16 * MIB);
    for generation in 0..6 {
        for n in 0..40 {
            shell.write(export, n * 300 * 4096 % (16 * MIB), &block(generation * 100 + n));
        }
        shell.must(Control::Snapshot { group: vec![(id(1), id(10 + u128::from(generation)))] });
        if generation % 2 == 0 {
            shell.must(Control::Checkpoint);
        }
    }
    shell.must(Control::Clone { source: id(12), volume: id(50) });
    shell.must(Control::Checkpoint);
    for n in [13, 10, 12, 15, 11, 14] {
        shell.must(Control::Destroy { id: id(n) });
        shell.must(Control::Settle);
    }
    let fork = shell.export(id(50), false);
    assert_eq!(shell.read(fork, 0, 4096), block(200));
    shell.close(fork);
    shell.close(export);
    shell.must(Control::Destroy { id: id(1) });
    shell.must(Control::Destroy { id: id(50) });
    shell.must(Control::Settle);
    let after = shell.stat();
    // The catalog alone: two tables and the nodes above them. Before, there was none.
    assert_eq!(after.used, before.used + 9 * 4096, "{before:?} {after:?}");
    assert_eq!((after.volumes, after.generations, after.dying), (0, 0, 0));
}

#[test]
fn the_difference_is_exact() {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), 16 * MIB);
    shell.write(export, 0, &[block(1), block(2), block(3)].concat());
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.write(export, 4096, &block(4));
    shell.ask(Request::Discard { export, offset: 8192, length: 4096, fua: false }).expect("discarded");
    shell.write(export, 5 * MIB, &block(5));
    shell.must(Control::Snapshot { group: vec![(id(1), id(3))] });
    let reply = shell.must(Control::Difference { from: id(2), to: id(3), offset: 0, extents_max: 10 });
    let Reply::Extents(extents) = reply else { panic!("extents") };
    let extent = |offset, length, kind| Extent { offset, length, kind };
    assert_eq!(
        extents,
        [
            extent(4096, 4096, ExtentKind::Data),
            extent(8192, 4096, ExtentKind::Hole),
            extent(5 * MIB, 4096, ExtentKind::Data)
        ]
    );
    let usage = shell.usage(id(2));
    assert_eq!((usage.mapped, usage.shared), (3 * 4096, 4096));
}

#[test]
fn zeros_and_discards_unmap() {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), 1024 * MIB);
    shell.write(export, 0, &vec![7; MIB as usize]);
    shell.write(export, 4096, &[0; 8192]);
    shell
        .ask(Request::WriteZeroes { export, offset: 20_000, length: 100, fua: true, keep_allocated: false })
        .expect("ok");
    shell.ask(Request::Discard { export, offset: 512 * 1024, length: 1000 * MIB, fua: false }).expect("ok");
    let Ok(Reply::Extents(extents)) =
        shell.ask(Request::Extents { export, offset: 0, length: MIB, extents_max: 10, since: None })
    else {
        panic!("extents")
    };
    let kinds: Vec<_> = extents.iter().map(|extent| (extent.offset, extent.length, extent.kind)).collect();
    assert_eq!(
        kinds,
        [
            (0, 4096, ExtentKind::Data),
            (4096, 8192, ExtentKind::Hole),
            (12288, 512 * 1024 - 12288, ExtentKind::Data),
            (512 * 1024, 512 * 1024, ExtentKind::Hole)
        ]
    );
    assert_eq!(shell.read(export, 19_990, 120), [[7; 10].as_slice(), &[0; 100], &[7; 10]].concat());
    shell.must(Control::Settle);
    assert_eq!(shell.read(export, 512 * 1024 - 1, 2), [7, 0]);
}

#[test]
fn a_full_store_says_so_and_lives_on() {
    let mut shell = Shell::open(shell::formatted(24 * MIB, MIB), EngineConfig::new(24 * MIB));
    let export = shell.create(id(1), 64 * MIB);
    let mut written = 0;
    let failure = loop {
        let data = Buf::copy_from(&block(written));
        match shell.ask(Request::Write { export, offset: written * 4096, data, fua: false }) {
            Ok(_) => written += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.errno, 28, "{failure}");
    assert!(written > 2000, "{written} blocks fit");
    assert_eq!(shell.read(export, (written - 1) * 4096, 4096), block(written - 1));
    shell.ask(Request::Discard { export, offset: 0, length: 4 * MIB, fua: false }).expect("discard needs no room");
    for n in 0..600 {
        shell.write(export, n * 4096, &block(n + 7));
    }
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 599 * 4096, 4096), block(606));
}

#[test]
fn a_failed_sync_is_final() {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), 16 * MIB);
    shell.write(export, 0, &block(1));
    shell.device.fail = Some(('s', 1));
    assert!(shell.ask(Request::Flush { export }).is_err());
    let refused = shell.ask(Request::Write { export, offset: 0, data: Buf::copy_from(&block(2)), fua: false });
    assert_eq!(refused.expect_err("read-only").errno, 30);
    assert_eq!(shell.read(export, 0, 4096), block(1));
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 0, 4096), block(1));
}
