//! New disks: sizes, thinness, limits, labels.

use anyhow::{Result, ensure};
use tanada_driver::{CloneRequest, CreateRequest, CutPair, DriverErrorKind, METADATA_BYTES_MAX};
use tanada_units::{BLOCK_BYTES, MIB};
use uuid::Uuid;

use super::{must_refuse, passed};
use crate::report::Verdict;
use crate::scratch::Scratch;

/// More than any storage here can promise.
const ABSURD_BYTES: u64 = 1 << 60;

pub async fn sizes(scratch: &Scratch) -> Result<Verdict> {
    let mut shown = Vec::new();
    for asked in [MIB, 10 * MIB + 512, scratch.scale.disk] {
        let id = scratch.new_id();
        let (real, moved) = scratch.driver().create(&CreateRequest::new(id, asked)).await?;
        ensure!(moved.changed, "a new disk of {asked} bytes changed nothing");
        ensure!(real >= asked, "{asked} bytes were asked for and {real} promised");
        ensure!(scratch.driver().stat(id).await?.size == real, "stat tells another size than create");
        let disk = scratch.disk(id, true).await?;
        ensure!(disk.size() == real, "{real} bytes were promised, the disk has {}", disk.size());
        disk.expect(None, 0, 1).await?;
        disk.expect(None, real / BLOCK_BYTES - 1, 1).await?;
        disk.close().await?;
        shown.push(format!("{asked} → {real}"));
    }
    Ok(Verdict::Passed(shown.join(", ")))
}

pub async fn thin(scratch: &Scratch) -> Result<Verdict> {
    if !scratch.driver().capabilities().thin {
        return Ok(Verdict::NotOffered("the storage reserves what a disk may need".into()));
    }
    let before = scratch.driver().space().await?;
    let large = scratch.create(scratch.scale.large).await?;
    let after = scratch.driver().space().await?;
    let taken = after.used.saturating_sub(before.used);
    // EqualLogic reserves a tenth at first, everybody else nearly nothing.
    ensure!(taken <= scratch.scale.large / 8, "a new disk of {} bytes took {taken}", scratch.scale.large);
    scratch.write(large, 1, 0, MIB / BLOCK_BYTES).await?;
    let mapped = scratch.driver().stat(large).await?.mapped;
    ensure!(mapped <= scratch.scale.large / 8, "1 MiB was written, {mapped} bytes are mapped");
    Ok(Verdict::Passed(format!("{} bytes took {taken}", scratch.scale.large)))
}

pub async fn limits(scratch: &Scratch) -> Result<Verdict> {
    use DriverErrorKind::{Exists, InvalidArgument, NoSpace, NotFound, Unsupported};
    let driver = scratch.driver();
    let nobody = Uuid::new_v4();
    must_refuse(
        "a disk of no bytes",
        driver.create(&CreateRequest::new(scratch.new_id(), 0)).await,
        &[InvalidArgument],
    )?;
    let absurd = driver.create(&CreateRequest::new(scratch.new_id(), ABSURD_BYTES)).await;
    must_refuse("a disk of an exbibyte", absurd, &[InvalidArgument, NoSpace, Unsupported])?;
    must_refuse("stat of an unknown disk", driver.stat(nobody).await, &[NotFound])?;
    must_refuse("resizing an unknown disk", driver.resize(nobody, MIB).await, &[NotFound])?;
    let pair = CutPair { volume: nobody, generation: scratch.new_id() };
    must_refuse("a snapshot of an unknown disk", driver.snapshot(&[pair]).await, &[NotFound])?;
    let over = CloneRequest::new(nobody, scratch.new_id());
    must_refuse("a clone of an unknown disk", driver.clone_volume(&over).await, &[NotFound])?;
    let volume = scratch.create(scratch.scale.disk).await?;
    must_refuse("going back to an unknown generation", driver.revert(volume, nobody).await, &[NotFound])?;
    let other = CreateRequest::new(volume, scratch.scale.disk * 2);
    must_refuse("the same name with another size", driver.create(&other).await, &[Exists])?;
    let pairs =
        [CutPair { volume, generation: scratch.new_id() }, CutPair { volume: nobody, generation: scratch.new_id() }];
    must_refuse("a group with an unknown disk", driver.snapshot(&pairs).await, &[NotFound])?;
    let endless = vec![b'x'; METADATA_BYTES_MAX as usize + 1];
    must_refuse("too long a text", driver.put_metadata(&endless).await, &[InvalidArgument])?;
    let left = scratch.ids().await?;
    ensure!(left.len() == 1 && left.contains(&volume), "refused verbs left something: {left:?}");
    passed()
}

pub async fn names(scratch: &Scratch) -> Result<Verdict> {
    let labels = [
        "plain",
        "two words",
        "quote\" and 'quote'",
        "$(reboot) `reboot` ; volume delete x",
        "line\r\nbreak\nvolume delete x",
        "tab\tnul\0escape\u{1b}[2J",
        "Größe 東京 \u{1f4be}",
        "% Error - does not exist.",
        "</Name><x>&amp;",
        "group1> ",
    ];
    let long = "long ".repeat(100);
    let mut ids = Vec::new();
    for label in labels.into_iter().chain([long.as_str()]) {
        let id = scratch.new_id();
        let request = CreateRequest { name_label: label.to_owned(), ..CreateRequest::new(id, MIB) };
        let created = scratch.driver().create(&request).await;
        created.map_err(|error| anyhow::anyhow!("a disk labelled {label:?}: {error}"))?;
        ids.push(id);
    }
    let found = scratch.ids().await?;
    ensure!(ids.iter().all(|id| found.contains(id)), "not every label's disk is found again");
    ensure!(found.len() == ids.len(), "{} disks were made, {} are found", ids.len(), found.len());
    passed()
}
