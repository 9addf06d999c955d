//! The control socket: attachments, snapshots under load, clients that misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tanada_blockd_api::{Answer, Command, CutPair};
use tanada_nbd::proto::{CMD_CACHE, CMD_READ, CMD_WRITE, RequestHeader};
use uuid::Uuid;

use crate::support::{MIB, Plane};

fn attach(token: &str, target: Uuid, writable: bool) -> Command {
    Command::Attach { token: token.to_owned(), target, writable }
}

#[test]
fn a_volume_has_one_writer_and_any_number_of_readers() {
    let plane = Plane::start(256 * MIB);
    let volume = plane.volume("disk", MIB);
    let mut control = plane.control();
    assert_eq!(control.call(attach("disk", volume, true)), Ok(Answer::Changed { changed: false }));
    assert_eq!(control.errno(attach("disk", volume, false)), libc::EEXIST);
    assert_eq!(control.errno(attach("second", volume, true)), libc::EBUSY);
    assert_eq!(control.errno(attach("none", Uuid::new_v4(), false)), libc::ENOENT);
    assert_eq!(control.errno(attach("", volume, false)), libc::EINVAL);
    control.change(attach("reader", volume, false));
    control.change(attach("another", volume, false));
    plane.nbd("disk").unwrap().write(0, &[7; 4096]).unwrap();
    let mut reader = plane.nbd("reader").unwrap();
    assert_eq!(reader.read(0, 4096).unwrap(), [7; 4096]);
    let error = reader.write(0, &[8; 512]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let Ok(Answer::Attachments { attachments }) = control.call(Command::Attachments) else { panic!("no list") };
    assert_eq!(attachments.len(), 3);
    assert_eq!(attachments.iter().find(|found| found.token == "reader").unwrap().connections, 1);
}

#[test]
fn a_detached_client_is_cut_off() {
    let plane = Plane::start(256 * MIB);
    let volume = plane.volume("disk", MIB);
    let mut control = plane.control();
    let mut client = plane.nbd("disk").unwrap();
    client.write(0, &[1; 4096]).unwrap();
    assert_eq!(control.errno(Command::Destroy { target: volume }), libc::EBUSY);
    control.change(Command::Detach { token: "disk".to_owned() });
    assert!(client.is_ended());
    assert!(plane.nbd("disk").is_err());
    assert_eq!(control.call(Command::Detach { token: "disk".to_owned() }), Ok(Answer::Changed { changed: false }));
    control.change(Command::Destroy { target: volume });
}

#[test]
fn a_snapshot_under_load_tells_what_it_cost() {
    let plane = Plane::start(512 * MIB);
    let volumes = [plane.volume("one", 16 * MIB), plane.volume("two", 16 * MIB)];
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["one", "two"]
        .map(|token| {
            let (mut client, is_over) = (plane.nbd(token).unwrap(), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    // Never zeros: those need no write.
                    client.write(count * 4096 % (16 * MIB), &[count as u8 | 1; 4096]).unwrap();
                    count += 1;
                }
            })
        })
        .into();
    let mut control = plane.control();
    let mut observed = 0;
    for _ in 0..20 {
        let group = volumes.map(|volume| CutPair { volume, generation: Uuid::new_v4() }).to_vec();
        let Ok(Answer::Cut(report)) = control.call(Command::Snapshot { group: group.clone() }) else {
            panic!("no cut")
        };
        assert!(report.changed && report.total_us > 0, "{report:?}");
        assert!(report.writes_observed == 0 || report.slowest_write_us > 0, "{report:?}");
        observed += report.writes_observed;
        let Ok(Answer::Cut(again)) = control.call(Command::Snapshot { group }) else { panic!("no repetition") };
        assert!(!again.changed);
    }
    assert!(observed > 0, "two writers without pause, and no write overlapped any of 20 snapshots");
    is_over.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

#[test]
fn one_clients_nonsense_is_its_own_problem() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", MIB);
    let mut good = plane.nbd("disk").unwrap();
    let mut bad = plane.nbd("disk").unwrap();
    bad.send_raw(&[0xff; 64]).unwrap();
    assert!(bad.is_ended());
    let mut bad = plane.nbd("disk").unwrap();
    // A payload longer than any export may take.
    bad.send(CMD_WRITE, 1, 0, u32::MAX, &[]).unwrap();
    assert!(bad.is_ended());
    // Beyond the end: an error, and the stream stays in step although the payload is refused.
    let mut odd = plane.nbd("disk").unwrap();
    assert_eq!(odd.write(MIB - 512, &[1; 1024]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    odd.write(MIB - 1024, &[1; 1024]).unwrap();

    let mut control = plane.control();
    control.send_line(r#"{"id":5,"method":"dance"}"#);
    assert!(control.line().contains("\"error\""));
    assert!(matches!(control.call(Command::List), Ok(Answer::List { .. })));
    let mut rude = plane.control();
    rude.send_line("this is no command");
    assert_eq!(rude.line(), "");
    assert!(matches!(control.call(Command::StoreStat), Ok(Answer::Store(_))));
    good.write(0, &[3; 512]).unwrap();
    assert_eq!(good.read(0, 512).unwrap(), [3; 512]);
}

#[test]
fn a_client_that_stalls_holds_up_nobody_and_takes_little_memory() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", 64 * MIB);
    let mut good = plane.nbd("disk").unwrap();
    for at in 0..64 {
        good.write(at * MIB, &[at as u8 | 1; MIB as usize]).unwrap();
    }
    // One sends half a payload, the others ask for far more than they ever read.
    let mut half = plane.nbd("disk").unwrap();
    half.send(CMD_WRITE, 1, 0, MIB as u32, &[9; MIB as usize / 2]).unwrap();
    // Each in one piece: the server stops listening to them, which would hold up a second one.
    let many = |command, length| -> Vec<u8> {
        let request = |cookie| RequestHeader { flags: 0, command, cookie, offset: 0, length }.encode();
        (0..2000).flat_map(request).collect()
    };
    let mut greedy = plane.nbd("disk").unwrap();
    greedy.send_raw(&many(CMD_READ, 16 << 20)).unwrap();
    let mut chatty = plane.nbd("disk").unwrap();
    chatty.send_raw(&many(CMD_CACHE, 512)).unwrap();
    for at in 0..200 {
        good.write(at * 4096, &[3; 4096]).unwrap();
        assert_eq!(good.read(at * 4096, 4096).unwrap(), [3; 4096]);
    }
    let pid = plane.control().greeting.pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 400 << 10, "blockd took {peak} KiB");
    for _ in 0..2000 {
        assert_eq!(chatty.reply().unwrap().error, 0);
    }
}
