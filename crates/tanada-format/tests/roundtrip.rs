//! What is encoded is decoded again; a flipped byte is noticed; any bytes at all give a value or an error.

use proptest::prelude::*;
use tanada_format::geometry::SEGMENT_BLOCKS;
use tanada_format::node::TREE_BLOCKS;
use tanada_format::record::{GROUP_MAX, MAP_BLOCKS_MAX};
use tanada_format::{
    BLOCK_BYTES, BitmapPage, FormatOptions, Geometry, JournalBlock, JournalBuilder, JournalHeader, Member, Node,
    Pointer, Record, RegionEntry, Superblock, Version, VersionKind, VersionState, format_image,
};
use uuid::Uuid;

const STORE: Uuid = Uuid::from_u128(0x1234_5678);

fn pointers() -> impl Strategy<Value = Pointer> {
    prop_oneof![
        1 => Just(Pointer::NULL),
        3 => (1..1u64 << 44, 0..1u64 << 44, any::<u32>()).prop_map(|(block, birth, crc)| Pointer::new(block, birth, crc)),
    ]
}

fn uuids() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn records() -> impl Strategy<Value = Record> {
    let id = 1..1u64 << 40;
    let size = (0..TREE_BLOCKS).prop_map(|blocks| blocks * BLOCK_BYTES as u64);
    let members =
        prop::collection::vec((id.clone(), uuids()).prop_map(|(head, uuid)| Member { head, uuid }), 1..=GROUP_MAX);
    prop_oneof![
        (id.clone(), 0..TREE_BLOCKS - 256, 1..1u64 << 43, prop::collection::vec(any::<u32>(), 1..=MAP_BLOCKS_MAX))
            .prop_map(|(head, place, block, crcs)| Record::Map { head, place, block, crcs }),
        (id.clone(), 0..TREE_BLOCKS / 2, 1..=TREE_BLOCKS / 2).prop_map(|(head, place, blocks)| Record::Unmap {
            head,
            place,
            blocks
        }),
        (id.clone(), 1..1u64 << 43, any::<bool>(), members)
            .prop_map(|(first_id, ended, hidden, members)| Record::Snapshot { first_id, ended, hidden, members }),
        (id.clone(), size.clone(), uuids()).prop_map(|(head, size, uuid)| Record::Create { head, size, uuid }),
        (id.clone(), id.clone(), uuids()).prop_map(|(head, generation, uuid)| Record::Clone { head, generation, uuid }),
        (id.clone(), id.clone(), id.clone()).prop_map(|(head, generation, old_head)| Record::Revert {
            head,
            generation,
            old_head
        }),
        id.clone().prop_map(|version| Record::Destroy { version }),
        (id.clone(), size).prop_map(|(head, size)| Record::Resize { head, size }),
        (0..1u64 << 44).prop_map(|store_blocks| Record::Grow { store_blocks }),
        (0..1u64 << 50, 0..1u64 << 20).prop_map(|(seq, records)| Record::Recovered { seq, records }),
    ]
}

fn versions() -> impl Strategy<Value = Version> {
    (1..1u64 << 48, any::<bool>(), 0..3u8, uuids(), pointers(), 0..=TREE_BLOCKS, any::<u64>(), any::<bool>()).prop_map(
        |(id, generation, state, uuid, tree, cursor, instance, hidden)| {
            let state = match (state, generation) {
                (1, _) => VersionState::Dying,
                (2, true) => VersionState::Ghost,
                _ => VersionState::Live,
            };
            Version {
                id,
                parent: id / 2,
                uuid,
                ended: if generation { 1 + id / 2 % (1 << 43) } else { 0 },
                size: cursor * BLOCK_BYTES as u64,
                tree,
                cursor: if state == VersionState::Dying { cursor } else { 0 },
                instance,
                kind: if generation { VersionKind::Generation } else { VersionKind::Head },
                state,
                hidden,
            }
        },
    )
}

fn superblocks() -> impl Strategy<Value = Superblock> {
    (3..1u64 << 30, 64..1024u64, 1..1u64 << 60, 1..1u64 << 44, pointers()).prop_map(
        |(segments, journal, checkpoint, epoch, catalog)| {
            let geometry = Geometry::new(segments * SEGMENT_BLOCKS, journal).expect("in bounds");
            let inside = !catalog.is_null() && catalog.check_within(geometry.store_blocks()).is_ok();
            Superblock {
                checkpoint,
                epoch,
                incarnation: checkpoint / 3,
                next_version: 1 + epoch,
                version_slots: epoch % 1000,
                journal_seq: 1 + checkpoint / 2,
                used_blocks: epoch % 500,
                catalog: if inside { catalog } else { Pointer::NULL },
                ..Superblock::fresh(STORE, geometry)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn pointers_survive(pointer in pointers()) {
        prop_assert_eq!(Pointer::decode(&pointer.encode()), Ok(pointer));
    }

    #[test]
    fn versions_survive(version in versions()) {
        prop_assert_eq!(Version::decode(&version.encode(), 1 << 44), Ok(Some(version)));
    }

    #[test]
    fn superblocks_survive_and_a_flipped_bit_is_noticed(superblock in superblocks(), at in 0..BLOCK_BYTES, bit in 0..8) {
        let mut bytes = superblock.encode();
        prop_assert_eq!(Superblock::decode(&bytes, superblock.slot()), Ok(superblock.clone()));
        prop_assert!(Superblock::decode(&bytes, 1 - superblock.slot()).is_err());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(Superblock::decode(&bytes, superblock.slot()).is_err());
    }

    #[test]
    fn journal_blocks_survive_and_a_flipped_bit_is_noticed(
        many in prop::collection::vec(records(), 0..12), recovered in prop::option::of(0..1u64 << 20),
        seq in 1..1u64 << 50, at in 0..BLOCK_BYTES, bit in 0..8,
    ) {
        let header = JournalHeader { store: STORE, incarnation: 3, seq, durable_seq: seq / 2, checkpoint: 9 };
        let mut builder = JournalBuilder::new();
        let first = recovered.map(|records| Record::Recovered { seq: seq - 1, records });
        let others = many.into_iter().filter(|record| !matches!(record, Record::Recovered { .. }));
        let kept: Vec<Record> = first.into_iter().chain(others).filter(|record| builder.push(record)).collect();
        let mut bytes = builder.seal(&header);
        prop_assert_eq!(JournalBlock::decode(&bytes, STORE), Ok(JournalBlock { header, records: kept }));
        prop_assert!(JournalBlock::decode(&bytes, Uuid::nil()).is_err());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(JournalBlock::decode(&bytes, STORE).is_err());
    }

    #[test]
    fn any_bytes_give_a_record_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0..12u8) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        if let Ok((record, length)) = Record::decode(&bytes) {
            prop_assert!(length <= bytes.len());
            let mut again = Vec::new();
            record.encode_into(&mut again);
            prop_assert_eq!(again.as_slice(), &bytes[..length]);
        }
    }

    #[test]
    fn any_bytes_give_a_version_or_an_error(bytes in prop::collection::vec(any::<u8>(), 256), keep in 0..256usize) {
        let mut bytes = bytes;
        bytes[keep..].fill(0);
        if let Ok(Some(version)) = Version::decode(&bytes, 1 << 44) {
            prop_assert_eq!(version.encode().to_vec(), bytes);
        }
    }

    #[test]
    fn nodes_survive(slots in prop::collection::vec((0..256usize, pointers()), 1..20)) {
        let mut node = Node::EMPTY;
        slots.into_iter().for_each(|(slot, pointer)| node.pointers[slot] = pointer);
        let bytes = node.encode();
        let back = Node::decode(&bytes, tanada_format::crc32c(&bytes), 1 << 44);
        prop_assert_eq!(back.is_ok(), !node.is_empty());
        prop_assert!(back.is_err() || back.is_ok_and(|back| back == node));
    }

    #[test]
    fn bitmap_pages_survive(bits in prop::collection::btree_set(2..2048u64, 0..100), copy in 0..2u64) {
        let mut page = BitmapPage::fresh();
        bits.iter().for_each(|bit| page.set(*bit));
        let entry = RegionEntry::decode(&page.entry(copy).encode()).expect("whole");
        let RegionEntry::Page { copy: back, crc, used } = entry else { panic!("a page became fresh") };
        prop_assert_eq!((back, used), (copy, bits.len() as u64));
        prop_assert!(BitmapPage::decode(&page.encode(), crc, used, 2048).is_ok_and(|back| back == page));
        prop_assert!(BitmapPage::decode(&page.encode(), crc, used + 1, 2048).is_err());
        if let Some(last) = bits.last() {
            prop_assert!(BitmapPage::decode(&page.encode(), crc, used, *last).is_err());
        }
    }
}

#[test]
fn a_new_image_opens_as_an_empty_store() {
    let image =
        format_image(&FormatOptions { store: STORE, device_bytes: (64 << 20) + 5, journal_bytes: None }).expect("room");
    let (_, bytes) = &image.writes[0];
    let superblock = Superblock::decode(bytes, 1).expect("whole");
    assert_eq!(superblock.geometry.store_bytes(), 64 << 20);
    assert_eq!(superblock.geometry.journal_blocks(), 4096);
    assert!(superblock.catalog.is_null());
    assert!(format_image(&FormatOptions { store: STORE, device_bytes: 16 << 20, journal_bytes: None }).is_err());
}

#[test]
fn a_single_block_costs_24_bytes_of_journal() {
    let record = Record::Map { head: 1, place: 2, block: 3, crcs: vec![4] };
    assert_eq!(record.encoded_bytes(), 24);
    let mut builder = JournalBuilder::new();
    while builder.push(&record) {}
    assert_eq!(builder.count(), 168);
}

#[test]
fn future_stores_are_refused_by_name() {
    let geometry = Geometry::new(16 * SEGMENT_BLOCKS, 64).expect("in bounds");
    let mut superblock = Superblock::fresh(STORE, geometry);
    superblock.features_required = 4;
    let message = Superblock::decode(&superblock.encode(), 1).expect_err("unknown feature").to_string();
    assert!(message.contains("0x4") && message.contains("required"), "{message}");
    superblock.features_required = 0;
    superblock.features_readable = 1;
    assert!(Superblock::decode(&superblock.encode(), 1).is_ok_and(|superblock| !superblock.may_write()));
}

#[test]
fn a_store_that_has_used_up_half_of_its_numbers_is_read_and_says_so() {
    let fresh = Superblock::fresh(STORE, Geometry::new(8 * SEGMENT_BLOCKS, 64).unwrap());
    assert_eq!(fresh.used_up(), None);
    let half = (1 << 47) - 1;
    assert_eq!(Superblock { next_version: half, ..fresh.clone() }.used_up(), None);
    let over = Superblock { next_version: half + 1, ..fresh.clone() };
    assert_eq!(Superblock::decode(&over.encode(), over.slot()).unwrap().used_up(), Some(("next_version", half + 1)));
    assert_eq!(Superblock { journal_seq: 1 << 62, ..fresh }.used_up(), Some(("journal_seq", 1 << 62)));
}
