//! Superblocks that say anything, before the checker and before the engine: what everything else is found by.
//!
//! The rest of the store is whole, so that an input costs little where it is refused at once. What must hold is what
//! [`crate::store`] demands.

use tanada_format::geometry::SUPERBLOCK_AT;

use crate::Script;
use crate::store::base;
use crate::store::image::Image;
use crate::store::seal::{number, seal_superblocks};
use crate::store::{judge, judge_opening};

/// Changes of one input at most.
const CHANGES_MAX: usize = 16;

/// Fields: offset and length in bytes.
const FIELDS: [(usize, usize); 23] = [
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 4),
    (24, 4),
    (28, 4),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 8),
    (120, 8),
    (128, 4),
    (132, 4),
    (136, 8),
    (4088, 8),
];

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let bases = base::all();
    let mut image = bases[script.below(bases.len())].image.clone();
    let flags = script.byte();
    for _ in 0..CHANGES_MAX {
        if script.is_over() {
            break;
        }
        change(&mut image, &mut script);
    }
    if flags % 8 != 7 {
        seal_superblocks(&mut image);
    }
    // What follows after opening is the other target's.
    if flags & 8 == 0 { drop(judge_opening(image)) } else { judge(image) }
}

fn change(image: &mut Image, script: &mut Script<'_>) {
    let kind = script.byte();
    let slot = SUPERBLOCK_AT[usize::from(kind >> 4 & 1)];
    let copies = match kind >> 5 & 3 {
        0 => &slot[..1],
        1 => &slot[1..],
        _ => &slot[..],
    };
    match kind % 8 {
        0..=4 => {
            let (at, bytes) = FIELDS[script.below(FIELDS.len())];
            let value = script.value(number(image.get(copies[0]), at, bytes));
            for copy in copies {
                image.edit(*copy, |block| block[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]));
            }
        }
        5 => {
            // The same in the other slot, or what stands elsewhere in this one.
            let from = SUPERBLOCK_AT[script.below(2)][script.below(2)];
            let source = *image.get(from);
            copies.iter().for_each(|copy| image.put(*copy, source));
        }
        6 => {
            let bytes = script.bytes(160);
            let at = script.below(128);
            copies
                .iter()
                .for_each(|copy| image.edit(*copy, |block| block[at..at + bytes.len()].copy_from_slice(bytes)));
        }
        _ => image.length_blocks = script.value(image.length_blocks).min(1 << 18),
    }
}
