//! The guest of the demo and the end-to-end tests, made from Debian packages: kernel, busybox, the real guest agent.
//!
//! ```text
//! target/guest/vmlinuz     Debian's cloud kernel
//! target/guest/initrd.img  busybox, the virtio modules, an init that mounts the root partition of the first disk
//! target/guest/disk.raw    MBR, 1: FAT with boot loader, kernel, initrd (32 MiB); 2: ext4 root (64 MiB)
//! ```
//! The disk boots by itself through the BIOS, so a copy of it anywhere is a whole machine. No loop device, no mount and
//! no download of a ready image is involved.

pub mod database;
mod disk;
mod initrd;
mod packages;
mod rootfs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sh;

/// Printed on the serial console when the guest's init runs: proof that a kernel boots.
pub const BOOT_MARK: &str = "tanada-guest: init runs";

const ROOT_BYTES: u64 = 64 << 20;

/// Raise this when the recipe changes, so that an old guest is made anew.
const RECIPE: &str = "2";

/// The files of a guest.
#[derive(Debug, Clone)]
pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: PathBuf,
}

/// Where the guest's files are.
pub fn dir() -> PathBuf {
    sh::target_dir().join("guest")
}

/// Makes the guest, or finds it made already.
pub fn build() -> Result<Guest> {
    let dir = dir();
    let guest = Guest { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd.img"), disk: dir.join("disk.raw") };
    let witness = build_static("tanada-witness")?;
    let stamp = dir.join("recipe");
    let recipe = format!("{RECIPE} {}", fingerprint(&witness)?);
    if guest.disk.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == recipe) {
        return Ok(guest);
    }
    println!("making the guest from Debian packages");
    let scratch = dir.join("scratch");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("clearing {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    let unpacked = packages::unpack(&scratch)?;
    fs::copy(&unpacked.kernel, &guest.kernel).context("copying the kernel")?;
    initrd::make(&unpacked, &scratch.join("initrd"), &guest.initrd)?;
    let root = scratch.join("root");
    rootfs::make(&unpacked, &witness, &root)?;
    let parts = disk::Bootable { kernel: &guest.kernel, initrd: &guest.initrd, root: &root, root_bytes: ROOT_BYTES };
    disk::make(&parts, &guest.disk, &scratch)?;
    fs::remove_dir_all(&scratch).with_context(|| format!("clearing {}", scratch.display()))?;
    fs::write(&stamp, recipe).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(guest)
}

/// A program of the witness's package, static: a guest has no libraries to speak of.
fn build_static(program: &str) -> Result<PathBuf> {
    let target = "x86_64-unknown-linux-gnu";
    let config = format!("target.{target}.rustflags=[\"-Ctarget-feature=+crt-static\"]");
    let args = ["build", "--quiet", "--release", "--package", "tanada-witness", "--bin", program];
    sh::run("cargo", &[&args[..], &["--target", target, "--config", &config]].concat())?;
    Ok(sh::target_dir().join(target).join("release").join(program))
}

fn fingerprint(path: &Path) -> Result<u64> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}
