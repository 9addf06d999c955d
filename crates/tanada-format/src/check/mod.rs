//! The offline checker: reads everything, trusts nothing, writes nothing.
//!
//! What it proves of a store, or says where it fails:
//! - superblocks: which of the four copies are whole, and that no newer checkpoint is known to the journal (rule J8);
//! - journal: which records a recovery would replay (J2-J4), that they name blocks which are free in the checkpoint, and
//!   versions that exist;
//! - trees: every node's and (on demand) every data block's checksum, births in order (V2), nothing outside the store;
//! - **I1**: a pointer born up to the parent's end stands identical at the same place in the parent;
//! - **I2**: no block is referenced from two places;
//! - **I4**: set bits = blocks reachable from live and ghost versions, and from a walked version right of its cursor.
//!
//! It prunes as the engine does: what stands identical in the parent was checked there. It works on anything that can be
//! read at an offset, so the simulation checks its device in memory with it.
//!
//! ```text
//!   read -> superblock -> journal -> catalog -> trees (parents first) -> bitmaps
//! ```

mod journal;
mod replay;
mod space;
mod state;
mod trees;

pub use journal::{JournalScan, ScannedBlock, scan};
pub use state::{Catalog, RegionPages, read_catalog, read_superblocks};
pub use trees::{UNANNOUNCED, reachable};

use uuid::Uuid;

use crate::error::FormatError;
use crate::node::BLOCK_BYTES;
use crate::superblock::Superblock;
use crate::version::Version;

/// A store to read: a file, a device, memory.
pub trait ReadAt {
    /// Fills `bytes` from byte `offset` on. Errors: why that cannot be read, in words.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String>;

    /// One block.
    fn read_block(&self, block: u64) -> Result<[u8; BLOCK_BYTES], String> {
        let mut bytes = [0; BLOCK_BYTES];
        self.read_at(block * BLOCK_BYTES as u64, &mut bytes)?;
        Ok(bytes)
    }
}

/// How thorough to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Read all data blocks and compare their checksums, too.
    pub data: bool,
}

/// Why there is nothing to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckError {
    /// The device cannot be read.
    Unreadable(String),
    /// None of the four superblocks is whole; the error of the first.
    NoStore(FormatError),
}

impl std::fmt::Display for CheckError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CheckError::Unreadable(why) => write!(f, "cannot be read: {why}"),
            CheckError::NoStore(error) => write!(f, "no whole superblock: {error}"),
        }
    }
}

impl std::error::Error for CheckError {}

/// What a version uses, as counted by walking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionUsage {
    pub version: Version,
    /// Data blocks reachable.
    pub mapped_blocks: u64,
    /// Data and map blocks that its parent does not have.
    pub own_blocks: u64,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct CheckReport {
    pub superblock: Superblock,
    pub journal: JournalScan,
    pub versions: Vec<VersionUsage>,
    /// Blocks of the catalog: its nodes, version records, region table.
    pub catalog_blocks: u64,
    /// Blocks reachable: data, nodes, catalog.
    pub reachable_blocks: u64,
    /// Bits set.
    pub used_blocks: u64,
    /// Everything that is not as it must be, at most [`FINDINGS_MAX`], and how many more there were.
    pub findings: Vec<String>,
    pub findings_left_out: u64,
    /// Worth knowing, not wrong.
    pub notes: Vec<String>,
    marks: space::Marks,
}

impl CheckReport {
    /// Whether the checkpoint reaches `block`: data, a node, the catalog.
    pub fn uses(&self, block: u64) -> bool {
        self.marks.get(block)
    }

    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Findings that a report names one by one.
pub const FINDINGS_MAX: usize = 200;

/// Findings so far.
#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<String>,
    left_out: u64,
}

impl Findings {
    pub fn add(&mut self, text: String) {
        if self.list.len() < FINDINGS_MAX {
            self.list.push(text);
        } else {
            self.left_out += 1;
        }
    }
}

/// Checks a whole store. Errors only where there is no store to check; damage is in the report.
pub fn check(source: &dyn ReadAt, options: CheckOptions) -> Result<CheckReport, CheckError> {
    let mut findings = Findings::default();
    let mut notes = Vec::new();
    let copies = read_superblocks(source).map_err(CheckError::Unreadable)?;
    let superblock = state::choose(&copies, &mut findings, &mut notes)?;
    require_length(source, &superblock)?;
    let journal = scan(source, &superblock, &mut findings).map_err(CheckError::Unreadable)?;
    if options.data {
        journal::check_data(source, &journal, &mut findings);
    }
    let mut marks = space::Marks::new(&superblock.geometry);
    let catalog = state::check_catalog(source, &superblock, &mut marks, &mut findings);
    let catalog_blocks = marks.count();
    let versions = trees::check_versions(source, &superblock, &catalog.versions, options, &mut marks, &mut findings);
    let used_blocks = space::check_bitmaps(source, &superblock, &catalog.regions, &marks, &mut findings);
    let geometry = replay::check_records(&superblock, &catalog.versions, &journal, &mut findings);
    if geometry != superblock.geometry && source.read_block(geometry.store_blocks() - 1).is_err() {
        findings.add(format!("the store grew to {} bytes, the device is shorter", geometry.store_bytes()));
    }
    space::check_journal_blocks(&geometry, &journal, &marks, &mut findings);
    Ok(CheckReport {
        superblock,
        journal,
        versions,
        catalog_blocks,
        reachable_blocks: marks.count(),
        used_blocks,
        findings: findings.list,
        findings_left_out: findings.left_out,
        notes,
        marks,
    })
}

/// The last block must be there, or sizes mean nothing: what they ask for in memory follows from them.
fn require_length(source: &dyn ReadAt, superblock: &Superblock) -> Result<(), CheckError> {
    let bytes = superblock.geometry.store_bytes();
    let too_short = |why| CheckError::Unreadable(format!("the store has {bytes} bytes, the device fewer: {why}"));
    source.read_block(superblock.geometry.store_blocks() - 1).map(drop).map_err(too_short)
}

/// "version 7 (generation 1234-...)" for messages.
fn name(version: &Version) -> String {
    let uuid: Uuid = version.uuid;
    format!("version {} ({} {uuid})", version.id, format!("{:?}", version.kind).to_lowercase())
}
