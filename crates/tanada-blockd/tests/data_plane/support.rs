//! A keeper with its blockd on a scratch store, and blocking clients for both sockets.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tanada_blockd_api::{Answer, Command, Envelope, Event, Failure, Greeting, Outcome, Response};
use tanada_nbd::plain;
use tanada_nbd::proto::{CMD_READ, CMD_WRITE, RequestHeader, SimpleReply};
use tempfile::TempDir;
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;

/// A test that waits longer than this for a server has found a hang.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn program() -> Process {
    Process::new(env!("CARGO_BIN_EXE_tanada-data-plane"))
}

/// A running keeper. Ends it, and waits for its end, when dropped.
pub struct Plane {
    dir: TempDir,
    store: PathBuf,
}

impl Plane {
    /// Makes a store of `bytes` and serves it.
    pub fn start(bytes: u64) -> Plane {
        let dir = TempDir::new().unwrap();
        let store = dir.path().join("store");
        Plane::serve(dir, store, bytes)
    }

    /// The same on a file that is there.
    pub fn over(store: PathBuf, bytes: u64) -> Plane {
        Plane::serve(TempDir::new().unwrap(), store, bytes)
    }

    fn serve(dir: TempDir, store: PathBuf, bytes: u64) -> Plane {
        let plane = Plane { dir, store };
        let size = bytes.to_string();
        let store = plane.store();
        let store = store.to_str().unwrap();
        succeed(program().args(["store", "format", store, "--size", &size, "--journal", "16M"]));
        plane.keep();
        plane
    }

    /// Starts a keeper.
    pub fn keep(&self) {
        succeed(&mut self.keeper());
    }

    pub fn keeper(&self) -> Process {
        let mut keeper = program();
        keeper.arg("blockd-keeper").arg("--daemonize").arg("--store").arg(self.store());
        keeper.arg("--runtime-dir").arg(self.runtime_dir());
        keeper
    }

    pub fn store(&self) -> PathBuf {
        self.store.clone()
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Address of the export for QEMU, libnbd and fio.
    pub fn uri(&self, token: &str) -> String {
        format!("nbd+unix:///{token}?socket={}", self.nbd_socket().display())
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.runtime_dir().join("nbd.sock")
    }

    pub fn control(&self) -> Control {
        Control::connect(&self.runtime_dir().join("control.sock"))
    }

    pub fn nbd(&self, token: &str) -> io::Result<Nbd> {
        Nbd::connect(&self.nbd_socket(), token)
    }

    /// A new volume of `bytes`, attached for writing under `token`.
    pub fn volume(&self, token: &str, bytes: u64) -> Uuid {
        let mut control = self.control();
        let volume = Uuid::new_v4();
        control.change(Command::CreateVolume { volume, size: bytes });
        control.change(Command::Attach { token: token.to_owned(), target: volume, writable: true });
        volume
    }

    pub fn pid(&self, name: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.runtime_dir().join(name)).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// Sends a signal to blockd and waits until that process is gone.
    pub fn end_blockd(&self, signal: Signal) {
        // Who greets is alive; the file may still name the one before.
        let pid = self.control().greeting.pid;
        end(Pid::from_raw(pid as i32).unwrap(), signal);
    }

    /// Ends the keeper, and its blockd, cleanly.
    pub fn stop(&self) {
        if let Some(pid) = self.pid("keeper.pid") {
            end(pid, Signal::TERM);
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop();
    }
}

fn end(pid: Pid, signal: Signal) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    kill_process(pid, signal).unwrap();
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
}

/// Runs a program to its successful end.
pub fn succeed(process: &mut Process) -> Output {
    let output = process.output().unwrap_or_else(|error| panic!("{process:?}: {error}"));
    assert!(output.status.success(), "{process:?}: {}\n{}", output.status, text(&output));
    output
}

/// Runs a program that must fail; what it said.
pub fn fail(process: &mut Process) -> String {
    let output = process.output().unwrap_or_else(|error| panic!("{process:?}: {error}"));
    assert!(!output.status.success(), "{process:?} succeeded\n{}", text(&output));
    text(&output)
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A client of the control socket.
pub struct Control {
    /// Events that came while answers were awaited.
    pub events: Vec<Event>,
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    pub greeting: Greeting,
    next: u64,
}

impl Control {
    fn connect(path: &Path) -> Control {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        Control { events: Vec::new(), stream, lines, greeting: serde_json::from_str(&line).unwrap(), next: 1 }
    }

    pub fn send(&mut self, command: Command) -> u64 {
        let id = self.next;
        self.next += 1;
        self.send_line(&serde_json::to_string(&Envelope { id, command }).unwrap());
        id
    }

    pub fn send_line(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next line; empty at the end of the connection.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        // A reset is an end too.
        let _ = self.lines.read_line(&mut line);
        line
    }

    pub fn call(&mut self, command: Command) -> Result<Answer, Failure> {
        let id = self.send(command);
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the control connection ended");
            let Ok(response) = serde_json::from_str::<Response>(&line) else {
                self.events.push(serde_json::from_str(&line).unwrap());
                continue;
            };
            if response.id == id {
                return match response.outcome {
                    Outcome::Ok(answer) => Ok(answer),
                    Outcome::Error(failure) => Err(failure),
                };
            }
        }
    }

    /// The next event.
    pub fn event(&mut self) -> Event {
        if self.events.is_empty() {
            let line = self.line();
            return serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
        self.events.remove(0)
    }

    /// Something that must change the store's state.
    pub fn change(&mut self, command: Command) {
        match self.call(command.clone()) {
            Ok(Answer::Changed { changed: true } | Answer::Cut(_)) => {}
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// Something that must fail; its errno.
    pub fn errno(&mut self, command: Command) -> i32 {
        match self.call(command.clone()) {
            Err(failure) => failure.errno,
            Ok(answer) => panic!("{command:?} succeeded: {answer:?}"),
        }
    }
}

/// A plain NBD client: simple replies, whatever order they come in.
pub struct Nbd {
    stream: UnixStream,
    pub size: u64,
}

impl Nbd {
    pub fn connect(path: &Path, token: &str) -> io::Result<Nbd> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let size = plain::enter(&mut stream, token)?;
        Ok(Nbd { stream, size })
    }

    pub fn send(&mut self, command: u16, cookie: u64, offset: u64, length: u32, payload: &[u8]) -> io::Result<()> {
        let mut bytes = RequestHeader { flags: 0, command, cookie, offset, length }.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes)
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn reply(&mut self) -> io::Result<SimpleReply> {
        let mut bytes = [0; 16];
        self.stream.read_exact(&mut bytes)?;
        SimpleReply::decode(&bytes).map_err(io::Error::other)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.send(CMD_WRITE, 1, offset, data.len() as u32, data)?;
        succeeded(self.reply()?)
    }

    pub fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.send(CMD_READ, 2, offset, length as u32, &[])?;
        succeeded(self.reply()?)?;
        self.data(length)
    }

    /// What follows the reply to a read.
    pub fn data(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// True where the server has ended the connection.
    pub fn is_ended(&mut self) -> bool {
        !matches!(self.stream.read(&mut [0; 1]), Ok(1..))
    }
}

pub fn succeeded(reply: SimpleReply) -> io::Result<()> {
    match reply.error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error as i32)),
    }
}
