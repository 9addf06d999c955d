//! Tanada's data plane as a server that is measured: a store of its own, a keeper, the control socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::fio::Place;
use super::process::{self, Server};
use super::undo::{Act, Guard};
use crate::sh;

/// How long any one command may take.
const ANSWER: Duration = Duration::from_secs(120);

/// What kind of space a store's file consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Every byte written before (zeros): like a file, or a disk, that has been in use for long.
    Written,
    /// Holes: what a fresh file is.
    Sparse,
}

/// A running store.
#[derive(Debug)]
pub struct Blockd {
    /// Holds the store.
    dir: PathBuf,
    /// Sockets and what outlives a blockd: in memory, as /run is in production.
    run: PathBuf,
    pid: u32,
    keeper: Option<Server>,
    /// More for the keeper's command line.
    arguments: Vec<String>,
    next: u64,
    _files: [Guard; 2],
}

impl Blockd {
    /// Formats a store of `bytes` in the new folder `dir` and serves it.
    pub fn create(dir: PathBuf, bytes: u64, space: Space) -> Result<Blockd> {
        Ok(Blockd::create_with(dir, |store| {
            let (path, size) = (store.to_string_lossy(), bytes.to_string());
            let mut arguments = vec!["store", "format", &path, "--size", &size];
            if space == Space::Written {
                // Zeros everywhere, and what is freed stays written: no holes are punched.
                arguments.push("--preallocate");
            }
            process::output(&binary(), &arguments).map(drop)
        })?
        .0)
    }

    /// Serves a store that `make` makes at the path it is given; also how long it took until blockd served it.
    pub fn create_with(dir: PathBuf, make: impl FnOnce(&Path) -> Result<()>) -> Result<(Blockd, Duration)> {
        std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let store_removed = Guard::new(Act::Remove(dir.clone()));
        make(&dir.join("store"))?;
        let run = runtime_dir(&dir)?;
        let run_removed = Guard::new(Act::Remove(run.clone()));
        let mut blockd = Blockd {
            dir,
            run,
            pid: 0,
            keeper: None,
            arguments: Vec::new(),
            next: 0,
            _files: [store_removed, run_removed],
        };
        let took = blockd.start()?;
        Ok((blockd, took))
    }

    /// Ends keeper and blockd in order and starts them again with these arguments besides the usual ones. Attachments stay.
    pub fn restart_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.keeper = None;
        self.arguments = arguments.iter().map(ToString::to_string).collect();
        self.start().map(drop)
    }

    /// Starts the keeper; returns how long it took until blockd greeted.
    fn start(&mut self) -> Result<Duration> {
        let mut command = Command::new(binary());
        command.arg("blockd-keeper").arg("--store").arg(self.dir.join("store")).arg("--runtime-dir").arg(&self.run);
        command.args(&self.arguments);
        let begun = Instant::now();
        self.keeper = Some(Server::start(command, &self.run.join("log"))?);
        self.pid = self.greeting().with_context(|| format!("blockd's log: {}", self.log_end()))?;
        Ok(begun.elapsed())
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.run.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// Waits until blockd serves; its process id.
    fn greeting(&self) -> Result<u32> {
        let begun = Instant::now();
        let socket = self.run.join("control.sock");
        loop {
            // The keeper listens before blockd is ready: the greeting, not the connection, says that it serves.
            if let Ok(stream) = UnixStream::connect(&socket) {
                stream.set_read_timeout(Some(ANSWER))?;
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).context("waiting for blockd's greeting")?;
                let greeting: Value = serde_json::from_str(&line).context("blockd's greeting")?;
                return greeting["pid"].as_u64().map(|pid| pid as u32).context("a greeting without a pid");
            }
            if begun.elapsed() > ANSWER {
                bail!("nobody listens on {}", socket.display());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGKILL to blockd; the keeper starts another. Returns how long it took until that one served.
    pub fn kill(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let killed = self.pid;
        // SAFETY: kill has no preconditions; the keeper, its parent, has not reaped it or will see ESRCH here.
        unsafe { libc::kill(killed as i32, libc::SIGKILL) };
        loop {
            // A connection to the dead one may still be accepted by the kernel and end without a greeting.
            match self.greeting() {
                Ok(pid) if pid != killed => {
                    self.pid = pid;
                    return Ok(begun.elapsed());
                }
                _ if begun.elapsed() > ANSWER => bail!("blockd does not come back: {}", self.log_end()),
                _ => {}
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where the export `token` is reached.
    pub fn place(&self, token: &str) -> Place {
        Place::Nbd(format!("nbd+unix:///{token}?socket={}", self.nbd_socket().display()))
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.run.join("nbd.sock")
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// A uuid of the run, new each time.
    pub fn new_id(&mut self) -> String {
        self.next += 1;
        format!("22222222-2222-4222-8222-{:012x}", self.next)
    }

    /// A volume that is attached for writing under `token`; its id.
    pub fn volume(&mut self, token: &str, bytes: u64) -> Result<String> {
        let volume = self.new_id();
        let mut control = self.control()?;
        control.call("create_volume", json!({"volume": volume, "size": bytes}))?;
        control.call("attach", json!({"token": token, "target": volume, "writable": true}))?;
        Ok(volume)
    }

    /// One generation of one volume; its id.
    pub fn snapshot(&mut self, control: &mut Control, volume: &str) -> Result<String> {
        let generation = self.new_id();
        control.call("snapshot", json!({"group": [{"volume": volume, "generation": generation}]}))?;
        Ok(generation)
    }

    pub fn control(&self) -> Result<Control> {
        Control::connect(&self.run.join("control.sock"))
    }

    pub fn stat(&self) -> Result<Value> {
        Ok(self.control()?.call("store_stat", Value::Null)?["store"].clone())
    }
}

/// A new folder in memory where there is such a thing, beside the store otherwise.
fn runtime_dir(dir: &Path) -> Result<PathBuf> {
    let shared = Path::new("/dev/shm");
    let parent = if shared.is_dir() { shared } else { dir };
    let run = tempfile::Builder::new().prefix("tanada-bench-").tempdir_in(parent).context("a runtime folder")?;
    Ok(run.keep())
}

/// The program that is measured: `TANADA_BIN` names another one than the release build.
pub fn binary() -> String {
    let built = || sh::target_dir().join("release/tanada").into_os_string();
    std::env::var_os("TANADA_BIN").unwrap_or_else(built).to_string_lossy().into_owned()
}

/// A new file of `bytes` zeros that are written, not holes.
pub fn write_zeros(path: &Path, bytes: u64) -> Result<()> {
    const PIECE: usize = 4 << 20;
    // O_DIRECT wants an aligned buffer: a piece of a page more, begun at a page's edge.
    let room = vec![0u8; PIECE + 4096];
    let skip = room.as_ptr().align_offset(4096);
    let zeros = room.get(skip..skip + PIECE).context("an aligned buffer")?;
    let open = |flags| File::options().write(true).create(true).truncate(true).custom_flags(flags).open(path);
    let file = open(libc::O_DIRECT).or_else(|_| open(0)).with_context(|| format!("making {}", path.display()))?;
    for at in (0..bytes).step_by(PIECE) {
        let count = (bytes - at).min(PIECE as u64) as usize;
        file.write_all_at(&zeros[..count], at).with_context(|| format!("filling {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("syncing {}", path.display()))
}

/// A connection to blockd's control socket.
#[derive(Debug)]
pub struct Control {
    lines: BufReader<UnixStream>,
    next: u64,
}

impl Control {
    pub fn connect(socket: &Path) -> Result<Control> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut control = Control { lines: BufReader::new(stream), next: 0 };
        control.line()?;
        Ok(control)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line).context("reading blockd's answer")? == 0 {
            bail!("blockd closed the connection");
        }
        serde_json::from_str(&line).context("blockd's answer")
    }

    /// One command; its answer, or the refusal as an error.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.next += 1;
        let mut command = json!({"id": self.next, "method": method});
        if !params.is_null() {
            command["params"] = params;
        }
        writeln!(self.lines.get_mut(), "{command}")?;
        loop {
            let answer = self.line().with_context(|| method.to_string())?;
            if answer["id"] == self.next {
                return match answer.get("error") {
                    Some(error) => bail!("{method}: {error}"),
                    None => Ok(answer["ok"].clone()),
                };
            }
        }
    }
}
