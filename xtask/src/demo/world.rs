//! The scratch world of a demo: a directory, the daemon in it, and `xe` to talk to it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::eventually;
use super::storage::{Array, Kind};
use crate::sh;

/// Scratch directories are known by it; only such are ever removed.
const SCRATCH_PREFIX: &str = "tanada-demo-";

/// For whoever comes over TLS; the demo's world is its own.
const PASSWORD: &str = "the demo's own secret";

/// Set by the handler of Ctrl-C; looked at between commands.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Everything a demo made and has to unmake.
pub struct World {
    pub dir: PathBuf,
    binary: PathBuf,
    xe: PathBuf,
    /// What the daemon finds out with whether KVM works here.
    kernel: PathBuf,
    /// Schedules follow [`World::clock`] instead of the time of day.
    steered: bool,
    /// Where the API answers over TLS, and where disks are served.
    https: SocketAddr,
    nbd: SocketAddr,
    daemon: Option<Child>,
    array: Option<Array>,
    notes: Vec<String>,
    started: Instant,
}

impl World {
    /// Builds the programs (`dev`: without optimisation; or takes what `TANADA_BIN` names) and starts the daemon in a new
    /// directory.
    pub fn start(dev: bool, kernel: &Path, sr: Kind) -> Result<World> {
        World::begin(dev, kernel, sr, false)
    }

    /// The same, where the schedules' time stands still until [`World::clock`] moves it.
    pub fn start_steered(dev: bool, kernel: &Path, sr: Kind) -> Result<World> {
        World::begin(dev, kernel, sr, true)
    }

    fn begin(dev: bool, kernel: &Path, sr: Kind, steered: bool) -> Result<World> {
        let binary = sh::tanada(dev)?;
        catch_interrupts();
        let dir = tempfile::Builder::new()
            .prefix(SCRATCH_PREFIX)
            .tempdir_in("/tmp")
            .context("making a scratch directory")?
            .keep();
        // The unprivileged user that QEMU runs as has to pass through.
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let xe = dir.join("xe");
        std::os::unix::fs::symlink(&binary, &xe).context("linking xe")?;
        let mut world = World {
            dir,
            binary,
            xe,
            kernel: kernel.to_path_buf(),
            steered,
            https: free_port()?,
            nbd: free_port()?,
            daemon: None,
            array: None,
            notes: Vec::new(),
            started: Instant::now(),
        };
        println!("scratch directory {}", world.dir.display());
        fs::write(world.password_file(), PASSWORD).context("writing the password file")?;
        world.array = Array::start(sr, &world.dir, dev)?;
        world.remember_accelerator(false)?;
        world.start_daemon()?;
        Ok(world)
    }

    /// Where KVM hangs, finding that out takes 20 seconds: the verdict is kept between runs. It names the host's boot, so
    /// that an old one counts for nothing.
    pub fn remember_accelerator(&self, found: bool) -> Result<()> {
        let kept = sh::target_dir().join("guest/accelerator.json");
        let state = self.dir.join("state");
        let (from, to) =
            if found { (state.join("accelerator.json"), kept) } else { (kept, state.join("accelerator.json")) };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&state).context("making the state directory")?;
        if from.exists() {
            fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(())
    }

    /// Starts (or starts again) the control plane and waits until it answers.
    pub fn start_daemon(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.binary);
        command
            .arg("daemon")
            .args([
                Path::new("--state-dir"),
                &self.dir.join("state"),
                Path::new("--runtime-dir"),
                &self.dir.join("run"),
            ])
            .args([Path::new("--unix-socket"), &self.socket()])
            .args([Path::new("--probe-kernel"), &self.kernel])
            .args(["--listen", &self.https.to_string(), "--nbd-listen", &self.nbd.to_string()])
            .args([Path::new("--root-password-file"), &self.password_file()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        if self.steered {
            command.args([Path::new("--clock"), &self.clock_socket()]);
        }
        self.daemon = Some(command.spawn().context("starting the daemon")?);
        eventually("the daemon answers", Duration::from_secs(30), || self.xe(&["host-list", "--minimal"])).map(drop)
    }

    /// Kills the control plane as a crash would.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the daemon is not running")?;
        daemon.kill().context("killing the daemon")?;
        daemon.wait().context("waiting for the daemon")?;
        Ok(())
    }

    /// Address of the API over TLS.
    pub fn https_url(&self) -> String {
        format!("https://{}", self.https)
    }

    /// Root's password for logins over TLS.
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// What the API and disks over NBD prove themselves with.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("state/tls/cert.pem")
    }

    fn clock_socket(&self) -> PathBuf {
        self.dir.join("run/clock.sock")
    }

    /// Moves the schedules' clock (`at TIME`, or `through TIME` with every run on the way) and returns what it answers when
    /// nothing of it is under way any more.
    pub fn clock(&self, order: &str) -> Result<String> {
        let path = self.clock_socket();
        let mut stream =
            UnixStream::connect(&path).with_context(|| format!("reaching the clock {}", path.display()))?;
        writeln!(stream, "{order}").context("moving the clock")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).context("the clock's answer")?;
        match answer.trim().strip_prefix("ok ") {
            Some(told) => Ok(told.to_owned()),
            None => bail!("the clock answers '{}' to '{order}'", answer.trim()),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run/xapi.sock")
    }

    /// The simulated array; an error where the repository is on the embedded store.
    pub fn array(&self) -> Result<&Array> {
        self.array.as_ref().context("this run has no array")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("tanadad.log")
    }

    /// Runs `xe`; its trimmed output, or an error with what it said.
    pub fn xe<S: AsRef<str>>(&self, args: &[S]) -> Result<String> {
        let (success, out, err) = self.xe_raw(args)?;
        if !success {
            let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
            bail!("xe {}: {}", args.join(" "), err.trim());
        }
        Ok(out.trim_end().to_string())
    }

    /// Runs `xe` where failing is what is expected; its standard error.
    pub fn xe_fails<S: AsRef<str>>(&self, args: &[S]) -> Result<String> {
        let (success, out, err) = self.xe_raw(args)?;
        if success {
            let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
            bail!("xe {} succeeded ({}); it had to be refused", args.join(" "), out.trim());
        }
        Ok(err)
    }

    fn xe_raw<S: AsRef<str>>(&self, args: &[S]) -> Result<(bool, String, String)> {
        if interrupted() {
            bail!("interrupted");
        }
        let output = self.xe_command(args).output().context("starting xe")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    }

    /// What a command prints, whether it succeeds or not.
    pub fn xe_said<S: AsRef<str>>(&self, args: &[S]) -> Result<String> {
        let (_, out, err) = self.xe_raw(args)?;
        Ok(format!("{}{}", out.trim_end(), err.trim_end()))
    }

    /// Another program of the binary, with its output; it has to succeed.
    pub fn tanada(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.binary).args(args).env("TANADA_SOCKET", self.socket()).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("tanada {} failed: {}{}", args.join(" "), text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// An `xe` that is still to be started.
    pub fn xe_command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.xe);
        command.args(args.iter().map(AsRef::as_ref)).env("TANADA_SOCKET", self.socket()).stdin(Stdio::null());
        command
    }

    /// One field of one object, as `xe X-param-get` prints it.
    pub fn param(&self, class: &str, uuid: &str, name: &str) -> Result<String> {
        self.xe(&[&format!("{class}-param-get"), &format!("uuid={uuid}"), &format!("param-name={name}")])
    }

    /// One entry of a map field; an error where it is not there.
    pub fn param_key(&self, class: &str, uuid: &str, name: &str, key: &str) -> Result<String> {
        self.xe(&[
            &format!("{class}-param-get"),
            &format!("uuid={uuid}"),
            &format!("param-name={name}"),
            &format!("param-key={key}"),
        ])
    }

    /// A field that is a number of bytes.
    pub fn bytes(&self, class: &str, uuid: &str, name: &str) -> Result<u64> {
        let text = self.param(class, uuid, name)?;
        text.parse().with_context(|| format!("{class} {uuid}: {name} is '{text}', a number expected"))
    }

    /// The messages of this name about an object all say that the host moved no byte.
    pub fn moved_nothing(&self, message: &str, object: &str) -> Result<()> {
        let told = self.xe(&[
            "message-list",
            &format!("name={message}"),
            &format!("obj-uuid={object}"),
            "params=body",
            "--minimal",
        ])?;
        // Commas within a text are escaped.
        if !told.starts_with("bytes moved by the host: 0\\,")
            || told.matches("by the host").count() != told.matches("by the host: 0\\,").count()
        {
            bail!("{message} of {object} says '{told}'");
        }
        Ok(())
    }

    /// Says something under the line of the step that is running.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// The offline tool on the store's file.
    pub fn store_tool(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["store"];
        all.extend(args);
        sh::output(&self.binary.to_string_lossy(), &all)
    }

    /// What the daemons wrote, last lines only.
    pub fn show_logs(&self) {
        for path in [self.log_path(), self.dir.join("array.log")] {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            println!("--- {} (last lines)", path.display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                println!("    {line}");
            }
        }
    }

    /// Leaves everything as it is and says how to look at it.
    pub fn keep(mut self) {
        if let Some(daemon) = self.daemon.take() {
            println!("kept: the daemon runs as process {}, for {:?} so far", daemon.id(), self.started.elapsed());
        }
        if let Some(array) = self.array.take() {
            array.keep();
        }
        println!("  export TANADA_SOCKET={}", self.socket().display());
        println!("  {} vm-list", self.xe.display());
        println!("  logs, state and the store are in {}", self.dir.display());
        println!("  to end it: cargo xtask demo --stop {}", self.dir.display());
    }

    /// Ends every process of this world and removes the directory.
    pub fn stop(mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        drop(self.array.take());
        stop_world(&self.dir);
    }
}

/// A port that was free a moment ago; the kernel does not give it to others again at once.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    listener.local_addr().context("the port's number")
}

/// Ends all processes whose command line names the directory, then removes it. Only the demo's own are that: the
/// directory's name is random.
pub fn stop_world(dir: &Path) {
    let name = dir.to_string_lossy().into_owned();
    if !dir.file_name().is_some_and(|last| last.to_string_lossy().starts_with(SCRATCH_PREFIX)) {
        println!("{name} is no demo's directory: a name that begins with {SCRATCH_PREFIX} expected");
        return;
    }
    // Supervisors first, or they would start again what is ended under them.
    for pass in ["tanada daemon", "blockd-keeper", ""] {
        for (pid, command) in processes() {
            if command.contains(&name) && command.contains(pass) && pid != std::process::id() {
                // SAFETY: kill has no preconditions; the process was found to be ours by its command line.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
        }
    }
    let gone = || processes().iter().all(|(pid, command)| !command.contains(&name) || *pid == std::process::id());
    let start = Instant::now();
    while !gone() && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        println!("could not remove {}: {error}", dir.display());
    }
}

/// Process ids with their command lines.
fn processes() -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbered = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbered
        .filter_map(|pid: u32| {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            Some((pid, words.join(" ")))
        })
        .collect()
}

/// True once Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Ctrl-C ends the run in order: what was started is stopped, the directory removed.
fn catch_interrupts() {
    extern "C" fn note_interrupt(_: i32) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let handler: extern "C" fn(i32) = note_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}
