//! The initial RAM disk: as few modules as a virtio guest needs, so that it boots in seconds without hardware help.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::BOOT_MARK;
use super::packages::Unpacked;
use crate::sh;

/// Loaded in this order, each with what it depends on.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "virtio_net", "evdev", "button"];

/// Writes `image`, using `dir` for the tree.
pub fn make(unpacked: &Unpacked, dir: &Path, image: &Path) -> Result<()> {
    for sub in ["bin", "dev", "proc", "sys", "root", "modules"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).context("copying busybox")?;
    symlink("busybox", dir.join("bin/sh"))?;
    let mut load = Vec::new();
    for module in MODULES {
        add_with_dependencies(unpacked, dir, module, &mut load)?;
    }
    let init = dir.join("init");
    fs::write(&init, init_script(&load))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let pack = format!(
        "cd '{}' && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | gzip -1 > '{}'",
        dir.display(),
        image.display()
    );
    sh::output("sh", &["-c", &pack]).map(drop)
}

/// Appends the module's file, its dependencies first, to `load` and copies them.
fn add_with_dependencies(unpacked: &Unpacked, dir: &Path, module: &str, load: &mut Vec<String>) -> Result<()> {
    let file = find_module(&unpacked.modules, module)?;
    let depends = sh::output("/sbin/modinfo", &[Path::new("-F"), Path::new("depends"), &file])?;
    for dependency in depends.trim().split(',').filter(|name| !name.is_empty()) {
        add_with_dependencies(unpacked, dir, dependency, load)?;
    }
    let name = file.file_name().expect("a module file").to_string_lossy().into_owned();
    if !load.contains(&name) {
        fs::copy(&file, dir.join("modules").join(&name))?;
        load.push(name);
    }
    Ok(())
}

/// Modules are named with `_` or `-` in files, with `_` elsewhere.
fn find_module(dir: &Path, module: &str) -> Result<PathBuf> {
    let pattern = format!("{}.ko*", module.replace('_', "[_-]"));
    let found = sh::output("find", &[dir, Path::new("-name"), Path::new(&pattern)])?;
    let first = found.lines().next().with_context(|| format!("the kernel package has no module {module}"))?;
    Ok(PathBuf::from(first))
}

fn init_script(load: &[String]) -> String {
    let insmod: String = load.iter().map(|file| format!("/bin/busybox insmod /modules/{file}\n")).collect();
    format!(
        r#"#!/bin/sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox echo "{BOOT_MARK}"
if /bin/busybox grep -q tanada.probe /proc/cmdline; then /bin/busybox poweroff -f; fi
{insmod}
until [ -b /dev/vda2 ]; do /bin/busybox sleep 0.05; done
/bin/busybox mount -t ext4 /dev/vda2 /root || exec /bin/sh
exec /bin/busybox switch_root /root /sbin/init
"#
    )
}
