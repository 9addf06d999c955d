//! Reserves that fill up under real writes.

use crate::bench::{ALICE, Bench};

/// A write that takes the volume offline. The group may do that before the writer has said goodbye, who then fails.
fn one_too_many(bench: &Bench, write: &str) {
    let _ = bench.qemu_io(&bench.image(&bench.iqn("disk7"), ALICE, None), &[write]);
    bench.group.measure();
}

#[test]
fn the_oldest_snapshot_goes_without_a_word() {
    let bench = Bench::quiet();
    bench.volume("disk7", "150 snap-reserve 20%");
    for round in 1..=3 {
        bench.done("volume select disk7 snapshot create-now");
        bench.io("disk7", &[&format!("write -P {round} {}M 1M", 15 * (round - 1))]);
        bench.group.measure();
    }
    let shown = bench.done("volume select disk7 show");
    assert!(shown.contains("\nSnap-Reserve-Avail: 0% (0MB)\nPermission: read-write\n"), "{shown}");
    assert!(shown.contains("\nSnapshots: 2\n"), "three snapshots of a page each do not fit into two: {shown}");
    assert!(shown.contains("\nStatus: online\n"), "{shown}");
}

#[test]
fn or_the_volume_goes_offline_with_its_snapshots() {
    let bench = Bench::quiet();
    bench.volume("disk7", "150 snap-reserve 10% snap-depletion volume-offline");
    bench.done("volume select disk7 snapshot create-now");
    bench.io("disk7", &["write -P 1 0 15M"]);
    one_too_many(&bench, "write -P 1 15M 64k");
    assert_eq!(bench.property("volume select disk7 show", "Status"), "offline (snap reserve met)");
    let image = bench.image(&bench.iqn("disk7"), ALICE, None);
    assert!(!bench.qemu_io(&image, &["read 0 512"]).0);
    bench.done("volume select disk7 snap-reserve 100");
    bench.done("volume select disk7 online");
    bench.io("disk7", &["read -P 1 0 15M", "read -P 1 15M 64k"]);
}

#[test]
fn a_thin_volume_grows_and_stops_at_its_limit() {
    let bench = Bench::quiet();
    bench.volume("disk7", "300 thin-provision thin-growth-max 50%");
    bench.io("disk7", &["write -P 1 0 40M"]);
    bench.group.measure();
    assert_eq!(bench.property("volume select disk7 show", "VolReserveInUse"), "45MB");
    assert_eq!(bench.property("volume select disk7 show", "VolReserve"), "90MB");
    bench.io("disk7", &["write -P 1 40M 110M"]);
    bench.group.measure();
    assert_eq!(bench.property("volume select disk7 show", "Status"), "online", "150 of 150 MB");
    one_too_many(&bench, "write -P 1 150M 64k");
    assert_eq!(bench.property("volume select disk7 show", "Status"), "offline (thin max growth met)");
    bench.done("volume select disk7 thin-growth-max 100%");
    bench.group.measure();
    bench.io("disk7", &["read -P 1 0 150M", "read -P 1 150M 64k"]);
}
