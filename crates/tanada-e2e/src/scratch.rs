//! One control daemon in a directory of its own.

use crate::processes::end_all_of;
use crate::{DEADLINE, python, tanada};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Root's password for logins over TLS.
const PASSWORD: &str = "a test's own secret";

pub struct Scratch {
    dir: PathBuf,
    daemon: Option<Child>,
    https: SocketAddr,
    nbd: SocketAddr,
    /// The daemon's schedules go by a clock that the test moves.
    steered: bool,
}

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub status: i32,
}

impl Scratch {
    /// Makes the directory and starts the daemon in it.
    pub fn start() -> Scratch {
        Scratch::begin(false, |_| ())
    }

    /// The same, with a clock for schedules that [`Scratch::clock`] moves.
    pub fn start_steered() -> Scratch {
        Scratch::begin(true, |_| ())
    }

    /// As [`Scratch::start`], with something done in the state directory before.
    pub fn start_prepared(prepare: impl FnOnce(&Path)) -> Scratch {
        Scratch::begin(false, prepare)
    }

    fn begin(steered: bool, prepare: impl FnOnce(&Path)) -> Scratch {
        // No underscores: the SDK writes the socket's path as a host name with underscores for slashes.
        let dir =
            tempfile::Builder::new().prefix("tanada-e2e-").tempdir_in("/tmp").expect("a scratch directory").keep();
        // QEMU's unprivileged user has to pass through.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("permissions of the scratch directory");
        fs::write(dir.join("password"), PASSWORD).expect("the password file");
        let mut scratch = Scratch { dir, daemon: None, https: free_port(), nbd: free_port(), steered };
        let state = scratch.path("state");
        fs::DirBuilder::new().mode(0o700).create(&state).expect("the state directory");
        prepare(&state);
        scratch.start_daemon();
        scratch
    }

    /// Starts the daemon, also again after [`Scratch::kill_daemon`], and waits until it answers.
    pub fn start_daemon(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).expect("the daemon's log");
        let mut command = Command::new(tanada());
        command.arg("daemon");
        if self.steered {
            command.arg("--clock").arg(self.path("run/clock"));
        }
        let daemon = command
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--runtime-dir")
            .arg(self.path("run"))
            .arg("--unix-socket")
            .arg(self.socket())
            .arg("--listen")
            .arg(self.https.to_string())
            .arg("--nbd-listen")
            .arg(self.nbd.to_string())
            .arg("--root-password-file")
            .arg(self.path("password"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the daemon's log"))
            .stderr(log)
            .spawn()
            .expect("starting the daemon");
        self.daemon = Some(daemon);
        self.eventually("the daemon answers", |scratch| {
            let ran = scratch.xe(["host-list", "--minimal"]);
            if ran.status == 0 { Ok(()) } else { Err(ran.err) }
        });
    }

    /// Moves the clock of schedules by a line as `through 2027-03-28T02:00:00Z`; what came of it.
    #[track_caller]
    pub fn clock(&self, order: &str) -> String {
        let socket = self.path("run/clock");
        let mut stream = UnixStream::connect(&socket).expect("the clock's socket");
        writeln!(stream, "{order}").expect("an order to the clock");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("the clock's answer");
        let tally = answer.trim_end().strip_prefix("ok now=").and_then(|rest| rest.split_once(' '));
        tally.unwrap_or_else(|| panic!("{order}: {answer}")).1.to_owned()
    }

    /// As a crash would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().expect("killing the daemon");
        daemon.wait().expect("the daemon's end");
    }

    /// Asks until `ask` succeeds. Fails at once when the daemon is gone.
    #[track_caller]
    pub fn eventually<T>(&mut self, what: &str, ask: impl Fn(&Scratch) -> Result<T, String>) -> T {
        self.eventually_within(DEADLINE, what, ask)
    }

    /// The same with a deadline of one's own.
    #[track_caller]
    pub fn eventually_within<T>(
        &mut self,
        deadline: Duration,
        what: &str,
        ask: impl Fn(&Scratch) -> Result<T, String>,
    ) -> T {
        let start = Instant::now();
        loop {
            let said = match ask(self) {
                Ok(found) => return found,
                Err(said) => said,
            };
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
            assert!(ended.is_none(), "{what}: the daemon ended with {ended:?}; {said}");
            assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}; {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/xapi.sock")
    }

    /// Address of the API over TLS.
    pub fn https_url(&self) -> String {
        format!("https://{}", self.https)
    }

    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    fn log(&self) -> PathBuf {
        self.path("daemon.log")
    }

    /// Runs `xe` over the local socket.
    pub fn xe<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let mut command = Command::new(tanada());
        command.arg("xe").args(args).env("TANADA_SOCKET", self.socket());
        // The caller's own settings are not the test's.
        command.env_remove("XE_EXTRA_ARGS").env_remove("XE_CA").env("HOME", &self.dir).stdin(Stdio::null());
        run(command)
    }

    /// Runs `xe` over TLS as root, with the host's own certificate to check it by.
    pub fn xe_tls<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let port = self.https.port().to_string();
        let mut command = Command::new(tanada());
        command.args(["xe", "-s", "127.0.0.1", "-p", &port, "-u", "root", "-pw", PASSWORD]);
        command.arg("--ca").arg(self.path("state/tls/cert.pem")).args(args);
        command.env_remove("XE_EXTRA_ARGS").env_remove("XE_CA").env("HOME", &self.dir).stdin(Stdio::null());
        run(command)
    }

    /// `xe` that must succeed; its output without the last newline.
    #[track_caller]
    pub fn xe_ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let ran = self.xe(&args);
        assert_eq!(ran.status, 0, "xe {args:?}: {}", ran.err);
        ran.out.trim_end_matches('\n').to_owned()
    }

    /// The uuid of the disk in this place of a machine or a snapshot.
    #[track_caller]
    pub fn disk(&self, vm: &str, device: usize) -> String {
        let place = [format!("vm-uuid={vm}"), format!("userdevice={device}")];
        self.xe_ok(["vbd-list", &place[0], &place[1], "params=vdi-uuid", "--minimal"])
    }

    /// `xe` that must fail; what it said on stderr.
    #[track_caller]
    pub fn xe_fails<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let ran = self.xe(&args);
        assert_eq!(ran.status, 1, "xe {args:?} was to fail and said: {}", ran.out);
        ran.err
    }

    /// Runs a Python script that must succeed.
    #[track_caller]
    pub fn python_ok<S: AsRef<OsStr>>(&self, script: &Path, args: impl IntoIterator<Item = S>) -> String {
        let mut command = Command::new(python());
        command.arg(script).args(args).stdin(Stdio::null());
        let ran = run(command);
        assert_eq!(ran.status, 0, "{}:\n{}{}", script.display(), ran.out, ran.err);
        ran.out
    }
}

fn run(mut command: Command) -> Ran {
    let output = command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    Ran {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status.code().unwrap_or(-1),
    }
}

/// A port that was free a moment ago; the kernel does not give it to others again at once.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("the port's number")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        end_all_of(&self.dir);
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("kept {}; the daemon's last words:", self.dir.display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("  {line}");
            }
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
