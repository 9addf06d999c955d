//! A whole control plane with one store, and machines in it: for what only shows where everything takes part.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::blockd::{Control, binary};
use super::fio::{Figures, Place};
use super::nbd::Writer;
use super::process::Server;
use super::undo::{Act, Guard};
use crate::beside;

/// How long the control plane may take to begin.
const START: Duration = Duration::from_secs(60);

/// A control plane with one store.
pub struct Plane {
    run: PathBuf,
    sr: String,
    _daemon: Server,
    _keeper: Guard,
    _files: Guard,
}

/// A halted machine whose disk is loaded as its guest would.
pub struct Guest {
    /// Uuids.
    pub vm: String,
    disk: String,
    pub place: Place,
    socket: PathBuf,
    export: String,
}

impl Guest {
    /// Random writes, the same ones for the same `seed`.
    pub fn writer(&self, seed: u64) -> Result<Writer> {
        Writer::connect(&self.socket, &self.export, 32, seed)
    }
}

impl Plane {
    /// In the new folder `dir`, with a store of so many bytes.
    pub fn start(dir: &Path, bytes: u64) -> Result<Plane> {
        std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        let files = Guard::new(Act::Remove(dir.to_owned()));
        let run = dir.join("run");
        let mut command = Command::new(binary());
        command.arg("daemon").arg("--state-dir").arg(dir.join("state")).arg("--runtime-dir").arg(&run);
        command.arg("--unix-socket").arg(run.join("xapi.sock")).args(["--listen", "127.0.0.1:0"]);
        let daemon = Server::start(command, &dir.join("log"))?;
        let begun = Instant::now();
        while let Err(error) = xe(&run, &["host-list", "--minimal"]) {
            if begun.elapsed() > START {
                return Err(error.context("the control plane does not answer"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        let location = format!("device-config:location={}", dir.join("store").display());
        let size = format!("physical-size={bytes}");
        let sr = xe(&run, &["sr-create", "type=tanada", "name-label=export", &location, &size])?;
        let pid = run.join("sr").join(&sr).join("keeper.pid");
        let pid = std::fs::read_to_string(&pid).with_context(|| format!("reading {}", pid.display()))?;
        let keeper = Guard::new(Act::End(pid.trim().parse().context("the keeper's process id")?));
        Ok(Plane { run, sr, _daemon: daemon, _keeper: keeper, _files: files })
    }

    pub fn xe(&self, args: &[&str]) -> Result<String> {
        xe(&self.run, args)
    }

    pub fn control(&self) -> Result<Control> {
        Control::connect(&self.run.join("sr").join(&self.sr).join("control.sock"))
    }

    fn nbd_socket(&self) -> PathBuf {
        self.run.join("sr").join(&self.sr).join("nbd.sock")
    }

    pub fn place(&self, token: &str) -> Place {
        Place::Nbd(format!("nbd+unix:///{token}?socket={}", self.nbd_socket().display()))
    }

    /// A machine of this name with one disk, which is attached for writing.
    pub fn guest(&self, name: &str, bytes: u64) -> Result<Guest> {
        let vm = self.xe(&["vm-create", &format!("name-label={name}")])?;
        let (sr, size) = (format!("sr-uuid={}", self.sr), format!("disk-size={bytes}"));
        self.xe(&["vm-disk-add", &format!("vm={name}"), &size, "device=0", &sr])?;
        let disk = self.disk(&vm)?;
        self.control()?.call("attach", json!({"token": name, "target": disk, "writable": true}))?;
        Ok(Guest { vm, disk, place: self.place(name), socket: self.nbd_socket(), export: name.to_owned() })
    }

    pub fn disk(&self, vm: &str) -> Result<String> {
        self.xe(&["vbd-list", &format!("vm-uuid={vm}"), "params=vdi-uuid", "--minimal"])
    }

    /// A generation that no record knows: only the store has to keep it.
    pub fn cut(&self, control: &mut Control, guest: &Guest) -> Result<()> {
        let generation = uuid::Uuid::new_v4();
        control.call("snapshot", json!({"group": [{"volume": guest.disk, "generation": generation}]})).map(drop)
    }

    /// Measures while exports run one after another. An export that fails is an error: it would have disturbed nobody.
    pub fn during_export(
        &self,
        snapshot: &str,
        bound: Option<u64>,
        measure: impl FnOnce() -> Result<Figures>,
    ) -> Result<Figures> {
        let mut args =
            vec!["snapshot-export-to-template".to_owned(), format!("uuid={snapshot}"), "filename=".to_owned()];
        args.extend(bound.map(|rate| format!("rate={rate}")));
        beside::repeatedly(|| command(&self.run, &args), measure)
    }
}

fn command(run: &Path, args: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(binary());
    command.arg("xe").args(args.iter().map(AsRef::as_ref)).env("TANADA_SOCKET", run.join("xapi.sock"));
    command.stdin(Stdio::null());
    command
}

fn xe(run: &Path, args: &[&str]) -> Result<String> {
    let output = command(run, args).output().context("starting xe")?;
    if !output.status.success() {
        bail!("xe {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
