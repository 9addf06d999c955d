//! What we write, we read.

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use tanada_image::limits::VHD_BYTES;
use tanada_image::{ClusterMap, Format, Gaps, ImageError, Reader, Source, qcow2, tar, vhd};
use tanada_witness::noise;

use super::disk::{ID, MIB, apply, apply_opened, disk, image, render, source};

const FORMATS: [Format; 3] = [Format::Vhd, Format::Qcow2, Format::Tar];

fn sectors(size: usize) -> usize {
    size.next_multiple_of(512)
}

#[test]
fn sizes_at_every_edge_come_back() {
    for size in [512, 4096, MIB - 512, MIB, MIB + 512, 2 * MIB, 2 * MIB + 512, 5 * MIB - 4096, 4097 * 1024] {
        let end = size - size.min(512);
        for filled in [&[][..], &[(0, 512)], &[(end, size)], &[(0, size)]] {
            let original = disk(size, filled);
            for format in FORMATS {
                let mut copy = vec![0; size];
                apply(source(format, size), &image(format, &original, None), &mut copy)
                    .unwrap_or_else(|error| panic!("{format:?}, {size} bytes, {filled:?}: {error}"));
                assert!(copy == original, "{format:?}, {size} bytes, {filled:?}");
            }
        }
    }
}

#[test]
fn sizes_inside_a_sector_are_rounded_up_or_refused() {
    let original = disk(MIB + 100, &[(0, MIB + 100)]);
    for format in [Format::Vhd, Format::Qcow2] {
        let mut copy = vec![0; sectors(original.len())];
        apply(source(format, 0), &image(format, &original, None), &mut copy).unwrap();
        assert!(copy[..original.len()] == original && copy[original.len()..].iter().all(|byte| *byte == 0));
    }
    let refused = tar::plan(ClusterMap::new(MIB as u64 + 100, tar::CHUNK_BYTES));
    assert!(matches!(refused.err(), Some(ImageError::Invalid(_))));
}

#[test]
fn large_disks_have_a_place_up_to_the_limit_of_their_format() {
    let vhd = |size| vhd::plan(ClusterMap::new(size, vhd::BLOCK_BYTES), ID, None);
    assert_eq!(vhd(VHD_BYTES).unwrap().length, 2048 + 4 * (VHD_BYTES >> 21) + 512);
    assert!(matches!(vhd(VHD_BYTES + 512).err(), Some(ImageError::TooLarge { limit: VHD_BYTES, .. })));
    for (size, cluster) in [(8 << 40, 64 << 10), ((8 << 40) + (64 << 10), 128 << 10), (64 << 40, 512 << 10)] {
        assert_eq!(qcow2::cluster_bytes(size), cluster, "{size}");
    }
    // A byte at the very end of 64 TiB, through the tables.
    let size: u64 = 64 << 40;
    let mut map = ClusterMap::new(size, qcow2::cluster_bytes(size));
    map.add(size - 4096, 4096, true);
    let plan = qcow2::plan(map, None).unwrap();
    let mut stream = Vec::new();
    for piece in plan.pieces {
        let content = vec![7; piece.range().map_or(0, |(_, length)| length as usize)];
        stream.extend_from_slice(&piece.render(content.into()).unwrap());
    }
    assert_eq!(stream.len() as u64, plan.length);
    let mut reader = Reader::open(Source::Qcow2, &stream[..], None).unwrap();
    let event = reader.next_event().unwrap().unwrap();
    assert_eq!((reader.size(), event.offset(), event.length()), (Some(size), size - (512 << 10), 512 << 10));
    assert_eq!(reader.next_event().unwrap(), None);
}

#[test]
fn deltas_are_small_and_say_so() {
    let old = disk(40 * MIB, &[(0, 3 * MIB), (20 * MIB, 22 * MIB)]);
    let mut new = old.clone();
    new[MIB..MIB + 4096].fill(9);
    // Zeroed: one whole cluster, and a part of another.
    new[20 * MIB..20 * MIB + 65536 + 4096].fill(0);
    new[30 * MIB..30 * MIB + 512].fill(1);
    for (format, most) in [(Format::Vhd, 3 * (2 * MIB + 512) + 4096), (Format::Qcow2, (5 + 3) * 65536)] {
        let delta = image(format, &new, Some(&old));
        assert!(delta.len() <= most, "{format:?}: {} bytes", delta.len());
        let mut copy = old.clone();
        assert_eq!(apply(source(format, new.len()), &delta, &mut copy).unwrap(), Gaps::Base);
        assert!(copy == new, "{format:?}");
        let whole = image(format, &new, None);
        assert_ne!(apply(source(format, new.len()), &whole, &mut copy).unwrap(), Gaps::Base);
    }
}

#[test]
fn a_stream_that_stays_open_is_read_to_the_end_of_its_image() {
    let original = disk(5 * MIB, &[(MIB, 2 * MIB)]);
    for format in FORMATS {
        let image = image(format, &original, None);
        // Reading beyond the image would fail.
        let silent = image.chain(Fails);
        let mut reader = Reader::open(source(format, original.len()), silent, None).unwrap();
        reader.expect_open_end();
        let mut copy = vec![0; original.len()];
        apply_opened(reader, &mut copy).unwrap();
        assert!(copy == original, "{format:?}");
    }
}

struct Fails;

impl std::io::Read for Fails {
    fn read(&mut self, _buffer: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("read beyond the image"))
    }
}

use std::io::Read as _;

trait Chained {
    fn chain(&self, rest: Fails) -> std::io::Chain<&[u8], Fails>;
}

impl Chained for Vec<u8> {
    fn chain(&self, rest: Fails) -> std::io::Chain<&[u8], Fails> {
        (&self[..]).chain(rest)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_disk_comes_back_whole_and_as_a_delta(
        blocks in 1usize..900,
        writes in prop::collection::vec((any::<prop::sample::Index>(), 1usize..200, any::<bool>()), 0..12),
        since in 0usize..12,
    ) {
        let size = blocks * 4096;
        let mut states = vec![vec![0; size]];
        for (seed, (at, length, data)) in (1u64..).zip(&writes) {
            let mut next = states[states.len() - 1].clone();
            let start = at.index(blocks) * 4096;
            let end = size.min(start + length * 4096);
            let content = if *data { noise(end - start, seed) } else { vec![0; end - start] };
            next[start..end].copy_from_slice(&content);
            states.push(next);
        }
        let (old, new) = (&states[since % states.len()], &states[states.len() - 1]);
        for format in FORMATS {
            let mut copy = vec![0; size];
            apply(source(format, size), &image(format, new, None), &mut copy).unwrap();
            assert!(copy == *new);
        }
        for format in [Format::Vhd, Format::Qcow2] {
            let mut copy = old.clone();
            let delta = super::disk::plan(format, new, Some(old)).unwrap();
            apply(source(format, size), &render(delta, new), &mut copy).unwrap();
            assert!(copy == *new);
        }
    }
}
