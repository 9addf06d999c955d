//! What runs did, for the line at their end.

use std::fmt;
use std::ops::AddAssign;

use tanada_engine::{Control, Request};

/// Counts over one run or many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub zeroes: u64,
    pub flushes: u64,
    pub extents: u64,
    pub snapshots: u64,
    pub other_controls: u64,
    pub replies: u64,
    pub kills: u64,
    pub power_cuts: u64,
    /// Of these, in the middle of an earlier recovery.
    pub in_recovery: u64,
    /// Stores opened again and read back in full.
    pub recoveries: u64,
    /// Blocks compared with the history.
    pub blocks: u64,
    pub device_writes: u64,
    pub device_syncs: u64,
    pub faults: u64,
    /// Scrubs that came to their end.
    pub scrubs: u64,
}

impl Counters {
    pub fn request(&mut self, request: &Request) {
        let count = match request {
            Request::Read { .. } => &mut self.reads,
            Request::Write { .. } => &mut self.writes,
            Request::WriteZeroes { .. } | Request::Discard { .. } => &mut self.zeroes,
            Request::Flush { .. } => &mut self.flushes,
            Request::Extents { .. } | Request::Control(Control::Difference { .. }) => &mut self.extents,
            Request::Control(Control::Snapshot { .. }) => &mut self.snapshots,
            Request::Control(_) => &mut self.other_controls,
        };
        *count += 1;
    }

    /// Requests of all kinds.
    pub fn requests(&self) -> u64 {
        let guests = self.reads + self.writes + self.zeroes + self.flushes + self.extents;
        guests + self.snapshots + self.other_controls
    }

    /// Kills and power cuts.
    pub fn crashes(&self) -> u64 {
        self.kills + self.power_cuts
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.zeroes += other.zeroes;
        self.flushes += other.flushes;
        self.extents += other.extents;
        self.snapshots += other.snapshots;
        self.other_controls += other.other_controls;
        self.replies += other.replies;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.in_recovery += other.in_recovery;
        self.recoveries += other.recoveries;
        self.blocks += other.blocks;
        self.device_writes += other.device_writes;
        self.device_syncs += other.device_syncs;
        self.faults += other.faults;
        self.scrubs += other.scrubs;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests ({} writes, {} zeroes and discards, {} reads, {} flushes, {} extents and differences, \
             {} snapshots, {} other controls), {} crash points ({} power cuts, {} kills, {} of them during recovery), \
             {} recoveries read back, {} blocks compared, {} device writes, {} syncs, {} injected faults, {} scrubs",
            self.requests(),
            self.writes,
            self.zeroes,
            self.reads,
            self.flushes,
            self.extents,
            self.snapshots,
            self.other_controls,
            self.crashes(),
            self.power_cuts,
            self.kills,
            self.in_recovery,
            self.recoveries,
            self.blocks,
            self.device_writes,
            self.device_syncs,
            self.faults,
            self.scrubs
        )
    }
}
