//! From a description to a machine that waits to run, and back to one that runs already.
//!
//! ```text
//!   launch:    spawn -> QMP greets -> disks plugged -> reset (boot order) -> prelaunch, the caller says `cont`
//!   incoming:  the same, but it waits for a memory image instead of booting ([`crate::memory`])
//!   reattach:  socket answers -> uuid matches -> process held by pidfd -> whatever state it is in
//! ```
//! A launch that fails anywhere leaves no process behind; so does a launch whose caller goes away.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use uuid::Uuid;

use crate::error::{QemuError, Result};
use crate::hotplug;
use crate::machine::{Accelerator, Boot, MachineSpec};
use crate::process::{CONTROL_FD, Launch, Process, RunAs, StateDir, spawn};
use crate::qmp::{Event, QUICK, Qmp};

/// How long QEMU may take from exec to its greeting; it touches no guest memory in that time.
const GREETING_LIMIT: Duration = Duration::from_secs(30);
/// How long a machine that runs already may take to greet a new manager. It can be busy draining a dead disk.
const REATTACH_LIMIT: Duration = Duration::from_secs(10);

/// How this host runs QEMU.
#[derive(Debug, Clone)]
pub struct HostSettings {
    pub binary: PathBuf,
    /// None: as the manager's own user.
    pub run_as: Option<RunAs>,
    pub accelerator: Accelerator,
}

/// A machine with a process behind it.
pub struct Machine {
    pub uuid: Uuid,
    pub dir: StateDir,
    pub process: Process,
    pub qmp: Qmp,
    /// Every event since the connection was made.
    pub events: Receiver<Event>,
}

/// QEMU's run state, as far as the manager decides by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    Running,
    /// Started, never run.
    Prelaunch,
    /// Waits for a memory image, or is reading one; never run.
    Incoming,
    /// Its memory has been written out; it stands still and has let go of its disks until `cont`.
    Saved,
    /// Stopped by command.
    Paused,
    /// Stopped because a disk failed; `cont` repeats the failed requests.
    IoError,
    /// The guest's kernel gave up.
    Panicked,
    /// Powered off, process still there.
    Shutdown,
    /// Any other state: not running.
    Other,
}

/// Kills the process unless the launch comes to its end.
struct KillUnlessKept(Option<Process>);

impl Drop for KillUnlessKept {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process.kill_now();
            // Reaped in the background; without a runtime the manager ends anyway.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { process.exited().await });
            }
        }
    }
}

/// Starts a machine; it waits in prelaunch for `cont`.
///
/// # Errors
/// [`QemuError::Spec`] for a description that cannot be run, [`QemuError::EndedEarly`] with QEMU's own words,
/// [`QemuError::Refused`] where a disk cannot be opened.
pub async fn launch(spec: &MachineSpec, host: &HostSettings, dir: &Path) -> Result<Machine> {
    build(spec, host, dir, &[]).await
}

/// Builds a machine that takes over another's memory ([`crate::memory`]) instead of booting; errors as of [`launch`].
pub async fn launch_incoming(spec: &MachineSpec, host: &HostSettings, dir: &Path) -> Result<Machine> {
    build(spec, host, dir, &["-incoming", "defer"]).await
}

async fn build(spec: &MachineSpec, host: &HostSettings, dir: &Path, more: &[&str]) -> Result<Machine> {
    spec.check()?;
    let dir = StateDir::new(dir);
    if let (Boot::Kernel { kernel, initrd, .. }, Some(user)) = (&spec.boot, host.run_as) {
        for path in std::iter::once(kernel).chain(initrd) {
            user.check_reach(path)?;
        }
    }
    let name = spec.uuid.to_string();
    let launch = Launch {
        binary: &host.binary,
        run_as: host.run_as,
        device_group: device_group(host.accelerator),
        cgroup: Some(&name),
    };
    let mut arguments = spec.arguments(host.accelerator, &dir, CONTROL_FD);
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    let process = spawn(&launch, &dir, &arguments)?;
    let mut guard = KillUnlessKept(Some(process.clone()));
    let (qmp, events) = greeted(&process, &dir).await?;
    for disk in &spec.disks {
        hotplug::plug(&qmp, disk).await?;
    }
    if spec.disks.iter().any(|disk| disk.boot_index.is_some()) {
        // The firmware's list of boot devices is made at reset.
        qmp.execute("system_reset", json!({}), QUICK).await?;
    }
    guard.0 = None;
    tracing::info!(vm = %spec.uuid, pid = process.pid(), accelerator = ?host.accelerator, "machine built");
    Ok(Machine { uuid: spec.uuid, dir, process, qmp, events })
}

async fn greeted(process: &Process, dir: &StateDir) -> Result<(Qmp, Receiver<Event>)> {
    let control = dir.control_socket();
    tokio::select! {
        connected = Qmp::connect(&control, GREETING_LIMIT) => match connected {
            // The socket closes a moment before the process is gone.
            Err(QemuError::Closed { .. } | QemuError::Connect { .. }) => Err(ended_early(process, dir).await),
            other => other,
        },
        _ = process.exited() => Err(ended_early(process, dir).await),
    }
}

async fn ended_early(process: &Process, dir: &StateDir) -> QemuError {
    process.kill_now();
    let status = process.exited().await.to_string();
    QemuError::EndedEarly { status, log: dir.stderr_tail() }
}

/// Finds a machine that was started before. None where nobody listens any more.
///
/// # Errors
/// [`QemuError::Protocol`] where another machine answers, [`QemuError::Deadline`] where QEMU does not answer now.
pub async fn reattach(uuid: Uuid, dir: &Path) -> Result<Option<Machine>> {
    let dir = StateDir::new(dir);
    let gone = |source: &io::Error| matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
    // QEMU itself opened this one, so the kernel knows the process behind it.
    let Some(pid) = listener_pid(&dir.emergency_socket()).await? else { return Ok(None) };
    let process = match Process::open(pid) {
        Ok(process) => process,
        Err(_) => return Ok(None),
    };
    let (qmp, events) = match Qmp::connect(&dir.control_socket(), REATTACH_LIMIT).await {
        Ok(connected) => connected,
        Err(QemuError::Connect { source, .. }) if gone(&source) => return Ok(None),
        Err(QemuError::Closed { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let answer = qmp.execute("query-uuid", json!({}), QUICK).await?;
    let found = answer.get("UUID").and_then(Value::as_str).and_then(|text| Uuid::parse_str(text).ok());
    if found != Some(uuid) {
        return Err(QemuError::Protocol {
            what: format!("machine {uuid}"),
            detail: format!("{} answers as {found:?}", dir.control_socket().display()),
        });
    }
    Ok(Some(Machine { uuid, dir, process, qmp, events }))
}

/// The process that listens on a socket; None where nobody does.
async fn listener_pid(socket: &Path) -> Result<Option<i32>> {
    match tokio::net::UnixStream::connect(socket).await {
        Ok(stream) => Ok(stream.peer_cred().ok().and_then(|cred| cred.pid())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(source) => Err(QemuError::Connect { socket: socket.to_path_buf(), source }),
    }
}

/// The group that opens /dev/kvm, where it is needed.
pub(crate) fn device_group(accelerator: Accelerator) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    match accelerator {
        Accelerator::Kvm => std::fs::metadata("/dev/kvm").ok().map(|facts| facts.gid()),
        Accelerator::Tcg => None,
    }
}

/// Asks QEMU for its run state.
pub async fn run_state(qmp: &Qmp) -> Result<RunState> {
    let status = qmp.execute("query-status", json!({}), QUICK).await?;
    Ok(match status.get("status").and_then(Value::as_str).unwrap_or_default() {
        "running" => RunState::Running,
        "prelaunch" => RunState::Prelaunch,
        "inmigrate" => RunState::Incoming,
        "postmigrate" => RunState::Saved,
        "paused" => RunState::Paused,
        "io-error" => RunState::IoError,
        "guest-panicked" => RunState::Panicked,
        "shutdown" => RunState::Shutdown,
        _ => RunState::Other,
    })
}

/// True where the guest's agent holds its port open now.
pub async fn agent_port_open(qmp: &Qmp) -> Result<bool> {
    let chardevs = qmp.execute("query-chardev", json!({}), QUICK).await?;
    let mut chardevs = chardevs.as_array().into_iter().flatten();
    let port = chardevs.find(|chardev| chardev.get("label").and_then(Value::as_str) == Some("ga0"));
    Ok(port.and_then(|port| port.get("frontend-open")).and_then(Value::as_bool) == Some(true))
}
