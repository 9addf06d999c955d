//! A medium that fails under the real programs (rule J10): a failed sync or journal write is final and told to all, nothing
//! pretends afterwards, the keeper does not start it over, and a restart finds what was durable.

use std::io;

use rustix::process::Signal;
use tanada_blockd_api::{Answer, Command, CutPair, Event, StoreStat};
use tanada_nbd::proto::CMD_FLUSH;
use uuid::Uuid;

use crate::medium::{Medium, complaints};
use crate::support::{Control, MIB, Nbd, Plane, succeeded};

const BYTES: u64 = 64 * MIB;
/// With a journal of 16 MiB behind the superblocks' 4, the rest begins here.
const JOURNAL: u64 = 4 * MIB;
const REGIONS: u64 = 20 * MIB;

fn flush(client: &mut Nbd) -> io::Result<()> {
    client.send(CMD_FLUSH, 9, 0, 0, &[])?;
    succeeded(client.reply()?)
}

fn errno(result: io::Result<()>) -> i32 {
    result.expect_err("it must not succeed").raw_os_error().unwrap_or(-1)
}

fn stat(control: &mut Control) -> StoreStat {
    match control.call(Command::StoreStat) {
        Ok(Answer::Store(stat)) => *stat,
        other => panic!("{other:?}"),
    }
}

/// Two volumes with a client each; 1 has durable content.
fn two(plane: &Plane) -> (Nbd, Nbd, Uuid) {
    let volume = plane.volume("one", 16 * MIB);
    plane.volume("two", 16 * MIB);
    let (mut one, two) = (plane.nbd("one").unwrap(), plane.nbd("two").unwrap());
    one.write(0, &[1; 4096]).unwrap();
    flush(&mut one).unwrap();
    (one, two, volume)
}

/// Read-only for everybody, told once, and for good: the process that has failed lives on and says so.
fn is_final(plane: &Plane, one: &mut Nbd, two: &mut Nbd, volume: Uuid) {
    let mut control = plane.control();
    let pid = control.greeting.pid;
    for _ in 0..3 {
        for client in [&mut *one, &mut *two] {
            errno(client.write(8192, &[9; 4096]));
            errno(flush(client));
        }
        let group = vec![CutPair { volume, generation: Uuid::new_v4() }];
        assert_eq!(control.errno(Command::Snapshot { group }), libc::EROFS);
        assert_eq!(control.errno(Command::Checkpoint), libc::EROFS);
        assert_eq!(control.errno(Command::CreateVolume { volume: Uuid::new_v4(), size: MIB }), libc::EROFS);
        assert_eq!(one.read(0, 4096).unwrap(), [1; 4096]);
    }
    assert!(stat(&mut control).failed.is_some());
    // New clients are served what can be read, by the same process.
    assert_eq!(plane.nbd("one").unwrap().read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(plane.control().greeting.pid, pid, "it was started over behind everybody's back");
}

/// An administrator's restart: what was durable is there, and the store takes writes again.
fn restart_recovers(plane: &Plane, medium: &Medium) {
    plane.stop();
    assert_eq!(complaints(&medium.bytes()), [""; 0]);
    plane.keep();
    let mut one = plane.nbd("one").unwrap();
    assert_eq!(one.read(0, 4096).unwrap(), [1; 4096]);
    one.write(8192, &[5; 4096]).unwrap();
    flush(&mut one).unwrap();
    assert_eq!(one.read(8192, 4096).unwrap(), [5; 4096]);
    assert_eq!(stat(&mut plane.control()).failed, None);
}

#[test]
fn a_failed_sync_is_final() {
    let medium = Medium::new(BYTES);
    let plane = Plane::over(medium.path(), BYTES);
    let (mut one, mut two, volume) = two(&plane);
    let mut control = plane.control();
    one.write(4096, &[2; 4096]).unwrap();
    two.write(4096, &[3; 4096]).unwrap();
    medium.fail_one_sync();
    assert_eq!(errno(flush(&mut one)), libc::EIO);
    let Event::ReadOnly { message } = control.event() else { panic!("nobody is told") };
    assert!(message.contains("sync") && message.contains('5'), "{message}");
    // The medium syncs again, and nobody is to be told that it did.
    is_final(&plane, &mut one, &mut two, volume);
    restart_recovers(&plane, &medium);
}

#[test]
fn a_failed_journal_write_is_final() {
    let medium = Medium::new(BYTES);
    let plane = Plane::over(medium.path(), BYTES);
    let (mut one, mut two, volume) = two(&plane);
    medium.refuse(JOURNAL, REGIONS, "EIO");
    // Where a flush is expected the record goes out with the data, and the write itself learns of it.
    let told = two.write(4096, &[3; 4096]).and_then(|()| flush(&mut two));
    assert_eq!(errno(told), libc::EIO);
    medium.recover();
    is_final(&plane, &mut one, &mut two, volume);
    restart_recovers(&plane, &medium);
}

#[test]
fn a_failed_data_write_is_its_writers_alone() {
    let medium = Medium::new(BYTES);
    let plane = Plane::over(medium.path(), BYTES);
    let (mut one, mut two, _) = two(&plane);
    medium.refuse(REGIONS, BYTES, "EIO");
    assert_eq!(errno(one.write(0, &[7; 4096])), libc::EIO);
    assert_eq!(one.read(0, 4096).unwrap(), [1; 4096], "the old content stands");
    flush(&mut two).unwrap();
    medium.recover();
    one.write(4096, &[2; 4096]).unwrap();
    flush(&mut one).unwrap();
    assert_eq!(stat(&mut plane.control()).failed, None);
    plane.end_blockd(Signal::KILL);
    let mut one = plane.nbd("one").unwrap();
    assert_eq!(one.read(0, 8192).unwrap(), [[1; 4096], [2; 4096]].concat());
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_final_and_loses_nothing() {
    let medium = Medium::new(BYTES);
    let plane = Plane::over(medium.path(), BYTES);
    let (mut one, mut two, volume) = two(&plane);
    let mut control = plane.control();
    medium.refuse(0, JOURNAL, "EIO");
    let failure = control.call(Command::Checkpoint).expect_err("no superblock is written");
    assert_eq!(failure.errno, libc::EROFS);
    assert!(failure.message.contains("a checkpoint could not be written"), "{failure}");
    medium.recover();
    is_final(&plane, &mut one, &mut two, volume);
    restart_recovers(&plane, &medium);
}

#[test]
fn a_full_file_system_below_stops_writers_and_loses_nothing() {
    let medium = Medium::new(BYTES);
    let plane = Plane::over(medium.path(), BYTES);
    let (mut one, mut two, _) = two(&plane);
    let mut control = plane.control();
    two.write(0, &[3; 4096]).unwrap();
    medium.refuse(REGIONS, BYTES, "ENOSPC");
    assert_eq!(errno(one.write(0, &[7; 4096])), libc::ENOSPC);
    while control.event() != Event::Full {}
    flush(&mut two).unwrap();
    let failure = control.call(Command::Checkpoint).expect_err("no room for the map");
    assert_eq!(failure.errno, libc::ENOSPC);
    assert!(failure.message.contains("no room") && failure.message.contains("tried again"), "{failure}");
    assert_eq!(stat(&mut control).failed, None);
    // It ends cleanly all the same, and the next one has everything.
    plane.stop();
    assert_eq!(complaints(&medium.bytes()), [""; 0]);
    plane.keep();
    let (mut one, mut two) = (plane.nbd("one").unwrap(), plane.nbd("two").unwrap());
    assert_eq!((one.read(0, 4096).unwrap(), two.read(0, 4096).unwrap()), (vec![1; 4096], vec![3; 4096]));
    assert_eq!(errno(one.write(0, &[7; 4096])), libc::ENOSPC);
    medium.recover();
    one.write(0, &[7; 4096]).unwrap();
    plane.control().change(Command::Checkpoint);
    assert_eq!(one.read(0, 4096).unwrap(), [7; 4096]);
}
