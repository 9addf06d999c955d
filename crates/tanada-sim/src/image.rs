//! The image itself, as the offline checker sees it.

use tanada_format::check::{CheckOptions, CheckReport, ReadAt, check};

use crate::content::BLOCK;
use crate::device::SimDevice;
use crate::world::{Stop, World, wrong};

const B: u64 = BLOCK as u64;

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
