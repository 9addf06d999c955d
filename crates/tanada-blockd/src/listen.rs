//! Listening sockets: handed over by a supervisor, or made here.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, bail};

/// First descriptor of the socket-activation protocol.
const LISTEN_FDS_START: i32 = 3;

/// Names of the sockets, in the supervisor's list and (with `.sock`) in the runtime directory.
pub(crate) const NBD: &str = "nbd";
pub(crate) const CONTROL: &str = "control";

pub(crate) struct Listeners {
    pub(crate) nbd: OwnedFd,
    pub(crate) control: UnixListener,
}

/// Takes the sockets named in LISTEN_FDS and LISTEN_FDNAMES; binds `nbd.sock` and `control.sock` in `runtime_dir` where
/// there are none. Must be called once, before anything else opens descriptors.
pub(crate) fn listeners(runtime_dir: &Path) -> anyhow::Result<Listeners> {
    let (mut nbd, mut control) = (None, None);
    for (name, fd) in inherited()? {
        match name.as_str() {
            NBD => nbd = Some(fd),
            CONTROL => control = Some(UnixListener::from(fd)),
            other => bail!("LISTEN_FDNAMES has '{other}'; '{NBD}' and '{CONTROL}' are known"),
        }
    }
    let nbd = match nbd {
        Some(fd) => fd,
        None => OwnedFd::from(bind(&runtime_dir.join("nbd.sock"))?),
    };
    let control = match control {
        Some(listener) => listener,
        None => bind(&runtime_dir.join("control.sock"))?,
    };
    Ok(Listeners { nbd, control })
}

/// Binds a unix socket that only its owner may connect to, in place of an old one.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}

fn inherited() -> anyhow::Result<Vec<(String, OwnedFd)>> {
    let Ok(count) = std::env::var("LISTEN_FDS") else { return Ok(Vec::new()) };
    // Without LISTEN_PID the supervisor is our own keeper, which cannot know the number before the fork.
    if let Ok(pid) = std::env::var("LISTEN_PID")
        && pid != std::process::id().to_string()
    {
        return Ok(Vec::new());
    }
    let count: i32 = count.parse().with_context(|| format!("LISTEN_FDS is '{count}', not a number"))?;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    if names.len() as i32 != count {
        bail!("LISTEN_FDS counts {count}, LISTEN_FDNAMES has {} names", names.len());
    }
    let mut found = Vec::new();
    for (fd, name) in (LISTEN_FDS_START..).zip(names) {
        // SAFETY: the activation protocol gives descriptors 3, 4, ... to this process; they are taken once, here.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
            .with_context(|| format!("the descriptor for '{name}' in LISTEN_FDS"))?;
        found.push((name.to_owned(), fd));
    }
    Ok(found)
}
