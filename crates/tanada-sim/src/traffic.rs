//! What guests do: small writes that overlap, odd sizes and alignments, reads, flushes, discards, zeroes.

use tanada_disk::Buf;
use tanada_engine::{ExportId, Request};
use tanada_units::Uuid;

use crate::content::{BLOCK, pattern};
use crate::kinds::Kind;
use crate::world::{Pending, World};

const B: u64 = BLOCK as u64;

/// Places where guests write: the start, borders of leaves and of higher nodes, the end. Narrow, so that writes meet.
fn windows(size: u64) -> Vec<(u64, u64)> {
    let blocks = size / B;
    let all = [(0, 24), (250, 14), (65_530, 12), ((1 << 24) - 3, 6), (blocks.saturating_sub(6), 6)];
    all.into_iter().filter(|(start, length)| start + length <= blocks).collect()
}

impl World {
    /// A volume that guests may use now, with its export.
    fn usable_volume(&mut self) -> Option<Uuid> {
        let usable: Vec<Uuid> =
            self.model.volumes.iter().filter(|(_, volume)| volume.export.is_some()).map(|(id, _)| *id).collect();
        if usable.is_empty() { None } else { Some(*self.rng.pick(&usable)) }
    }

    /// One request of some guest, if there may be one more.
    pub fn traffic(&mut self) {
        if self.quiet || self.pending.len() as u64 >= self.settings.outstanding_max {
            return;
        }
        let Some(id) = self.usable_volume() else { return };
        let Some((size, export)) = self.model.volumes.get(&id).and_then(|volume| Some((volume.size, volume.export?)))
        else {
            return;
        };
        if size == 0 {
            return;
        }
        if self.settings.kind == Kind::SlowSyncs && self.device.is_syncing() {
            // Nothing but what needs no sync.
            let (offset, length) = self.range(size, 8);
            return self.write_with(id, offset, length, Some(false));
        }
        if self.settings.stream_percent > 0 && self.rng.chance(self.settings.stream_percent) {
            return self.stream(id, size, export);
        }
        if self.settings.perforate_percent > 0 && self.rng.chance(self.settings.perforate_percent) {
            return self.perforate(id, size);
        }
        let flushes = self.settings.flush_percent > 0 && self.rng.chance(self.settings.flush_percent);
        match if flushes { 80 } else { self.rng.below(100) } {
            0..=47 => self.guest_write(id, size),
            48..=65 => {
                let (offset, length) = self.range(size, 40);
                let submitted = self.outstanding(id);
                self.submit(
                    Pending::Read { target: id, offset, length, submitted },
                    Request::Read { export, offset, length: length as u32 },
                );
            }
            66..=79 => self.guest_zero(id, size),
            80..=90 => self.flush(id),
            _ => self.read_generation(),
        }
    }

    fn flush(&mut self, id: Uuid) {
        let Some(export) = self.export_of(id) else { return };
        let submitted = self.outstanding(id);
        self.submit(Pending::Flush { volume: id, submitted }, Request::Flush { export });
    }

    pub fn outstanding(&mut self, id: Uuid) -> u64 {
        if let Some(volume) = self.model.volumes.get_mut(&id) {
            volume.outstanding += 1;
        }
        self.event()
    }

    /// Offset and length in bytes within the volume; up to about `blocks_max` blocks.
    fn range(&mut self, size: u64, blocks_max: u64) -> (u64, u64) {
        let mut windows = windows(size);
        if self.settings.may_be_full {
            windows.push((0, (size / B).min(3000)));
        }
        let (start, width) = if windows.is_empty() { (0, size / B) } else { *self.rng.pick(&windows) };
        let block = start + self.rng.below(width);
        let (offset, length) = match self.rng.below(100) {
            0..=54 => (block * B, B),
            55..=74 => (block * B, B * self.rng.within(1, 8)),
            75..=84 => (block * B + 512 * self.rng.below(8), 512 * self.rng.within(1, 20)),
            85..=94 => (block * B + self.rng.below(B), self.rng.within(1, 9000)),
            _ => (block * B, B * self.rng.within(1, blocks_max)),
        };
        (offset, length.min(size - offset))
    }

    fn guest_write(&mut self, id: Uuid, size: u64) {
        let (offset, length) = self.range(size, 60);
        self.write_at(id, offset, length);
    }

    /// A write of one block that needs no sync, at one of a few places, with one of a few contents; where guests flush
    /// often, a flush now and then.
    pub fn echo(&mut self) {
        let is_full = self.pending.len() as u64 >= self.settings.outstanding_max;
        let Some(id) = self.usable_volume().filter(|_| !is_full) else { return };
        if self.settings.flush_percent > 0 && self.rng.chance(self.settings.flush_percent) {
            return self.flush(id);
        }
        let size = self.model.volumes.get(&id).map_or(0, |volume| volume.size);
        let offset = self.rng.below(12) * B;
        if offset + B <= size {
            self.write_with(id, offset, B, Some(false));
        }
    }

    /// The next part of a read of the volume's beginning, over and over.
    fn stream(&mut self, id: Uuid, size: u64, export: ExportId) {
        let end = size.min(24 * B);
        let offset = self.streamed % end;
        let length = (4 * B).min(end - offset);
        self.streamed += length;
        let submitted = self.outstanding(id);
        let request = Request::Read { export, offset, length: length as u32 };
        self.submit(Pending::Read { target: id, offset, length, submitted }, request);
    }

    pub fn write_at(&mut self, id: Uuid, offset: u64, length: u64) {
        self.write_with(id, offset, length, None);
    }

    /// A write with FUA, without, or now and then.
    fn write_with(&mut self, id: Uuid, offset: u64, length: u64, fua: Option<bool>) {
        let Some(export) = self.export_of(id) else { return };
        let submitted = self.outstanding(id);
        let op = self.model.new_op(submitted);
        let which = (op as u64).checked_rem(self.settings.contents).unwrap_or(op as u64);
        let bytes = if self.rng.chance(6) { vec![0; length as usize] } else { pattern(which + 1, length as usize) };
        let fua = fua.unwrap_or_else(|| self.rng.chance(10));
        self.model.write(id, op, offset, &bytes);
        let request = Request::Write { export, offset, data: Buf::copy_from(&bytes), fua };
        self.submit(Pending::Change { volume: id, op, fua }, request);
    }

    fn guest_zero(&mut self, id: Uuid, size: u64) {
        let Some(export) = self.export_of(id) else { return };
        let (mut offset, mut length) = self.range(size, 200);
        if self.rng.chance(4) {
            offset = 0;
            length = size;
        }
        let submitted = self.outstanding(id);
        let op = self.model.new_op(submitted);
        let fua = self.rng.chance(10);
        let discard = self.rng.chance(50);
        let keep_allocated = !discard && self.rng.chance(20) && length < 100 * B;
        match keep_allocated {
            true => self.model.write(id, op, offset, &vec![0; length as usize]),
            false => self.model.zero(id, op, offset, length, discard),
        }
        let request = match discard {
            true => Request::Discard { export, offset, length, fua },
            false => Request::WriteZeroes { export, offset, length, fua, keep_allocated },
        };
        self.submit(Pending::Change { volume: id, op, fua }, request);
    }

    /// A read of a generation that somebody holds open.
    fn read_generation(&mut self) {
        let open: Vec<(Uuid, u64)> =
            self.generation_exports.keys().filter_map(|id| Some((*id, self.model.generations.get(id)?.size))).collect();
        if open.is_empty() {
            return;
        }
        let (target, size) = *self.rng.pick(&open);
        if size == 0 {
            return;
        }
        let (offset, length) = self.range(size, 40);
        let submitted = self.event();
        let export = self.generation_exports[&target];
        self.submit(
            Pending::Read { target, offset, length, submitted },
            Request::Read { export, offset, length: length as u32 },
        );
    }
}
