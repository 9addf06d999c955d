//! What changed between two versions: differences of generations, and of a volume against one, block by block against
//! the model.

use std::collections::BTreeMap;

use tanada_engine::{Control, Extent, ExtentKind, Reply, Request};
use tanada_units::Uuid;

use crate::content::BLOCK;
use crate::history::UNKNOWN;
use crate::model::{Kept, Settled};
use crate::world::{Stop, World, wrong};

const B: u64 = BLOCK as u64;

/// First block -> (block behind the last, kind).
type Told = BTreeMap<u64, (u64, ExtentKind)>;

impl World {
    /// The difference of two versions of one family, each a generation or now and then a volume, names every block that
    /// differs, as data or hole, and none that is the same.
    pub fn difference(&mut self) -> Result<(), Stop> {
        let Some((from, family)) = self.some_settled() else { return Ok(()) };
        let mut relatives: Vec<Uuid> = self.settled_ids(Some(family));
        relatives.extend(self.volumes_of(family));
        let to = *self.rng.pick(&relatives);
        self.quiesce(to)?;
        let (Some(old), Some(new)) = (self.settled(from), self.settled(to)) else { return Ok(()) };
        // A volume stands still meanwhile.
        let traffic = !self.model.volumes.contains_key(&to);
        let told = self.told_difference(from, to, traffic)?;
        let size = self.size(to).min(self.size(from));
        check_difference(&old, &new, &told, size)
            .map_err(|message| Stop::Wrong(format!("difference of {from} to {to}: {message}")))
    }

    /// A guest asks for the extents of its volume that changed since a generation: the same, with the unchanged between.
    pub fn changed_since(&mut self) -> Result<(), Stop> {
        let Some((from, family)) = self.some_settled() else { return Ok(()) };
        let volumes = self.volumes_of(family);
        if volumes.is_empty() {
            return Ok(());
        }
        let to = *self.rng.pick(&volumes);
        let Some(export) = self.export_of(to) else { return Ok(()) };
        self.quiesce(to)?;
        let (Some(old), Some(new)) = (self.settled(from), self.settled(to)) else { return Ok(()) };
        let size = self.size(to);
        let (mut at, mut told) = (0, Told::new());
        while at < size {
            let request = Request::Extents { export, offset: at, length: size - at, extents_max: 5, since: Some(from) };
            let (_, reply) = self.must(request, false)?;
            let Reply::Extents(extents) = reply else { return wrong(format!("extents gave {reply:?}")) };
            if extents.is_empty() {
                return wrong(format!("no extents of {to} since {from} at {at} of {size}"));
            }
            for extent in extents {
                if extent.offset != at || extent.length == 0 || extent.offset + extent.length > size {
                    return wrong(format!("{extent:?} of {to} since {from}, where one at {at} of {size} was due"));
                }
                tell(&mut told, &extent);
                at += extent.length;
            }
        }
        check_difference(&old, &new, &told, size.min(self.size(from)))
            .map_err(|message| Stop::Wrong(format!("extents of {to} since {from}: {message}")))
    }

    fn some_settled(&mut self) -> Option<(Uuid, u64)> {
        let ids = self.settled_ids(None);
        if ids.is_empty() {
            return None;
        }
        let id = *self.rng.pick(&ids);
        Some((id, self.model.generations.get(&id)?.family))
    }

    fn settled_ids(&self, family: Option<u64>) -> Vec<Uuid> {
        let wanted = |id: &Uuid| {
            let generation = &self.model.generations[id];
            matches!(generation.kept, Kept::Settled(_)) && family.is_none_or(|family| generation.family == family)
        };
        self.model.generations.keys().copied().filter(wanted).collect()
    }

    fn volumes_of(&self, family: u64) -> Vec<Uuid> {
        self.model.volumes.iter().filter(|(_, volume)| volume.family == family).map(|(id, _)| *id).collect()
    }

    fn size(&self, id: Uuid) -> u64 {
        let volume = self.model.volumes.get(&id).map(|volume| volume.size);
        volume.or_else(|| Some(self.model.generations.get(&id)?.size)).unwrap_or(0)
    }

    /// What it certainly holds: a generation that was read, or a volume that nobody is changing.
    fn settled(&self, id: Uuid) -> Option<Settled> {
        if let Some(volume) = self.model.volumes.get(&id) {
            return volume.blocks.iter().map(|(block, history)| Some((*block, history.now()?))).collect();
        }
        match &self.model.generations.get(&id)?.kept {
            Kept::Settled(settled) => Some(settled.clone()),
            Kept::Open { .. } => None,
        }
    }

    /// Block by block, as far as either has ever been written.
    fn told_difference(&mut self, from: Uuid, to: Uuid, traffic: bool) -> Result<Told, Stop> {
        let size = self.size(to);
        let (mut at, mut told) = (0, Told::new());
        while at < size {
            let control = Control::Difference { from, to, offset: at, extents_max: 7 };
            let (_, reply) = self.must(Request::Control(control), traffic)?;
            let Reply::Extents(extents) = reply else { return wrong(format!("a difference gave {reply:?}")) };
            let Some(last) = extents.last() else { break };
            let end = last.offset + last.length;
            if end <= at {
                return wrong(format!("a difference from {at} on ends at {end}"));
            }
            extents.iter().for_each(|extent| tell(&mut told, extent));
            at = end;
        }
        Ok(told)
    }
}

fn tell(told: &mut Told, extent: &Extent) {
    told.insert(extent.offset / B, ((extent.offset + extent.length).div_ceil(B), extent.kind));
}

fn check_difference(old: &Settled, new: &Settled, told: &Told, size: u64) -> Result<(), String> {
    let blocks: std::collections::BTreeSet<u64> =
        old.keys().chain(new.keys()).copied().filter(|block| block * B < size).collect();
    for (first, (end, kind)) in told.iter().filter(|(first, (_, kind))| *kind != ExtentKind::Same && **first * B < size)
    {
        let end = (*end).min(size.div_ceil(B));
        if blocks.range(first..&end).count() as u64 != end - first {
            return Err(format!(
                "blocks {first} to {end} are called {kind:?}, but neither ever had all of them written"
            ));
        }
    }
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
