//! Opening a store: read, decide, make the decision durable, serve (J1-J4, J8).
//!
//! ```text
//!   sync -> newest superblock -> ring, kept blocks -> catalog, bitmaps -> chain of journal blocks
//!        -> verify the uncertain tail -> replay the prefix -> kept blocks to the ring, sync -> recovery block -> sync
//!        -> serve
//! ```
//! Kept blocks (J6b) are those that the process before had acknowledged and not yet written. They take part as if the
//! ring had them, and are brought there, and synced, before the recovery block: its incarnation is what makes the
//! memory they came from void, and its durable mark covers them.
//!
//! The first record whose data fails its checksum ends the journal (J2). A recovery block fixes that verdict before
//! anything new is written, and begins a new incarnation (J4).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tanada_disk::{Buf, BufMut, DiskOp};
use tanada_format::catalog::{REGION_ENTRY_BYTES, REGION_TABLE_PLACE, REGIONS_PER_BLOCK, RegionEntry, region_place};
use tanada_format::geometry::{JOURNAL_KEPT_BLOCKS, SUPERBLOCK_AT};
use tanada_format::version::VERSION_BYTES;
use tanada_format::{
    BLOCK_BYTES, BitmapPage, FANOUT, FormatError, Geometry, JournalBlock, JournalHeader, Node, Pointer, ROOT_LEVEL,
    Record, Superblock, Version, crc32c,
};

use crate::api::{Action, OpenReport};
use crate::failure::{EINVAL, EIO, Failure};
use crate::journal::Journal;
use crate::journal::kept;
use crate::space::alloc::Allocator;
use crate::state::{BLOCK, Handle, Phase, State};
use crate::versions::Versions;

/// Journal blocks read at once: 1 MiB.
const RING_READ_BLOCKS: u64 = 256;

/// Such reads at once: 8 MiB.
const RING_READS_IN_FLIGHT: usize = 8;

/// Bitmap pages read at once.
const PAGES_AT_ONCE: usize = 64;

/// Data runs verified at once.
const VERIFY_AT_ONCE: usize = 64;

/// What the ring holds that belongs to this store and is not in its checkpoint, by number.
type Ring = BTreeMap<u64, Result<JournalBlock, JournalHeader>>;

/// Blocks that came from kept memory, as they are to be written, by number.
type Images = BTreeMap<u64, Vec<u8>>;

/// The part of the journal that counts.
struct Chain {
    blocks: Vec<JournalBlock>,
    /// Blocks up to this one are known durable.
    durable: u64,
    incarnation_max: u64,
}

impl Handle {
    pub async fn open(self) {
        let result = self.try_open().await;
        self.with(|state| {
            if let Err(failure) = &result {
                state.phase = Phase::Refused(failure.clone());
            }
            state.actions.push_back(Action::Opened(result));
        });
    }

    async fn try_open(&self) -> Result<OpenReport, Failure> {
        self.disk(DiskOp::Sync).await.map_err(|error| State::data_failure(error.errno, "syncing before opening"))?;
        let superblock = self.read_superblock().await?;
        let geometry = superblock.geometry;
        self.with(|state| state.adopt_superblock(&superblock))?;
        let mut ring = self.read_ring(&superblock).await?;
        let found = self.with(|state| state.config.kept.as_mut().map(|kept| std::mem::take(&mut kept.found)));
        let images = add_kept(&mut ring, &found.unwrap_or_default(), &superblock);
        check_newest(&superblock, &ring)?;
        self.read_catalog(&superblock).await?;
        self.with(|state| {
            if state.keeps_space() {
                state.alloc.mark_all_warm();
            }
        });
        let mut chain = chain_of(&superblock, ring)?;
        let blocks_verified = self.verify(&mut chain).await?;
        let verdict = chain.blocks.last().map(|block| (block.header.seq, block.records.len() as u64));
        let incarnation = chain.incarnation_max.max(superblock.incarnation) + 1;
        let next_seq = verdict.map_or(superblock.journal_seq, |(seq, _)| seq + 1);
        self.with(|state| {
            let (store, checkpoint, start) = (superblock.store, superblock.checkpoint, superblock.journal_seq);
            let blocks = geometry.journal_blocks();
            state.journal = Journal::new(store, incarnation, checkpoint, blocks, start, next_seq);
        });
        self.mark_named(self.with(|state| state.named_by(&chain))?).await?;
        let records_replayed = self.with(|state| state.replay(&chain))?;
        let kept_blocks = self.settle_kept(&chain, images).await?;
        self.fix_verdict(&superblock, verdict).await?;
        Ok(OpenReport {
            store: superblock.store,
            incarnation,
            checkpoint: self.with(|state| state.journal.checkpoint),
            records_replayed,
            blocks_verified,
            kept_blocks,
        })
    }

    /// Brings the kept blocks of the chain to their places in the ring, durably. Returns how many.
    async fn settle_kept(&self, chain: &Chain, images: Images) -> Result<u64, Failure> {
        let last = chain.blocks.last().map_or(0, |block| block.header.seq);
        let first = chain.blocks.first().map_or(u64::MAX, |block| block.header.seq);
        let mut count = 0;
        for (seq, bytes) in images.into_iter().filter(|(seq, _)| (first..=last).contains(seq)) {
            let at = self.with(|state| state.alloc.geometry().journal_block(seq)) * BLOCK;
            let op = DiskOp::Write { at, parts: vec![Buf::copy_from(&bytes)] };
            self.disk(op).await.map_err(|error| State::data_failure(error.errno, "writing kept journal blocks"))?;
            count += 1;
        }
        if count > 0 {
            let synced = self.disk(DiskOp::Sync).await;
            synced.map_err(|error| State::data_failure(error.errno, "syncing kept journal blocks"))?;
        }
        Ok(count)
    }

    async fn read_superblock(&self) -> Result<Superblock, Failure> {
        let mut copies: [[Result<Superblock, FormatError>; 2]; 2] = [const { [const { Err(NOT_READ) }; 2] }; 2];
        for (slot, places) in SUPERBLOCK_AT.iter().enumerate() {
            for (copy, at) in places.iter().enumerate() {
                if let Ok(bytes) = self.read_blocks(*at, BLOCK_BYTES as u32).await {
                    copies[slot][copy] = Superblock::decode(&bytes, slot);
                }
            }
        }
        let Some(newest) = Superblock::newest(&copies).cloned() else {
            let why = copies.into_iter().flatten().find_map(Result::err).map_or_else(String::new, |e| e.to_string());
            return Err(Failure::new(EINVAL, format!("none of the four superblocks is whole: {why}")));
        };
        if !newest.may_write() {
            return Err(Failure::new(EINVAL, "the store has features that this program can only read"));
        }
        if let Some((counter, value)) = newest.used_up() {
            let message = format!("the store has used up its numbers: {counter} is {value}, more than half of them");
            return Err(Failure::new(EINVAL, message));
        }
        let needed = newest.geometry.store_bytes();
        let device = self.with(|state| state.config.device_bytes);
        if device < needed {
            return Err(Failure::new(EINVAL, format!("the store needs {needed} bytes, the device has {device}")));
        }
        // A crash between its two copies leaves one: a single torn sector later must not cost the store.
        if copies[newest.slot()].iter().any(|copy| copy.as_ref() != Ok(&newest)) {
            let bytes = Buf::copy_from(&newest.encode());
            for at in SUPERBLOCK_AT[newest.slot()] {
                let op = DiskOp::Write { at: at * BLOCK, parts: vec![bytes.clone()] };
                self.disk(op).await.map_err(|e| State::data_failure(e.errno, "repairing a superblock"))?;
            }
        }
        Ok(newest)
    }

    /// Reads the whole ring, for a block behind a gap tells damage from a torn tail (J3), and keeps what is not in the
    /// checkpoint yet: what came before it neither counts nor knows anything newer, and is most of the ring.
    async fn read_ring(&self, superblock: &Superblock) -> Result<Ring, Failure> {
        let (first, blocks) = (superblock.geometry.journal_block(0), superblock.geometry.journal_blocks());
        let mut ring = Ring::new();
        let mut in_flight = VecDeque::new();
        let mut at = 0;
        while at < blocks || !in_flight.is_empty() {
            if at < blocks && in_flight.len() < RING_READS_IN_FLIGHT {
                let count = RING_READ_BLOCKS.min(blocks - at);
                let op = DiskOp::Read { at: (first + at) * BLOCK, length: (count * BLOCK) as u32 };
                in_flight.push_back((first + at, self.with(|state| state.task_io(op))));
                at += count;
                continue;
            }
            let Some((start, slot)) = in_flight.pop_front() else { break };
            let bytes = slot.await.map_err(|error| State::data_failure(error.errno, "reading the journal"))?;
            for (place, block) in (start..).zip(bytes.iter().flat_map(|bytes| bytes.chunks_exact(BLOCK_BYTES))) {
                let Ok(header) = JournalHeader::decode(block, superblock.store) else { continue };
                // Its number says where it belongs; anywhere else it is nothing.
                if header.seq >= superblock.journal_seq && superblock.geometry.journal_block(header.seq) == place {
                    ring.insert(header.seq, JournalBlock::decode(block, superblock.store).map_err(|_| header));
                }
            }
        }
        Ok(ring)
    }

    /// Reads the hidden volume: versions, region table, bitmap pages.
    async fn read_catalog(&self, superblock: &Superblock) -> Result<(), Failure> {
        let geometry = superblock.geometry;
        let mut leaves: Vec<(u64, Pointer)> = vec![(0, superblock.catalog)];
        // A block is referenced once (I2); a catalog that refers to itself would not end.
        let mut seen = BTreeSet::new();
        for level in (0..=ROOT_LEVEL).rev() {
            let mut below = Vec::new();
            for (index, pointer) in leaves.into_iter().filter(|(_, pointer)| !pointer.is_null()) {
                if !geometry.is_allocatable(pointer.block()) || !seen.insert(pointer.block()) {
                    let message = format!("the catalog's map refers to block {} wrongly, or twice", pointer.block());
                    return Err(Failure::new(EIO, message));
                }
                let bytes = self.verified(pointer, "the catalog's map").await?;
                let node = Node::decode(&bytes, pointer.crc(), geometry.store_blocks()).map_err(damaged)?;
                below.extend((0..FANOUT).map(|slot| (index << 8 | slot as u64, node.pointers[slot])));
                self.with(|state| state.catalog.load_node(level, index, node));
            }
            leaves = below;
        }
        for (place, pointer) in leaves.into_iter().filter(|(_, pointer)| !pointer.is_null()) {
            if !geometry.is_allocatable(pointer.block()) || !seen.insert(pointer.block()) {
                let message = format!("the catalog refers to block {} wrongly, or twice", pointer.block());
                return Err(Failure::new(EIO, message));
            }
            let bytes = self.verified(pointer, "the catalog").await?;
            if place < REGION_TABLE_PLACE {
                self.with(|state| state.load_versions(place, &bytes))?;
            } else {
                self.read_pages(place, &bytes, &geometry).await?;
            }
        }
        self.with(|state| state.versions.load_children()).map_err(|message| Failure::new(EIO, message))?;
        let used = self.with(|state| state.alloc.used());
        if used != superblock.used_blocks {
            let message = format!("bitmaps have {used} blocks in use, the superblock says {}", superblock.used_blocks);
            return Err(Failure::new(EIO, message));
        }
        Ok(())
    }

    /// Reads the bitmap pages of a block of the region table, many at a time: how many blocks of each segment are free.
    async fn read_pages(&self, place: u64, table: &[u8], geometry: &Geometry) -> Result<(), Failure> {
        let first = (place - REGION_TABLE_PLACE) * REGIONS_PER_BLOCK;
        let end = (first + REGIONS_PER_BLOCK).min(geometry.region_count());
        let mut entries = Vec::new();
        for region in first..end {
            let at = region_place(region).1;
            let entry = RegionEntry::decode(&table[at..at + REGION_ENTRY_BYTES]).map_err(damaged)?;
            if let RegionEntry::Page { copy, crc, used } = entry {
                entries.push((region, entry, copy, crc, used));
            }
        }
        for batch in entries.chunks(PAGES_AT_ONCE) {
            let read = |copy: u64, region: u64| {
                let at = geometry.page_block(region, copy) * BLOCK;
                self.with(|state| state.task_io(DiskOp::Read { at, length: BLOCK_BYTES as u32 }))
            };
            let reads: Vec<_> = batch.iter().map(|(region, _, copy, ..)| read(*copy, *region)).collect();
            for ((region, entry, _, crc, used), slot) in batch.iter().zip(reads) {
                let bytes = slot.await.map_err(|error| State::data_failure(error.errno, "reading a bitmap page"))?;
                let bytes = bytes.unwrap_or_else(|| BufMut::zeroed(0).freeze());
                let page = BitmapPage::decode(&bytes, *crc, *used, geometry.region_blocks(*region)).map_err(damaged)?;
                self.with(|state| state.alloc.load(*region, *entry, page));
            }
        }
        Ok(())
    }

    async fn verified(&self, pointer: Pointer, what: &str) -> Result<Buf, Failure> {
        let bytes = self.read_blocks(pointer.block(), BLOCK_BYTES as u32).await;
        let bytes = bytes.map_err(|error| State::data_failure(error.errno, what))?;
        if crc32c(&bytes) == pointer.crc() {
            return Ok(bytes);
        }
        Err(Failure::new(EIO, format!("{what} is damaged at block {}: its checksum does not match", pointer.block())))
    }

    /// Verifies the data of records that may not have reached the medium; cuts the chain at the first that has not.
    async fn verify(&self, chain: &mut Chain) -> Result<u64, Failure> {
        let mut runs = Vec::new();
        for (index, block) in chain.blocks.iter().enumerate().filter(|(_, b)| b.header.seq > chain.durable) {
            for (n, record) in block.records.iter().enumerate() {
                if let Record::Map { block, crcs, .. } = record {
                    runs.push((index, n, *block, crcs));
                }
            }
        }
        let store_blocks = self.with(|state| state.alloc.geometry().store_blocks());
        let mut verified = 0;
        let mut torn = None;
        'all: for batch in runs.chunks(VERIFY_AT_ONCE) {
            let mut reads = Vec::new();
            for (index, n, block, crcs) in batch {
                // A store that grew in this very journal has blocks beyond the superblock's end.
                let length = (crcs.len() as u64 * BLOCK) as u32;
                let device = self.with(|state| state.config.device_bytes / BLOCK).max(store_blocks);
                let inside = block + crcs.len() as u64 <= device;
                let op = DiskOp::Read { at: block * BLOCK, length };
                reads.push((*index, *n, crcs, inside.then(|| self.with(|state| state.task_io(op)))));
            }
            for (index, n, crcs, slot) in reads {
                let bytes = match slot {
                    Some(slot) => slot.await.map_err(|e| State::data_failure(e.errno, "verifying the journal"))?,
                    None => None,
                };
                let whole =
                    bytes.is_some_and(|bytes| bytes.chunks_exact(BLOCK_BYTES).map(crc32c).eq(crcs.iter().copied()));
                if !whole {
                    torn = Some((index, n));
                    break 'all;
                }
                verified += crcs.len() as u64;
            }
        }
        if let Some((index, n)) = torn {
            chain.blocks.truncate(index + 1);
            chain.blocks[index].records.truncate(n);
        }
        Ok(verified)
    }

    /// Makes the verdict durable: by a recovery block, or, where the ring has no room for one, by a checkpoint.
    async fn fix_verdict(&self, superblock: &Superblock, verdict: Option<(u64, u64)>) -> Result<(), Failure> {
        let room = self.with(|state| state.journal.used() + JOURNAL_KEPT_BLOCKS <= state.journal.blocks());
        if !room {
            self.with(|state| {
                state.phase = Phase::Serving; // for the checkpoint; nobody is told before it has ended
                state.checkpoint.running = true;
                state.checkpoint.urgent = true;
            });
            self.clone().checkpoint().await;
            self.with(|state| state.check_writable())?;
        }
        let (seq, records) = match verdict {
            Some(verdict) if room => verdict,
            _ => (self.with(|state| state.journal.next_seq() - 1), 0),
        };
        let recovered = Record::Recovered { seq, records };
        let slot = self.with(|state| {
            state.phase = Phase::Serving;
            let seq = state.journal.append(&[recovered]);
            state.write_journal();
            state.durable(seq)
        });
        slot.await?;
        self.with(|state| {
            let places = state.config.kept.as_ref().map_or(0, |kept| kept.places);
            state.journal.keep_in(places);
        });
        tracing::info!(store = %superblock.store, "store open");
        Ok(())
    }
}

const NOT_READ: FormatError = FormatError::Length { what: "superblock", found: 0, needed: BLOCK_BYTES };

fn damaged(error: FormatError) -> Failure {
    Failure::new(EIO, format!("the catalog is damaged: {error}"))
}

/// Rule J8: where the ring knows a newer checkpoint than the best superblock, the newest superblock is damaged, and
/// what the older one needs may have been written over.
fn check_newest(superblock: &Superblock, ring: &Ring) -> Result<(), Failure> {
    let known = ring.values().map(|block| header_of(block).checkpoint).max().unwrap_or(0);
    if known <= superblock.checkpoint {
        return Ok(());
    }
    let message = format!(
        "the journal knows checkpoint {known}, the newest whole superblock is of checkpoint {}: the newest is damaged",
        superblock.checkpoint
    );
    Err(Failure::new(EIO, message))
}

/// Adds what the last life kept and the ring does not have. A block that the ring has whole is never older than its
/// image: it was sealed behind the last record.
fn add_kept(ring: &mut Ring, found: &[Vec<u8>], superblock: &Superblock) -> Images {
    let known = ring.values().map(|block| header_of(block).incarnation).max().unwrap_or(0);
    let incarnation = known.max(superblock.incarnation);
    let mut images = Images::new();
    for (seq, (block, bytes)) in kept::images(found, superblock.store, incarnation) {
        let in_ring = ring.get(&seq).is_some_and(|known| header_of(known).incarnation == incarnation);
        if !in_ring && seq >= superblock.journal_seq {
            ring.insert(seq, Ok(block));
            images.insert(seq, bytes);
        }
    }
    images
}

fn header_of(block: &Result<JournalBlock, JournalHeader>) -> &JournalHeader {
    match block {
        Ok(block) => &block.header,
        Err(header) => header,
    }
}

/// Follows the journal from the superblock's mark: consecutive numbers, incarnations that never decrease (J4), and
/// what recovery blocks decided. Errors where a block is missing that was durable (J3).
fn chain_of(superblock: &Superblock, mut ring: Ring) -> Result<Chain, Failure> {
    let incarnation_max = ring.values().map(|block| header_of(block).incarnation).max().unwrap_or(0);
    let mut chain = Chain { blocks: Vec::new(), durable: superblock.journal_seq - 1, incarnation_max };
    let mut incarnation = superblock.incarnation;
    let mut seq = superblock.journal_seq;
    loop {
        let header = ring.get(&seq).map(|block| *header_of(block));
        if header.is_none_or(|header| header.incarnation < incarnation) {
            break;
        }
        let Some(Ok(block)) = ring.remove(&seq) else {
            return Err(Failure::new(EIO, format!("journal block {seq} is whole, but its records make no sense")));
        };
        // Every life begins with a recovery block: without one this is no continuation of what came before (J4).
        let recovered = matches!(block.records.first(), Some(Record::Recovered { .. }));
        if block.header.incarnation > incarnation && !recovered {
            break;
        }
        incarnation = block.header.incarnation;
        chain.durable = chain.durable.max(block.header.durable_seq);
        // It is about the block before it, or does not decode.
        if let Some(Record::Recovered { records, .. }) = block.records.first()
            && let Some(last) = chain.blocks.last_mut()
        {
            last.records.truncate(usize::try_from(*records).unwrap_or(usize::MAX));
        }
        chain.blocks.push(block);
        seq += 1;
    }
    let mut beyond = ring.range(seq..).map(|(_, block)| header_of(block));
    // What a former life says of blocks that this one has written since does not count (J4).
    let beyond = beyond.find(|header| header.incarnation >= incarnation && header.durable_seq >= seq);
    if let Some(header) = beyond {
        let message = format!(
            "journal block {seq} is missing, though block {} says that it was durable: the journal is damaged",
            header.seq
        );
        return Err(Failure::new(EIO, message));
    }
    Ok(chain)
}

impl State {
    fn adopt_superblock(&mut self, superblock: &Superblock) -> Result<(), Failure> {
        self.store = superblock.store;
        self.superblock = Some(superblock.clone());
        self.alloc = Allocator::new(superblock.geometry, self.config.bitmap_pages_max as usize);
        self.catalog.set_root(superblock.catalog);
        self.versions = Versions::new(superblock.epoch, superblock.next_version);
        self.checkpoint.slots = superblock.version_slots;
        Ok(())
    }

    fn load_versions(&mut self, place: u64, bytes: &[u8]) -> Result<(), Failure> {
        let store_blocks = self.alloc.geometry().store_blocks();
        for (n, record) in bytes.chunks_exact(VERSION_BYTES).enumerate() {
            let slot = place * (BLOCK_BYTES / VERSION_BYTES) as u64 + n as u64;
            if let Some(version) = Version::decode(record, store_blocks).map_err(damaged)? {
                if slot >= self.checkpoint.slots {
                    let (id, slots) = (version.id, self.checkpoint.slots);
                    let message = format!("version {id} is in slot {slot}, the superblock knows {slots} slots");
                    return Err(Failure::new(EIO, message));
                }
                self.versions.load(&version, slot).map_err(|message| Failure::new(EIO, message))?;
            }
        }
        let mut block = Box::new([0; BLOCK_BYTES]);
        block.copy_from_slice(bytes);
        self.catalog.load_versions(place, block);
        Ok(())
    }

    /// Blocks that the prefix names; the store has its last size from now on.
    fn named_by(&mut self, chain: &Chain) -> Result<Vec<u64>, Failure> {
        let mut named = Vec::new();
        for record in chain.blocks.iter().flat_map(|block| &block.records) {
            match record {
                Record::Map { block, crcs, .. } => named.extend(*block..*block + crcs.len() as u64),
                Record::Grow { .. } => self.apply(record).map_err(|message| Failure::new(EIO, message))?,
                _ => {}
            }
        }
        Ok(named)
    }

    /// Applies the prefix. What it names is marked already.
    fn replay(&mut self, chain: &Chain) -> Result<u64, Failure> {
        let mut replayed = 0;
        for block in &chain.blocks {
            for record in &block.records {
                // Its growth is applied already, all at once.
                if !matches!(record, Record::Grow { .. }) {
                    self.apply(record).map_err(|message| {
                        Failure::new(
                            EIO,
                            format!("journal block {} contradicts the store: {message}", block.header.seq),
                        )
                    })?;
                }
                replayed += u64::from(!matches!(record, Record::Recovered { .. }));
            }
        }
        Ok(replayed)
    }
}
