//! Holds docs/format.md to the code: its tables to the fields, its numbers to the constants, its prose about bits and
//! records to bytes written out by hand.

use tanada_format::geometry::{
    JOURNAL_BLOCKS_MAX, JOURNAL_BLOCKS_MIN, JOURNAL_KEPT_BLOCKS, JOURNAL_START, PAGE_COPIES, REGION_BLOCKS,
    SEGMENT_BLOCKS, SUPERBLOCK_AT,
};
use tanada_format::record::{GROUP_MAX, MAP_BLOCKS_MAX};
use tanada_format::{
    BitmapPage, JournalBuilder, JournalHeader, Member, Node, Pointer, Record, RegionEntry, catalog, layout, version,
};
use uuid::Uuid;

/// Every byte of it is different.
const NAME: Uuid = Uuid::from_u128(0xa0a1_a2a3_a4a5_a6a7_a8a9_aaab_acad_aeaf);
const NAME_BYTES: &str = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf";

/// The page with each stretch of white space as one blank.
fn page() -> String {
    include_str!("../../../docs/format.md").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 1048576 as 1,048,576.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// `(offset, bytes, field)` of the tables of fields, in the order of the page.
fn tables() -> Vec<Vec<(String, String, String)>> {
    let mut tables = Vec::new();
    let mut is_within = false;
    for line in include_str!("../../../docs/format.md").lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", "offset", "bytes", "field", ..] => {
                tables.push(Vec::new());
                is_within = true;
            }
            ["", offset, bytes, field, _, ""] if is_within && offset.parse::<u64>().is_ok() => {
                let row = (offset.to_owned(), bytes.to_owned(), field.to_owned());
                tables.last_mut().expect("a head before the rows").push(row);
            }
            _ => is_within &= !line.is_empty(),
        }
    }
    tables
}

/// The fields of a structure as the code prints them.
fn fields(structure: &str) -> Vec<(String, String, String)> {
    let text = layout::describe();
    let lines = text.lines().skip_while(|line| !line.starts_with(&format!("{structure}, "))).skip(1);
    let field = |line: &str| {
        let [offset, bytes, name] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        (offset.to_owned(), bytes.trim_start_matches('+').to_owned(), name.to_owned())
    };
    lines.take_while(|line| !line.is_empty()).map(field).collect()
}

#[test]
fn the_tables_of_fields_are_those_of_the_code() {
    let structures = ["superblock", "version record", "region table entry", "journal block"];
    let tables = tables();
    assert_eq!(tables.len(), structures.len(), "each table of the page is one of {structures:?}");
    for (structure, table) in structures.into_iter().zip(tables) {
        assert!(!table.is_empty());
        assert_eq!(table, fields(structure), "{structure}");
    }
}

#[test]
fn the_numbers_are_those_of_the_code() {
    let [[a, b], [c, d]] = SUPERBLOCK_AT;
    let (records, slots) = (catalog::VERSIONS_PER_BLOCK, grouped(version::VERSION_SLOTS_MAX));
    let entries = catalog::REGIONS_PER_BLOCK;
    assert_eq!((PAGE_COPIES, JOURNAL_KEPT_BLOCKS, SEGMENT_BLOCKS * 4096), (2, 8, 4 << 20), "told in words");
    let page = page();
    for said in [
        format!("are in blocks {a} and {b} (slot 0) and {c} and {d} (slot 1)"),
        format!(
            "begins at block {JOURNAL_START} and has between {JOURNAL_BLOCKS_MIN} and {} blocks",
            grouped(JOURNAL_BLOCKS_MAX)
        ),
        format!("what one bitmap page covers: {} blocks", grouped(REGION_BLOCKS)),
        format!(
            "**version table** ({records} records of {} bytes in a block, {slots} at most)",
            version::VERSION_BYTES
        ),
        format!(
            "from place {} on the **region table** ({entries} entries of {} bytes in a block)",
            grouped(catalog::REGION_TABLE_PLACE),
            catalog::REGION_ENTRY_BYTES
        ),
        format!("20 + 4 x blocks, at most {MAP_BLOCKS_MAX} |"),
        format!("24 + 24 x count, at most {GROUP_MAX} |"),
    ] {
        assert!(page.contains(&said), "docs/format.md does not say: {said}");
    }
}

/// "block (44), birth (44), kind, CRC-32C (32)", little endian.
#[test]
fn a_pointer_byte_by_byte() {
    let pointer = Pointer::new(0xb0_b1b2_b3b4 | 0xb << 40, 0xc0_c1c2_c3c4 | 0xc << 40, 0xd0d1_d2d3);
    // birth is cc0c1c2c3c4: its low half byte shares byte 5 with the high one of block bb0b1b2b3b4.
    assert_eq!(hex(&pointer.encode()), "b4b3b2b1b04b3c2c1c0ccc00d3d2d1d0");
    assert_eq!(hex(&Pointer::lost(0x1).encode()), "00000000001000000000000100000000");
    assert_eq!(hex(&Pointer::NULL.encode()), "00".repeat(16));
}

/// "256 pointers, nothing else".
#[test]
fn a_node_byte_by_byte() {
    let mut node = Node::EMPTY;
    let (first, last) = (Pointer::new(1, 2, 3), Pointer::new(4, 5, 6));
    (node.pointers[0], node.pointers[255]) = (first, last);
    let expected = [first.encode().to_vec(), vec![0; 254 * 16], last.encode().to_vec()].concat();
    assert_eq!(hex(&node.encode()), hex(&expected));
}

/// "bit n is bit n modulo 8 of byte n / 8", and those of the two pages are set.
#[test]
fn a_bitmap_page_byte_by_byte() {
    let mut page = BitmapPage::fresh();
    [2, 9, 32_767].into_iter().for_each(|bit| page.set(bit));
    let mut expected = [0; 4096];
    (expected[0], expected[1], expected[4095]) = (0b111, 0b10, 0b1000_0000);
    assert_eq!(hex(&page.encode()), hex(&expected));
    let RegionEntry::Page { crc, .. } = page.entry(1) else { panic!("a page became fresh") };
    assert_eq!(hex(&page.entry(1).encode()), format!("{}03000000{}", hex(&crc.to_le_bytes()), "0200000000000000"));
    assert_eq!(hex(&RegionEntry::Fresh.encode()), "00".repeat(16));
}

/// One of each kind, in the order of the page's table, and what its row says it takes.
fn records() -> [(Record, String, &'static str); 10] {
    let first = 0x0102_0304_0506;
    let (second, third) = (0x1112_1314_1516, 0x2122_2324_2526);
    let small = 0x0001_0203_0405;
    let members = vec![Member { head: 0x31, uuid: NAME }, Member { head: 0x0102_0304_0507, uuid: NAME }];
    [
        (
            Record::Map { head: first, place: 0x01_1213_1415, block: small, crcs: vec![0x4142_4344, 0x5152_5354] },
            "0101060504030201151413120100050403020100".to_owned() + "4443424154535251",
            "20 + 4 x blocks, at most 256",
        ),
        (
            Record::Unmap { head: first, place: 0x01_1213_1415, blocks: 0x02_2223_2425 },
            "0200060504030201151413120100252423220200".to_owned(),
            "20",
        ),
        (
            Record::Snapshot { first_id: first, ended: 0x0061_6263_6465, hidden: true, members },
            format!(
                "0302060504030201{}{}{}{NAME_BYTES}{}{NAME_BYTES}",
                "6564636261000000", "0100000000000000", "3100000000000000", "0705040302010000"
            ),
            "24 + 24 x count, at most 128",
        ),
        (
            Record::Create { head: first, size: 0x0001_0203_0405_6000, uuid: NAME },
            format!("04000605040302010060050403020100{NAME_BYTES}"),
            "32",
        ),
        (
            Record::Clone { head: first, generation: second, uuid: NAME },
            format!("05000605040302011615141312110000{NAME_BYTES}"),
            "32",
        ),
        (
            Record::Revert { head: first, generation: second, old_head: third },
            "0600060504030201161514131211262524232221".to_owned(),
            "20",
        ),
        (Record::Destroy { version: first }, "0700060504030201".to_owned(), "8"),
        (
            Record::Resize { head: first, size: 0x0001_0203_0405_6000 },
            "08000605040302010060050403020100".to_owned(),
            "16",
        ),
        (Record::Grow { store_blocks: 0x0102_0304_0506 }, "09000000000000000605040302010000".to_owned(), "16"),
        (
            Record::Recovered { seq: 0x0102_0304_0506_0708, records: 0x19 },
            "0a001900000000000807060504030201".to_owned(),
            "16",
        ),
    ]
}

#[test]
fn each_record_byte_by_byte() {
    let page = page();
    for (kind, (record, expected, bytes)) in (1..).zip(records()) {
        let mut encoded = Vec::new();
        record.encode_into(&mut encoded);
        assert_eq!(hex(&encoded), expected, "{record:?}");
        assert_eq!(Record::decode(&encoded), Ok((record.clone(), encoded.len())));
        let name = format!("{record:?}").split_whitespace().next().unwrap_or_default().to_lowercase();
        let row = page.find(&format!("| {kind} | {name}")).map(|at| &page[at..]);
        let row = row.unwrap_or_else(|| panic!("docs/format.md has no row for kind {kind}, {name}"));
        let said = row.split('|').nth(4).unwrap_or_default().trim();
        assert_eq!(said, bytes, "kind {kind}");
    }
}

/// Header, then the records back to back, then zeros.
#[test]
fn a_journal_block_byte_by_byte() {
    let header = JournalHeader { store: NAME, incarnation: 0x11, seq: 0x22, durable_seq: 0x21, checkpoint: 0x33 };
    let mut builder = JournalBuilder::new();
    let mut records = Vec::new();
    for record in [Record::Destroy { version: 1 }, Record::Resize { head: 2, size: 4096 }] {
        assert!(builder.push(&record));
        record.encode_into(&mut records);
    }
    let block = builder.seal(&header);
    let crc = hex(&block[8..12]);
    let head = [
        hex(b"TANADAJB"),
        crc,
        "02001800".to_owned(),
        NAME_BYTES.to_owned(),
        ["11", "22", "21", "33"].map(|low| format!("{low}00000000000000")).concat(),
    ];
    assert_eq!(hex(&block), head.concat() + &hex(&records) + &"00".repeat(4032 - records.len()));
}
