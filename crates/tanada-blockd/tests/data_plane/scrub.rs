//! The store verifies itself, through the real programs.

use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::process::Signal;
use tanada_blockd_api::{Answer, Command, DamagedPart, Event, ScrubReport, ScrubState};
use tanada_format::Pointer;

use crate::support::{Control, MIB, Plane, fail, program, succeed, text};

/// A block that says who wrote it.
fn mark(n: u64) -> Vec<u8> {
    (0..512u64).flat_map(|word| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (word << 1 | 1)).to_le_bytes()).collect()
}

fn status(control: &mut Control) -> ScrubReport {
    match control.call(Command::ScrubStatus) {
        Ok(Answer::Scrub(report)) => *report,
        other => panic!("{other:?}"),
    }
}

/// Numbers of the store's blocks for which `wanted` holds.
fn blocks(store: &Path, wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
    let bytes = std::fs::read(store).unwrap();
    let (blocks, _) = bytes.as_chunks::<4096>();
    (0..).zip(blocks).filter(|(_, block)| wanted(&block[..])).map(|(n, _)| n).collect()
}

fn leads_to(target: u64) -> impl Fn(&[u8]) -> bool {
    move |block| {
        let pointers = block.as_chunks::<16>().0.iter().filter_map(|bytes| Pointer::decode(bytes).ok());
        pointers.filter(|pointer| pointer.block() == target).count() > 0
    }
}

fn flip(store: &Path, block: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(store).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, block * 4096 + 1234).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], block * 4096 + 1234).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn rot_on_the_medium_is_found_named_and_reported() {
    let plane = Plane::start(256 * MIB);
    let volume = plane.volume("disk", 600 * MIB);
    let mut client = plane.nbd("disk").unwrap();
    for n in 0..30 {
        client.write(n * 20 * MIB, &mark(n)).unwrap();
    }
    let mut control = plane.control();
    control.change(Command::Checkpoint);
    let scrub = |more: &[&str]| {
        let mut scrub = program();
        scrub.args(["store", "scrub", "--runtime-dir"]).arg(plane.runtime_dir()).args(more);
        scrub
    };
    assert!(text(&succeed(&mut scrub(&["--status"]))).contains("nothing was ever scrubbed"));
    let said = text(&succeed(&mut scrub(&["--rate", "1G", "--wait"])));
    assert!(said.contains("finished") && said.contains("0 blocks damaged"), "{said}");
    while !matches!(control.event(), Event::ScrubFinished { damaged: 0, bytes } if bytes >= 30 * 4096) {}

    let data = blocks(&plane.store(), |block| block == mark(7))[0];
    let under_leaf = blocks(&plane.store(), |block| block == mark(11))[0];
    let leaf = blocks(&plane.store(), leads_to(under_leaf))[0];
    flip(&plane.store(), data);
    flip(&plane.store(), leaf);
    let said = fail(&mut scrub(&["--rate", "1G", "--wait"]));
    assert!(said.contains("2 blocks are damaged"), "{said}");
    assert!(said.contains(&format!("damaged data: volume {volume} offset {} length 4096", 7 * 20 * MIB)), "{said}");
    assert!(said.contains(&format!("map node of level 0: volume {volume} offset {}", 220 * MIB)), "{said}");
    let mut told = Vec::new();
    while told.len() < 2 {
        if let Event::Damage { volume: of, offset, .. } = control.event() {
            told.push((of, offset));
        }
    }
    told.sort_unstable();
    assert_eq!(told, [(volume, 140 * MIB), (volume, 220 * MIB)]);
    let report = status(&mut control);
    assert_eq!((report.state, report.damaged), (ScrubState::Finished, 2));
    assert_eq!(report.damage.iter().filter(|damage| damage.part == DamagedPart::Data).count(), 1);
    assert!(report.finished_before.is_some() && report.ended_at >= report.started_at, "{report:?}");
    // It is remembered, and told by the next process.
    plane.end_blockd(Signal::KILL);
    assert_eq!(status(&mut plane.control()).damaged, 2);
}

#[test]
fn a_scrub_goes_on_when_its_blockd_was_killed() {
    let plane = Plane::start(256 * MIB);
    plane.volume("disk", 600 * MIB);
    let mut client = plane.nbd("disk").unwrap();
    for n in 0..30 {
        client.write(n * 20 * MIB, &mark(n)).unwrap();
    }
    let mut control = plane.control();
    // What is still to come is known as of a checkpoint.
    control.change(Command::Checkpoint);
    // So slow that it ends on no machine while this test runs.
    control.change(Command::ScrubStart { rate: 4096, anew: false });
    assert_eq!(control.errno(Command::ScrubStart { rate: 8192, anew: false }), libc::EBUSY);
    assert_eq!(control.errno(Command::ScrubStart { rate: 1, anew: false }), libc::EINVAL);
    let report = status(&mut control);
    assert_eq!((report.state, report.rate), (ScrubState::Running, 4096));
    assert!(report.bytes_total >= 30 * 4096 && report.bytes_done < report.bytes_total, "{report:?}");
    plane.end_blockd(Signal::KILL);
    let mut control = plane.control();
    assert_eq!(status(&mut control).state, ScrubState::Running);
    control.change(Command::ScrubStop);
    assert_eq!(status(&mut control).state, ScrubState::Stopped);
    plane.end_blockd(Signal::KILL);
    let mut control = plane.control();
    assert_eq!(status(&mut control).state, ScrubState::Stopped);
    // Taken up at another rate.
    control.change(Command::ScrubStart { rate: 1 << 30, anew: false });
    while !matches!(control.event(), Event::ScrubFinished { damaged: 0, .. }) {}
    assert_eq!(status(&mut control).state, ScrubState::Finished);
}
