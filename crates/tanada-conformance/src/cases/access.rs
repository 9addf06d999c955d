//! Who may reach what.

use anyhow::{Result, ensure};
use tanada_driver::{AttachRequest, DriverErrorKind};
use uuid::Uuid;

use super::{must_refuse, passed};
use crate::report::Verdict;
use crate::scratch::Scratch;

pub async fn play(scratch: &Scratch) -> Result<Verdict> {
    let driver = scratch.driver();
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 64).await?;
    let generation = scratch.snapshot(volume).await?;
    let initiator = scratch.subject().config.initiator.clone();
    let request = |target, writable| AttachRequest {
        token: Uuid::new_v4().simple().to_string(),
        target,
        writable,
        initiator: initiator.clone(),
    };
    let kinds = [DriverErrorKind::InvalidArgument, DriverErrorKind::Unsupported];
    must_refuse("writing to a generation", driver.attach(&request(generation, true)).await, &kinds)?;
    must_refuse("an unknown disk", driver.attach(&request(Uuid::new_v4(), false)).await, &[DriverErrorKind::NotFound])?;

    let twice = request(volume, true);
    let first = driver.attach(&twice).await?;
    let second = driver.attach(&twice).await?;
    ensure!(first == second, "the same attachment is reached in two ways");
    ensure!(driver.attachments().await?.contains(&twice.token), "an attachment is not listed");
    ensure!(driver.detach(&twice.token).await?.changed, "an end of an attachment changed nothing");
    ensure!(!driver.detach(&twice.token).await?.changed, "the second end of an attachment changed something");
    ensure!(!driver.attachments().await?.contains(&twice.token), "an ended attachment is listed");
    let reached = match scratch.subject().bridges.open(&first, false).await {
        Ok(bridge) => bridge.connect().await.is_ok(),
        Err(_) => false,
    };
    ensure!(!reached, "an ended attachment still reaches the disk");

    let reader = scratch.disk(generation, false).await?;
    reader.expect(Some(1), 0, 64).await?;
    ensure!(reader.write_block(0, vec![7; 4096]).await.is_err(), "a generation was written to");
    reader.close().await?;
    scratch.expect(generation, Some(1), 0, 64).await?;
    passed()
}
