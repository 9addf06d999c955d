//! Reads everything back and asks whether one history explains it.

use std::collections::BTreeMap;

use tanada_engine::{Control, ExportId, Extent, ExtentKind, Reply, Request, VolumeInfo, VolumeKind, VolumeState};
use tanada_units::Uuid;

use crate::content::{BLOCK, Content};
use crate::history::{BlockHistory, Interval, NEVER, Op, intersect};
use crate::model::{Blocks, Kept, Limbo, Settled, blocks_of};
use crate::reads::flatten;
use crate::world::{Stop, World, wrong};

const B: u64 = BLOCK as u64;

/// Content of every block that was ever written.
pub type Seen = BTreeMap<u64, Content>;

/// How the last process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything answered must be there.
    Killed,
    /// Everything flushed must be there, and the rest a prefix.
    PowerCut,
}

impl World {
    fn size_and_blocks(&self, id: Uuid) -> Option<(u64, Vec<u64>)> {
        if let Some(volume) = self.model.volumes.get(&id) {
            return Some((volume.size, volume.blocks.keys().copied().collect()));
        }
        let generation = self.model.generations.get(&id)?;
        let blocks = match &generation.kept {
            Kept::Settled(settled) => settled.keys().copied().collect(),
            Kept::Open { blocks, .. } => blocks.keys().copied().collect(),
        };
        Some((generation.size, blocks))
    }

    /// Reads all blocks ever written of a volume or generation, opening it if it is not.
    pub fn observe(&mut self, id: Uuid, export: Option<ExportId>, traffic: bool) -> Result<Seen, Stop> {
        let Some((size, blocks)) = self.size_and_blocks(id) else { return Ok(Seen::new()) };
        let (export, opened) = match export {
            Some(export) => (export, false),
            None => {
                let (_, reply) = self.must(Request::Control(Control::Open { id, writable: false }), traffic)?;
                let Reply::Opened { export, size: found, .. } = reply else {
                    return wrong(format!("open gave {reply:?}"));
                };
                if found != size {
                    return wrong(format!("{id} opened with {found} bytes, has {size}"));
                }
                (export, true)
            }
        };
        let mut seen = Seen::new();
        let inside: Vec<u64> = blocks.into_iter().filter(|block| block * B < size).collect();
        for run in inside.chunk_by(|a, b| a + 1 == *b) {
            for run in run.chunks(64) {
                let length = run.len() as u64 * B;
                let request = Request::Read { export, offset: run[0] * B, length: length as u32 };
                let (_, reply) = self.must(request, traffic)?;
                let bytes = flatten(reply, length)?;
                seen.extend(
                    run.iter().zip(bytes.chunks(BLOCK)).map(|(block, bytes)| (*block, Content::from_bytes(bytes))),
                );
            }
        }
        self.counters.blocks += seen.len() as u64;
        self.check_extents(id, export, size, &seen, traffic)?;
        if opened {
            self.must(Request::Control(Control::Close { export }), traffic)?;
        }
        Ok(seen)
    }

    /// Extents must cover the size without gap, never call data a hole, and call holes what was never written.
    fn check_extents(&mut self, id: Uuid, export: ExportId, size: u64, seen: &Seen, traffic: bool) -> Result<(), Stop> {
        let mut at = 0;
        while at < size {
            let request = Request::Extents { export, offset: at, length: size - at, extents_max: 200, since: None };
            let (_, reply) = self.must(request, traffic)?;
            let Reply::Extents(extents) = reply else { return wrong(format!("extents gave {reply:?}")) };
            if extents.is_empty() {
                return wrong(format!("no extents of {id} at {at} of {size}"));
            }
            for extent in extents {
                at = check_extent(id, &extent, at, size, seen)?;
            }
        }
        Ok(())
    }

    /// Reads an open group of generations; what they hold must be one instant, and is what they hold for ever.
    pub fn settle_generations(&mut self, ids: &[Uuid], traffic: bool) -> Result<(), Stop> {
        let mut all = Vec::new();
        for id in ids {
            let seen = self.observe(*id, None, traffic)?;
            all.push((*id, seen));
        }
        let mut groups: BTreeMap<u64, Vec<(Uuid, &Seen)>> = BTreeMap::new();
        for (id, seen) in &all {
            match self.model.generations.get(id).map(|generation| &generation.kept) {
                Some(Kept::Settled(settled)) => check_settled(*id, settled, seen)?,
                Some(Kept::Open { group, .. }) => groups.entry(*group).or_default().push((*id, seen)),
                None => {}
            }
        }
        for members in groups.into_values() {
            let Some(Kept::Open { within, .. }) = self.model.generations.get(&members[0].0).map(|kept| &kept.kept)
            else {
                continue;
            };
            let settled = self.one_instant(&members, *within)?;
            for ((id, _), settled) in members.iter().zip(settled) {
                self.witness(*id, &settled);
                if let Some(generation) = self.model.generations.get_mut(id) {
                    generation.kept = Kept::Settled(settled);
                }
            }
        }
        Ok(())
    }

    /// What a durable generation holds of its volume cannot be missing from the volume after a power cut.
    fn witness(&mut self, id: Uuid, settled: &Settled) {
        let Some(generation) = self.model.generations.get_mut(&id) else { return };
        let Kept::Open { blocks, .. } = &mut generation.kept else { return };
        let Some(volume) = self.model.volumes.get_mut(&generation.volume) else { return };
        for (block, (content, _)) in settled {
            let Some(seen) = blocks.get_mut(block).and_then(|history| history.only_step(content)) else { continue };
            let steps = volume.blocks.get_mut(block).map(|history| &mut history.steps);
            if let Some(step) = steps.and_then(|steps| steps.iter_mut().find(|step| step.op == seen.op)) {
                step.certain = true;
            }
        }
    }

    pub fn settle_generation(&mut self, id: Uuid) -> Result<(), Stop> {
        match self.model.generations.get(&id).map(|generation| &generation.kept) {
            Some(Kept::Open { group, .. }) => {
                let group = *group;
                let members = self.model.group_members(group);
                self.settle_generations(&members, true)
            }
            _ => Ok(()),
        }
    }

    /// Errors where no instant within `within` explains what all of them hold.
    pub fn one_instant(&self, all: &[(Uuid, &Seen)], within: Interval) -> Result<Vec<Settled>, Stop> {
        let mut instants = vec![within];
        let mut settled = Vec::new();
        for (id, seen) in all {
            let Some(blocks) = self.blocks(*id) else { continue };
            instants = self.narrow(instants, *id, &blocks, seen, |_, _| false)?;
            settled.push(settle(&blocks, seen));
        }
        Ok(settled)
    }

    fn blocks(&self, id: Uuid) -> Option<Blocks> {
        if let Some(volume) = self.model.volumes.get(&id) {
            return Some(volume.blocks.clone());
        }
        match &self.model.generations.get(&id)?.kept {
            Kept::Settled(settled) => Some(blocks_of(settled)),
            Kept::Open { blocks, .. } => Some(blocks.clone()),
        }
    }

    fn narrow(
        &self,
        mut instants: Vec<Interval>,
        id: Uuid,
        blocks: &Blocks,
        seen: &Seen,
        must: impl Fn(&Op, bool) -> bool + Copy,
    ) -> Result<Vec<Interval>, Stop> {
        for (block, content) in seen {
            let Some(history) = blocks.get(block) else { continue };
            let here = history.instants(&self.model.ops, |allowed| allowed == content, must, (0, NEVER));
            let both = intersect(&instants, &here);
            if both.is_empty() {
                return wrong(format!(
                    "{id} block {block} holds {content:?}, possible at {here:?}, but everything before it allows {instants:?} only; {}",
                    self.expected(id, *block)
                ));
            }
            instants = both;
        }
        Ok(instants)
    }

    /// After recovery: the list, every generation, every volume, as one instant of the store. Then the model knows.
    pub fn verify_recovery(&mut self, ended: Ended, crashed: u64) -> Result<(), Stop> {
        self.counters.recoveries += 1;
        let listed = self.list()?;
        let mut instants = self.resolve_limbo(&listed, crashed)?;
        self.check_list(&listed)?;
        let generations: Vec<Uuid> = self.model.generations.keys().copied().collect();
        self.settle_generations(&generations, false)?;
        let ids: Vec<Uuid> = self.model.volumes.keys().copied().collect();
        let must = |op: &Op, certain| match ended {
            Ended::Killed => certain || op.durable || op.answered != NEVER,
            Ended::PowerCut => certain || op.durable,
        };
        let mut seen_all = Vec::new();
        for id in ids {
            self.open_volume(id, false)?;
            let export = self.export_of(id);
            let seen = self.observe(id, export, false)?;
            let blocks = self.blocks(id).unwrap_or_default();
            instants = self.narrow(instants, id, &blocks, &seen, must)?;
            seen_all.push((id, settle(&blocks, &seen)));
        }
        for (id, settled) in seen_all {
            self.model.settle_volume(id, &settled);
        }
        Ok(())
    }

    pub fn list(&mut self) -> Result<BTreeMap<Uuid, VolumeInfo>, Stop> {
        let (_, reply) = self.must(Request::Control(Control::List), false)?;
        let Reply::List(infos) = reply else { return wrong(format!("list gave {reply:?}")) };
        let live = infos.into_iter().filter(|info| info.state == VolumeState::Live);
        Ok(live.map(|info| (info.id, info)).collect())
    }

    /// Exactly what the model has is listed, with its size and kind.
    pub fn check_list(&self, listed: &BTreeMap<Uuid, VolumeInfo>) -> Result<(), Stop> {
        let volumes = self.model.volumes.iter().map(|(id, volume)| (*id, VolumeKind::Volume, volume.size));
        let generations = self.model.generations.iter().map(|(id, kept)| (*id, VolumeKind::Generation, kept.size));
        let mut expected = 0;
        for (id, kind, size) in volumes.chain(generations) {
            expected += 1;
            match listed.get(&id) {
                Some(info) if info.kind == kind && info.size == size => {}
                other => return wrong(format!("{kind:?} {id} of {size} bytes is listed as {other:?}")),
            }
        }
        if expected != listed.len() {
            let known = |id: &Uuid| self.model.volumes.contains_key(id) || self.model.generations.contains_key(id);
            let strange: Vec<&VolumeInfo> = listed.values().filter(|info| !known(&info.id)).collect();
            return wrong(format!("listed, but destroyed or never made: {strange:?}"));
        }
        Ok(())
    }

    /// Whether what was under way happened is for the list to say; both is allowed. Narrows the instants accordingly.
    fn resolve_limbo(&mut self, listed: &BTreeMap<Uuid, VolumeInfo>, crashed: u64) -> Result<Vec<Interval>, Stop> {
        let Some((limbo, submitted)) = self.model.limbo.take() else { return Ok(vec![(0, crashed)]) };
        let mut happened = true;
        match limbo {
            Limbo::Create { id, size } => {
                happened = listed.contains_key(&id);
                if happened {
                    let family = self.model.number();
                    self.model.add_volume(id, size, family, Blocks::new());
                }
            }
            Limbo::Snapshot { group, number } => {
                let there = group.iter().filter(|(_, generation)| listed.contains_key(generation)).count();
                happened = there == group.len();
                if happened {
                    self.model.keep_group(&group, (submitted, crashed), number);
                } else if there > 0 {
                    return wrong(format!("of a group of {} only {there} generations are there", group.len()));
                }
            }
            Limbo::Clone { source, volume } => {
                happened = listed.contains_key(&volume);
                if happened && self.model.generations.contains_key(&source) {
                    self.model.clone_of_generation(source, volume);
                } else if happened {
                    self.model.clone_of_volume(source, volume);
                    let seen = self.observe(volume, None, false)?;
                    let settled = self.one_instant(&[(volume, &seen)], (submitted, crashed))?;
                    self.model.settle_volume(volume, &settled[0]);
                } else {
                    self.model.volumes.remove(&volume);
                }
            }
            Limbo::Destroy { id } => {
                happened = !listed.contains_key(&id);
                if happened {
                    self.model.volumes.remove(&id);
                    self.model.generations.remove(&id);
                }
            }
            Limbo::Revert { volume, generation } => return self.resolve_revert(volume, generation, listed, crashed),
            Limbo::Resize { id, size } => self.resolve_resize(id, size, listed, submitted),
            Limbo::Grow => {}
        }
        Ok(vec![if happened { (0, crashed) } else { (0, NEVER) }])
    }

    /// No guest used the volume: it holds all of the generation or all of what it held.
    fn resolve_revert(
        &mut self,
        volume: Uuid,
        generation: Uuid,
        listed: &BTreeMap<Uuid, VolumeInfo>,
        crashed: u64,
    ) -> Result<Vec<Interval>, Stop> {
        let everything = Ok(vec![(0, crashed)]);
        let (Some(info), Some(kept)) = (listed.get(&volume), self.model.generations.get(&generation)) else {
            return everything;
        };
        let Kept::Settled(settled) = kept.kept.clone() else { return everything };
        let old_size = self.model.volumes.get(&volume).map_or(0, |volume| volume.size);
        let new_size = kept.size;
        if old_size != new_size {
            if info.size == new_size {
                self.model.reverted(volume, generation);
            }
            return everything;
        }
        // Both may be: read what either has ever written, then compare.
        if let Some(model) = self.model.volumes.get_mut(&volume) {
            for block in settled.keys() {
                model.blocks.entry(*block).or_insert_with(|| BlockHistory::settled(Content::Zero, 0));
            }
        }
        let seen = self.observe(volume, None, false)?;
        let is_reverted = seen
            .iter()
            .all(|(block, content)| settled.get(block).map_or(content.is_zero(), |(kept, _)| kept == content));
        if is_reverted {
            self.model.reverted(volume, generation);
        }
        everything
    }

    fn resolve_resize(&mut self, id: Uuid, size: u64, listed: &BTreeMap<Uuid, VolumeInfo>, submitted: u64) {
        let Some(volume) = self.model.volumes.get(&id) else { return };
        let old = volume.size;
        if listed.get(&id).is_some_and(|info| info.size == size) {
            self.model.resized(id, size, submitted);
        } else if size < old {
            // The tail may have been discarded already.
            let op = self.model.new_op(submitted);
            self.model.zero(id, op, size, old - size, true);
        }
    }
}

fn settle(blocks: &Blocks, seen: &Seen) -> Settled {
    let op_of =
        |block: &u64, content: &Content| blocks.get(block).map_or(0, |history: &BlockHistory| history.op_of(content));
    seen.iter().map(|(block, content)| (*block, (content.clone(), op_of(block, content)))).collect()
}

fn check_settled(id: Uuid, settled: &Settled, seen: &Seen) -> Result<(), Stop> {
    for (block, content) in seen {
        let (kept, _) = settled.get(block).cloned().unwrap_or_default();
        if kept != *content {
            return wrong(format!("generation {id} block {block} held {kept:?} and now holds {content:?}"));
        }
    }
    Ok(())
}

fn check_extent(id: Uuid, extent: &Extent, at: u64, size: u64, seen: &Seen) -> Result<u64, Stop> {
    let end = extent.offset + extent.length;
    if extent.offset != at || extent.length == 0 || end > size {
        return wrong(format!("extent {extent:?} of {id} where one at {at} of {size} was due"));
    }
    let (first, behind) = (extent.offset / B, end.div_ceil(B));
    match extent.kind {
        ExtentKind::Hole => match seen.range(first..behind).find(|(_, content)| !content.is_zero()) {
            Some((block, content)) => wrong(format!("{id} block {block} holds {content:?} and is called a hole")),
            None => Ok(end),
        },
        ExtentKind::Data if seen.range(first..behind).count() as u64 != behind - first => {
            wrong(format!("{extent:?} of {id} is called data, but some of its blocks were never written"))
        }
        ExtentKind::Data => Ok(end),
        ExtentKind::Same => wrong(format!("{extent:?} of {id}: \"same\" outside of a difference")),
    }
}
