//! One tgtd process, which dies with us and can be stopped for an instant.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use uuid::Uuid;

use crate::error::{Result, TargetError, io};
use crate::mgmt::Mgmt;

/// A disk is written by this many threads. tgt's own 16 per LUN would be thousands for an array.
const THREADS_PER_LUN: u32 = 2;
/// How long tgtd may take to listen, or to stop.
const PATIENCE: Duration = Duration::from_secs(20);
/// Loopback addresses to try before giving up.
const ADDRESS_TRIES: u32 = 20;
pub const ISCSI_PORT: u16 = 3260;
/// What tgtd says where another one has the same folder.
const IN_USE: &str = "another tgtd is using";

pub struct Tgtd {
    pid: Pid,
    portal: SocketAddrV4,
    mgmt: Mgmt,
    /// Waits for the process; ends with it.
    waiter: Option<JoinHandle<()>>,
}

/// A random loopback address on which nobody listens at `port`. 127/8 is all ours: 24 bits make collisions rare, and a
/// fixed port (iSCSI's, as arrays have it) stays possible for many simulators at once.
pub fn free_loopback(port: u16) -> Result<SocketAddrV4> {
    for _ in 0..ADDRESS_TRIES {
        let random = Uuid::new_v4().into_bytes();
        // 127.64 to 127.127: not the host's own 127.0, not the broadcast address.
        let address = Ipv4Addr::new(127, 64 | (random[0] & 63), random[1], random[2]);
        if TcpListener::bind((address, port)).is_ok() {
            return Ok(SocketAddrV4::new(address, port));
        }
    }
    Err(TargetError::Invalid(format!("no free loopback address for port {port} in {ADDRESS_TRIES} tries")))
}

impl Tgtd {
    /// Starts tgtd with its socket and log in `dir` and waits until it listens. One that had the same folder and is about to
    /// end is waited for.
    pub fn start(dir: &Path) -> Result<Tgtd> {
        let begun = Instant::now();
        loop {
            match Self::start_once(dir) {
                Err(error) if error.to_string().contains(IN_USE) && begun.elapsed() < PATIENCE => {
                    // The lock on the folder tells nobody when it is free.
                    thread::sleep(Duration::from_millis(20));
                }
                started => return started,
            }
        }
    }

    fn start_once(dir: &Path) -> Result<Tgtd> {
        let portal = free_loopback(ISCSI_PORT)?;
        let socket = dir.join("tgtd");
        let log = dir.join("tgtd.log");
        let (started, pid) = mpsc::channel();
        let waiter = {
            let (socket, log) = (socket.clone(), log.clone());
            // The death signal comes when the *thread* that forked ends: this one lives as long as tgtd.
            thread::Builder::new()
                .name("tgtd".into())
                .spawn(move || run(&socket, &log, portal, &started))
                .map_err(io("a thread for tgtd"))?
        };
        let pid = pid.recv().map_err(|_| TargetError::Invalid("tgtd was not started".into()))??;
        // tgtd appends its control number.
        let mgmt = Mgmt::new(dir.join("tgtd.0"));
        let tgtd = Tgtd { pid, portal, mgmt, waiter: Some(waiter) };
        tgtd.wait_until_it_listens(&log)?;
        Ok(tgtd)
    }

    fn wait_until_it_listens(&self, log: &Path) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(self.portal).is_err() {
            let gone = self.waiter.as_ref().is_none_or(JoinHandle::is_finished);
            if gone || start.elapsed() > PATIENCE {
                let said = fs::read_to_string(log).unwrap_or_default();
                return Err(TargetError::Invalid(format!("tgtd does not listen at {}: {}", self.portal, said.trim())));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn portal(&self) -> SocketAddrV4 {
        self.portal
    }

    pub fn mgmt(&self) -> &Mgmt {
        &self.mgmt
    }

    /// Runs `at` while no thread of tgtd runs, so that no write can come between two things that it does. What was
    /// acknowledged before is in the files; what was not may be in them or not, in any part.
    pub fn stopped<T>(&self, at: impl FnOnce() -> T) -> Result<T> {
        let _go = Continue(self.pid);
        kill_process(self.pid, Signal::STOP).map_err(|error| io("stopping tgtd")(error.into()))?;
        let start = Instant::now();
        while !self.all_threads_stopped()? {
            if start.elapsed() > PATIENCE {
                return Err(TargetError::Invalid("tgtd did not stop".into()));
            }
            thread::yield_now();
        }
        Ok(at())
    }

    /// A thread inside a system call (a write under way) counts only when it has left it.
    fn all_threads_stopped(&self) -> Result<bool> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid.as_raw_nonzero()));
        for task in fs::read_dir(&tasks).map_err(io("tgtd's threads"))? {
            let path = task.map_err(io("tgtd's threads"))?.path().join("stat");
            // A thread that ended in between writes nothing any more.
            let Ok(stat) = fs::read_to_string(&path) else { continue };
            // The name stands in parentheses and may hold anything; the state is the word after it.
            let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
            if !matches!(state, Some("T" | "t" | "Z" | "X")) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Lets the process run again, whatever happens.
struct Continue(Pid);

impl Drop for Continue {
    fn drop(&mut self) {
        // It may be gone, then nothing waits for it either.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn run(socket: &Path, log: &Path, portal: SocketAddrV4, started: &mpsc::Sender<Result<Pid>>) {
    let spawn = || -> std::io::Result<std::process::Child> {
        let output = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("/usr/sbin/tgtd");
        command
            .args(["--foreground", "--control-port", "0", "--nr_iothreads", &THREADS_PER_LUN.to_string()])
            .args(["--iscsi", &format!("portal={portal}")])
            .env("TGT_IPC_SOCKET", socket)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // SAFETY: between fork and exec only one system call is made, which allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        command.spawn()
    };
    match spawn() {
        Ok(mut child) => {
            let pid = Pid::from_raw(child.id() as i32)
                .ok_or_else(|| TargetError::Invalid("tgtd has no process number".into()));
            // Whoever starts it waits for this word.
            let _ = started.send(pid);
            let _ = child.wait();
        }
        Err(error) => {
            let _ = started.send(Err(io("starting /usr/sbin/tgtd (Debian package tgt)")(error)));
        }
    }
}

impl Drop for Tgtd {
    fn drop(&mut self) {
        let running = self.waiter.as_ref().is_some_and(|waiter| !waiter.is_finished());
        if running {
            // Not reaped before the waiter ends, so the number is still its own.
            let _ = kill_process(self.pid, Signal::KILL);
        }
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }
}
