//! A guest's agent on a unix socket, just enough of one: counts, a flag, and freezes that take as long as a test wants.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// Far more than anything takes here, so that only what hangs fails.
pub const AMPLE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
pub struct State {
    /// File systems that stand still now.
    pub frozen: u64,
    /// Commands in the order in which they were carried out.
    pub log: Vec<String>,
    /// A freeze was read and waits for `release`.
    pub freezing: bool,
    pub hold_freeze: bool,
    /// The same of a thaw.
    pub thawing: bool,
    pub hold_thaw: bool,
    pub hang_up_at: Option<&'static str>,
    pub clients: u64,
}

/// The stand-in; it ends with the test's process.
#[derive(Clone)]
pub struct Agent {
    shared: Arc<(Mutex<State>, Condvar)>,
    pub socket: PathBuf,
}

impl Agent {
    pub fn start(dir: &Path, state: State) -> Agent {
        let socket = dir.join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // As QEMU does: whoever comes when some wait already is turned away.
        rustix::net::listen(&listener, 1).unwrap();
        let agent = Agent { shared: Arc::new((Mutex::new(state), Condvar::new())), socket };
        let serving = agent.clone();
        std::thread::spawn(move || {
            // One client at a time: others wait without a word, as on QEMU's socket.
            while let Ok((stream, _)) = listener.accept() {
                serving.change(|state| state.clients += 1);
                serving.serve(stream);
            }
        });
        agent
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.shared.1.notify_all();
    }

    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Waits until `what` is true of the guest.
    pub fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let (state, result) = self
            .shared
            .1
            .wait_timeout_while(self.lock(), AMPLE, |state| !holds(state))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!result.timed_out(), "{what}: {:?}", *state);
    }

    fn serve(&self, stream: UnixStream) {
        let Ok(mut answers) = stream.try_clone() else { return };
        let mut requests = BufReader::new(stream);
        let mut line = Vec::new();
        while requests.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let start = line.iter().rposition(|byte| *byte == 0xFF).map_or(0, |at| at + 1);
            let request: Value = serde_json::from_slice(&line[start..]).unwrap();
            line.clear();
            let name = request["execute"].as_str().unwrap().to_owned();
            let answer = self.carry_out(&name, &request);
            if self.lock().hang_up_at.take_if(|at| *at == name).is_some() {
                return;
            }
            let delimiter: &[u8] = if name == "guest-sync-delimited" { &[0xFF] } else { &[] };
            let line = format!("{}\n", json!({ "return": answer, "id": request["id"] }));
            if answers.write_all(delimiter).and_then(|()| answers.write_all(line.as_bytes())).is_err() {
                return;
            }
        }
    }

    fn carry_out(&self, name: &str, request: &Value) -> Value {
        let answer = match name {
            "guest-sync-delimited" => return request["arguments"]["id"].clone(),
            "guest-info" => {
                let commands = ["freeze", "thaw", "status"].map(|verb| format!("guest-fsfreeze-{verb}"));
                let commands = commands.map(|name| json!({ "name": name, "enabled": true }));
                json!({ "version": "7.2.22", "supported_commands": commands })
            }
            "guest-get-osinfo" => json!({ "id": "debian", "kernel-release": "6.1.0" }),
            "guest-get-fsinfo" => json!([]),
            "guest-ping" => json!({}),
            "guest-fsfreeze-status" => json!(if self.lock().frozen > 0 { "frozen" } else { "thawed" }),
            "guest-fsfreeze-freeze" => {
                self.change(|state| state.freezing = true);
                let held = self.shared.1.wait_while(self.lock(), |state| state.hold_freeze);
                drop(held.unwrap_or_else(PoisonError::into_inner));
                self.change(|state| state.frozen = 2);
                json!(2)
            }
            "guest-fsfreeze-thaw" => {
                self.change(|state| state.thawing = true);
                let held = self.shared.1.wait_while(self.lock(), |state| state.hold_thaw);
                drop(held.unwrap_or_else(PoisonError::into_inner));
                let thawed = self.lock().frozen;
                self.change(|state| state.frozen = 0);
                json!(thawed)
            }
            other => panic!("the agent was asked for {other}"),
        };
        self.change(|state| state.log.push(name.trim_start_matches("guest-").to_owned()));
        answer
    }

    /// How often the guest was frozen and thawed.
    pub fn counts(&self) -> (usize, usize) {
        let log = self.state().log;
        let count = |name: &str| log.iter().filter(|command| *command == name).count();
        (count("fsfreeze-freeze"), count("fsfreeze-thaw"))
    }
}
