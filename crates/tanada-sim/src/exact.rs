//! What must be exact: differences between generations, and the image itself as the offline checker sees it.

use std::collections::BTreeMap;

use tanada_engine::{Control, ExtentKind, Reply, Request};
use tanada_format::VersionState;
use tanada_format::check::{CheckOptions, CheckReport, ReadAt, check, reachable};
use tanada_units::Uuid;

use crate::content::BLOCK;
use crate::device::SimDevice;
use crate::history::UNKNOWN;
use crate::model::{Kept, Settled};
use crate::world::{Stop, World, wrong};

const B: u64 = BLOCK as u64;

impl World {
    /// The difference of two generations names every block that differs, as data or hole, and none that is the same.
    pub fn difference(&mut self) -> Result<(), Stop> {
        let settled: Vec<(Uuid, u64)> = self
            .model
            .generations
            .iter()
            .filter(|(_, generation)| matches!(generation.kept, Kept::Settled(_)))
            .map(|(id, generation)| (*id, generation.family))
            .collect();
        if settled.is_empty() {
            return Ok(());
        }
        let (from, family) = *self.rng.pick(&settled);
        let relatives: Vec<Uuid> = settled.iter().filter(|(_, other)| *other == family).map(|(id, _)| *id).collect();
        let to = *self.rng.pick(&relatives);
        let told = self.told_difference(from, to)?;
        let (Some(old), Some(new)) = (self.settled(from), self.settled(to)) else { return Ok(()) };
        let size = self.model.generations[&to].size.min(self.model.generations[&from].size);
        check_difference(&old, &new, &told, size)
            .map_err(|message| Stop::Wrong(format!("difference of {from} to {to}: {message}")))
    }

    fn settled(&self, id: Uuid) -> Option<Settled> {
        match &self.model.generations.get(&id)?.kept {
            Kept::Settled(settled) => Some(settled.clone()),
            Kept::Open { .. } => None,
        }
    }

    /// Block by block, as far as either has ever been written.
    fn told_difference(&mut self, from: Uuid, to: Uuid) -> Result<BTreeMap<u64, (u64, ExtentKind)>, Stop> {
        let size = self.model.generations[&to].size;
        let (mut at, mut told) = (0, BTreeMap::new());
        while at < size {
            let control = Control::Difference { from, to, offset: at, extents_max: 7 };
            let (_, reply) = self.must(Request::Control(control), true)?;
            let Reply::Extents(extents) = reply else { return wrong(format!("a difference gave {reply:?}")) };
            let Some(last) = extents.last() else { break };
            let end = last.offset + last.length;
            if end <= at {
                return wrong(format!("a difference from {at} on ends at {end}"));
            }
            told.extend(
                extents
                    .iter()
                    .map(|extent| (extent.offset / B, ((extent.offset + extent.length).div_ceil(B), extent.kind))),
            );
            at = end;
        }
        Ok(told)
    }
}

fn check_difference(
    old: &Settled,
    new: &Settled,
    told: &BTreeMap<u64, (u64, ExtentKind)>,
    size: u64,
) -> Result<(), String> {
    let blocks: std::collections::BTreeSet<u64> =
        old.keys().chain(new.keys()).copied().filter(|block| block * B < size).collect();
    for block in blocks {
        let kind = match told.range(..=block).next_back() {
            Some((_, (end, kind))) if block < *end => *kind,
            _ => ExtentKind::Same,
        };
        let (a, b) = (old.get(&block).cloned().unwrap_or_default(), new.get(&block).cloned().unwrap_or_default());
        if a.0 != b.0 {
            let right = if b.0.is_zero() { kind != ExtentKind::Same } else { kind == ExtentKind::Data };
            if !right {
                return Err(format!("block {block} went from {:?} to {:?} and is called {kind:?}", a.0, b.0));
            }
        } else if a.1 == b.1 && a.1 != UNKNOWN && !a.0.is_zero() && kind != ExtentKind::Same {
            return Err(format!("block {block} is the same {:?} in both and is called {kind:?}", a.0));
        }
    }
    Ok(())
}

impl ReadAt for SimDevice {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        if offset + bytes.len() as u64 > self.length_bytes() {
            return Err(format!("{} bytes at {offset} are beyond the end", bytes.len()));
        }
        for (n, chunk) in bytes.chunks_mut(BLOCK).enumerate() {
            chunk.copy_from_slice(&self.peek(offset / B + n as u64)[..chunk.len()]);
        }
        Ok(())
    }
}

impl World {
    /// The offline checker finds nothing wrong with what is on the device now, whenever that is.
    pub fn check_image(&self) -> Result<CheckReport, Stop> {
        let report =
            check(&self.device, CheckOptions { data: true }).map_err(|error| Stop::Wrong(error.to_string()))?;
        match report.findings.first() {
            None => Ok(report),
            Some(first) => wrong(format!("the checker finds {} faults, first: {first}", report.findings.len())),
        }
    }

    /// What the engine says each volume uses is what a full walk of the image counts. The store is quiet.
    pub fn check_usage(&mut self) -> Result<(), Stop> {
        let report = self.check_image()?;
        let mut reach = Vec::new();
        for usage in &report.versions {
            let blocks = reachable(&self.device, &report.superblock, &usage.version).map_err(Stop::Wrong)?;
            reach.push((usage, blocks));
        }
        let mut users: BTreeMap<u64, u64> = BTreeMap::new();
        reach.iter().flat_map(|(_, blocks)| blocks).for_each(|block| *users.entry(*block).or_default() += 1);
        for (usage, blocks) in reach {
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

    /// After everything was destroyed: used bits are the catalog's alone.
    pub fn check_empty(&mut self) -> Result<(), Stop> {
        let report = self.check_image()?;
        if let Some(left) = report.versions.first() {
            return wrong(format!("everything was destroyed, and there is {:?}", left.version));
        }
        if report.used_blocks != report.catalog_blocks {
            return wrong(format!(
                "an empty store uses {} blocks, its catalog {}",
                report.used_blocks, report.catalog_blocks
            ));
        }
        Ok(())
    }
}
