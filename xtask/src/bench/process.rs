//! Other programs: run to their end within a bound, or kept as servers until dropped.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::undo::{self, Act, Guard};

/// Nothing that the bench runs to its end may take longer; what does is a failed measurement, not a hung run.
pub const BOUND: Duration = Duration::from_secs(300);

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    pid: u32,
    _guard: Guard,
}

impl Server {
    /// Starts it with standard output and error appended to the file `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Server> {
        let log = File::options().create(true).append(true).open(log).context("opening a log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: what is called is async-signal-safe.
        unsafe { command.pre_exec(undo::unblock_signals) };
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Server { pid: child.id(), _guard: Guard::new(Act::End(child.id() as i32)) })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// Runs to the end and returns standard output; an error where it fails or takes longer than [`BOUND`].
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    output_within(program, args, BOUND)
}

pub fn output_within(program: &str, args: &[&str], bound: Duration) -> Result<String> {
    let mut out = tempfile::tempfile()?;
    let mut err = tempfile::tempfile()?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    // SAFETY: what is called is async-signal-safe.
    unsafe { command.pre_exec(undo::unblock_signals) };
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let guard = Guard::new(Act::End(child.id() as i32));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            guard.forget();
            break status;
        }
        if start.elapsed() > bound {
            bail!("`{program} {}` took longer than {} s", args.join(" "), bound.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let read = |file: &mut File| -> Result<String> {
        file.rewind()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    if !status.success() {
        bail!("`{program} {}` ended with {status}: {}", args.join(" "), read(&mut err)?.trim());
    }
    read(&mut out)
}

/// Processor time that a process has used so far, its threads and the kernel's for it (io_uring) included, in seconds.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields are counted behind it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some((user + system) / ticks.max(1) as f64)
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Held at most so far: the program itself and shared memory included.
    pub most: u64,
    /// Its own, now: neither files nor shared.
    pub anonymous: u64,
}

pub fn memory(pid: u32) -> Option<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| number(&text, name).map(|kib| kib * 1024);
    Some(Memory { most: kib("VmHWM:")?, anonymous: kib("RssAnon:")? })
}

/// Bytes that a process has had read from and written to devices so far.
pub fn device_bytes(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    Some((number(&text, "read_bytes:")?, number(&text, "write_bytes:")?))
}

/// The number behind a name at the start of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
