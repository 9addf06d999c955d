//! One snapshot of the running machine, judged, and what a snapshot is.

use anyhow::{Context, Result, bail};

use super::machine::{Judgement, Machine};
use super::world::World;

/// Where the name and content of a generation are kept.
#[derive(Debug, Clone)]
pub struct Generation {
    pub template: Machine,
    pub name: String,
    pub judgement: Judgement,
    /// Upper bound of the write pause that the guest could see, microseconds.
    pub pause_us: u64,
}

/// Takes a snapshot while the guest writes.
pub fn take(world: &World, origin: &Machine, name: &str) -> Result<(Machine, u64)> {
    let uuid = world.xe(&["vm-snapshot", &format!("uuid={}", origin.uuid), &format!("new-name-label={name}")])?;
    let by_host = world.param_key("snapshot", &uuid, "snapshot-info", "bytes_moved_by_host")?;
    if by_host != "0" {
        bail!("the host moved {by_host} bytes for the snapshot {uuid}");
    }
    let pause = world.param_key("snapshot", &uuid, "snapshot-info", "slowest_write_us")?;
    let pause_us =
        pause.parse().with_context(|| format!("slowest_write_us of {uuid} is '{pause}', a number expected"))?;
    Ok((Machine { uuid }, pause_us))
}

/// Step 4: a snapshot under load, whose two data disks are of one instant.
pub fn take_and_judge(world: &mut World, origin: &Machine) -> Result<Generation> {
    let name = "first".to_string();
    let (template, pause_us) = take(world, origin, &name)?;
    let judgement = template.judge(world)?;
    if judgement.order.newest_on_a == 0 {
        bail!("the writer had written nothing when the snapshot was taken");
    }
    let info = world.param("snapshot", &template.uuid, "snapshot-info")?;
    world.note(format!(
        "one instant: record {} on A, {} on B; {info}",
        judgement.order.newest_on_a, judgement.order.newest_on_b
    ));
    Ok(Generation { template, name, judgement, pause_us })
}

/// Step 5: it is a template and a snapshot, is no VM, cannot be started, and knows its machine.
pub fn is_a_template(world: &mut World, origin: &Machine, first: &Generation) -> Result<()> {
    let uuid = &first.template.uuid;
    for (class, filter) in [("snapshot", "is-a-snapshot=true"), ("template", "is-a-snapshot=true")] {
        let listed = world.xe(&[&format!("{class}-list"), filter, "--minimal"])?;
        if !listed.contains(uuid.as_str()) {
            bail!("{class}-list {filter} does not show {uuid}: {listed}");
        }
    }
    if world.xe(&["vm-list", "--minimal"])?.contains(uuid.as_str()) {
        bail!("vm-list shows the snapshot {uuid}");
    }
    for (name, expected) in [
        ("is-a-template", "true"),
        ("is-a-snapshot", "true"),
        ("snapshot-of", origin.uuid.as_str()),
        ("power-state", "halted"),
    ] {
        let value = world.param("snapshot", uuid, name)?;
        if value != expected {
            bail!("snapshot {uuid}: {name} is '{value}', '{expected}' expected");
        }
    }
    for name in ["memory-static-max", "VCPUs-max"] {
        let (kept, origins) = (world.param("snapshot", uuid, name)?, world.param("vm", &origin.uuid, name)?);
        if kept != origins {
            bail!("the snapshot's {name} is {kept}, the machine's {origins}");
        }
    }
    let refusal = world.xe_fails(&["vm-start", &format!("uuid={uuid}")])?;
    world.note(format!("vm-start on it: {}", refusal.trim().replace('\n', "; ")));
    Ok(())
}

/// A snapshot that insists on a quiesced guest, and a guest that writes again afterwards.
pub fn quiesced(world: &mut World, origin: &Machine) -> Result<()> {
    let uuid = world.xe(&["vm-snapshot-with-quiesce", &format!("uuid={}", origin.uuid), "new-name-label=quiesced"])?;
    let kind = world.param_key("snapshot", &uuid, "snapshot-info", "disk-snapshot-type")?;
    if kind != "quiesced" {
        bail!("vm-snapshot-with-quiesce made a snapshot of type {kind}");
    }
    for (key, expected) in [("consistency", "file system"), ("method", "fsfreeze"), ("freeze-held", "yes")] {
        let found = world.param_key("snapshot", &uuid, "snapshot-info", key)?;
        if found != expected {
            bail!("the quiesced snapshot says {key} '{found}', '{expected}' expected");
        }
    }
    let frozen = world.param_key("snapshot", &uuid, "snapshot-info", "frozen_us")?;
    origin.guest(world, "echo thawed > /data/thawed && sync && rm /data/thawed")?;
    Machine { uuid: uuid.clone() }.judge(world)?;
    world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={uuid}"), "force=true"])?;
    world.note(format!("file systems frozen for {frozen} us; the guest writes again"));
    Ok(())
}
