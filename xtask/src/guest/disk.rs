//! The bootable disk image, put together without mounting anything.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Guest;
use crate::sh;

const MIB: u64 = 1 << 20;
const BOOT_AT: u64 = MIB;
const BOOT_BYTES: u64 = 31 * MIB;
const ROOT_AT: u64 = 32 * MIB;
const ROOT_BYTES: u64 = 64 * MIB;
const DISK_BYTES: u64 = ROOT_AT + ROOT_BYTES;

const SYSLINUX_CFG: &str = "\
default linux
prompt 0
timeout 0
label linux
  kernel vmlinuz
  append initrd=initrd.img console=ttyS0 quiet panic=5
";

/// Writes `guest.disk` from its kernel and initrd and the root tree.
pub fn make(guest: &Guest, root: &Path, scratch: &Path) -> Result<()> {
    let image = scratch.join("disk.raw");
    let disk = File::create(&image).context("creating the disk image")?;
    disk.set_len(DISK_BYTES)?;
    partition(&image)?;
    let code = fs::read("/usr/lib/syslinux/mbr/mbr.bin").context("reading the boot code")?;
    OpenOptions::new().write(true).open(&image)?.write_all_at(&code[..code.len().min(440)], 0)?;
    boot_partition(guest, &image, scratch)?;
    root_partition(&image, root, scratch)?;
    fs::rename(&image, &guest.disk).context("putting the disk image in place")
}

fn partition(image: &Path) -> Result<()> {
    let table = format!(
        "label: dos\nstart={}, size={}, type=e, bootable\nstart={}, size={}, type=83\n",
        BOOT_AT / 512,
        BOOT_BYTES / 512,
        ROOT_AT / 512,
        ROOT_BYTES / 512
    );
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting sfdisk")?;
    sfdisk.stdin.take().context("sfdisk's input")?.write_all(table.as_bytes())?;
    if !sfdisk.wait()?.success() {
        bail!("sfdisk refused the partition table:\n{table}");
    }
    Ok(())
}

fn boot_partition(guest: &Guest, image: &Path, scratch: &Path) -> Result<()> {
    let config = scratch.join("syslinux.cfg");
    fs::write(&config, SYSLINUX_CFG)?;
    let kib = (BOOT_BYTES / 1024).to_string();
    let image_text = image.to_string_lossy().into_owned();
    let sector = (BOOT_AT / 512).to_string();
    sh::output("mkfs.fat", &["-F", "16", "-n", "BOOT", "-h", &sector, "--offset", &sector, &image_text, &kib])?;
    let at = format!("{image_text}@@{BOOT_AT}");
    for (file, name) in [(&guest.kernel, "vmlinuz"), (&guest.initrd, "initrd.img"), (&config, "syslinux.cfg")] {
        sh::output("mcopy", &["-i", &at, &file.to_string_lossy(), &format!("::{name}")])?;
    }
    sh::output("syslinux", &["--install", "--offset", &BOOT_AT.to_string(), &image_text]).map(drop)
}

fn root_partition(image: &Path, root: &Path, scratch: &Path) -> Result<()> {
    let part = scratch.join("root.ext4");
    File::create(&part)?.set_len(ROOT_BYTES)?;
    let args = ["-q", "-t", "ext4", "-L", "tanada-root", "-E", "root_owner=0:0,lazy_itable_init=0", "-d"];
    let mut command: Vec<String> = args.map(String::from).to_vec();
    command.extend([root.to_string_lossy().into_owned(), part.to_string_lossy().into_owned()]);
    sh::output("mke2fs", &command)?;
    let seek = (ROOT_AT / MIB).to_string();
    let input = format!("if={}", part.display());
    let output = format!("of={}", image.display());
    sh::output("dd", &[&input, &output, "bs=1M", &format!("seek={seek}"), "conv=notrunc,sparse", "status=none"])
        .map(drop)
}
