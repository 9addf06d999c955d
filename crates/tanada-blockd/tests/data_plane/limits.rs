//! Limits under the real programs: thousands of versions through the control socket, volumes and stores that grow while
//! they are used, and refusals in words.

use std::io;

use tanada_blockd_api::{Answer, Command, CutPair, LINE_BYTES_MAX, Outcome, Response, StoreStat, VolumeInfo};
use tanada_nbd::proto::{CMD_FLUSH, CMD_TRIM};
use uuid::Uuid;

use crate::support::{Control, MIB, Nbd, Plane, fail, program, succeed, succeeded, text};

const TIB: u64 = 1 << 40;

fn store_stat(control: &mut Control) -> StoreStat {
    match control.call(Command::StoreStat) {
        Ok(Answer::Store(stat)) => *stat,
        other => panic!("{other:?}"),
    }
}

/// Sends all commands, a window of them at a time, and expects every one to succeed.
fn all_succeed(control: &mut Control, commands: impl IntoIterator<Item = Command>) {
    let mut waiting = 0;
    let answered = |control: &mut Control| {
        let line = control.line();
        let Ok(response) = serde_json::from_str::<Response>(&line) else { return 0 };
        assert!(matches!(response.outcome, Outcome::Ok(_)), "{line}");
        1
    };
    for command in commands {
        control.send(command);
        waiting += 1;
        while waiting >= 200 {
            waiting -= answered(control);
        }
    }
    while waiting > 0 {
        waiting -= answered(control);
    }
}

fn list(control: &mut Control) -> (Vec<VolumeInfo>, usize) {
    control.send(Command::List);
    loop {
        let line = control.line();
        let Ok(response) = serde_json::from_str::<Response>(&line) else { continue };
        let Outcome::Ok(Answer::List { volumes }) = response.outcome else { panic!("{line}") };
        return (volumes, line.len());
    }
}

fn flush(client: &mut Nbd) -> io::Result<()> {
    client.send(CMD_FLUSH, 9, 0, 0, &[])?;
    succeeded(client.reply()?)
}

#[test]
fn a_thousand_volumes_and_ten_thousand_generations() {
    let plane = Plane::start(512 * MIB);
    let mut control = plane.control();
    let volumes: Vec<Uuid> = (0..1000).map(|_| Uuid::new_v4()).collect();
    all_succeed(&mut control, volumes.iter().map(|volume| Command::CreateVolume { volume: *volume, size: TIB }));
    let groups = (0..100).flat_map(|_| volumes.chunks(100));
    let cuts = groups.map(|group| {
        let pair = |volume: &Uuid| CutPair { volume: *volume, generation: Uuid::new_v4() };
        Command::Snapshot { group: group.iter().map(pair).collect() }
    });
    all_succeed(&mut control, cuts.take(100));
    let (found, bytes) = list(&mut control);
    assert_eq!(found.len(), 11_000);
    assert!(bytes < LINE_BYTES_MAX, "a line of {bytes} bytes");
    assert_eq!((store_stat(&mut control).volumes, store_stat(&mut control).generations), (1000, 10_000));
    // They are used like few, and found again by the next process.
    control.change(Command::Attach { token: "last".to_owned(), target: volumes[999], writable: true });
    let mut client = plane.nbd("last").unwrap();
    client.write(TIB - 4096, &[7; 4096]).unwrap();
    control.change(Command::Checkpoint);
    plane.end_blockd(rustix::process::Signal::KILL);
    let mut control = plane.control();
    assert_eq!(list(&mut control).0.len(), 11_000);
    assert_eq!(plane.nbd("last").unwrap().read(TIB - 4096, 4096).unwrap(), [7; 4096]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", control.greeting.pid)).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 400 << 10, "blockd took {peak} KiB");
}

#[test]
fn what_does_not_fit_is_refused_with_words() {
    let plane = Plane::start(128 * MIB);
    let mut control = plane.control();
    let mut says = |command: Command, errno: i32, words: &[&str]| {
        let failure = control.call(command).expect_err("refused");
        assert_eq!(failure.errno, errno, "{failure}");
        words.iter().for_each(|word| assert!(failure.message.contains(word), "'{word}' is missing: {failure}"));
    };
    let pair = || CutPair { volume: Uuid::new_v4(), generation: Uuid::new_v4() };
    let group = (0..129).map(|_| pair()).collect();
    says(Command::Snapshot { group }, libc::EINVAL, &["129", "128"]);
    let most = (4u64 << 50).to_string();
    for size in [0, u64::MAX] {
        let create = Command::CreateVolume { volume: Uuid::new_v4(), size };
        says(create, libc::EINVAL, &[&size.to_string(), &most]);
    }
    let missing = Uuid::new_v4();
    says(
        Command::Usage { target: missing },
        libc::ENOENT,
        &[&missing.to_string(), "neither a volume nor a generation"],
    );
    says(Command::GrowStore { size: 64 * MIB }, libc::EINVAL, &["cannot shrink", &(64 * MIB).to_string()]);
    let token = "t".repeat(300);
    says(Command::Attach { token, target: missing, writable: false }, libc::EINVAL, &["300 bytes", "1 to 256"]);
    says(Command::ScrubStart { rate: 7, anew: false }, libc::EINVAL, &["7 bytes per second", "4096 or more"]);
    let mut grow = program();
    grow.args(["store", "grow", "--size", "64M", "--runtime-dir"]).arg(plane.runtime_dir());
    assert!(fail(&mut grow).contains("cannot shrink"));
}

#[test]
fn a_thin_volume_of_64_tib_is_used_at_both_ends_and_given_back() {
    let plane = Plane::start(128 * MIB);
    plane.volume("disk", 64 * TIB);
    let mut client = plane.nbd("disk").unwrap();
    assert_eq!(client.size, 64 * TIB);
    for offset in [0, 32 * TIB, 64 * TIB - 4096] {
        client.write(offset, &[5; 4096]).unwrap();
    }
    assert_eq!(client.read(64 * TIB - 4096, 4096).unwrap(), [5; 4096]);
    assert_eq!(client.write(64 * TIB - 512, &[1; 1024]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    // The largest pieces that NBD can name, around the middle.
    let piece = u32::MAX - 4095;
    for offset in [32 * TIB - u64::from(piece), 32 * TIB] {
        client.send(CMD_TRIM, 3, offset, piece, &[]).unwrap();
        succeeded(client.reply().unwrap()).unwrap();
    }
    assert_eq!(client.read(32 * TIB, 4096).unwrap(), [0; 4096]);
    assert_eq!(client.read(0, 4096).unwrap(), [5; 4096]);
}

#[test]
fn volumes_and_stores_grow_while_they_are_used() {
    let plane = Plane::start(64 * MIB);
    let volume = plane.volume("disk", 16 * MIB);
    let (mut control, mut client) = (plane.control(), plane.nbd("disk").unwrap());
    assert!(client.write(16 * MIB, &[1; 4096]).is_err());
    control.change(Command::Resize { volume, size: 256 * MIB });
    // Who is connected may use it at once; who connects is told the new size.
    client.write(200 * MIB, &[2; 4096]).unwrap();
    assert_eq!(plane.nbd("disk").unwrap().size, 256 * MIB);
    // The store below, too, in the middle of writing more than it has.
    for at in 0..120u64 {
        if at % 10 == 0 {
            let size = (64 + 16 * (at / 10 + 1)).to_string() + "M";
            let mut grow = program();
            grow.args(["store", "grow", "--size", &size, "--runtime-dir"]).arg(plane.runtime_dir());
            assert!(text(&succeed(&mut grow)).contains("free"));
        }
        client.write(at * MIB, &vec![at as u8 | 1; MIB as usize]).unwrap();
    }
    flush(&mut client).unwrap();
    assert_eq!(store_stat(&mut control).physical, 256 * MIB);
    assert_eq!(std::fs::metadata(plane.store()).unwrap().len(), 256 * MIB);
    // A volume shrinks; what was beyond is gone for good.
    control.change(Command::Resize { volume, size: 8 * MIB });
    assert!(client.read(8 * MIB, 4096).is_err());
    control.change(Command::Resize { volume, size: 256 * MIB });
    assert_eq!(client.read(100 * MIB, 4096).unwrap(), [0; 4096]);
    assert_eq!(client.read(7 * MIB, 4096).unwrap(), [7; 4096]);
}
