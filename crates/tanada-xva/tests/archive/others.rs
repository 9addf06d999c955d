//! Archives that others' programs wrote, and ours read by one of them. `fixtures/README.md` says how they were made.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::common::{MIB, filled, pack, unpack};
use tanada_xva::{ChecksumKind, Compression, Verify};

const SECTOR: usize = 512;
const SIZE: usize = 9 * MIB + (64 << 10) + SECTOR;

/// The disk that the archives hold: some sectors with a line of 16 bytes, over and over.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    let alone = [0, 1, 127, 128, 4095, 4096, 4097, 8191, 18431, 18432, 18560];
    for sector in alone.into_iter().chain(12288..12304) {
        let line = format!("sector {sector:08}\n");
        disk[sector * SECTOR..][..SECTOR].copy_from_slice(line.repeat(SECTOR / 16).as_bytes());
    }
    disk
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/archive/fixtures").join(format!("{name}.zst"));
    let packed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(&packed[..]).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn archives_of_other_writers_are_read() {
    for name in ["xo.xva", "xva-img.xva"] {
        let archive = fixture(name);
        let (ova, disks) = unpack(&archive[..], Verify::Checksums).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(ova.of_class("VM").count(), 1, "{name}");
        let [read] = &disks[..] else { panic!("{name}: {} disks", disks.len()) };
        // Rounded up to whole chunks.
        assert_eq!(read.len(), SIZE.next_multiple_of(MIB), "{name}");
        assert!(read[..SIZE] == disk() && read[SIZE..].iter().all(|byte| *byte == 0), "{name}");
        // And compressed.
        let packed = zstd::encode_all(&archive[..], 1).unwrap();
        assert!(unpack(&packed[..], Verify::Checksums).unwrap().1 == disks, "{name}");
        for part in [10, 50, 90] {
            assert!(unpack(&archive[..archive.len() * part / 100], Verify::Checksums).is_err(), "{name}, {part} %");
        }
    }
}

#[test]
fn another_program_takes_the_disks_out_of_ours() {
    let scratch = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let out = Command::new(program).args(arguments).current_dir(scratch.path()).output();
        let out = out.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    // Chunks that are there, missing and short.
    let disks = [disk(), [filled(MIB, 3), filled(2 * MIB, 0), filled(MIB, 4)].concat()];
    // xva-img knows no other checksums.
    fs::write(scratch.path().join("ours.xva"), pack(&disks, Compression::None, ChecksumKind::Sha1)).unwrap();
    run("tar", &["xf", "ours.xva"]);
    for (number, disk) in disks.iter().enumerate() {
        run("xva-img", &["-p", "disk-export", &format!("Ref:{number}/"), "disk.raw"]);
        let mut read = fs::read(scratch.path().join("disk.raw")).unwrap();
        assert!(read.len() >= disk.len(), "{number}: {}", read.len());
        let beyond = read.split_off(disk.len());
        assert!(read == *disk && beyond.iter().all(|byte| *byte == 0), "disk {number}");
        fs::remove_file(scratch.path().join("disk.raw")).unwrap();
    }
}
