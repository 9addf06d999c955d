//! Certificates survive the map of `snapshot_info`, and no map upsets the reader.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tanada_certificate::{
    Cause, Certificate, Cut, DiskEntry, Downgrade, Freeze, GuestFacts, Held, Level, Method, Participant,
};

fn one_of<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    (0..all.len()).prop_map(move |at| all[at])
}

fn freeze() -> impl Strategy<Value = Freeze> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let rest = (any::<Option<u64>>(), one_of(&Held::ALL), any::<String>(), any::<Option<String>>());
    (numbers, rest).prop_map(
        |((frozen_us, asked_us, cut_after_us, frozen), (thawed, held, verified_by, thaw_error))| Freeze {
            frozen_us,
            asked_us,
            cut_after_us,
            frozen,
            thawed,
            held,
            verified_by,
            thaw_error,
        },
    )
}

fn disk() -> impl Strategy<Value = DiskEntry> {
    let texts = (any::<String>(), any::<String>(), proptest::collection::vec(any::<String>(), 0..3));
    (texts, one_of(&Level::ALL), any::<u64>()).prop_map(|((vdi, sr, mounts), level, skew_us)| DiskEntry {
        vdi,
        sr,
        level,
        skew_us,
        mounts,
    })
}

fn participant() -> impl Strategy<Value = Participant> {
    (any::<String>(), any::<String>(), any::<bool>()).prop_map(|(name, result, ok)| Participant { name, result, ok })
}

fn downgrade() -> impl Strategy<Value = Downgrade> {
    (proptest::option::of(one_of(&Cause::ALL)), any::<String>()).prop_map(|(cause, words)| Downgrade { cause, words })
}

fn certificate() -> impl Strategy<Value = Certificate> {
    let cut = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<Option<u64>>()).prop_map(
        |(total_us, pause_us, writes_observed, skew_us, held_us)| Cut {
            total_us,
            pause_us,
            writes_observed,
            skew_us,
            held_us,
        },
    );
    let guest = (any::<String>(), any::<String>(), any::<String>()).prop_map(|(os, os_id, agent)| GuestFacts {
        os,
        os_id,
        agent,
    });
    let head = (one_of(&Level::ALL), one_of(&Method::ALL), any::<String>(), guest);
    let body = (proptest::option::of(freeze()), cut, proptest::collection::btree_map(any::<u32>(), disk(), 0..4));
    let tail = (
        proptest::collection::vec(participant(), 0..12),
        proptest::option::of(downgrade()),
        proptest::collection::vec(any::<String>(), 0..12),
    );
    (head, body, tail).prop_map(|((level, method, power_state, guest), (freeze, cut, disks), tail)| {
        let (participants, downgrade, notes) = tail;
        Certificate { level, method, power_state, guest, freeze, cut, disks, participants, downgrade, notes }
    })
}

/// Keys as ours begin, with anything behind.
fn hostile_key() -> impl Strategy<Value = String> {
    let known = one_of(&[
        "consistency",
        "disk-snapshot-type",
        "frozen_us",
        "held_us",
        "disk.",
        "disk.0.",
        "disk.0.mounts",
        "writer.",
        "writer.4294967295.ok",
        "note.",
        "note.-1",
        "not-quiesced-because",
    ]);
    prop_oneof![
        any::<String>(),
        known.prop_map(str::to_owned),
        (known_prefix(), any::<String>()).prop_map(|(a, b)| a + &b)
    ]
}

fn known_prefix() -> impl Strategy<Value = String> {
    one_of(&["disk.", "disk.1.", "writer.", "writer.2.", "note.", "cut_"]).prop_map(str::to_owned)
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(certificate in certificate()) {
        let mut map = certificate.to_map();
        // What others keep in the same map does not matter.
        map.insert("bytes_moved_by_host".into(), "0".into());
        prop_assert_eq!(Certificate::from_map(&map), Some(certificate));
    }

    #[test]
    fn no_map_upsets_the_reader(map in proptest::collection::btree_map(hostile_key(), any::<String>(), 0..20)) {
        if let Some(read) = Certificate::from_map(&map) {
            let _ = read.to_string();
            // What was understood is stable from then on.
            prop_assert_eq!(Certificate::from_map(&read.to_map()), Some(read));
        }
    }
}

#[test]
fn maps_of_earlier_versions_and_other_makers_are_understood() {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let earlier = Certificate::from_map(&map(&[
        ("disk-snapshot-type", "quiesced"),
        ("consistency", "file system"),
        ("frozen_us", "1234"),
        ("file-systems-frozen", "2"),
        ("cut_us", "41"),
    ]))
    .unwrap();
    assert_eq!((earlier.level, earlier.freeze.unwrap().frozen, earlier.cut.total_us), (Level::FileSystem, 2, 41));
    // Another maker's word is no evidence.
    let foreign = Certificate::from_map(&map(&[("disk-snapshot-type", "quiesced")])).unwrap();
    assert_eq!(foreign.level, Level::Crash);
    assert_eq!(foreign.notes, ["its maker calls it 'quiesced' and tells nothing else"]);
    assert_eq!(Certificate::from_map(&map(&[("cut_us", "41")])), None);
}

#[test]
fn a_map_of_thousands_of_entries_gives_a_bounded_certificate() {
    let mut map: BTreeMap<String, String> =
        (0..5000).map(|number| (format!("note.{number}"), "x".to_owned())).collect();
    map.insert("consistency".into(), "crash".into());
    assert_eq!(Certificate::from_map(&map).unwrap().notes.len(), 1000);
}
