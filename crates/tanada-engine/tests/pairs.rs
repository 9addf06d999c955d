//! Writes that flushes follow: data and record go out together.

mod shell;

use shell::{MIB, Shell, block, id};
use tanada_engine::{Control, Request};

/// A volume whose writer flushes after every write.
fn flushed_often() -> (Shell, tanada_engine::ExportId) {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), MIB);
    for n in 0..6 {
        shell.write(export, n * 4096, &block(n));
        shell.ask(Request::Flush { export }).expect("flushed");
    }
    (shell, export)
}

#[test]
fn a_write_that_a_flush_will_follow_costs_one_trip_to_the_device() {
    let (mut shell, export) = flushed_often();
    let (writes, now) = (shell.device.writes, shell.now);
    shell.write(export, 40960, &block(40));
    assert_eq!(shell.device.writes - writes, 2, "data and its journal block");
    assert_eq!(shell.now - now, 20, "one turn to send both, one to take both ends");
}

#[test]
fn a_failed_write_does_not_end_the_journal_for_those_behind_it() {
    let (mut shell, export) = flushed_often();
    shell.device.fail = Some(('w', 1));
    let data = tanada_disk::Buf::copy_from(&block(50));
    let failed = shell.ask(Request::Write { export, offset: 0, data, fua: false }).expect_err("the device failed");
    assert_eq!(failed.errno, 5);
    assert_eq!(shell.read(export, 0, 4096), block(0), "it did not happen");
    shell.write(export, 4096, &block(51));
    shell.ask(Request::Flush { export }).expect("flushed");
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 4096, 4096), block(51));
    assert_eq!(shell.read(export, 0, 4096), block(0));
}

/// A power cut before the next sync may bring the pair's first journal block back, which names its data's blocks. Were
/// they written again, with the same content, the journal would name them twice, and the store would not open.
#[test]
fn blocks_that_a_full_medium_refused_to_a_pair_are_kept_until_a_checkpoint() {
    let (mut shell, export) = flushed_often();
    assert_eq!(shell.stat().unreleased, 0);
    let geometry = tanada_format::Geometry::new(64 * MIB / 4096, 256).expect("valid");
    shell.device.refuses = Some((geometry.regions_start()..geometry.store_blocks(), 28));
    let data = tanada_disk::Buf::copy_from(&block(50));
    let refused = shell.ask(Request::Write { export, offset: 0, data, fua: false }).expect_err("no room");
    assert_eq!(refused.errno, 28);
    shell.device.refuses = None;
    assert_eq!(shell.stat().unreleased, 4096, "a record has named the block (B1)");
    shell.control(Control::Checkpoint).expect("written");
    shell.control(Control::Settle).expect("settled");
    assert_eq!(shell.stat().unreleased, 0);
    shell.write(export, 0, &block(50));
    assert_eq!(shell.read(export, 0, 4096), block(50));
}

#[test]
fn a_failed_journal_block_is_final() {
    let (mut shell, export) = flushed_often();
    let data = tanada_disk::Buf::copy_from(&block(50));
    let write = shell.submit(Request::Write { export, offset: 0, data, fua: false });
    shell.step();
    shell.device.fail = Some(('w', 2));
    assert!(shell.wait(write).is_err());
    shell.ask(Request::Flush { export }).expect_err("read-only");
    assert!(shell.stat().failed.is_some());
}
