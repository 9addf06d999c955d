//! What disks and generations hold after each verb.

use anyhow::{Result, ensure};
use tanada_driver::DriverErrorKind;
use tanada_units::BLOCK_BYTES;

use super::{must_refuse, passed};
use crate::report::Verdict;
use crate::scratch::Scratch;

pub async fn snapshot(scratch: &Scratch) -> Result<Verdict> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 512).await?;
    let first = scratch.snapshot(volume).await?;
    scratch.write(volume, 2, 100, 100).await?;
    let second = scratch.snapshot(volume).await?;
    scratch.write(volume, 3, 150, 400).await?;
    scratch.expect(first, Some(1), 0, 512).await?;
    scratch.expect(first, None, 512, 100).await?;
    scratch.expect(second, Some(1), 0, 100).await?;
    scratch.expect(second, Some(2), 100, 100).await?;
    scratch.expect(second, Some(1), 200, 312).await?;
    scratch.expect(volume, Some(2), 100, 50).await?;
    scratch.expect(volume, Some(3), 150, 400).await?;
    let facts = scratch.driver().stat(first).await?;
    ensure!(facts.is_generation, "a generation is not told apart from a disk");
    passed()
}

pub async fn clone(scratch: &Scratch) -> Result<Verdict> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 256).await?;
    let generation = scratch.snapshot(volume).await?;
    scratch.write(volume, 2, 0, 64).await?;
    let of_generation = scratch.clone_of(generation).await?;
    let of_volume = scratch.clone_of(volume).await?;
    let size = scratch.driver().stat(volume).await?.size;
    ensure!(scratch.driver().stat(of_generation).await?.size == size, "a clone has another size than its source");
    scratch.expect(of_generation, Some(1), 0, 256).await?;
    scratch.expect(of_volume, Some(2), 0, 64).await?;
    scratch.expect(of_volume, Some(1), 64, 192).await?;
    scratch.write(of_generation, 3, 32, 64).await?;
    scratch.write(of_volume, 4, 200, 64).await?;
    scratch.expect(generation, Some(1), 0, 256).await?;
    scratch.expect(volume, Some(2), 0, 64).await?;
    scratch.expect(volume, Some(1), 64, 192).await?;
    scratch.expect(of_generation, Some(3), 32, 64).await?;
    scratch.expect(of_volume, Some(2), 0, 64).await?;
    passed()
}

pub async fn revert(scratch: &Scratch) -> Result<Verdict> {
    if !scratch.driver().capabilities().revert_in_place {
        return Ok(Verdict::NotOffered("a clone of the generation takes the disk's place instead".into()));
    }
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 256).await?;
    let older = scratch.snapshot(volume).await?;
    scratch.write(volume, 2, 0, 256).await?;
    let newer = scratch.snapshot(volume).await?;
    scratch.write(volume, 3, 128, 256).await?;
    let moved = scratch.driver().revert(volume, older).await?;
    ensure!(moved.changed, "a revert changed nothing");
    scratch.expect(volume, Some(1), 0, 256).await?;
    scratch.expect(volume, None, 256, 128).await?;
    scratch.expect(older, Some(1), 0, 256).await?;
    scratch.expect(newer, Some(2), 0, 256).await?;
    scratch.driver().revert(volume, newer).await?;
    scratch.expect(volume, Some(2), 0, 256).await?;
    scratch.write(volume, 4, 0, 16).await?;
    scratch.expect(newer, Some(2), 0, 16).await?;
    passed()
}

pub async fn resize(scratch: &Scratch) -> Result<Verdict> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 64).await?;
    let old = scratch.driver().stat(volume).await?.size;
    scratch.write(volume, 2, old / BLOCK_BYTES - 16, 16).await?;
    let generation = scratch.snapshot(volume).await?;
    let (real, moved) = scratch.driver().resize(volume, old * 2).await?;
    ensure!(moved.changed && real >= old * 2, "{} bytes were asked for, {real} are there", old * 2);
    let disk = scratch.disk(volume, true).await?;
    ensure!(disk.size() == real, "{real} bytes were promised, the disk has {}", disk.size());
    disk.expect(Some(1), 0, 64).await?;
    disk.expect(Some(2), old / BLOCK_BYTES - 16, 16).await?;
    disk.expect(None, old / BLOCK_BYTES, 64).await?;
    disk.write(3, real / BLOCK_BYTES - 8, 8).await?;
    disk.close().await?;
    let kept = scratch.disk(generation, false).await?;
    ensure!(kept.size() == old, "a generation grew with its disk, from {old} to {} bytes", kept.size());
    kept.expect(Some(2), old / BLOCK_BYTES - 16, 16).await?;
    kept.close().await?;
    let left = scratch.ids().await?;
    ensure!(left.len() == 2, "growing left something behind: {left:?}");
    passed()
}

pub async fn difference(scratch: &Scratch) -> Result<Verdict> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 256).await?;
    let first = scratch.snapshot(volume).await?;
    scratch.write(volume, 2, 100, 20).await?;
    scratch.write(volume, 2, 1000, 5).await?;
    let second = scratch.snapshot(volume).await?;
    let found = scratch.driver().difference(first, second).await;
    if !scratch.driver().capabilities().exact_difference {
        must_refuse("a difference", found, &[DriverErrorKind::Unsupported])?;
        return Ok(Verdict::NotOffered("the host compares, or copies what is mapped".into()));
    }
    let changed: Vec<(u64, u64)> =
        found?.iter().map(|extent| (extent.offset / BLOCK_BYTES, extent.length / BLOCK_BYTES)).collect();
    ensure!(changed == [(100, 20), (1000, 5)], "blocks 100+20 and 1000+5 changed, told are {changed:?}");
    passed()
}
