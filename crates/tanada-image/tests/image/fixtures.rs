//! Files that others' programs wrote: what each holds is known sector by sector. `fixtures/README.md` says how they were
//! made.

use std::fs;
use std::path::Path;

use tanada_image::{Gaps, Reader, Source};

use super::disk::{MIB, apply, apply_opened};

const SECTOR: usize = 512;
pub const SIZE: usize = 9 * MIB + (64 << 10) + SECTOR;

/// A line of 16 bytes, over and over.
fn fill(disk: &mut [u8], sector: usize, word: &str) {
    let line = format!("{word} {sector:08}\n");
    disk[sector * SECTOR..][..SECTOR].copy_from_slice(line.repeat(SECTOR / 16).as_bytes());
}

/// The disk that the files hold.
pub fn first() -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    let alone = [0, 1, 127, 128, 4095, 4096, 4097, 8191, 18431, 18432, 18560];
    alone.into_iter().chain(12288..12304).for_each(|sector| fill(&mut disk, sector, "sector"));
    disk
}

/// The same a day later.
pub fn second() -> Vec<u8> {
    let mut disk = first();
    [1, 4096, 9000, 18560].into_iter().for_each(|sector| fill(&mut disk, sector, "change"));
    disk[8191 * SECTOR..8192 * SECTOR].fill(0);
    disk
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image/fixtures").join(format!("{name}.zst"));
    let packed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(&packed[..]).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reads the file over `before`; the disk that its writer says it is may be longer than ours.
fn read(source: Source, image: &[u8], before: &[u8], gaps: Gaps) -> Vec<u8> {
    let reader = Reader::open(source, image, Some(image.len() as u64)).unwrap();
    let size = reader.size().unwrap() as usize;
    assert!((SIZE..SIZE + 2 * MIB).contains(&size), "{size}");
    let mut disk = before.to_vec();
    disk.resize(size, 0);
    assert_eq!(apply_opened(reader, &mut disk).unwrap(), gaps);
    assert!(disk[SIZE..].iter().all(|byte| *byte == 0), "beyond the disk there is nothing");
    disk.truncate(SIZE);
    disk
}

#[test]
fn whole_disks_of_other_writers_are_read() {
    let vhds = ["xo-stream.vhd", "xo-file.vhd", "xo-sparse.vhd", "pyvhd.vhd"];
    for name in vhds {
        assert!(read(Source::Vhd, &fixture(name), &vec![0; SIZE], Gaps::Zeros) == first(), "{name}");
    }
    assert!(read(Source::Qcow2, &fixture("xo.qcow2"), &vec![0; SIZE], Gaps::Unsaid) == first());
}

#[test]
fn a_delta_of_another_writer_makes_the_next_day() {
    let delta = fixture("xo-delta.vhd");
    assert!(read(Source::Vhd, &delta, &first(), Gaps::Base) == second());
    // What it leaves out stays: it is no whole disk.
    assert!(read(Source::Vhd, &delta, &vec![0; SIZE], Gaps::Base) != second());
    assert!(read(Source::Vhd, &fixture("xo-synthetic.vhd"), &vec![0; SIZE], Gaps::Zeros) == second());
}

#[test]
fn files_of_other_writers_that_break_off_are_refused() {
    for (source, name) in [(Source::Vhd, "xo-file.vhd"), (Source::Vhd, "pyvhd.vhd"), (Source::Qcow2, "xo.qcow2")] {
        let image = fixture(name);
        for part in [1, 20, 50, 80, 99] {
            let cut = &image[..image.len() * part / 100];
            assert!(apply(source, cut, &mut vec![0; SIZE + 2 * MIB]).is_err(), "{name}, {part} %");
        }
    }
}
