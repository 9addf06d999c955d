//! Machines from a snapshot, and a snapshot's disk in another machine.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use super::machine::{DATA_BYTES, Machine, RING_SLOTS};
use super::snapshot::Generation;
use super::world::World;

/// Step 7: three machines of one template; each finds the data of its generation and is itself.
pub fn three(world: &mut World, origin: &Machine, first: &Generation) -> Result<Vec<Machine>> {
    let mut instances = Vec::new();
    let mut identities = BTreeSet::from([identity(world, origin)?]);
    for number in 1..=3 {
        let start = std::time::Instant::now();
        let uuid = world.xe(&[
            "vm-install",
            &format!("template={}", first.template.uuid),
            &format!("new-name-label=db1-copy-{number}"),
        ])?;
        let cloned = start.elapsed();
        world.moved_nothing("VM_CLONED", &first.template.uuid)?;
        let instance = Machine { uuid };
        instance.start(world)?;
        let booted = start.elapsed();
        instance.guest(world, "cd /data && sha256sum -c known.sha256 && grep -qx first generation")?;
        instance.guest(world, "tanada-witness check /dev/vdc 0 8388608 7")?;
        let order = instance
            .guest(world, &format!("tanada-witness verify-ordered /dev/vdb /dev/vdc {DATA_BYTES} {RING_SLOTS}"))?;
        let expected = format!("a={} b={}", first.judgement.order.newest_on_a, first.judgement.order.newest_on_b);
        if !order.contains(&expected) {
            bail!("instance {number} finds '{order}', '{expected}' expected");
        }
        identities.insert(identity(world, &instance)?);
        world.note(format!(
            "instance {number}: clone {} ms, guest answers after {} ms",
            cloned.as_millis(),
            booted.as_millis()
        ));
        instances.push(instance);
    }
    if identities.len() != 4 {
        bail!("the four machines are not four: {identities:?}");
    }
    Ok(instances)
}

/// What the guest sees as its own: MAC and SMBIOS id; the id must be the machine's uuid.
fn identity(world: &World, machine: &Machine) -> Result<(String, String)> {
    let smbios = machine.guest(world, "cat /sys/class/dmi/id/product_uuid")?.to_lowercase();
    if smbios != machine.uuid {
        bail!("the guest of {} sees the SMBIOS id {smbios}", machine.uuid);
    }
    let mac = machine.guest(world, "cat /sys/class/net/eth0/address")?;
    Ok((smbios, mac))
}

/// Step 11: a disk of the snapshot, read-only, plugged into a running machine; the guest copies data out of it.
pub fn backup_by_mount(world: &mut World, instances: &[Machine], first: &Generation) -> Result<()> {
    let server = instances.first().context("an instance to be the backup server")?;
    let vdi = first.template.disk(world, "1")?;
    let device = format!("vm-uuid={}", server.uuid);
    let vbd =
        world.xe(&["vbd-create", &device, &format!("vdi-uuid={vdi}"), "device=autodetect", "mode=RO", "type=Disk"])?;
    world.xe(&["vbd-plug", &format!("uuid={vbd}")])?;
    server
        .guest(world, "for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vdd ] && break; sleep 0.5; done; [ -b /dev/vdd ]")?;
    server.guest(world, "mkdir -p /mnt/backup && mount -t ext4 -o ro,noload /dev/vdd /mnt/backup")?;
    let copied =
        server.guest(world, "cp /mnt/backup/known /tmp/known && cd /tmp && sha256sum -c /mnt/backup/known.sha256")?;
    server.guest(world, "umount /mnt/backup && ! dd if=/dev/zero of=/dev/vdd bs=4k count=1 conv=fsync 2>/dev/null")?;
    world.xe(&["vbd-unplug", &format!("uuid={vbd}")])?;
    server.guest(world, "[ ! -b /dev/vdd ]")?;
    world.xe(&["vbd-destroy", &format!("uuid={vbd}")])?;
    world.note(format!("copied out: {copied}; writing to it was refused"));
    Ok(())
}

/// Instances go, with their disks.
pub fn remove_all(world: &mut World, instances: &[Machine]) -> Result<()> {
    for instance in instances {
        world.xe(&["vm-uninstall", &format!("uuid={}", instance.uuid), "force=true"])?;
    }
    let left = world.xe(&["vm-list", "is-control-domain=false", "--minimal"])?;
    for instance in instances {
        if left.contains(&instance.uuid) {
            bail!("{} is still there", instance.uuid);
        }
    }
    Ok(())
}
