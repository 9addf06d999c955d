//! A store behind its keeper, from outside: the processes, the control socket, the checker.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tanada_blockd_api::{Answer, Command, Envelope, Failure, Greeting, Outcome, Response};
use uuid::Uuid;

/// Whoever waits longer than this for a process has found a hang, also on a machine that does other things, too.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// Between two attempts to reach a server that is being started.
pub const AGAIN: Duration = Duration::from_millis(3);

pub struct Plane {
    pub dir: PathBuf,
    binary: PathBuf,
}

impl Plane {
    /// Makes a store of `bytes` in `dir` and serves it.
    pub fn start(binary: &Path, dir: &Path, bytes: u64) -> Result<Plane> {
        let plane = Plane { dir: dir.to_path_buf(), binary: binary.to_path_buf() };
        let (store, size) = (plane.store(), bytes.to_string());
        plane.run(&["store", "format", &store.to_string_lossy(), "--size", &size, "--journal", "16M"])?;
        plane.keep()?;
        Ok(plane)
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        crate::sh::output(&self.binary.to_string_lossy(), args)
    }

    /// Starts a keeper. One that was killed an instant ago may still hold its lock.
    pub fn keep(&self) -> Result<()> {
        let (store, runtime) = (self.store(), self.runtime_dir());
        let args = [
            "blockd-keeper",
            "--daemonize",
            "--store",
            &store.to_string_lossy(),
            "--runtime-dir",
            &runtime.to_string_lossy(),
        ];
        let start = Instant::now();
        loop {
            match self.run(&args) {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > PATIENCE => return Err(error.context("starting a keeper")),
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.runtime_dir().join("nbd.sock")
    }

    pub fn control(&self) -> Result<Control> {
        Control::connect(&self.runtime_dir().join("control.sock"))
    }

    pub fn keeper(&self) -> Result<Pid> {
        let path = self.runtime_dir().join("keeper.pid");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let number = text.trim().parse().ok().and_then(Pid::from_raw);
        number.with_context(|| format!("{} holds '{text}'", path.display()))
    }

    /// The process that serves now: who greets is alive.
    pub fn blockd(&self) -> Result<Pid> {
        let pid = patiently("blockd greets", || self.control().map(|control| control.greeting.pid))?;
        Pid::from_raw(pid as i32).context("blockd greets with process 0")
    }

    /// The process that is being started or serves, as soon as there is another one than `former`.
    pub fn successor(&self, former: Pid) -> Result<Pid> {
        patiently("another blockd", || {
            let text = fs::read_to_string(self.runtime_dir().join("blockd.pid"))?;
            let pid = text.trim().parse().ok().and_then(Pid::from_raw).context("no process id")?;
            if pid == former {
                bail!("still {pid:?}");
            }
            Ok(pid)
        })
    }

    /// The offline checker; an error names what it found. Late operations of a killed process may hold the store's lock
    /// for a moment.
    pub fn check(&self, data: bool) -> Result<()> {
        let store = self.store();
        let store = store.to_string_lossy();
        let args: &[&str] = if data { &["store", "check", "--data", &store] } else { &["store", "check", &store] };
        let start = Instant::now();
        loop {
            let output =
                Process::new(&self.binary).args(args).stdin(Stdio::null()).output().context("starting the checker")?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            if !said.contains("is in use") || start.elapsed() > PATIENCE {
                bail!("store check: {}\n{said}", output.status);
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Ends keeper and blockd in order.
    pub fn stop(&self) -> Result<()> {
        let pid = self.keeper()?;
        end(pid, Signal::TERM)
    }
}

/// Sends a signal and waits until the process is gone.
pub fn end(pid: Pid, signal: Signal) -> Result<()> {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    kill_process(pid, signal).with_context(|| format!("signalling process {pid:?}"))?;
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => bail!("process {pid:?} does not end within {PATIENCE:?}"),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for a process to end"),
        }
    }
}

/// Tries until it succeeds.
pub fn patiently<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > PATIENCE => return Err(error.context(format!("{what}: not in time"))),
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}

/// A connection to the control socket.
pub struct Control {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    pub greeting: Greeting,
    next: u64,
}

impl Control {
    fn connect(path: &Path) -> Result<Control> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        Ok(Control { stream, lines, greeting: serde_json::from_str(&line)?, next: 1 })
    }

    /// The outer result is about the connection, the inner one about the command.
    fn call(&mut self, command: &Command) -> Result<Result<Answer, Failure>> {
        let id = self.next;
        self.next += 1;
        let line = serde_json::to_string(&Envelope { id, command: command.clone() })?;
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                bail!("the control connection ended");
            }
            match serde_json::from_str::<Response>(&line) {
                Ok(response) if response.id == id => {
                    return Ok(match response.outcome {
                        Outcome::Ok(answer) => Ok(answer),
                        Outcome::Error(failure) => Err(failure),
                    });
                }
                _ => {}
            }
        }
    }
}

/// Gives commands, over and over until one server lives long enough to answer. All verbs may be repeated.
pub struct Commander<'a> {
    plane: &'a Plane,
    control: Option<Control>,
}

impl<'a> Commander<'a> {
    pub fn new(plane: &'a Plane) -> Commander<'a> {
        Commander { plane, control: None }
    }

    pub fn ask(&mut self, command: Command) -> Result<Result<Answer, Failure>> {
        patiently("a command is answered", || {
            let mut control = match self.control.take() {
                Some(control) => control,
                None => self.plane.control()?,
            };
            let answer = control.call(&command)?;
            self.control = Some(control);
            Ok(answer)
        })
    }

    /// A command that has to succeed.
    pub fn must(&mut self, command: Command) -> Result<Answer> {
        let text = format!("{command:?}");
        self.ask(command)?.with_context(|| text)
    }

    /// A new volume, attached for writing.
    pub fn volume(&mut self, token: &str, bytes: u64) -> Result<Uuid> {
        let volume = Uuid::new_v4();
        self.must(Command::CreateVolume { volume, size: bytes })?;
        self.must(Command::Attach { token: token.to_owned(), target: volume, writable: true })?;
        Ok(volume)
    }
}
