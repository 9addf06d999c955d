//! VHDs as other writers lay them out, put together here byte by byte.

use tanada_image::{Gaps, ImageError, Reader, Source};
use tanada_witness::noise;

use super::disk::{MIB, apply, apply_opened};

const ABSENT: u32 = u32::MAX;

/// What can differ between writers.
pub struct Theirs {
    pub kind: u32,
    pub size: u64,
    pub block_bytes: u32,
    pub header_at: u64,
    pub table_at: u64,
    pub entries: u32,
    /// Bytes of tables of their own, between ours and the blocks, and before the last footer.
    pub own: usize,
    /// In the order of the file: block, bitmap byte for all of it, content's seed.
    pub blocks: Vec<(u32, u8, u64)>,
}

impl Theirs {
    pub fn new(kind: u32, size: u64) -> Theirs {
        let entries = size.div_ceil(2 << 20) as u32;
        Theirs { kind, size, block_bytes: 2 << 20, header_at: 512, table_at: 1536, entries, own: 0, blocks: Vec::new() }
    }

    fn bitmap_bytes(&self) -> usize {
        (self.block_bytes as usize / 512 / 8).next_multiple_of(512)
    }

    pub fn footer(&self) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        put(&mut bytes, 0, b"conectix");
        put(&mut bytes, 8, &2u32.to_be_bytes());
        put(&mut bytes, 12, &0x0001_0000u32.to_be_bytes());
        put(&mut bytes, 16, &self.header_at.to_be_bytes());
        put(&mut bytes, 24, &700_000_000u32.to_be_bytes());
        put(&mut bytes, 28, b"tap\0");
        put(&mut bytes, 32, &0x0001_0003u32.to_be_bytes());
        put(&mut bytes, 40, &self.size.to_be_bytes());
        put(&mut bytes, 48, &self.size.to_be_bytes());
        put(&mut bytes, 60, &self.kind.to_be_bytes());
        put(&mut bytes, 68, b"somebody's image");
        seal(&mut bytes, 64);
        bytes
    }

    pub fn image(&self) -> Vec<u8> {
        let mut image = self.footer();
        image.resize(self.header_at as usize, 0);
        let mut header = vec![0; 1024];
        put(&mut header, 0, b"cxsparse");
        put(&mut header, 8, &u64::MAX.to_be_bytes());
        put(&mut header, 16, &self.table_at.to_be_bytes());
        put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
        put(&mut header, 28, &self.entries.to_be_bytes());
        put(&mut header, 32, &self.block_bytes.to_be_bytes());
        seal(&mut header, 36);
        image.extend(header);
        image.resize(self.table_at as usize, 0);
        let table_end = (self.table_at as usize + self.entries as usize * 4).next_multiple_of(512);
        let mut table = vec![ABSENT; self.entries as usize];
        let first = table_end + self.own;
        for ((block, _, _), position) in self.blocks.iter().zip(0..) {
            table[*block as usize] =
                ((first + position * (self.bitmap_bytes() + self.block_bytes as usize)) / 512) as u32;
        }
        image.extend(table.iter().flat_map(|entry| entry.to_be_bytes()));
        image.resize(table_end, 0xff);
        image.resize(first, 0xab);
        for (_, bits, seed) in &self.blocks {
            image.extend(std::iter::repeat_n(*bits, self.bitmap_bytes()));
            image.extend(noise(self.block_bytes as usize, *seed));
        }
        image.resize(image.len() + self.own, 0xab);
        image.extend(self.footer());
        image
    }

    /// What a disk of `before` holds after the image was read over it.
    fn over(&self, before: &[u8]) -> Vec<u8> {
        let mut disk = before.to_vec();
        for (block, bits, seed) in &self.blocks {
            let start = *block as usize * self.block_bytes as usize;
            for (sector, content) in noise(self.block_bytes as usize, *seed).chunks(512).enumerate() {
                let at = start + sector * 512;
                if bits & 0x80 >> (sector % 8) != 0 && at < disk.len() {
                    disk[at..at + 512].copy_from_slice(content);
                }
            }
        }
        disk
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn seal(bytes: &mut [u8], field: usize) {
    put(bytes, field, &[0; 4]);
    let sum = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    put(bytes, field, &(!sum).to_be_bytes());
}

#[test]
fn layouts_of_others_are_read() {
    let size = 11 * MIB as u64;
    let forms = [
        Theirs { blocks: vec![(0, 0xff, 1), (3, 0xff, 2)], ..Theirs::new(3, size) },
        // In another order than the disk's; the last block reaches beyond it.
        Theirs { blocks: vec![(5, 0xff, 1), (1, 0xff, 2), (4, 0xff, 3)], ..Theirs::new(3, size) },
        // Tables of their own, a table with room, a header and a table elsewhere.
        Theirs {
            own: 4096,
            entries: 64,
            header_at: 1024,
            table_at: 4096,
            blocks: vec![(2, 0xff, 1)],
            ..Theirs::new(3, size)
        },
        // Sectors that are not there.
        Theirs { blocks: vec![(0, 0b1010_0001, 1), (5, 0x0f, 2), (1, 0, 3)], ..Theirs::new(3, size) },
        Theirs {
            block_bytes: 64 << 10,
            entries: 176,
            blocks: vec![(9, 0xff, 1), (175, 0xff, 2)],
            ..Theirs::new(3, size)
        },
        Theirs::new(3, size),
    ];
    for (number, theirs) in forms.iter().enumerate() {
        let mut disk = vec![0; size as usize];
        assert_eq!(apply(Source::Vhd, &theirs.image(), &mut disk).unwrap(), Gaps::Zeros, "{number}");
        assert!(disk == theirs.over(&vec![0; size as usize]), "{number}");
    }
}

#[test]
fn a_differencing_image_changes_the_sectors_it_has_and_no_others() {
    let parent = noise(6 * MIB, 77);
    let delta = Theirs { blocks: vec![(1, 0x18, 5), (0, 0x80, 6)], ..Theirs::new(4, parent.len() as u64) };
    let mut disk = parent.clone();
    assert_eq!(apply(Source::Vhd, &delta.image(), &mut disk).unwrap(), Gaps::Base);
    assert!(disk == delta.over(&parent) && disk != parent);
}

#[test]
fn what_is_no_stream_or_no_vhd_is_refused() {
    let size = 8 * MIB as u64;
    let good = || Theirs { blocks: vec![(0, 0xff, 1), (2, 0xff, 2)], ..Theirs::new(3, size) };
    let refusal = |theirs: Theirs| {
        let image = theirs.image();
        let mut disk = vec![0; size as usize];
        apply(Source::Vhd, &image, &mut disk).expect_err("has to be refused").to_string()
    };
    let wrong = [
        (Theirs { kind: 5, ..good() }, "type 5"),
        (Theirs { kind: 2, ..good() }, "fixed"),
        (Theirs { block_bytes: 3 << 20, ..good() }, "power of two"),
        (Theirs { entries: 3, ..good() }, "3 blocks"),
        (Theirs { size: size + 1, entries: 5, ..good() }, "multiple of 512"),
    ];
    for (theirs, words) in wrong {
        let said = refusal(theirs);
        assert!(said.contains(words), "{words}: {said}");
    }
    let edited = |at: usize, value: u32| {
        let mut image = good().image();
        put(&mut image, at, &value.to_be_bytes());
        apply(Source::Vhd, &image, &mut vec![0; size as usize]).expect_err("has to be refused")
    };
    // Two blocks at one place, overlapping ones, one before the table, one beyond the end.
    let first = u32::from_be_bytes(good().image()[1536..1540].try_into().unwrap());
    assert!(edited(1544, first).to_string().contains("over each other"));
    assert!(edited(1544, first + 100).to_string().contains("over each other"));
    assert!(matches!(edited(1536, 1), ImageError::Unsupported(_)));
    assert!(matches!(edited(1544, 1 << 30), ImageError::PrematureEnd(_)));
}

#[test]
fn a_fixed_image_is_its_disk() {
    for size in [512, MIB - 512, MIB, MIB + 512, 3 * MIB] {
        let disk = noise(size, 3);
        let theirs = Theirs { kind: 2, header_at: u64::MAX, ..Theirs::new(2, size as u64) };
        let image = [&disk[..], &theirs.footer()].concat();
        let mut copy = vec![0; size];
        let reader = Reader::open(Source::Vhd, &image[..], Some(image.len() as u64)).unwrap();
        assert_eq!(reader.size(), Some(size as u64));
        apply_opened(reader, &mut copy).unwrap();
        assert!(copy == disk);
        let cut = apply(Source::Vhd, &image[..image.len() - 512], &mut copy);
        assert!(matches!(cut, Err(ImageError::PrematureEnd(_))), "{size}: {cut:?}");
    }
}
