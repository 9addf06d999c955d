//! A disk in memory, its map, its images.

use bytes::Bytes;
use tanada_image::vhd::{self, Parent};
use tanada_image::{ClusterMap, Event, Format, Gaps, ImageResult, Plan, Reader, Source, qcow2, tar};
use tanada_witness::noise;

pub const MIB: usize = 1 << 20;
pub const ID: [u8; 16] = *b"this disk's uuid";
pub const BASE_ID: [u8; 16] = *b"the base's uuid!";

/// A disk of zeros with noise in these ranges: start and end.
pub fn disk(size: usize, filled: &[(usize, usize)]) -> Vec<u8> {
    let mut disk = vec![0; size];
    for ((start, end), seed) in filled.iter().zip(1..) {
        disk[*start..*end].copy_from_slice(&noise(end - start, seed));
    }
    disk
}

/// Data wherever 4 KiB are not all zero, as a store tells it.
pub fn mapped(disk: &[u8], unit: u64) -> ClusterMap {
    let mut map = ClusterMap::new(disk.len() as u64, unit);
    for (at, block) in (0..).step_by(4096).zip(disk.chunks(4096)) {
        if block.iter().any(|byte| *byte != 0) {
            map.add(at, block.len() as u64, true);
        }
    }
    map
}

/// What differs between two disks, in extents of 4 KiB.
pub fn changed(old: &[u8], new: &[u8], unit: u64) -> ClusterMap {
    let mut map = ClusterMap::new(new.len() as u64, unit);
    for (at, block) in (0..).step_by(4096).zip(new.chunks(4096)) {
        let before = old.get(at as usize..(at as usize + block.len()).min(old.len())).unwrap_or_default();
        if before != block {
            map.add(at, block.len() as u64, block.iter().any(|byte| *byte != 0));
        }
    }
    map
}

pub fn unit(format: Format, size: usize) -> u64 {
    match format {
        Format::Vhd => vhd::BLOCK_BYTES,
        Format::Qcow2 => qcow2::cluster_bytes(size as u64),
        Format::Tar | Format::Raw => tar::CHUNK_BYTES,
    }
}

pub fn plan(format: Format, disk: &[u8], base: Option<&[u8]>) -> ImageResult<Plan> {
    let unit = unit(format, disk.len());
    let map = base.map_or_else(|| mapped(disk, unit), |base| changed(base, disk, unit));
    match format {
        Format::Vhd => {
            let parent = base.map(|_| Parent { id: BASE_ID, name: "base.vhd".to_owned() });
            vhd::plan(map, ID, parent)
        }
        Format::Qcow2 => qcow2::plan(map, base.map(|_| BASE_ID)),
        Format::Tar | Format::Raw => tar::plan(map),
    }
}

/// The bytes of an image; the plan's length is theirs.
pub fn render(plan: Plan, disk: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    for piece in plan.pieces {
        let content = piece.range().map_or_else(Bytes::new, |(offset, length)| {
            assert!(length <= MIB as u64);
            Bytes::copy_from_slice(&disk[offset as usize..(offset + length) as usize])
        });
        let length = piece.length();
        let bytes = piece.render(content).unwrap();
        assert_eq!(bytes.len() as u64, length);
        image.extend_from_slice(&bytes);
    }
    assert_eq!(image.len() as u64, plan.length);
    image
}

pub fn image(format: Format, disk: &[u8], base: Option<&[u8]>) -> Vec<u8> {
    render(plan(format, disk, base).unwrap(), disk)
}

/// A whole VHD, known as what the deltas of [`image`] are deltas of.
pub fn base_vhd(disk: &[u8]) -> Vec<u8> {
    render(vhd::plan(mapped(disk, unit(Format::Vhd, disk.len())), BASE_ID, None).unwrap(), disk)
}

pub fn source(format: Format, size: usize) -> Source {
    match format {
        Format::Vhd => Source::Vhd,
        Format::Qcow2 => Source::Qcow2,
        Format::Tar | Format::Raw => Source::Tar { size: size as u64 },
    }
}

/// Reads an image over a disk, as an import does. Answers what gaps are.
pub fn apply(source: Source, image: &[u8], disk: &mut [u8]) -> ImageResult<Gaps> {
    apply_opened(Reader::open(source, image, Some(image.len() as u64))?, disk)
}

/// The same over whatever is left of a stream.
pub fn apply_opened<R: std::io::Read>(mut reader: Reader<R>, disk: &mut [u8]) -> ImageResult<Gaps> {
    if let Some(size) = reader.size() {
        assert!(size <= disk.len() as u64, "the test's disk has to hold the image's {size}");
    }
    while let Some(event) = reader.next_event()? {
        let range = event.offset() as usize..(event.offset() + event.length()) as usize;
        match event {
            Event::Data { bytes, .. } => {
                assert!(bytes.len() <= 2 * MIB);
                disk[range].copy_from_slice(&bytes);
            }
            Event::Zeros { .. } => disk[range].fill(0),
        }
    }
    Ok(reader.gaps())
}
