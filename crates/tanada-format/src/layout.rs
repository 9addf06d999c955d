//! The layout as text, derived from the constants: for `tanada store dump` and for the test that guards it.

use std::fmt::Write;

use crate::field::Field;
use crate::geometry::{
    HEAD_BLOCKS, JOURNAL_BLOCKS_MAX, JOURNAL_BLOCKS_MIN, JOURNAL_KEPT_BLOCKS, JOURNAL_START, PAGE_COPIES,
    REGION_BLOCKS, SEGMENT_BLOCKS, SUPERBLOCK_AT,
};
use crate::record::{GROUP_MAX, MAP_BLOCKS_MAX};
use crate::{catalog, journal, node, pointer, superblock, version};

/// One line per number and field.
pub fn describe() -> String {
    let mut text = String::new();
    numbers(&mut text);
    for (name, bytes, fields) in [
        ("superblock", node::BLOCK_BYTES, superblock::FIELDS),
        ("journal block", node::BLOCK_BYTES, journal::FIELDS),
        ("version record", version::VERSION_BYTES, version::FIELDS),
        ("region table entry", catalog::REGION_ENTRY_BYTES, catalog::FIELDS),
    ] {
        structure(&mut text, name, bytes, fields);
    }
    text
}

fn numbers(text: &mut String) {
    let lines = [
        ("format version", u64::from(superblock::FORMAT_VERSION)),
        ("block, bytes", node::BLOCK_BYTES as u64),
        ("pointer, bytes", pointer::POINTER_BYTES as u64),
        ("pointers in a node", node::FANOUT as u64),
        ("levels of a tree", u64::from(node::LEVELS)),
        ("largest volume, bytes", version::VOLUME_BYTES_MAX),
        ("slot 0 copy 0, block", SUPERBLOCK_AT[0][0]),
        ("slot 0 copy 1, block", SUPERBLOCK_AT[0][1]),
        ("slot 1 copy 0, block", SUPERBLOCK_AT[1][0]),
        ("slot 1 copy 1, block", SUPERBLOCK_AT[1][1]),
        ("superblock area, blocks", HEAD_BLOCKS),
        ("journal start, block", JOURNAL_START),
        ("smallest journal, blocks", JOURNAL_BLOCKS_MIN),
        ("largest journal, blocks", JOURNAL_BLOCKS_MAX),
        ("journal kept for recovery, blocks", JOURNAL_KEPT_BLOCKS),
        ("segment, blocks", SEGMENT_BLOCKS),
        ("region, blocks", REGION_BLOCKS),
        ("copies of a bitmap page", PAGE_COPIES),
        ("version table, first place", catalog::VERSION_TABLE_PLACE),
        ("version records in a block", catalog::VERSIONS_PER_BLOCK),
        ("versions at most", version::VERSION_SLOTS_MAX),
        ("region table, first place", catalog::REGION_TABLE_PLACE),
        ("region entries in a block", catalog::REGIONS_PER_BLOCK),
        ("blocks in a map record at most", MAP_BLOCKS_MAX as u64),
        ("volumes in a snapshot record at most", GROUP_MAX as u64),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<40} {value}");
    }
}

fn structure(text: &mut String, name: &str, bytes: usize, fields: &[Field]) {
    let _ = writeln!(text, "\n{name}, {bytes} bytes");
    for field in fields {
        let _ = writeln!(text, "  {:>4} +{:<5} {}", field.at, field.bytes, field.name);
    }
}
