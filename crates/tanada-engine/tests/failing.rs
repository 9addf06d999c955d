//! A medium that fails (rule J10): what is final, what is not, and what a restart finds.

mod shell;

use shell::{MIB, Shell, block, formatted, id};
use tanada_disk::Buf;
use tanada_engine::{Alert, Control, EngineConfig, ExportId, Failure, Reply, Request};
use tanada_format::Geometry;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

fn store() -> Shell {
    Shell::open(formatted(64 * MIB, MIB), EngineConfig::new(64 * MIB))
}

fn geometry() -> Geometry {
    Geometry::new(64 * MIB / 4096, 256).expect("valid")
}

fn write(export: ExportId, offset: u64, n: u64, fua: bool) -> Request {
    Request::Write { export, offset, data: Buf::copy_from(&block(n)), fua }
}

fn failure(shell: &mut Shell, request: Request) -> Failure {
    let text = format!("{request:?}");
    match shell.ask(request) {
        Err(failure) => failure,
        Ok(reply) => panic!("{} succeeded: {reply:?}", &text[..text.len().min(80)]),
    }
}

/// Nothing that changes or promises anything succeeds any more; reads do.
fn is_final(shell: &mut Shell, export: ExportId, other: ExportId) {
    for _ in 0..3 {
        for export in [export, other] {
            assert_eq!(failure(shell, write(export, 0, 9, false)).errno, EROFS);
            assert_eq!(failure(shell, write(export, 0, 9, true)).errno, EROFS);
            assert_eq!(failure(shell, Request::Flush { export }).errno, EROFS);
            let zeroes = Request::WriteZeroes { export, offset: 0, length: 4096, fua: false, keep_allocated: false };
            assert_eq!(failure(shell, zeroes).errno, EROFS);
            assert_eq!(failure(shell, Request::Discard { export, offset: 0, length: 4096, fua: false }).errno, EROFS);
        }
        for control in [
            Control::Snapshot { group: vec![(id(1), id(50))] },
            Control::CreateVolume { id: id(51), size: MIB },
            Control::Clone { source: id(1), volume: id(52) },
            Control::Destroy { id: id(3) },
            Control::Resize { id: id(1), size: 2 * MIB },
            Control::Checkpoint,
            Control::Settle,
            Control::GrowStore { size: 68 * MIB },
        ] {
            let said = shell.control(control.clone()).expect_err("read-only");
            assert_eq!(said.errno, EROFS, "{control:?}: {said}");
            assert!(said.message.contains("read-only until it is restarted"), "{said}");
        }
    }
    let told = |alert: &&Alert| matches!(alert, Alert::ReadOnly { .. });
    assert_eq!(shell.alerts.iter().filter(told).count(), 1, "{:?}", shell.alerts);
    assert!(shell.stat().failed.is_some());
    assert_eq!(shell.read(export, 0, 4096), block(1));
}

/// Two volumes; 1 has durable content.
fn two(shell: &mut Shell) -> (ExportId, ExportId) {
    let (a, b) = (shell.create(id(1), MIB), shell.create(id(2), MIB));
    let spare = shell.create(id(3), MIB);
    shell.close(spare);
    shell.write(a, 0, &block(1));
    shell.ask(Request::Flush { export: a }).expect("flushed");
    (a, b)
}

#[test]
fn a_failed_sync_is_final_for_everybody() {
    let mut shell = store();
    let (a, b) = two(&mut shell);
    shell.write(a, 4096, &block(2));
    shell.write(b, 4096, &block(3));
    // All three wait for one sync, and that fails. Once: the next would succeed, and must not be believed.
    let waiting = [Request::Flush { export: a }, Request::Flush { export: b }, write(b, 8192, 4, true)];
    shell.device.fail = Some(('s', 1));
    let ids: Vec<u64> = waiting.into_iter().map(|request| shell.submit(request)).collect();
    for id in ids {
        let said = shell.wait(id).expect_err("not durable");
        assert_eq!(said.errno, EIO);
        assert!(said.message.contains("sync"), "{said}");
    }
    let syncs = shell.device.syncs;
    is_final(&mut shell, a, b);
    assert_eq!(shell.device.syncs, syncs, "a sync after a failed one proves nothing");
    let mut shell = shell.reopen();
    let a = shell.export(id(1), true);
    assert_eq!(shell.read(a, 0, 4096), block(1));
    shell.write(a, 0, &block(5));
    shell.ask(Request::Flush { export: a }).expect("flushed");
}

#[test]
fn what_a_failed_sync_lost_is_not_served_after_the_restart_as_durable() {
    let mut shell = Shell::open(formatted(64 * MIB, MIB).with_cache(), EngineConfig::new(64 * MIB));
    let (a, b) = two(&mut shell);
    shell.write(a, 0, &block(2));
    shell.device.fail = Some(('s', 1));
    assert_eq!(failure(&mut shell, Request::Flush { export: a }).errno, EIO);
    assert_eq!(failure(&mut shell, Request::Flush { export: b }).errno, EROFS);
    shell.device.power_cut();
    let mut shell = shell.reopen();
    let a = shell.export(id(1), true);
    assert_eq!(shell.read(a, 0, 4096), block(1), "what was durable before");
}

#[test]
fn a_failed_journal_write_is_final() {
    let mut shell = store();
    let (a, b) = two(&mut shell);
    let journal = geometry().journal_block(0)..geometry().journal_block(0) + 256;
    shell.device.refuses = Some((journal, EIO));
    let said = failure(&mut shell, write(a, 4096, 2, true));
    assert_eq!(said.errno, EIO);
    assert!(said.message.contains("journal"), "{said}");
    shell.device.refuses = None;
    is_final(&mut shell, a, b);
    let mut shell = shell.reopen();
    let a = shell.export(id(1), true);
    assert_eq!(shell.read(a, 0, 4096), block(1));
    assert_eq!(shell.read(a, 4096, 4096), [0; 4096], "it was refused");
    shell.write(a, 4096, &block(3));
}

#[test]
fn a_block_that_refused_a_write_is_out_of_use_until_a_restart() {
    let mut shell = store();
    let (a, _) = two(&mut shell);
    let before = shell.stat().free;
    let first = geometry().regions_start();
    shell.device.refuses = Some((first..geometry().store_blocks(), EIO));
    let written: Vec<u64> = shell.device.blocks.keys().copied().collect();
    assert_eq!(failure(&mut shell, write(a, 4096, 2, false)).errno, EIO);
    shell.device.refuses = None;
    assert_eq!(shell.stat().free, before - 4096, "quarantined");
    // The store goes on, on other blocks; the old content stands.
    assert_eq!(shell.read(a, 0, 8192), [block(1), vec![0; 4096]].concat());
    shell.write(a, 4096, &block(3));
    shell.must(Control::Checkpoint);
    assert_eq!(shell.read(a, 4096, 4096), block(3));
    assert!(shell.device.blocks.keys().any(|block| !written.contains(block)));
    let mut shell = shell.reopen();
    assert!(shell.stat().free + 64 * 4096 > before && shell.stat().failed.is_none());
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_in_read_only_and_a_restart_has_everything() {
    let mut shell = store();
    let (a, b) = two(&mut shell);
    shell.write(a, 4096, &block(2));
    shell.ask(Request::Flush { export: a }).expect("flushed");
    shell.device.refuses = Some((geometry().regions_start()..geometry().store_blocks(), EIO));
    let writes = shell.device.writes;
    let said = shell.control(Control::Checkpoint).expect_err("the map is not written");
    assert_eq!(said.errno, EROFS);
    assert!(said.message.contains("checkpoint") && said.message.contains("errno 5"), "{said}");
    assert_eq!(shell.device.writes, writes, "no superblock followed");
    shell.device.refuses = None;
    is_final(&mut shell, a, b);
    let mut shell = shell.reopen();
    let a = shell.export(id(1), true);
    assert_eq!(shell.read(a, 0, 8192), [block(1), block(2)].concat());
    shell.must(Control::Checkpoint);
}

#[test]
fn a_checkpoint_survives_two_failing_writes() {
    let mut shell = store();
    let (a, _) = two(&mut shell);
    shell.device.fail = Some(('w', 2));
    shell.must(Control::Checkpoint);
    shell.write(a, 4096, &block(2));
    assert_eq!(shell.stat().failed, None);
}

/// A sparse file on a full file system, a thin pool without room.
#[test]
fn a_full_medium_below_is_waited_for_and_nothing_is_lost() {
    let mut shell = store();
    let (a, b) = two(&mut shell);
    shell.write(b, 0, &block(7));
    let free = shell.stat().free;
    shell.device.refuses = Some((geometry().regions_start()..geometry().store_blocks(), ENOSPC));
    for _ in 0..50 {
        let said = failure(&mut shell, write(a, 4096, 2, false));
        assert_eq!(said.errno, ENOSPC);
        let words = ["no room for 4096 bytes at offset 4096", &id(1).to_string(), "below the store is full"];
        assert!(words.iter().all(|word| said.message.contains(word)), "{said}");
    }
    let stat = shell.stat();
    assert_eq!(stat.free + stat.unreleased, free, "what was refused is free again");
    assert!(stat.unreleased <= 4096, "all but what the record of a pair has named, and there was one at most");
    assert_eq!(shell.alerts.iter().filter(|alert| **alert == Alert::Full).count(), 1, "{:?}", shell.alerts);
    // A checkpoint is held, and says so; flushes, reads and discards go on.
    let said = shell.control(Control::Checkpoint).expect_err("no room");
    assert_eq!(said.errno, ENOSPC);
    assert!(said.message.contains("no room for checkpoint") && said.message.contains("tried again"), "{said}");
    shell.ask(Request::Flush { export: b }).expect("flushed");
    shell.ask(Request::Discard { export: b, offset: 8192, length: 4096, fua: true }).expect("discarded");
    assert_eq!(shell.read(b, 0, 4096), block(7));
    assert_eq!(shell.stat().failed, None);
    // Room again: the checkpoint that was held ends, guests are told to go on.
    shell.device.refuses = None;
    shell.must(Control::Checkpoint);
    shell.write(a, 4096, &block(3));
    while !shell.alerts.iter().any(|alert| matches!(alert, Alert::RoomAgain { .. })) {
        assert!(shell.step(), "nobody says that there is room: {:?}", shell.alerts);
    }
    let mut shell = shell.reopen();
    let (a, b) = (shell.export(id(1), true), shell.export(id(2), true));
    assert_eq!(shell.read(a, 0, 8192), [block(1), block(3)].concat());
    assert_eq!(shell.read(b, 0, 4096), block(7));
    let Reply::Store(stat) = shell.must(Control::StoreStat) else { panic!("figures") };
    assert_eq!(stat.failed, None);
}

/// The medium had no room, then it had, and then the store itself was full: nobody may be woken over and over for news
/// that do not come.
#[test]
fn a_full_store_on_a_medium_that_was_full_sleeps() {
    let mut shell = store();
    let volume = shell.create(id(1), 64 * MIB);
    shell.device.refuses = Some((geometry().regions_start()..geometry().store_blocks(), ENOSPC));
    assert_eq!(failure(&mut shell, write(volume, 0, 1, false)).errno, ENOSPC);
    shell.device.refuses = None;
    let piece = |n: u64| Request::Write {
        export: volume,
        offset: n * 65536,
        data: Buf::copy_from(&[n as u8 | 1; 65536]),
        fua: false,
    };
    let taken = (0..).take_while(|n| shell.ask(piece(*n)).is_ok()).count();
    assert!(taken > 500, "only {taken} pieces of 64 KiB found room");
    let full_at = shell.now;
    for _ in 0..20_000 {
        if !shell.step() || shell.now > full_at + 60_000_000 {
            return;
        }
    }
    panic!("20,000 turns in {} us", shell.now - full_at);
}
