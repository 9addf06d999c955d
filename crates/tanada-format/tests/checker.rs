//! The checker on images made by hand: a fresh store is clean, and each kind of damage is named.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tanada_format::check::{CheckError, CheckOptions, CheckReport, ReadAt, check};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::{
    BLOCK_BYTES, FormatOptions, Geometry, JournalBuilder, JournalHeader, Member, Pointer, Record, Superblock, crc32c,
    format_image,
};
use uuid::Uuid;

const STORE: Uuid = Uuid::from_u128(7);

struct Image {
    length: u64,
    blocks: RefCell<BTreeMap<u64, [u8; BLOCK_BYTES]>>,
}

impl Default for Image {
    fn default() -> Image {
        Image { length: 1 << 40, blocks: RefCell::default() }
    }
}

impl ReadAt for Image {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        if offset + bytes.len() as u64 > self.length {
            return Err(format!("nothing at {offset}"));
        }
        for (n, chunk) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
            let block = self.blocks.borrow().get(&(offset / 4096 + n as u64)).copied().unwrap_or([0; BLOCK_BYTES]);
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}

impl Image {
    fn put(&self, block: u64, bytes: [u8; BLOCK_BYTES]) {
        self.blocks.borrow_mut().insert(block, bytes);
    }

    fn put_superblock(&self, superblock: &Superblock) {
        SUPERBLOCK_AT[superblock.slot()].iter().for_each(|at| self.put(*at, superblock.encode()));
    }

    fn check(&self) -> CheckReport {
        check(self, CheckOptions { data: true }).expect("a store")
    }
}

fn fresh() -> (Image, Superblock) {
    let options = FormatOptions { store: STORE, device_bytes: 32 << 20, journal_bytes: Some(1 << 20) };
    let superblock = format_image(&options).expect("room").superblock;
    let image = Image::default();
    image.put_superblock(&superblock);
    (image, superblock)
}

fn journal(image: &Image, superblock: &Superblock, header: JournalHeader, records: &[Record]) {
    let mut builder = JournalBuilder::new();
    records.iter().for_each(|record| assert!(builder.push(record)));
    image.put(superblock.geometry.journal_block(header.seq), builder.seal(&header));
}

fn header(seq: u64) -> JournalHeader {
    JournalHeader { store: STORE, incarnation: 1, seq, durable_seq: 0, checkpoint: 1 }
}

fn assert_found(report: &CheckReport, what: &str) {
    assert!(report.findings.iter().any(|finding| finding.contains(what)), "{what} is not in {:?}", report.findings);
}

#[test]
fn a_fresh_store_is_clean_and_zeros_are_no_store() {
    let (image, _) = fresh();
    let report = image.check();
    assert!(report.is_clean() && report.journal.records() == 0, "{:?}", report.findings);
    assert!(matches!(check(&Image::default(), CheckOptions::default()), Err(CheckError::NoStore(_))));
}

#[test]
fn one_lost_superblock_copy_is_a_note() {
    let (image, _) = fresh();
    image.put(SUPERBLOCK_AT[1][0], [0; BLOCK_BYTES]);
    let report = image.check();
    assert!(report.is_clean() && report.notes.len() == 1, "{:?}", report.notes);
}

#[test]
fn the_journal_ends_at_the_first_record_whose_data_is_torn() {
    let (image, superblock) = fresh();
    let first = superblock.geometry.regions_start() + 2;
    image.put(first, [1; BLOCK_BYTES]);
    let map = |place, block, crc| Record::Map { head: 1, place, block, crcs: vec![crc] };
    let records = [
        Record::Recovered { seq: 0, records: 0 },
        Record::Create { head: 1, size: 1 << 20, uuid: Uuid::from_u128(1) },
        map(0, first, crc32c(&[1; BLOCK_BYTES])),
        map(1, first + 1, 99),
        map(2, first, crc32c(&[1; BLOCK_BYTES])),
    ];
    journal(&image, &superblock, header(1), &records);
    let report = image.check();
    assert_eq!(report.journal.records(), 3);
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[test]
fn rotten_data_of_a_durable_record_is_damage() {
    let (image, superblock) = fresh();
    let first = superblock.geometry.regions_start() + 2;
    let records = [
        Record::Recovered { seq: 0, records: 0 },
        Record::Create { head: 1, size: 1 << 20, uuid: Uuid::from_u128(1) },
        Record::Map { head: 1, place: 7, block: first, crcs: vec![crc32c(&[1; BLOCK_BYTES])] },
    ];
    journal(&image, &superblock, header(1), &records);
    let durable = JournalHeader { durable_seq: 1, ..header(2) };
    journal(&image, &superblock, durable, &[Record::Resize { head: 1, size: 2 << 20 }]);
    assert_found(&image.check(), "journal block 1, head 1, offset 28672");
    image.put(first, [1; BLOCK_BYTES]);
    assert!(image.check().is_clean());
}

#[test]
fn a_block_of_a_former_life_ends_the_journal() {
    let (image, superblock) = fresh();
    let recovered = Record::Recovered { seq: 0, records: 0 };
    journal(&image, &superblock, JournalHeader { incarnation: 2, ..header(1) }, &[recovered]);
    journal(&image, &superblock, header(2), &[Record::Destroy { version: 1 }]);
    let report = image.check();
    assert_eq!((report.journal.blocks.len(), report.journal.end_seq), (1, 2));
}

#[test]
fn a_whole_journal_block_that_makes_no_sense_is_damage() {
    let destroy = Record::Destroy { version: 1 };
    let of_another_block = Record::Recovered { seq: 1, records: 0 };
    for records in [vec![of_another_block], vec![destroy, Record::Recovered { seq: 0, records: 0 }]] {
        let (image, superblock) = fresh();
        journal(&image, &superblock, header(1), &records);
        assert_found(&image.check(), "make no sense");
    }
}

#[test]
fn a_hole_below_the_durable_mark_is_damage() {
    let (image, superblock) = fresh();
    journal(&image, &superblock, JournalHeader { durable_seq: 2, ..header(3) }, &[Record::Destroy { version: 1 }]);
    assert_found(&image.check(), "(J3)");
}

#[test]
fn a_newer_checkpoint_in_the_journal_is_damage() {
    let (image, superblock) = fresh();
    let recovered = Record::Recovered { seq: 0, records: 0 };
    journal(&image, &superblock, JournalHeader { checkpoint: 2, ..header(1) }, &[recovered]);
    assert_found(&image.check(), "(J8)");
}

#[test]
fn a_block_mapped_twice_by_the_journal_is_damage() {
    let (image, superblock) = fresh();
    let block = superblock.geometry.regions_start() + 5;
    let map = Record::Map { head: 1, place: 0, block, crcs: vec![crc32c(&[0; BLOCK_BYTES])] };
    journal(&image, &superblock, header(1), &[Record::Recovered { seq: 0, records: 0 }, map.clone(), map]);
    assert_found(&image.check(), "(B1)");
}

#[test]
fn a_catalog_that_does_not_match_its_checksum_is_damage() {
    let (image, mut superblock) = fresh();
    superblock.catalog = Pointer::new(superblock.geometry.regions_start() + 2, 1, 5);
    image.put_superblock(&superblock);
    assert_found(&image.check(), "checksum");
}

#[test]
fn records_that_contradict_the_store_are_damage() {
    let create = |head, uuid| Record::Create { head, size: 1 << 20, uuid: Uuid::from_u128(uuid) };
    let cut = |ended, heads: &[u64]| {
        let members = (50..).zip(heads).map(|(uuid, head)| Member { head: *head, uuid: Uuid::from_u128(uuid) });
        Record::Snapshot { first_id: 9, ended, hidden: false, members: members.collect() }
    };
    let beyond = Record::Map { head: 1, place: 256, block: 4096, crcs: vec![crc32c(&[0; BLOCK_BYTES])] };
    let cases: [(&[Record], &str); 10] = [
        (&[create(1, 1), Record::Resize { head: 1, size: 4096 }], "stays mapped"),
        (&[create(1, 1), beyond], "is mapped up to"),
        (&[Record::Unmap { head: 1, place: 0, blocks: 1 }], "no live head"),
        (&[create(1, 1), create(1, 2)], "exists already"),
        (&[create(1, 1), create(2, 1)], "of the name"),
        (&[create(1, 1), cut(2, &[1])], "ends epoch 2"),
        (&[create(1, 1), cut(1, &[1, 1])], "cut twice"),
        (&[create(1, 1), Record::Clone { head: 2, generation: 1, uuid: Uuid::from_u128(2) }], "no live generation"),
        (&[create(1, 1), Record::Destroy { version: 1 }, Record::Destroy { version: 1 }], "destroyed already"),
        (&[Record::Grow { store_blocks: 1 << 40 }], "the device is shorter"),
    ];
    for (records, what) in cases {
        let (mut image, superblock) = fresh();
        image.length = superblock.geometry.store_bytes();
        journal(&image, &superblock, header(1), &[&[Record::Recovered { seq: 0, records: 0 }], records].concat());
        assert_found(&image.check(), what);
    }
}

#[test]
fn a_store_larger_than_its_device_is_refused_before_memory_is_taken_for_it() {
    let (mut image, mut superblock) = fresh();
    image.length = superblock.geometry.store_bytes();
    superblock.geometry = Geometry::new(1 << 43, 256).expect("valid");
    image.put_superblock(&superblock);
    assert!(matches!(check(&image, CheckOptions::default()), Err(CheckError::Unreadable(_))));
}
