//! What an input does to an image.

use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::pointer::{EPOCH_MAX, POINTER_BYTES};
use tanada_format::superblock::LOST_PLACES;
use tanada_format::version::VERSION_BYTES;
use tanada_format::{BLOCK_BYTES, FANOUT, JournalBuilder, JournalHeader, Member, Pointer, Record};

use super::base::{Base, CLASSES, Class, id};
use super::image::Image;
use super::seal::{newest, number};
use crate::Script;

/// Changes of one input at most.
const CHANGES_MAX: usize = 12;

/// Offset of the tree's pointer in a version record.
const VERSION_TREE: usize = 48;

/// Fields of version records: offset and length in bytes.
const VERSION_FIELDS: [(usize, usize); 13] =
    [(0, 8), (8, 8), (16, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 8), (72, 8), (80, 1), (81, 1), (82, 2), (84, 4)];

pub fn apply(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    for _ in 0..CHANGES_MAX {
        if script.is_over() {
            return;
        }
        change(image, base, script);
    }
}

fn change(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let kind = script.byte();
    match kind % 10 {
        _ if kind >= 250 => lose(image, base, script),
        0 | 1 => set_number(image, base, script),
        2 => set_version_field(image, base, script),
        3 => copy_pointer(image, base, script),
        4 => set_pointer(image, base, script),
        5 => copy_block(image, base, script),
        6 => clear(image, base, script),
        7 | 8 => append_records(image, script),
        _ => image.length_blocks = script.value(image.length_blocks).min(1 << 18),
    }
}

/// A block of some class, `None` where the base has none.
fn block(base: &Base, script: &mut Script<'_>) -> Option<u64> {
    let class = CLASSES[script.below(CLASSES.len())];
    block_of(base, class, script)
}

fn block_of(base: &Base, class: Class, script: &mut Script<'_>) -> Option<u64> {
    script.pick(base.classes.get(&class)?)
}

/// A block of pointers, and one of its slots; the low ones are the likelier to be in use.
fn slot(base: &Base, script: &mut Script<'_>) -> Option<(u64, usize)> {
    let class = if script.byte().is_multiple_of(4) { Class::CatalogNode } else { Class::Node };
    let block = block_of(base, class, script)?;
    Some((block, script.below(FANOUT) * POINTER_BYTES))
}

fn set_number(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let Some(block) = block(base, script) else { return };
    let bytes = [1, 2, 4, 8][script.below(4)];
    let near_start = script.byte().is_multiple_of(2);
    let at = if near_start { script.below(160 / bytes) } else { script.below(BLOCK_BYTES / bytes) } * bytes;
    put(image, block, at, bytes, script);
}

fn put(image: &mut Image, block: u64, at: usize, bytes: usize, script: &mut Script<'_>) {
    image.edit(block, |block| {
        let value = script.value(number(block.as_slice(), at, bytes));
        block[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    });
}

fn set_version_field(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let Some(block) = block_of(base, Class::Versions, script) else { return };
    let record = script.below(16) * 256;
    let (at, bytes) = VERSION_FIELDS[script.below(VERSION_FIELDS.len())];
    if script.byte().is_multiple_of(4) {
        // The same field of another record.
        let from = script.below(16) * 256 + at;
        image.edit(block, |block| block.copy_within(from..from + bytes, record + at));
    } else {
        put(image, block, record + at, bytes, script);
    }
}

fn copy_pointer(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let (Some(from), Some(to)) = (slot(base, script), slot(base, script)) else { return };
    let source = *image.get(from.0);
    image.edit(to.0, |block| {
        block[to.1..to.1 + POINTER_BYTES].copy_from_slice(&source[from.1..from.1 + POINTER_BYTES]);
    });
}

/// A pointer leads to another block of the store, or was born at another time.
fn set_pointer(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let Some((at, slot)) = slot(base, script) else { return };
    let target = if script.byte().is_multiple_of(2) { block(base, script) } else { None };
    image.edit(at, |bytes| {
        let old = u128::from_le_bytes(bytes[slot..slot + 16].try_into().unwrap_or_default());
        let (block, birth) = (old as u64 & ((1 << 44) - 1), (old >> 44) as u64 & ((1 << 44) - 1));
        let block = target.unwrap_or(block);
        let birth = if target.is_some() && script.byte().is_multiple_of(2) { birth } else { script.value(birth) };
        let new = u128::from(block) | u128::from(birth & ((1 << 44) - 1)) << 44 | old >> 96 << 96;
        bytes[slot..slot + 16].copy_from_slice(&new.to_le_bytes());
    });
}

/// What a pointer led to is lost, with a node of the map or a whole version.
fn lose(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let found = if script.byte().is_multiple_of(8) {
        block_of(base, Class::Versions, script).map(|block| (block, script.below(16) * VERSION_BYTES + VERSION_TREE))
    } else {
        slot(base, script)
    };
    let Some((block, at)) = found else { return };
    let lost = Pointer::lost(script.value(1) & EPOCH_MAX);
    image.edit(block, |bytes| bytes[at..at + POINTER_BYTES].copy_from_slice(&lost.encode()));
    if !script.byte().is_multiple_of(4) {
        for at in SUPERBLOCK_AT.into_iter().flatten() {
            image.edit(at, |bytes| bytes[12] |= LOST_PLACES as u8);
        }
    }
}

fn copy_block(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let (Some(from), Some(to)) = (block(base, script), block(base, script)) else { return };
    image.put(to, *image.get(from));
}

fn clear(image: &mut Image, base: &Base, script: &mut Script<'_>) {
    let Some(block) = block(base, script) else { return };
    let start = script.below(256) * 16;
    let length = [16, 256, BLOCK_BYTES][script.below(3)].min(BLOCK_BYTES - start);
    let value = if script.byte().is_multiple_of(2) { 0 } else { script.byte() };
    image.edit(block, |block| block[start..start + length].fill(value));
}

/// Further blocks at the journal's end, whole and with records that may make no sense.
fn append_records(image: &mut Image, script: &mut Script<'_>) {
    let Some(superblock) = newest(image).map(|at| image.get(at)) else { return };
    let field = |at| number(superblock, at, 8);
    let (ring, first) = (field(96).clamp(1, 1 << 20), field(104));
    let place = |seq: u64| 1024 + seq % ring;
    let is_here = |seq: u64| {
        let bytes = image.get(place(seq));
        bytes[..8] == *b"TANADAJB" && number(bytes, 40, 8) == seq
    };
    let mut seq = first;
    while seq - first < ring.min(256) && is_here(seq) {
        seq = seq.saturating_add(1);
    }
    let last = image.get(place(seq.wrapping_sub(1)));
    let follows = seq > first;
    let incarnation = if follows { number(last, 32, 8) } else { field(56) }.wrapping_add(u64::from(script.byte() % 3));
    let mut builder = JournalBuilder::new();
    for _ in 0..1 + script.byte() % 4 {
        if !builder.push(&record(image, seq, script)) {
            break;
        }
    }
    let durable_seq = if script.byte().is_multiple_of(2) { 0 } else { seq.saturating_sub(1) };
    let header = JournalHeader {
        store: id(0),
        incarnation: incarnation & (u64::MAX >> 1),
        seq: seq & (u64::MAX >> 1),
        durable_seq,
        checkpoint: field(48) & (u64::MAX >> 1),
    };
    image.put(place(seq), builder.seal(&header));
}

/// A record for block `seq` of the journal that can be encoded; what it names may or may not exist.
fn record(image: &Image, seq: u64, script: &mut Script<'_>) -> Record {
    let version = |script: &mut Script<'_>| 1 + u64::from(script.byte() % 24);
    let size = |script: &mut Script<'_>| (script.value(2048) % (1 << 40)) * 4096;
    match script.byte() % 10 {
        0 | 1 => {
            let count = 1 + script.byte() as usize % 5;
            let place = script.value(5) % ((1 << 40) - 256);
            let block = 1 + script.value(2060) % (image.length_blocks + 64);
            Record::Map { head: version(script), place, block, crcs: vec![0; count] }
        }
        2 => {
            let place = script.value(5) % (1 << 40);
            Record::Unmap { head: version(script), place, blocks: 1 + script.value(3) % ((1 << 40) - place) }
        }
        3 => {
            let ended = 1 + script.value(2) % ((1 << 44) - 2);
            let members =
                (0..1 + script.byte() % 3).map(|_| Member { head: version(script), uuid: id(script.byte()) }).collect();
            let first_id = 1 + script.value(8) % ((1 << 48) - 8);
            Record::Snapshot { first_id, ended, hidden: script.byte().is_multiple_of(4), members }
        }
        4 => Record::Create { head: version(script), size: size(script), uuid: id(script.byte()) },
        5 => Record::Clone { head: version(script), generation: version(script), uuid: id(script.byte()) },
        6 => Record::Revert { head: version(script), generation: version(script), old_head: version(script) },
        7 => Record::Destroy { version: version(script) },
        8 => Record::Resize { head: version(script), size: size(script) },
        _ if script.byte().is_multiple_of(2) => {
            Record::Grow { store_blocks: script.value(image.length_blocks) % (1 << 44) }
        }
        _ => Record::Recovered {
            seq: script.value(seq.wrapping_sub(1)) % (1 << 62),
            records: script.value(1) % (1 << 40),
        },
    }
}
