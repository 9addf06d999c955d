//! Verbs said twice, and many at a time.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use tanada_driver::{CloneRequest, CreateRequest, CutPair};

use super::passed;
use crate::report::Verdict;
use crate::scratch::Scratch;

pub async fn play(scratch: &Scratch) -> Result<Verdict> {
    let driver = scratch.driver();
    let size = scratch.scale.disk;
    let volume = scratch.new_id();
    let request = CreateRequest::new(volume, size);
    let (real, moved) = driver.create(&request).await?;
    ensure!(moved.changed, "the first creation changed nothing");
    let (again, moved) = driver.create(&request).await?;
    ensure!(!moved.changed && again == real, "the second creation changed something, or the size");
    scratch.write(volume, 1, 0, 64).await?;

    let pair = [CutPair { volume, generation: scratch.new_id() }];
    ensure!(driver.snapshot(&pair).await?.moved.changed, "the first snapshot changed nothing");
    scratch.write(volume, 2, 0, 64).await?;
    ensure!(!driver.snapshot(&pair).await?.moved.changed, "the second snapshot changed something");
    scratch.expect(pair[0].generation, Some(1), 0, 64).await?;

    let clone = CloneRequest::new(pair[0].generation, scratch.new_id());
    ensure!(driver.clone_volume(&clone).await?.changed, "the first clone changed nothing");
    scratch.write(clone.volume, 3, 0, 16).await?;
    ensure!(!driver.clone_volume(&clone).await?.changed, "the second clone changed something");
    scratch.expect(clone.volume, Some(3), 0, 16).await?;

    let (grown, _) = driver.resize(volume, real * 2).await?;
    let (again, moved) = driver.resize(volume, real * 2).await?;
    ensure!(!moved.changed && again == grown, "the second resize changed something");

    for target in [volume, pair[0].generation, clone.volume] {
        ensure!(scratch.destroy(target).await?, "a first destruction changed nothing");
        ensure!(!scratch.destroy(target).await?, "a second destruction changed something");
    }
    driver.put_metadata(b"one").await?;
    driver.put_metadata(b"two").await?;
    ensure!(driver.metadata().await?.as_deref() == Some(b"two"), "the text kept last is not the one that is read");
    passed()
}

pub async fn side_by_side(scratch: &Scratch) -> Result<Verdict> {
    let lives = (0..scratch.scale.side_by_side as u64).map(|seed| life(scratch, seed + 10));
    try_join_all(lives).await?;
    Ok(Verdict::Passed(format!("{} at a time", scratch.scale.side_by_side)))
}

/// Everything that happens to a disk, from its creation to its end.
async fn life(scratch: &Scratch, seed: u64) -> Result<()> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, seed, 0, 64).await?;
    let generation = scratch.snapshot(volume).await?;
    scratch.write(volume, seed + 100, 0, 32).await?;
    let clone = scratch.clone_of(generation).await?;
    scratch.destroy(volume).await?;
    scratch.expect(clone, Some(seed), 0, 64).await?;
    scratch.expect(generation, Some(seed), 0, 64).await?;
    scratch.destroy(generation).await?;
    scratch.expect(clone, Some(seed), 0, 64).await?;
    scratch.destroy(clone).await.map(drop)
}
