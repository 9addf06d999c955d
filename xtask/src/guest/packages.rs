//! The Debian packages that become the guest: fetched with apt, unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sh;

/// Unpacked packages and what is needed of them.
pub struct Unpacked {
    pub kernel: PathBuf,
    /// `lib/modules/<version>` in the tree.
    pub modules: PathBuf,
    pub agent: PathBuf,
}

/// Fetches kernel and guest agent and unpacks them below `scratch`.
pub fn unpack(scratch: &Path) -> Result<Unpacked> {
    let tree = fetch(&[&kernel_package()?, "qemu-guest-agent"], scratch)?;
    let kernel = only_entry(&tree.join("boot"), "vmlinuz-")?;
    let modules = only_entry(&tree.join("lib/modules"), "")?;
    let agent = tree.join("usr/sbin/qemu-ga");
    Ok(Unpacked { kernel, modules, agent })
}

/// Fetches packages and unpacks them into one tree below `scratch`.
pub fn fetch(names: &[&str], scratch: &Path) -> Result<PathBuf> {
    let archives = scratch.join("archives");
    fs::create_dir_all(&archives)?;
    let fetch = format!("cd '{}' && apt-get download -qq {}", archives.display(), names.join(" "));
    if sh::output("sh", &["-c", &fetch]).is_err() {
        sh::output("apt-get", &["update", "-qq"])?;
        sh::output("sh", &["-c", &fetch])?;
    }
    let tree = scratch.join("tree");
    for entry in fs::read_dir(&archives)? {
        sh::output("dpkg-deb", &[Path::new("-x"), &entry?.path(), &tree])?;
    }
    Ok(tree)
}

/// What a package needs to run, itself included, with all that is needed by that.
pub fn needed_by(name: &str) -> Result<Vec<String>> {
    let mut args = vec!["depends", "--recurse"];
    args.extend([
        "--no-recommends",
        "--no-suggests",
        "--no-conflicts",
        "--no-breaks",
        "--no-replaces",
        "--no-enhances",
    ]);
    args.push(name);
    let told = sh::output("apt-cache", &args)?;
    Ok(told
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphanumeric()))
        .map(String::from)
        .collect())
}

/// The versioned package behind Debian's current cloud kernel.
fn kernel_package() -> Result<String> {
    let find = || -> Result<String> {
        let depends = sh::output("apt-cache", &["depends", "linux-image-cloud-amd64"])?;
        let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        name.map(str::to_string).context("linux-image-cloud-amd64 depends on no kernel package")
    };
    find().or_else(|_| {
        sh::output("apt-get", &["update", "-qq"])?;
        find()
    })
}

fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut found =
        entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    found.next().map(|entry| entry.path()).with_context(|| format!("{} holds nothing named {prefix}*", dir.display()))
}
