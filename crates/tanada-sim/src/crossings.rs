//! Operations of the device that must never meet, whatever comes of it this time.
//!
//! - Two that change one block: they end in any order, and land so (J11, B2).
//! - A change of a block of data or of a map node that is being read: who looked it up relies on it (B3). Reads of a
//!   recovery do not count; where it finds a torn record it leaves those behind it without waiting for them.

use tanada_disk::DiskOp;
use tanada_format::Geometry;

use crate::content::BLOCK;
use crate::world::{Stop, World, wrong};

impl World {
    /// Errors where `op`, about to be begun, meets another.
    pub fn check_crossing(&self, op: &DiskOp) -> Result<(), Stop> {
        if let Some(other) = self.device.changed_under(op) {
            return wrong(format!("{op:?} is begun while {other:?} is in flight"));
        }
        let blocks = |bytes: u64| bytes / BLOCK as u64;
        let geometry = Geometry::new(blocks(self.device.length_bytes()), blocks(self.settings.journal_bytes));
        let (Some(since), Ok(geometry)) = (self.serving_since, geometry) else { return Ok(()) };
        // Superblocks, journal and bitmap pages are looked at by the scrub alone, which looks again.
        match self.device.read_under(op, since).into_iter().find(|block| geometry.is_allocatable(*block)) {
            Some(block) => wrong(format!("{op:?} is begun while block {block} is being read (B3)")),
            None => Ok(()),
        }
    }
}
