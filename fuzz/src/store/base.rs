//! Small real stores to start from, made by an engine.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use tanada_disk::DiskOp;
use tanada_engine::{Control, ExportId, Request};
use tanada_format::catalog::REGION_TABLE_PLACE;
use tanada_format::geometry::{JOURNAL_START, SUPERBLOCK_AT};
use tanada_format::pointer::{BLOCK_MAX, POINTER_BYTES};
use tanada_format::version::VERSION_BYTES;
use tanada_format::{BLOCK_BYTES, FormatOptions, ROOT_LEVEL, format_image};
use uuid::Uuid;

use super::image::Image;
use super::seal::{newest, number};
use super::shell::Shell;

const BLOCK: u64 = BLOCK_BYTES as u64;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a block is, for choosing what to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Superblock,
    Journal,
    CatalogNode,
    Versions,
    Regions,
    Bitmap,
    Node,
    Data,
}

pub const CLASSES: [Class; 8] = [
    Class::Superblock,
    Class::Journal,
    Class::CatalogNode,
    Class::Versions,
    Class::Regions,
    Class::Bitmap,
    Class::Node,
    Class::Data,
];

/// A store and what its blocks are.
pub struct Base {
    pub image: Image,
    pub classes: BTreeMap<Class, Vec<u64>>,
}

pub fn id(n: u8) -> Uuid {
    Uuid::from_u128(0x7a00 + u128::from(n))
}

/// Every base; made once.
pub fn all() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let images = [fresh(16 * MIB), one_volume(), family(true), family(false), dying(), two_regions(), grown()];
        images.into_iter().map(classify).collect()
    })
}

fn fresh(bytes: u64) -> Image {
    let options = FormatOptions { store: id(0), device_bytes: bytes, journal_bytes: Some(256 << 10) };
    let mut image = Image::new(bytes);
    for (at, bytes) in format_image(&options).expect("a valid store").writes {
        image.edit(at / BLOCK, |block| block.copy_from_slice(&bytes));
    }
    image
}

/// A store being filled.
struct Maker {
    shell: Shell,
}

impl Maker {
    fn new(image: Image) -> Maker {
        Maker { shell: Shell::open(image).expect("a store that opens") }
    }

    fn must(&mut self, control: Control) {
        let text = format!("{control:?}");
        self.shell.control(control).unwrap_or_else(|failure| panic!("{text}: {failure}"));
    }

    fn create(&mut self, n: u8, size: u64) -> ExportId {
        self.must(Control::CreateVolume { id: id(n), size });
        self.shell.export(id(n), true).expect("a volume")
    }

    fn fill(&mut self, export: ExportId, places: impl IntoIterator<Item = u64>, stamp: u8) {
        for place in places {
            let data = [stamp ^ place as u8; BLOCK_BYTES];
            self.shell.write(export, place * BLOCK, &data).expect("written");
        }
    }

    fn cut(&mut self, volume: u8, generation: u8) {
        self.must(Control::Snapshot { group: vec![(id(volume), id(generation))] });
    }

    /// The image as a killed process leaves it.
    fn end(self) -> Image {
        self.shell.image
    }
}

fn one_volume() -> Image {
    let mut maker = Maker::new(fresh(16 * MIB));
    let disk = maker.create(1, 4 * MIB);
    maker.fill(disk, [0, 1, 2, 300, 700, 1023], 1);
    maker.must(Control::Checkpoint);
    maker.end()
}

/// Generations, clones, a revert and a ghost; with `checkpoint` in the trees, else in the journal.
fn family(checkpoint: bool) -> Image {
    let mut maker = Maker::new(fresh(24 * MIB));
    let disk = maker.create(1, 8 * MIB);
    maker.fill(disk, (0..12).chain([400, 900]), 1);
    maker.cut(1, 10);
    maker.must(Control::Checkpoint);
    maker.fill(disk, 4..8, 2);
    maker.cut(1, 11);
    maker.fill(disk, 6..20, 3);
    let discard = Request::Discard { export: disk, offset: 0, length: 2 * BLOCK, fua: true };
    maker.shell.ask(discard).expect("discarded");
    maker.must(Control::Clone { source: id(10), volume: id(2) });
    maker.must(Control::Clone { source: id(10), volume: id(3) });
    let clone = maker.shell.export(id(2), true).expect("a clone");
    maker.fill(clone, [1, 500], 4);
    if checkpoint {
        maker.must(Control::Checkpoint);
    }
    maker.must(Control::Snapshot { group: vec![(id(1), id(12)), (id(2), id(13)), (id(3), id(14))] });
    maker.must(Control::Close { export: clone });
    maker.must(Control::Revert { volume: id(2), generation: id(10) });
    maker.must(Control::Resize { id: id(1), size: 9 * MIB });
    maker.must(Control::CreateVolume { id: id(4), size: 64 * 1024 * MIB });
    maker.must(Control::Destroy { id: id(10) });
    if checkpoint {
        maker.must(Control::Checkpoint);
    }
    maker.fill(disk, [3, 4, 2000], 5);
    maker.end()
}

/// Deletions that are under way: cursors between the ends.
fn dying() -> Image {
    let mut maker = Maker::new(fresh(16 * MIB));
    let disk = maker.create(1, 8 * MIB);
    for n in 0..4 {
        maker.fill(disk, (0..40).map(|place| place * 37 + u64::from(n)), n);
        maker.cut(1, 10 + n);
        maker.must(Control::Checkpoint);
    }
    maker.fill(disk, (0..20).map(|place| place * 50), 9);
    maker.must(Control::Checkpoint);
    maker.must(Control::Destroy { id: id(11) });
    maker.must(Control::Destroy { id: id(12) });
    maker.shell.idle(3);
    maker.must(Control::Checkpoint);
    maker.end()
}

/// A store whose second region is used as well.
fn two_regions() -> Image {
    let mut maker = Maker::new(fresh(160 * MIB));
    let disk = maker.create(1, 256 * MIB);
    for part in 0..130u64 {
        // One write of 1 MiB: a run of blocks.
        maker.shell.write(disk, part * MIB, &vec![part as u8 | 1; MIB as usize]).expect("written");
    }
    maker.must(Control::Checkpoint);
    let discard = Request::Discard { export: disk, offset: 0, length: 129 * MIB + 1008 * KIB, fua: true };
    maker.shell.ask(discard).expect("discarded");
    maker.must(Control::Checkpoint);
    maker.must(Control::Settle);
    maker.must(Control::Checkpoint);
    let mut image = maker.end();
    // What nothing names any more would only slow the runs down.
    let kept = walk(&image);
    for block in image.written(JOURNAL_START..u64::MAX) {
        if !kept.values().any(|blocks| blocks.contains(&block)) {
            image.put(block, [0; BLOCK_BYTES]);
        }
    }
    image
}

/// A store that has grown, in the journal only.
fn grown() -> Image {
    let mut image = fresh(16 * MIB);
    image.length_blocks = 32 * MIB / BLOCK;
    let mut maker = Maker::new(image);
    let disk = maker.create(1, 4 * MIB);
    maker.must(Control::GrowStore { size: 32 * MIB });
    maker.fill(disk, 0..9, 1);
    maker.shell.image.carry_out(&DiskOp::Sync).expect("memory");
    maker.end()
}

fn classify(mut image: Image) -> Base {
    let classes = walk(&image);
    image.freeze();
    Base { image, classes }
}

/// What the blocks of a sound store are.
fn walk(image: &Image) -> BTreeMap<Class, Vec<u64>> {
    let mut classes: BTreeMap<Class, Vec<u64>> = BTreeMap::new();
    let mut add = |class: Class, block: u64| {
        let blocks = classes.entry(class).or_default();
        let is_new = !blocks.contains(&block);
        if is_new {
            blocks.push(block);
        }
        is_new
    };
    for at in SUPERBLOCK_AT.into_iter().flatten() {
        add(Class::Superblock, at);
    }
    let superblock = image.get(newest(image).expect("a superblock"));
    let journal_blocks = number(superblock, 96, 8);
    for block in JOURNAL_START..JOURNAL_START + journal_blocks {
        if image.get(block)[..8] == *b"TANADAJB" {
            add(Class::Journal, block);
        }
    }
    let regions_start = (JOURNAL_START + journal_blocks).next_multiple_of(1024);
    let mut todo = vec![(pointer(superblock, 120), ROOT_LEVEL, 0u64, true)];
    while let Some((block, level, place, is_catalog)) = todo.pop() {
        if block == 0 || !add(if is_catalog { Class::CatalogNode } else { Class::Node }, block) {
            continue;
        }
        let bytes = image.get(block);
        for slot in 0..256 {
            let (child, place) = (pointer(bytes, slot * POINTER_BYTES), place << 8 | slot as u64);
            if child == 0 {
                continue;
            }
            if level > 0 {
                todo.push((child, level - 1, place, is_catalog));
            } else if !is_catalog {
                add(Class::Data, child);
            } else if place >= REGION_TABLE_PLACE {
                add(Class::Regions, child);
                for (region, entry) in image.get(child).chunks(16).enumerate().filter(|(_, entry)| entry[8] != 0) {
                    add(Class::Bitmap, regions_start + region as u64 * 32_768 + u64::from(entry[8]) - 1);
                }
            } else {
                add(Class::Versions, child);
                let records = image.get(child);
                todo.extend(records.chunks(VERSION_BYTES).map(|record| (pointer(record, 48), ROOT_LEVEL, 0, false)));
            }
        }
    }
    classes
}

fn pointer(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at, 6) & BLOCK_MAX
}
