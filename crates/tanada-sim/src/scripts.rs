//! What administrators do: volumes and generations come and go while guests work.
//!
//! Each script says in [`Model::limbo`] what it is about to do, so that after a crash in between both outcomes are allowed.

use tanada_engine::{Control, Failure, Reply, Request};
use tanada_units::Uuid;

use crate::content::BLOCK;
use crate::model::{Blocks, Generation, Kept, Limbo, Model, blocks_of};
use crate::world::{Stop, World, wrong};

const B: u64 = BLOCK as u64;

impl World {
    fn new_id(&mut self) -> Uuid {
        Uuid::from_u128(u128::from(self.rng.next()) << 64 | u128::from(self.rng.next()))
    }

    /// Calls a control operation that [`Limbo`] describes; `None` where it failed for a reason that is allowed.
    fn control(&mut self, limbo: Limbo, control: Control) -> Result<Option<(u64, Reply)>, Stop> {
        let text = format!("{control:?}");
        let submitted = self.event();
        self.model.limbo = Some((limbo, submitted));
        let answer = self.call(Request::Control(control), true)?;
        if answer.1.is_err() && self.is_faulty() {
            return Err(Stop::Crash);
        }
        self.model.limbo = None;
        match answer {
            (at, Ok(reply)) => Ok(Some((at, reply))),
            (_, Err(failure)) => self.excused(&text, &failure).map(|()| None),
        }
    }

    fn excused(&self, text: &str, failure: &Failure) -> Result<(), Stop> {
        if self.is_faulty() {
            return Err(Stop::Crash);
        }
        // What gives space back must work on a full store, too.
        let gives_back = ["Destroy", "Checkpoint", "Settle"].iter().any(|verb| text.starts_with(verb));
        match self.check_failure(failure) {
            Ok(()) if !gives_back => Ok(()),
            _ => wrong(format!("{text} failed: {failure}")),
        }
    }

    pub fn open_volume(&mut self, id: Uuid, traffic: bool) -> Result<(), Stop> {
        let (_, reply) = self.must(Request::Control(Control::Open { id, writable: true }), traffic)?;
        let Reply::Opened { export, size, writable, .. } = reply else { return wrong(format!("open gave {reply:?}")) };
        let Some(volume) = self.model.volumes.get_mut(&id) else { return Ok(()) };
        if size != volume.size || !writable {
            return wrong(format!("{id} opened with {size} bytes, writable {writable}; it has {} bytes", volume.size));
        }
        volume.export = Some(export);
        Ok(())
    }

    /// No guest uses the volume afterwards.
    fn close_volume(&mut self, id: Uuid) -> Result<(), Stop> {
        let Some(export) = self.model.volumes.get_mut(&id).and_then(|volume| volume.export.take()) else {
            return Ok(());
        };
        self.quiesce(id)?;
        self.must(Request::Control(Control::Close { export }), true).map(|_| ())
    }

    pub fn some_volume(&mut self) -> Option<Uuid> {
        let ids: Vec<Uuid> = self.model.volumes.keys().copied().collect();
        if ids.is_empty() { None } else { Some(*self.rng.pick(&ids)) }
    }

    pub fn some_generation(&mut self) -> Option<Uuid> {
        let ids: Vec<Uuid> = self.model.generations.keys().copied().collect();
        if ids.is_empty() { None } else { Some(*self.rng.pick(&ids)) }
    }

    pub fn create(&mut self) -> Result<(), Stop> {
        let size = B * match self.rng.below(10) {
            0..=4 => self.rng.within(24, 400),
            5..=6 => self.rng.within(400, 3000),
            7 => self.rng.within(1, 30),
            8 => (1 << 24) + 100,
            _ => 65_536 + self.rng.within(0, 5000),
        };
        self.create_sized(size)
    }

    pub fn create_sized(&mut self, size: u64) -> Result<(), Stop> {
        let id = self.new_id();
        if self.control(Limbo::Create { id, size }, Control::CreateVolume { id, size })?.is_some() {
            let family = self.model.number();
            self.model.add_volume(id, size, family, Blocks::new());
            self.open_volume(id, true)?;
        }
        Ok(())
    }

    pub fn snapshot(&mut self) -> Result<(), Stop> {
        let mut ids: Vec<Uuid> = self.model.volumes.keys().copied().collect();
        if ids.is_empty() || self.model.generations.len() as u64 >= self.settings.generations_max {
            return Ok(());
        }
        self.rng.shuffle(&mut ids);
        ids.truncate(self.rng.within(1, 3) as usize);
        let group: Vec<(Uuid, Uuid)> = ids.into_iter().map(|volume| (volume, self.new_id())).collect();
        let number = self.model.number();
        let limbo = Limbo::Snapshot { group: group.clone(), number };
        let submitted = self.events;
        if let Some((at, _)) = self.control(limbo, Control::Snapshot { group: group.clone() })? {
            self.model.keep_group(&group, (submitted, at), number);
            if self.rng.chance(60) {
                let members: Vec<Uuid> = group.iter().map(|(_, generation)| *generation).collect();
                self.settle_generations(&members, true)?;
            }
        }
        Ok(())
    }

    pub fn clone_generation(&mut self) -> Result<(), Stop> {
        if self.model.volumes.len() as u64 >= self.settings.volumes_max {
            return Ok(());
        }
        let Some(source) = self.some_generation() else { return Ok(()) };
        self.settle_generation(source)?;
        let volume = self.new_id();
        if self.control(Limbo::Clone { source, volume }, Control::Clone { source, volume })?.is_some() {
            self.model.clone_of_generation(source, volume);
            self.open_volume(volume, true)?;
        }
        Ok(())
    }

    /// The store takes a hidden generation first.
    pub fn clone_volume(&mut self) -> Result<(), Stop> {
        if self.model.volumes.len() as u64 >= self.settings.volumes_max {
            return Ok(());
        }
        let Some(source) = self.some_volume() else { return Ok(()) };
        let volume = self.new_id();
        let submitted = self.events;
        let Some((at, _)) = self.control(Limbo::Clone { source, volume }, Control::Clone { source, volume })? else {
            return Ok(());
        };
        self.model.clone_of_volume(source, volume);
        // Nobody writes the clone before it was read: what it holds is one instant of its source.
        self.model.limbo = Some((Limbo::Clone { source, volume }, submitted));
        self.open_volume(volume, true)?;
        let export = self.model.volumes.get_mut(&volume).and_then(|volume| volume.export.take());
        let seen = self.observe(volume, export, true)?;
        let settled = self.one_instant(&[(volume, &seen)], (submitted, at))?;
        self.model.settle_volume(volume, &settled[0]);
        self.model.limbo = None;
        if let Some(model) = self.model.volumes.get_mut(&volume) {
            model.export = export;
        }
        Ok(())
    }

    pub fn revert(&mut self) -> Result<(), Stop> {
        let Some(generation) = self.some_generation() else { return Ok(()) };
        let family = self.model.generations[&generation].family;
        let Some(volume) = self.model.volumes.iter().find(|(_, volume)| volume.family == family).map(|(id, _)| *id)
        else {
            return Ok(());
        };
        self.settle_generation(generation)?;
        self.close_volume(volume)?;
        let done = self.control(Limbo::Revert { volume, generation }, Control::Revert { volume, generation })?;
        if done.is_some() {
            self.model.reverted(volume, generation);
        }
        self.open_volume(volume, true)
    }

    pub fn destroy(&mut self) -> Result<(), Stop> {
        let few = self.model.volumes.len() < 2;
        let id = match self.rng.chance(70) || few {
            true => self.some_generation(),
            false => self.some_volume(),
        };
        let Some(id) = id else { return Ok(()) };
        self.destroy_one(id)
    }

    pub fn destroy_one(&mut self, id: Uuid) -> Result<(), Stop> {
        self.close_generation(id)?;
        self.close_volume(id)?;
        if self.control(Limbo::Destroy { id }, Control::Destroy { id })?.is_some() {
            self.model.volumes.remove(&id);
            self.model.generations.remove(&id);
        } else if self.model.volumes.contains_key(&id) {
            self.open_volume(id, true)?;
        }
        Ok(())
    }

    pub fn resize(&mut self) -> Result<(), Stop> {
        let Some(id) = self.some_volume() else { return Ok(()) };
        self.close_volume(id)?;
        let old = self.model.volumes[&id].size;
        let size = match self.rng.below(3) {
            0 => (old / 2).next_multiple_of(B),
            1 => old + B * self.rng.within(1, 300),
            _ => B * self.rng.within(1, 600),
        };
        let submitted = self.events;
        if self.control(Limbo::Resize { id, size }, Control::Resize { id, size })?.is_some() {
            self.model.resized(id, size, submitted);
        }
        self.open_volume(id, true)
    }

    pub fn checkpoint(&mut self) -> Result<(), Stop> {
        let submitted = self.event();
        if let (_, Err(failure)) = self.call(Request::Control(Control::Checkpoint), true)? {
            return self.excused("Checkpoint", &failure);
        }
        self.model.flushed_all(submitted);
        let oldest = self.oldest();
        self.model.prune(oldest);
        Ok(())
    }

    pub fn settle(&mut self) -> Result<(), Stop> {
        match self.call(Request::Control(Control::Settle), true)? {
            (_, Ok(_)) => Ok(()),
            (_, Err(failure)) => self.excused("Settle", &failure),
        }
    }

    pub fn grow(&mut self) -> Result<(), Stop> {
        let size = self.device.length_bytes() + (4 << 20) * self.rng.within(1, 3);
        if size > self.settings.device_bytes + (40 << 20) {
            return Ok(());
        }
        self.control(Limbo::Grow, Control::GrowStore { size }).map(|_| ())
    }

    /// A backup program opens a generation, or lets go of one.
    pub fn backup(&mut self) -> Result<(), Stop> {
        let Some(id) = self.some_generation() else { return Ok(()) };
        if self.generation_exports.contains_key(&id) {
            return self.close_generation(id);
        }
        let (_, reply) = self.must(Request::Control(Control::Open { id, writable: false }), true)?;
        let Reply::Opened { export, writable: false, .. } = reply else { return wrong(format!("open gave {reply:?}")) };
        self.generation_exports.insert(id, export);
        Ok(())
    }

    fn close_generation(&mut self, id: Uuid) -> Result<(), Stop> {
        if let Some(export) = self.generation_exports.remove(&id) {
            while self.pending.values().any(|pending| pending.reads(id)) {
                self.pump()?;
            }
            self.must(Request::Control(Control::Close { export }), true)?;
        }
        Ok(())
    }
}

impl Model {
    /// Generations of a group that were not read yet.
    pub fn group_members(&self, group: u64) -> Vec<Uuid> {
        let member = |kept: &Kept| matches!(kept, Kept::Open { group: other, .. } if *other == group);
        self.generations.iter().filter(|(_, generation)| member(&generation.kept)).map(|(id, _)| *id).collect()
    }

    /// The group was cut at one instant within `within`.
    pub fn keep_group(&mut self, group: &[(Uuid, Uuid)], within: (u64, u64), number: u64) {
        for (cut, id) in group {
            if let Some(volume) = self.volumes.get(cut) {
                let kept = Kept::Open { blocks: volume.blocks.clone(), within, group: number };
                self.generations
                    .insert(*id, Generation { volume: *cut, size: volume.size, kept, family: volume.family });
            }
        }
    }

    pub fn clone_of_generation(&mut self, source: Uuid, volume: Uuid) {
        if let Some(Generation { size, kept, family, .. }) = self.generations.get(&source).cloned() {
            let blocks = match kept {
                Kept::Settled(settled) => blocks_of(&settled),
                Kept::Open { blocks, .. } => blocks,
            };
            self.add_volume(volume, size, family, blocks);
        }
    }

    pub fn clone_of_volume(&mut self, source: Uuid, volume: Uuid) {
        if let Some(source) = self.volumes.get(&source) {
            let (size, family, blocks) = (source.size, source.family, source.blocks.clone());
            self.add_volume(volume, size, family, blocks);
        }
    }

    pub fn reverted(&mut self, volume: Uuid, generation: Uuid) {
        let Some(Generation { size, kept: Kept::Settled(settled), .. }) = self.generations.get(&generation).cloned()
        else {
            return;
        };
        if let Some(model) = self.volumes.get_mut(&volume) {
            model.size = size;
        }
        self.settle_volume(volume, &settled);
    }

    /// The volume has a new size; what a smaller one cut off reads as zeros when it grows again.
    pub fn resized(&mut self, id: Uuid, size: u64, submitted: u64) {
        let op = self.new_op(submitted);
        self.ops[op].answered = submitted;
        self.ops[op].durable = true;
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.size = size;
        let beyond: Vec<u64> = volume.blocks.range(size / B..).map(|(block, _)| *block).collect();
        for block in beyond {
            volume.blocks.insert(block, crate::history::BlockHistory::settled(crate::content::Content::Zero, op));
        }
    }
}
