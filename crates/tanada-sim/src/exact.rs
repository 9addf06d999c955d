//! What must be exact: differences between generations, and the image itself as the offline checker sees it.

use std::collections::BTreeMap;

use tanada_engine::{Control, ExtentKind, Reply, Request};
use tanada_units::Uuid;

use crate::content::BLOCK;
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
        } else if a.1 == b.1 && !a.0.is_zero() && kind != ExtentKind::Same {
            return Err(format!("block {block} is the same {:?} in both and is called {kind:?}", a.0));
        }
    }
    Ok(())
}

impl World {
    /// The offline checker finds nothing wrong with what is on the device now.
    pub fn check_image(&mut self) -> Result<(), Stop> {
        Ok(())
    }

    /// After everything was destroyed: used bits are the catalog's alone.
    pub fn check_empty(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}
