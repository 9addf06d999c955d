//! The store's figures against a full walk of the image. Exact where the store is at rest.

use std::collections::{BTreeMap, BTreeSet};

use tanada_engine::{Control, Reply, Request, StoreStat};
use tanada_format::VersionState;
use tanada_format::check::{CheckReport, reachable};

use crate::content::BLOCK;
use crate::world::{Stop, World, wrong};

const B: u64 = BLOCK as u64;

/// Ghosts are counted at most once in this time, and the next to ask sees the result.
const GHOST_MICROS: u64 = 61_000_000;

impl World {
    pub fn store_stat(&mut self) -> Result<StoreStat, Stop> {
        let (_, reply) = self.must(Request::Control(Control::StoreStat), false)?;
        match reply {
            Reply::Store(stat) => Ok(*stat),
            other => wrong(format!("the store's figures were asked for, and it said {other:?}")),
        }
    }

    /// What the engine says each volume uses is what a full walk of the image counts. The store is quiet.
    pub fn check_usage(&mut self) -> Result<(), Stop> {
        let report = self.check_image()?;
        let reach = self.reach(&report)?;
        let mut users: BTreeMap<u64, u64> = BTreeMap::new();
        reach.iter().flatten().for_each(|block| *users.entry(*block).or_default() += 1);
        for (usage, blocks) in report.versions.iter().zip(reach) {
            let version = &usage.version;
            if version.hidden || version.state != VersionState::Live {
                continue;
            }
            let exclusive = blocks.iter().filter(|block| users[block] == 1).count() as u64 * B;
            let (_, reply) = self.must(Request::Control(Control::Stat { id: version.uuid }), false)?;
            let Reply::Usage { usage: told, .. } = reply else { return wrong(format!("stat gave {reply:?}")) };
            let walked = (usage.mapped_blocks * B, exclusive);
            if (told.mapped, told.exclusive) != walked {
                let id = version.uuid;
                return wrong(format!("{id}: stat says {told:?}, a full walk counts (mapped, exclusive) {walked:?}"));
            }
        }
        Ok(())
    }

    /// All blocks that each version reaches.
    fn reach(&self, report: &CheckReport) -> Result<Vec<BTreeSet<u64>>, Stop> {
        let blocks = |usage: &tanada_format::check::VersionUsage| {
            reachable(&self.device, &report.superblock, &usage.version).map(|blocks| blocks.into_iter().collect())
        };
        report.versions.iter().map(|usage| blocks(usage).map_err(Stop::Wrong)).collect()
    }

    /// The figures of the whole store. Nobody uses it, and it was settled before.
    pub fn check_figures(&mut self) -> Result<(), Stop> {
        self.store_stat()?;
        self.now += GHOST_MICROS;
        self.store_stat()?;
        let mut told = self.store_stat()?;
        let patience = if self.settings.patient { 5_000 } else { 200 };
        for _ in 0..patience {
            let at_rest = told.unreleased == 0 && told.delta_entries == 0 && self.device.in_flight() == 0;
            if at_rest {
                break;
            }
            self.pump()?;
            told = self.store_stat()?;
        }
        let report = self.check_image()?;
        let geometry = report.superblock.geometry;
        let free = (geometry.allocatable_blocks() - report.used_blocks) * B;
        let heads = self.model.volumes.values();
        let expected = StoreStat {
            checkpoint: report.superblock.checkpoint,
            physical: geometry.store_bytes(),
            used: geometry.store_bytes() - free,
            free: free - told.reserved.min(free),
            unreleased: 0,
            virtual_size: heads.map(|volume| volume.size).sum(),
            ghost_held: self.ghost_held(&report)?,
            volumes: self.model.volumes.len() as u32,
            generations: self.model.generations.len() as u32,
            dying: 0,
            journal_size: geometry.journal_blocks() * B,
            delta_entries: 0,
            failed: None,
            ..told.clone()
        };
        if told != expected {
            return wrong(format!("the store says {told:?}, a full walk {expected:?}"));
        }
        Ok(())
    }

    /// Bytes that ghosts alone reach.
    fn ghost_held(&self, report: &CheckReport) -> Result<u64, Stop> {
        let (mut ghosts, mut others) = (BTreeSet::new(), BTreeSet::new());
        for (usage, blocks) in report.versions.iter().zip(self.reach(report)?) {
            if usage.version.state == VersionState::Ghost { ghosts.extend(blocks) } else { others.extend(blocks) }
        }
        Ok(ghosts.difference(&others).count() as u64 * B)
    }
}
