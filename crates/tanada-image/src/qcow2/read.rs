//! Images of any writer, read strictly forward.
//!
//! ```text
//! header ──▶ L1 ──▶ places of L2 tables ─┐            the place that comes next in the stream is taken
//!                                        ├─▶ places ──▶ L2 table: more places
//!                        runs of clusters┘            ──▶ run of clusters: an event
//! ```
//! Every table has to come before what it points at; what lies behind when it becomes known is refused, with the way
//! out (`qemu-img convert` writes an image in the order in which it can be read). Places are merged into runs, so that
//! what is remembered follows the fragmentation, not the size.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};

use super::header::{Compression, Header};
use super::{COMPRESSED, PLACE, ZERO};
use crate::error::{ImageError, ImageResult};
use crate::forward::{Forward, u64_at};
use crate::limits::{QCOW2_RUNS, RUN_BYTES};
use crate::reader::{Event, Gaps};

/// Something of the image that has not come yet; ordered by where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Bytes from the start of the file.
    at: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The table with this index.
    L2 { index: u64 },
    /// Clusters, for this offset of the disk; lengths in bytes, whole clusters.
    Data { offset: u64, length: u64 },
    /// So many bytes at most, which become one cluster.
    Compressed { offset: u64, length: u64 },
}

pub struct Qcow2Reader<R> {
    window: Window<R>,
    header: Header,
    places: BinaryHeap<Reverse<Place>>,
    /// Known without more of the stream.
    ready: VecDeque<Event>,
    open_end: bool,
}

impl<R: Read> Qcow2Reader<R> {
    /// Reads up to and with the first table.
    pub fn open(source: R) -> ImageResult<Qcow2Reader<R>> {
        let mut window = Window { stream: Forward::new(source), bytes: Vec::new(), base: 0 };
        // Behind the header there is at least the rest of its cluster and a table, unless the image is cut.
        let header = Header::read(|length| Ok(window.take(0, length, "the header")?.to_vec()))?;
        let mut reader =
            Qcow2Reader { window, header, places: BinaryHeap::new(), ready: VecDeque::new(), open_end: false };
        reader.read_l1()?;
        Ok(reader)
    }

    pub fn expect_open_end(&mut self) {
        self.open_end = true;
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    pub fn gaps(&self) -> Gaps {
        let delta = self.header.has_backing_file || self.header.delta_of.is_some();
        if delta { Gaps::Base } else { Gaps::Unsaid }
    }

    pub fn next_event(&mut self) -> ImageResult<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(Reverse(Place { at, what })) = self.places.pop() else {
                // Snapshots and what was freed may follow; the client is heard out.
                if !self.open_end {
                    self.window.stream.drain()?;
                    self.open_end = true;
                }
                return Ok(None);
            };
            match what {
                What::L2 { index } => self.read_l2(at, index)?,
                What::Data { offset, length } => return self.read_data(at, offset, length).map(Some),
                What::Compressed { offset, length } => return self.inflate(at, offset, length).map(Some),
            }
        }
    }

    fn read_l1(&mut self) -> ImageResult<()> {
        let (cluster, entries) = (self.header.cluster_bytes(), self.header.l2_entries());
        let needed = self.header.size.div_ceil(cluster * entries);
        let mut index = 0;
        while index < needed {
            let step = (RUN_BYTES / 8).min(needed - index);
            let part = self.window.take(self.header.l1_at + index * 8, step * 8, "the first table")?.to_vec();
            for entry in part.chunks_exact(8) {
                let at = u64_at(entry, 0) & PLACE;
                if at != 0 {
                    self.expect(at, What::L2 { index })?;
                }
                index += 1;
            }
        }
        Ok(())
    }

    fn read_l2(&mut self, at: u64, index: u64) -> ImageResult<()> {
        let (cluster, entries) = (self.header.cluster_bytes(), self.header.l2_entries());
        let table = self.window.take(at, cluster, "a second table")?.to_vec();
        let mut run = None;
        for (entry, number) in table.chunks_exact(8).zip(index * entries..) {
            let offset = number * cluster;
            if offset >= self.header.size {
                break;
            }
            let entry = u64_at(entry, 0);
            let found = self.entry(entry, offset);
            if let (Some((start, What::Data { offset, length })), Some((at, What::Data { .. }))) = (&mut run, &found)
                && *start + *length == *at
                && *offset + *length == number * cluster
            {
                *length += cluster;
                continue;
            }
            if let Some((at, what)) = run.take() {
                self.expect(at, what)?;
            }
            match found {
                Some((at, what @ What::Data { .. })) => run = Some((at, what)),
                Some((at, what)) => self.expect(at, what)?,
                None if entry & COMPRESSED == 0 && entry & ZERO != 0 => self.zero(offset),
                None => {}
            }
        }
        match run {
            Some((at, what)) => self.expect(at, what),
            None => Ok(()),
        }
    }

    /// What an entry for this offset of the disk points at.
    fn entry(&self, entry: u64, offset: u64) -> Option<(u64, What)> {
        if entry & COMPRESSED != 0 {
            // The place is a byte's; the bits above it count the sectors behind the first one.
            let bits = 62 - (self.header.cluster_bits - 8);
            let at = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            return Some((at, What::Compressed { offset, length: (sectors + 1) * 512 - at % 512 }));
        }
        let at = entry & PLACE;
        (at != 0 && entry & ZERO == 0).then_some((at, What::Data { offset, length: self.header.cluster_bytes() }))
    }

    fn zero(&mut self, offset: u64) {
        let length = self.header.cluster_bytes().min(self.header.size - offset);
        match self.ready.back_mut() {
            Some(Event::Zeros { offset: start, length: before }) if *start + *before == offset => *before += length,
            _ => self.ready.push_back(Event::Zeros { offset, length }),
        }
    }

    /// Remembers what comes later. It must not lie behind, and tables and clusters lie at multiples of a cluster.
    fn expect(&mut self, at: u64, what: What) -> ImageResult<()> {
        let aligned = matches!(what, What::Compressed { .. }) || at & (self.header.cluster_bytes() - 1) == 0;
        if !aligned {
            return Err(ImageError::invalid(format!("a table or cluster is said to be at {at}, inside of a cluster")));
        }
        if at < self.window.base {
            let words = format!("what lies at {at} is known only at {}", self.window.base);
            return Err(ImageError::unsupported(format!(
                "{words}; `qemu-img convert -O qcow2` writes an image whose tables come first"
            )));
        }
        if self.places.len() >= QCOW2_RUNS {
            let words = format!("it has more than {QCOW2_RUNS} runs of clusters out of order");
            return Err(ImageError::unsupported(format!("{words}; `qemu-img convert -O qcow2` brings them in order")));
        }
        self.places.push(Reverse(Place { at, what }));
        Ok(())
    }

    /// The first part of a run; the rest of it waits its turn.
    fn read_data(&mut self, at: u64, offset: u64, length: u64) -> ImageResult<Event> {
        let step = length.min(RUN_BYTES);
        let left = self.header.size - offset;
        let bytes = self.window.take(at, step.min(left), "a cluster")?.to_vec();
        if step < length.min(left) {
            let rest = What::Data { offset: offset + step, length: length - step };
            self.places.push(Reverse(Place { at: at + step, what: rest }));
        }
        Ok(Event::of(offset, bytes))
    }

    fn inflate(&mut self, at: u64, offset: u64, length: u64) -> ImageResult<Event> {
        let cluster = self.header.cluster_bytes() as usize;
        let packed = self.window.take_some(at, length)?;
        let damaged =
            || ImageError::invalid(format!("the compressed cluster for offset {offset}, at {at}, is damaged"));
        let mut bytes = vec![0; cluster];
        match self.header.compression {
            Compression::Deflate => {
                let mut inflater = Decompress::new(false);
                let status = inflater.decompress(packed, &mut bytes, FlushDecompress::Finish);
                let full = inflater.total_out() == cluster as u64;
                // The writer's padding may follow, so the end of the input says nothing.
                if !full || !matches!(status, Ok(Status::StreamEnd | Status::Ok | Status::BufError)) {
                    return Err(damaged());
                }
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(packed).map_err(|_| damaged())?.single_frame();
                decoder.read_exact(&mut bytes).map_err(|_| damaged())?;
            }
        }
        bytes.truncate(usize::try_from(self.header.size - offset).unwrap_or(cluster));
        Ok(Event::of(offset, bytes))
    }
}

/// The part of the stream that is in memory: from `base` on, as far as it was read.
struct Window<R> {
    stream: Forward<R>,
    bytes: Vec<u8>,
    base: u64,
}

impl<R: Read> Window<R> {
    /// `length` bytes from `at` on; what stands before is let go.
    fn take(&mut self, at: u64, length: u64, what: &str) -> ImageResult<&[u8]> {
        let found = self.fill(at, length, what)?;
        if (found as u64) < length {
            return Err(ImageError::PrematureEnd(format!("while reading {what}, at {at}")));
        }
        Ok(&self.bytes[..found])
    }

    /// As many bytes as there are, at most `length`.
    fn take_some(&mut self, at: u64, length: u64) -> ImageResult<&[u8]> {
        let found = self.fill(at, length, "a compressed cluster")?;
        Ok(&self.bytes[..found])
    }

    fn fill(&mut self, at: u64, length: u64, what: &str) -> ImageResult<usize> {
        let behind =
            at.checked_sub(self.base).ok_or_else(|| ImageError::invalid(format!("{what} lies behind, at {at}")))?;
        if behind >= self.bytes.len() as u64 {
            self.bytes.clear();
            self.stream.skip_to(at, what)?;
        } else {
            self.bytes.drain(..behind as usize);
        }
        self.base = at;
        let (have, length) = (self.bytes.len(), length as usize);
        if have < length {
            self.bytes.resize(length, 0);
            let read = self.stream.some(&mut self.bytes[have..])?;
            self.bytes.truncate(have + read);
        }
        Ok(length.min(self.bytes.len()))
    }
}
