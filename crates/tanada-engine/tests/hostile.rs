//! Images that no engine writes, with whole checksums: what the fuzzer found, by hand.

mod shell;

use shell::{Device, MIB, Shell, formatted, id};
use tanada_disk::{Buf, DiskOp};
use tanada_engine::{Control, EngineConfig, Reply};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::{JournalBuilder, JournalHeader, Record, Superblock};

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
