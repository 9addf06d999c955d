//! The supervisor of one store's `blockd`.
//!
//! ```text
//!   bind sockets --> start blockd --ready--> watch --it died--> wait (not at all the first time) --> start blockd ...
//!                         |                    +--SIGTERM--> SIGTERM to blockd --> its end --> remove sockets, end
//!                         +--it ended before it was ever ready--> end with its error
//! ```
//! 1. It holds both listening sockets for ever: a client that connects while blockd is away waits in the backlog and is
//!    served by the next one.
//! 2. It never opens the store: the lock on the store must end with the last operation of a dead blockd (rule J7).
//! 3. It needs nobody: the control plane may come and go.
//! 4. One keeper a runtime directory: `keeper.pid` is locked as long as it lives.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::blockd::Ready;
use crate::listen;
use crate::options::{self, KeeperOptions};
use crate::signals::{Signals, Wake};

/// Descriptors of a child: the two sockets as in socket activation, then the pipe that it reports on.
const FIRST_FD: RawFd = 3;
const READY_FD: RawFd = 5;
/// Everything of our own stays above those.
const OWN_FDS: RawFd = 10;

/// A blockd that served this long did not die young.
const GROWN_UP: Duration = Duration::from_secs(10);
/// Waits before the second, third ... start of one that dies young; the first restart is at once.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);

pub(crate) fn run(args: Vec<OsString>) -> anyhow::Result<()> {
    let options = options::keeper(args.clone())?;
    std::fs::create_dir_all(&options.runtime_dir)
        .with_context(|| format!("create {}", options.runtime_dir.display()))?;
    if options.daemonize {
        return daemonize(&options, args);
    }
    let mut ready = Ready::new(options.ready_fd);
    let result = Keeper::start(options).and_then(|mut keeper| keeper.keep(&mut ready));
    if let Err(error) = &result {
        ready.tell(&format!("error: {error:#}"));
    }
    result
}

/// Starts the keeper in a session of its own and waits until blockd serves.
fn daemonize(options: &KeeperOptions, mut args: Vec<OsString>) -> anyhow::Result<()> {
    args.retain(|arg| arg != "--daemonize");
    let log_path = options.runtime_dir.join("keeper.log");
    let log = OpenOptions::new().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("open {}", log_path.display()))?;
    let _reserved = reserve_fds()?;
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("create a pipe")?;
    let theirs = above(theirs)?;
    let mut command = Command::new(own_program()?);
    command.arg("blockd-keeper").args(args).arg(format!("--ready-fd={READY_FD}"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    pass_fds(&mut command, vec![(theirs.as_raw_fd(), READY_FD)], true);
    command.spawn().context("start the keeper")?;
    drop(theirs);
    let mut told = String::new();
    // What it says is one line; then it closes its end, as it does when it dies.
    File::from(ours).read_to_string(&mut told).context("hear from the keeper")?;
    match told.trim() {
        "ready" => Ok(()),
        "" => bail!("the keeper ended without a word; see {}", log_path.display()),
        other => bail!("{}", other.strip_prefix("error: ").unwrap_or(other)),
    }
}

struct Keeper {
    options: KeeperOptions,
    signals: Signals,
    nbd: OwnedFd,
    control: OwnedFd,
    /// Locked while we live.
    _pid_file: File,
    _reserved: Vec<OwnedFd>,
}

/// How a blockd ended.
enum End {
    Died(ExitStatus),
    /// We were told to end, and it has ended.
    Told,
}

impl Keeper {
    fn start(options: KeeperOptions) -> anyhow::Result<Keeper> {
        let reserved = reserve_fds()?;
        let dir = &options.runtime_dir;
        let pid_file = lock_pid_file(&dir.join("keeper.pid"))?;
        let signals = Signals::block(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT]).context("block signals")?;
        end_leftover(&options);
        let nbd = listen::bind(&dir.join("nbd.sock"))?;
        open_to_others(&dir.join("nbd.sock"), &options)?;
        let control = listen::bind(&dir.join("control.sock"))?;
        let (nbd, control) = (above(nbd.into())?, above(control.into())?);
        Ok(Keeper { options, signals, nbd, control, _pid_file: pid_file, _reserved: reserved })
    }

    fn keep(&mut self, ready: &mut Ready) -> anyhow::Result<()> {
        let mut wait = Duration::ZERO;
        let mut was_ready = false;
        loop {
            let started = Instant::now();
            let (child, pipe) = self.spawn()?;
            tracing::info!(pid = child.id(), "blockd started");
            match self.watch(child, pipe, ready, &mut was_ready)? {
                End::Told => break,
                End::Died(status) => {
                    tracing::error!(%status, "blockd ended");
                    wait = next_wait(wait, started.elapsed());
                }
            }
            if !wait.is_zero() && self.pause(wait)? {
                break;
            }
        }
        for name in ["nbd.sock", "control.sock", "blockd.pid", "keeper.pid"] {
            // Leaving one behind does no harm.
            let _ = std::fs::remove_file(self.options.runtime_dir.join(name));
        }
        Ok(())
    }

    /// True where a signal asks for the end.
    fn pause(&self, time: Duration) -> anyhow::Result<bool> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.signals.wait(None, Some(left)).context("wait for signals")? {
                Wake::Timeout => return Ok(false),
                Wake::Signal(libc::SIGTERM | libc::SIGINT) => return Ok(true),
                Wake::Signal(_) | Wake::Readable => {}
            }
        }
    }

    fn spawn(&self) -> anyhow::Result<(Child, File)> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("create a pipe")?;
        let theirs = above(theirs)?;
        let mut command = Command::new(own_program()?);
        command.arg("blockd").arg("--store").arg(&self.options.store);
        command.arg("--runtime-dir").arg(&self.options.runtime_dir);
        command.arg(format!("--memory={}", self.options.memory_bytes)).arg(format!("--ready-fd={READY_FD}"));
        if let Some(state_dir) = &self.options.state_dir {
            command.arg("--state-dir").arg(state_dir);
        }
        if let Some(every) = self.options.schedule.every {
            command.arg(format!("--scrub-every={}", every.as_secs() / 86_400));
        }
        command.arg(format!("--scrub-rate={}", self.options.schedule.rate));
        if let Some(rate) = self.options.relayout_bytes_per_second {
            command.arg(format!("--relayout={rate}"));
        }
        command.arg(format!("--spin={}", self.options.spin.as_micros()));
        let names = format!("{}:{}", listen::NBD, listen::CONTROL);
        command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names).env_remove("LISTEN_PID").stdin(Stdio::null());
        let fds = [self.nbd.as_raw_fd(), self.control.as_raw_fd()];
        let mut moves: Vec<(RawFd, RawFd)> = fds.into_iter().zip(FIRST_FD..).collect();
        moves.push((theirs.as_raw_fd(), READY_FD));
        pass_fds(&mut command, moves, false);
        let child = command.spawn().context("start blockd")?;
        let pid_path = self.options.runtime_dir.join("blockd.pid");
        write_whole(&pid_path, &format!("{}\n", child.id()))
            .with_context(|| format!("write {}", pid_path.display()))?;
        Ok((child, File::from(ours)))
    }

    /// Waits until `child` has ended, whatever for.
    fn watch(&self, mut child: Child, pipe: File, ready: &mut Ready, was_ready: &mut bool) -> anyhow::Result<End> {
        let mut pipe = Some(pipe);
        let mut is_told = false;
        loop {
            match self.signals.wait(pipe.as_ref().map(AsFd::as_fd), None).context("wait for signals")? {
                Wake::Signal(libc::SIGTERM | libc::SIGINT) => {
                    // Told a second time: no longer politely.
                    let signal = if is_told { Signal::KILL } else { Signal::TERM };
                    is_told = true;
                    signal_child(&child, signal);
                }
                Wake::Readable => {
                    let told = pipe.take().map(read_line).unwrap_or_default();
                    match told.as_str() {
                        "ready" => {
                            *was_ready = true;
                            ready.tell("ready");
                        }
                        error if !*was_ready && !error.is_empty() => {
                            child.wait().context("wait for blockd")?;
                            bail!("{}", error.strip_prefix("error: ").unwrap_or(error));
                        }
                        // It died; the signal tells how.
                        _ => {}
                    }
                }
                Wake::Signal(_) | Wake::Timeout => {}
            }
            if let Some(status) = child.try_wait().context("wait for blockd")? {
                if is_told {
                    return Ok(End::Told);
                }
                // Its last words may have come together with the signal.
                let told = pipe.take().map(read_line).unwrap_or_default();
                if let (false, Some(error)) = (*was_ready, told.strip_prefix("error: ")) {
                    bail!("{error}");
                }
                if !*was_ready && told.is_empty() && status.signal().is_none() {
                    bail!("blockd ended before it served: {status}");
                }
                if told == "ready" {
                    *was_ready = true;
                    ready.tell("ready");
                }
                return Ok(End::Died(status));
            }
        }
    }
}

fn next_wait(last: Duration, lived: Duration) -> Duration {
    if lived >= GROWN_UP {
        return Duration::ZERO;
    }
    match last {
        Duration::ZERO => WAIT_FIRST,
        last => (last * 2).min(WAIT_MAX),
    }
}

fn read_line(mut pipe: File) -> String {
    let mut told = String::new();
    // Not readable counts as nothing said.
    let _ = pipe.read_to_string(&mut told);
    told.trim().to_owned()
}

fn signal_child(child: &Child, signal: Signal) {
    // It is not waited for yet, so the number is still its own.
    if let Some(pid) = Pid::from_raw(child.id() as i32)
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::error!(%error, pid = child.id(), "signal blockd");
    }
}

fn lock_pid_file(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = file.with_context(|| format!("open {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let other = std::fs::read_to_string(path).unwrap_or_default();
        bail!("a keeper with pid {} serves this runtime directory already", other.trim());
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(file)
}

/// A keeper that was killed leaves its blockd behind, serving sockets that nobody finds any more. It is asked to end;
/// the next one waits for the store's lock.
fn end_leftover(options: &KeeperOptions) {
    let Ok(text) = std::fs::read_to_string(options.runtime_dir.join("blockd.pid")) else { return };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
    let Ok(line) = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { return };
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let store = options.store.as_os_str().as_encoded_bytes();
    if words.contains(&b"blockd".as_slice()) && words.contains(&store) {
        tracing::warn!(pid = pid.as_raw_nonzero(), "a blockd without keeper is asked to end");
        // It may end by itself meanwhile.
        let _ = kill_process(pid, Signal::TERM);
    }
}

fn open_to_others(path: &Path, options: &KeeperOptions) -> anyhow::Result<()> {
    let (uid, gid) = (options.socket_uid, options.socket_gid);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, uid, gid).with_context(|| format!("give {} to others", path.display()))?;
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, Permissions::from_mode(mode)).with_context(|| format!("mode of {}", path.display()))
}

/// The program to start: the installed one even if it was replaced since we started.
fn own_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("find our own program")?;
    Ok(if path.exists() { path } else { PathBuf::from("/proc/self/exe") })
}

/// Keeps the low descriptors occupied, so that nothing that a child's start needs lies where its own are put.
fn reserve_fds() -> anyhow::Result<Vec<OwnedFd>> {
    let mut held = Vec::new();
    loop {
        let fd = OwnedFd::from(File::open("/dev/null").context("open /dev/null")?);
        if fd.as_raw_fd() >= OWN_FDS {
            return Ok(held);
        }
        held.push(fd);
    }
}

/// The same under a number that no child's descriptor takes; the old number is closed.
fn above(fd: OwnedFd) -> anyhow::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(&fd, OWN_FDS).context("duplicate a descriptor")
}

/// Gives descriptors to a child under the numbers it expects.
fn pass_fds(command: &mut Command, moves: Vec<(RawFd, RawFd)>, own_session: bool) {
    let prepare = move || {
        for &(from, to) in &moves {
            // SAFETY: both are plain numbers; the sources are above OWN_FDS, so that no move hits another's source.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if own_session {
            // SAFETY: it changes nothing but this new process's session.
            unsafe { libc::setsid() };
        }
        Ok(())
    };
    // SAFETY: between fork and exec only dup2 and setsid are called, both async-signal-safe.
    unsafe { command.pre_exec(prepare) };
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::{GROWN_UP, WAIT_FIRST, WAIT_MAX, next_wait};
    use std::time::Duration;

    #[test]
    fn the_waits_grow_and_end_with_a_long_life() {
        let young = Duration::from_millis(5);
        assert_eq!(next_wait(Duration::ZERO, GROWN_UP), Duration::ZERO);
        assert_eq!(next_wait(Duration::ZERO, young), WAIT_FIRST);
        assert_eq!(next_wait(WAIT_FIRST, young), WAIT_FIRST * 2);
        assert_eq!(next_wait(WAIT_MAX, young), WAIT_MAX);
        assert_eq!(next_wait(WAIT_MAX, GROWN_UP), Duration::ZERO);
    }
}
