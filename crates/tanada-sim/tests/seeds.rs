//! A fixed set of runs in every `cargo test`; `cargo run -p tanada-sim -- --minutes N --seed S` goes on from there.

use tanada_sim::{Kind, Lie, Options, Report, replay, rot, rot_superblocks, run, scrub_rot};

fn runs(seed: u64, runs: u64) -> Report {
    run(&Options { runs, ..Options::one(seed) })
}

fn check(report: &Report) {
    if let Some(broken) = &report.broken {
        panic!(
            "seed {0} is broken: {1}\nreplay: cargo run -p tanada-sim -- --seed {0} --runs 1 --trace",
            broken.seed, broken.message
        );
    }
}

#[test]
fn a_fixed_set_of_runs_keeps_all_promises() {
    let report = runs(1, 40);
    check(&report);
    assert!(
        report.counters.kills > 20 && report.counters.power_cuts > 20 && report.counters.replies > 10_000,
        "too little happened: {report:?}"
    );
}

/// Seeds that once found something, in the store or in the proof itself.
#[test]
fn runs_that_once_failed_do_not_fail_again() {
    let seeds = [
        4,          // a merge read nodes that were not written yet, the cache being too small for them
        80,         // blocks that two ghosts share were counted by neither
        204,        // the proof: a process tore memory that it had not begun to use
        481,        // the proof: zeros over a hole, though flushed, leave no trace
        5925,       // who asked a read-only store to settle was never answered
        2000181,    // a store that grew twice during one checkpoint did not open again
        3434625100, // a full store: a part of a block that waited for a refused write slept until the next event
        10000450,   // records of a write in 27 runs came round the ring to what recovery needed
    ];
    for seed in seeds.into_iter().chain([9, 38, 73, 330, 340]) {
        check(&runs(seed, 1));
    }
    let seeds_of_kinds = [
        (Kind::Scrubs, 6), // the last free blocks were lined up for data, their pages unread: none for a map node
        (Kind::Scrubs, 36), // the store grew while a checkpoint merged, which knew no such block
        (Kind::SlowPunches, 19), // the proof: space on its way back to the medium is not free yet
        (Kind::NoReserve, 15), // the proof: a write beyond the end
        (Kind::Fragments, 700969), // a journal write that ended a round late landed on a newer block
        (Kind::Scrubs, 318), // a long pause of a scrub kept space from a writer
        (Kind::Scrubs, 8000645), // a scrub took a bitmap page for damaged that was announced, and written while it looked
        (Kind::Relayout, 8000096), // a walk at its bound waited for the next checkpoint that was due
    ];
    for (kind, seed) in seeds_of_kinds {
        check(&run(&Options { kind: Some(kind), ..Options::one(seed) }));
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (first, second) = (runs(7, 3), runs(7, 3));
    assert_eq!((first.digest, first.counters), (second.digest, second.counters));
    assert_ne!(first.digest, runs(8, 3).digest);
}

#[test]
fn every_subset_of_unsynced_writes_recovers_to_an_instant() {
    let replayed = replay(3, 25..95);
    assert!(replayed.broken.is_none(), "{:?}", replayed.broken);
    assert!(replayed.recoveries > 300, "too few recoveries: {replayed:?}");
}

#[test]
fn a_flipped_bit_is_an_error_or_nothing_never_wrong_data() {
    let (mut found, mut refused, mut healed) = (0, 0, 0);
    for seed in [1, 2, 3, 4] {
        let rotted = rot(seed, 15).unwrap_or_else(|message| panic!("{message}"));
        found += rotted.found;
        refused += rotted.refused + rotted.unopened;
        healed += rotted.healed;
    }
    assert!(found > 5 && refused > 3 && healed > 1, "the bits fell beside everything: {found} {refused} {healed}");
}

#[test]
fn a_flipped_bit_in_both_copies_of_the_newest_superblock_is_never_served_around() {
    let refused = rot_superblocks(1..25).unwrap_or_else(|message| panic!("{message}"));
    assert!(refused > 12, "of 24 stores only {refused} could know that their newest superblock is damaged");
}

#[test]
fn a_flipped_bit_is_named_by_a_scrub_and_nothing_else_is() {
    let (mut named, mut resumed) = (0, 0);
    for seed in [1, 2, 5, 6] {
        let scrubbed = scrub_rot(seed, 12).unwrap_or_else(|message| panic!("{message}"));
        named += scrubbed.named;
        resumed += scrubbed.resumed;
    }
    assert!(named > 40 && resumed > 20, "too little was flipped or interrupted: {named} {resumed}");
}

#[test]
fn every_kind_of_run_keeps_all_promises() {
    for kind in Kind::ALL {
        let report = run(&Options { kind: Some(kind), runs: 6, ..Options::one(1) });
        check(&report);
        let all_scrubbed = kind != Kind::Scrubs || report.counters.scrubs > 0;
        assert!(report.counters.crashes() > 8 && all_scrubbed, "{kind:?}: too little happened: {report:?}");
    }
}

/// The proof can fail: devices that break their contract are noticed.
#[test]
fn a_device_that_acknowledges_syncs_without_doing_them_is_caught() {
    let report = run(&Options { lie: Lie::SyncsNothing, runs: 30, ..Options::one(1) });
    assert!(report.broken.is_some(), "thirty runs without a single sync looked right");
}

#[test]
fn a_device_that_loses_writes_is_caught() {
    let report = run(&Options { lie: Lie::LosesWrites, runs: 30, ..Options::one(1) });
    assert!(report.broken.is_some(), "thirty runs with lost writes looked right");
}
