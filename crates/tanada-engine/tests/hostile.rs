//! Images that no engine writes, with whole checksums: what the fuzzer found, by hand.

mod shell;

use shell::{Device, MIB, Shell, formatted, id};
use tanada_disk::{Buf, DiskOp};
use tanada_engine::{Control, EngineConfig, Reply};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::{JournalBuilder, JournalHeader, Node, Pointer, Record, Superblock, crc32c};

const STORE_BYTES: u64 = 32 * MIB;

fn superblock(device: &Device) -> Superblock {
    let slots = [0, 1].into_iter().flat_map(|slot| SUPERBLOCK_AT[slot].map(|at| (slot, at)));
    let copies = slots.filter_map(|(slot, at)| Superblock::decode(device.blocks.get(&at)?, slot).ok());
    copies.max_by_key(|superblock| superblock.checkpoint).expect("a store")
}

fn put_journal(device: &mut Device, header: JournalHeader, records: &[Record]) {
    let mut builder = JournalBuilder::new();
    records.iter().for_each(|record| assert!(builder.push(record)));
    let at = superblock(device).geometry.journal_block(header.seq) * 4096;
    device.carry_out(&DiskOp::Write { at, parts: vec![Buf::copy_from(&builder.seal(&header))] }).expect("memory");
}

fn header(device: &Device, seq: u64, incarnation: u64) -> JournalHeader {
    JournalHeader { store: superblock(device).store, incarnation, seq, durable_seq: 0, checkpoint: 1 }
}

/// Why the engine does not open it.
fn refusal(device: Device) -> String {
    match Shell::open(device, EngineConfig::new(STORE_BYTES)).opened {
        Some(Err(failure)) => failure.message,
        other => panic!("opened: {other:?}"),
    }
}

#[test]
fn a_life_without_a_recovery_block_does_not_continue_the_journal() {
    let mut device = formatted(STORE_BYTES, MIB);
    let first = header(&device, 1, 1);
    put_journal(&mut device, first, &[Record::Recovered { seq: 0, records: 0 }]);
    let second = header(&device, 2, 2);
    put_journal(&mut device, second, &[Record::Create { head: 1, size: MIB, uuid: id(1) }]);
    let mut shell = Shell::open(device, EngineConfig::new(STORE_BYTES));
    assert!(matches!(shell.must(Control::List), Reply::List(volumes) if volumes.is_empty()));
}

#[test]
fn a_recovery_of_another_block_is_refused() {
    let mut device = formatted(STORE_BYTES, MIB);
    let first = header(&device, 1, 1);
    put_journal(&mut device, first, &[Record::Recovered { seq: 1, records: 0 }]);
    assert!(refusal(device).contains("its records make no sense"));
}

#[test]
fn a_former_life_that_knew_more_to_be_durable_does_not_count() {
    let mut device = formatted(STORE_BYTES, MIB);
    let newer = header(&device, 1, 2);
    put_journal(&mut device, newer, &[Record::Recovered { seq: 0, records: 0 }]);
    let former = JournalHeader { durable_seq: 2, ..header(&device, 3, 1) };
    put_journal(&mut device, former, &[Record::Destroy { version: 1 }]);
    let mut shell = Shell::open(device, EngineConfig::new(STORE_BYTES));
    assert!(matches!(shell.must(Control::List), Reply::List(volumes) if volumes.is_empty()));
}

#[test]
fn a_journal_block_at_another_ones_place_does_not_count() {
    let mut device = formatted(STORE_BYTES, MIB);
    let first = header(&device, 1, 1);
    put_journal(&mut device, first, &[Record::Recovered { seq: 0, records: 0 }]);
    let ahead = JournalHeader { durable_seq: 4, ..header(&device, 5, 1) };
    put_journal(&mut device, ahead, &[Record::Destroy { version: 1 }]);
    let geometry = superblock(&device).geometry;
    assert!(refusal(device.clone()).contains("is missing"), "in its place it proves that blocks are missing");
    let moved = device.blocks.remove(&geometry.journal_block(5)).expect("written");
    device.blocks.insert(geometry.journal_block(6), moved);
    let mut shell = Shell::open(device, EngineConfig::new(STORE_BYTES));
    assert!(matches!(shell.must(Control::List), Reply::List(volumes) if volumes.is_empty()));
}

#[test]
fn a_store_that_grew_beyond_its_device_is_refused() {
    let mut device = formatted(STORE_BYTES, MIB);
    let first = header(&device, 1, 1);
    let grow = Record::Grow { store_blocks: 1 << 40 };
    put_journal(&mut device, first, &[Record::Recovered { seq: 0, records: 0 }, grow]);
    assert!(refusal(device).contains("the device has"));
}

#[test]
fn a_catalog_that_refers_to_itself_is_refused() {
    let mut device = formatted(STORE_BYTES, MIB);
    let mut superblock = superblock(&device);
    let first = superblock.geometry.regions_start() + 2;
    // Each node holds 256 times the next one: 2^32 leaves in four blocks.
    let mut crc = 7;
    for level in 0..4 {
        let node = Node { pointers: [Pointer::new(first + level, 1, crc); 256] };
        device.blocks.insert(first + level + 1, node.encode().to_vec());
        crc = crc32c(&node.encode());
    }
    superblock.catalog = Pointer::new(first + 4, 1, crc);
    for at in SUPERBLOCK_AT[superblock.slot()] {
        device.blocks.insert(at, superblock.encode().to_vec());
    }
    assert!(refusal(device).contains("twice"));
}
