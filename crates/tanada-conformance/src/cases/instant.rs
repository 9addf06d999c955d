//! The proof of one instant: a writer puts numbered records on three disks in turn, and sends the next only when the last
//! one was answered. A set of generations that holds record `n` must hold every record before it, on whatever disk.

use anyhow::{Context, Result, ensure};
use tanada_driver::{CutPair, DriverErrorKind};
use tanada_units::BLOCK_BYTES;
use tokio::sync::watch;
use uuid::Uuid;

use super::must_refuse;
use crate::report::Verdict;
use crate::scratch::{Disk, Scratch};

const DISKS: usize = 3;
/// Records on each disk; older ones are overwritten in turn.
const PLACES: u64 = 64;

pub async fn play(scratch: &Scratch) -> Result<Verdict> {
    let first = scratch.create(scratch.scale.disk).await?;
    let mut volumes = vec![first];
    while volumes.len() < DISKS {
        volumes.push(scratch.create_near(scratch.scale.disk, first).await?);
    }
    if !scratch.driver().capabilities().group_snapshot {
        let pairs = pairs(scratch, &volumes);
        must_refuse("a group snapshot", scratch.driver().snapshot(&pairs).await, &[DriverErrorKind::NotAtomic])?;
        ensure!(scratch.ids().await?.len() == DISKS, "a refused group snapshot left something");
        return Ok(Verdict::NotOffered("the machine is paused while its disks are cut one by one".into()));
    }
    let mut disks = Vec::new();
    for volume in &volumes {
        disks.push(scratch.disk(*volume, true).await?);
    }
    // Written so far; the writer ends when nobody listens any more.
    let (sender, written) = watch::channel(0);
    let (written, groups) = tokio::join!(write(&disks, sender), cut_often(scratch, &volumes, written));
    for disk in disks {
        disk.close().await?;
    }
    let (written, groups) = (written?, groups?);
    let mut newest = 0;
    for group in &groups {
        newest = check(scratch, group).await?.max(newest);
    }
    ensure!(newest > 0, "no record is in any generation: the writer never ran");
    Ok(Verdict::Passed(format!("{} cuts of {DISKS} disks under {written} writes", groups.len())))
}

fn pairs(scratch: &Scratch, volumes: &[Uuid]) -> Vec<CutPair> {
    volumes.iter().map(|volume| CutPair { volume: *volume, generation: scratch.new_id() }).collect()
}

async fn write(disks: &[Disk], written: watch::Sender<u64>) -> Result<u64> {
    let mut number = 0;
    loop {
        number += 1;
        let (disk, place) = place(number);
        let mut record = vec![0x5a; BLOCK_BYTES as usize];
        record[..8].copy_from_slice(&number.to_le_bytes());
        disks[disk].write_block(place, record).await?;
        if written.send(number).is_err() {
            return Ok(number);
        }
    }
}

/// The disk and the block of a record.
fn place(number: u64) -> (usize, u64) {
    ((number % DISKS as u64) as usize, number / DISKS as u64 % PLACES)
}

async fn cut_often(scratch: &Scratch, volumes: &[Uuid], mut written: watch::Receiver<u64>) -> Result<Vec<Vec<Uuid>>> {
    let mut groups = Vec::new();
    for cut in 0..scratch.scale.cuts {
        let due = *written.borrow() + PLACES;
        written.wait_for(|number| *number >= due).await.context("the writer ended before the cuts")?;
        let pairs = pairs(scratch, volumes);
        scratch.driver().snapshot(&pairs).await.with_context(|| format!("cut {cut}"))?;
        groups.push(pairs.iter().map(|pair| pair.generation).collect());
    }
    Ok(groups)
}

/// Fails where a record is missing that came before one that is there. Answers the newest record.
async fn check(scratch: &Scratch, group: &[Uuid]) -> Result<u64> {
    let mut found = Vec::new();
    for generation in group {
        let disk = scratch.disk(*generation, false).await?;
        let bytes = disk.read(0, (PLACES + 1) * BLOCK_BYTES).await?;
        disk.close().await?;
        let numbers = bytes.chunks_exact(BLOCK_BYTES as usize).map(|block| {
            let mut number = [0; 8];
            number.copy_from_slice(&block[..8]);
            u64::from_le_bytes(number)
        });
        found.push(numbers.collect::<Vec<u64>>());
    }
    let newest = found.iter().flatten().copied().max().unwrap_or(0);
    // Each place held its record before the newest one was sent.
    let oldest = newest.saturating_sub(DISKS as u64 * PLACES - 1).max(1);
    for number in oldest..=newest {
        let (disk, place) = place(number);
        let there = found[disk][place as usize];
        ensure!(there == number, "record {newest} is there, but in the place of {number} on disk {disk} is {there}");
    }
    Ok(newest)
}
