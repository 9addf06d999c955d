//! Many generations: taken under load, looked at, gone back to, deleted in no order at all.

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::snapshot::{Generation, take};
use super::storage::Kind;
use super::world::World;

/// Step 6: `count` generations while the guest writes, each judged; what each of them uses.
pub fn take_many(world: &mut World, origin: &Machine, count: usize) -> Result<Vec<Generation>> {
    let mut kept = Vec::new();
    for number in 1..=count {
        let name = format!("nightly-{number:03}");
        if number.is_multiple_of(10) {
            origin.guest(world, &format!("echo {name} > /data/generation && sync"))?;
        }
        let (template, pause_us) = take(world, origin, &name)?;
        let judgement = template.judge(world)?;
        kept.push(Generation { template, name, judgement, pause_us });
    }
    let records: Vec<u64> = kept.iter().map(|generation| generation.judgement.order.newest_on_b).collect();
    if records.windows(2).any(|pair| pair[0] > pair[1]) || records.first() == records.last() {
        bail!("the guest's records over the generations do not advance: {records:?}");
    }
    world.note(format!("{count} generations, each of one instant; records {} to {}", records[0], records[count - 1]));
    for generation in [&kept[0], &kept[count / 2], &kept[count - 1]] {
        let line = usage_line(world, generation)?;
        world.note(line);
    }
    Ok(kept)
}

/// What a generation uses, over its three disks.
fn usage_line(world: &World, generation: &Generation) -> Result<String> {
    let (mut exclusive, mut shared) = (0, 0);
    for device in ["0", "1", "2"] {
        let vdi = generation.template.disk(world, device)?;
        world.xe(&["vdi-update", &format!("uuid={vdi}")])?;
        for (key, sum) in [("tanada:exclusive", &mut exclusive), ("tanada:shared", &mut shared)] {
            let text = world.param_key("vdi", &vdi, "sm-config", key)?;
            *sum += text.parse::<u64>().with_context(|| format!("VDI {vdi}: {key} is '{text}'"))?;
        }
    }
    Ok(format!("{}: exclusive {} KiB, shared {} KiB", generation.name, exclusive >> 10, shared >> 10))
}

/// The write pauses of all generations taken under load.
pub fn report_pause(world: &mut World, kept: &[Generation]) -> Result<()> {
    let mut pauses: Vec<u64> = kept.iter().map(|generation| generation.pause_us).collect();
    pauses.sort_unstable();
    let (Some(least), Some(most)) = (pauses.first(), pauses.last()) else { bail!("no generation was taken") };
    let text = format!(
        "write pause of {} snapshots of 3 disks: min {least} us, median {} us, max {most} us",
        pauses.len(),
        pauses[pauses.len() / 2]
    );
    world.note(text);
    Ok(())
}

/// Step 8: the machine goes back to an early generation.
pub fn revert(world: &mut World, origin: &Machine, kept: &[Generation]) -> Result<()> {
    let target = &kept[kept.len() / 4];
    let before = origin.guest(world, "cat /data/generation")?;
    world.xe(&["snapshot-revert", &format!("snapshot-uuid={}", target.template.uuid)])?;
    world.moved_nothing("VM_SNAPSHOT_REVERTED", &origin.uuid)?;
    origin.start(world)?;
    let found = origin.guest(world, "cat /data/generation && cd /data && sha256sum -c known.sha256")?;
    origin.guest(world, "tanada-witness check /dev/vdc 0 8388608 7")?;
    let order = origin.guest(
        world,
        &format!(
            "tanada-witness verify-ordered /dev/vdb /dev/vdc {} {}",
            super::machine::DATA_BYTES,
            super::machine::RING_SLOTS
        ),
    )?;
    let expected = format!("a={} b={}", target.judgement.order.newest_on_a, target.judgement.order.newest_on_b);
    if !order.contains(&expected) {
        bail!("after the revert to {} the guest finds '{order}', '{expected}' expected", target.name);
    }
    world.note(format!("back from '{before}' to {}: '{}', {order}", target.name, found.replace('\n', "', '")));
    origin.stop_hard(world)
}

/// Step 9: generations go in scrambled order; those that remain read as when taken; space comes back.
///
/// On arrays nothing more may be used afterwards: EqualLogic's snapshots live in a reserve that their volume keeps as long as
/// one is left, and the ONTAP simulator only reckons what is shared.
pub fn delete_scrambled(world: &mut World, sr: &str, kind: Kind, mut kept: Vec<Generation>) -> Result<()> {
    world.xe(&["sr-update", &format!("uuid={sr}")])?;
    let before = world.bytes("sr", sr, "physical-utilisation")?;
    // A fixed multiplicative shuffle: no order that a walk could like, the same in every run.
    let total = kept.len();
    kept.sort_by_key(|generation| {
        generation
            .name
            .bytes()
            .fold(7u64, |hash, byte| hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(byte)))
    });
    let mut deleted = 0;
    while kept.len() > 3 {
        for _ in 0..10.min(kept.len() - 3) {
            let gone = kept.pop().context("a generation is left")?;
            world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={}", gone.template.uuid), "force=true"])?;
            deleted += 1;
        }
        for generation in &kept {
            let now = generation.template.judge(world)?;
            if now != generation.judgement {
                bail!(
                    "{} reads otherwise than when it was taken: {:?} then, {now:?} now",
                    generation.name,
                    generation.judgement
                );
            }
        }
    }
    for generation in kept.drain(..) {
        world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={}", generation.template.uuid), "force=true"])?;
        deleted += 1;
    }
    world.xe(&["sr-scan", &format!("uuid={sr}")])?;
    let after = super::eventually("space comes back", std::time::Duration::from_secs(60), || {
        world.xe(&["sr-update", &format!("uuid={sr}")])?;
        let after = world.bytes("sr", sr, "physical-utilisation")?;
        if after > before || (after == before && kind == Kind::Tanada) {
            bail!("used {after} bytes, {before} before");
        }
        Ok(after)
    })?;
    world.note(format!("{deleted} of {total} deleted; used {} MiB before, {} MiB after", before >> 20, after >> 20));
    Ok(())
}
