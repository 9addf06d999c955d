//! Whatever dies, at whatever step: the guest is thawed, and nobody calls a snapshot better than it is.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use common::{AMPLE, Agent, State};
use rustix::process::{Pid, Signal};

/// A process that plays the daemon.
struct Manager {
    process: Child,
    /// What it says, line by line; closed when it has ended.
    lines: Receiver<String>,
}

impl Manager {
    fn start(agent: &Agent, stop_at: &str, cut_ms: u64, window_ms: u64) -> Manager {
        Manager::start_for(agent, stop_at, cut_ms, window_ms, AMPLE)
    }

    fn start_for(agent: &Agent, stop_at: &str, cut_ms: u64, window_ms: u64, thaw: Duration) -> Manager {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quiesce-rig"));
        command.arg("manage").arg(&agent.socket).arg(stop_at);
        command.args([cut_ms, window_ms, thaw.as_millis() as u64].map(|ms| ms.to_string()));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (said, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Manager { process, lines }
    }

    /// The next thing that it says; `None` when it has ended. One that says nothing for so long hangs.
    fn line(&self, waiting_for: &str) -> Option<String> {
        match self.lines.recv_timeout(AMPLE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the manager hangs; it was to come to {waiting_for}"),
        }
    }

    /// Waits until it has reached `step`.
    fn until(&mut self, step: &str) {
        let lines = std::iter::from_fn(|| self.line(step));
        let seen: Vec<String> = lines.take_while(|line| line != step).collect();
        assert!(seen.iter().all(|line| !line.contains(' ')), "ended before {step}: {seen:?}");
    }

    /// From the step where it stays.
    fn go_on(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// What it says at last: level and cause.
    fn verdict(mut self) -> String {
        let last = std::iter::from_fn(|| self.line("a verdict")).last();
        assert!(self.process.wait().unwrap().success());
        last.expect("a verdict")
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Its one guard stands still from now on.
    fn hold_guard(&self) {
        let guards = self.guards();
        assert_eq!(guards.len(), 1);
        signal(guards[0], Signal::STOP);
    }

    /// Guards that it has started.
    fn guards(&self) -> Vec<i32> {
        let parent = format!("\nPPid:\t{}\n", self.process.id());
        processes(|status| status.contains(&parent))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // A guard that a test holds would stand still for ever.
        let left = if matches!(self.process.try_wait(), Ok(None)) { self.guards() } else { Vec::new() };
        for guard in left.into_iter().filter_map(Pid::from_raw) {
            let _ = rustix::process::kill_process(guard, Signal::KILL);
        }
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn processes(wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| wanted(&status)))
        .collect()
}

fn signal(pid: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// No guard of this agent's socket is left.
fn assert_no_guard(agent: &Agent) {
    let socket = agent.socket.to_str().unwrap();
    let guards = || {
        let lines = processes(|_| true).into_iter();
        let line = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        lines.filter(|pid| line(pid).contains("quiesce-guard") && line(pid).contains(socket)).count()
    };
    let began = Instant::now();
    while guards() > 0 {
        assert!(began.elapsed() < AMPLE, "a guard stays");
        std::thread::yield_now();
    }
}

fn agent(dir: &Path) -> Agent {
    Agent::start(dir, State::default())
}

const WINDOW_MS: u64 = 30_000;

#[test]
fn nobody_dies() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    assert_eq!(Manager::start(&agent, "-", 0, WINDOW_MS).verdict(), "file system -");
    assert_eq!((agent.counts(), agent.state().frozen), ((1, 1), 0));
    assert_no_guard(&agent);
}

#[test]
fn the_daemon_dies_at_every_step() {
    for step in ["probed", "owed", "cutting", "cut", "paid"] {
        let dir = tempfile::tempdir().unwrap();
        let agent = agent(dir.path());
        let mut manager = Manager::start(&agent, step, 0, WINDOW_MS);
        manager.until(step);
        let frozen = agent.state().frozen;
        assert_eq!(frozen > 0, matches!(step, "cutting" | "cut"), "{step}");
        manager.kill();
        agent.wait(step, |state| state.frozen == 0);
        assert_no_guard(&agent);
        let (freezes, thaws) = agent.counts();
        assert!(thaws >= freezes, "{step}: {:?}", agent.state().log);
    }
}

#[test]
fn the_daemon_dies_while_the_guest_freezes() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State { hold_freeze: true, ..State::default() });
    let mut manager = Manager::start(&agent, "-", 0, WINDOW_MS);
    agent.wait("freezing", |state| state.freezing);
    manager.kill();
    // The freeze comes late, as it does in a guest; the thaw is behind it.
    agent.change(|state| state.hold_freeze = false);
    agent.wait("thawed", |state| state.log.iter().any(|name| name == "fsfreeze-thaw") && state.frozen == 0);
    assert_no_guard(&agent);
    assert_eq!(agent.counts().0, 1);
}

#[test]
fn the_guard_dies_while_the_guest_is_frozen_and_the_evidence_decides() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut manager = Manager::start(&agent, "-", 1000, WINDOW_MS);
    manager.until("cutting");
    for guard in manager.guards() {
        signal(guard, Signal::KILL);
    }
    // The guest says that it was frozen until after the cut, whoever asks.
    assert_eq!(manager.verdict(), "file system -");
    assert_eq!((agent.counts(), agent.state().frozen), ((1, 1), 0));
}

#[test]
fn the_guard_dies_while_the_guest_freezes() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State { hold_freeze: true, ..State::default() });
    let manager = Manager::start(&agent, "-", 0, WINDOW_MS);
    agent.wait("freezing", |state| state.freezing);
    for guard in manager.guards() {
        signal(guard, Signal::KILL);
    }
    agent.change(|state| state.hold_freeze = false);
    assert_eq!(manager.verdict(), "crash guard-failed");
    assert_eq!(agent.state().frozen, 0);
    assert!(agent.counts().1 >= 1);
}

#[test]
fn the_guard_is_told_to_end_and_thaws_first() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut manager = Manager::start(&agent, "cutting", 0, WINDOW_MS);
    manager.until("cutting");
    for guard in manager.guards() {
        signal(guard, Signal::TERM);
    }
    agent.wait("thawed", |state| state.frozen == 0);
    manager.kill();
    assert_no_guard(&agent);
}

#[test]
fn a_cut_that_takes_too_long_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    // Stays in the cut for ever: only the guard's deadline can thaw.
    let mut manager = Manager::start(&agent, "cutting", 0, 1500);
    manager.until("cutting");
    agent.wait("thawed", |state| state.frozen == 0 && state.log.iter().any(|name| name == "fsfreeze-thaw"));
    manager.kill();
    assert_no_guard(&agent);
    // One that ends after all is not called quiesced.
    assert_eq!(Manager::start(&agent, "-", 2500, 1500).verdict(), "crash cut-too-late");
}

#[test]
fn both_die_and_the_next_life_thaws() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut manager = Manager::start(&agent, "cutting", 0, WINDOW_MS);
    manager.until("cutting");
    let guards = manager.guards();
    assert_eq!(guards.len(), 1);
    // Held first, so that it cannot thaw between the two deaths.
    signal(guards[0], Signal::STOP);
    manager.kill();
    signal(guards[0], Signal::KILL);
    assert_no_guard(&agent);
    assert_eq!(agent.state().frozen, 2);
    // What the daemon does for an intent that it finds, by way of the probe of the next snapshot.
    assert_eq!(Manager::start(&agent, "-", 0, WINDOW_MS).verdict(), "file system -");
    assert_eq!((agent.counts(), agent.state().frozen), ((2, 2), 0));
}

#[test]
fn the_connection_is_lost_at_every_command() {
    for (at, verdict) in [
        ("guest-fsfreeze-status", "crash agent-silent"),
        ("guest-info", "crash agent-silent"),
        ("guest-get-osinfo", "crash no-proof"),
        ("guest-fsfreeze-freeze", "crash agent-silent"),
        // The thaw was carried out and its answer lost; asked again, the guest has nothing frozen.
        ("guest-fsfreeze-thaw", "crash thaw-unconfirmed"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::start(dir.path(), State { hang_up_at: Some(at), ..State::default() });
        assert_eq!(Manager::start(&agent, "-", 0, WINDOW_MS).verdict(), verdict, "{at}");
        assert_eq!(agent.state().frozen, 0, "{at}");
        assert_no_guard(&agent);
    }
}

/// A guard that is alive and does nothing, from each of its states on.
#[test]
fn the_guard_hangs_before_it_has_asked_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut manager = Manager::start(&agent, "owed", 0, WINDOW_MS);
    manager.until("owed");
    manager.hold_guard();
    manager.go_on();
    assert_eq!(manager.verdict(), "crash guard-failed");
    assert_eq!(agent.counts().0, 0);
    assert_no_guard(&agent);
}

#[test]
fn the_guard_hangs_while_the_guest_freezes() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State { hold_freeze: true, ..State::default() });
    let manager = Manager::start(&agent, "-", 0, WINDOW_MS);
    agent.wait("freezing", |state| state.freezing);
    manager.hold_guard();
    // The guest freezes, and nobody is told.
    agent.change(|state| state.hold_freeze = false);
    assert_eq!(manager.verdict(), "crash guard-failed");
    assert_eq!((agent.counts(), agent.state().frozen), ((1, 1), 0));
    assert_no_guard(&agent);
}

#[test]
fn the_guard_hangs_while_the_guest_is_frozen_and_the_evidence_decides() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut manager = Manager::start(&agent, "cutting", 0, WINDOW_MS);
    manager.until("cutting");
    manager.hold_guard();
    manager.go_on();
    // The guest was frozen until after the cut, and says so to whoever asks.
    assert_eq!(manager.verdict(), "file system -");
    assert_eq!((agent.counts(), agent.state().frozen), ((1, 1), 0));
    assert_no_guard(&agent);
}

#[test]
fn the_guard_hangs_and_the_cut_does_not_end() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut manager = Manager::start(&agent, "cut", 0, 1500);
    manager.until("cut");
    manager.hold_guard();
    // The daemon keeps the deadline that was the guard's.
    agent.wait("thawed", |state| state.frozen == 0 && state.log.iter().any(|name| name == "fsfreeze-thaw"));
    manager.go_on();
    assert_eq!(manager.verdict(), "crash cut-too-late");
    assert_no_guard(&agent);
}

#[test]
fn the_guard_hangs_while_the_guest_thaws() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State { hold_thaw: true, ..State::default() });
    let manager = Manager::start(&agent, "-", 0, WINDOW_MS);
    agent.wait("thawing", |state| state.thawing);
    manager.hold_guard();
    agent.change(|state| state.hold_thaw = false);
    // It thawed, and the answer went to nobody: nothing proves that the freeze held.
    assert_eq!(manager.verdict(), "crash guard-failed");
    assert_eq!(agent.state().frozen, 0);
    assert_no_guard(&agent);
}

#[test]
fn the_guard_hangs_while_it_asks_on() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), State { hold_thaw: true, ..State::default() });
    let mut manager = Manager::start_for(&agent, "judged", 0, WINDOW_MS, Duration::from_secs(1));
    // The guest has not answered in time.
    manager.until("judged");
    manager.hold_guard();
    manager.go_on();
    agent.change(|state| state.hold_thaw = false);
    // Ends when the debt is paid.
    assert_eq!(manager.verdict(), "crash thaw-unconfirmed");
    assert_eq!(agent.state().frozen, 0);
    assert_no_guard(&agent);
}

#[test]
fn the_daemon_hangs_while_the_guest_is_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut manager = Manager::start(&agent, "-", 500, 1500);
    manager.until("cutting");
    signal(manager.pid(), Signal::STOP);
    agent.wait("thawed", |state| state.frozen == 0 && state.log.iter().any(|name| name == "fsfreeze-thaw"));
    signal(manager.pid(), Signal::CONT);
    assert_eq!(manager.verdict(), "crash cut-too-late");
    assert_no_guard(&agent);
}
