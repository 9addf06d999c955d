//! Much at once: a store filled to the brim; a volume that floods the store and ebbs away, so that blocks are used again
//! at once, and whole segments go down to the medium and come back; volumes full of holes.

use tanada_engine::Request;
use tanada_units::Uuid;

use crate::content::BLOCK;
use crate::world::{Pending, Stop, World};

const B: u64 = BLOCK as u64;

/// Blocks in one write of a flood.
const AT_ONCE: u64 = 128;

impl World {
    /// A volume of which so much is written that few blocks are left to everybody else.
    pub fn fill(&mut self) -> Result<(), Stop> {
        self.create_sized(1000 * B)?;
        let Some(id) = self.some_volume() else { return Ok(()) };
        let left = self.rng.within(60, 250) * B;
        for block in (0..968).step_by(32) {
            let free = self.store_stat()?.free;
            if free < left + 33 * B {
                break;
            }
            self.flood_range(id, block, 32)?;
        }
        self.wait_for_guests()
    }

    /// A flood, its ebb, and another flood while the medium still takes the space back.
    pub fn flood(&mut self) -> Result<(), Stop> {
        let room = self.store_stat()?.free / B;
        if room < 8000 {
            return Ok(());
        }
        let wide = |world: &World, id: &Uuid| {
            world.model.volumes.get(id).is_some_and(|volume| volume.export.is_some() && volume.size >= 3000 * B)
        };
        let ids: Vec<Uuid> = self.model.volumes.keys().copied().collect();
        let Some(id) = ids.into_iter().find(|id| wide(self, id)) else {
            return if (self.model.volumes.len() as u64) < self.settings.volumes_max {
                self.create_to_flood()
            } else {
                Ok(())
            };
        };
        self.flood_blocks(id)?;
        self.discard_at(id, 0, 3000 * B);
        self.wait_for_guests()?;
        self.settle()?;
        let patient = self.settings.slow_punch_percent > 0;
        // The lowest of the segments that are taken back are filled first, and they are the last to be taken.
        let punched = self.device.counts.punches + if patient { self.rng.below(3) } else { 0 };
        for _ in 0..if patient { 2000 } else { 400 } {
            if self.device.is_punching() && self.device.counts.punches >= punched {
                break;
            }
            self.pump()?;
        }
        self.flood_blocks(id)
    }

    /// Discards of every other block of a range, or a write of as many blocks as that gave back.
    pub fn perforate(&mut self, id: Uuid, size: u64) {
        let most = *self.rng.pick(&[200, 200, 200, 900]);
        let blocks = (size / B).min(1000);
        let count = self.rng.within(20, most).min(blocks);
        let first = self.rng.below(blocks - count + 1);
        if count == 0 || self.rng.chance(40) {
            return self.write_at(id, first * B, (count * B).min(size));
        }
        for block in (first..first + count).step_by(2) {
            self.discard_at(id, block * B, B);
        }
    }

    pub fn create_to_flood(&mut self) -> Result<(), Stop> {
        self.create_sized(3000 * B)
    }

    fn flood_blocks(&mut self, id: Uuid) -> Result<(), Stop> {
        for block in (0..3000 - AT_ONCE).step_by(AT_ONCE as usize) {
            self.flood_range(id, block, AT_ONCE)?;
        }
        self.wait_for_guests()
    }

    fn discard_at(&mut self, id: Uuid, offset: u64, length: u64) {
        let Some(export) = self.export_of(id) else { return };
        let submitted = self.outstanding(id);
        let op = self.model.new_op(submitted);
        self.model.zero(id, op, offset, length, true);
        let request = Request::Discard { export, offset, length, fua: false };
        self.submit(Pending::Change { volume: id, op, fua: false }, request);
    }

    fn flood_range(&mut self, id: Uuid, block: u64, count: u64) -> Result<(), Stop> {
        while self.pending.len() as u64 >= self.settings.outstanding_max {
            self.pump()?;
        }
        self.write_at(id, block * B, count * B);
        Ok(())
    }
}
