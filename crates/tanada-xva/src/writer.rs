//! Writes an archive: `ova.xml`, then every disk chunk by chunk, then the end.
//!
//! ```text
//! begin ──▶ [ next → chunk or zeros ]* ──▶ (generations ──▶ [ delta ]*) ──▶ finish
//! ```
//!
//! The caller asks [`ArchiveWriter::next_chunk`] which disk and which range is due, and hands over exactly that. Rules that
//! importers depend on:
//!
//! - disks follow in the byte order of their ids, chunk counters increase;
//! - the first and the last chunk of a disk are always there, other chunks that are all zero are left out;
//! - importers place a gap by the length of the **very first chunk of the archive**; when that one is shorter than
//!   1 MiB (a tiny first disk), nothing is left out in the whole archive;
//! - sizes are multiples of 512, because importers read the checksum's header before they skip the padding.
//!
//! An error leaves the archive without its end, so no reader takes it for a whole one.

use std::io::Write;

use crate::DiskPlan;
use crate::checksum::ChecksumKind;
use crate::delta::{self, Delta};
use crate::error::{XvaError, XvaResult};
use crate::generations::{self, Generations};
use crate::limits::{CHUNK_BYTES, GENERATIONS};
use crate::ova::{self, Ova};
use crate::tar::{Header, ZERO_BLOCK};

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// The range of a disk that has to be written next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextChunk {
    /// Index into [`ArchiveWriter::disks`].
    pub disk: usize,
    /// In bytes from the start of the disk.
    pub offset: u64,
    /// In bytes, at most [`CHUNK_BYTES`].
    pub length: usize,
}

#[must_use = "finish() writes the end of the archive"]
pub struct ArchiveWriter<W: Write> {
    out: W,
    disks: Vec<DiskPlan>,
    checksum: ChecksumKind,
    leave_out_zeros: bool,
    disk: usize,
    offset: u64,
}

impl<W: Write> ArchiveWriter<W> {
    /// Writes `ova.xml`. `mtime_seconds` (since 1970) is what `tar tv` shows for it.
    pub fn begin(out: W, ova: &Ova, checksum: ChecksumKind, mtime_seconds: u64) -> XvaResult<ArchiveWriter<W>> {
        let disks = ova.disks()?;
        check(&disks)?;
        let leave_out_zeros = disks.first().is_none_or(|disk| disk.size >= CHUNK_BYTES as u64);
        let mut writer = ArchiveWriter { out, disks, checksum, leave_out_zeros, disk: 0, offset: 0 };
        let xml = ova.to_xml();
        writer.member(&ova::header(ova::MEMBER, &xml), xml.as_bytes(), mtime_seconds)?;
        Ok(writer)
    }

    /// The disks in the order in which they are written.
    pub fn disks(&self) -> &[DiskPlan] {
        &self.disks
    }

    /// What has to be handed over next; `None` when all disks are complete.
    pub fn next_chunk(&self) -> Option<NextChunk> {
        let disk = self.disks.get(self.disk)?;
        let left = disk.size - self.offset;
        // At most CHUNK_BYTES, so it fits whatever `usize` is.
        let length = left.min(CHUNK_BYTES as u64) as usize;
        Some(NextChunk { disk: self.disk, offset: self.offset, length })
    }

    /// Takes the next chunk. It is left out where it is all zero and need not be there.
    pub fn chunk(&mut self, bytes: &[u8]) -> XvaResult<()> {
        let due = self.due()?;
        if bytes.len() != due.length {
            return Err(XvaError::Unwritable(format!(
                "{} bytes where the chunk at {} of disk {} has {}",
                bytes.len(),
                due.offset,
                self.disks[due.disk].id,
                due.length
            )));
        }
        let DiskPlan { id, size } = &self.disks[due.disk];
        let last = due.offset + due.length as u64 == *size;
        if !self.leave_out_zeros || due.offset == 0 || last || !is_zero(bytes) {
            let name = format!("{id}/{:08}", due.offset / CHUNK_BYTES as u64);
            self.with_checksum(name, bytes)?;
        }
        if last {
            (self.disk, self.offset) = (self.disk + 1, 0);
        } else {
            self.offset += due.length as u64;
        }
        Ok(())
    }

    /// Takes the next chunk, known to be zeros without having been read.
    pub fn zeros(&mut self) -> XvaResult<()> {
        let due = self.due()?;
        self.chunk(&ZEROS[..due.length])
    }

    /// Writes the records of the machine's snapshots, after all of its disks. What differs in their disks follows.
    pub fn generations(&mut self, generations: &Generations, mtime_seconds: u64) -> XvaResult<()> {
        self.complete()?;
        generations::check(&generations.disks, &self.disks).map_err(XvaError::Unwritable)?;
        let (xml, objects) = (generations.to_xml(), generations.objects.len());
        if xml.len() as u64 > GENERATIONS.xml_bytes || objects > GENERATIONS.objects {
            let (most, bytes) = (GENERATIONS.objects, GENERATIONS.xml_bytes);
            let why = format!("{objects} objects of snapshots in {} bytes; at most {most} in {bytes} bytes", xml.len());
            return Err(XvaError::Unwritable(why));
        }
        self.member(&ova::header(generations::MEMBER, &xml), xml.as_bytes(), mtime_seconds)
    }

    /// What differs in the chunk with this number of the disk with this id; disks and chunks come in their order.
    pub fn delta(&mut self, id: &str, chunk: u64, delta: &Delta) -> XvaResult<()> {
        let (name, bytes) = (format!("{id}/{chunk:08}{}", delta::SUFFIX), delta.encode());
        self.with_checksum(name, &bytes)
    }

    /// Writes the end and returns what the archive was written to.
    pub fn finish(mut self) -> XvaResult<W> {
        self.complete()?;
        self.out.write_all(&ZERO_BLOCK).map_err(XvaError::Io)?;
        self.out.write_all(&ZERO_BLOCK).map_err(XvaError::Io)?;
        Ok(self.out)
    }

    /// Refuses what comes after the disks before they are whole.
    fn complete(&self) -> XvaResult<()> {
        let Some(due) = self.next_chunk() else { return Ok(()) };
        let disk = &self.disks[due.disk].id;
        Err(XvaError::Unwritable(format!("disk {disk} was given up to {} only", due.offset)))
    }

    fn due(&self) -> XvaResult<NextChunk> {
        self.next_chunk().ok_or_else(|| XvaError::Unwritable("a chunk after the end of all disks".into()))
    }

    fn with_checksum(&mut self, name: String, bytes: &[u8]) -> XvaResult<()> {
        let sum = self.checksum.of(bytes);
        self.member(&Header::new(name.clone(), bytes.len() as u64), bytes, 0)?;
        let name = name + self.checksum.suffix();
        self.member(&Header::new(name, sum.len() as u64), sum.as_bytes(), 0)
    }

    fn member(&mut self, header: &Header, content: &[u8], mtime_seconds: u64) -> XvaResult<()> {
        self.out.write_all(&header.encode(mtime_seconds)?).map_err(XvaError::Io)?;
        self.out.write_all(content).map_err(XvaError::Io)?;
        self.out.write_all(&ZERO_BLOCK[..header.padding()]).map_err(XvaError::Io)
    }
}

fn check(disks: &[DiskPlan]) -> XvaResult<()> {
    ova::check_disks(disks).map_err(XvaError::Unwritable)?;
    match disks.iter().find(|disk| disk.size == 0 || !disk.size.is_multiple_of(512)) {
        Some(disk) => Err(XvaError::Unwritable(format!(
            "disk {} has {} bytes; sizes are multiples of 512 and not 0",
            disk.id, disk.size
        ))),
        None => Ok(()),
    }
}

/// Are all bytes zero? Compares them with themselves shifted by one, which the C library does faster than a loop of ours.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zeros_are_seen() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 4096]));
        for at in [0, 1, 2047, 4095] {
            let mut bytes = [0; 4096];
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
        }
    }
}
