//! What is measured, and what it has to reach: `must` gates a release, `aim` is ambition.

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
}

/// What the target speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The row's ratio to the reference named here.
    Ratio(&'static str),
    /// The row's value itself.
    Value,
}

#[derive(Debug)]
pub struct Target {
    pub id: &'static str,
    pub name: &'static str,
    pub unit: &'static str,
    pub of: Of,
    pub better: Better,
    pub must: Option<f64>,
    pub aim: Option<f64>,
}

impl Target {
    pub fn is_met(&self, limit: Option<f64>, value: f64) -> bool {
        match (self.better, limit) {
            (_, None) => true,
            (Better::More, Some(limit)) => value >= limit,
            (Better::Less, Some(limit)) => value <= limit,
        }
    }
}

const RAW: Of = Of::Ratio("qemu-nbd raw");
const NONE_KEPT: Of = Of::Ratio("own with 0 generations");
const QUIET: Of = Of::Ratio("own while nobody takes any");
const QCOW2: Of = Of::Ratio("qcow2 with 30 snapshots");
const INTERNAL: Of = Of::Ratio("qcow2 with 20 internal snapshots");
const CHAIN: Of = Of::Ratio("qcow2, chain of 30");
const NO_EXPORT: Of = Of::Ratio("own with no export");
const CONVERT: Of = Of::Ratio("qemu-img convert");
const SMALLEST: Of = Of::Ratio("1 GiB volume");

const fn more(id: &'static str, name: &'static str, unit: &'static str, of: Of, must: f64, aim: f64) -> Target {
    Target { id, name, unit, of, better: Better::More, must: Some(must), aim: Some(aim) }
}

const fn less(id: &'static str, name: &'static str, unit: &'static str, of: Of, must: f64, aim: f64) -> Target {
    Target { id, name, unit, of, better: Better::Less, must: Some(must), aim: Some(aim) }
}

const fn shown(id: &'static str, name: &'static str, unit: &'static str, of: Of) -> Target {
    Target { id, name, unit, of, better: Better::More, must: None, aim: None }
}

const fn shown_less(id: &'static str, name: &'static str, unit: &'static str, of: Of) -> Target {
    Target { id, name, unit, of, better: Better::Less, must: None, aim: None }
}

/// In the order in which they are shown.
#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    more("randwrite", "4 KiB random write, QD 32", "IOPS", RAW, 1.5, 2.3),
    more("randwrite-100g", "4 KiB random write, QD 32, 100 GiB volume, checkpoints running", "IOPS", RAW, 1.0, 1.8),
    more("randwrite-aged50", "4 KiB random write, QD 32, aged store 50 % full", "IOPS", RAW, 1.3, 2.0),
    more("randwrite-aged80", "4 KiB random write, QD 32, aged store 80 % full", "IOPS", RAW, 1.1, 1.5),
    more("randread", "4 KiB random read, QD 32", "IOPS", RAW, 1.0, 1.3),
    more("seqwrite", "128 KiB sequential write, QD 8", "MB/s", RAW, 1.3, 1.8),
    more("seqread", "128 KiB sequential read, QD 8", "MB/s", RAW, 1.1, 1.5),
    more("seqread-20", "128 KiB sequential read after 20 % random overwriting", "MB/s", RAW, 0.65, 0.8),
    more("seqread-100", "128 KiB sequential read after 100 % random overwriting", "MB/s", RAW, 0.38, 0.43),
    more("seqread-relaid", "128 KiB sequential read after 100 % overwriting and re-layout", "MB/s", RAW, 0.8, 1.1),
    more("flush", "4 KiB write + flush, QD 1", "writes/s", RAW, 0.95, 1.25),
    less("randwrite-p99", "p99 of 4 KiB random write, QD 32", "us", RAW, 0.7, 0.45),
    less("randread-p99", "p99 of 4 KiB random read, QD 32", "us", RAW, 1.1, 0.85),
    more("kept-randwrite", "random write, 1,000 generations kept", "IOPS", NONE_KEPT, 0.93, 0.98),
    more("kept-randread", "random read, 1,000 generations kept", "IOPS", NONE_KEPT, 0.93, 0.98),
    more("kept-seqwrite", "sequential write, 1,000 generations kept", "MB/s", NONE_KEPT, 0.93, 0.98),
    more("kept-seqread", "sequential read, 1,000 generations kept", "MB/s", NONE_KEPT, 0.93, 0.98),
    shown("kept-seqread-still", "sequential read, 1,000 generations kept, nothing laid out anew", "MB/s", NONE_KEPT),
    more("kept-flush", "write + flush, 1,000 generations kept", "writes/s", NONE_KEPT, 0.93, 0.98),
    less("kept-randwrite-p99", "p99 of random write, 1,000 generations kept", "us", NONE_KEPT, 1.15, 1.05),
    less("kept-randread-p99", "p99 of random read, 1,000 generations kept", "us", NONE_KEPT, 1.15, 1.05),
    more("churn-randwrite", "random write, a generation a second, oldest deleted", "IOPS", QUIET, 0.85, 0.95),
    more("churn-randread", "random read, a generation a second, oldest deleted", "IOPS", QUIET, 0.85, 0.95),
    more("churn-seqwrite", "sequential write, a generation a second, oldest deleted", "MB/s", QUIET, 0.85, 0.95),
    more("churn-seqread", "sequential read, a generation a second, oldest deleted", "MB/s", QUIET, 0.85, 0.95),
    more("churn-flush", "write + flush, a generation a second, oldest deleted", "writes/s", QUIET, 0.85, 0.95),
    less("churn-randwrite-p99", "p99 of random write, a generation a second, oldest deleted", "us", QUIET, 1.5, 1.15),
    less("churn-randread-p99", "p99 of random read, a generation a second, oldest deleted", "us", QUIET, 1.5, 1.15),
    less("pause-1", "write pause of a snapshot under QD 32 load, p99, 1 volume", "ms", Of::Value, 10.0, 3.0),
    less("pause-4", "write pause of a group snapshot under QD 32 load, p99, 4 volumes", "ms", Of::Value, 12.0, 4.0),
    less("pause-16", "write pause of a group snapshot under QD 32 load, p99, 16 volumes", "ms", Of::Value, 15.0, 5.0),
    Target { id: "snapshot", name: "snapshot, durable, worst p99 of volumes from 1 GiB to 16 TiB", unit: "ms",
        of: Of::Value, better: Better::Less, must: Some(10.0), aim: None },
    Target { id: "snapshot-p50", name: "snapshot, durable, worst p50 of volumes from 1 GiB to 16 TiB", unit: "ms",
        of: Of::Value, better: Better::Less, must: None, aim: Some(0.5) },
    less("snapshot-flat", "snapshot, durable, p50 of the slowest size against 1 GiB", "ms", SMALLEST, 1.5, 1.2),
    Target { id: "clone", name: "clone, durable, worst p99 of volumes from 1 GiB to 16 TiB", unit: "ms",
        of: Of::Value, better: Better::Less, must: Some(10.0), aim: None },
    Target { id: "clone-p50", name: "clone, durable, worst p50 of volumes from 1 GiB to 16 TiB", unit: "ms",
        of: Of::Value, better: Better::Less, must: None, aim: Some(0.5) },
    less("clone-flat", "clone, durable, p50 of the slowest size against 1 GiB", "ms", SMALLEST, 1.5, 1.2),
    less("delete-oldest", "deleting the oldest generation: map I/O per differing leaf", "blocks", Of::Value, 3.0, 2.0),
    less("delete-middle", "deleting a middle generation: map I/O per differing leaf", "blocks", Of::Value, 3.0, 2.0),
    less("delete-shared", "deleting a generation that a clone shares: map I/O per differing leaf", "blocks", Of::Value, 3.0, 2.0),
    less("paced-kept-randwrite-p99", "p99 of paced random write, 400 generations kept", "us", NONE_KEPT, 1.15, 1.05),
    less("paced-kept-randread-p99", "p99 of paced random read, 400 generations kept", "us", NONE_KEPT, 1.15, 1.05),
    less("export-randwrite-p99", "p99 of paced random write during an export, rate=32MiB", "us", NO_EXPORT, 2.0, 1.2),
    less("export-randread-p99", "p99 of paced random read during an export, rate=32MiB", "us", NO_EXPORT, 2.0, 1.2),
    shown_less("export-unbounded-randwrite-p99", "p99 of paced random write during an export without a bound", "us", NO_EXPORT),
    shown_less("export-unbounded-randread-p99", "p99 of paced random read during an export without a bound", "us", NO_EXPORT),
    shown("export-mb", "export of a raw image against qemu-img convert", "MB/s", CONVERT),
    less("cpu-randwrite", "server CPU per 4 KiB random write", "us", Of::Value, 15.0, 10.0),
    less("cpu-randread", "server CPU per 4 KiB random read", "us", Of::Value, 15.0, 10.0),
    less("memory", "blockd memory with 1 TiB mapped, at most", "MiB", Of::Value, 256.0, 256.0),
    less("open", "opening that store after a crash", "s", Of::Value, 3.0, 0.5),
    more("qcow2-30", "4 KiB random write, 30 generations, against qcow2", "IOPS", QCOW2, 5.0, 20.0),
    shown("internal-20-write", "random write, 20 generations, against qcow2 with 20 internal snapshots", "IOPS", INTERNAL),
    shown("internal-20-read", "random read, 20 generations, against qcow2 with 20 internal snapshots", "IOPS", INTERNAL),
    shown("chain-30-write", "random write, 30 generations, against a qcow2 chain of 30", "IOPS", CHAIN),
    shown("chain-30-read", "random read, 30 generations, against a qcow2 chain of 30", "IOPS", CHAIN),
    shown("fresh-randwrite", "4 KiB random write, QD 32, fresh sparse store and file", "IOPS", RAW),
    shown("fresh-flush", "4 KiB write + flush, QD 1, fresh sparse store and file", "writes/s", RAW),
];

pub fn by_id(id: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.id == id)
}

#[cfg(test)]
mod tests {
    use super::{TARGETS, by_id};

    #[test]
    fn each_row_has_one_name_and_an_aim_beyond_its_must() {
        for target in TARGETS {
            assert_eq!(TARGETS.iter().filter(|other| other.id == target.id).count(), 1, "{}", target.id);
            if let (Some(_), Some(aim)) = (target.must, target.aim) {
                assert!(target.is_met(target.must, aim), "{}: whoever reaches the aim reaches the must", target.id);
            }
        }
        let randwrite = by_id("randwrite").unwrap();
        assert!(randwrite.is_met(randwrite.must, 1.5) && !randwrite.is_met(randwrite.must, 1.49));
        let p99 = by_id("randread-p99").unwrap();
        assert!(p99.is_met(p99.must, 1.1) && !p99.is_met(p99.must, 1.11));
    }
}
