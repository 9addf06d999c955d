//! A store served by a real keeper and blockd, in a scratch directory that goes with it.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tanada_blockd_api::{Answer, Envelope, Outcome, Response};
use tempfile::TempDir;

pub use tanada_blockd_api::Command as Verb;

/// The binary under test: `TANADA_BIN`, or the one beside this test's target directory.
pub fn tanada_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TANADA_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("this test's own path")?;
    let profile = own.ancestors().nth(2).context("a test lies below its profile's directory")?;
    let binary = profile.join("tanada");
    if !binary.exists() {
        bail!("{} is not built: run `cargo build -p tanada` first, or `cargo xtask test`", binary.display());
    }
    Ok(binary)
}

/// A running store. Dropping it ends keeper and blockd.
pub struct StoreProcess {
    dir: TempDir,
    door: Door,
}

/// The control socket of a store that is served.
pub struct Door {
    next_id: u64,
    reader: Lines<BufReader<UnixStream>>,
    writer: UnixStream,
}

impl StoreProcess {
    /// Formats a store of `bytes` and serves it.
    pub fn start(bytes: u64) -> Result<StoreProcess> {
        let dir = tempfile::Builder::new().prefix("tanada-store-").tempdir().context("a scratch directory")?;
        let binary = tanada_binary()?;
        let store = dir.path().join("test.store");
        run(Command::new(&binary).args(["store", "format"]).arg(&store).args(["--size", &bytes.to_string()]))?;
        let keeper = ["blockd-keeper", "--daemonize"];
        run(Command::new(&binary).args(keeper).arg("--store").arg(&store).arg("--runtime-dir").arg(dir.path()))?;
        let door = Door::open(dir.path())?;
        Ok(StoreProcess { dir, door })
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    /// One command over the control socket; a refusal is an error.
    pub fn control(&mut self, command: Verb) -> Result<Answer> {
        self.door.control(command)
    }

    /// Kills blockd as a crash would and connects to its successor.
    pub fn kill_blockd(&mut self) -> Result<()> {
        let pid = self.pid("blockd.pid")?;
        // SAFETY: kill has no preconditions; the pid is blockd's, from its own file.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        self.door = Door::open(self.dir.path())?;
        Ok(())
    }

    fn pid(&self, file: &str) -> Result<i32> {
        let path = self.dir.path().join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} holds '{text}'", path.display()))
    }
}

impl Drop for StoreProcess {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid("keeper.pid") {
            // SAFETY: kill has no preconditions; the pid is the keeper's, from its own file.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }
}

impl Door {
    /// Connects to the store whose runtime directory this is, and reads the greeting. The keeper holds the listening
    /// socket, so this waits for blockd by itself.
    pub fn open(dir: &Path) -> Result<Door> {
        let path = dir.join("control.sock");
        let writer = UnixStream::connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
        let mut reader = BufReader::new(writer.try_clone()?).lines();
        reader.next().context("blockd closed the control socket before its greeting")??;
        Ok(Door { next_id: 1, reader, writer })
    }

    /// One command over the control socket; a refusal is an error.
    pub fn control(&mut self, command: Verb) -> Result<Answer> {
        let id = self.next_id;
        self.next_id += 1;
        let line = serde_json::to_string(&Envelope { id, command })?;
        writeln!(self.writer, "{line}").context("writing to the control socket")?;
        loop {
            let line = self.reader.next().context("blockd closed the control socket")??;
            let Ok(response) = serde_json::from_str::<Response>(&line) else { continue };
            if response.id == id {
                return match response.outcome {
                    Outcome::Ok(answer) => Ok(answer),
                    Outcome::Error(failure) => Err(failure.into()),
                };
            }
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
