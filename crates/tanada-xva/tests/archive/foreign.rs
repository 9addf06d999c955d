//! Archives as other programs write them, and such as nobody should.

use super::common::{ByHand, MIB, filled, machine, pack, unpack};
use tanada_xva::{ArchiveReader, ChecksumKind, Compression, Verify, XvaError};

fn two_disks() -> Vec<(String, u64)> {
    vec![("Ref:9".into(), 3 * MIB as u64), ("Ref:10".into(), MIB as u64 + 512)]
}

/// What xapi writes: `Ref:10` before `Ref:9`, a hole, a keep-alive filler, a short last chunk.
fn good() -> ByHand {
    let mut archive = ByHand::new(&machine(&two_disks()));
    archive
        .chunk("Ref:10/00000000", &filled(MIB, 1))
        .chunk("Ref:10/00000001", &filled(512, 2))
        .chunk("Ref:9/00000000", &filled(MIB, 0))
        .chunk("Ref:9/00000001", b"")
        .chunk("Ref:9/00000003", &filled(MIB, 3));
    archive
}

#[test]
fn ids_as_text_a_hole_a_filler_and_a_short_end() {
    let (_, disks) = unpack(&good().end()[..], Verify::Checksums).unwrap();
    assert_eq!(disks[0], [filled(MIB, 1), filled(512, 2)].concat());
    assert_eq!(disks[1], [filled(2 * MIB, 0), filled(MIB, 3)].concat());
}

#[test]
fn padding_to_a_tape_record_and_a_table_at_the_end_are_read() {
    let padded = [good().end(), filled(10240, 0)].concat();
    assert!(unpack(&padded[..], Verify::Checksums).is_ok());
    let mut ova = machine(&[]);
    ova.version.export_vsn = 1;
    let archive = ByHand::new(&ova).member("checksum.xml", b"<value/>").end();
    assert!(unpack(&archive[..], Verify::Checksums).is_ok());
    ova.version.export_vsn = 2;
    let archive = ByHand::new(&ova).member("checksum.xml", b"<value/>").end();
    assert!(matches!(unpack(&archive[..], Verify::Checksums), Err(XvaError::UnexpectedMember { .. })));
}

#[test]
fn a_damaged_chunk_names_both_checksums_unless_forced() {
    let mut archive = ByHand::new(&machine(&[("Ref:1".into(), 512)]));
    let archive =
        archive.member("Ref:1/00000000", &[1; 512]).member("Ref:1/00000000.xxhash", b"EF46DB3751D8E999").end();
    match unpack(&archive[..], Verify::Checksums) {
        Err(XvaError::Checksum { member, recorded, computed }) => {
            assert_eq!((member.as_str(), recorded.as_str()), ("Ref:1/00000000", "EF46DB3751D8E999"));
            assert_eq!(computed.len(), 16);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(unpack(&archive[..], Verify::Nothing).unwrap().1, [vec![1; 512]]);
}

#[test]
fn what_breaks_the_order_is_refused() {
    let start = || ByHand::new(&machine(&[("Ref:1".into(), 4 * MIB as u64)]));
    let (full, one) = (filled(MIB, 7), "Ref:1/00000000");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("first chunk of the disk is missing", start().chunk("Ref:1/00000001", &full).end()),
        ("out of order", start().chunk(one, &full).chunk(one, &full).end()),
        ("expected chunk 00000001", start().chunk(one, &full).chunk("Ref:2/00000001", &full).end()),
        ("expected chunk 00000001", start().chunk(one, &full).chunk("Ref:1/1x", &full).end()),
        ("has 1048576 of them", start().chunk(one, &full).end()),
        ("past the 4194304 bytes", start().chunk(one, &full).chunk("Ref:1/00000004", &full).end()),
        ("past the 4194304 bytes", start().chunk(one, &full).chunk("Ref:1/999999999999", &full).end()),
        ("at most 1048576 are accepted", start().chunk(one, &filled(MIB + 512, 1)).end()),
        ("checksum of Ref:1/00000000", start().member(one, &full).chunk("Ref:1/00000001", &full).end()),
        ("at most 40 are accepted", start().member(one, &full).member("Ref:1/00000000.checksum", &[b'a'; 41]).end()),
        ("expected ova.xml", ByHand::empty().member("ova.ovf", b"").end()),
        ("expected ova.xml", ByHand::empty().end()),
        ("no tar header", filled(4096, 0xA5)),
        ("ova.xml", ByHand::empty().member("ova.xml", b"<value>").end()),
    ];
    for (words, archive) in cases {
        let error = unpack(&archive[..], Verify::Nothing).expect_err(words).to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
    }
}

#[test]
fn a_huge_declared_text_is_refused_before_it_is_read() {
    let header = tanada_xva::tar::Header::new("ova.xml", 1 << 32).encode(0).unwrap();
    let endless = std::io::Read::chain(&header[..], std::io::repeat(b' '));
    let error = unpack(endless, Verify::Checksums).unwrap_err().to_string();
    assert!(error.contains("at most 16777216"), "{error}");
}

#[test]
fn endless_fillers_are_refused() {
    struct Fillers(u64, Vec<u8>, usize);
    impl std::io::Read for Fillers {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.2 == self.1.len() {
                let name = format!("Ref:1/{:08}", self.0);
                let end = ByHand::empty().chunk(&name, b"").end();
                (self.0, self.1, self.2) = (self.0 + 1, end[..end.len() - 1024].to_vec(), 0);
            }
            let length = buffer.len().min(self.1.len() - self.2);
            buffer[..length].copy_from_slice(&self.1[self.2..self.2 + length]);
            self.2 += length;
            Ok(length)
        }
    }
    let start = ByHand::new(&machine(&[("Ref:1".into(), 512)])).end();
    let archive = std::io::Read::chain(&start[..start.len() - 1024], Fillers(0, Vec::new(), 0));
    let error = unpack(archive, Verify::Checksums).unwrap_err().to_string();
    assert!(error.contains("empty chunks"), "{error}");
}

#[test]
fn a_source_that_falls_silent_after_the_archive_is_not_waited_for() {
    struct Silence;
    impl std::io::Read for Silence {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("the reader asks for more than the archive");
        }
    }
    let disks = [filled(2 * MIB, 7)];
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let archive = pack(&disks, compression, ChecksumKind::Xxh64);
        let mut reader = ArchiveReader::open(std::io::Read::chain(&archive[..], Silence), Verify::Checksums).unwrap();
        reader.expect_open_end();
        while reader.next_event().unwrap().is_some() {}
    }
}
