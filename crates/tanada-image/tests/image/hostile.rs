//! Images that break off, and images that lie.

use tanada_image::{Format, ImageError, Reader, Source};

use super::disk::{MIB, apply, disk, image, source};

const FORMATS: [Format; 3] = [Format::Vhd, Format::Qcow2, Format::Tar];

#[test]
fn whatever_breaks_off_is_no_whole_image() {
    let original = disk(3 * MIB, &[(0, 4096), (2 * MIB, 2 * MIB + 8192)]);
    for format in FORMATS {
        let image = image(format, &original, None);
        for at in (0..image.len()).step_by(4099).chain([1, 511, 512, 513, image.len() - 513, image.len() - 1]) {
            let read = apply(source(format, original.len()), &image[..at], &mut vec![0; original.len()]);
            assert!(read.is_err(), "{format:?} cut at {at} of {}", image.len());
            assert!(
                matches!(read, Err(ImageError::PrematureEnd(_))) || format == Format::Tar,
                "{format:?} cut at {at}: {read:?}"
            );
        }
    }
}

#[test]
fn flipped_bits_of_metadata_never_reach_beyond_the_disk() {
    let original = disk(9 * MIB, &[(0, 4096), (3 * MIB, 3 * MIB + 8192), (9 * MIB - 4096, 9 * MIB)]);
    for (format, metadata) in [(Format::Vhd, 2600), (Format::Qcow2, 5 * 65536)] {
        let mut image = image(format, &original, None);
        let dense = (0..128).flat_map(|at| (0..8).map(move |bit| (at, bit)));
        let sparse = (128..metadata).step_by(if format == Format::Vhd { 3 } else { 61 }).map(|at| (at, at % 8));
        for (at, bit) in dense.chain(sparse) {
            let flip = |image: &mut [u8]| image[at] ^= 1 << bit;
            flip(&mut image);
            events_of(format, &image, &format!("{format:?}, byte {at}, bit {bit}"));
            flip(&mut image);
        }
    }
}

fn events_of(format: Format, image: &[u8], what: &str) {
    let Ok(mut reader) = Reader::open(source(format, 0), image, None) else { return };
    // What no longer begins as a VHD may be a fixed one, which says nothing before its end.
    let Some(size) = reader.size() else { return };
    let mut events = 0;
    while let Ok(Some(event)) = reader.next_event() {
        assert!(event.offset() + event.length() <= size, "{what}");
        events += 1;
        assert!(events < 10_000, "{what}");
    }
}

#[test]
fn tables_that_are_said_to_be_huge_are_refused_before_they_are_read() {
    let mut qcow2 = image(Format::Qcow2, &disk(MIB, &[(0, MIB)]), None);
    let refusal = |image: &[u8]| Reader::open(Source::Qcow2, image, None).err().expect("has to be refused").to_string();
    let good = qcow2.clone();
    qcow2[24..32].copy_from_slice(&(1u64 << 62).to_be_bytes());
    assert!(refusal(&qcow2).contains("at most are accepted"), "{}", refusal(&qcow2));
    for (at, value, words) in [
        (4, 4u32, "version 4"),
        (20, 8, "2^8"),
        (20, 40, "2^40"),
        (32, 1, "encrypted"),
        (36, 0, "0 entries"),
        (76, 2, "corrupt"),
        (76, 4, "another file"),
        (76, 16, "extended"),
        (72, 1, "not known"),
        (100, 8, "header of 8"),
        (0, 0, "does not begin"),
    ] {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&value.to_be_bytes());
        assert!(refusal(&bad).contains(words), "{words}: {}", refusal(&bad));
    }
    let nothing: &[u8] = &[];
    for source in [Source::Vhd, Source::Qcow2] {
        assert!(matches!(Reader::open(source, nothing, None), Err(ImageError::PrematureEnd(_))));
    }
}
