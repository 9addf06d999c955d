//! The control plane dies in the middle of a verb: the call is dropped, a driver is opened anew and the verb is repeated.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tanada_driver::{CloneRequest, CreateRequest, CutPair};
use tokio::time::timeout;

use crate::report::Verdict;
use crate::scratch::Scratch;

pub async fn play(scratch: &Scratch) -> Result<Verdict> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 64).await?;
    let begun = Instant::now();
    let generation = scratch.snapshot(volume).await?;
    let usual = begun.elapsed().max(Duration::from_micros(500));
    let mut expected = scratch.ids().await?;
    for number in 0..scratch.scale.interruptions {
        // Earlier and later moments of a verb that takes about so long.
        let after = usual * (number as u32 * 2 + 1) / scratch.scale.interruptions as u32;
        let ids =
            abandoned(scratch, after, volume, generation).await.with_context(|| format!("interruption {number}"))?;
        expected.extend(ids);
        let found = scratch.ids().await?;
        ensure!(found == expected, "found are {found:?}, not {expected:?}");
    }
    for id in &expected {
        scratch.expect(*id, None, 64, 16).await?;
    }
    Ok(Verdict::Passed(format!("{} verbs abandoned", scratch.scale.interruptions * 3)))
}

/// A creation, a snapshot and a clone, each abandoned after a while and repeated by a driver that knows nothing of it.
async fn abandoned(
    scratch: &Scratch,
    after: Duration,
    volume: uuid::Uuid,
    generation: uuid::Uuid,
) -> Result<Vec<uuid::Uuid>> {
    let create = CreateRequest::new(scratch.new_id(), scratch.scale.disk);
    drop(timeout(after, scratch.driver().create(&create)).await);
    scratch.reopen().await?.create(&create).await.context("a creation repeated")?;

    let pair = [CutPair { volume, generation: scratch.new_id() }];
    drop(timeout(after, scratch.driver().snapshot(&pair)).await);
    scratch.reopen().await?.snapshot(&pair).await.context("a snapshot repeated")?;
    scratch.expect(pair[0].generation, Some(1), 0, 64).await?;

    let clone = CloneRequest::new(generation, scratch.new_id());
    drop(timeout(after, scratch.driver().clone_volume(&clone)).await);
    scratch.reopen().await?.clone_volume(&clone).await.context("a clone repeated")?;
    scratch.expect(clone.volume, Some(1), 0, 64).await?;
    Ok(vec![create.volume, pair[0].generation, clone.volume])
}
