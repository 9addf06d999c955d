//! Writes that flushes follow: data and record go out together.

mod shell;

use shell::{MIB, Shell, block, id};
use tanada_engine::Request;

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
