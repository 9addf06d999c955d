//! Machines from a snapshot, and a snapshot's disk in another machine.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::eventually;
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

/// Step 11: the snapshot at a running machine, read-only; its guest copies data out of it. Then as clones that it may write
/// to; then nothing is left.
pub fn backup_by_mount(world: &mut World, instances: &[Machine], first: &Generation) -> Result<()> {
    let server = instances.first().context("an instance to be the backup server")?;
    let before = disks_and_devices(world)?;
    let known = "sha256sum -c /mnt/backup/known.sha256";
    let place = attach(world, server, first, "ro")?;
    server.guest(world, &format!("mkdir -p /mnt/backup && mount -t ext4 -o ro,noload {place} /mnt/backup"))?;
    let copied = server.guest(world, &format!("cp /mnt/backup/known /tmp/known && cd /tmp && {known}"))?;
    server.guest(
        world,
        &format!("umount /mnt/backup && ! dd if=/dev/zero of={place} bs=4k count=1 conv=fsync 2>/dev/null"),
    )?;
    detach(world, server, first, &place)?;
    world.note(format!("read-only: copied out: {copied}; writing to it was refused"));

    let place = attach(world, server, first, "clone")?;
    // The log is replayed, which writes.
    server.guest(world, &format!("mount -t ext4 {place} /mnt/backup && touch /mnt/backup/scribble"))?;
    let found = server.guest(world, &format!("cd /mnt/backup && {known}; cd / && umount /mnt/backup"))?;
    detach(world, server, first, &place)?;
    let left = disks_and_devices(world)?;
    if left != before {
        bail!("after the snapshot was detached there are {left:?}, before it was attached {before:?}");
    }
    world.note(format!("as clones: {found}; nothing left"));
    Ok(())
}

/// Attaches the snapshot; answers where the guest finds its second disk, once it is there.
fn attach(world: &World, server: &Machine, first: &Generation, mode: &str) -> Result<String> {
    let (snapshot, vm) = (format!("snapshot-uuid={}", first.template.uuid), format!("vm-uuid={}", server.uuid));
    let told = world.xe(&["snapshot-attach", &snapshot, &vm, &format!("mode={mode}")])?;
    let line = told.lines().find(|line| line.trim_start().starts_with("disk 1:"));
    let serial = line.and_then(|line| line.rsplit_once("virtio-")).map(|(_, serial)| serial.to_owned());
    let serial = serial.with_context(|| format!("snapshot-attach named no disk 1: {told}"))?;
    // The test guest has no udev to make the name that is told.
    let find = format!("for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = {serial} ] && basename $d; done; true");
    let seconds = Duration::from_secs(60);
    let name = eventually("the guest sees the disk", seconds, || match server.guest(world, &find)?.trim() {
        "" => bail!("no disk has the serial number {serial}"),
        name => Ok(name.to_owned()),
    })?;
    Ok(format!("/dev/{name}"))
}

fn detach(world: &World, server: &Machine, first: &Generation, place: &str) -> Result<()> {
    world.xe(&["snapshot-detach", &format!("snapshot-uuid={}", first.template.uuid), "timeout=60"])?;
    server.guest(world, &format!("[ ! -b {place} ]")).map(drop)
}

fn disks_and_devices(world: &World) -> Result<Vec<String>> {
    let mut uuids = Vec::new();
    for class in ["vdi-list", "vbd-list"] {
        uuids.extend(world.xe(&[class, "--minimal"])?.split(',').map(str::to_owned));
    }
    uuids.sort_unstable();
    Ok(uuids)
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
