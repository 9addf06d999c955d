//! The QEMU process: started apart from the manager, found again, waited for, ended.
//!
//! - It outlives whoever started it: own session, own cgroup where the host has version 2, output in a file.
//! - It runs as an unprivileged user. Root drops to it between fork and exec; QEMU itself never has more.
//! - A process is held by its pidfd, so a number that the kernel gave to somebody else is never signalled. After a
//!   restart of the manager the number comes from the kernel too: it is the process that listens on the machine's socket.
//! - The end is an event of the pidfd. Only the parent learns the exit status; others learn that it ended.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::error::{QemuError, Result};
use crate::machine::check_socket_path;

/// The descriptor number under which QEMU inherits its listening control socket.
pub(crate) const CONTROL_FD: i32 = 3;
/// A log of a guest's or of QEMU's own that has grown beyond this is cut, and what is kept of it.
const LOG_BYTES_MAX: u64 = 16 << 20;
const LOG_KEPT_BYTES: u64 = 1 << 20;
/// How much of QEMU's error output is quoted in an error.
const LOG_TAIL_BYTES: u64 = 2000;

/// A machine's directory: sockets and logs. It belongs to QEMU's user, so nothing in it is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    pub fn new(root: &Path) -> StateDir {
        StateDir { root: root.to_path_buf() }
    }
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// QMP for the manager.
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("qmp.sock")
    }
    /// A second QMP, for people and for finding the process.
    pub fn emergency_socket(&self) -> PathBuf {
        self.root.join("qmp2.sock")
    }
    pub fn agent_socket(&self) -> PathBuf {
        self.root.join("agent.sock")
    }
    pub fn serial_socket(&self) -> PathBuf {
        self.root.join("serial.sock")
    }
    /// What the guest wrote to its serial port, the end of it where it is much ([`StateDir::bound_logs`]).
    pub fn serial_log(&self) -> PathBuf {
        self.root.join("serial.log")
    }
    /// QEMU's error output.
    pub fn stderr_log(&self) -> PathBuf {
        self.root.join("qemu.log")
    }

    /// Makes the directory, empty of sockets, owned by `run_as`.
    fn prepare(&self, run_as: Option<RunAs>) -> Result<()> {
        check_socket_path(&self.emergency_socket())?;
        let failed = || QemuError::io(format!("state directory {}", self.root.display()));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(failed())?;
        if let Some(user) = run_as {
            chown(&self.root, Some(user.uid), Some(user.gid)).map_err(failed())?;
            if let Some(parent) = self.root.parent() {
                user.check_reach(parent)?;
            }
        }
        for socket in [self.control_socket(), self.emergency_socket(), self.agent_socket(), self.serial_socket()] {
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed()(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Cuts logs that have become too long, for a guest may write as much as it likes and they lie where the host's own
    /// programs have their sockets. QEMU appends, so it goes on at the new end.
    pub fn bound_logs(&self) {
        for log in [self.serial_log(), self.stderr_log()] {
            match bound_log(&log) {
                Ok(Some(length)) => tracing::info!(log = %log.display(), length, "a machine's log was cut"),
                Ok(None) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(log = %log.display(), %error, "a machine's log cannot be cut"),
            }
        }
    }

    /// The last lines of QEMU's error output, for an error message.
    pub fn stderr_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = OpenOptions::new().read(true).custom_flags(NOT_FOLLOWED).open(self.stderr_log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_string())
        };
        read().unwrap_or_default()
    }
}

/// For files in a directory that somebody else may fill: no link, and nothing that makes an opener wait.
const NOT_FOLLOWED: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Leaves the end of a log that is too long; its length before that, where it was.
fn bound_log(path: &Path) -> std::io::Result<Option<u64>> {
    let file = OpenOptions::new().read(true).append(true).custom_flags(NOT_FOLLOWED).open(path)?;
    let facts = file.metadata()?;
    // Another name of a file that is elsewhere would have two.
    if !facts.is_file() || facts.nlink() != 1 || facts.len() <= LOG_BYTES_MAX {
        return Ok(None);
    }
    let mut end = Vec::new();
    (&file).seek(SeekFrom::Start(facts.len() - LOG_KEPT_BYTES))?;
    (&file).take(LOG_KEPT_BYTES).read_to_end(&mut end)?;
    file.set_len(0)?;
    (&file).write_all(&end)?;
    Ok(Some(facts.len()))
}

/// A user of the host, by numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

impl RunAs {
    /// Looks a local user up. None where there is no such user.
    pub fn by_name(name: &str) -> Result<Option<RunAs>> {
        let passwd = fs::read_to_string("/etc/passwd").map_err(QemuError::io("/etc/passwd"))?;
        let found = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields.as_slice() {
                [user, _, uid, gid, ..] if *user == name => {
                    Some(RunAs { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
                }
                _ => None,
            }
        });
        Ok(found)
    }

    /// Checks by owner and mode that the user can walk to `path` and read it (for directories: walk through it).
    pub fn check_reach(self, path: &Path) -> Result<()> {
        for step in path.ancestors() {
            if step.as_os_str().is_empty() {
                continue;
            }
            let facts = fs::metadata(step).map_err(QemuError::io(step.display().to_string()))?;
            let wanted = if facts.is_dir() { 0o1 } else { 0o4 };
            if self.uid != 0 && facts.mode() & (wanted << self.class_shift(&facts)) == 0 {
                return Err(QemuError::Spec(format!(
                    "{} is closed to QEMU's user (uid {}), who needs {}; its mode is {:o}",
                    step.display(),
                    self.uid,
                    path.display(),
                    facts.mode() & 0o7777
                )));
            }
        }
        Ok(())
    }

    fn class_shift(self, facts: &fs::Metadata) -> u32 {
        if facts.uid() == self.uid {
            6
        } else if facts.gid() == self.gid {
            3
        } else {
            0
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// Somebody else was its parent.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Unknown => write!(f, "an unknown exit status"),
        }
    }
}

/// A running (or ended) process, held by pidfd. Cheap to clone.
#[derive(Clone)]
pub struct Process {
    inner: Arc<Inner>,
}

struct Inner {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    exit: OnceLock<Exit>,
}

impl Process {
    /// Takes hold of a process that runs now.
    pub fn open(pid: i32) -> Result<Process> {
        let what = || format!("process {pid}");
        let number = Pid::from_raw(pid).ok_or_else(|| QemuError::Spec(format!("{pid} is no process id")))?;
        let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK).map_err(|errno| QemuError::io(what())(errno.into()))?;
        // SAFETY: the descriptor is owned by the AsyncFd, which is private and never gives it away: it stays open and the
        // same for as long as it is registered.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
            .map_err(|error| QemuError::io(what())(error.into()))?;
        Ok(Process { inner: Arc::new(Inner { pid, pidfd, exit: OnceLock::new() }) })
    }

    pub fn pid(&self) -> i32 {
        self.inner.pid
    }

    /// Waits for the end of the process, and reaps it where it is our child.
    pub async fn exited(&self) -> Exit {
        if let Some(exit) = self.inner.exit.get() {
            return *exit;
        }
        // Readable means ended; an error of the reactor means that it shuts down with us.
        let _ = self.inner.pidfd.readable().await;
        *self.inner.exit.get_or_init(|| {
            use std::os::fd::AsFd;
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            match waitid(WaitId::PidFd(self.inner.pidfd.get_ref().as_fd()), options) {
                Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Unknown,
                },
                _ => Exit::Unknown,
            }
        })
    }

    /// Asks it to end, and after `limit` ends it. A process that is gone already is no error.
    pub async fn end(&self, limit: Duration) -> Exit {
        self.signal(Signal::TERM);
        if let Ok(exit) = timeout(limit, self.exited()).await {
            return exit;
        }
        tracing::warn!(pid = self.pid(), "qemu does not end by itself; killing it");
        self.kill().await
    }

    /// Ends it at once: only the guest's memory and unanswered requests are lost.
    pub async fn kill(&self) -> Exit {
        self.kill_now();
        self.exited().await
    }

    /// As [`Process::kill`], without waiting.
    pub fn kill_now(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if self.inner.exit.get().is_none() {
            // ESRCH: it ended in between.
            let _ = pidfd_send_signal(self.inner.pidfd.get_ref(), signal);
        }
    }
}

/// What is executed, and as whom.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    pub binary: &'a Path,
    pub run_as: Option<RunAs>,
    /// Group that owns /dev/kvm, where it is needed.
    pub device_group: Option<u32>,
    /// Name of the cgroup below `tanada/`.
    pub cgroup: Option<&'a str>,
}

/// Starts QEMU with a listening control socket as descriptor [`CONTROL_FD`]: whoever connects from now on waits in its
/// queue until QEMU greets, so nobody has to ask again and again whether it is up.
pub(crate) fn spawn(launch: &Launch<'_>, dir: &StateDir, arguments: &[String]) -> Result<Process> {
    dir.prepare(launch.run_as)?;
    let listener = UnixListener::bind(dir.control_socket())
        .map_err(QemuError::io(format!("listening on {}", dir.control_socket().display())))?;
    let output = open_log(&dir.stderr_log(), launch.run_as)?;
    let failed = || QemuError::io(format!("starting {}", launch.binary.display()));
    let mut command = Command::new(launch.binary);
    command.args(arguments.iter().map(OsStr::new)).current_dir("/").env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null());
    command.stdout(output.try_clone().map_err(failed())?).stderr(output);
    let listener_fd = listener.as_raw_fd();
    let groups: Vec<libc::gid_t> = launch.device_group.into_iter().collect();
    let run_as = launch.run_as;
    // SAFETY: between fork and exec only async-signal-safe system calls run, on values copied before the fork.
    unsafe {
        command.pre_exec(move || become_machine(listener_fd, run_as, &groups));
    }
    let child = command.spawn().map_err(failed())?;
    let process = Process::open(child.id().cast_signed())?;
    if let Some(name) = launch.cgroup
        && let Err(error) = join_cgroup(name, process.pid())
    {
        tracing::debug!(%error, "the machine has no cgroup of its own");
    }
    Ok(process)
}

/// Runs in the child before exec: own session, the listener at its number, no more rights than needed.
fn become_machine(listener_fd: i32, run_as: Option<RunAs>, groups: &[libc::gid_t]) -> std::io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on numbers.
    unsafe {
        check(libc::setsid())?;
        libc::umask(0o077);
        if listener_fd == CONTROL_FD {
            check(libc::fcntl(CONTROL_FD, libc::F_SETFD, 0))?;
        } else {
            check(libc::dup2(listener_fd, CONTROL_FD))?;
        }
    }
    drop_rights(run_as, groups)
}

/// Becomes `run_as` with `groups` and no others. For use between fork and exec: allocates nothing.
pub(crate) fn drop_rights(run_as: Option<RunAs>, groups: &[libc::gid_t]) -> std::io::Result<()> {
    let Some(user) = run_as else { return Ok(()) };
    let check = |result: libc::c_int| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on numbers; the slice outlives the calls.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setgid(user.gid))?;
        check(libc::setuid(user.uid))
    }
}

fn open_log(path: &Path, run_as: Option<RunAs>) -> Result<File> {
    let failed = || QemuError::io(path.display().to_string());
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path).map_err(failed())?;
    if let Some(user) = run_as {
        std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid)).map_err(failed())?;
    }
    Ok(file)
}

/// Best effort: hosts without the unified hierarchy, and containers, have nothing to join.
fn join_cgroup(name: &str, pid: i32) -> std::io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if !root.join("cgroup.controllers").is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "no cgroup version 2"));
    }
    let group = root.join("tanada").join(name);
    fs::create_dir_all(&group)?;
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::{LOG_BYTES_MAX, LOG_KEPT_BYTES, StateDir};

    #[test]
    fn a_log_keeps_its_end_and_its_writer_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = StateDir::new(scratch.path());
        let mut guest = File::options().create(true).append(true).open(dir.serial_log()).unwrap();
        guest.write_all(&vec![b'x'; LOG_BYTES_MAX as usize]).unwrap();
        dir.bound_logs();
        assert_eq!(fs::metadata(dir.serial_log()).unwrap().len(), LOG_BYTES_MAX, "long enough to stay");
        guest.write_all(b"the end").unwrap();
        dir.bound_logs();
        guest.write_all(b", and on").unwrap();
        let left = fs::read(dir.serial_log()).unwrap();
        assert_eq!(left.len() as u64, LOG_KEPT_BYTES + 8);
        assert!(left.ends_with(b"xxthe end, and on"));
    }

    #[test]
    fn what_lies_in_the_place_of_a_log_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = StateDir::new(scratch.path());
        let other = scratch.path().join("other");
        File::create(&other).unwrap().set_len(LOG_BYTES_MAX * 2).unwrap();
        symlink(&other, dir.serial_log()).unwrap();
        fs::hard_link(&other, dir.stderr_log()).unwrap();
        dir.bound_logs();
        assert_eq!(fs::metadata(&other).unwrap().len(), LOG_BYTES_MAX * 2);
        fs::remove_file(dir.stderr_log()).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.stderr_log(), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        // A pipe without a writer would keep whoever opens it waiting.
        dir.bound_logs();
        assert_eq!(dir.stderr_tail(), "");
    }
}
