//! The cluster, initialised on the host as the user that owns it in the guest, and its two disks.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::{DatabaseGuest, PREFIX, library_path};
use crate::guest::disk;
use crate::sh;

const DATA_BYTES: u64 = 192 << 20;
const WAL_BYTES: u64 = 96 << 20;

/// The user and group `nobody`, which any host has: the server refuses to run as root.
const NOBODY: u32 = 65534;

/// Small, and durable as it is by default. Zone files are not in the guest.
pub const SETTINGS: &str = "
listen_addresses = ''
unix_socket_directories = '/run/postgresql'
shared_buffers = 16MB
max_connections = 20
min_wal_size = 8MB
max_wal_size = 32MB
checkpoint_timeout = 60s
jit = off
timezone = 'GMT'
log_timezone = 'GMT'
lc_messages = 'C'
";

/// Who owns the cluster: who builds the guest, or nobody where that is root.
pub fn owner() -> (u32, u32) {
    // SAFETY: geteuid and getegid have no preconditions.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if user == 0 { (NOBODY, NOBODY) } else { (user, group) }
}

/// Writes the disks of the cluster and of its log.
pub fn make(tree: &Path, scratch: &Path, guest: &DatabaseGuest) -> Result<()> {
    let (data, wal) = (scratch.join("data"), scratch.join("wal"));
    let (user, group) = owner();
    for dir in [&data, &wal] {
        fs::create_dir(dir)?;
        chown(dir, Some(user), Some(group)).with_context(|| format!("giving {} away", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    initialise(tree, &data.join("pg"))?;
    fs::rename(data.join("pg/pg_wal"), wal.join("pg_wal")).context("moving the log")?;
    symlink("/srv/wal/pg_wal", data.join("pg/pg_wal"))?;
    let settings = data.join("pg/postgresql.conf");
    let text = fs::read_to_string(&settings).context("reading the cluster's settings")?;
    fs::write(&settings, text + SETTINGS).context("writing the cluster's settings")?;
    disk::file_system(&guest.data, "db-data", DATA_BYTES, &data)?;
    disk::file_system(&guest.wal, "db-wal", WAL_BYTES, &wal)
}

/// Log segments of 4 MiB, so that a small disk holds several.
fn initialise(tree: &Path, cluster: &Path) -> Result<()> {
    let (user, group) = owner();
    let program = tree.join(PREFIX).join("bin/initdb").display().to_string();
    let mut command = vec!["--clear-groups".to_owned(), format!("--reuid={user}"), format!("--regid={group}")];
    command.extend(["env".to_owned(), library_path(tree), program, "-D".to_owned(), cluster.display().to_string()]);
    let options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--wal-segsize=4"];
    command.extend(options.map(String::from));
    command.extend(["--no-sync", "--no-instructions"].map(String::from));
    if user != NOBODY {
        command.drain(..3);
        return sh::output(&command.remove(0), &command).map(drop);
    }
    sh::output("setpriv", &command).map(drop)
}
