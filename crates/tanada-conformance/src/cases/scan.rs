//! Another host, or the same one after its database was lost, attaches the storage.

use anyhow::{Context, Result, ensure};

use crate::report::Verdict;
use crate::scratch::Scratch;

pub async fn play(scratch: &Scratch) -> Result<Verdict> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 64).await?;
    let generation = scratch.snapshot(volume).await?;
    let clone = scratch.clone_of(generation).await?;
    let text = "machines and their disks, größer als ASCII".repeat(1000);
    scratch.driver().put_metadata(text.as_bytes()).await.context("keeping a text")?;
    let before = scratch.driver().scan().await?;
    let driver = scratch.reopen().await?;
    let after = driver.scan().await?;
    let entry = |id| after.iter().find(|entry| entry.id == id).with_context(|| format!("{id} is not found again"));
    ensure!(after.len() == before.len(), "{} things were there, {} are found again", before.len(), after.len());
    ensure!(!entry(volume)?.is_generation && !entry(clone)?.is_generation, "a disk is found as a generation");
    ensure!(entry(generation)?.is_generation, "a generation is found as a disk");
    ensure!(
        entry(generation)?.parent == before.iter().find(|e| e.id == generation).and_then(|e| e.parent),
        "the parent is lost"
    );
    let size = driver.stat(volume).await?.size;
    ensure!([volume, generation, clone].iter().all(|id| entry(*id).is_ok_and(|e| e.size == size)), "a size is lost");
    let kept = driver.metadata().await.context("reading the text kept")?;
    ensure!(kept.as_deref() == Some(text.as_bytes()), "the text that was kept is not found again");
    let found = scratch.subject().backend.probe(&scratch.subject().config.device_config).await.context("a probe")?;
    ensure!(found.iter().any(|found| found.sr == scratch.subject().config.sr), "a probe does not find the SR");
    scratch.expect(clone, Some(1), 0, 64).await?;
    Ok(Verdict::Passed(String::new()))
}
