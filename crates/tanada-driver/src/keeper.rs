//! The programs beside the embedded store: its keeper, started and ended, and the tools that are run to their end.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Command as Process;
use tokio::time::timeout;
use uuid::Uuid;

use crate::embedded::{EmbeddedPlaces, error, io_error};
use crate::{DriverErrorKind, DriverResult};

pub(crate) const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn control_socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

pub(crate) fn nbd_socket(dir: &Path) -> PathBuf {
    dir.join("nbd.sock")
}

/// Starts the keeper unless the control socket is served already.
pub(crate) async fn ensure_keeper(places: &EmbeddedPlaces, sr: Uuid, location: &Path) -> DriverResult<()> {
    let dir = &places.of(sr);
    if UnixStream::connect(control_socket(dir)).await.is_ok() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
    made.map_err(|error| io_error(dir, &error))?;
    let state = places.state_of(sr);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&state);
    made.map_err(|error| io_error(&state, &error))?;
    let mut keeper = Process::new(&places.program);
    keeper.args(arguments(location, dir, &state, places.scrub_every_days));
    run(keeper, START_DEADLINE, "blockd-keeper").await
}

/// The keeper's command line.
fn arguments(location: &Path, dir: &Path, state: &Path, scrub_every_days: u32) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["blockd-keeper".into(), "--daemonize".into()];
    for (name, value) in [("--store", location), ("--runtime-dir", dir), ("--state-dir", state)] {
        line.extend([name.into(), value.into()]);
    }
    if scrub_every_days > 0 {
        line.extend(["--scrub-every".into(), scrub_every_days.to_string().into()]);
    }
    line
}

/// Ends the keeper named by the run directory's pid file and waits until its socket is dead.
pub(crate) async fn stop_keeper(dir: &Path) -> DriverResult<()> {
    let socket = control_socket(dir);
    if UnixStream::connect(&socket).await.is_err() {
        return Ok(());
    }
    let pid_file = dir.join("keeper.pid");
    let text = fs::read_to_string(&pid_file).map_err(|error| io_error(&pid_file, &error))?;
    let pid: i32 = text
        .trim()
        .parse()
        .map_err(|_| error(DriverErrorKind::Io, format!("{} holds {text:?}, not a process id", pid_file.display())))?;
    let pid = rustix::process::Pid::from_raw(pid)
        .ok_or_else(|| error(DriverErrorKind::Io, format!("{} holds no process id", pid_file.display())))?;
    let watch = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok();
    if let Err(errno) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        && errno != rustix::io::Errno::SRCH
    {
        return Err(error(
            DriverErrorKind::Io,
            format!("the keeper (process {}) takes no signal: {errno}", text.trim()),
        ));
    }
    let Some(watch) = watch else { return Ok(()) };
    let ended = tokio::task::spawn_blocking(move || {
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: STOP_DEADLINE.as_secs() as i64, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&limit))
    });
    match ended.await {
        Ok(Ok(ready)) if ready > 0 => Ok(()),
        _ => Err(error(DriverErrorKind::Busy, format!("the keeper (process {}) does not end", text.trim()))),
    }
}

pub(crate) async fn run(process: Process, deadline: Duration, what: &str) -> DriverResult<()> {
    output(process, deadline, what).await.map(drop)
}

/// Standard output of a program that ended well; its last words otherwise.
pub(crate) async fn output(mut process: Process, deadline: Duration, what: &str) -> DriverResult<String> {
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = timeout(deadline, process.output())
        .await
        .map_err(|_| {
            error(DriverErrorKind::Unreachable, format!("{what} did not end within {} s", deadline.as_secs()))
        })?
        .map_err(|failure| error(DriverErrorKind::Io, format!("{what} does not start: {failure}")))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&ended.stderr);
    let words = words.trim();
    Err(error(DriverErrorKind::Io, format!("{what} failed ({}): {words}", ended.status)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::arguments;

    fn line(days: u32) -> String {
        let words = arguments(Path::new("/s/store"), Path::new("/run/x"), Path::new("/var/x"), days);
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_keeper_is_told_where_its_state_is_and_when_to_scrub() {
        let usual = "blockd-keeper --daemonize --store /s/store --runtime-dir /run/x --state-dir /var/x";
        assert_eq!(line(30), format!("{usual} --scrub-every 30"));
        assert_eq!(line(0), usual);
    }
}
