//! Disk images that say anything, before their readers.
//!
//! What must hold:
//! - no panic, and memory in proportion to what was read;
//! - no event reaches beyond the disk that the image says it is of, none is empty, none is longer than a reader may make
//!   it;
//! - in what pieces the bytes arrive makes no difference;
//! - an image that was cut is never whole.

use std::io::{self, Read};
use std::sync::OnceLock;

use tanada_image::limits::RUN_BYTES;
use tanada_image::vhd::{Footer, Header, Kind};
use tanada_image::{ClusterMap, Event, ImageResult, Plan, Reader, Source, framed, qcow2, tar};

use crate::Script;

/// Changes of one input at most.
const CHANGES_MAX: usize = 16;
/// Events of one image that are looked at: a small image may be of a large disk.
const EVENTS_MAX: usize = 4096;

const SECTOR: usize = 512;
const DISK_BYTES: usize = 64 << 10;
const VHD_BLOCK_BYTES: usize = 4096;

struct Base {
    source: Source,
    image: Vec<u8>,
    /// Where the tables are that everything else hangs on: start and end.
    tables: (usize, usize),
}

fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let frames = [&framed::head(512, 1024)[..], &[3; 1024], &framed::head(0, 0)].concat();
        vec![
            Base { source: Source::Vhd, image: vhd(Kind::Dynamic), tables: (1536, 1536 + 64) },
            Base { source: Source::Vhd, image: vhd(Kind::Differencing), tables: (1536, 1536 + 64) },
            Base { source: Source::Vhd, image: fixed(), tables: (0, 64) },
            // Header, refcounts in two clusters, then the first tables and the second ones.
            Base { source: Source::Qcow2, image: small_qcow2(), tables: (3 * SECTOR, 6 * SECTOR) },
            Base { source: Source::Tar { size: DISK_BYTES as u64 }, image: small_tar(), tables: (0, SECTOR) },
            Base { source: Source::Framed, image: frames, tables: (0, 12) },
        ]
    })
}

fn disk() -> Vec<u8> {
    (0..DISK_BYTES).map(|at| if at / 8192 % 3 == 0 { (at % 251) as u8 } else { 0 }).collect()
}

fn footer(kind: Kind) -> [u8; SECTOR] {
    let header_at = if kind == Kind::Fixed { u64::MAX } else { SECTOR as u64 };
    Footer { kind, size: DISK_BYTES as u64, header_at, id: [7; 16] }.encode()
}

/// Small blocks, so that there are many of them; half of their sectors there.
fn vhd(kind: Kind) -> Vec<u8> {
    let blocks = DISK_BYTES / VHD_BLOCK_BYTES;
    let mut header = Header::new(1536, blocks as u64, None);
    header.block_bytes = VHD_BLOCK_BYTES as u64;
    let mut image = [&footer(kind)[..], &header.encode()].concat();
    let stored = (SECTOR + VHD_BLOCK_BYTES) / SECTOR;
    let place = |block: usize| if block % 3 == 0 { 4 + block / 3 * stored } else { u32::MAX as usize };
    image.extend((0..blocks).flat_map(|block| (place(block) as u32).to_be_bytes()));
    image.resize(4 * SECTOR, 0xff);
    for block in (0..blocks).step_by(3) {
        image.extend([0x5a; SECTOR]);
        image.extend(&disk()[block * VHD_BLOCK_BYTES..][..VHD_BLOCK_BYTES]);
    }
    image.extend(footer(kind));
    image
}

fn fixed() -> Vec<u8> {
    [&disk()[..], &footer(Kind::Fixed)].concat()
}

fn small_qcow2() -> Vec<u8> {
    let mut map = ClusterMap::new(DISK_BYTES as u64, SECTOR as u64);
    for at in (0..DISK_BYTES as u64).step_by(8192) {
        map.add(at, 4096, at % 3 == 0);
    }
    rendered(qcow2::plan(map, Some([9; 16])))
}

fn small_tar() -> Vec<u8> {
    rendered(tar::plan(ClusterMap::new(DISK_BYTES as u64, tar::CHUNK_BYTES)))
}

fn rendered(plan: ImageResult<Plan>) -> Vec<u8> {
    let plan = plan.unwrap_or_else(|error| panic!("a small image: {error}"));
    let mut image = Vec::new();
    for piece in plan.pieces {
        let content =
            piece.range().map_or_else(Vec::new, |(at, length)| disk()[at as usize..][..length as usize].to_vec());
        image.extend_from_slice(&piece.render(content.into()).unwrap_or_else(|error| panic!("a piece: {error}")));
    }
    image
}

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let all = bases();
    let base = &all[script.below(all.len())];
    let flags = script.byte();
    let step = 1 + usize::from(script.byte());
    let mut image = base.image.clone();
    for _ in 0..CHANGES_MAX {
        if script.is_over() {
            break;
        }
        change(&mut image, base, &mut script);
    }
    if flags % 8 != 7 && base.source == Source::Vhd {
        seal(&mut image);
    }
    let length = (flags & 8 == 0).then_some(image.len() as u64);
    let whole = events(base.source, &image, usize::MAX, length);
    let pieces = events(base.source, &image, step, length);
    assert_eq!(whole, pieces, "the pieces in which bytes arrive make a difference");
    // The end of a qcow2 image is no part of it where the last cluster is not needed whole.
    if whole.1 && !image.is_empty() && base.source != Source::Qcow2 && whole.0.len() < EVENTS_MAX {
        let cut = events(base.source, &image[..image.len() - 1], usize::MAX, length);
        assert!(!cut.1 || matches!(base.source, Source::Tar { .. } | Source::Framed), "an image that was cut is whole");
    }
}

fn change(image: &mut Vec<u8>, base: &Base, script: &mut Script<'_>) {
    let kind = script.byte();
    let anywhere = image.len().max(1);
    let at = match kind % 4 {
        0 => script.below(128),
        1 | 2 => base.tables.0 + script.below(base.tables.1 - base.tables.0) / 4 * 4,
        _ => script.below(anywhere),
    };
    match kind >> 2 & 7 {
        0..=4 => {
            let bytes = [1, 2, 4, 8][usize::from(kind >> 5 & 3)];
            let Some(field) = image.get_mut(at..at + bytes) else { return };
            let old = field.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            let new = script.value(old).to_be_bytes();
            field.copy_from_slice(&new[8 - bytes..]);
        }
        5 => {
            let bytes = script.bytes(32);
            if let Some(place) = image.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        6 => image.truncate(at),
        _ => {
            let end = image.len().min(at + SECTOR);
            let piece = image.get(at..end).unwrap_or_default().to_vec();
            image.extend(piece);
        }
    }
}

/// Mends the checksums of what begins as a VHD, and makes its end what its start is.
fn seal(image: &mut [u8]) {
    let mend = |bytes: &mut [u8], field: usize| {
        bytes[field..field + 4].fill(0);
        let sum = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        bytes[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    if image.len() < 4 * SECTOR {
        return;
    }
    let end = image.len() - SECTOR;
    if image.starts_with(b"conectix") {
        mend(&mut image[..SECTOR], 64);
        mend(&mut image[SECTOR..3 * SECTOR], 36);
        image.copy_within(..SECTOR, end);
    } else {
        mend(&mut image[end..], 64);
    }
}

/// What is read, and whether it was whole.
fn events(source: Source, image: &[u8], step: usize, length: Option<u64>) -> (Vec<Event>, bool) {
    let mut events = Vec::new();
    let Ok(mut reader) = Reader::open(source, Steps { rest: image, step }, length) else { return (events, false) };
    let size = match source {
        Source::Tar { size } => Some(size),
        _ => reader.size(),
    };
    while events.len() < EVENTS_MAX {
        match reader.next_event() {
            Ok(Some(event)) => {
                assert!(event.length() > 0, "an event of nothing");
                let end = event.offset().checked_add(event.length()).expect("an event's end");
                assert!(size.is_none_or(|size| end <= size), "{end} is beyond the disk's {size:?}");
                assert!(matches!(&event, Event::Zeros { .. }) || event.length() <= RUN_BYTES.max(2 << 20));
                events.push(event);
            }
            Ok(None) => return (events, true),
            Err(_) => return (events, false),
        }
    }
    (events, true)
}

/// A stream that comes in pieces.
struct Steps<'a> {
    rest: &'a [u8],
    step: usize,
}

impl Read for Steps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let step = self.step.min(buffer.len());
        self.rest.read(&mut buffer[..step])
    }
}
