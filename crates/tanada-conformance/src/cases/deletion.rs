//! A disk, two generations and two clones are destroyed in every order; whatever remains is read after each step.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use crate::report::Verdict;
use crate::scratch::Scratch;

/// Contents by block range: (seed, first, count).
type Content = Vec<(u64, u64, u64)>;

const THINGS: usize = 4;

pub async fn play(scratch: &Scratch) -> Result<Verdict> {
    let orders = orders();
    // Spread over all of them where not all are tried.
    let step = (orders.len() / scratch.scale.orders.clamp(1, orders.len())).max(1);
    let chosen: Vec<_> = orders.iter().step_by(step).collect();
    for order in &chosen {
        one(scratch, order)
            .await
            .with_context(|| format!("in the order {order:?} of disk, generation, generation, clone"))?;
    }
    Ok(Verdict::Passed(format!("{} of {} orders", chosen.len(), orders.len())))
}

async fn one(scratch: &Scratch, order: &[usize; THINGS]) -> Result<()> {
    let volume = scratch.create(scratch.scale.disk).await?;
    scratch.write(volume, 1, 0, 96).await?;
    let older = scratch.snapshot(volume).await?;
    scratch.write(volume, 2, 32, 32).await?;
    let newer = scratch.snapshot(volume).await?;
    scratch.write(volume, 3, 64, 32).await?;
    let clone = scratch.clone_of(older).await?;
    scratch.write(clone, 4, 0, 32).await?;
    let things: [(Uuid, Content); THINGS] = [
        (volume, vec![(1, 0, 32), (2, 32, 32), (3, 64, 32)]),
        (older, vec![(1, 0, 96)]),
        (newer, vec![(1, 0, 32), (2, 32, 32), (1, 64, 32)]),
        (clone, vec![(4, 0, 32), (1, 32, 64)]),
    ];
    let mut left: BTreeMap<usize, &(Uuid, Content)> = things.iter().enumerate().collect();
    for number in order {
        let Some((id, _)) = left.remove(number) else { continue };
        ensure!(scratch.destroy(*id).await?, "destroying changed nothing");
        let ids = scratch.ids().await?;
        ensure!(!ids.contains(id), "{id} was destroyed and is still found");
        for (id, content) in left.values() {
            ensure!(ids.contains(id), "{id} is gone with another one");
            for (seed, first, count) in content {
                scratch.expect(*id, Some(*seed), *first, *count).await?;
            }
        }
    }
    ensure!(!scratch.destroy(volume).await?, "destroying what is gone changed something");
    Ok(())
}

/// All orders of four things.
fn orders() -> Vec<[usize; THINGS]> {
    let mut orders = Vec::new();
    for number in 0..THINGS.pow(THINGS as u32) {
        let order: [usize; THINGS] = std::array::from_fn(|place| number / THINGS.pow(place as u32) % THINGS);
        if (0..THINGS).all(|thing| order.contains(&thing)) {
            orders.push(order);
        }
    }
    orders
}

#[cfg(test)]
mod tests {
    #[test]
    fn four_things_have_24_orders() {
        let mut orders = super::orders();
        assert_eq!(orders.len(), 24);
        orders.dedup();
        assert_eq!(orders.len(), 24);
    }
}
