//! Prints what is where, without judging it.

use std::process::ExitCode;

use tanada_format::check::{CheckError, Findings, read_catalog, read_superblocks, scan};
use tanada_format::geometry::SUPERBLOCK_AT;
use tanada_format::{RegionEntry, Superblock, Version, layout};

use super::file::StoreFile;

/// Layout, superblocks, regions, version tree, journal; with `records` each record of the journal.
pub fn dump(source: &StoreFile, records: bool) -> Result<ExitCode, CheckError> {
    print!("{}", layout::describe());
    let copies = read_superblocks(source).map_err(CheckError::Unreadable)?;
    for (slot, pair) in copies.iter().enumerate() {
        for (copy, superblock) in pair.iter().enumerate() {
            println!("\nsuperblock slot {slot} copy {copy}, block {}", SUPERBLOCK_AT[slot][copy]);
            match superblock {
                Ok(superblock) => print_superblock(superblock),
                Err(error) => println!("  not whole: {error}"),
            }
        }
    }
    let Some(newest) = Superblock::newest(&copies) else {
        let first = copies.into_iter().flatten().find_map(Result::err);
        return Err(first.map_or(CheckError::Unreadable("no superblock".to_owned()), CheckError::NoStore));
    };
    print_catalog(source, newest);
    print_journal(source, newest, records)?;
    Ok(ExitCode::SUCCESS)
}

fn print_superblock(superblock: &Superblock) {
    println!("  store        {}", superblock.store);
    println!("  checkpoint   {}", superblock.checkpoint);
    println!("  incarnation  {}", superblock.incarnation);
    println!("  epoch        {}", superblock.epoch);
    println!("  next version {}", superblock.next_version);
    println!(
        "  size         {} blocks, of it {} journal",
        superblock.geometry.store_blocks(),
        superblock.geometry.journal_blocks()
    );
    println!(
        "  regions      {} from block {} on",
        superblock.geometry.region_count(),
        superblock.geometry.regions_start()
    );
    println!("  journal from {}", superblock.journal_seq);
    println!("  used         {} blocks", superblock.used_blocks);
    println!("  catalog      {:?}", superblock.catalog);
}

fn print_catalog(source: &StoreFile, superblock: &Superblock) {
    let catalog = match read_catalog(source, superblock) {
        Ok(catalog) => catalog,
        Err(error) => return println!("\ncatalog: {error}"),
    };
    println!("\nregions");
    for (region, entry) in catalog.regions.iter().enumerate() {
        match entry {
            RegionEntry::Fresh => println!("  {region:>6} never used"),
            RegionEntry::Page { copy, crc, used } => {
                println!("  {region:>6} page copy {copy}, {used} blocks used, crc {crc:08x}")
            }
        }
    }
    println!("\nversions (id, kind, state, S, size, tree, uuid)");
    let is_root = |version: &&Version| !catalog.versions.iter().any(|parent| parent.id == version.parent);
    for version in catalog.versions.iter().filter(is_root) {
        print_version(&catalog.versions, version, 1);
    }
}

fn print_version(all: &[Version], version: &Version, depth: usize) {
    let hidden = if version.hidden { " hidden" } else { "" };
    let cursor = if version.cursor == 0 { String::new() } else { format!(" walked up to {}", version.cursor) };
    println!(
        "{:indent$}{} {:?} {:?}{hidden}{cursor} S={} {} bytes {:?} {}",
        "",
        version.id,
        version.kind,
        version.state,
        version.ended,
        version.size,
        version.tree,
        version.uuid,
        indent = depth * 2
    );
    // A damaged catalog may hold a circle; versions are never nested deeper than there are versions.
    if depth <= all.len() {
        all.iter().filter(|child| child.parent == version.id).for_each(|child| print_version(all, child, depth + 1));
    }
}

fn print_journal(source: &StoreFile, superblock: &Superblock, records: bool) -> Result<(), CheckError> {
    let journal = scan(source, superblock, &mut Findings::default()).map_err(CheckError::Unreadable)?;
    println!(
        "\njournal from {} to {}, durable up to {}",
        superblock.journal_seq,
        journal.end_seq - 1,
        journal.durable_seq
    );
    println!("  ends because {}", journal.end_reason);
    for block in &journal.blocks {
        let header = &block.header;
        println!(
            "  {:>8} incarnation {} durable {} checkpoint {} records {}",
            header.seq,
            header.incarnation,
            header.durable_seq,
            header.checkpoint,
            block.records.len()
        );
        if records {
            block.records.iter().for_each(|record| println!("           {record:x?}"));
        }
    }
    Ok(())
}
