//! The guest with a database: PostgreSQL from Debian packages under constant load, the real guest agent with freeze hooks.
//!
//! ```text
//! target/guest/db-root.raw  boots as the small guest does, with its kernel and RAM disk; PostgreSQL, hooks, teller
//! target/guest/db-data.raw  ext4, mounted on /srv/data: the cluster
//! target/guest/db-wal.raw   ext4, mounted on /srv/wal: the cluster's log (pg_wal)
//! ```
//! Without the two other disks nothing is started: so the same root serves to inspect copies (`/usr/bin/inspect`).
//!
//! Which level a snapshot of it reaches is the administrator's choice, as in any Debian guest: with
//! `/etc/qemu/fsfreeze-hook.d/postgresql` executable the database is stopped before the file systems freeze; with
//! `chmod -x` they alone are frozen. Both hooks are the ones that `docs/hooks` offers.

mod cluster;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Guest, build_static, disk, fingerprint, packages, rootfs};
use crate::sh;

/// Raise this when the recipe changes in a way that no text below shows.
const RECIPE: &str = "2";

/// Debian 12's.
const SERVER: &str = "postgresql-15";
const PREFIX: &str = "usr/lib/postgresql/15";
const SHARED: &str = "usr/share/postgresql/15";

const ROOT_BYTES: u64 = 192 << 20;

/// Programs of the guest's own, by path.
const SCRIPTS: &[(&str, &str)] = &[
    ("etc/rc", include_str!("rc.sh")),
    ("etc/down", include_str!("down.sh")),
    ("etc/agent", include_str!("agent.sh")),
    ("etc/database", include_str!("database.sh")),
    ("usr/bin/inspect", include_str!("inspect.sh")),
    ("etc/qemu/fsfreeze-hook", include_str!("../../../../docs/hooks/fsfreeze-hook")),
    ("etc/qemu/fsfreeze-hook.d/postgresql", include_str!("../../../../docs/hooks/postgresql")),
];
const FILES: &[(&str, &str)] = &[
    ("etc/inittab", include_str!("inittab")),
    ("etc/default/fsfreeze-postgresql", include_str!("hook-settings.sh")),
    (
        "etc/os-release",
        "ID=tanada-database\nNAME=\"Tanada database guest\"\nPRETTY_NAME=\"Tanada database guest (PostgreSQL of Debian)\"\n\
         VERSION_ID=1\n",
    ),
];

/// The files of a guest with a database.
#[derive(Debug, Clone)]
pub struct DatabaseGuest {
    pub root: PathBuf,
    pub data: PathBuf,
    pub wal: PathBuf,
}

/// Makes the guest, or finds it made already. `base`: the small guest.
pub fn build(base: &Guest) -> Result<DatabaseGuest> {
    let dir = super::dir();
    let guest =
        DatabaseGuest { root: dir.join("db-root.raw"), data: dir.join("db-data.raw"), wal: dir.join("db-wal.raw") };
    let teller = build_static("tanada-teller")?;
    let stamp = dir.join("db-recipe");
    let recipe = recipe(base, &teller)?;
    let made = [&guest.root, &guest.data, &guest.wal].iter().all(|file| file.exists());
    if made && fs::read_to_string(&stamp).is_ok_and(|old| old == recipe) {
        return Ok(guest);
    }
    println!("making the database guest from Debian packages");
    let scratch = dir.join("db-scratch");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("clearing {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    // The cluster's owner has to pass through, which the target directory may not allow.
    let open = tempfile::Builder::new().prefix("tanada-guest-").tempdir().context("making a scratch directory")?;
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).context("opening the scratch directory")?;
    let tree = unpack(open.path())?;
    let root = scratch.join("root");
    populate(&root, &tree, &teller)?;
    let parts = disk::Bootable { kernel: &base.kernel, initrd: &base.initrd, root: &root, root_bytes: ROOT_BYTES };
    disk::make(&parts, &guest.root, &scratch)?;
    cluster::make(&tree, open.path(), &guest)?;
    fs::remove_dir_all(&scratch).with_context(|| format!("clearing {}", scratch.display()))?;
    fs::write(&stamp, recipe).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(guest)
}

/// Whatever the guest is made of, as text: another one has to be made when it changes.
fn recipe(base: &Guest, teller: &Path) -> Result<String> {
    let texts = SCRIPTS.iter().chain(FILES).map(|(path, text)| format!("{path}\n{text}"));
    let texts: Vec<String> = texts.chain([cluster::SETTINGS.to_owned()]).collect();
    Ok(format!("{RECIPE} {} {}\n{}", fingerprint(teller)?, fingerprint(&base.initrd)?, texts.join("\n")))
}

/// The server and the libraries that it needs, without the C library: programs from here run here as well as in the guest, so
/// there is one C library, the host's.
fn unpack(scratch: &Path) -> Result<PathBuf> {
    let needed = packages::needed_by(SERVER)?;
    let left_out = ["libc6", "libc-", "libllvm", "libz3", "libperl", "libdebian", "libelogind", "libpam-modules"];
    let library = |name: &&String| {
        name.starts_with("lib") && !name.ends_with("-perl") && !left_out.iter().any(|start| name.starts_with(start))
    };
    let mut names: Vec<&str> = needed.iter().filter(library).map(String::as_str).collect();
    names.extend([SERVER, "qemu-guest-agent"]);
    packages::fetch(&names, scratch)
}

fn populate(root: &Path, tree: &Path, teller: &Path) -> Result<()> {
    rootfs::base(&tree.join("usr/sbin/qemu-ga"), root)?;
    for dir in ["srv/data", "srv/wal", "var/log", "etc/default", "etc/qemu/fsfreeze-hook.d"] {
        fs::create_dir_all(root.join(dir))?;
    }
    // The server looks for its folder of extensions and refuses to start without.
    fs::create_dir_all(root.join(PREFIX).join("lib"))?;
    for program in ["postgres", "pg_ctl", "pg_controldata"] {
        let path = format!("{PREFIX}/bin/{program}");
        rootfs::copy_program(&tree.join(&path), root, &path)?;
        copy_libraries(&tree.join(&path), tree, root)?;
    }
    rootfs::copy_program(Path::new("/sbin/e2fsck"), root, "sbin/e2fsck")?;
    rootfs::copy_libraries(Path::new("/sbin/e2fsck"), root)?;
    rootfs::copy_program(teller, root, "usr/bin/tanada-teller")?;
    let zones = format!("{SHARED}/timezonesets");
    fs::create_dir_all(root.join(&zones))?;
    for entry in fs::read_dir(tree.join(&zones)).context("PostgreSQL's shared files")? {
        let entry = entry?;
        fs::copy(entry.path(), root.join(&zones).join(entry.file_name()))?;
    }
    for (path, text) in SCRIPTS {
        rootfs::write_executable(&root.join(path), text)?;
    }
    for (path, text) in FILES {
        fs::write(root.join(path), text).with_context(|| format!("writing {path}"))?;
    }
    let (user, group) = cluster::owner();
    fs::write(
        root.join("etc/passwd"),
        format!("root::0:0:root:/:/bin/sh\npostgres:x:{user}:{group}:postgres:/:/bin/sh\n"),
    )?;
    fs::write(root.join("etc/group"), format!("root:x:0:\npostgres:x:{group}:\n")).context("writing etc/group")
}

/// Where programs of the tree find their libraries.
fn library_path(tree: &Path) -> String {
    let dirs = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| tree.join(dir).display().to_string());
    format!("LD_LIBRARY_PATH={}", dirs.join(":"))
}

/// Copies what the dynamic linker would load from the tree, and from the host what the tree has not.
fn copy_libraries(program: &Path, tree: &Path, root: &Path) -> Result<()> {
    let told = sh::output("env", &[library_path(tree), "ldd".to_owned(), program.display().to_string()])?;
    for line in told.lines() {
        if line.contains("not found") {
            bail!("{} misses a library: {}", program.display(), line.trim());
        }
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')).map(Path::new) else { continue };
        let inside = path.strip_prefix(tree).or_else(|_| path.strip_prefix("/"))?;
        rootfs::copy_program(path, root, &inside.to_string_lossy())?;
    }
    Ok(())
}
