//! Reads an archive strictly forward: `ova.xml`, then the disks' chunks as events, then the end.
//!
//! ```text
//! open ──▶ ova() ──▶ [ next_event → Data | Zeros ]* ──▶ None: every disk complete, the end of the archive seen
//!    expect_generations() ──▶ ... None ──▶ generations(): Some ──▶ [ next_change ]* ──▶ None: the end seen
//! ```
//!
//! `None` comes only after every disk was filled to its size and the end of the tar stream (and of the compressed
//! stream around it) was there; whoever stores the bytes keeps them for whole only then. Everything else is an error:
//!
//! - a stream that ends anywhere earlier ([`XvaError::PrematureEnd`]);
//! - a chunk or an `ova.xml` that does not match its checksum ([`XvaError::Checksum`]);
//! - members in another order, of other disks, past a disk's size, larger than a chunk; padding that is not zero.
//!
//! Position: a counter that jumps by *k* leaves out *k* - 1 chunks of zeros, each as long as the first chunk of the same
//! disk (importers of XenServer take the first chunk of the archive; for archives that they can read, that is the same).
//! A member of no bytes is a keep-alive filler: it takes a counter and covers nothing.

use std::collections::VecDeque;
use std::io::Read;

use crate::DiskPlan;
use crate::checksum::ChecksumKind;
use crate::compress::{Compression, Decoder};
use crate::delta::{self, Run};
use crate::error::{XvaError, XvaResult};
use crate::generations::{Generations, MEMBER};
use crate::limits;
use crate::ova::{self, Ova};
use crate::tar::{BLOCK, Header};
use crate::writer::is_zero;

/// A piece of a disk. Pieces come in order and without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskEvent {
    /// Bytes at `offset` of the disk with this index in [`ArchiveReader::disks`]; not all zero.
    Data { disk: usize, offset: u64, bytes: Vec<u8> },
    /// Zeros, also where the archive spelled them out.
    Zeros { disk: usize, offset: u64, length: u64 },
}

/// How strictly chunks are compared with their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    #[default]
    Checksums,
    /// Takes damaged chunks as they are (`force=true`: the administrator wants what is left).
    Nothing,
}

pub struct ArchiveReader<R: Read> {
    tar: Members<Decoder<R>>,
    ova: Ova,
    disks: Vec<DiskPlan>,
    verify: Verify,
    at: DiskPosition,
    pending: Option<DiskEvent>,
    open_end: bool,
    with_generations: bool,
    generations: Option<Generations>,
    /// How far the older disk that is being read has come.
    older: DiskPosition,
    /// What is left of the chunk of an older disk that was read.
    changes: VecDeque<DiskEvent>,
    ended: bool,
}

/// How far the disk that is being read has come.
#[derive(Debug, Clone, Default)]
struct DiskPosition {
    disk: usize,
    offset: u64,
    next_counter: u64,
    /// Length of the first chunk; 0 before it came.
    unit: u64,
    fillers: u64,
}

impl<R: Read> ArchiveReader<R> {
    /// Reads up to and with `ova.xml`.
    pub fn open(source: R, verify: Verify) -> XvaResult<ArchiveReader<R>> {
        let mut tar = Members { source: Decoder::detect(source)? };
        let header = tar.header(ova::MEMBER)?.ok_or_else(|| unexpected(ova::MEMBER, "the end of the archive"))?;
        if header.name != ova::MEMBER {
            return Err(unexpected(ova::MEMBER, &header.name));
        }
        let xml = tar.content(&header, limits::OVA.xml_bytes)?;
        ova::verify(&header, &xml)?;
        let ova = Ova::from_xml(&xml)?;
        let disks = ova.disks()?.into_iter().filter(|disk| disk.size > 0).collect();
        Ok(ArchiveReader {
            tar,
            ova,
            disks,
            verify,
            at: DiskPosition::default(),
            pending: None,
            open_end: false,
            with_generations: false,
            generations: None,
            older: DiskPosition::default(),
            changes: VecDeque::new(),
            ended: false,
        })
    }

    /// A stream that holds one disk alone, without `ova.xml`: members `<id>/00000000` and so on, as XenServer sends single
    /// disks. `size` is the disk's, in bytes; the stream does not tell it.
    pub fn open_disk(source: R, id: &str, size: u64, verify: Verify) -> XvaResult<ArchiveReader<R>> {
        let disks = Some(DiskPlan { id: id.to_owned(), size }).filter(|disk| disk.size > 0);
        Ok(ArchiveReader {
            tar: Members { source: Decoder::detect(source)? },
            ova: Ova::default(),
            disks: disks.into_iter().collect(),
            verify,
            at: DiskPosition::default(),
            pending: None,
            open_end: false,
            with_generations: false,
            generations: None,
            older: DiskPosition::default(),
            changes: VecDeque::new(),
            ended: false,
        })
    }

    /// For a source that stays silent after the archive instead of ending: the end of the compressed stream is not waited
    /// for. The end of the tar stream and all checksums are.
    pub fn expect_open_end(&mut self) {
        self.open_end = true;
    }

    /// From now on the caller looks after the disks whether the machine's snapshots follow. Otherwise an archive with
    /// snapshots is refused.
    pub fn expect_generations(&mut self) {
        self.with_generations = true;
    }

    /// The machine's snapshots, once [`ArchiveReader::next_event`] has returned `None`. Where there are some, the
    /// archive is whole only when [`ArchiveReader::next_change`] has returned `None`, too.
    pub fn generations(&self) -> Option<&Generations> {
        self.generations.as_ref()
    }

    pub fn ova(&self) -> &Ova {
        &self.ova
    }

    /// The disks in the order of the archive, without those of size 0.
    pub fn disks(&self) -> &[DiskPlan] {
        &self.disks
    }

    pub fn compression(&self) -> Compression {
        self.tar.source.compression()
    }

    /// The next piece, or `None` when everything was read and is whole.
    pub fn next_event(&mut self) -> XvaResult<Option<DiskEvent>> {
        if let Some(event) = self.pending.take() {
            return Ok(Some(event));
        }
        loop {
            let Some(disk) = self.disks.get(self.at.disk) else {
                self.end()?;
                return Ok(None);
            };
            if self.at.offset == disk.size {
                self.at = DiskPosition { disk: self.at.disk + 1, ..DiskPosition::default() };
                continue;
            }
            if let Some(event) = self.chunk()? {
                return Ok(Some(event));
            }
        }
    }

    /// Reads one chunk with its checksum; `None` for a filler.
    fn chunk(&mut self) -> XvaResult<Option<DiskEvent>> {
        let DiskPlan { id, size } = self.disks[self.at.disk].clone();
        let at = self.at.offset;
        let missing = || XvaError::PrematureEnd(format!("disk {id} has {size} bytes, the archive has {at} of them"));
        let header = self.tar.header(&format!("a chunk of disk {id}"))?.ok_or_else(missing)?;
        let counter = counter_of(&header.name, &id).ok_or_else(|| {
            unexpected(&format!("chunk {:08} or a later one of disk {id}", self.at.next_counter), &header.name)
        })?;
        let hole = self.hole_before(counter, &header, size)?;
        let bytes = self.tar.content(&header, limits::CHUNK_BYTES as u64)?;
        self.checksum(&header.name, &bytes)?;

        let (disk, offset, length) = (self.at.disk, at + hole, bytes.len() as u64);
        self.at.next_counter = counter + 1;
        self.at.offset = offset + length;
        if length == 0 {
            self.at.fillers += 1;
            if self.at.fillers > limits::KEEP_ALIVES {
                return Err(XvaError::invalid(format!("disk {id}: more than {} empty chunks", limits::KEEP_ALIVES)));
            }
        } else if self.at.unit == 0 {
            self.at.unit = length;
        }
        let data = match (length, is_zero(&bytes)) {
            (0, _) => None,
            (_, true) => Some(DiskEvent::Zeros { disk, offset, length }),
            (_, false) => Some(DiskEvent::Data { disk, offset, bytes }),
        };
        if hole == 0 {
            return Ok(data);
        }
        self.pending = data;
        Ok(Some(DiskEvent::Zeros { disk, offset: at, length: hole }))
    }

    /// Bytes left out before the chunk with this counter, after everything about its place was checked.
    fn hole_before(&self, counter: u64, header: &Header, size: u64) -> XvaResult<u64> {
        let wrong = |why: String| XvaError::invalid(format!("{}: {why}", header.name));
        let skipped = counter
            .checked_sub(self.at.next_counter)
            .ok_or_else(|| wrong(format!("out of order, {:08} or a later chunk was due", self.at.next_counter)))?;
        if skipped > 0 && self.at.unit == 0 {
            return Err(wrong("the first chunk of the disk is missing".into()));
        }
        let hole = skipped.checked_mul(self.at.unit);
        let end = hole.and_then(|hole| self.at.offset.checked_add(hole)?.checked_add(header.size));
        match (hole, end) {
            (Some(hole), Some(end)) if end <= size => Ok(hole),
            _ => Err(wrong(format!("it ends past the {size} bytes of its disk"))),
        }
    }

    /// Reads the member that follows a chunk and compares.
    fn checksum(&mut self, chunk: &str, bytes: &[u8]) -> XvaResult<()> {
        let expected = format!("the checksum of {chunk}");
        let header = self.tar.header(&expected)?.ok_or_else(|| unexpected(&expected, "the end of the archive"))?;
        let kind = ChecksumKind::ALL.into_iter().find(|kind| header.name.strip_prefix(chunk) == Some(kind.suffix()));
        let kind = kind.ok_or_else(|| unexpected(&expected, &header.name))?;
        let recorded = self.tar.content(&header, kind.text_length() as u64)?;
        let computed = kind.of(bytes);
        if recorded == computed.as_bytes() || self.verify == Verify::Nothing {
            return Ok(());
        }
        let recorded = String::from_utf8_lossy(&recorded).into_owned();
        Err(XvaError::Checksum { member: chunk.to_owned(), recorded, computed })
    }

    /// The next piece of an older disk (index into [`Generations::disks`]) that differs from its base; `None` when
    /// everything was read and is whole. Disks and pieces come in order; a disk without pieces is like its base.
    pub fn next_change(&mut self) -> XvaResult<Option<DiskEvent>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(Some(change));
            }
            if self.ended {
                return Ok(None);
            }
            match self.tar.header("what differs in an older disk")? {
                Some(header) => self.delta(&header)?,
                None => self.second_end()?,
            }
        }
    }

    /// Reads what differs in one chunk, with its checksum.
    fn delta(&mut self, header: &Header) -> XvaResult<()> {
        let disks = self.generations.as_ref().map_or(&[][..], |generations| &generations.disks);
        let due = || unexpected("what differs in an older disk", &header.name);
        let name = header.name.strip_suffix(delta::SUFFIX).ok_or_else(due)?;
        let later = disks.iter().enumerate().skip(self.older.disk);
        let found = later.filter_map(|(disk, plan)| Some((disk, plan.size, counter_of(name, &plan.id)?))).next();
        let (disk, size, counter) = found.ok_or_else(due)?;
        let wrong = |why: String| XvaError::invalid(format!("{}: {why}", header.name));
        if disk != self.older.disk {
            self.older = DiskPosition { disk, ..DiskPosition::default() };
        }
        if counter < self.older.next_counter {
            return Err(wrong(format!("out of order, {:08} or a later one was due", self.older.next_counter)));
        }
        let offset = counter.saturating_mul(limits::CHUNK_BYTES as u64);
        let left = size.checked_sub(offset).filter(|left| *left > 0);
        let left = left.ok_or_else(|| wrong(format!("it lies past the {size} bytes of its disk")))?;
        // At most CHUNK_BYTES.
        let length = left.min(limits::CHUNK_BYTES as u64) as usize;
        self.older.next_counter = counter + 1;
        let bytes = self.tar.content(header, delta::BYTES_MAX)?;
        self.checksum(&header.name, &bytes)?;
        let runs = delta::decode(&bytes, length).map_err(wrong)?;
        self.changes.extend(runs.into_iter().map(|run| match run {
            Run::Data { at, bytes } => DiskEvent::Data { disk, offset: offset + at as u64, bytes },
            Run::Zeros { at, length } => DiskEvent::Zeros { disk, offset: offset + at as u64, length: length as u64 },
        }));
        Ok(())
    }

    fn end(&mut self) -> XvaResult<()> {
        if self.ended || self.generations.is_some() {
            return Ok(());
        }
        let end = "the end of the archive";
        let mut header = self.tar.header(end)?;
        if let Some(member) = header.as_ref().filter(|member| self.with_generations && member.name == MEMBER) {
            let xml = self.tar.content(member, limits::GENERATIONS.xml_bytes)?;
            ova::verify(member, &xml)?;
            self.generations = Some(Generations::from_xml(&xml, &self.ova)?);
            return Ok(());
        }
        // Before version 2 a table of all checksums stood at the end; the checksums beside the chunks were compared.
        if let Some(table) = header.as_ref().filter(|_| self.ova.version.export_vsn < 2) {
            self.tar.content(table, limits::OVA.xml_bytes)?;
            header = self.tar.header(end)?;
        }
        if let Some(header) = header {
            return Err(unexpected(end, &header.name));
        }
        self.second_end()
    }

    /// The first zero block was read: another one, and the end of the compressed stream.
    fn second_end(&mut self) -> XvaResult<()> {
        let end = "the end of the archive";
        if let Some(header) = self.tar.header(end)? {
            return Err(unexpected(end, &header.name));
        }
        if self.compression() != Compression::None && !self.open_end {
            self.tar.drain()?;
        }
        self.ended = true;
        Ok(())
    }
}

/// The digits after `<id>/`.
fn counter_of(name: &str, id: &str) -> Option<u64> {
    let digits = name.strip_prefix(id)?.strip_prefix('/')?;
    let plain = (1..=12).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

pub(crate) fn unexpected(expected: &str, found: &str) -> XvaError {
    XvaError::UnexpectedMember { expected: expected.to_owned(), found: found.to_owned() }
}

/// The tar stream as members.
pub(crate) struct Members<R: Read> {
    pub(crate) source: R,
}

impl<R: Read> Members<R> {
    pub(crate) fn header(&mut self, expected: &str) -> XvaResult<Option<Header>> {
        let mut block = [0; BLOCK];
        self.fill(&mut block, expected)?;
        Header::decode(&block)
    }

    pub(crate) fn content(&mut self, header: &Header, most: u64) -> XvaResult<Vec<u8>> {
        if header.size > most {
            let why = format!("{} bytes; at most {most} are accepted", header.size);
            return Err(XvaError::invalid(format!("{}: {why}", header.name)));
        }
        // At most `most`.
        let mut content = vec![0; header.size as usize];
        self.fill(&mut content, &header.name)?;
        let mut padding = [0; BLOCK];
        let padding = &mut padding[..header.padding()];
        self.fill(padding, &header.name)?;
        if !is_zero(padding) {
            return Err(XvaError::invalid(format!("{}: the padding after it is not zero", header.name)));
        }
        Ok(content)
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> XvaResult<()> {
        self.source.read_exact(buffer).map_err(|error| XvaError::from_read(error, what))
    }

    /// Reads on to the end of the compressed stream, so that its own checksum is compared.
    fn drain(&mut self) -> XvaResult<()> {
        let mut rest = Vec::new();
        let mut bounded = (&mut self.source).take(limits::TRAILER_BYTES + 1);
        bounded
            .read_to_end(&mut rest)
            .map_err(|error| XvaError::from_read(error, "the end of the compressed stream"))?;
        if rest.len() as u64 > limits::TRAILER_BYTES || !is_zero(&rest) {
            return Err(XvaError::invalid("there are bytes after the end of the archive"));
        }
        Ok(())
    }
}
