//! The bootable disk image, put together without mounting anything.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::sh;

const MIB: u64 = 1 << 20;
const BOOT_AT: u64 = MIB;
const BOOT_BYTES: u64 = 31 * MIB;
const ROOT_AT: u64 = 32 * MIB;

const SYSLINUX_CFG: &str = "\
default linux
prompt 0
timeout 0
label linux
  kernel vmlinuz
  append initrd=initrd.img console=ttyS0 quiet panic=5
";

/// What goes onto a disk that boots.
pub struct Bootable<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    /// The tree of the root file system.
    pub root: &'a Path,
    /// Size of the root file system, whole MiB.
    pub root_bytes: u64,
}

/// Writes `disk`.
pub fn make(parts: &Bootable<'_>, disk: &Path, scratch: &Path) -> Result<()> {
    let image = scratch.join("disk.raw");
    let file = File::create(&image).context("creating the disk image")?;
    file.set_len(ROOT_AT + parts.root_bytes)?;
    partition(&image, parts.root_bytes)?;
    let code = fs::read("/usr/lib/syslinux/mbr/mbr.bin").context("reading the boot code")?;
    OpenOptions::new().write(true).open(&image)?.write_all_at(&code[..code.len().min(440)], 0)?;
    boot_partition(parts, &image, scratch)?;
    root_partition(parts, &image, scratch)?;
    fs::rename(&image, disk).context("putting the disk image in place")
}

fn partition(image: &Path, root_bytes: u64) -> Result<()> {
    let table = format!(
        "label: dos\nstart={}, size={}, type=e, bootable\nstart={}, size={}, type=83\n",
        BOOT_AT / 512,
        BOOT_BYTES / 512,
        ROOT_AT / 512,
        root_bytes / 512
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

fn boot_partition(parts: &Bootable<'_>, image: &Path, scratch: &Path) -> Result<()> {
    let config = scratch.join("syslinux.cfg");
    fs::write(&config, SYSLINUX_CFG)?;
    let kib = (BOOT_BYTES / 1024).to_string();
    let image_text = image.to_string_lossy().into_owned();
    let sector = (BOOT_AT / 512).to_string();
    sh::output("mkfs.fat", &["-F", "16", "-n", "BOOT", "-h", &sector, "--offset", &sector, &image_text, &kib])?;
    let at = format!("{image_text}@@{BOOT_AT}");
    for (file, name) in [(parts.kernel, "vmlinuz"), (parts.initrd, "initrd.img"), (&config, "syslinux.cfg")] {
        sh::output("mcopy", &["-i", &at, &file.to_string_lossy(), &format!("::{name}")])?;
    }
    sh::output("syslinux", &["--install", "--offset", &BOOT_AT.to_string(), &image_text]).map(drop)
}

fn root_partition(parts: &Bootable<'_>, image: &Path, scratch: &Path) -> Result<()> {
    let part = scratch.join("root.ext4");
    file_system(&part, "tanada-root", parts.root_bytes, parts.root)?;
    let seek = (ROOT_AT / MIB).to_string();
    let input = format!("if={}", part.display());
    let output = format!("of={}", image.display());
    sh::output("dd", &[&input, &output, "bs=1M", &format!("seek={seek}"), "conv=notrunc,sparse", "status=none"])
        .map(drop)
}

/// A new file with an ext4 file system that holds `tree`, owners included.
pub fn file_system(file: &Path, label: &str, bytes: u64, tree: &Path) -> Result<()> {
    File::create(file)
        .and_then(|image| image.set_len(bytes))
        .with_context(|| format!("creating {}", file.display()))?;
    let args = ["-q", "-t", "ext4", "-L", label, "-E", "root_owner=0:0,lazy_itable_init=0", "-d"];
    let mut command: Vec<String> = args.map(String::from).to_vec();
    command.extend([tree.to_string_lossy().into_owned(), file.to_string_lossy().into_owned()]);
    sh::output("mke2fs", &command).map(drop)
}
