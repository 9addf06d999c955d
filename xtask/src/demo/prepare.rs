//! The repository, the machine and its data; and, at the end, that nothing is left over.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::machine::{DATA_BYTES, DISK_BYTES, Machine, RING_SLOTS};
use super::storage::{self, Kind};
use super::world::World;
use crate::guest::Guest;
use crate::sh;

/// Size of the store's file: sparse, so the medium holds what is used.
const STORE_BYTES: u64 = 8 << 30;

/// Where the ordered writer reports.
pub const WRITER_STATUS: &str = "/run/writer";

/// Step 1: a repository, in a file or on an array.
pub fn storage_repository(world: &mut World, kind: Kind) -> Result<String> {
    let location = world.dir.join("fast.store");
    let sr = match kind {
        Kind::Tanada => world.xe(&[
            "sr-create",
            "type=tanada",
            "name-label=fast",
            &format!("device-config:location={}", location.display()),
            &format!("device-config:size={STORE_BYTES}"),
        ])?,
        Kind::Netapp | Kind::Equal => storage::repository(world, kind)?,
    };
    let listed = world.xe(&["sr-list", "--minimal"])?;
    if !listed.contains(&sr) {
        bail!("sr-list does not show {sr}: {listed}");
    }
    let [physical, used, virtual_size] =
        ["physical-size", "physical-utilisation", "virtual-allocation"].map(|name| world.bytes("sr", &sr, name));
    let (physical, used, virtual_size) = (physical?, used?, virtual_size?);
    if physical == 0 || used >= physical || virtual_size != 0 {
        bail!("a new repository shows physical {physical}, used {used}, virtual {virtual_size}");
    }
    world.note(format!("physical {} MiB, used {} MiB, virtual 0", physical >> 20, used >> 20));
    Ok(sr)
}

/// Step 2: the guest's disk in a VDI, a machine around it with two data disks, running.
pub fn virtual_machine(world: &mut World, sr: &str, guest: &Guest) -> Result<Machine> {
    let root_bytes = guest.disk.metadata().context("the guest's disk image")?.len();
    let data_image = data_image(world)?;
    let uuid =
        world.xe(&["vm-install", "template=Other install media", "new-name-label=db1", &format!("sr-uuid={sr}")])?;
    let machine = Machine { uuid };
    set_memory(world, &machine, 256)?;
    add_disk(world, sr, &machine, "0", root_bytes, Some(&guest.disk))?;
    add_disk(world, sr, &machine, "1", DISK_BYTES, Some(Path::new(&data_image)))?;
    add_disk(world, sr, &machine, "2", DISK_BYTES, None)?;
    let network = world.xe(&["network-list", "--minimal"])?;
    let network = network.split(',').next().filter(|uuid| !uuid.is_empty()).context("there is no network")?;
    world.xe(&[
        "vif-create",
        &format!("vm-uuid={}", machine.uuid),
        &format!("network-uuid={network}"),
        "device=0",
        "mac=random",
    ])?;
    machine.start(world)?;
    let system = machine.guest(world, "uname -srm")?;
    world.note(format!("guest answers: {system}"));
    Ok(machine)
}

/// All limits to the same.
pub fn set_memory(world: &World, machine: &Machine, mib: u32) -> Result<()> {
    let mut args = vec!["vm-memory-limits-set".to_owned(), format!("uuid={}", machine.uuid)];
    args.extend(["static-min", "dynamic-min", "dynamic-max", "static-max"].map(|limit| format!("{limit}={mib}MiB")));
    world.xe(&args).map(drop)
}

/// A disk of a machine that does not run, from an image or empty; it boots from the first. Returns the VDI.
pub fn add_disk(
    world: &World,
    sr: &str,
    machine: &Machine,
    device: &str,
    bytes: u64,
    image: Option<&Path>,
) -> Result<String> {
    let vdi = world.xe(&[
        "vdi-create",
        &format!("sr-uuid={sr}"),
        &format!("name-label=disk-{device}"),
        &format!("virtual-size={bytes}"),
        "type=user",
        // Lets an array put the disks of one machine together.
        &format!("sm-config:vmhint={}", machine.uuid),
    ])?;
    if let Some(image) = image {
        let filename = format!("filename={}", image.display());
        world.xe(&["vdi-import", &format!("uuid={vdi}"), &filename, "format=raw"])?;
    }
    world.xe(&[
        "vbd-create",
        &format!("vm-uuid={}", machine.uuid),
        &format!("vdi-uuid={vdi}"),
        &format!("device={device}"),
        &format!("bootable={}", device == "0"),
        "mode=RW",
        "type=Disk",
    ])?;
    Ok(vdi)
}

/// An empty file system in front of the space for the ring.
fn data_image(world: &World) -> Result<String> {
    let path = world.dir.join("data.raw").to_string_lossy().into_owned();
    File::create(&path).and_then(|file| file.set_len(DISK_BYTES)).with_context(|| format!("creating {path}"))?;
    let blocks = (DATA_BYTES / 4096).to_string();
    sh::output(
        "mke2fs",
        &["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "data", "-E", "lazy_itable_init=0", &path, &blocks],
    )?;
    Ok(path)
}

/// Step 3: files with checksums, a pattern on the raw disk, and a writer that goes on by itself.
pub fn known_data(world: &mut World, machine: &Machine) -> Result<()> {
    machine.guest(
        world,
        "grep -q \" /data \" /proc/mounts && dd if=/dev/urandom of=/data/known bs=64k count=64 2>/dev/null && sync",
    )?;
    machine.guest(world, "cd /data && sha256sum known > known.sha256 && echo first > generation && sync")?;
    machine.guest(world, "tanada-witness fill /dev/vdc 0 8388608 7")?;
    start_writer(world, machine)
}

/// Starts the ordered writer in the guest's background and waits for its first report.
pub fn start_writer(world: &mut World, machine: &Machine) -> Result<()> {
    let command = format!(
        "rm -f {WRITER_STATUS}; tanada-witness write-ordered /dev/vdb /dev/vdc {DATA_BYTES} {RING_SLOTS} {WRITER_STATUS} >/run/writer.log 2>&1 </dev/null & \
         while [ ! -s {WRITER_STATUS} ]; do if [ -s /run/writer.log ]; then cat /run/writer.log >&2; exit 1; fi; sleep 0.1; done; cat {WRITER_STATUS}"
    );
    let status = machine.guest(world, &command)?;
    world.note(format!("writer reports: {status}"));
    Ok(())
}

/// The number of the record that the writer reported last.
pub fn writer_progress(world: &World, machine: &Machine) -> Result<u64> {
    let status = machine.guest(world, &format!("cat {WRITER_STATUS}"))?;
    let number = status.split_whitespace().next().and_then(|word| word.parse().ok());
    number.with_context(|| format!("the writer's report is '{status}'"))
}

/// No task pending, and the embedded store is sound. Unplugs its SR; returns where it is.
pub fn sound(world: &mut World, sr: &str) -> Result<PathBuf> {
    let pending = world.xe(&["task-list", "status=pending", "--minimal"])?;
    if !pending.is_empty() {
        bail!("tasks are still pending: {pending}");
    }
    let pbd = world.xe(&["pbd-list", &format!("sr-uuid={sr}"), "--minimal"])?;
    world.xe(&["pbd-unplug", &format!("uuid={pbd}")])?;
    let store = world.dir.join("fast.store");
    let report = world.store_tool(&["check", "--data", &store.to_string_lossy()])?;
    world.note(report.lines().last().unwrap_or("clean").to_string());
    Ok(store)
}

/// Last step: no task pending, the database and the store agree, the store is sound.
pub fn nothing_left(world: &mut World, sr: &str, machine: &Machine) -> Result<()> {
    if world.param("vm", &machine.uuid, "power-state")? != "halted" {
        machine.stop_hard(world)?;
    }
    let store = sound(world, sr)?;
    match Command::new("du").arg("-m").arg(&store).output() {
        Ok(output) => world.note(format!(
            "the store's file holds {} MiB",
            String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or("?")
        )),
        Err(error) => bail!("du: {error}"),
    }
    Ok(())
}
