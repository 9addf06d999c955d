//! What we write, we read; what was damaged or cut, nobody takes for whole.

use std::collections::BTreeMap;

use super::common::{MIB, filled, machine, pack, unpack};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use tanada_xva::{ArchiveWriter, ChecksumKind, Compression, Verify, XvaError};

const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

/// Names of the members, found by walking the headers.
fn members(archive: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    while let Some(header) = tanada_xva::tar::Header::decode(archive[at..at + 512].try_into().unwrap()).unwrap() {
        at += 512 + header.size as usize + header.padding();
        names.push(header.name);
    }
    names
}

#[test]
fn sizes_that_bite() {
    let hole = [filled(MIB, 1), filled(MIB, 0), filled(MIB, 2)].concat();
    let cases = vec![
        vec![],
        vec![filled(512, 0)],
        vec![filled(512, 9)],
        vec![filled(MIB, 1)],
        vec![[filled(MIB, 1), filled(512, 2)].concat()],
        vec![hole.clone()],
        vec![filled(10 * MIB, 0)],
        vec![filled(512, 1), hole.clone(), filled(4 * MIB, 0)],
        vec![hole, filled(512, 0)],
    ];
    for disks in cases {
        for checksum in ChecksumKind::ALL {
            for compression in COMPRESSIONS {
                let archive = pack(&disks, compression, checksum);
                assert_eq!(unpack(&archive[..], Verify::Checksums).unwrap().1, disks);
            }
        }
    }
}

#[test]
fn zero_chunks_are_left_out_where_importers_can_place_the_gap() {
    let plain = |disks: &[Vec<u8>]| members(&pack(disks, Compression::None, ChecksumKind::Sha1));
    let all_zero = plain(&[filled(10 * MIB, 0)]);
    let expected =
        ["ova.xml", "Ref:0/00000000", "Ref:0/00000000.checksum", "Ref:0/00000009", "Ref:0/00000009.checksum"];
    assert_eq!(all_zero, expected);
    let tiny_first = plain(&[filled(512, 1), filled(4 * MIB, 0)]);
    assert_eq!(
        tiny_first.len(),
        1 + 2 + 8,
        "importers take the first chunk of the archive as the unit: {tiny_first:?}"
    );
}

#[test]
fn the_writer_takes_neither_too_much_nor_too_little() {
    let begin = |size| ArchiveWriter::begin(Vec::new(), &machine(&[("Ref:0".into(), size)]), ChecksumKind::Xxh64, 0);
    for size in [0, 511, 513, 1 << 60] {
        assert!(begin(size).is_err(), "{size}");
    }
    let mut writer = begin(1024).unwrap();
    assert!(writer.chunk(&[0; 512]).is_err());
    writer.zeros().unwrap();
    assert!(writer.zeros().is_err());
    writer.finish().unwrap();
    assert!(begin(1024).unwrap().finish().is_err());
}

fn small() -> Vec<Vec<u8>> {
    vec![[filled(512, 0), filled(512, 7)].concat(), filled(512, 3)]
}

#[test]
fn every_cut_is_refused_and_says_so() {
    for compression in COMPRESSIONS {
        let archive = pack(&small(), compression, ChecksumKind::Xxh64);
        for length in 0..archive.len() {
            match unpack(&archive[..length], Verify::Checksums) {
                Err(XvaError::PrematureEnd(_)) => {}
                other => panic!("{compression:?} cut at {length} of {}: {other:?}", archive.len()),
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_refused_or_harmless() {
    for compression in COMPRESSIONS {
        let archive = pack(&small(), compression, ChecksumKind::Xxh64);
        let whole = unpack(&archive[..], Verify::Checksums).unwrap();
        let (mut tested, mut harmless) = (0, 0);
        // Every byte of the compressed forms, and one bit of each byte of the plain one, whose checks are the same everywhere.
        for bit in (0..archive.len() * 8).step_by(if compression == Compression::None { 9 } else { 1 }) {
            let mut damaged = archive.clone();
            tested += 1;
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = unpack(&damaged[..], Verify::Checksums) {
                assert!(read == whole, "{compression:?}: bit {bit} changed what was read");
                harmless += 1;
            }
        }
        // Time stamps and flags of the gzip header, deflate codes with the same meaning, filler after octal digits.
        assert!(harmless * 20 < tested, "{compression:?}: {harmless} of {tested} flips went unseen");
    }
}

/// A disk as runs of 512-byte sectors, so that chunks are full, empty and partly filled.
fn disk() -> impl Strategy<Value = Vec<u8>> {
    let run = (prop_oneof![1..8usize, Just(2048), 1000..5000usize], prop_oneof![Just(0u8), any::<u8>()]);
    prop::collection::vec(run, 1..5)
        .prop_map(|runs| runs.into_iter().flat_map(|(n, byte)| filled(n * 512, byte)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_disks_survive(
        disks in prop::collection::vec(disk(), 0..4),
        compression in prop::sample::select(&COMPRESSIONS[..]),
        checksum in prop::sample::select(&ChecksumKind::ALL[..]),
    ) {
        let archive = pack(&disks, compression, checksum);
        let (ova, read) = unpack(&archive[..], Verify::Checksums).unwrap();
        assert!(read == disks);
        assert_eq!(ova.disks().unwrap().len(), disks.len());
    }

    #[test]
    fn any_cut_of_larger_archives_is_refused(
        disks in prop::collection::vec(disk(), 1..3),
        compression in prop::sample::select(&COMPRESSIONS[..]),
        place in any::<prop::sample::Index>(),
    ) {
        let archive = pack(&disks, compression, ChecksumKind::Sha1);
        let length = place.index(archive.len());
        let read = unpack(&archive[..length], Verify::Checksums);
        assert!(matches!(read, Err(XvaError::PrematureEnd(_))), "cut at {length}");
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), magic in 0..4usize) {
        let start: &[u8] = [&[][..], &[0x28, 0xB5, 0x2F, 0xFD], &[0x1F, 0x8B, 8, 0], b"ova.xml"][magic];
        assert!(unpack(&[start, &bytes].concat()[..], Verify::Checksums).is_err());
    }
}

/// Programs that know nothing of us look at the archive.
#[test]
fn outside_witnesses() {
    use std::process::Command;
    let run = |program: &str, arguments: &[&str]| {
        let out = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let disks = vec![[filled(MIB, 1), filled(3 * MIB, 0), filled(MIB, 5), filled(512, 6)].concat(), filled(MIB, 2)];

    let plain = path("plain.xva");
    std::fs::write(&plain, pack(&disks, Compression::None, ChecksumKind::Sha1)).unwrap();
    let listed: Vec<String> = run("tar", &["tf", &plain]).lines().map(str::to_owned).collect();
    assert_eq!(listed, members(&std::fs::read(&plain).unwrap()));
    run("tar", &["xf", &plain, "-C", scratch.path().to_str().unwrap()]);
    let mut sums = BTreeMap::new();
    for name in listed.iter().filter(|name| name.contains('/') && !name.ends_with(".checksum")) {
        let seen = run("sha1sum", &[&path(name)]);
        assert_eq!(
            seen.split_whitespace().next(),
            Some(std::fs::read_to_string(path(&format!("{name}.checksum"))).unwrap().as_str())
        );
        sums.insert(name, seen);
    }
    assert_eq!(sums.len(), 4, "chunks 0, 4, 5 of one disk, 0 of the other: {sums:?}");

    for (compression, program) in [(Compression::Gzip, "gzip"), (Compression::Zstd, "zstd")] {
        let packed = path(program);
        std::fs::write(&packed, pack(&disks, compression, ChecksumKind::Sha1)).unwrap();
        let input = std::fs::File::open(&packed).unwrap();
        let status = Command::new(program).args(["-t", "-q", "-"]).stdin(input).status().unwrap();
        assert!(status.success(), "{program} -t");
        let theirs = Command::new(program).args(["-c", "-q", &plain]).output().unwrap();
        assert!(theirs.status.success());
        assert!(unpack(&theirs.stdout[..], Verify::Checksums).unwrap().1 == disks, "packed by {program}");
    }
}
