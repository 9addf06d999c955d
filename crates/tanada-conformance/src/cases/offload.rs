//! Who moves the bytes, and whether time depends on size.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tanada_driver::{CloneRequest, CutPair};
use tanada_units::{BLOCK_BYTES, MIB};

use crate::report::Verdict;
use crate::scratch::Scratch;

pub async fn bytes(scratch: &Scratch) -> Result<Verdict> {
    let capabilities = scratch.driver().capabilities();
    if !capabilities.offloaded {
        return Ok(Verdict::NotOffered("the host copies".into()));
    }
    let driver = scratch.driver();
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 16 * MIB / BLOCK_BYTES).await?;
    let generation = scratch.new_id();
    let cut = driver.snapshot(&[CutPair { volume, generation }]).await?.moved;
    let cloned = driver.clone_volume(&CloneRequest::new(generation, scratch.new_id())).await?;
    let mut all = vec![("snapshot", cut), ("clone", cloned)];
    if capabilities.revert_in_place {
        all.push(("revert", driver.revert(volume, generation).await?));
    }
    for (verb, moved) in &all {
        ensure!(moved.bytes_by_host == 0, "{} bytes of a {verb} passed the host", moved.bytes_by_host);
    }
    let told: Vec<String> = all.iter().map(|(verb, moved)| format!("{verb} {}", moved.bytes_by_storage)).collect();
    Ok(Verdict::Passed(format!("bytes moved by the storage: {}", told.join(", "))))
}

pub async fn time(scratch: &Scratch) -> Result<Verdict> {
    let small = measure(scratch, scratch.scale.disk).await?;
    let large = measure(scratch, scratch.scale.large).await?;
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(Verdict::Passed(format!(
        "{} MiB: {:.1} and {:.1} ms; {} MiB: {:.1} and {:.1} ms",
        scratch.scale.disk / MIB,
        millis(small.0),
        millis(small.1),
        scratch.scale.large / MIB,
        millis(large.0),
        millis(large.1)
    )))
}

/// Time of a snapshot and of a clone of a disk of so many bytes with a little in it.
async fn measure(scratch: &Scratch, size: u64) -> Result<(Duration, Duration)> {
    let volume = scratch.create(size).await?;
    scratch.write(volume, 1, 0, 1024).await?;
    let begun = Instant::now();
    let generation = scratch.snapshot(volume).await?;
    let snapshot = begun.elapsed();
    let begun = Instant::now();
    scratch.clone_of(generation).await?;
    Ok((snapshot, begun.elapsed()))
}
