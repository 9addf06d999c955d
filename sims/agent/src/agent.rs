//! The stand-in at work: its threads, and the handle by which a test drives it.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use serde_json::Value;

use crate::clock::Clock;
use crate::guest::{Course, Guest, When};
use crate::port::{self, Request};
use crate::scenario::Scenario;

/// How often conditions that time alone can change are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What can be seen of the guest from outside the protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Writes of the guest are held now.
    pub is_held: bool,
    /// What the agent would answer to `guest-fsfreeze-status`.
    pub says_frozen: bool,
    /// An agent is running.
    pub is_alive: bool,
    /// A command is being carried out.
    pub is_busy: bool,
    /// Somebody is connected.
    pub has_client: bool,
    /// Connections taken so far.
    pub clients: u64,
    /// Freezes and thaws that took effect, refused ones included.
    pub freezes: u64,
    pub thaws: u64,
}

/// Everything the threads share.
pub(crate) struct State {
    pub guest: Guest,
    pub clock: Clock,
    pub queue: port::Queue,
    pub client: Option<UnixStream>,
    pub clients: u64,
    commands: Vec<String>,
    is_alive: bool,
    is_busy: bool,
    /// Changes with every agent that ends: a command of an earlier one has no effect.
    life: u64,
    /// Changes with every [`Agent::release`].
    releases: u64,
    freezes: u64,
    thaws: u64,
    pub is_over: bool,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn notify(&self) {
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    fn facts(&self) -> Facts {
        Facts {
            is_held: self.guest.is_held(self.clock.now_ms()),
            says_frozen: self.guest.says_frozen(),
            is_alive: self.is_alive,
            is_busy: self.is_busy,
            has_client: self.client.is_some(),
            clients: self.clients,
            freezes: self.freezes,
            thaws: self.thaws,
        }
    }

    /// What was sent is kept for the next agent only as long as somebody is connected.
    pub fn client_gone(&mut self) {
        self.client = None;
        if !self.is_alive {
            self.queue.clear();
        }
    }

    fn kill(&mut self) {
        self.is_alive = false;
        self.life += 1;
        self.queue.clear();
    }
}

/// A running stand-in. Dropping it ends it and removes its socket's name no more than a guest would.
pub struct Agent {
    shared: Arc<Shared>,
    listener: UnixListener,
    threads: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Listens on `socket`, which must not exist, with a guest that behaves as the scenario says.
    ///
    /// # Errors
    /// Those of binding the socket and starting threads.
    pub fn start(socket: &Path, scenario: Scenario) -> io::Result<Agent> {
        let listener = UnixListener::bind(socket)?;
        let state = State {
            clock: Clock::new(scenario.clock_rate),
            is_alive: scenario.is_alive,
            guest: Guest::new(scenario),
            queue: port::Queue::default(),
            client: None,
            clients: 0,
            commands: Vec::new(),
            is_busy: false,
            life: 0,
            releases: 0,
            freezes: 0,
            thaws: 0,
            is_over: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut agent = Agent { shared: Arc::clone(&shared), listener: listener.try_clone()?, threads: Vec::new() };
        let of_port = Arc::clone(&shared);
        agent.threads.push(spawn("sim-agent port", move || port::serve(&listener, &of_port))?);
        agent.threads.push(spawn("sim-agent guest", move || work(&shared))?);
        Ok(agent)
    }

    pub fn facts(&self) -> Facts {
        self.shared.lock().facts()
    }

    /// Are the guest's writes held, whatever its agent says?
    pub fn is_held(&self) -> bool {
        self.facts().is_held
    }

    /// Commands that an agent began, in order, without syncs.
    pub fn commands(&self) -> Vec<String> {
        self.shared.lock().commands.clone()
    }

    /// Changes how the guest behaves from the next command on. Its clock keeps its rate.
    pub fn change(&self, change: impl FnOnce(&mut Scenario)) {
        change(&mut self.shared.lock().guest.scenario);
        self.shared.notify();
    }

    /// Moves the guest's clock.
    pub fn advance(&self, by: Duration) {
        self.shared.lock().clock.advance(by);
        self.shared.notify();
    }

    /// Lets whatever hangs now go on.
    pub fn release(&self) {
        self.shared.lock().releases += 1;
        self.shared.notify();
    }

    /// Ends the agent in the guest; the socket stays, as QEMU's does.
    pub fn kill(&self) {
        self.shared.lock().kill();
        self.shared.notify();
    }

    /// Starts a new agent in the guest, after [`Agent::kill`] or instead of the one that runs.
    pub fn restart(&self) {
        let mut state = self.shared.lock();
        if state.is_alive {
            state.kill();
        }
        state.guest.agent_restarted();
        state.is_alive = true;
        drop(state);
        self.shared.notify();
    }

    /// Resets the machine: nothing is held, a new agent runs.
    pub fn reset(&self) {
        let mut state = self.shared.lock();
        state.kill();
        state.guest.reset();
        state.is_alive = true;
        drop(state);
        self.shared.notify();
    }

    /// Breaks the connection of now, if there is one.
    pub fn disconnect(&self) {
        if let Some(client) = &self.shared.lock().client {
            // Its other end is gone already where this fails.
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits until the facts are as wanted; false if they are not within `limit` (real time).
    pub fn wait_for(&self, limit: Duration, wanted: impl Fn(&Facts) -> bool) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !wanted(&state.facts()) {
            if Instant::now() >= until {
                return false;
            }
            state = self.shared.wait(state, LOOK);
        }
        true
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.disconnect();
        self.shared.notify();
        // Wakes the thread that accepts; it ends on the error.
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// The agent in the guest: one command after another.
fn work(shared: &Shared) {
    let mut state = shared.lock();
    while !state.is_over {
        let request = if state.is_alive { state.queue.pop() } else { None };
        let Some(request) = request else {
            state = shared.wait(state, LOOK * 20);
            continue;
        };
        let life = state.life;
        let reply;
        (state, reply) = match request {
            Request::Junk => {
                let complains = state.guest.scenario.port.complains;
                (state, complains.then(port::complaint))
            }
            Request::Command(command) => carry_out(shared, state, &command),
        };
        state.is_busy = false;
        shared.notify();
        if state.life != life {
            continue;
        }
        if let (Some(reply), Some(client)) = (reply, state.client.as_ref().and_then(|client| client.try_clone().ok())) {
            drop(state);
            port::send(&client, &reply);
            state = shared.lock();
        }
    }
}

/// The bytes of the reply; none where the agent died of it.
fn carry_out<'a>(
    shared: &'a Shared,
    mut state: MutexGuard<'a, State>,
    command: &Value,
) -> (MutexGuard<'a, State>, Option<Vec<u8>>) {
    let name = command.get("execute").and_then(Value::as_str).unwrap_or_default().to_owned();
    let arguments = command.get("arguments").cloned().unwrap_or(Value::Null);
    let is_sync = name.starts_with("guest-sync");
    state.is_busy = true;
    if !is_sync {
        state.commands.push(name.clone());
    }
    shared.notify();
    let (life, course) = (state.life, state.guest.course(&name));
    state = before(shared, state, course);
    if state.life != life || state.is_over {
        return (state, None);
    }
    let now_ms = state.clock.now_ms();
    let reply = state.guest.apply(&name, &arguments, now_ms);
    match name.as_str() {
        "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => state.freezes += 1,
        "guest-fsfreeze-thaw" => state.thaws += 1,
        _ => {}
    }
    shared.notify();
    state = after(shared, state, course);
    if state.life != life || state.is_over {
        return (state, None);
    }
    let bytes = port::reply_bytes(&state.guest.scenario.port, command, &name, reply);
    (state, Some(bytes))
}

fn before<'a>(shared: &'a Shared, mut state: MutexGuard<'a, State>, course: Course) -> MutexGuard<'a, State> {
    if course.dies == Some(When::Before) {
        state.kill();
        return state;
    }
    if course.hangs == Some(When::Before) {
        state = until_released(shared, state);
    }
    let life = state.life;
    let until_ms = state.clock.now_ms().saturating_add(course.takes_ms);
    while state.clock.now_ms() < until_ms && state.life == life && !state.is_over {
        let pause = state.clock.pause_until(until_ms);
        state = shared.wait(state, pause);
    }
    state
}

fn after<'a>(shared: &'a Shared, mut state: MutexGuard<'a, State>, course: Course) -> MutexGuard<'a, State> {
    if course.dies == Some(When::After) {
        state.kill();
    }
    if course.hangs == Some(When::After) {
        state = until_released(shared, state);
    }
    state
}

fn until_released<'a>(shared: &'a Shared, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    let (life, releases) = (state.life, state.releases);
    while state.life == life && state.releases == releases && !state.is_over {
        state = shared.wait(state, LOOK * 20);
    }
    state
}
