//! What an administrator must hear of: a full store, damage.

use std::os::unix::fs::FileExt;

use tanada_blockd_api::{Answer, Command, Event, StoreStat};
use tanada_nbd::proto::{CMD_TRIM, NBD_ENOSPC};

use crate::support::{Control, MIB, Nbd, Plane, succeeded};

fn stat(control: &mut Control) -> StoreStat {
    match control.call(Command::StoreStat) {
        Ok(Answer::Store(stat)) => *stat,
        other => panic!("{other:?}"),
    }
}

/// Writes MiB after MiB until the store refuses; how many it took.
fn fill(client: &mut Nbd, from: u64, to: u64) -> u64 {
    for at in from..to {
        let content = vec![at as u8 | 1; MIB as usize];
        match client.write(at * MIB, &content) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(NBD_ENOSPC as i32), "after {at} MiB");
                return at - from;
            }
        }
    }
    to - from
}

#[test]
fn a_full_store_says_so_keeps_what_it_has_and_goes_on_when_there_is_room() {
    let plane = Plane::start(128 * MIB);
    plane.volume("disk", 512 * MIB);
    let (mut control, mut client) = (plane.control(), plane.nbd("disk").unwrap());
    let taken = fill(&mut client, 0, 512);
    assert!((16..128).contains(&taken), "{taken} MiB fitted in a store of 128");
    while control.event() != Event::Full {}
    for at in [0, taken / 2, taken - 1] {
        assert!(client.read(at * MIB, 4096).unwrap() == [at as u8 | 1; 4096], "MiB {at}");
    }
    // Room by giving up content ...
    client.send(CMD_TRIM, 3, 0, 8 << 20, &[]).unwrap();
    succeeded(client.reply().unwrap()).unwrap();
    control.change(Command::Checkpoint);
    control.change(Command::Settle);
    assert!(fill(&mut client, 0, 4) == 4, "no room after a trim of 8 MiB: {:?}", stat(&mut control));
    // ... and by more space below.
    control.change(Command::GrowStore { size: 256 * MIB });
    assert_eq!(stat(&mut control).physical, 256 * MIB);
    assert!(fill(&mut client, 256, 300) == 44, "no room in the grown store: {:?}", stat(&mut control));
    assert!(client.read((taken - 1) * MIB, 4096).unwrap() == [(taken - 1) as u8 | 1; 4096]);
}

#[test]
fn damage_is_told_and_never_served() {
    let plane = Plane::start(256 * MIB);
    let volume = plane.volume("disk", 16 * MIB);
    let (mut control, mut client) = (plane.control(), plane.nbd("disk").unwrap());
    let mark: Vec<u8> = (0..4096u32).map(|at| (at * 7 + at / 256) as u8).collect();
    client.write(MIB, &[5; 8192]).unwrap();
    client.write(2 * MIB, &mark).unwrap();
    control.change(Command::Checkpoint);
    let store = std::fs::OpenOptions::new().read(true).write(true).open(plane.store()).unwrap();
    let mut block = vec![0; 4096];
    let mut places = (0..256 * MIB / 4096).map(|at| at * 4096).filter(|at| {
        store.read_exact_at(&mut block, *at).unwrap();
        block == mark
    });
    let place = places.next().expect("the content is in the store");
    drop(places);
    store.write_all_at(&[mark[77] ^ 4], place + 77).unwrap();
    store.sync_all().unwrap();
    assert_eq!(client.read(2 * MIB, 512).unwrap_err().raw_os_error(), Some(libc::EIO));
    match control.event() {
        Event::Damage { volume: damaged, offset, .. } => assert_eq!((damaged, offset), (volume, 2 * MIB)),
        other => panic!("{other:?}"),
    }
    // The neighbours are well, and so is the block once it is written again.
    assert_eq!(client.read(MIB, 8192).unwrap(), [5; 8192]);
    client.write(2 * MIB, &[6; 4096]).unwrap();
    assert_eq!(client.read(2 * MIB, 4096).unwrap(), [6; 4096]);
}
