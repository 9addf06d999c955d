//! How full volumes and aggregates are.
//!
//! Shared blocks count once. Files do not tell what they share, so it is reckoned: LUNs and snapshots that came from one
//! another are a family; the family holds the largest part that any member got by cloning, and each member what it has
//! grown by since. Overwriting a shared block without growing is missed, which makes volumes look emptier, never fuller.

use std::collections::BTreeMap;

use sim_target::blocks;
use uuid::Uuid;

use crate::model::Array;
use crate::model::state::{LunFacts, Volume};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSpace {
    pub used: u64,
    pub available: u64,
    pub snapshots: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AggregateSpace {
    pub size: u64,
    pub used: u64,
    pub available: u64,
}

impl Array {
    /// Bytes that a LUN occupies, shared ones included.
    pub fn lun_used(&self, lun: Uuid) -> u64 {
        let Some(lun) = self.state.luns.get(&lun) else { return 0 };
        // A file that is gone occupies nothing.
        blocks::allocated(&self.lun_file(lun.volume, lun.uuid)).unwrap_or(0)
    }

    pub fn volume_space(&self, volume: &Volume) -> VolumeSpace {
        let mut families: BTreeMap<Uuid, (u64, u64)> = BTreeMap::new();
        let mut count = |facts: &LunFacts, allocated: u64| {
            let (shared, own) = families.entry(facts.family).or_default();
            *shared = (*shared).max(facts.shared.min(allocated));
            *own += allocated.saturating_sub(facts.shared);
        };
        let mut reserved = 0;
        for lun in self.state.luns.values().filter(|lun| lun.volume == volume.uuid) {
            let allocated = self.lun_used(lun.uuid);
            count(&lun.facts, allocated);
            if lun.facts.reserved {
                reserved += lun.facts.size.saturating_sub(allocated);
            }
        }
        let mut snapshots = 0;
        for snapshot in self.state.snapshots.values().filter(|snapshot| snapshot.volume == volume.uuid) {
            for (lun, facts) in &snapshot.luns {
                let file = self.snapshot_file(volume.uuid, snapshot.uuid, *lun);
                let allocated = blocks::allocated(&file).unwrap_or(0);
                count(facts, allocated);
                snapshots += allocated.saturating_sub(facts.shared);
            }
        }
        let used = families.values().map(|(shared, own)| shared + own).sum::<u64>() + reserved;
        let usable = volume.size - volume.size / 100 * volume.reserve_percent;
        VolumeSpace { used, available: usable.saturating_sub(used), snapshots }
    }

    pub fn aggregate_space(&self, name: &str) -> AggregateSpace {
        let size = self.state.aggregates.iter().find(|aggregate| aggregate.name == name).map_or(0, |found| found.size);
        let used = self.state.volumes.values().filter(|volume| volume.aggregate == name).map(|volume| {
            let used = self.volume_space(volume).used;
            if volume.guarantee == "volume" { volume.size.max(used) } else { used }
        });
        let used = used.sum();
        AggregateSpace { size, used, available: size.saturating_sub(used) }
    }

    /// What a volume can still take in: its own room or the aggregate's, whichever is less.
    pub fn room(&self, volume: &Volume) -> u64 {
        let own = self.volume_space(volume).available;
        if volume.guarantee == "volume" { own } else { own.min(self.aggregate_space(&volume.aggregate).available) }
    }

    /// Grows volumes that may grow, and marks LUNs of full ones. True: something changed.
    pub fn watch_space(&mut self) -> bool {
        let mut changed = false;
        let volumes: Vec<Uuid> = self.state.volumes.keys().copied().collect();
        for uuid in volumes {
            changed |= self.grow(uuid);
            let Some(volume) = self.state.volumes.get(&uuid) else { continue };
            let is_full = self.room(volume) == 0;
            for lun in self.state.luns.values_mut().filter(|lun| lun.volume == uuid) {
                if lun.space_error != is_full && (is_full || lun.thin) {
                    // A LUN that went offline for want of space stays so until it is enabled again.
                    lun.space_error = is_full;
                    lun.enabled &= lun.thin || !is_full;
                    changed = true;
                }
            }
        }
        changed
    }

    /// Autosize: one step at a time until the volume is below its threshold.
    fn grow(&mut self, uuid: Uuid) -> bool {
        let Some(volume) = self.state.volumes.get(&uuid) else { return false };
        if volume.autosize.mode == "off" || volume.size >= volume.autosize.maximum {
            return false;
        }
        let used = self.volume_space(volume).used;
        if used < volume.size / 100 * volume.autosize.grow_threshold {
            return false;
        }
        let wanted = (used / volume.autosize.grow_threshold.max(1) * 100).max(volume.size / 20 * 21);
        let size = wanted.min(volume.autosize.maximum);
        if let Some(volume) = self.state.volumes.get_mut(&uuid) {
            volume.size = size;
        }
        true
    }
}
